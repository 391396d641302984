"""Behind `pycrispasr live`: where its audio comes from, and how its text is shown."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from pycrispasr.audio import SAMPLE_RATE
from pycrispasr.errors import DeviceError, InstallationError, PycrispasrError
from pycrispasr.events import Event, Final, Partial

if TYPE_CHECKING:
    from rich.console import Console

    from pycrispasr.session import Session

_BLOCK = 0.1  # seconds that are read from a pipe at once


@contextlib.contextmanager
def pipe(session: Session, stream: BinaryIO, sample_rate: int = SAMPLE_RATE) -> Iterator[None]:
    """Reads samples in a thread as fast as the session takes them, until the stream ends.

    Args:
        session: Gets them.
        stream: Signed 16-bit samples in this machine's byte order, mono.
        sample_rate: Samples per second.
    """
    # Unbuffered: a process cannot end while a thread of it waits inside a buffer's lock.
    raw = getattr(stream, "raw", stream)

    def read() -> None:
        held = b""
        while not session.closed and (data := raw.read(round(_BLOCK * sample_rate) * 2)):
            held += data
            whole = len(held) // 2 * 2
            samples, held = np.frombuffer(held[:whole], np.int16), held[whole:]
            if not session.push(samples, sample_rate=sample_rate, wait=True):
                return
        session.end()

    def guarded() -> None:
        with contextlib.suppress(PycrispasrError, OSError, ValueError):  # the session was ended, or the stream closed
            read()

    # It may hang in a read that nothing ends, so that nobody waits for it.
    threading.Thread(target=guarded, name="pycrispasr-pipe", daemon=True).start()
    yield


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


@contextlib.contextmanager
def microphone(session: Session, device: int | str | None, sample_rate: int) -> Iterator[None]:
    """Records into a session.

    Args:
        session: Gets the samples.
        device: As for `microphone_rate`.
        sample_rate: Samples per second.

    Raises:
        InstallationError: As for `microphone_rate`.
        DeviceError: There is no such device, or it cannot be used.
    """
    sounddevice = _sounddevice()
    with _device_errors(sounddevice, device):
        stream = sounddevice.InputStream(
            samplerate=sample_rate,
            device=device,
            channels=1,
            dtype="float32",
            callback=lambda samples, *_: session.push(samples, sample_rate=sample_rate),
        )
        stream.start()
    try:
        yield
    finally:
        stream.close()


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
    """Draws the text on a terminal: what is final stays, one paragraph a stretch; what may change is drawn in place.

    Returns:
        The events, as they come.
    """
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False, transient=True) as picture:
        for event in events:
            if isinstance(event, Partial):
                text = Text(event.committed).append(event.tentative, "dim")
                lines = text.wrap(console, console.width)[1 - console.height :]  # the end of it, where it is too long
                picture.update(Text("\n").join(lines), refresh=True)
            elif isinstance(event, Final):
                picture.update("", refresh=True)
                if event.segment.text:
                    console.print(Text(event.segment.text), soft_wrap=True)
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
            f"{name} cannot be used ({error}): choose another one with --device, from --list-devices"
        ) from error
