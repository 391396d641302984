"""What is installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import check_wheel
import pytest
from elftools.elf.elffile import ELFFile

import pycrispasr
from pycrispasr.runtimes import native

ROOT = Path(__file__).parent.parent
DISTRIBUTION = importlib.metadata.distribution("pycrispasr")
LIBRARIES_AT = native.library_path().parent


def test_the_version_is_the_same_everywhere() -> None:
    assert DISTRIBUTION.version == pycrispasr.__version__ == native.versions()[0]
    assert f"## {pycrispasr.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_licences_are_installed() -> None:
    installed = {Path(file).name: file for file in DISTRIBUTION.files or []}
    assert "Apache License" in installed["LICENSE"].read_text(encoding="utf-8")
    ggml = installed["ggml.txt"].read_text(encoding="utf-8")
    assert "MIT License" in ggml
    assert "Copyright (c) 2023-2026 The ggml authors" in ggml
    assert DISTRIBUTION.metadata["License-Expression"] == "Apache-2.0 AND MIT"


def test_the_bill_of_materials_names_the_ggml_inside() -> None:
    bill = json.loads(DISTRIBUTION.read_text("sboms/pycrispasr.cdx.json") or "{}")
    assert bill["metadata"]["component"]["version"] == pycrispasr.__version__
    components = {one["name"]: one for one in bill["components"]}
    assert components["ggml"]["version"] == native.versions()[1]
    source = (ROOT / "cmake" / "ggml.cmake").read_text(encoding="utf-8")
    assert components["ggml"]["externalReferences"][0]["hashes"][0]["content"] in source


@pytest.mark.parametrize("file", ["pyproject.toml", "cuda/pyproject.toml"])
def test_what_builds_a_wheel_has_an_upper_bound(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    requirements = re.findall(r'"([^"]+)"', text[text.index("requires = [") : text.index("build-backend")])
    assert requirements
    assert all(",<" in requirement for requirement in requirements)


def test_every_action_is_pinned_by_commit() -> None:
    for path in (ROOT / ".github" / "workflows").iterdir():
        for action in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), f"{path.name}: {action}"


def test_one_wheel_serves_every_python() -> None:
    assert "Tag: py3-none-" in (DISTRIBUTION.read_text("WHEEL") or "")
    names = [Path(file).name for file in DISTRIBUTION.files or []]
    assert "_cdefs.py" in names
    assert native.library_path().name in names


def test_types_are_announced() -> None:
    assert Path(pycrispasr.__file__).with_name("py.typed").is_file()


def test_nothing_that_was_built_is_part_of_the_sources() -> None:
    for folder in ("csrc", "src", "tests", "tools"):
        for path in (ROOT / folder).rglob("*"):
            assert path.suffix not in (".so", ".o", ".a", ".dll", ".dylib"), path


def test_every_dependency_is_justified() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for requirement in DISTRIBUTION.requires or []:
        name = re.split(r"[\[=<>; ]", requirement, maxsplit=1)[0]
        assert name == "pycrispasr" or f"`{name}`" in contributing, name  # extras hold others of our own


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_libraries_find_each_other_and_export_names_of_their_own() -> None:
    for path in LIBRARIES_AT.glob("*.so"):
        with path.open("rb") as file:
            elf = ELFFile(file)
            tags = list(elf.get_section_by_name(".dynamic").iter_tags())
            symbols = list(elf.get_section_by_name(".dynsym").iter_symbols())
        ours = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED" and "pycrispasr" in tag.needed}
        if ours:
            assert all((path.parent / name).exists() for name in ours)
            assert "$ORIGIN" in [getattr(tag, "runpath", getattr(tag, "rpath", None)) for tag in tags]
        exported = {
            symbol.name
            for symbol in symbols
            if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] in ("STB_GLOBAL", "STB_WEAK")
        }
        asked_for = {"ggml_backend_init", "ggml_backend_score"}  # of this one library, not of the process
        assert all(name.startswith(("pcr_", "pycrispasr_")) for name in exported - asked_for), path


def test_the_cuda_package_that_is_asked_for_is_of_this_version() -> None:
    (wanted,) = (
        requirement for requirement in DISTRIBUTION.requires or [] if requirement.startswith("pycrispasr-cuda")
    )
    assert wanted.startswith(f"pycrispasr-cuda=={pycrispasr.__version__};")
    assert f'"pycrispasr=={pycrispasr.__version__}"' in (ROOT / "cuda" / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.skipif(not list(LIBRARIES_AT.glob("libpycrispasr-cpu-*.so")), reason="needs a wheel for Linux")
@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_cuda_package_that_cannot_be_used_is_told_of_and_the_cpu_works(content: bytes, tmp_path: Path) -> None:
    for folder in (Path(pycrispasr.__file__).parent, LIBRARIES_AT):
        shutil.copytree(folder, tmp_path / "pycrispasr", dirs_exist_ok=True)
    script = (
        "import pycrispasr; print(pycrispasr.__file__)\n"
        "print(*(backend.missing for backend in pycrispasr.backends() if backend.name == 'cuda'))\n"
        "print(pycrispasr.Model('tiny').info.device)"
    )

    def run() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        where, missing, device = done.stdout.splitlines()
        assert Path(where).is_relative_to(tmp_path)
        assert device == "cpu"
        return [missing, done.stderr]

    version = pycrispasr.__version__
    absent = [f"not installed in version {version}: pip install 'pycrispasr[cuda]'", ""]
    assert run() == absent
    (tmp_path / "pycrispasr_cuda").mkdir()
    (tmp_path / "pycrispasr_cuda" / "libpycrispasr-ggml-cuda-0.0.1.so").write_bytes(content)  # of another version
    assert run() == absent
    (tmp_path / "pycrispasr_cuda" / f"libpycrispasr-ggml-cuda-{version}.so").write_bytes(content)
    missing, log = run()
    assert missing.startswith("installed, but its library cannot be used: ")
    assert "pycrispasr_cuda" in missing
    assert log == ""


def make_wheel(folder: Path, files: Mapping[str, bytes], tag: str = "py3-none-manylinux_2_28_x86_64") -> Path:
    wheel = folder / f"pycrispasr-1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


LIBRARIES = ("libpycrispasr.so", "libpycrispasr-ggml-base.so", "libpycrispasr-cpu-x64.so")
GOOD = {f"pycrispasr-1.0.dist-info/{name}": name.encode() for name in check_wheel.NEEDED}
GOOD |= {f"pycrispasr/{name}": name.encode() for name in LIBRARIES}


def test_a_sound_wheel_passes_the_check(tmp_path: Path) -> None:
    assert check_wheel.problems(make_wheel(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pycrispasr/copy.bin": b"libpycrispasr.so"}, "are the same"),
        ({"pycrispasr.libs/libpycrispasr-0123abcd.so": b"x"}, "are one library"),
        ({"pycrispasr/libggml-base.so": b"x"}, "another package's ggml"),
        ({"pycrispasr-1.0.dist-info/licenses/licenses/ggml.txt": None}, "ggml.txt is missing"),
        ({"pycrispasr/libpycrispasr.so": None}, "the library is missing"),
        ({"pycrispasr/libpycrispasr-cpu-x64.so": None}, "PYCRISPASR_PORTABLE"),
    ],
)
def test_a_faulty_wheel_fails_the_check(tmp_path: Path, change: dict[str, bytes | None], problem: str) -> None:
    files = {name: content for name, content in (GOOD | change).items() if content is not None}
    found = check_wheel.problems(make_wheel(tmp_path, files))
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize("tag", ["py3-none-linux_x86_64", "cp313-cp313-manylinux_2_28_x86_64"])
def test_a_wheel_that_was_not_repaired_or_is_for_one_python_fails_the_check(tmp_path: Path, tag: str) -> None:
    assert check_wheel.problems(make_wheel(tmp_path, GOOD, tag)) == [
        "the name is not that of a repaired wheel for every Python"
    ]


def test_too_big_a_wheel_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_wheel, "MOST_BYTES", 100)
    (problem,) = check_wheel.problems(make_wheel(tmp_path, GOOD))
    assert "at most 100 are wanted" in problem


def test_ci_runs_every_python_that_is_announced() -> None:
    announced = re.findall(r"Python :: (3\.\d+)", "\n".join(DISTRIBUTION.metadata.get_all("Classifier") or []))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert len(announced) >= 5
    assert {*announced, "3.14t"} <= set(re.findall(r'"(3\.\d+t?)"', workflow))
