"""The command line. Text goes to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import io
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from pycrispasr import __version__, _native, audio, formats, gguf_file, hub
from pycrispasr.errors import PycrispasrError
from pycrispasr.events import Event, Final
from pycrispasr.model import Model, ModelInfo
from pycrispasr.model import devices as list_devices
from pycrispasr.result import Token, Transcript

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


class Runtime(str, enum.Enum):
    """What computes."""

    auto = "auto"
    pycrispasr = "pycrispasr"
    crispasr = "crispasr"


class Precision(str, enum.Enum):
    """What products with the model's matrices are computed in."""

    auto = "auto"
    f32 = "f32"
    bf16 = "bf16"


Device = Annotated[str, typer.Option(help='"auto", or a name that `pycrispasr devices` lists.')]
ComputedIn = Annotated[
    Precision, typer.Option("--precision", help="f32: nothing is rounded; bf16; auto: the fastest with the same texts.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kind = Annotated[str, typer.Option("--type", help="f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, ...")]
AllMatrices = Annotated[
    bool, typer.Option("--all-matrices", help="Quantise every matrix, not only the decoder's attention and FFN.")
]


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
    if _native.TRACE:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(message)s")
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
    runtime: Annotated[
        Runtime, typer.Option("--runtime", "-r", help="crispasr: CrispASR's library, which runs other models too.")
    ] = Runtime.auto,
    precision: ComputedIn = Precision.auto,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each physical core.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where the text of 30 s of audio is cut.")] = 512,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell on stderr what is done.")] = False,
) -> None:
    """Print what is said in audio files, word by word as it is recognised."""
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    failed = False
    with Model(model, device=device, threads=threads, precision=precision.value, runtime=runtime.value) as opened:
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
    if model.runtime == "crispasr":
        transcript = model.transcribe(source, max_new_tokens=max_new_tokens)
        if output == Format.txt:
            print(formats.to_txt(transcript), flush=True)
    else:
        with model._feed(source, None, max_new_tokens) as session:
            if output == Format.txt:
                try:
                    _print_tokens(session)
                finally:
                    print(flush=True)
            transcript = session.finish()
    if output == Format.json:
        print(formats.to_json(transcript, audio=file), flush=True)
    _complain_about(file, transcript)
    if verbose:
        seconds = transcript.timings.total
        _tell(f"{file}: {transcript.duration:.1f} s of audio in {seconds:.1f} s, {transcript.timings.tokens} tokens")


