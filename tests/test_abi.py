"""The compiled library and its Python declarations are one and the same interface."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from build_cdefs import declarations
from elftools.elf.elffile import ELFFile

from pycrispasr import Backend, Device, InstallationError, Model, ModelInfo, backends
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .sounds import make_tones

ROOT = Path(__file__).parent.parent
HEADER = (ROOT / "csrc" / "include" / "pycrispasr.h").read_text(encoding="utf-8")

GPU_LIBRARIES = {"cuda": {"libcudart", "libcublas"}, "metal": set(), "vulkan": {"libvulkan"}}


def test_the_abi_number_is_the_one_that_python_is_written_for() -> None:
    _, lib = native.library()
    assert lib.pcr_abi_version() == native.ABI_VERSION


def test_another_abi_number_is_told_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI_VERSION", 10**6)
    with pytest.raises(InstallationError, match=r"ABI \d+, but this package needs 1000000.*reinstall"):
        native.library.__wrapped__()


def test_a_missing_library_is_told_at_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "libmissing.so")
    with pytest.raises(InstallationError, match=r"libmissing\.so.*reinstall"):
        native.library.__wrapped__()


def test_structs_have_the_same_size_on_both_sides(nano: Model, tmp_path: Path) -> None:
    ffi, lib = native.library()
    generate(tmp_path / "aligner.gguf", preset="qwen3-aligner-nano", type="f32")
    aligner, sound = native.NativeSession(native.NativeModel(tmp_path / "aligner.gguf")), make_tones(1)
    model = nano._opened()
    opened = native.NativeSession(model)
    opened.feed(make_tones(1))
    opened.end()
    stamps = {
        "pcr_model_params": lib.pcr_model_params_default,
        "pcr_session_params": lib.pcr_session_params_default,
        "pcr_clip_params": lib.pcr_clip_params_default,
        "pcr_device_info": lambda struct: lib.pcr_device_get(0, struct),
        "pcr_backend_info": lambda struct: lib.pcr_backend_get(0, struct),
        "pcr_model_info": lambda struct: lib.pcr_model_get_info(model.pointer, struct),
        "pcr_token": lambda struct: lib.pcr_session_next(opened._pointer, [0], 1, struct),
        "pcr_place": lambda struct: lib.pcr_session_align(
            aligner._pointer, 0, aligner._input(sound), len(sound), [-1], 1, struct, 1, ffi.new("size_t *")
        ),
        "pcr_result": lambda struct: lib.pcr_session_result(opened._pointer, 0, struct),
    }
    for name, stamp in stamps.items():
        struct = ffi.new(f"{name} *")
        stamp(struct)
        assert struct.size == ffi.sizeof(name), name
    assert set(stamps) == set(re.findall(r"^typedef struct (\w+) \{\n    size_t +size;", HEADER, re.MULTILINE))


def test_a_struct_of_another_size_is_refused(nano_path: Path) -> None:
    ffi, lib = native.library()
    params, out = ffi.new("pcr_model_params *"), ffi.new("pcr_model **")
    lib.pcr_model_params_default(params)
    params.size += 8
    assert lib.pcr_model_load(str(nano_path).encode(), params, out) == lib.PCR_ERROR_ARGUMENT
    assert b"size" in ffi.string(lib.pcr_model_error(out[0]))
    lib.pcr_model_free(out[0])


def test_null_is_refused_and_may_be_freed() -> None:
    ffi, lib = native.library()
    null = ffi.NULL
    lib.pcr_model_free(null)
    lib.pcr_session_free(null)
    lib.pcr_session_cancel(null)
    lib.pcr_session_wake(null)
    assert lib.pcr_model_load(null, null, null) == lib.PCR_ERROR_ARGUMENT
    assert lib.pcr_model_get_info(null, null) == lib.PCR_ERROR_ARGUMENT
    assert lib.pcr_session_new(null, null, null) == lib.PCR_ERROR_ARGUMENT
    assert lib.pcr_session_feed(null, 0, null, 0) == lib.PCR_ERROR_ARGUMENT
    assert lib.pcr_session_next(null, null, 0, null) == lib.PCR_ERROR_ARGUMENT
    assert lib.pcr_take_log(null, null, 0) == lib.PCR_ERROR_ARGUMENT
    assert lib.pcr_token_bytes(null, 0, null) == null
    out = ffi.new("pcr_model **")
    assert lib.pcr_model_load(null, null, out) == lib.PCR_ERROR_ARGUMENT
    assert ffi.string(lib.pcr_model_error(out[0]))
    lib.pcr_model_free(out[0])


def test_every_status_has_an_exception() -> None:
    _, lib = native.library()
    names = re.findall(r"\bPCR_ERROR_\w+(?= += )", HEADER)
    assert len(names) == 10
    for name in names:
        status = getattr(lib, name)
        with pytest.raises(Exception, match="told") as caught:
            native._check(status, "told")
        assert name == "PCR_ERROR_INTERNAL" or caught.type.__name__ != "InternalError", name


def test_python_s_views_of_structs_have_all_their_fields() -> None:
    ffi, _ = native.library()
    for name, view in (("pcr_model_info", ModelInfo), ("pcr_device_info", Device), ("pcr_backend_info", Backend)):
        fields = [field for field, _ in ffi.typeof(name).fields if field != "size"]
        assert fields == list(view.__slots__)


def test_every_function_of_the_header_can_be_called() -> None:
    _, lib = native.library()
    functions = re.findall(r"^PCR_API [^(]*?(pcr_\w+)\(", HEADER, re.MULTILINE)
    assert len(functions) > 25
    for name in functions:
        assert callable(getattr(lib, name))


def test_the_declarations_are_plain_c() -> None:
    text = declarations(HEADER)
    assert "#" not in text
    assert 'extern "C"' not in text
    assert "PCR_API" not in text


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform == "win32", reason="needs a C compiler")
def test_a_c_program_transcribes(tmp_path: Path) -> None:
    library = native.library_path()
    subprocess.run(
        ["cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'csrc/include'}",
         ROOT / "tests" / "smoke.c", library, f"-Wl,-rpath,{library.parent}", "-o", tmp_path / "smoke"],
        check=True,
    )  # fmt: skip
    done = subprocess.run(
        [tmp_path / "smoke", ROOT / "src/pycrispasr/bundled/tiny.gguf", ROOT / "samples/spelling.wav"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == (ROOT / "samples" / "spelling.txt").read_text(encoding="utf-8")
    assert done.stderr.startswith("cpu: ")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the symbols of an ELF file")
def test_nothing_but_our_functions_is_exported() -> None:
    with native.library_path().open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        exported = {
            symbol.name
            for symbol in symbols
            if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] in ("STB_GLOBAL", "STB_WEAK")
        }
    assert exported == set(re.findall(r"^PCR_API [^(]*?(pcr_\w+)\(", HEADER, re.MULTILINE))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the needs of an ELF file")
def test_the_library_needs_only_the_system_s_libraries() -> None:
    with native.library_path().open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        needed = {tag.needed.split(".so")[0] for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    assert {name for name in needed if not name.startswith("libpycrispasr-")} <= {
        "libc",
        "libm",
        "libstdc++",
        "libgcc_s",
        "libpthread",
        "libdl",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    } | {name for kind in backends() if kind.compiled for name in GPU_LIBRARIES[kind.name]}
