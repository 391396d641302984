"""Commands for model files: `info`, `convert`, `quantize`, `imatrix`, `align-heads`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from pycrispasr import audio
from pycrispasr.cli.common import MAKE, MEASURE, AsJson, Threads, TokenLimit, app, bar, bytes_text, printable, writing
from pycrispasr.decoding import word_times
from pycrispasr.model import Model, ModelInfo
from pycrispasr.models import gguf_file, hub
from pycrispasr.text import json_text

Kind = Annotated[str, typer.Option("--type", help="f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, ...")]
AllMatrices = Annotated[
    bool, typer.Option("--all-matrices", help="Quantise every matrix, not only the decoder's attention and FFN.")
]


@app.command(rich_help_panel=MEASURE)
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
        with bar(str(path)) as progress:
            gguf_file.check(path, progress=progress)
    # 30 s of audio, the prompt's few tokens, and the default limit of new ones
    rows = audio.CHUNK_SECONDS * sizes.sample_rate / sizes.hop_length * sizes.chunk_rows / sizes.chunk_frames
    cache = round(rows + 16 + 512) * sizes.kv_bytes_per_token
    buffers = _working_bytes(sizes, round(rows + 16))
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
        print(json_text(content, indent=2))
        return
    print(f"{printable(str(path))}: {bytes_text(sizes.file_bytes)}, {sizes.parameters / 1e6:,.1f} M parameters\n")
    for key, value in metadata.items():
        print(printable(f"{key:<48} {value}"))
    if each:
        print(f"\n{'tensor':<32} {'type':<8} {'shape':<20} {'bytes':>14}")
        for tensor in tensors:
            print(printable(f"{tensor.name:<32} {tensor.type:<8} {tensor.shape!s:<20} {tensor.bytes:>14,}"))
    print(f"\n{'type':<8} {'tensors':>8} {'parameters':>16} {'size':>10}")
    for group in groups:
        print(f"{group.type:<8} {group.count:>8} {group.parameters:>16,} {bytes_text(group.bytes):>10}")
    print(
        f"\nmemory: {bytes_text(sizes.weight_bytes)} of weights, {bytes_text(cache)} of cache for 30 s of audio and "
        f"512 tokens, about {bytes_text(buffers)} of working buffers"
    )
    print(f"checked: every tensor is there, in a fitting shape and type{', and all values are finite' * check}")


def _working_bytes(sizes: ModelInfo, prompt_rows: int) -> int:
    """About what a session needs besides weights and cache: mostly the convolutions of a window of audio."""
    channels = sizes.encoder_channels
    bins = sizes.chunk_frames * sizes.n_mels * sizes.window_rows // sizes.chunk_rows  # of the window's log-mel
    first, second = channels * bins // 4, channels * bins // 16  # values that the first two convolutions make
    patches = 9 * second  # what the second one is multiplied with, in F32 and rounded
    prompt = 3 * prompt_rows * sizes.llm_ffn
    return int(4 * (first + second + patches + patches // 2 + prompt))


@app.command(rich_help_panel=MAKE)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A checkpoint: a folder, or a Hugging Face repository as org/name.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The GGUF file to write.")],
    kind: Kind = "f16",
    all_matrices: AllMatrices = False,
) -> None:
    """Write a checkpoint as a GGUF file."""
    from pycrispasr.models.convert import convert as write

    with writing(out) as progress:
        write(source, out, type=kind, all_matrices=all_matrices, progress=progress)


@app.command(rich_help_panel=MAKE)
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
    from pycrispasr.models.quantize import quantize as write

    overrides = []
    for text in tensor or ():
        pattern, equals, override = text.rpartition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} has no type: write it as REGEX=TYPE", param_hint="--tensor")
        overrides.append((pattern, override))
    path = hub.resolve(source)
    with writing(out) as progress:
        write(
            path, out, type=kind, overrides=overrides, importance=imatrix, all_matrices=all_matrices,
            requantize=requantize, progress=progress,
        )  # fmt: skip


@app.command(rich_help_panel=MAKE)
def imatrix(
    model: Annotated[str, typer.Argument(help="The model to be quantised, as for `transcribe -m`.")],
    files: Annotated[list[str], typer.Argument(metavar="AUDIO...", help="Speech like that which it will hear.")],
    out: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    threads: Threads = None,
    max_new_tokens: TokenLimit = None,
) -> None:
    """Measure on real audio which columns of a model's matrices matter most, for `quantize --imatrix`."""
    from pycrispasr.models.imatrix import collect

    with writing(out) as progress:
        collect(model, files, out, threads=threads, max_new_tokens=max_new_tokens, progress=progress)


@app.command("align-heads", rich_help_panel=MAKE)
def align_heads(
    model: Annotated[str, typer.Argument(help="A model, as for `transcribe -m`.")],
    files: Annotated[
        list[str], typer.Argument(metavar="AUDIO TEXT...", help="Recordings, each followed by a file with its text.")
    ],
    out: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write: MODEL.heads.json.")
    ] = None,
    threads: Threads = None,
    max_new_tokens: TokenLimit = None,
) -> None:
    """Find which of a model's heads tell when words are said, for `transcribe --word-timestamps`."""
    from pycrispasr.models.align_heads import calibrate

    if len(files) % 2:
        raise typer.BadParameter(f"{files[-1]!r} has no text: name a text file after each recording")
    recordings = []
    for recording, text in zip(files[::2], files[1::2], strict=True):
        try:
            recordings.append((recording, Path(text).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{text!r} cannot be read as text ({error})") from None
    path = hub.resolve(model)
    target = str(word_times.side_file(path)) if out is None else out
    with writing(target) as progress:
        found = calibrate(path, recordings, target, threads=threads, max_new_tokens=max_new_tokens, progress=progress)
    print(f"{found.words} of {found.of} words were understood")
    print(f"{'layer':>5} {'head':>5} {'score':>6}")
    for (layer, head), score in zip(found.heads, found.scores, strict=True):
        print(f"{layer:>5} {head:>5} {score:>6.3f}")
