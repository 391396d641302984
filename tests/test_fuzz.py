"""The fuzzers of fuzz/, on their seeds and on all that they have found: faults that were mended stay so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import make_seeds
import pytest
import targets

from pycrispasr.runtimes import native

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "fuzz"
BUNDLED = ROOT / "src" / "pycrispasr" / "bundled" / "tiny.gguf"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    make_seeds.make(folder)
    return folder


def inputs(seeds: Path, target: str) -> list[Path]:
    found = FUZZ / "regressions" / target
    return sorted([*(seeds / target).iterdir(), *(found.iterdir() if found.is_dir() else [])])


@pytest.mark.parametrize("target", targets.TARGETS)
def test_what_python_reads_of_strangers_ends_in_a_result_or_an_error_of_ours(seeds: Path, target: str) -> None:
    for path in inputs(seeds, target):
        try:
            targets.TARGETS[target](path.read_bytes())
        except Exception as error:
            error.args = (f"{path.name}: {error}", *error.args[1:])
            raise


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("c++") is None, reason="needs Linux and a C++ compiler")
@pytest.mark.parametrize("target", ["model", "quantize", "session", "tokenizer"])
def test_what_the_library_is_given_ends_in_a_result_or_an_error_of_ours(
    seeds: Path, target: str, tmp_path: Path
) -> None:
    library = native.library_path()
    program = tmp_path / target
    subprocess.run(
        ["c++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'csrc/include'}",
         FUZZ / f"{target}.cpp", FUZZ / "replay.cpp", library, f"-Wl,-rpath,{library.parent}", "-o", program],
        check=True,
    )  # fmt: skip
    model = seeds / "model" / "short_windows.gguf" if target == "session" else BUNDLED
    paths = inputs(seeds, target)
    done = subprocess.run(
        [program, *paths], env=os.environ | {"PYCRISPASR_FUZZ_MODEL": str(model)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-300:]
    assert done.stdout.splitlines() == [str(path) for path in paths]