def _complain_about(name: str, transcript: Transcript) -> None:
    """Says on stderr what is not as it should be."""
    truncated = sum(segment.status == "truncated" for segment in transcript.segments)
    if truncated:
        _complain(
            f"{name}: the text of {truncated} of {len(transcript.segments)} segments was cut, see --max-new-tokens"
        )
    looped = sum(segment.status == "looped" for segment in transcript.segments)
    if looped:
        _complain(
            f"{name}: in {looped} of {len(transcript.segments)} segments one phrase came again and again; stopped"
        )


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
            _complain("there is no microphone")
        raise typer.Exit(0 if found else 1)
    if source not in (None, "-"):
        raise typer.BadParameter(f"{source!r} is no source: give - for standard input, or nothing for a microphone")
    from_pipe = source == "-"
    number = int(microphone) if microphone and microphone.isdecimal() else microphone
    rate = audio.check_rate(sample_rate) if from_pipe else listening.microphone_rate(number)
    with (
        Model(model, device=device, threads=threads, precision=precision.value, runtime="pycrispasr") as opened,
        opened.session(
            vad="on" if (vad if vad is not None else not from_pipe) else "off",
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
                _tell("listening; Ctrl-C ends it")
            listening.until_interrupted(session, lambda: _print_events(session.events(), as_json=as_json))
        transcript = session.finish()
        _complain_about("live", transcript)
        if session.lost:
            _complain(f"live: {session.lost:.1f} s of audio were lost: this machine is too slow for the model")


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
            _print_tokens(token for event in events if isinstance(event, Final) for token in event.segment.tokens)
        finally:
            print(flush=True)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A model, as for `transcribe -m`.")],
    each: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read all weights, and fail if one is no finite number.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a model's file; print its metadata, sizes and types, and the memory that it needs."""
    path = hub.resolve(model)
    with Model(path, runtime="pycrispasr") as opened:  # fails where a tensor is missing or of a wrong shape or type
        sizes = opened.info
    metadata, groups = gguf_file.read(path)
    _, tensors = gguf_file.load(path)
    if check:
        with _bar(str(path)) as progress:
            gguf_file.check(path, progress=progress)
    # 30 s of audio, the prompt's few tokens, and the default limit of new ones
    rows = audio.CHUNK_SECONDS * sizes.sample_rate / sizes.hop_length * sizes.chunk_rows / sizes.chunk_frames
    cache = round(rows + 16 + 512) * sizes.kv_bytes_per_token
    buffers = _working_bytes(sizes, metadata, round(rows + 16))
    if as_json:
        content = {
            "path": str(path),
            "metadata": metadata,
            "sizes": dataclasses.asdict(sizes),
            "types": [dataclasses.asdict(group) for group in groups],
            "tensors": [dataclasses.asdict(tensor) for tensor in tensors],
            "memory": {"weights": sizes.weight_bytes, "cache": cache, "buffers": buffers},
            "checked": {"tensors": True, "finite": check or None},
        }
        print(json.dumps(content, ensure_ascii=False, indent=2))
        return
    print(f"{path}: {_bytes(sizes.file_bytes)}, {sizes.parameters / 1e6:,.1f} M parameters\n")
    for key, value in metadata.items():
        print(f"{key:<48} {value}")
    if each:
        print(f"\n{'tensor':<32} {'type':<8} {'shape':<20} {'bytes':>14}")
        for tensor in tensors:
            print(f"{tensor.name:<32} {tensor.type:<8} {tensor.shape!s:<20} {tensor.bytes:>14,}")
    print(f"\n{'type':<8} {'tensors':>8} {'parameters':>16} {'size':>10}")
    for group in groups:
        print(f"{group.type:<8} {group.count:>8} {group.parameters:>16,} {_bytes(group.bytes):>10}")
    print(
        f"\nmemory: {_bytes(sizes.weight_bytes)} of weights, {_bytes(cache)} of cache for 30 s of audio and 512 tokens"
        f", about {_bytes(buffers)} of working buffers"
    )
    print(f"checked: every tensor is there, in a fitting shape and type{', and all values are finite' * check}")


def _working_bytes(sizes: ModelInfo, metadata: Mapping[str, Any], prompt_rows: int) -> int:
    """About what a session needs besides weights and cache: mostly the convolutions of a window of audio."""
    channels = metadata["moss_transcribe.enc.downsample_hidden_size"]
    bins = sizes.chunk_frames * sizes.n_mels * sizes.window_rows // sizes.chunk_rows  # of the window's log-mel
    first, second = channels * bins // 4, channels * bins // 16  # values that the first two convolutions make
    patches = 9 * second  # what the second one is multiplied with, in F32 and rounded
    prompt = 3 * prompt_rows * metadata["moss_transcribe.llm.intermediate_size"]
    return int(4 * (first + second + patches + patches // 2 + prompt))


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
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A checkpoint: a folder, or a Hugging Face repository as org/name.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The GGUF file to write.")],
    kind: Kind = "f16",
    all_matrices: AllMatrices = False,
) -> None:
    """Write a checkpoint as a GGUF file."""
    from pycrispasr.convert import convert as write

    with _writing(out) as progress:
        write(source, out, type=kind, all_matrices=all_matrices, progress=progress)


@app.command()
def quantize(
    source: Annotated[str, typer.Argument(metavar="IN", help="A model, as for `transcribe -m`.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The GGUF file to write.")],
    kind: Kind,
    tensor: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TYPE", help="A type of their own for the matrices in whose name REGEX is found."),
    ] = None,
    imatrix: Annotated[str | None, typer.Option(metavar="FILE", help="What `pycrispasr imatrix` wrote.")] = None,
    all_matrices: AllMatrices = False,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Allow a second rounding of what is quantised already.")
    ] = False,
) -> None:
    """Write a model with its matrices in another type."""
    from pycrispasr.quantize import quantize as write

    overrides = []
    for text in tensor or ():
        pattern, equals, override = text.rpartition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} has no type: write it as REGEX=TYPE", param_hint="--tensor")
        overrides.append((pattern, override))
    path = hub.resolve(source)
    with _writing(out) as progress:
        write(
            path, out, type=kind, overrides=overrides, importance=imatrix, all_matrices=all_matrices,
            requantize=requantize, progress=progress,
        )  # fmt: skip


