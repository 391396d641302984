"""`pycrispasr transcribe`."""

from __future__ import annotations

import enum
import logging
import sys
from typing import Annotated, BinaryIO

import typer

from pycrispasr import formats, hub
from pycrispasr.cli.common import ComputedIn, Device, Precision, Runtime, app, complain, print_tokens, tell
from pycrispasr.errors import PycrispasrError
from pycrispasr.model import Model
from pycrispasr.result import Transcript


class Format(str, enum.Enum):
    """What `transcribe` writes."""

    txt = "txt"
    json = "json"


@app.command()
def transcribe(
    files: Annotated[list[str], typer.Argument(metavar="AUDIO...", help='Audio files; "-" is standard input.')],
    model: Annotated[
        str, typer.Option("--model", "-m", help='"moss-transcribe", "tiny", a GGUF file or a Hugging Face repository.')
    ] = hub.DEFAULT,
    output: Annotated[
        Format, typer.Option("--format", "-f", help="txt: a line for each file; json: an object for each file.")
    ] = Format.txt,
    device: Device = "auto",
    runtime: Annotated[
        Runtime, typer.Option("--runtime", "-r", help="crispasr: CrispASR's library, which runs other models too.")
    ] = Runtime.auto,
    precision: ComputedIn = Precision.auto,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each physical core.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where the text of 30 s of audio is cut.")] = 512,
    word_timestamps: Annotated[
        bool, typer.Option("--word-timestamps", help="Tell in json when each word was said.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell on stderr what is done.")] = False,
) -> None:
    """Print what is said in audio files, word by word as it is recognised."""
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    failed = False
    with Model(model, device=device, threads=threads, precision=precision.value, runtime=runtime.value) as opened:
        for file in files:
            try:
                _transcribe(opened, file, output, max_new_tokens, word_timestamps, verbose)
            except PycrispasrError as error:
                complain(str(error) if file in str(error) else f"{file}: {error}")
                failed = True
    if failed:
        raise typer.Exit(1)


def _transcribe(
    model: Model, file: str, output: Format, max_new_tokens: int, word_timestamps: bool, verbose: bool
) -> None:
    source: str | BinaryIO = sys.stdin.buffer if file == "-" else file
    if model.runtime == "crispasr":
        transcript = model.transcribe(source, max_new_tokens=max_new_tokens, word_timestamps=word_timestamps)
        if output == Format.txt:
            print(formats.to_txt(transcript), flush=True)
    else:
        with model._feed(source, None, max_new_tokens, word_timestamps=word_timestamps) as session:
            if output == Format.txt:
                try:
                    print_tokens(session)
                finally:
                    print(flush=True)
            transcript = session.finish()
    if output == Format.json:
        print(formats.to_json(transcript, audio=file), flush=True)
    complain_about(file, transcript)
    if verbose:
        seconds = transcript.timings.total
        tell(f"{file}: {transcript.duration:.1f} s of audio in {seconds:.1f} s, {transcript.timings.tokens} tokens")


def complain_about(name: str, transcript: Transcript) -> None:
    """Says on stderr what is not as it should be."""
    truncated = sum(segment.status == "truncated" for segment in transcript.segments)
    if truncated:
        complain(
            f"{name}: the text of {truncated} of {len(transcript.segments)} segments was cut, see --max-new-tokens"
        )
    looped = sum(segment.status == "looped" for segment in transcript.segments)
    if looped:
        complain(f"{name}: in {looped} of {len(transcript.segments)} segments one phrase came again and again; stopped")
