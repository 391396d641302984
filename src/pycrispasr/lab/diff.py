"""Where two ways to compute a model differ: every stage of the runtime against another runtime or another file.

The other side computes its own chain of stages, from the samples to the tokens. Ours then computes each stage from the
other's input to it, so that a difference shows in the stage where it arises and is not counted again behind it. The
tokens are each side's own from beginning to end.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.errors import AudioError
from pycrispasr.lab.stages import Chain, Floats, crispasr_chain, native_chain
from pycrispasr.models import gguf_file, hub

if TYPE_CHECKING:
    from pycrispasr.audio import Audio
    from pycrispasr.options import Precision


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """How far one stage differs.

    Attributes:
        name: The stage.
        worst: Smallest cosine of a row with the other side's; for tokens, the share that is equal from the beginning.
        mean: Mean cosine of the rows.
        largest: Largest difference of two values.
        tolerance: What `1 - worst` may be.
        cosines: Of all rows, `[rows]`.
    """

    name: str
    worst: float
    mean: float
    largest: float
    tolerance: float
    cosines: npt.NDArray[np.float64]

    @property
    def passed(self) -> bool:
        """True when the stage differs no more than it may."""
        return 1 - self.worst <= self.tolerance


def compare(ours: Chain, other: Chain, tolerance: float) -> list[Stage]:
    """Stage by stage, in the order in which data flows; those that a side cannot tell are left out."""
    pairs: list[tuple[str, Floats | None, Floats | None]] = [
        ("log-mel", ours.log_mel, other.log_mel),
        ("encoder layer 0", ours.encoder_first, other.encoder_first),
        ("encoder", ours.encoder, other.encoder),
        ("adapter", ours.adapter, other.adapter),
        ("prompt embeddings", ours.embeddings, other.embeddings),
        *((f"decoder layer {n - 1}", rows, other.layers.get(n)) for n, rows in ours.layers.items()),
        ("first logits", ours.logits, other.logits),
    ]
    stages = [_stage(name, a, b, tolerance) for name, a, b in pairs if a is not None and b is not None]
    # Other runtimes write loops on to the limit.
    heard = other.tokens[: len(ours.tokens)] if ours.looped and not other.looped else other.tokens
    return [
        *stages,
        _tokens("first token", ours.tokens[:1], other.tokens[:1]),
        _tokens("whole transcript", ours.tokens, heard),
    ]


def diff(
    model: str | os.PathLike[str],
    recording: Audio,
    against: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    precision: Precision = "auto",
    tolerance: float | None = None,
    max_new_tokens: int = 100,
    sample_rate: float | None = None,
) -> list[Stage]:
    """Compares the runtime on a file with something else that computes the same.

    Args:
        model: The GGUF file, or a name that `Model` takes.
        recording: What to transcribe: see `pycrispasr.audio.load`. At most 30 seconds of it are used.
        against: "crispasr": libcrispasr on the same file (extra `[crispasr]`). "reference": PyTorch and transformers on
            the checkpoint (extra `[reference]`). "f32": this runtime on the same file with nothing rounded, which shows
            what `precision` costs. Otherwise another GGUF file, or its name.
        checkpoint: The folder or Hugging Face repository of the checkpoint, for "reference".
        precision: What the compared runtime computes in: see `Model`.
        tolerance: What `1 - cosine` of a row may be. None: by the matrices' types, see `default_tolerance`.
        max_new_tokens: Where both transcripts are cut.
        sample_rate: Samples per second of an array.

    Raises:
        PycrispasrError: What `Model`, `audio.load` and the other side raise.
    """
    samples = audio.load(recording, sample_rate=sample_rate)[: round(audio.CHUNK_SECONDS * audio.SAMPLE_RATE)]
    if len(samples) < audio.SAMPLE_RATE and against in ("crispasr", "reference"):
        raise AudioError("clips under one second are padded, and not by all in the same way: use a longer one")
    path = hub.resolve(model)
    files = [path]
    if against == "crispasr":
        other = crispasr_chain(path, samples, max_new_tokens=max_new_tokens)
    elif against == "reference":
        from pycrispasr.lab import reference

        other = reference.chain(path, checkpoint, samples, max_new_tokens=max_new_tokens)
    elif against == "f32":
        other = native_chain(path, samples, max_new_tokens=max_new_tokens, precision="f32")
    else:
        files.append(hub.resolve(against))
        other = native_chain(files[1], samples, max_new_tokens=max_new_tokens, precision=precision)
    if tolerance is None:
        tolerance = default_tolerance(files, same_weights=against in ("crispasr", "f32"))
    ours = native_chain(path, samples, max_new_tokens=max_new_tokens, precision=precision, given=other)
    return compare(ours, other, tolerance)


def default_tolerance(paths: list[Path], *, same_weights: bool) -> float:
    """What `1 - cosine` of a row may be, by the coarsest type of the files' matrices.

    Two runtimes on the same weights differ by the rounding of what is multiplied with them; other weights differ by
    their own rounding, too.
    """
    kinds = {group.type for path in paths for group in gguf_file.read(path)[1]}
    floats = kinds <= {"F32", "F16", "BF16"}
    if same_weights:
        return 1e-4 if floats else 1e-3
    return 1e-3 if floats else 5e-3 if kinds <= {"F32", "F16", "BF16", "Q8_0"} else 5e-2


def table(stages: list[Stage]) -> str:
    """The stages as aligned text, a line each."""
    lines = [f"{'stage':<18} {'worst row':>10} {'mean row':>10} {'largest':>10}  {'allowed':>8}  verdict"]
    for stage in stages:
        verdict = "ok" if stage.passed else "DIFFERS"
        if stage.cosines.size:
            numbers = f"{stage.worst:>10.6f} {stage.mean:>10.6f} {stage.largest:>10.2g}  {stage.tolerance:>8.0e}"
        else:
            numbers = f"{stage.worst:>9.0%}{' equal':<23}  {'100%':>8}"
        lines.append(f"{stage.name:<18} {numbers}  {verdict}")
    return "\n".join(lines)


def as_json(stages: list[Stage]) -> list[Mapping[str, object]]:
    """The stages as plain values."""
    names = ("name", "worst", "mean", "largest", "tolerance", "passed")
    return [{name: getattr(stage, name) for name in names} for stage in stages]


def plot(stages: list[Stage], path: Path) -> None:
    """Draws `1 - cosine` of every row, a panel for each stage that has several (extra `[plot]`)."""
    from pycrispasr.errors import InstallationError

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InstallationError("plots need matplotlib: install it with `pip install 'pycrispasr[plot]'`") from error
    shown = [stage for stage in stages if stage.cosines.size > 1]
    figure = Figure(figsize=(9, 1.6 * len(shown)), layout="constrained")
    for axes, stage in zip(np.atleast_1d(figure.subplots(len(shown), 1)), shown, strict=True):
        axes.semilogy(np.maximum(1 - stage.cosines, 1e-12), ".", markersize=3)
        axes.axhline(stage.tolerance, color="tab:red", linewidth=0.8)
        axes.set_ylim(5e-13, 10 * max(stage.tolerance, 1 - stage.worst))
        axes.set_title(stage.name, loc="left", fontsize=9)
        axes.set_ylabel("1 - cosine", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.supxlabel("row (a frame is 10 ms, an audio row about 77 ms); red: what is allowed", fontsize=8)
    figure.savefig(path, dpi=120)


def _stage(name: str, ours: Floats, other: Floats, tolerance: float) -> Stage:
    if ours.shape != other.shape:
        return Stage(name, 0.0, 0.0, float("inf"), tolerance, np.zeros(1))
    a, b = ours.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    equal = (a == b).all(axis=-1)
    cosines = np.where(equal, 1.0, (a * b).sum(-1) / np.where(norms > 0, norms, np.inf))
    return Stage(name, float(cosines.min()), float(cosines.mean()), float(np.abs(a - b).max()), tolerance, cosines)


def _tokens(name: str, ours: list[int], other: list[int]) -> Stage:
    longest = max(len(ours), len(other))
    same = next((i for i in range(longest) if ours[i : i + 1] != other[i : i + 1]), longest)
    share = same / longest if longest else 1.0
    return Stage(name, share, share, 0.0, 0.0, np.empty(0))
