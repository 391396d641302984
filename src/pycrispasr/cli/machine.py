"""Commands that tell what runs here, how exactly and how fast: `devices`, `diff`, `bench`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pycrispasr.cli.common import MEASURE, AsJson, ComputedIn, Precision, Threads, app, bytes_text, is_terminal, tell
from pycrispasr.model import backends
from pycrispasr.model import devices as list_devices


@app.command(rich_help_panel=MEASURE)
def devices(as_json: AsJson = False) -> None:
    """List the devices that a model can run on, the one that "auto" picks first, and why others are missing."""
    from pycrispasr.runtimes.native import kernel_lines, kernels_by_product

    found, kinds, products = list_devices(), backends(), kernels_by_product()
    if as_json:
        listed = [dataclasses.asdict(device) for device in found]
        missing = [dataclasses.asdict(kind) for kind in kinds]
        print(json.dumps({"devices": listed, "backends": missing, "kernels": products}, indent=2))
        return
    for device in found:
        memory = f"{bytes_text(device.memory_free)} of {bytes_text(device.memory_total)} free"
        print("  ".join(filter(None, [f"{device.name:<8}", device.description, memory, device.features])))
        for line in kernel_lines(products) if device.name == "cpu" else ():
            print(f"{'':<8}  {line}")
    for kind in kinds:
        if kind.missing:
            print(f"{kind.name:<8}  {kind.missing}")


@app.command(rich_help_panel=MEASURE)
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
    from pycrispasr.lab import diff as compare

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


@app.command(rich_help_panel=MEASURE)
def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A GGUF file or a name. None: a file of random weights in the published 2B model's shapes."
        ),
    ] = None,
    recording: Annotated[str | None, typer.Argument(metavar="AUDIO", help="By default 30 s of noise.")] = None,
    against: Annotated[str | None, typer.Option(help='"crispasr": time CrispASR\'s library on the same file.')] = None,
    threads: Threads = None,
    precision: ComputedIn = Precision.auto,
    runs: Annotated[int, typer.Option(min=1, help="Of each stage: medians are shown.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that the line of the whole clip counts.")] = 100,
    picture: Annotated[str | None, typer.Option("--plot", metavar="FILE.png", help="Draw the table too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time every stage of a transcription on this machine."""
    from pycrispasr.lab import bench as benchmark

    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            from pycrispasr.models import random_model

            tell("making a file of the 2B model's shapes (2.8 GB, for this run only)")
            model = os.path.join(folder, "random-2b-q4_k.gguf")
            random_model.generate(model, preset="2b", type="q4_k")
        report = benchmark.bench(
            model, recording, against=against, threads=threads, precision=precision.value, runs=runs, tokens=tokens,
            tell=tell if is_terminal(sys.stderr) else lambda _: None,
        )  # fmt: skip
    print(json.dumps(report.to_dict(), indent=2) if as_json else benchmark.table(report))
    if picture:
        benchmark.plot(report, Path(picture))
