"""Model files become others: of the published types, exactly as ggml rounds, reproducibly, and never half."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from pycrispasr.cli import common
from pycrispasr.errors import ModelFormatError, ModelNotFoundError, PycrispasrError, UnsupportedModelError, UsageError
from pycrispasr.models import convert, gguf_file, layout
from pycrispasr.models.families.moss_transcribe import FAMILY
from pycrispasr.models.quantize import plan_types, quantize
from pycrispasr.models.random_model import PRESETS, generate
from pycrispasr.runtimes import crispasr, native
from pycrispasr.runtimes.crispasr_stages import Stages

from . import gguf_edit
from .checkpoint import write_checkpoint
from .reference import gguf_model
from .reference import model as ref
from .sounds import make_tones

# Root mean square of the rounding errors of normally distributed weights, over that of the weights: at most so much.
ERRORS = {
    "q8_0": 0.006,
    "q6_k": 0.02,
    "q5_k": 0.04,
    "q5_1": 0.041,
    "q5_0": 0.046,
    "q4_k": 0.076,
    "q4_1": 0.084,
    "q4_0": 0.092,
    "q3_k": 0.16,
    "q2_k": 0.32,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F32, with rows of 256 and more."""
    path = tmp_path_factory.mktemp("quantize") / "small.gguf"
    generate(path, preset="small", type="f32")
    return path


def stored(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values(tensor: gguf.ReaderTensor) -> np.ndarray:
    return gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])


def expected_type(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The published files' rule."""
    if len(shape) == 1 or name.startswith("audio."):
        return "F32"
    if kind in ("f32", "f16", "bf16"):
        return kind.upper()
    of_layer = name.startswith("llm.blk.") and name.split(".")[3] in ("attn", "ffn")
    return kind.upper() if of_layer else "F16"


def test_the_published_sizes() -> None:
    shapes = FAMILY.shapes(PRESETS["2b"])
    rest = 6 << 20  # metadata: mostly the vocabulary and its merges
    for kind, gib in {"f16": 4.51, "q8_0": 3.28, "q4_k": 2.63}.items():
        types = plan_types(FAMILY, shapes, kind)
        assert types == {name: expected_type(name, shape, kind) for name, shape in shapes.items()}
        weights = sum(gguf_file.n_bytes(types[name], shape) for name, shape in shapes.items())
        assert round((weights + rest) / 2**30, 2) == gib


@pytest.mark.parametrize("kind", layout.TYPES)
def test_every_type(small: Path, tmp_path: Path, kind: str) -> None:
    quantize(small, tmp_path / "out.gguf", type=kind)
    before, after = stored(small), stored(tmp_path / "out.gguf")
    assert list(before) == list(after)
    for name, tensor in after.items():
        assert tensor.tensor_type.name == expected_type(name, tuple(tensor.shape), kind), name
        old, new = values(before[name]), values(tensor)
        if tensor.tensor_type.name == "F32":
            assert np.array_equal(old, new)
        elif tensor.tensor_type.name in ("F16", "BF16"):
            assert np.allclose(old, new, rtol=2.0**-8 if kind == "bf16" else 2.0**-11, atol=1e-7)
        else:
            error = np.sqrt(((old - new) ** 2).mean() / (old**2).mean())
            assert ERRORS[kind] / 2 < error < ERRORS[kind], (name, error)
    native.NativeModel(tmp_path / "out.gguf", "cpu")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_rows_equal_those_of_the_gguf_package(kind: str) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 96), np.float32)
    rows[3] = 0
    (found,) = gguf_file.recoded("x", rows.shape, rows, "F32", kind).blocks()
    assert np.array_equal(found, gguf.quantize(rows, gguf.GGMLQuantizationType[kind]).view(np.uint8))


@pytest.mark.parametrize("kind", ["Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q8_0", "Q4_0"])
def test_floats_of_quantised_rows_equal_those_of_the_gguf_package(kind: str) -> None:
    rows = np.random.default_rng(0).standard_normal((9, 512), np.float32)
    rounded = native.convert_rows(rows, "F32", kind, 512)
    floats = native.convert_rows(rounded, kind, "F32", 512).view(np.float32)
    assert np.array_equal(floats, gguf.dequantize(rounded, gguf.GGMLQuantizationType[kind]))


