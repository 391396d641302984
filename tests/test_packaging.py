"""What is installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pycrispasr
from pycrispasr import _native

ROOT = Path(__file__).parent.parent
DISTRIBUTION = importlib.metadata.distribution("pycrispasr")


def test_the_version_is_the_same_everywhere() -> None:
    assert DISTRIBUTION.version == pycrispasr.__version__ == _native.versions()[0]
    assert f"## {pycrispasr.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_licences_are_installed() -> None:
    installed = {Path(file).name: file for file in DISTRIBUTION.files or []}
    assert "Apache License" in installed["LICENSE"].read_text(encoding="utf-8")
    ggml = installed["ggml.txt"].read_text(encoding="utf-8")
    assert "MIT License" in ggml
    assert "Copyright (c) 2023-2026 The ggml authors" in ggml
    assert DISTRIBUTION.metadata["License-Expression"] == "Apache-2.0 AND MIT"


def test_one_wheel_serves_every_python() -> None:
    assert "Tag: py3-none-" in (DISTRIBUTION.read_text("WHEEL") or "")
    names = [Path(file).name for file in DISTRIBUTION.files or []]
    assert "_cdefs.py" in names
    assert _native.library_path().name in names


def test_types_are_announced() -> None:
    assert Path(pycrispasr.__file__).with_name("py.typed").is_file()


def test_nothing_that_was_built_is_part_of_the_sources() -> None:
    for folder in ("csrc", "src", "tests", "tools"):
        for path in (ROOT / folder).rglob("*"):
            assert path.suffix not in (".so", ".o", ".a", ".dll", ".dylib"), path


def test_every_dependency_is_justified() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for requirement in DISTRIBUTION.requires or []:
        name = requirement.partition(";")[0].strip().split("=")[0].split(">")[0]
        assert f"`{name}`" in contributing, name
