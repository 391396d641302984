"""`pycrispasr live`: from a pipe, from a microphone, on a terminal, and interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pycrispasr import audio, cli, live
from pycrispasr.cli import app

SAMPLES = Path(__file__).parent.parent / "samples"
TEXT = (SAMPLES / "long.txt").read_text(encoding="utf-8").strip()
RAW = (SAMPLES / "long.raw").read_bytes()
COMMAND = [sys.executable, "-m", "pycrispasr", "live", "-m", "tiny"]


def listen(*options: str, data: bytes = RAW) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *options, "-"], input=data, capture_output=True, timeout=60, check=False)


def test_raw_samples_are_those_of_the_recording() -> None:
    np.testing.assert_array_equal(np.frombuffer(RAW, np.int16), audio.load(SAMPLES / "long.wav") * 32768)


def test_a_pipe_gets_what_transcribe_prints() -> None:
    wanted = subprocess.run(
        [sys.executable, "-m", "pycrispasr", "transcribe", "-m", "tiny", SAMPLES / "long.wav"],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    done = listen()
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted.stdout, b"")
    assert done.stdout.decode().strip() == TEXT
    assert listen("--partial-every", "0").stdout == wanted.stdout


def test_programs_get_a_json_object_for_every_event() -> None:
    lines = listen("--json", "--vad", "--silence", "0.7").stdout.decode().splitlines()
    events = [json.loads(line) for line in lines]
    kinds = [event["type"] for event in events]
    assert set(kinds) == {"speech_started", "partial", "final", "silence"}
    assert kinds[0] == "speech_started"
    finals = [event for event in events if event["type"] == "final"]
    assert " ".join(event["text"] for event in finals) == TEXT
    assert all(event["status"] == "ok" and event["tokens"] for event in finals)
    assert all({"start", "end", "committed", "tentative"} < set(e) for e in events if e["type"] == "partial")


def test_any_rate_and_half_a_sample_at_the_end() -> None:
    import soxr

    sound = soxr.resample(audio.load(SAMPLES / "digits.wav"), 16000, 44100)
    data = (sound * 32767).astype(np.int16).tobytes() + b"x"
    done = listen("--sample-rate", "44100", data=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().strip() == (SAMPLES / "digits.txt").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize(
    ("options", "data", "words"),
    [
        ([], b"", "no audio"),
        ([], b"\0\0" * 50, "50 samples"),
        (["--sample-rate", "5"], b"", "sample_rate cannot be 5"),
        (["--silence", "0", "--vad"], b"", "silence cannot be 0"),
        (["-m", "/nowhere.gguf"], b"", "/nowhere.gguf"),
    ],
)
def test_what_cannot_work_is_told_in_one_sentence(options: list[str], data: bytes, words: str) -> None:
    done = listen(*options, data=data)
    assert done.returncode == (2 if "--silence" in options else 1)
    assert done.stdout.strip() == b""
    assert words in done.stderr.decode()
    assert len(done.stderr.decode().strip().splitlines()) == 1


def test_another_source_is_wrong_usage() -> None:
    assert CliRunner().invoke(app, ["live", "-m", "tiny", "talk.wav"]).exit_code == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a pseudo-terminal")
def test_on_a_terminal_the_text_grows_in_place() -> None:
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen([*COMMAND, "-"], stdin=subprocess.PIPE, stdout=slave, stderr=slave)
    os.close(slave)
    assert process.stdin is not None

    def feed() -> None:
        with process.stdin as pipe:  # type: ignore[union-attr]
            for start in range(0, len(RAW), 16000):
                pipe.write(RAW[start : start + 16000])
                pipe.flush()
                time.sleep(0.02)

    threading.Thread(target=feed, daemon=True).start()
    shown = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # its other end is closed
            break
        if not data:
            break
        shown += data
    assert process.wait(30) == 0
    pictures = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\n]", "", part) for part in shown.decode().split("\x1b[2K")]
    growing = [picture for picture in pictures if picture.startswith("hello")]
    assert len({len(picture) for picture in growing}) > 1
    assert growing[-1] == TEXT


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_interrupt_ends_the_audio_and_keeps_the_text(options: list[str]) -> None:
    with subprocess.Popen(
        [*COMMAND, *options, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(RAW)
        process.stdin.flush()
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
    assert (process.returncode, err) == (0, b"")
    last = out.decode().strip().splitlines()[-1]
    assert (json.loads(last)["text"] if options else last) == TEXT


class PortAudioError(Exception):
    pass


def fake_sounddevice(sound: np.ndarray, rate: int, stop: Any) -> SimpleNamespace:
    """A sound card that records this once, and then calls `stop`."""
    devices = [
        {"name": "Speaker", "max_input_channels": 0, "default_samplerate": 48000.0},
        {"name": "Desk microphone", "max_input_channels": 2, "default_samplerate": float(rate)},
    ]

    class InputStream:
        def __init__(self, *, samplerate: int, device: object, channels: int, dtype: str, callback: Any) -> None:
            assert (samplerate, device, channels, dtype) == (rate, 1, 1, "float32")
            self.callback = callback

        def start(self) -> None:
            threading.Thread(target=self.record, daemon=True).start()

        def record(self) -> None:
            memory = np.empty((480, 1), np.float32)
            for start in range(0, len(sound) - 480, 480):
                memory[:, 0] = sound[start : start + 480]
                self.callback(memory, 480, None, None)
                time.sleep(0.0005)
            stop()

        def close(self) -> None:
            pass

    def query_devices(device: object = None, kind: str | None = None) -> Any:
        if kind is None:
            return devices
        if device not in (None, 1):
            raise ValueError(f"no input device matching {device!r}")
        return devices[1]

    return SimpleNamespace(
        PortAudioError=PortAudioError, InputStream=InputStream, query_devices=query_devices,
        default=SimpleNamespace(device=[1, 0]),
    )  # fmt: skip


def test_a_microphone_s_utterances_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    import soxr

    quiet = np.zeros(48000, np.float32)
    speech = soxr.resample(audio.load(SAMPLES / "digits.wav"), 16000, 48000)
    sound = np.concatenate([quiet, speech, quiet, quiet])
    sessions: list[Any] = []
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice(sound, 48000, lambda: sessions[0].end()))
    microphone = live.microphone

    def recorded(session: Any, *rest: Any) -> Any:
        sessions.append(session)
        return microphone(session, *rest)

    monkeypatch.setattr(live, "microphone", recorded)
    done = CliRunner().invoke(app, ["live", "-m", "tiny", "--device", "1"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == (SAMPLES / "digits.txt").read_text(encoding="utf-8").strip()


def test_microphones_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice(np.zeros(0), 44100, None))
    done = CliRunner().invoke(app, ["live", "--list-devices"])
    assert done.stdout == "*   1  Desk microphone  (2 channels, 44100 Hz)\n"


def test_an_unknown_or_missing_microphone_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pycrispasr", "live", "-m", "tiny", *options])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 1
        return capsys.readouterr().err

    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice(np.zeros(0), 44100, None))
    assert "the microphone 'attic' cannot be used" in complaint("--device", "attic")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "pip install 'pycrispasr[live]'" in complaint()
