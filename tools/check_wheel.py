"""Looks into a wheel that is ready to be uploaded: `python tools/check_wheel.py WHEEL`, or a folder with wheels.

Prints its size and contents, and fails when something is in it twice, missing, misnamed or too big. It needs only the
standard library, since it runs wherever wheels are repaired.
"""

from __future__ import annotations

import hashlib
import re
import sys
import zipfile
from pathlib import Path

MOST_BYTES = 30_000_000
LIBRARY = re.compile(r"\.(so|dylib|dll|pyd)(\.|$)")
NEEDED = (
    "pycrispasr/_cdefs.py",
    "pycrispasr/bundled/tiny.gguf",
    "pycrispasr/py.typed",
    "licenses/LICENSE",
    "licenses/licenses/ggml.txt",
    "licenses/licenses/silero-vad.txt",
    "sboms/pycrispasr.cdx.json",
)


def problems(wheel: Path) -> list[str]:
    """What is wrong with it, a line for each thing."""
    found = []
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        found.append(f"{size} bytes: at most {MOST_BYTES} are wanted")
    if not re.fullmatch(r"pycrispasr-[^-]+-py3-none-(?!linux_)\w+(\.\w+)*\.whl", wheel.name):
        found.append("the name is not that of a repaired wheel for every Python")
    seen: dict[str, str] = {}
    libraries: dict[str, str] = {}
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            print(f"{item.file_size:>12,}  {item.filename}")
            digest = hashlib.sha256(archive.read(item)).hexdigest()
            if item.file_size and digest in seen:
                found.append(f"{item.filename} and {seen[digest]} are the same")
            seen[digest] = item.filename
            name = item.filename.rpartition("/")[2]
            if LIBRARY.search(name):
                stem = re.sub(r"-[0-9a-f]{8,}(?=\.)", "", name)  # what auditwheel and delvewheel add
                if stem in libraries:
                    found.append(f"{item.filename} and {libraries[stem]} are one library")
                libraries.setdefault(stem, item.filename)
                if re.match(r"(lib)?ggml", name):
                    found.append(f"{item.filename} has a name that another package's ggml has as well")
        names = archive.namelist()
    found += [f"{needed} is missing" for needed in NEEDED if not any(name.endswith(needed) for name in names)]
    if not any(re.search(r"pycrispasr/(lib)?pycrispasr\.", name) for name in libraries.values()):
        found.append("the library is missing")
    if not any("pycrispasr-cpu" in name for name in libraries):
        found.append("code for the CPU is missing: build with -DPYCRISPASR_PORTABLE=ON")
    return found


def main() -> int:
    given = Path(sys.argv[1])
    wheels = sorted(given.glob("*.whl")) if given.is_dir() else [given]
    found = [f"{wheel.name}: {problem}" for wheel in wheels for problem in problems(wheel)]
    found += [] if wheels else [f"{given}: there is no wheel"]
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
