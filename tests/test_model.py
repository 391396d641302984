"""What `Model` and the package give, and that they keep to themselves."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import pycrispasr
from pycrispasr import ClosedError, Model, UsageError
from pycrispasr.runtimes import native

from .sounds import make_tones


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_transcript_s_parts_agree_with_each_other(nano: Model) -> None:
    transcript = nano.transcribe(make_tones(2.5), sample_rate=16000, max_new_tokens=20)
    (segment,) = transcript.segments
    assert transcript.duration == 2.5
    assert (segment.start, segment.end) == (0, 2.5)
    assert transcript.text == segment.text == transcript.text.strip()
    assert len(segment.tokens) == transcript.timings.tokens == 20
    assert all(0 <= token.id < nano.info.llm_vocab and 0 < token.probability <= 1 for token in segment.tokens)
    joined = "".join(token.text for token in segment.tokens).strip()
    assert segment.text.startswith(joined)
    assert segment.text[len(joined) :].strip() in ("", "\ufffd")  # the limit may cut a character
    assert segment.status == "truncated"
    assert not transcript.complete
    assert transcript.language is None


def test_timings_tell_every_stage_and_add_up(nano: Model) -> None:
    transcript = nano.transcribe(make_tones(2), sample_rate=16000, max_new_tokens=20)
    timings = transcript.timings
    stages = [timings.log_mel, timings.encoder, timings.adapter, timings.prefill, timings.decode]
    assert all(seconds > 0 for seconds in stages)
    assert sum(stages) <= timings.total
    assert timings.prompt_tokens > 26


def test_every_form_of_the_same_audio_gives_the_same_transcript(nano: Model, tmp_path: Path) -> None:
    sound = (make_tones(1.5) * 32767).astype(np.int16)
    path = tmp_path / "sound.wav"
    soundfile.write(path, sound, 16000)
    wanted = nano.transcribe(sound, sample_rate=16000, max_new_tokens=10).segments
    for form in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert nano.transcribe(form, max_new_tokens=10).segments == wanted
    stereo = np.stack([sound, sound], axis=1)
    assert nano.transcribe(stereo, sample_rate=16000, max_new_tokens=10).segments == wanted


def test_a_long_recording_becomes_one_segment_for_each_segment(nano: Model) -> None:
    sound = make_tones(61)
    transcript = nano.transcribe(sound, sample_rate=16000, max_new_tokens=5)
    segments = transcript.segments
    assert len(segments) == 3
    assert [segment.start for segment in segments] == [0, *[segment.end for segment in segments[:-1]]]
    assert segments[-1].end == transcript.duration == 61
    assert transcript.timings.tokens == sum(len(segment.tokens) for segment in segments) == 15
    for segment in segments:
        piece = sound[round(segment.start * 16000) : round(segment.end * 16000)]
        alone = nano.transcribe(piece, sample_rate=16000, max_new_tokens=5)
        assert [token.id for token in alone.segments[0].tokens] == [token.id for token in segment.tokens]
        assert alone.text == segment.text


def test_progress_tells_seconds_done_after_every_segment(nano: Model) -> None:
    seen: list[tuple[float, float]] = []
    transcript = nano.transcribe(
        make_tones(40), sample_rate=16000, max_new_tokens=2, batch=1, progress=lambda *now: seen.append(now)
    )
    assert seen == [(0, 40), *[(segment.end, 40) for segment in transcript.segments]]


def test_an_exception_in_progress_stops_and_reaches_the_caller(nano: Model) -> None:
    def fail(done: float, total: float) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        nano.transcribe(make_tones(1), sample_rate=16000, progress=fail)


def test_a_transcript_becomes_json_and_cannot_be_changed(nano: Model) -> None:
    transcript = nano.transcribe(make_tones(1), sample_rate=16000, max_new_tokens=3)
    content = json.loads(json.dumps(transcript.to_dict()))
    assert content["text"] == transcript.text
    assert content["segments"][0]["tokens"][0]["id"] == transcript.segments[0].tokens[0].id
    with pytest.raises(dataclasses.FrozenInstanceError):
        transcript.text = "other"  # type: ignore[misc]


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.99, 1, 1.01, 8.01])
def test_short_clips_of_any_length_are_transcribed(nano: Model, seconds: float) -> None:
    transcript = nano.transcribe(make_tones(seconds), sample_rate=16000, max_new_tokens=3)
    assert len(transcript.segments) == 1


def test_a_clip_that_is_too_short_is_refused_with_both_lengths(nano: Model) -> None:
    with pytest.raises(pycrispasr.AudioError, match=r"100 samples.*201"):
        nano.transcribe(np.zeros(100, np.float32), sample_rate=16000)


def test_silence_is_transcribed_without_complaint(nano: Model) -> None:
    nano.transcribe(np.zeros(16000, np.float32), sample_rate=16000, max_new_tokens=3)


def test_unknown_options_are_type_errors(nano: Model, nano_path: Path) -> None:
    with pytest.raises(TypeError, match="beam_size"):
        nano.transcribe(make_tones(1), sample_rate=16000, beam_size=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="compute_type"):
        Model(nano_path, compute_type="int8")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        nano.transcribe(make_tones(1), 16000)  # type: ignore[misc]


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**30])
def test_limits_out_of_range_are_refused_by_value(nano: Model, nano_path: Path, value: int) -> None:
    with pytest.raises(UsageError, match=rf"max_new_tokens.*{value}"):
        nano.transcribe(make_tones(1), sample_rate=16000, max_new_tokens=value)
    with pytest.raises(UsageError, match=rf"threads.*{value}"):
        Model(nano_path, threads=value)
    with pytest.raises(TypeError, match="threads"):
        Model(nano_path, threads=1.5)  # type: ignore[arg-type]


def test_a_closed_model_says_so(nano_path: Path) -> None:
    with Model(nano_path) as model:
        assert not model.closed
    assert model.closed
    model.close()
    for use in (
        lambda: model.transcribe(make_tones(1), sample_rate=16000),
        lambda: model.stream(make_tones(1), sample_rate=16000),
        lambda: model.session(),
        lambda: model.tokenize("hello"),
    ):
        with pytest.raises(ClosedError, match=r"nano\.gguf.*closed"):
            use()
    assert model.info.sample_rate == 16000
    assert "closed" in repr(model)


def test_a_session_outlives_its_model(nano_path: Path, nano: Model) -> None:
    sound = make_tones(1)
    model = Model(nano_path, threads=1)
    session = model.session(max_new_tokens=5)
    model.close()
    del model
    gc.collect()
    session.feed(sound)
    assert session.finish().segments == nano.transcribe(sound, sample_rate=16000, max_new_tokens=5).segments


def test_info_describes_the_file(nano: Model, nano_path: Path) -> None:
    info = nano.info
    assert info.file_bytes == nano_path.stat().st_size
    assert (info.sample_rate, info.hop_length, info.n_mels) == (16000, 160, 128)
    assert (info.chunk_frames, info.chunk_rows, info.window_rows) == (100, 13, 104)
    assert info.weight_bytes == 4 * info.parameters
    assert 0 < info.weight_bytes < info.file_bytes
    assert info.device == "cpu"
    assert "nano" in repr(nano)
    assert "cpu" in repr(nano)


def test_tokens_of_a_text_give_the_text_back(nano: Model) -> None:
    text = "user says: café 你好"
    tokens = nano.tokenize(text)
    assert b"".join(nano._opened().token_bytes(token) for token in tokens).decode() == text
    assert nano.tokenize("") == []
    assert nano.tokenize("cafe\u0301") == nano.tokenize("café")


def test_devices_name_the_cpu() -> None:
    (cpu,) = [device for device in pycrispasr.devices() if device.name == "cpu"]
    assert cpu.memory_total >= cpu.memory_free > 0
    assert cpu.description


def test_one_call_opens_transcribes_and_closes(nano: Model, nano_path: Path) -> None:
    sound = make_tones(1)
    transcript = pycrispasr.transcribe(sound, model=nano_path, sample_rate=16000, max_new_tokens=4, threads=1)
    assert transcript.segments == nano.transcribe(sound, sample_rate=16000, max_new_tokens=4).segments


def test_every_public_name_is_there() -> None:
    assert set(dir(pycrispasr)) == set(pycrispasr.__all__)
    for name in pycrispasr.__all__:
        assert getattr(pycrispasr, name) is not None
    with pytest.raises(AttributeError, match="transcibe"):
        pycrispasr.transcibe  # type: ignore[attr-defined]  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    done = run_python(
        "import sys, pycrispasr; print([m for m in ('numpy', 'cffi', 'soundfile', 'soxr') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]"


def test_the_package_writes_nothing_on_its_own(nano_path: Path) -> None:
    done = run_python(
        "import sys, numpy, pycrispasr\n"
        "with pycrispasr.Model(sys.argv[1], threads=1) as model:\n"
        "    model.transcribe(numpy.zeros(16000), sample_rate=16000, max_new_tokens=3)\n"
        "try:\n    pycrispasr.Model('/dev/null')\n"
        "except pycrispasr.PycrispasrError:\n    pass\n",
        nano_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_library_s_messages_go_to_logging(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffi, lib = native.library()
    waiting = [
        (lib.PCR_LOG_DEBUG, b"1"),
        (lib.PCR_LOG_WARNING, "zwei %s é".encode()),
        (lib.PCR_LOG_ERROR, b"x" * 5000),
    ]

    class Library:
        PCR_OK = lib.PCR_OK

        @staticmethod
        def pcr_take_log(level: Any, text: Any, capacity: int) -> int:
            if not waiting:
                return int(lib.PCR_END)
            level[0], message = waiting.pop(0)
            ffi.memmove(text, message[: capacity - 1] + b"\0", min(len(message), capacity - 1) + 1)
            return int(lib.PCR_OK)

    monkeypatch.setattr(native, "library", lambda: (ffi, Library))
    with caplog.at_level(logging.DEBUG, logger="pycrispasr"):
        native.drain_log()
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("pycrispasr", level) for level in ("DEBUG", "WARNING", "ERROR")
    ]
    assert [record.getMessage()[:9] for record in caplog.records] == ["1", "zwei %s é", "xxxxxxxxx"]


@pytest.mark.parametrize(
    "ending",
    [
        "model.transcribe(sound, sample_rate=16000, max_new_tokens=3)",
        "session = model.session(); session.feed(sound); iterator = session.tokens(); next(iterator)",
        "stream = model.stream(sound, sample_rate=16000); next(stream)",
        "def work():\n"
        "    while True:\n"
        "        model.transcribe(sound, sample_rate=16000, max_new_tokens=1)\n"
        "for _ in range(4):\n"
        "    threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.5)",
        "a = [model]; a.append(a)",
    ],
)
def test_a_process_may_end_with_everything_open(nano_path: Path, ending: str) -> None:
    done = run_python(
        "import sys, threading, time, numpy, pycrispasr\n"
        "model = pycrispasr.Model(sys.argv[1], threads=2)\n"
        "sound = numpy.random.default_rng(0).uniform(-0.1, 0.1, 480000)\n" + ending,
        nano_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="counts open files through /proc or /dev")
def test_a_model_that_fails_to_open_leaves_nothing_open(tmp_path: Path) -> None:
    folder = next(path for path in map(Path, ("/proc/self/fd", "/dev/fd")) if path.is_dir())
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    before = len(list(folder.iterdir()))
    for _ in range(50):
        with pytest.raises(pycrispasr.ModelFormatError):
            Model(bad)
    assert len(list(folder.iterdir())) <= before + 1


def test_every_kind_of_gpu_is_listed_with_what_is_missing() -> None:
    kinds = {kind.name: kind for kind in pycrispasr.backends()}
    assert set(kinds) == {"cuda", "metal", "vulkan"}
    names = {device.name.partition(":")[0] for device in pycrispasr.devices()}
    for name, kind in kinds.items():
        assert (kind.missing == "") == (name in names)
        if not kind.compiled:
            if name == ("cuda" if sys.platform == "darwin" else "metal"):
                assert "available on macOS" in kind.missing
            else:
                ways = f"-DGGML_{name.upper()}=ON", f"pip install 'pycrispasr[{name}]'"
                assert any(way in kind.missing for way in ways)
            with pytest.raises(pycrispasr.DeviceError, match=re.escape(f"'{name}:3': {name} is {kind.missing};")):
                pycrispasr.Model("tiny", device=f"{name}:3")
