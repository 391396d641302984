"""Behind `pycrispasr live`: a microphone or a pipe that goes into a session, and how its text is shown."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pycrispasr.audio import AudioReader
from pycrispasr.errors import ClosedError, DeviceError, InstallationError, PycrispasrError, UsageError
from pycrispasr.results.events import Event, Final, Partial
from pycrispasr.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from typing_extensions import Self

    from pycrispasr.live.session import Session

_PATIENCE = 5.0  # seconds without samples after which a microphone is taken to be gone
_TRY_EVERY = 1.0


class Capture:
    """Audio on its way into a session, from a thread of its own. A context manager: leaving it ends the recording.

    Attributes:
        failure: Why it ended before its time, or None.
        warnings: What was odd about it, in sentences; complete when the context has been left.
    """

    def __init__(self, session: Session) -> None:
        self.failure: PycrispasrError | None = None
        self.warnings: list[str] = []
        self._session = session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _fail(self, failure: PycrispasrError) -> None:
        """Ends the session's audio; its text stays."""
        self.failure = failure
        self._session.end()


class Pipe(Capture):
    """Reads a stream as fast as the session takes it, until it ends.

    Args:
        session: Gets the samples.
        open_reader: Begins to read it: called in the thread that reads, since the first bytes may be long in coming.
    """

    def __init__(self, session: Session, open_reader: Callable[[], AudioReader]) -> None:
        super().__init__(session)
        self._open_reader = open_reader
        self._reader: AudioReader | None = None

    def __enter__(self) -> Self:
        # It may hang in a read that nothing ends, so that nobody waits for it.
        threading.Thread(target=self._run, name="pycrispasr-pipe", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self.warnings = list(self._reader.warnings)

    def _run(self) -> None:
        try:
            self._reader = self._open_reader()
            for samples in self._reader.blocks():
                with contextlib.suppress(ClosedError, UsageError):  # the session was ended meanwhile
                    if self._session.push(samples, wait=True):
                        continue
                return
            self._session.end()
        except PycrispasrError as error:
            self._fail(error)


def microphone_rate(device: int | str | None = None) -> int:
    """Samples per second that a microphone gives by default.

    Args:
        device: A number or a part of a name, as `microphones` tells them; None for the system's default.

    Raises:
        InstallationError: The package sounddevice, or the library under it, is missing.
        DeviceError: There is no such device.
    """
    sounddevice = _sounddevice()
    with _device_errors(sounddevice, device):
        return int(sounddevice.query_devices(device, "input")["default_samplerate"])


class Microphone(Capture):
    """Records into a session.

    A microphone that goes away (pulled out, taken by the system, silent for 5 seconds where not even silence comes)
    ends the session's audio, with a `failure`. With `reconnect` it is tried again every second instead, and silence is
    recorded meanwhile, so that times stay those of the clock.

    Args:
        session: Gets the samples.
        device: As for `microphone_rate`.
        sample_rate: Samples per second.
        reconnect: Wait for a microphone that has gone away.
        tell: Called with a sentence when it goes and when it comes back.

    Raises:
        InstallationError: As for `microphone_rate`.
        DeviceError: There is no such device, or it cannot be used.
    """

    def __init__(
        self,
        session: Session,
        device: int | str | None,
        sample_rate: int,
        *,
        reconnect: bool = False,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        super().__init__(session)
        self._sounddevice = _sounddevice()
        self._device, self._rate, self._reconnect, self._tell = device, sample_rate, reconnect, tell
        self._overflows = 0
        self._gone = threading.Event()  # or over
        self._over = threading.Event()
        self._heard = time.monotonic()
        with _device_errors(self._sounddevice, device):
            # Numbers change when devices come and go.
            self._name = device if isinstance(device, str) else self._sounddevice.query_devices(device, "input")["name"]
            self._stream = self._open(device)
        self._watcher = threading.Thread(target=self._watch, name="pycrispasr-microphone", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._gone.set()
        self._watcher.join(_PATIENCE)  # PortAudio may hang in a device that is gone
        if self._overflows:
            times = f"{self._overflows} times" if self._overflows > 1 else "once"
            self.warnings.append(f"the sound card lost audio {times}, since this machine was busy with other things")

    def _open(self, device: int | str | None) -> Any:
        stream = self._sounddevice.InputStream(
            samplerate=self._rate, device=device, channels=1, dtype="float32", callback=self._hear,
            finished_callback=self._gone.set,
        )  # fmt: skip
        try:
            self._heard = time.monotonic()
            stream.start()
        except BaseException:
            stream.close()
            raise
        return stream

    def _hear(self, samples: Any, _frames: int, _time: Any, status: Any) -> None:
        """Called by PortAudio, which prints what is raised here."""
        self._heard = time.monotonic()
        self._overflows += bool(status and status.input_overflow)
        self._push(samples)

    def _push(self, samples: Any) -> None:
        try:
            self._session.push(samples, sample_rate=self._rate)
        except (ClosedError, UsageError):  # the session was ended
            self._over.set()
        except PycrispasrError as error:
            self._fail(error)
            self._over.set()

    def _watch(self) -> None:
        while not self._over.is_set():
            if not self._gone.wait(0.5) and time.monotonic() - self._heard < _PATIENCE:
                continue
            if self._over.is_set():
                break
            self._close()
            message = f"the microphone {self._name!r} has gone away"
            if not self._reconnect:
                self._fail(
                    DeviceError(f"{message}: plug it in and start again, or use --reconnect, which waits for it")
                )
                return
            self._tell(f"{message}; waiting for it")
            if self._wait_for_it():
                self._tell(f"the microphone {self._name!r} is back")
        self._close()

    def _wait_for_it(self) -> bool:
        """Records silence until it is back, or all is over."""
        while not self._over.wait(_TRY_EVERY):
            silence = np.zeros(round((time.monotonic() - self._heard) * self._rate), np.float32)
            self._heard = time.monotonic()
            self._push(silence)
            self._gone.clear()
            with contextlib.suppress(Exception):  # whatever PortAudio says of a device that is not there
                self._sounddevice._terminate()  # only so does it look for devices anew
                self._sounddevice._initialize()
                self._stream = self._open(self._name)
                return True
        return False

    def _close(self) -> None:
        with contextlib.suppress(self._sounddevice.PortAudioError):
            self._stream.close()


def microphones() -> list[dict[str, Any]]:
    """What can be recorded from: number, name, channels and rate of each device; the default one is marked.

    Raises:
        InstallationError: As for `microphone_rate`.
    """
    sounddevice = _sounddevice()
    with _device_errors(sounddevice, None):
        default = sounddevice.default.device[0]
        return [
            {
                "number": number,
                "name": device["name"],
                "channels": device["max_input_channels"],
                "sample_rate": int(device["default_samplerate"]),
                "default": number == default,
            }
            for number, device in enumerate(sounddevice.query_devices())
            if device["max_input_channels"] > 0
        ]


def draw(events: Iterable[Event], console: Console) -> Iterator[Event]:
    """Draws the text on a terminal: what is final stays, one paragraph a segment; what may change is drawn in place.

    Returns:
        The events, as they come.
    """
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False, transient=True) as picture:
        for event in events:
            if isinstance(event, Partial):
                text = Text(plain(event.committed)).append(plain(event.tentative), "dim")
                lines = text.wrap(console, console.width)[1 - console.height :]  # the end of it, where it is too long
                picture.update(Text("\n").join(lines), refresh=True)
            elif isinstance(event, Final):
                picture.update("", refresh=True)
                if event.segment.text:
                    console.print(Text(plain(event.segment.text)), soft_wrap=True)
            yield event


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise InstallationError("recording needs sounddevice: pip install 'pycrispasr[live]'") from error
    except OSError as error:
        raise InstallationError(
            f"sounddevice cannot be used ({error}): install PortAudio, e.g. `apt install libportaudio2`"
        ) from error
    return sounddevice


@contextlib.contextmanager
def _device_errors(sounddevice: Any, device: int | str | None) -> Iterator[None]:
    try:
        yield
    except (sounddevice.PortAudioError, ValueError) as error:
        name = "the default microphone" if device is None else f"the microphone {device!r}"
        raise DeviceError(
            f"{name} cannot be used ({error}): choose another one with --input, from --list-inputs"
        ) from error