@app.command()
def imatrix(
    model: Annotated[str, typer.Argument(help="The model to be quantised, as for `transcribe -m`.")],
    files: Annotated[list[str], typer.Argument(metavar="AUDIO...", help="Speech like that which it will hear.")],
    out: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each physical core.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where the text of 30 s of audio is cut.")] = 512,
) -> None:
    """Measure on real audio which columns of a model's matrices matter most, for `quantize --imatrix`."""
    from pycrispasr.imatrix import collect

    with _writing(out) as progress:
        collect(model, files, out, threads=threads, max_new_tokens=max_new_tokens, progress=progress)


@contextlib.contextmanager
def _writing(out: str) -> Iterator[Callable[[float, float], object] | None]:
    """Around the making of a file: what shows its progress, a bar on stderr or nothing where that is no terminal.

    A signal to stop goes the way of an exception, so that no unfinished file stays.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="pycrispasr: %(message)s")
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with _bar(out) as progress:
        yield progress
    _tell(f"{out}: {_bytes(Path(out).stat().st_size)}")


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[float, float], object] | None]:
    """What shows (done, total) on stderr, or None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@app.command()
def diff(
    model: Annotated[str, typer.Argument(help='A GGUF file, or a name such as "tiny".')],
    recording: Annotated[str, typer.Argument(metavar="AUDIO", help="What to transcribe; 30 s of it at most.")],
    against: Annotated[
        str,
        typer.Option(
            help='"crispasr", "reference" (PyTorch on the original checkpoint), "f32" (this runtime, nothing rounded), '
            "or another GGUF file."
        ),
    ],
    checkpoint: Annotated[str | None, typer.Option(help='The checkpoint\'s folder, for "reference".')] = None,
    precision: ComputedIn = Precision.auto,
    tolerance: Annotated[
        float | None, typer.Option(help="What 1 - cosine of a row may be; by default by type.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where both transcripts are cut.")] = 100,
    picture: Annotated[str | None, typer.Option("--plot", metavar="FILE.png", help="Draw every row too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare every stage with another runtime or another file; exit status 1 when one differs too much."""
    from pycrispasr import diff as compare

    stages = compare.diff(
        model,
        recording,
        against,
        checkpoint=checkpoint,
        precision=precision.value,
        tolerance=tolerance,
        max_new_tokens=max_new_tokens,
    )
    print(json.dumps(compare.as_json(stages), indent=2) if as_json else compare.table(stages))
    if picture:
        compare.plot(stages, Path(picture))
    if not all(stage.passed for stage in stages):
        raise typer.Exit(1)


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A GGUF file or a name. None: a file of random weights in the published 2B model's shapes."
        ),
    ] = None,
    recording: Annotated[str | None, typer.Argument(metavar="AUDIO", help="By default 30 s of noise.")] = None,
    against: Annotated[str | None, typer.Option(help='"crispasr": time CrispASR\'s library on the same file.')] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each physical core.")] = None,
    precision: ComputedIn = Precision.auto,
    runs: Annotated[int, typer.Option(min=1, help="Of each stage: medians are shown.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that the line of the whole clip counts.")] = 100,
    picture: Annotated[str | None, typer.Option("--plot", metavar="FILE.png", help="Draw the table too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time every stage of a transcription on this machine."""
    from pycrispasr import bench as benchmark

    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            from pycrispasr import random_model

            _tell("making a file of the 2B model's shapes (2.8 GB, for this run only)")
            model = os.path.join(folder, "random-2b-q4_k.gguf")
            random_model.generate(model, preset="2b", type="q4_k")
        report = benchmark.bench(
            model, recording, against=against, threads=threads, precision=precision.value, runs=runs, tokens=tokens,
            tell=_tell if sys.stderr.isatty() else lambda _: None,
        )  # fmt: skip
    print(json.dumps(report.to_dict(), indent=2) if as_json else benchmark.table(report))
    if picture:
        benchmark.plot(report, Path(picture))


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
