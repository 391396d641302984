"""`pycrispasr live`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from pycrispasr import audio
from pycrispasr.audio import pipes
from pycrispasr.cli.common import (
    TRANSCRIBE,
    ComputedIn,
    Context,
    ContextFile,
    Language,
    Mmap,
    Precision,
    Threads,
    app,
    complain,
    is_terminal,
    print_tokens,
    printable,
    read_context,
    standard_input,
    tell,
    until_stopped,
)
from pycrispasr.cli.transcribe import complaints
from pycrispasr.errors import AudioError, CancelledError, ClosedError, PycrispasrError
from pycrispasr.live.session import Session
from pycrispasr.model import Model
from pycrispasr.models import hub
from pycrispasr.results import formats
from pycrispasr.results.events import Event, Final
from pycrispasr.results.transcript import Transcript


@app.command(rich_help_panel=TRANSCRIBE)
def live(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="-",
            help='"-": standard input: raw samples, or a file of sound as it comes. Otherwise a microphone.',
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A model, as for `transcribe -m`.")] = hub.DEFAULT,
    microphone: Annotated[
        str | None, typer.Option("--input", help="The microphone: a number or a name of --list-inputs.")
    ] = None,
    list_microphones: Annotated[bool, typer.Option("--list-inputs", help="List the microphones, and exit.")] = False,
    former_microphone: Annotated[str | None, typer.Option("--device", hidden=True)] = None,
    former_list: Annotated[bool, typer.Option("--list-devices", hidden=True)] = False,
    form: Annotated[
        str | None,
        typer.Option("--format", "-f", help="Of raw samples on standard input: s16le, f32le, u8 and so on, as FFmpeg."),
    ] = None,
    sample_rate: Annotated[
        int | None, typer.Option(help="Samples per second of raw samples on standard input. Default: 16000.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Channels of raw samples on standard input. Default: 1.")] = None,
    reconnect: Annotated[
        bool, typer.Option("--reconnect", help="Wait for a microphone that goes away, instead of ending.")
    ] = False,
    vad: Annotated[
        bool | None,
        typer.Option("--vad/--no-vad", help="Find utterances between silences. By default for microphones only."),
    ] = None,
    silence: Annotated[
        float | None,
        typer.Option(help="Seconds of silence that end an utterance. Default: 0.8 with --vad, else 1.0 beyond 30 s."),
    ] = None,
    partial_every: Annotated[
        float, typer.Option(help="Seconds after which the text so far is shown; 0: only what is final.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for every event, one a line.")] = False,
    device: Annotated[
        str, typer.Option("--compute-device", help="What the model runs on: as `transcribe --device`.")
    ] = ("auto"),
    precision: ComputedIn = Precision.auto,
    mmap: Mmap = True,
    threads: Threads = None,
    language: Language = None,
    context: Context = None,
    context_file: ContextFile = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where the text of 30 s is cut. Default: 512, tried again in parts.")
    ] = None,
) -> None:
    """Print what is said while it is said, from a microphone or from a pipe. Ctrl-C ends the audio."""
    from pycrispasr.cli import capture as listening

    if former_microphone is not None or former_list:
        complain("live: --device and --list-devices are called --input and --list-inputs now")
        microphone, list_microphones = microphone or former_microphone, list_microphones or former_list
    if list_microphones:
        found = listening.microphones()
        for one in found:
            print(
                f"{'*' if one['default'] else ' '} {one['number']:>3}  {printable(one['name'])}  "
                f"({one['channels']} channels, {one['sample_rate']} Hz)"
            )
        if not found:
            complain("there is no microphone")
        raise typer.Exit(0 if found else 1)
    if source not in (None, "-"):
        raise typer.BadParameter(f"{source!r} is no source: give - for standard input, or nothing for a microphone")
    from_pipe = source == "-"
    raw = {"--format": form, "--sample-rate": sample_rate, "--channels": channels}
    if not from_pipe and any(value is not None for value in raw.values()):
        given = next(name for name, value in raw.items() if value is not None)
        raise typer.BadParameter("it is for standard input: add -", param_hint=given)
    if reconnect and from_pipe:
        raise typer.BadParameter("it is for microphones: leave - away", param_hint="--reconnect")
    number = int(microphone) if microphone and microphone.isdecimal() else microphone
    pipes.check(form, channels)
    if sample_rate is not None:
        audio.check_rate(sample_rate)
    expected = read_context(context, context_file)
    rate = 0 if from_pipe else listening.microphone_rate(number)
    with (
        Model(
            model, device=device, threads=threads, precision=precision.value, runtime="pycrispasr", mmap=mmap
        ) as opened,
        opened.session(
            vad="on" if vad or (vad is None and not from_pipe) else "auto" if vad is None else "off",
            silence=silence,
            partial_every=partial_every or None,
            buffer=0.5 if from_pipe else 30.0,
            max_new_tokens=max_new_tokens,
            language=language,
            context=expected,
        ) as session,
    ):
        recording: listening.Capture
        if from_pipe:
            # Its first bytes may be long in coming: they are looked at in the thread that reads.
            recording = listening.Pipe(
                session,
                lambda: audio.listen(
                    standard_input(), format=form, sample_rate=sample_rate, channels=channels, name="standard input"
                ),
            )
        else:
            recording = listening.Microphone(session, number, rate, reconnect=reconnect, tell=complain)
        text = _Text(session, as_json=as_json)
        with recording:
            if not from_pipe and is_terminal(sys.stderr):
                tell("listening; Ctrl-C ends it")
            stopped = until_stopped(text.print, session.end, session.cancel)
        transcript = text.transcript
        if transcript is None:
            if stopped:  # before there was any text, or by a second signal
                raise typer.Exit(128 + stopped)
            raise recording.failure or text.failure or ClosedError("the session is closed")
        for sentence in complaints("live", transcript):
            complain(sentence)
        for sentence in recording.warnings:
            complain(f"live: {sentence}")
        if session.lost:
            complain(f"live: {session.lost:.1f} s of audio were lost: this machine is too slow for the model")
        if recording.failure is not None:
            raise recording.failure


class _Text:
    """Prints what a session tells.

    Attributes:
        transcript: Of all of it, when it has been printed.
        failure: Why there is none.
    """

    def __init__(self, session: Session, *, as_json: bool) -> None:
        self.transcript: Transcript | None = None
        self.failure: PycrispasrError | None = None
        self._session, self._as_json = session, as_json
        self._finals = 0

    def print(self) -> None:
        """Works until the audio has ended. Of a session that is cancelled, what it has until then is printed."""
        try:
            self._print(self._session.events())
            self.transcript = self._session.finish()
        except CancelledError as error:
            self.failure = error
            self._print(iter([Final(segment) for segment in error.partial.segments[self._finals :]]))
        except AudioError as error:
            self.failure = error

    def _print(self, events: Iterator[Event]) -> None:
        if self._as_json:
            for event in self._counted(events):
                print(formats.event_to_json(event), flush=True)
        elif is_terminal(sys.stdout):
            from rich.console import Console

            from pycrispasr.cli.capture import draw

            for _ in draw(self._counted(events), Console()):
                pass
        else:
            tokens = (
                token for event in self._counted(events) if isinstance(event, Final) for token in event.segment.tokens
            )
            try:
                print_tokens(tokens)
            finally:
                print(flush=True)

    def _counted(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            self._finals += isinstance(event, Final)
            yield event
