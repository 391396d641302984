# ruff: noqa: N999  PyInstaller looks for this name
"""What PyInstaller cannot see: modules that are imported when they are needed, libraries, models and tables."""

from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs

import pycrispasr
from pycrispasr.runtimes.native import library_path

_PACKAGE = library_path().parent

hiddenimports = [f"pycrispasr.{module}" for module in (*pycrispasr._HOMES, "audio", "errors", "_cdefs")]
hiddenimports.append("_cffi_backend")
datas = collect_data_files("pycrispasr")
binaries = [(str(path), "pycrispasr") for path in _PACKAGE.iterdir() if path.suffix in (".so", ".dylib", ".dll")]
if (_PACKAGE.parent / "pycrispasr_cuda").is_dir():  # where our library looks for it, and nowhere else
    binaries += collect_dynamic_libs("pycrispasr_cuda")
