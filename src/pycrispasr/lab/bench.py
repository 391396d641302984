"""How fast the stages of a transcription are on this machine, and against CrispASR's library on the same file.

Every figure is the median of several runs. Where two runtimes are compared their runs take turns, so that what else the
machine does meanwhile slows both down.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.errors import UsageError
from pycrispasr.lab.stages import place_rows
from pycrispasr.models import hub
from pycrispasr.models.families import FAMILIES
from pycrispasr.models.foreign import check_vocabulary
from pycrispasr.runtimes import native

if TYPE_CHECKING:
    from pycrispasr.audio import Audio
    from pycrispasr.options import Precision

Floats = npt.NDArray[np.float32]
Times = dict[str, list[list[float]]]

STAGES = ("log-mel", "encoder", "adapter", "prefill", "token")
"""What is timed; "token" is one decoded token."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: The stage, or what they add up to.
        ours: Seconds of each run of this runtime.
        other: Seconds of each run of the other one; none when nothing is compared.
    """

    name: str
    ours: tuple[float, ...]
    other: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """Median of this runtime's runs."""
        return statistics.median(self.ours)

    @property
    def other_seconds(self) -> float | None:
        """Median of the other runtime's runs."""
        return statistics.median(self.other) if self.other else None

    @property
    def ratio(self) -> float | None:
        """How many times faster this runtime is."""
        return statistics.median(self.other) / self.seconds if self.other else None


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What was measured, and on what.

    Attributes:
        rows: The stages in the order of the data, then "30 s, 100 tokens" (of whatever length and number) and "load".
        audio_seconds: Length of the recording.
        audio_rows: Rows that the encoder made of it.
        prompt_tokens: Rows that prefill took.
        tokens: Tokens that the whole clip's line counts.
        against: The other runtime, or None.
        model: The file's name.
        machine: Processor, threads, kernels and versions.
        peak_bytes: The process's largest memory until this runtime had run, before the other one began; None where the
            system does not tell.
        file_bytes: The model file.
    """

    rows: tuple[Row, ...]
    audio_seconds: float
    audio_rows: int
    prompt_tokens: int
    tokens: int
    against: str | None
    model: str
    machine: Mapping[str, Any]
    peak_bytes: int | None
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        values = dataclasses.asdict(self)
        for row, plain in zip(self.rows, values["rows"], strict=True):
            plain.update(seconds=row.seconds, other_seconds=row.other_seconds, ratio=row.ratio)
        return values


class Side:
    """The stages of one runtime. Each call does the whole stage again, and tells its seconds where it does more."""

    log_mel: Callable[[], object]
    encoder: Callable[[], object]
    adapter: Callable[[], object]
    prefill: Callable[[], object]
    token: Callable[[], object]


class Ours(Side):
    """This runtime's. `kernels`: see `pcr_model_params`."""

    def __init__(
        self, path: Path, samples: Floats, threads: int, *, precision: str = "auto", kernels: str = "auto"
    ) -> None:
        self.model = native.NativeModel(path, precision=precision, kernels=kernels)
        session = native.NativeSession(self.model, threads=threads, max_new_tokens=2**20)
        mel = session.log_mel(samples)
        rows = session.encode(mel)
        adapted = session.adapt(rows)
        # Prefill and single tokens as they are in a transcription: a token is chosen, not only multiplied.
        decoding = native.NativeSession(self.model, threads=threads, max_new_tokens=2**20)

        def prefill() -> float:
            next(decoding.decode_clip(samples), None)
            result = decoding.result()
            return float(result["prefill"] + result["decode"])

        def next_token() -> float:
            for _ in range(2):
                before = decoding.result()["decode"]
                decoding.next()
                seconds = float(decoding.result()["decode"] - before)
                if seconds > 0:  # else the text was complete before: hear it again
                    return seconds
                prefill()
            # Nothing is said in this audio: a token behind its prompt, with all of its logits.
            session.decode(embeddings)
            return _time(lambda: session.decode_step([0], [0]))

        prefill()
        self.n_rows = int(decoding.result()["n_rows"])
        self.prompt = self.model.prompt(self.n_rows)
        embeddings = place_rows(self.prompt, adapted[: self.n_rows], session.embed)
        self.log_mel = lambda: session.log_mel(samples)
        self.encoder = lambda: session.encode(mel)
        self.adapter = lambda: session.adapt(rows)
        self.prefill = prefill
        self.token = next_token


