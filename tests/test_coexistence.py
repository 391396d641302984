"""Other packages that bring a ggml, or much native code, work in the same process: whichever is loaded first."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from pycrispasr.runtimes import native

from . import whisper_file

ROOT = Path(__file__).parent.parent
OURS = """
import pycrispasr
def ours():
    with pycrispasr.Model("tiny") as model:
        assert model.transcribe("samples/spelling.wav").text == open("samples/spelling.txt").read().strip()
"""
OTHERS = {
    "crispasr": """
import crispasr, numpy
def other():
    crispasr.CrispASR(whisper).transcribe_pcm(numpy.zeros(32000, numpy.float32), sample_rate=16000)
""",
    "pywhispercpp": """
import numpy, pywhispercpp.model
def other():
    model = pywhispercpp.model.Model(whisper, redirect_whispercpp_logs_to=False, n_threads=1)
    model.transcribe(numpy.zeros(32000, numpy.float32))
""",
    "llama_cpp": """
import llama_cpp
def other():
    assert llama_cpp.llama_print_system_info()
    assert llama_cpp.llama_max_devices() > 0
""",
    "torch": """
import torch
def other():
    square = torch.eye(64)
    assert torch.equal(square @ square, square)
""",
}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper") / "random.bin"
    whisper_file.write_random(path)
    return path


def run(code: str, whisper: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"whisper = {str(whisper)!r}\n{code}\nprint('done')"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["done"]), done.stderr


@pytest.mark.parametrize("first", ["we", "they"])
@pytest.mark.parametrize("name", [*list(OTHERS)[:-1], pytest.param("torch", marks=pytest.mark.slow)])
def test_both_work_in_one_process(name: str, first: str, whisper: Path) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    order = ("ours()\nother()\nours()", "other()\nours()\nother()")[first == "they"]
    imports = (OURS + OTHERS[name], OTHERS[name] + OURS)[first == "they"]
    run(imports + order, whisper)


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="names are not shared between libraries on Windows")
@pytest.mark.parametrize("name", ["crispasr", "pywhispercpp", "llama_cpp"])
def test_another_ggml_whose_names_are_global_is_not_taken_for_ours(name: str, whisper: Path) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed")
    code = f"""
import ctypes, pathlib
folder = pathlib.Path({str(Path(spec.origin).parent)!r})
found = [*folder.rglob("libggml*"), *folder.parent.glob("{name}.libs/libggml*")]
loaded = 0
for turn in range(3):  # they need each other
    for path in found:
        try:
            loaded += hasattr(ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL), "ggml_init")
        except OSError:
            pass
assert loaded
{OURS}
ours()
"""
    run(code, whisper)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_our_libraries_come_from_our_folder_only(tmp_path: Path, whisper: Path) -> None:
    for name in ("libggml-cpu-x64.so", "libpycrispasr-cpu-x64.so", "libpycrispasr-ggml-base.so"):
        (tmp_path / name).write_bytes(b"no library")
    code = f"""
import os
os.environ["GGML_BACKEND_PATH"] = {str(tmp_path / "libggml-cpu-x64.so")!r}
os.chdir({str(tmp_path)!r})
import pycrispasr, pycrispasr.runtimes.native
assert [device.name for device in pycrispasr.devices()][-1] == "cpu"
files = {{line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line}}
libraries = [path for path in files if "ggml" in os.path.basename(path) or "libpycrispasr" in path]
assert libraries
folder = str(pycrispasr.runtimes.native.library_path().resolve().parent)
assert all(os.path.dirname(library) == folder for library in libraries), libraries
"""
    run(code, whisper)


def test_no_library_of_ours_has_a_name_that_others_have() -> None:
    for path in native.library_path().parent.iterdir():
        if path.suffix in (".so", ".dll", ".dylib"):
            assert path.name.removeprefix("lib").startswith("pycrispasr")
