"""The command line. Text goes to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import logging
import sys
from collections.abc import Iterable
from typing import Annotated, BinaryIO

import typer

from pycrispasr import __version__, _native, audio, formats, gguf_file, hub
from pycrispasr.errors import PycrispasrError
from pycrispasr.model import Model
from pycrispasr.model import devices as list_devices
from pycrispasr.result import Token

app = typer.Typer(
    help="Speech to text with MOSS-Transcribe.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Format(str, enum.Enum):
    """What `transcribe` writes."""

    txt = "txt"
    json = "json"


Device = Annotated[str, typer.Option(help='"auto", or a name that `pycrispasr devices` lists.')]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Runs the command line, and ends the process."""
    try:
        app(prog_name="pycrispasr")
    except PycrispasrError as error:
        _complain(str(error))
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pycrispasr {__version__} (ggml {_native.versions()[1]})")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop


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
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each physical core.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where the text of 30 s of audio is cut.")] = 512,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell on stderr what is done.")] = False,
) -> None:
    """Print what is said in audio files, word by word as it is recognised."""
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    failed = False
    with Model(model, device=device, threads=threads) as opened:
        for file in files:
            try:
                _transcribe(opened, file, output, max_new_tokens, verbose)
            except PycrispasrError as error:
                _complain(str(error) if file in str(error) else f"{file}: {error}")
                failed = True
    if failed:
        raise typer.Exit(1)


def _transcribe(model: Model, file: str, output: Format, max_new_tokens: int, verbose: bool) -> None:
    source: str | BinaryIO = sys.stdin.buffer if file == "-" else file
    with model.session(max_new_tokens=max_new_tokens) as session:
        session.feed(audio.load(source))
        if output == Format.txt:
            try:
                _print_tokens(session)
            finally:
                print(flush=True)
        transcript = session.finish()
    if output == Format.json:
        print(formats.to_json(transcript, audio=file), flush=True)
    truncated = sum(segment.status == "truncated" for segment in transcript.segments)
    if truncated:
        _complain(
            f"{file}: the text of {truncated} of {len(transcript.segments)} segments was cut, see --max-new-tokens"
        )
    if verbose:
        seconds = transcript.timings.total
        _tell(f"{file}: {transcript.duration:.1f} s of audio in {seconds:.1f} s, {transcript.timings.tokens} tokens")


def _print_tokens(tokens: Iterable[Token]) -> None:
    """Prints text as it comes, without the whitespace at its ends."""
    held, begun = "", False
    for token in tokens:
        held += token.text
        ready = held.rstrip()
        if ready:
            print(ready if begun else ready.lstrip(), end="", flush=True)
            held, begun = held[len(ready) :], True


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A model, as for `transcribe -m`.")],
    as_json: AsJson = False,
) -> None:
    """Print a model's metadata, sizes and types, and the memory that it needs."""
    path = hub.resolve(model)
    with Model(path) as opened:
        sizes = opened.info
    metadata, groups = gguf_file.read(path)
    # 30 s of audio, the prompt's few tokens, and the default limit of new ones
    rows = audio.CHUNK_SECONDS * sizes.sample_rate / sizes.hop_length * sizes.chunk_rows / sizes.chunk_frames
    cache = round(rows + 16 + 512) * sizes.kv_bytes_per_token
    if as_json:
        content = {
            "path": str(path),
            "metadata": metadata,
            "sizes": dataclasses.asdict(sizes),
            "tensors": [dataclasses.asdict(group) for group in groups],
            "memory": {"weights": sizes.weight_bytes, "cache": cache},
        }
        print(json.dumps(content, ensure_ascii=False, indent=2))
        return
    print(f"{path}: {_bytes(sizes.file_bytes)}, {sizes.parameters / 1e6:,.1f} M parameters\n")
    for key, value in metadata.items():
        print(f"{key:<48} {value}")
    print(f"\n{'type':<8} {'tensors':>8} {'parameters':>16} {'size':>10}")
    for group in groups:
        print(f"{group.type:<8} {group.count:>8} {group.parameters:>16,} {_bytes(group.bytes):>10}")
    print(
        f"\nmemory: {_bytes(sizes.weight_bytes)} of weights, {_bytes(cache)} of cache for 30 s of audio and 512 tokens"
        ", and working buffers"
    )


@app.command()
def devices(as_json: AsJson = False) -> None:
    """List the devices that a model can run on."""
    found = list_devices()
    if as_json:
        print(json.dumps([dataclasses.asdict(device) for device in found], indent=2))
        return
    for device in found:
        memory = f"{_bytes(device.memory_free)} of {_bytes(device.memory_total)} free"
        print("  ".join(filter(None, [f"{device.name:<8}", device.description, memory, device.features])))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A folder with a checkpoint in Hugging Face's layout.")],
    out: Annotated[str, typer.Argument(help="The GGUF file to write.")],
    kind: Annotated[str, typer.Option("--type", help="f32, f16, bf16 or q8_0.")] = "f16",
) -> None:
    """Write a checkpoint as a GGUF file."""
    from pycrispasr.convert import convert as write

    def progress(done: int, total: int) -> None:
        print(f"\r{_bytes(done)} of {_bytes(total)}", end="", file=sys.stderr, flush=True)

    on_terminal = sys.stderr.isatty()
    write(source, out, type=kind, progress=progress if on_terminal else None)
    if on_terminal:
        print(file=sys.stderr)


def _bytes(count: int) -> str:
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _complain(message: str) -> None:
    _tell(f"pycrispasr: {message}")