class Crispasr(Side):
    """CrispASR's library, which takes so many tokens at most."""

    def __init__(self, path: Path, samples: Floats, threads: int, tokens: int) -> None:
        from pycrispasr.runtimes.crispasr_stages import Stages

        check_vocabulary(path)
        model = native.NativeModel(path)
        stages = Stages(path, FAMILIES[model.info()["architecture"]].crispasr, threads)
        # Where its encoder takes samples, their spectrogram is in the encoder's time, too.
        sound = samples if stages.encodes_samples else stages.log_mel(samples)
        rows = stages.encode(sound)
        adapted = stages.adapt(rows)
        prompt = model.prompt(len(adapted))
        embeddings = place_rows(prompt, adapted, lambda ids: stages.embed(ids, adapted.shape[1]))
        one = embeddings[:1]
        past = [len(prompt)]

        def next_token() -> None:
            stages.logits(one, past[0])
            past[0] += 1

        stages.start(len(prompt) + tokens + 8)
        self.log_mel = lambda: stages.log_mel(samples)
        self.encoder = lambda: stages.encode(sound)
        self.adapter = lambda: stages.adapt(rows)
        self.prefill = lambda: stages.logits(embeddings, 0)
        self.token = next_token
        self.close = stages.close


def bench(
    model: str | os.PathLike[str],
    recording: Audio | None = None,
    *,
    sample_rate: float | None = None,
    against: str | None = None,
    threads: int | None = None,
    precision: Precision = "auto",
    runs: int = 3,
    tokens: int = 100,
    tell: Callable[[str], object] = lambda _: None,
) -> Report:
    """Times the stages of a transcription.

    Args:
        model: The GGUF file, or a name that `Model` takes.
        recording: What is transcribed, 30 seconds of it at most. None: 30 seconds of noise.
        sample_rate: Samples per second of an array.
        against: "crispasr" to time libcrispasr on the same file (extra `[crispasr]`), or None.
        threads: See `Model`. The other runtime gets as many.
        precision: See `Model`.
        runs: Of each stage; tokens are timed one by one, at least 8 of them in each run.
        tokens: How many the line of the whole clip counts.
        tell: Is told what is measured next.

    Raises:
        UsageError: `against` is nothing that can be compared, or a number is not positive.
        PycrispasrError: What `Model` and `audio.load` raise.
    """
    if against not in (None, "crispasr"):
        raise UsageError(f"nothing can be compared with {against!r}: give 'crispasr'")
    for name, value in (("runs", runs), ("tokens", tokens), ("threads", 1 if threads is None else threads)):
        if value < 1:
            raise UsageError(f"{name} cannot be {value}: it must be at least 1")
    path = hub.resolve(model)
    if recording is None:
        samples = noise()
    else:
        samples = audio.load(recording, sample_rate=sample_rate)[: round(audio.CHUNK_SECONDS * audio.SAMPLE_RATE)]
    threads = threads or native.usable_cores()

    tell(f"loading {path.name}")
    loads = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        native.NativeModel(path, precision=precision)
        loads.append(time.perf_counter() - start)
    tell("this runtime, once before it counts")
    ours = Ours(path, samples, threads, precision=precision)
    peak = _peak_bytes()
    sides: list[Side] = [ours]
    if against:
        tell(f"{against}, once before it counts: this takes a while")
        sides.append(Crispasr(path, samples, threads, (tokens + 8) * runs))
    times = with_sums(measure(sides, runs, tell), tokens)
    seconds = len(samples) / audio.SAMPLE_RATE
    names = {"clip": f"{seconds:.3g} s, {tokens} tokens"}
    lines = (*STAGES[:3], "encoder + adapter", *STAGES[3:], "clip")
    rows = [Row(names.get(line, line), *map(tuple, times[line])) for line in lines]
    rows.append(Row("second load", tuple(loads[1:])))
    return Report(
        rows=tuple(rows),
        audio_seconds=seconds,
        audio_rows=ours.n_rows,
        prompt_tokens=len(ours.prompt),
        tokens=tokens,
        against=against,
        model=path.name,
        machine=machine(threads, precision),
        peak_bytes=peak,
        file_bytes=path.stat().st_size,
    )