def test_equal_bytes_on_any_number_of_cores(small: Path, tmp_path: Path) -> None:
    quantize(small, tmp_path / "a.gguf", type="q4_k", all_matrices=True)
    code = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})" if sys.platform == "linux" else ""
    code += "\nfrom pycrispasr.models.quantize import quantize"
    code += f"\nquantize({str(small)!r}, 'b.gguf', type='Q4_K', all_matrices=True)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_many_pieces_give_the_same_bytes_as_one(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(small, tmp_path / "a.gguf", type="q5_k")
    monkeypatch.setattr(gguf_file, "_VALUES_AT_A_TIME", 5000)
    calls: list[tuple[int, int]] = []
    quantize(small, tmp_path / "b.gguf", type="q5_k", progress=lambda done, total: calls.append((done, total)))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
    assert len(calls) > 500


def test_to_the_same_types_is_a_copy_and_may_go_in_place(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for kind in ("f32", "q4_k"):
        quantize(small, out, type=kind)
        content = out.read_bytes()
        quantize(out, out, type=kind)
        assert out.read_bytes() == content
    assert list(tmp_path.iterdir()) == [out]


def test_metadata_of_every_kind_are_copied(small: Path, tmp_path: Path) -> None:
    types = gguf.GGUFValueType
    extra = {
        "a.u8": (types.UINT8, 200), "a.i8": (types.INT8, -5), "a.u16": (types.UINT16, 60000),
        "a.i16": (types.INT16, -300), "a.i32": (types.INT32, -70000), "a.u64": (types.UINT64, 2**63),
        "a.i64": (types.INT64, -(2**40)), "a.f64": (types.FLOAT64, 0.1), "a.text": (types.STRING, "Ünï\ncode"),
    }  # fmt: skip
    arrays = {"a.numbers": [0.5, -2.5], "a.many": list(range(1000)), "a.texts": ["", "ä"], "a.flags": [True, False]}
    reader = gguf.GGUFReader(small)
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "moss_transcribe")
    writer.add_custom_alignment(64)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    for key, (kind, value) in extra.items():
        writer.add_key_value(key, value, kind)
    for key, items in arrays.items():
        writer.add_array(key, items)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", type="q8_0")

    def fields(path: Path) -> dict[str, object]:
        found = gguf.GGUFReader(path).fields
        return {key: (field.types, field.contents()) for key, field in found.items() if not key.startswith("GGUF.")}

    assert fields(tmp_path / "out.gguf") == fields(tmp_path / "in.gguf")
    assert set(extra) | set(arrays) <= set(fields(tmp_path / "out.gguf"))


def test_overrides_choose_types_by_name_and_the_first_one_counts(small: Path, tmp_path: Path) -> None:
    overrides = [("llm.embed", "q6_k"), (r"blk\.0\.", "Q8_0"), (r"^llm\.blk\.[01]\.ffn", "q2_k"), ("conv1", "f32")]
    quantize(small, tmp_path / "out.gguf", type="q4_k", overrides=overrides)
    types = {name: tensor.tensor_type.name for name, tensor in stored(tmp_path / "out.gguf").items()}
    assert types["llm.embed.weight"] == "Q6_K"
    assert types["enc.blk.0.attn.q.weight"] == types["llm.blk.0.ffn.up.weight"] == "Q8_0"
    assert types["llm.blk.1.ffn.up.weight"] == "Q2_K"
    assert types["llm.blk.1.attn.q.weight"] == types["llm.blk.2.ffn.up.weight"] == "Q4_K"
    assert types["enc.conv1.weight"] == types["enc.blk.0.attn_norm.weight"] == types["audio.mel_filters"] == "F32"
    assert types["enc.conv2.weight"] == types["adapter.up.weight"] == "F16"
    native.NativeModel(tmp_path / "out.gguf", "cpu")


def test_all_matrices_but_convolutions(small: Path, tmp_path: Path) -> None:
    quantize(small, tmp_path / "out.gguf", type="q8_0", all_matrices=True)
    for name, tensor in stored(tmp_path / "out.gguf").items():
        wanted = {1: "F32", 2: "Q8_0", 4: "F16"}[len(tensor.shape)]
        assert tensor.tensor_type.name == ("F32" if name.startswith("audio.") else wanted), name


