"""`pycrispasr live`: from a pipe, from a microphone, on a terminal, and interrupted."""

from __future__ import annotations

import contextlib
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

from pycrispasr import Final, Model, audio, cli
from pycrispasr.cli import app, capture

from . import spoken

SAMPLES = Path(__file__).parent.parent / "samples"
TEXT = (SAMPLES / "long.txt").read_text(encoding="utf-8").strip()
RAW = (SAMPLES / "long.raw").read_bytes()
COMMAND = [sys.executable, "-m", "pycrispasr", "live", "-m", "tiny", "--threads", "1"]


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


def test_beyond_thirty_seconds_a_pipe_is_cut_where_transcribe_cuts() -> None:
    words = iter(spoken.clips("words"))
    sound = np.concatenate([part for _ in range(30) for part in (next(words).samples, np.zeros(14400, np.float32))])
    samples = np.clip(sound * 32767, -32768, 32767).astype(np.int16)
    assert len(samples) > 35 * 16000  # pauses of 0.9 s: between the defaults of vad="on" and of vad="auto"
    finals = [json.loads(line) for line in listen("--json", data=samples.tobytes()).stdout.splitlines()]
    with Model("tiny") as model:
        wanted = model.transcribe(samples, sample_rate=16000).segments
    assert len(wanted) > 1
    assert [(one["start"], one["end"], one["text"]) for one in finals if one["type"] == "final"] == [
        (segment.start, segment.end, segment.text) for segment in wanted
    ]


def test_a_text_that_is_cut_is_tried_again_in_parts_as_by_transcribe(monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        pass

    def session(model: Model, **options: object) -> None:
        raise SeenError(options)

    monkeypatch.setattr(Model, "session", session)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: 0, isatty=lambda: False))
    for given, wanted in (([], None), (["--max-new-tokens", "512"], 512)):
        with pytest.raises(SeenError) as seen:
            CliRunner().invoke(app, ["live", "-m", "tiny", *given, "-"], catch_exceptions=False)
        assert seen.value.args[0]["max_new_tokens"] == wanted  # only without a limit of the caller's


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


unix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


def start(*options: str, data: bytes = RAW, prefix: tuple[str, ...] = (), **more: Any) -> subprocess.Popen[bytes]:
    """The command, when all the audio has been read; more could come."""
    command = [*prefix, *COMMAND, *options, "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()
    time.sleep(1.5)
    return process


@unix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_signal_ends_the_audio_and_keeps_the_text(options: list[str], number: int) -> None:
    with start(*options) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    last = out.decode().strip().splitlines()[-1]
    assert (json.loads(last)["text"] if options else last) == TEXT


@unix
def test_a_signal_stops_it_as_the_first_program_of_a_container_too() -> None:
    """For such a program the system ignores signals that it does not handle itself."""
    container = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may make a container, where it may")
    with start(prefix=container) as process:
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err, out.decode().strip()) == (0, b"", TEXT)


@unix
def test_a_signal_that_it_was_started_to_ignore_is_ignored() -> None:
    with start(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err, out.decode().strip()) == (0, b"", TEXT)


SLOW = """
import sys, time
from pycrispasr.runtimes import native
from pycrispasr.__main__ import main
run = native.NativeSession.run
def slow(self, sequences, seconds):
    time.sleep(0.05)
    run(self, sequences, 0.0)
native.NativeSession.run = slow
main()
"""


@unix
@pytest.mark.parametrize("times", [2, 3])
def test_the_second_ctrl_c_stops_the_work_and_prints_what_there_is(times: int) -> None:
    command = [sys.executable, "-c", SLOW, "live", "-m", "tiny", "--partial-every", "0", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(RAW)
        process.stdin.flush()
        time.sleep(2)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    assert len(out.decode().split()) < len(TEXT.split())
    assert TEXT.startswith(out.decode().strip()[:-1])


@unix
def test_ctrl_c_before_any_audio_is_silent() -> None:
    with start(data=b"") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), err) == (130, b"", b"")


@unix
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_goes_away_ends_it_without_a_traceback(options: list[str]) -> None:
    with start(*options, data=b"") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # it may have ended by then
            process.stdin.write(RAW)
            process.stdin.close()
        err = process.stderr.read()
        process.wait(60)
    assert (process.returncode, err) == (1, b"")


def test_raw_samples_of_another_format_are_told_by_options() -> None:
    sound = audio.load(SAMPLES / "digits.wav")
    data = np.repeat(sound[:, None], 2, axis=1).astype(">f4").tobytes()
    done = listen("--format", "f32be", "--channels", "2", data=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().strip() == (SAMPLES / "digits.txt").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "s20", "-"], "there is no format 's20'"),
        (["--channels", "0", "-"], "channels cannot be 0"),
        (["--format", "s16le"], "it is for standard input: add -"),
        (["--channels", "2"], "it is for standard input: add -"),
        (["--reconnect", "-"], "it is for microphones: leave - away"),
    ],
)
def test_options_of_the_other_source_are_wrong_usage(arguments: list[str], words: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], input=b"", capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert words in " ".join(re.sub("[│╭╰─╮╯]", " ", done.stderr.decode()).split())


class PortAudioError(Exception):
    pass