def measure(sides: list[Side], runs: int, tell: Callable[[str], object] = lambda _: None) -> Times:
    """Seconds of each stage, by side and run; runs take turns."""
    times: Times = {stage: [[] for _ in sides] for stage in STAGES}
    for run in range(runs):
        for stage in STAGES:
            tell(f"run {run + 1} of {runs}: {stage}")
            for side, kept in zip(sides, times[stage], strict=True):
                call = getattr(side, stage.replace("-", "_"))
                many = {"token": 8, "log-mel": 5}.get(stage, 1)
                kept.append(statistics.median(_time(call) for _ in range(many)))
    return times


def with_sums(times: Times, tokens: int) -> Times:
    """With "encoder + adapter", and "clip": every stage once and so many tokens."""

    def total(counts: Mapping[str, int]) -> list[list[float]]:
        return [
            [sum(count * times[stage][side][run] for stage, count in counts.items()) for run in range(len(kept))]
            for side, kept in enumerate(times["token"])
        ]

    return times | {
        "encoder + adapter": total({"encoder": 1, "adapter": 1}),
        "clip": total(dict.fromkeys(STAGES, 1) | {"token": tokens}),
    }


def noise(seconds: float = 30) -> Floats:
    """Samples that sound like nothing, always the same."""
    return (0.05 * np.random.default_rng(0).standard_normal(round(seconds * audio.SAMPLE_RATE))).astype(np.float32)


def machine(threads: int, precision: Precision = "auto") -> dict[str, Any]:
    """What the figures were measured on."""
    description = next((device["description"] for device in native.devices() if device["name"] == "cpu"), "")
    return {
        "processor": description.strip() or platform.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "kernels": native.kernels()[-1],
        "products": native.kernels_by_product(precision=precision),
        "pycrispasr": native.versions()[0],
        "ggml": native.versions()[1],
    }


def table(report: Report) -> str:
    """The report as aligned text."""
    about = report.machine
    lines = [
        f"{report.model} on {about['processor']}, {about['threads']} threads, kernels {about['kernels']}",
        *native.kernel_lines(about["products"]),
        f"{report.audio_seconds:.3g} s of audio: {report.audio_rows} audio rows, {report.prompt_tokens} prompt tokens",
        "",
        f"{'stage':<22} {'seconds':>9}" + (f" {report.against:>9} {'ratio':>7}" if report.against else ""),
    ]
    for row in report.rows:
        line = f"{row.name:<22} {row.seconds:>9.4f}"
        if row.other_seconds is not None:
            line += f" {row.other_seconds:>9.4f} {row.ratio:>6.1f}x"
        lines.append(line)
    if report.peak_bytes is not None:
        above = (report.peak_bytes - report.file_bytes) / 1e6
        lines.append(f"{'peak memory':<22} {report.peak_bytes / 1e6:>6.0f} MB, {above:+.0f} MB above the file")
    return "\n".join(lines)


def plot(report: Report, path: Path) -> None:
    """Draws the stages' seconds, both runtimes beside each other (extra `[plot]`)."""
    from pycrispasr.errors import InstallationError

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InstallationError("plots need matplotlib: install it with `pip install 'pycrispasr[plot]'`") from error
    rows = [row for row in report.rows if row.name not in ("second load", "encoder + adapter")]
    figure = Figure(figsize=(8, 0.6 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    if report.against:
        axes.barh(places + 0.2, [row.other_seconds or 0 for row in rows], 0.4, color="0.7", label=report.against)
    bars = axes.barh(places - 0.2, [row.seconds for row in rows], 0.4, color="tab:blue", label="pycrispasr")
    axes.bar_label(bars, [f"{row.seconds:.3g} s" + (f", {row.ratio:.1f}x" if row.ratio else "") for row in rows],
                   padding=4, fontsize=8)  # fmt: skip
    axes.set_yticks(places, [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel("seconds (median)")
    axes.set_title(f"{report.model}, {report.machine['processor']}, {report.machine['threads']} threads", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    told = call()
    return told if isinstance(told, float) else time.perf_counter() - start


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