def test_matrices_that_do_not_divide_stay_f16_and_that_is_told(
    nano_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pycrispasr"):
        quantize(nano_path, tmp_path / "out.gguf", type="q4_k")
    assert {tensor.tensor_type.name for tensor in stored(tmp_path / "out.gguf").values()} == {"F16", "F32"}
    (record,) = caplog.records
    assert "14 matrices" in record.getMessage()
    assert "64 or 128 or 160 values, are no multiple of 256" in record.getMessage()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "q9"}, r"no type 'q9': choose one of f32, f16"),
        ({"overrides": [("embed", "q9")]}, r"no type 'q9'"),
        ({"overrides": [("(", "q8_0")]}, r"'\(' is no regular expression .*unterminated"),
        ({"overrides": [("nothing", "q8_0")]}, r"'nothing' matches the name of no matrix"),
        ({"overrides": [("attn_norm", "q8_0")]}, r"'attn_norm' matches the name of no matrix"),
        (
            {"overrides": [("llm.*down", "q4_k")]},
            r"'llm.blk.0.ffn.down.weight' has rows of 160 values, which Q4_K cannot hold: its blocks are of 256",
        ),
        ({"overrides": [("conv2", "q8_0")]}, r"'enc.conv2.weight' has rows of 3 values.* blocks are of 32"),
    ],
)
def test_wrong_wishes(nano_path: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantize(nano_path, tmp_path / "out.gguf", **{"type": "q8_0", **options})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_second_rounding_must_be_asked_for(small: Path, tmp_path: Path) -> None:
    once, out = tmp_path / "once.gguf", tmp_path / "out.gguf"
    quantize(small, once, type="q8_0")
    with pytest.raises(UsageError, match=r"'llm.blk.0.attn.q.weight' of '.*once.gguf' is Q8_0 already.*--requantize"):
        quantize(once, out, type="q4_k")
    assert not out.exists()
    quantize(once, out, type="q4_k", requantize=True)
    twice = stored(out)["llm.blk.1.ffn.up.weight"]
    quantize(small, out, type="q4_k")
    first = stored(out)["llm.blk.1.ffn.up.weight"]
    original = values(stored(small)["llm.blk.1.ffn.up.weight"])
    assert np.square(values(twice) - original).mean() < 1.05 * np.square(values(first) - original).mean()
    quantize(once, out, type="f16")  # floats hold what the rounding left
    assert np.allclose(
        values(stored(out)["llm.blk.1.ffn.up.weight"]), values(stored(once)["llm.blk.1.ffn.up.weight"]), rtol=2.0**-11
    )


def _cut(source: Path, out: Path) -> Path:
    out.write_bytes(source.read_bytes()[:-5000])
    return out


def _text(_source: Path, out: Path) -> Path:
    out.write_text("this is a text, longer than a header would be")
    return out


def _with_value(value: float) -> Callable[[Path, Path], Path]:
    def edit(source: Path, out: Path) -> Path:
        matrix = gguf_edit.tensor(source, "adapter.up.weight")
        matrix[3, 5] = value
        return gguf_edit.rewrite(source, out, tensors={"adapter.up.weight": matrix})

    return edit


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda _, out: out, ModelNotFoundError, r"in.gguf' cannot be read \(No such file"),
        (lambda source, _: source.parent, ModelNotFoundError, r"cannot be read"),
        (_text, ModelFormatError, r"in.gguf' is no GGUF file.*b'this'"),
        (lambda source, out: _text(source, out) and out.write_bytes(b"GGUF") and out, ModelFormatError, r"truncated"),
        (_cut, ModelFormatError, r"in.gguf' is no GGUF file, or a broken or truncated one: the tensor .* ends at byte"),
        (lambda s, out: gguf_edit.rewrite(s, out, values={"general.architecture": "whisper"}),
         UnsupportedModelError, r"architecture 'whisper': only files of 'moss_transcribe'"),
        (_with_value(np.nan), ModelFormatError, r"'adapter.up.weight' has a value that is not a finite number"),
        (_with_value(-np.inf), ModelFormatError, r"'adapter.up.weight' has a value that is not a finite number"),
        (_with_value(-70000), ModelFormatError, r"'adapter.up.weight' has the value 70000, too large for F16: make"),
    ],
)  # fmt: skip
def test_damaged_files(
    nano_path: Path, tmp_path: Path, damage: Callable[[Path, Path], Path], error: type[Exception], message: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    source = damage(nano_path, tmp_path / "in.gguf")
    with pytest.raises(error, match=message):
        quantize(source, out / "out.gguf", type="q8_0")
    assert not list(out.iterdir())


def test_every_cut_of_the_header_is_told(nano_path: Path, tmp_path: Path) -> None:
    content = nano_path.read_bytes()
    rng = np.random.default_rng(0)
    for length in (0, 3, 4, 8, 23, 24, 30, *rng.integers(30, 12000, 60)):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(ModelFormatError, match=r"no GGUF file"):
            gguf_file.load(tmp_path / "cut.gguf")
    for _ in range(300):  # wrong bytes give a wrong content or that error, and no other
        damaged = bytearray(content[:20000])
        damaged[int(rng.integers(8, 9000))] = int(rng.integers(256))
        (tmp_path / "cut.gguf").write_bytes(damaged)
        with pytest.raises(ModelFormatError):
            gguf_file.load(tmp_path / "cut.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
@pytest.mark.parametrize("unnamed", [True, False])
def test_a_full_disk_leaves_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        with pytest.raises(PycrispasrError, match=r"out.gguf' cannot be written \(File too large\).* with \d+ MB left"):
            quantize(small, tmp_path / "out.gguf", type="q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_stop_half_way_leaves_the_old_file(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    (tmp_path / "out.gguf").write_bytes(b"old")
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(small, tmp_path / "out.gguf", type="q8_0", progress=stop)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.gguf": b"old"}
    assert len(seen[-1]) == (1 if unnamed and sys.platform == "linux" else 2)


@pytest.mark.skipif(sys.platform != "linux", reason="files without a name are Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_the_old_file(small: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "out.gguf").write_bytes(b"old")
    code = f"""
import time
from pycrispasr.models.quantize import quantize
def progress(done, total):
    print(done, flush=True)
    if done > total / 2:
        time.sleep(60)
quantize({str(small)!r}, "out.gguf", type="q8_0", progress=progress)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 4_300_000:
            pass
        process.send_signal(number)
        assert process.wait(30) == -number
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.gguf": b"old"}


def test_the_command_cleans_up_when_it_is_asked_to_stop(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as stop, common.writing(str(tmp_path / "out.gguf")):
            quantize(
                small,
                tmp_path / "out.gguf",
                type="q8_0",
                progress=lambda done, total: os.kill(os.getpid(), signal.SIGTERM) if done > total / 2 else None,
            )
        assert stop.value.code == 128 + signal.SIGTERM
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not list(tmp_path.iterdir())


def command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pycrispasr", *map(str, arguments)],
        capture_output=True, encoding="utf-8", timeout=120, check=False, **options,
    )  # type: ignore[call-overload,no-any-return]  # fmt: skip


def test_the_command(small: Path, tmp_path: Path) -> None:
    done = command(
        "quantize", small, tmp_path / "a.gguf", "--type", "q4_k", "--tensor", "llm.embed=q8_0", "--tensor", "conv=f32"
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"{tmp_path / 'a.gguf'}: ")
    assert len(done.stderr.splitlines()) == 1  # no bar but on a terminal
    quantize(small, tmp_path / "b.gguf", type="q4_k", overrides=[("llm.embed", "q8_0"), ("conv", "f32")])
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()

    done = command("quantize", tmp_path / "a.gguf", tmp_path / "c.gguf", "--type", "q8_0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pycrispasr: tensor 'llm.blk.0.attn.q.weight'")
    assert len(done.stderr.splitlines()) == 1
    done = command("quantize", small, tmp_path / "c.gguf", "--type", "q8_0", "--tensor", "embed")
    assert done.returncode == 2
    assert "'embed' has no type: write it as REGEX=TYPE" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX's")
def test_the_command_shows_a_bar_on_a_terminal(small: Path, tmp_path: Path) -> None:
    import pty

    terminal, stderr = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "pycrispasr", "quantize", small, tmp_path / "a.gguf", "--type", "q8_0"],
        stdout=subprocess.PIPE, stderr=stderr, timeout=60, check=True, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(stderr)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert done.stdout == b""
    assert "%" in shown
    assert shown.rstrip().endswith("8.49 MB")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint in BF16, two shards: small layers, the published vocabulary."""
    folder = tmp_path_factory.mktemp("vocabulary")
    generate(folder / "random.gguf", preset="vocab", type="bf16", seed=3)
    write_checkpoint(folder / "checkpoint", folder / "random.gguf")
    return folder / "checkpoint"


def test_a_converted_file_makes_the_same_checkpoint_and_the_same_files(small: Path, tmp_path: Path) -> None:
    quantize(small, tmp_path / "random.gguf", type="bf16")
    write_checkpoint(tmp_path / "checkpoint", tmp_path / "random.gguf")
    convert.convert(tmp_path / "checkpoint", tmp_path / "bf16.gguf", type="bf16")
    write_checkpoint(tmp_path / "again" / "checkpoint", tmp_path / "bf16.gguf")
    for kind in ("bf16", "f16", "q8_0", "q4_k"):
        convert.convert(tmp_path / "checkpoint", tmp_path / "a.gguf", type=kind)
        convert.convert(tmp_path / "again" / "checkpoint", tmp_path / "b.gguf", type=kind)
        quantize(tmp_path / "bf16.gguf", tmp_path / "c.gguf", type=kind)
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes(), kind
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes(), kind


@pytest.mark.full_size
@pytest.mark.skipif(sys.platform != "linux", reason="the largest memory of a process is read from Linux")
def test_a_full_size_checkpoint_takes_less_than_a_gigabyte_of_memory(tmp_path: Path) -> None:
    generate(tmp_path / "random.gguf", preset="2b", type="bf16")
    write_checkpoint(tmp_path / "checkpoint", tmp_path / "random.gguf")
    (tmp_path / "random.gguf").unlink()
    for arguments, gib in (
        (("convert", "checkpoint", "f16.gguf", "--type", "f16"), 4.51),
        (("quantize", "f16.gguf", "q4_k.gguf", "--type", "q4_k"), 2.62),  # few merges: 3 MB less than the published
    ):
        code = (  # what getrusage() tells would count this process, which the new one begins as
            "from pycrispasr.cli import app; app(standalone_mode=False)\n"
            "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < 1e6, arguments  # kB
        assert round((tmp_path / arguments[2]).stat().st_size / 2**30, 2) == gib


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.skipif(crispasr.find() is None, reason="libcrispasr: pip install crispasr==0.8.45")
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k"])
def test_other_runtimes_read_the_same_tokens_from_a_converted_file(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    path, samples = tmp_path / "model.gguf", make_tones(1.3, seed=3)
    convert.convert(checkpoint, path, type=kind)
    session = native.NativeSession(native.NativeModel(path, "cpu"), threads=1, max_new_tokens=6)
    session.feed(samples)
    session.end()
    ours = [token for token, _ in iter(session.next, None)]
    assert len(set(ours)) > 4
    with Stages(path, "moss_transcribe", threads=1) as crispasr:
        assert ours == crispasr.transcribe(samples, max_new_tokens=6)
    if kind == "f16":
        assert ours == ref.greedy(gguf_model.load(path, np.float32), samples, 6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65505.0, -3e38])
@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_k", "q6_k", "q2_k"])
@pytest.mark.parametrize("stored", ["f32", "bf16"])
def test_a_value_that_a_quantised_type_cannot_hold_is_an_error_of_the_file(
    value: float, kind: str, stored: str
) -> None:
    rows = np.zeros((3, 256), np.float32)
    rows[1, 77] = value
    source = native.convert_rows(rows, "f32", stored, 256)
    with pytest.raises(ModelFormatError, match=r"not finite or beyond 65504, which q"):
        native.convert_rows(source, stored, kind, 256)


@pytest.mark.parametrize("importance", [np.nan, -1.0, np.inf])
def test_an_importance_that_weighs_nothing_is_refused(importance: float) -> None:
    with pytest.raises(UsageError, match="an importance is not between 0"):
        native.convert_rows(np.zeros((1, 256), np.float32), "f32", "q4_k", 256, np.full(256, importance, np.float32))


@pytest.mark.parametrize("kind", ["q8_1", "q8_k", "iq2_xs", "i32", "f64", "nonsense"])
def test_types_that_no_matrix_has_are_refused(kind: str) -> None:
    for pair in ((kind, "f32"), ("f32", kind)):
        with pytest.raises(UnsupportedModelError, match=kind):
            native.convert_rows(np.zeros(1024, np.uint8), *pair, 256)
