"""Each allocation of each function of the C library fails: never a crash, always an error, and then all is well."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("c++") is None,
    reason="needs Linux and a C++ compiler",
)


def test_the_walk_calls_every_function_of_the_header() -> None:
    header = (ROOT / "csrc/include/pycrispasr.h").read_text(encoding="utf-8")
    walk = (ROOT / "tests/allocation_walk.cpp").read_text(encoding="utf-8")
    functions = set(re.findall(r"^PCR_API [^(]*?(pcr_\w+)\(", header, re.MULTILINE))
    assert functions - set(re.findall(r"CALL\((pcr_\w+)\)", walk)) == set()


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program."""
    program = tmp_path_factory.mktemp("walk") / "allocation_walk"
    subprocess.run(
        ["c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc/include'}",
         ROOT / "tests" / "allocation_walk.cpp", "-o", program, "-ldl", "-pthread"],
        check=True,
    )  # fmt: skip
    return program


@pytest.mark.parametrize(
    ("kernels", "failing", "step"),
    [
        ("auto", "single", 5),
        ("operations", "single", 7),
        ("auto", "onward", 11),
        ("operations", "onward", 11),
        pytest.param("auto", "single", 1, marks=pytest.mark.slow),
        pytest.param("operations", "single", 1, marks=pytest.mark.slow),
        pytest.param("auto", "onward", 1, marks=pytest.mark.slow),
        pytest.param("operations", "onward", 1, marks=pytest.mark.slow),
    ],
)
def test_no_failed_allocation_ends_the_process(
    kernels: str, failing: str, step: int, walker: Path, nano_path: Path, tmp_path: Path
) -> None:
    """single: one allocation fails, and the next succeeds again; onward: memory has run out."""
    aligner = tmp_path / "aligner.gguf"
    generate(aligner, preset="qwen3-aligner-nano", type="f32")
    done = subprocess.run(
        [walker, native.library_path(), nano_path, aligner, kernels, failing, str(step)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:]
    assert "pcr_model_load" in done.stdout
