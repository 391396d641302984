"""`pycrispasr live`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from pycrispasr import audio, formats, hub
from pycrispasr.cli.common import ComputedIn, Precision, app, complain, print_tokens, tell, until_interrupted
from pycrispasr.cli.transcribe import complaints
from pycrispasr.events import Event, Final
from pycrispasr.model import Model


@app.command()
def live(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[-]",
            help='"-": raw PCM from standard input, 16-bit signed mono. Otherwise a microphone.',
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A model, as for `transcribe -m`.")] = hub.DEFAULT,
    microphone: Annotated[
        str | None, typer.Option("--device", help="The microphone: a number or a name of --list-devices.")
    ] = None,
    list_microphones: Annotated[bool, typer.Option("--list-devices", help="List the microphones, and exit.")] = False,
    sample_rate: Annotated[int, typer.Option(help="Samples per second of standard input.")] = audio.SAMPLE_RATE,
    vad: Annotated[
        bool | None,
        typer.Option("--vad/--no-vad", help="Find utterances between silences. By default for microphones only."),
    ] = None,
    silence: Annotated[float, typer.Option(help="Seconds of silence that end an utterance, with --vad.")] = 0.8,
    partial_every: Annotated[
        float, typer.Option(help="Seconds after which the text so far is shown; 0: only what is final.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for every event, one a line.")] = False,
    device: Annotated[
        str, typer.Option("--compute-device", help="What the model runs on: as `transcribe --device`.")
    ] = ("auto"),
    precision: ComputedIn = Precision.auto,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each physical core.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where the text of 30 s of audio is cut.")] = 512,
) -> None:
    """Print what is said while it is said, from a microphone or from a pipe. Ctrl-C ends the audio."""
    from pycrispasr import live as listening

    if list_microphones:
        found = listening.microphones()
        for one in found:
            print(
                f"{'*' if one['default'] else ' '} {one['number']:>3}  {one['name']}  "
                f"({one['channels']} channels, {one['sample_rate']} Hz)"
            )
        if not found:
            complain("there is no microphone")
        raise typer.Exit(0 if found else 1)
    if source not in (None, "-"):
        raise typer.BadParameter(f"{source!r} is no source: give - for standard input, or nothing for a microphone")
    from_pipe = source == "-"
    number = int(microphone) if microphone and microphone.isdecimal() else microphone
    rate = audio.check_rate(sample_rate) if from_pipe else listening.microphone_rate(number)
    with (
        Model(model, device=device, threads=threads, precision=precision.value, runtime="pycrispasr") as opened,
        opened.session(
            vad="on" if vad or (vad is None and not from_pipe) else "auto" if vad is None else "off",
            silence=silence,
            partial_every=partial_every or None,
            buffer=0.5 if from_pipe else 30.0,
            max_new_tokens=max_new_tokens,
        ) as session,
    ):
        if from_pipe:
            recording = listening.pipe(session, sys.stdin.buffer, rate)
        else:
            recording = listening.microphone(session, number, rate)
        with recording:
            if not from_pipe and sys.stderr.isatty():
                tell("listening; Ctrl-C ends it")
            work = lambda: _print_events(session.events(), as_json=as_json)  # noqa: E731
            until_interrupted(work, session.end, session.cancel)
        transcript = session.finish()
        for sentence in complaints("live", transcript):
            complain(sentence)
        if session.lost:
            complain(f"live: {session.lost:.1f} s of audio were lost: this machine is too slow for the model")


def _print_events(events: Iterable[Event], *, as_json: bool) -> None:
    if as_json:
        for event in events:
            print(formats.event_to_json(event), flush=True)
    elif sys.stdout.isatty():
        from rich.console import Console

        from pycrispasr.live import draw

        for _ in draw(events, Console()):
            pass
    else:
        try:
            print_tokens(token for event in events if isinstance(event, Final) for token in event.segment.tokens)
        finally:
            print(flush=True)
