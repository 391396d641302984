"""`pycrispasr align`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pycrispasr.cli.common import (
    TRANSCRIBE,
    ComputedIn,
    Device,
    Language,
    Mmap,
    Precision,
    Threads,
    app,
    standard_input,
    tell,
)
from pycrispasr.cli.transcribe import Format, complaints
from pycrispasr.model import Model
from pycrispasr.models import hub
from pycrispasr.results import files, formats
from pycrispasr.results.transcript import Transcript


@app.command(rich_help_panel=TRANSCRIBE)
def align(
    recording: Annotated[str, typer.Argument(metavar="AUDIO", help='A file or a web address; "-" is standard input.')],
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            help='What is said in it: a text file, a subtitle a line, "-" for stdin; or a transcript, .json.',
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="An aligner: a name, a GGUF file or a Hugging Face repository.")
    ] = hub.ALIGNER,
    kinds: Annotated[
        list[Format] | None, typer.Option("--format", "-f", help="What is written, again for more. Default: srt.")
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="Write a file for each format.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    language: Language = None,
    channel: Annotated[
        int | None, typer.Option(min=0, help="The channel that is heard, from 0. Default: their mean.")
    ] = None,
    track: Annotated[
        int | None, typer.Option(min=0, help="The sound track that is heard, from 0. Default: the first one.")
    ] = None,
    max_line_chars: Annotated[int, typer.Option(min=2, help="Letters in a line of subtitles, at most.")] = 42,
    max_cue_seconds: Annotated[
        float, typer.Option(min=0.1, max=1e6, help="Seconds that a subtitle is shown, at most.")
    ] = 7.0,
    device: Device = "auto",
    precision: ComputedIn = Precision.auto,
    mmap: Mmap = True,
    threads: Threads = None,
) -> None:
    """Tell when each word of a known text was said in a recording, with a model that is made for that."""
    wanted = [formats.FORMATS[formats.FORMATS.index(kind.value)] for kind in dict.fromkeys(kinds or [Format.srt])]
    if folder is None and len(wanted) > 1:
        raise typer.BadParameter("several formats need a folder for their files: -o DIR", param_hint="--format")
    if recording == text == "-":
        raise typer.BadParameter("standard input is the recording already: name a file", param_hint="TEXT")
    said = _read(text)
    known = Transcript.from_json(said) if text.casefold().endswith(".json") else said
    stem = None if folder is None else files.stems([recording], folder)[0]
    if stem is not None:
        files.pending(stem, wanted, overwrite=overwrite)
    with Model(
        model, device=device, threads=threads, precision=precision.value, mmap=mmap, runtime="pycrispasr"
    ) as opened:
        source = standard_input() if recording == "-" else recording
        aligned = opened.align(source, known, language=language, channel=channel, track=track)
    for sentence in complaints(recording, aligned):
        tell(f"pycrispasr: {sentence}")
    if stem is None:
        content = formats.render(
            aligned, wanted[0], audio=recording, max_line_chars=max_line_chars, max_cue_seconds=max_cue_seconds
        )
        sys.stdout.write(content)
        return
    for path in files.write(
        aligned, stem, wanted, audio=recording, overwrite=overwrite,
        max_line_chars=max_line_chars, max_cue_seconds=max_cue_seconds,
    ):  # fmt: skip
        tell(str(path))


def _read(text: str) -> str:
    """A text file.

    Raises:
        typer.BadParameter: It cannot be read.
    """
    try:
        content = standard_input().read() if text == "-" else Path(text).read_bytes()
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise typer.BadParameter(f"{text!r} cannot be read as text ({reason})", param_hint="TEXT") from None