def fake_sounddevice(sound: np.ndarray, rate: int, stop: Any) -> SimpleNamespace:
    """A sound card that records this once, and then calls `stop`."""
    devices = [
        {"name": "Speaker", "max_input_channels": 0, "default_samplerate": 48000.0},
        {"name": "Desk microphone", "max_input_channels": 2, "default_samplerate": float(rate)},
    ]

    class InputStream:
        def __init__(
            self, *, samplerate: int, device: object, channels: int, dtype: str, callback: Any, finished_callback: Any
        ) -> None:
            assert (samplerate, device, channels, dtype) == (rate, 1, 1, "float32")
            self.callback, self.finished_callback = callback, finished_callback

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
    microphone = capture.Microphone

    def recorded(session: Any, *rest: Any, **options: Any) -> Any:
        sessions.append(session)
        return microphone(session, *rest, **options)

    monkeypatch.setattr(capture, "Microphone", recorded)
    done = CliRunner().invoke(app, ["live", "-m", "tiny", "--input", "1"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == (SAMPLES / "digits.txt").read_text(encoding="utf-8").strip()


def test_microphones_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice(np.zeros(0), 44100, None))
    done = CliRunner().invoke(app, ["live", "--list-inputs"])
    assert done.stdout == "*   1  Desk microphone  (2 channels, 44100 Hz)\n"
    assert done.stderr == ""
    former = CliRunner().invoke(app, ["live", "--list-devices"])
    assert former.stdout == done.stdout
    assert former.stderr == "pycrispasr: live: --device and --list-devices are called --input and --list-inputs now\n"


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
    assert "the microphone 'attic' cannot be used" in complaint("--input", "attic")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "pip install 'pycrispasr[live]'" in complaint()


class Card:
    """A sound card whose microphone can be pulled out and put in again, in the form of sounddevice."""

    def __init__(self, sound: np.ndarray, rate: int) -> None:
        self.PortAudioError = PortAudioError
        self.default = SimpleNamespace(device=[1, 0])
        self.sound, self.rate = sound, rate
        self.is_there = True
        self.is_hung = False  # neither samples nor a word of it
        self.overflows = 0
        self.begun = threading.Event()
        self.opened: list[object] = []
        card = self

        class InputStream:
            def __init__(self, *, callback: Any, finished_callback: Any, device: object, **_: object) -> None:
                if not card.is_there:
                    raise PortAudioError("Device unavailable [PaErrorCode -9985]")
                card.opened.append(device)
                self.callback, self.finished_callback = callback, finished_callback
                self.closed = False

            def start(self) -> None:
                threading.Thread(target=self.record, daemon=True).start()

            def record(self) -> None:
                block = card.rate // 100
                place = 0
                while card.is_there and not self.closed:
                    memory = np.zeros((block, 1), np.float32)
                    piece = card.sound[place : place + block]
                    memory[: len(piece), 0] = piece
                    place += block
                    overflow, card.overflows = card.overflows > 0, max(0, card.overflows - 1)
                    self.callback(memory, block, None, SimpleNamespace(input_overflow=overflow))
                    card.begun.set()
                    time.sleep(0.001)
                if not card.is_hung:
                    self.finished_callback()

            def close(self) -> None:
                self.closed = True

        self.InputStream = InputStream

    def query_devices(self, device: object = None, kind: str | None = None) -> Any:
        return {"name": "Desk microphone", "max_input_channels": 2, "default_samplerate": float(self.rate)}

    def _terminate(self) -> None:
        pass

    _initialize = _terminate


@pytest.mark.parametrize("is_hung", [False, True])
def test_a_microphone_that_goes_away_is_an_error_and_its_text_stays(
    is_hung: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = np.concatenate([audio.load(SAMPLES / "digits.wav"), np.zeros(16000, np.float32)])
    card = Card(sound, 16000)
    card.is_hung = is_hung
    monkeypatch.setattr(capture, "_PATIENCE", 0.5)
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    threading.Timer(1.5, lambda: setattr(card, "is_there", False)).start()
    monkeypatch.setattr(sys, "argv", ["pycrispasr", "live", "-m", "tiny"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert caught.value.code == 1
    assert out.strip() == (SAMPLES / "digits.txt").read_text(encoding="utf-8").strip()
    assert err == (
        "pycrispasr: the microphone 'Desk microphone' has gone away: plug it in and start again, or use --reconnect, "
        "which waits for it\n"
    )


def test_a_microphone_that_comes_back_is_recorded_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = np.concatenate([audio.load(SAMPLES / "digits.wav"), np.zeros(16000, np.float32)])
    card = Card(sound, 16000)
    card.overflows = 3
    monkeypatch.setattr(capture, "_TRY_EVERY", 0.3)
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    with Model("tiny") as model, model.session(vad="on") as session:
        told: list[str] = []
        with capture.Microphone(session, 1, 16000, reconnect=True, tell=told.append) as microphone:

            def act() -> None:
                for is_there in (False, True):
                    assert card.begun.wait(20)
                    time.sleep(1.5)
                    card.is_there = is_there
                time.sleep(2)
                session.end()

            threading.Thread(target=act, daemon=True).start()
            finals = [event.segment for event in session.events() if isinstance(event, Final)]
        text = (SAMPLES / "digits.txt").read_text(encoding="utf-8").strip()
        assert [segment.text.strip() for segment in finals] == [text, text]
        assert told == [
            "the microphone 'Desk microphone' has gone away; waiting for it",
            "the microphone 'Desk microphone' is back",
        ]
        assert card.opened == [1, "Desk microphone"]  # numbers change
        assert microphone.failure is None
        assert microphone.warnings == [
            "the sound card lost audio 3 times, since this machine was busy with other things"
        ]


def test_the_sound_card_s_callback_raises_nothing_after_the_end(monkeypatch: pytest.MonkeyPatch, tiny: Model) -> None:
    """PortAudio would print a traceback."""
    card = Card(np.zeros(16000, np.float32), 16000)
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    for end in ("end", "cancel", "close"):
        with tiny.session() as session, capture.Microphone(session, 1, 16000) as microphone:
            getattr(session, end)()
            microphone._hear(np.zeros((160, 1), np.float32), 160, None, SimpleNamespace(input_overflow=False))
            assert microphone.failure is None
