"""`pycrispasr transcribe`."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import itertools
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from pycrispasr import _native, formats, hub, manifest, output
from pycrispasr.batch import Batch, Recording, side_by_side
from pycrispasr.cli.common import ComputedIn, Device, Precision, Runtime, app, complain, tell, until_interrupted
from pycrispasr.cli.progress import Progress, clock
from pycrispasr.errors import AudioError, PycrispasrError
from pycrispasr.live_text import separator
from pycrispasr.model import BATCH, Model
from pycrispasr.result import Segment, Transcript

_INTERRUPTED = 130  # exit status, as of a program that SIGINT has ended


class Format(str, enum.Enum):
    """What `transcribe` writes."""

    txt = "txt"
    srt = "srt"
    vtt = "vtt"
    tsv = "tsv"
    json = "json"
    audacity = "audacity"


class Hearing(str, enum.Enum):
    """What of a recording is heard."""

    auto = "auto"
    on = "on"
    off = "off"


@app.command()
def transcribe(
    recordings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[AUDIO]...", help='Files, folders, web addresses; "-" is standard input.'),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help='"moss-transcribe", "tiny", a GGUF file or a Hugging Face repository.')
    ] = hub.DEFAULT,
    kinds: Annotated[
        list[Format] | None,
        typer.Option("--format", "-f", help="What is written, again for more. Default: txt."),
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="Write a file for each recording and format.")
    ] = None,
    to_stdout: Annotated[bool, typer.Option("--stdout", help="With -o: print the text, too.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Look for recordings in folders.")] = False,
    listed: Annotated[
        str | None, typer.Option("--manifest", metavar="FILE", help="A list of recordings: CSV or JSON Lines.")
    ] = None,
    results: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a list of results: CSV or JSON Lines, by its ending.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out recordings whose files are there.")] = False,
    word_timestamps: Annotated[bool, typer.Option("--word-timestamps", help="Tell when each word was said.")] = False,
    vad: Annotated[
        Hearing,
        typer.Option(help="on: only speech is heard; off: all; auto: all but silence in more than 30 s."),
    ] = Hearing.auto,
    silence: Annotated[float | None, typer.Option(help="Seconds without speech that are left out.")] = None,
    channel: Annotated[int | None, typer.Option(help="The channel that is heard, from 0. Default: their mean.")] = None,
    max_line_chars: Annotated[int, typer.Option(help="Letters in a line of subtitles.")] = 42,
    max_cue_seconds: Annotated[float, typer.Option(help="Seconds that a subtitle is shown, at most.")] = 7.0,
    batch: Annotated[int, typer.Option(min=1, help="Stretches of audio that are decoded side by side.")] = BATCH,
    device: Device = "auto",
    runtime: Annotated[
        Runtime, typer.Option("--runtime", "-r", help="crispasr: CrispASR's library, which runs other models too.")
    ] = Runtime.auto,
    precision: ComputedIn = Precision.auto,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each physical core.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where the text of a stretch is cut. Default: 512, tried again in parts.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell on stderr what is done.")] = False,
) -> None:
    """Write what is said in recordings: text to stdout, or files into a folder."""
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    wanted = [formats.FORMATS[formats.FORMATS.index(kind.value)] for kind in dict.fromkeys(kinds or [Format.txt])]
    if folder is None and len(wanted) > 1:
        raise typer.BadParameter("several formats need a folder for their files: -o DIR", param_hint="--format")
    if not recordings and listed is None:
        raise typer.BadParameter("name recordings, or a list of them with --manifest", param_hint="AUDIO")
    plan = _plan(recordings or [], listed, folder, wanted, recursive=recursive, overwrite=overwrite, resume=resume)
    with contextlib.ExitStack() as stack:
        book = None
        if results is not None:
            book = stack.enter_context(manifest.Results(results, overwrite=overwrite, resume=resume))
            plan = [job for job in plan if job.entry.name not in book.done]
        if not plan:
            tell("nothing to do: every recording has its files" if resume else "nothing to do")
            return
        opened = stack.enter_context(
            Model(model, device=device, threads=threads, precision=precision.value, runtime=runtime.value)
        )
        progress = stack.enter_context(Progress(len(plan), lines=verbose or folder is not None))
        work = _Work(
            opened, plan, progress, book,
            to_stdout=to_stdout or folder is None,
            subtitles={"max_line_chars": max_line_chars, "max_cue_seconds": max_cue_seconds},
            overwrite=overwrite, limited=max_new_tokens is not None,
        )  # fmt: skip
        reading: dict[str, Any] = {"channel": channel, "vad": vad.value, "silence": silence}
        decoding = {"batch": batch, "max_new_tokens": max_new_tokens, "word_timestamps": word_timestamps}
        try:
            until_interrupted(lambda: work.run(reading, decoding), work.stop)
        except KeyboardInterrupt:
            work.interrupted = True
    work.sum_up(always=verbose or folder is not None or (len(plan) > 1 and sys.stderr.isatty()))
    if work.interrupted:
        raise typer.Exit(_INTERRUPTED)
    if work.failed:
        raise typer.Exit(1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    entry: manifest.Entry
    kinds: list[formats.Format]  # that are to be written
    stem: Path | None  # of its files, or None for stdout


def _plan(
    recordings: list[str],
    listed: str | None,
    folder: str | None,
    kinds: list[formats.Format],
    *,
    recursive: bool,
    overwrite: bool,
    resume: bool,
) -> list[_Job]:
    """What there is to do. Nothing has been done yet when it fails."""
    entries = [manifest.Entry(path, path) for path in manifest.expand(recordings, recursive=recursive)]
    entries += manifest.read(listed) if listed is not None else []
    if folder is None:
        return [_Job(entry, kinds, None) for entry in entries]
    roots = [path for path in recordings if os.path.isdir(path)]
    stems = output.stems([entry.audio for entry in entries], folder, roots=roots)
    plan = []
    for entry, stem in zip(entries, stems, strict=True):
        rest = output.pending(stem, kinds, overwrite=overwrite, resume=resume)
        if rest:
            plan.append(_Job(entry, rest, stem))
    return plan


class _Work:
    """The jobs on their way, and what became of them."""

    def __init__(
        self,
        model: Model,
        plan: list[_Job],
        progress: Progress,
        book: manifest.Results | None,
        *,
        to_stdout: bool,
        subtitles: dict[str, Any],
        overwrite: bool,
        limited: bool,
    ) -> None:
        self.interrupted = False
        self.failed = 0  # recordings
        self._model, self._plan, self._progress, self._book = model, plan, progress, book
        self._to_stdout, self._subtitles, self._overwrite = to_stdout, subtitles, overwrite
        self._limited = limited
        self._begun: collections.deque[Recording] = collections.deque()
        self._done = 0  # jobs
        self._seconds = 0.0  # of their audio
        self._shown = 0  # final segments of the first recording that was begun
        self._text = ""  # of these
        self._start = time.perf_counter()
        self._native: _native.NativeSession | None = None
        self._stopped = False

    def run(self, reading: dict[str, Any], decoding: dict[str, Any]) -> None:
        """Does all jobs."""
        try:
            if self._model.runtime == "crispasr":
                self._one_by_one(reading, decoding)
            else:
                self._side_by_side(reading, decoding)
        except _native.Cancelled:
            self._keep_partial()

    def stop(self) -> None:
        """Ends the work soon. Any thread."""
        self.interrupted = self._stopped = True
        if self._native is not None:
            self._native.cancel()

    def _one_by_one(self, reading: dict[str, Any], decoding: dict[str, Any]) -> None:
        for job in self._plan:
            if self._stopped:
                return
            try:
                transcript = self._model.transcribe(_source(job), **reading, **decoding)
            except AudioError as error:
                transcript = Recording.broken(error).transcript(0.0)
            self._finish(job, transcript)

    def _side_by_side(self, reading: dict[str, Any], decoding: dict[str, Any]) -> None:
        batch = self._model._batch(**decoding)
        self._native = batch.native
        self._batch: Batch = batch
        if self._stopped:
            return
        # Standard input may be slow to come: nothing waits for it, and it is not read before its turn.
        for _, jobs in itertools.groupby(self._plan, lambda job: job.entry.audio == "-"):
            opened = (Recording.open(_source(job), sample_rate=None, **reading) for job in jobs)
            for recording in side_by_side(batch, opened, self._begun):
                self._show(recording)
                if recording is not None:
                    self._finish(self._plan[self._done], recording.transcript(time.perf_counter() - recording.begun))

    def _show(self, done: Recording | None = None) -> None:
        """Prints what has become final of the first recording, and how far the work is."""
        first = done or (self._begun[0] if self._begun else None)
        job = self._plan[self._done] if first else None
        if first and job:
            self._print(job, first.finals)
        running = next((s.text for r, s in self._batch.running.values() if r is first), "") if first else ""
        known = sum(one.seconds_expected or one.seconds for one in self._begun)
        self._progress.update(
            self._seconds + sum(one.seconds_done for one in self._begun),
            job.entry.audio if job else "",
            jobs=self._done,
            known=(self._seconds + known, self._done + len(self._begun)),
            text=running,
        )

    def _prints(self, job: _Job) -> bool:
        """True where text is printed as it becomes final."""
        return self._to_stdout and (job.kinds == ["txt"] or job.stem is not None)

    def _print(self, job: _Job, segments: Sequence[Segment]) -> None:
        """Prints those that are new, of all segments of a recording that are final."""
        if self._prints(job):
            for segment in segments[self._shown :]:
                gap = separator(self._text, segment.text)
                self._progress.print(segment.text, gap=gap)
                self._text += gap + segment.text
                self._shown += 1

    def _finish(self, job: _Job, transcript: Transcript, *, partial: bool = False) -> None:
        """A recording is done, or the work on it was stopped."""
        name = job.entry.audio
        failed = bool(transcript.segments) and all(segment.status == "failed" for segment in transcript.segments)
        written: list[Path] = []
        try:
            if job.stem is not None and not failed:
                written = output.write(
                    transcript, job.stem, job.kinds, audio=name, overwrite=self._overwrite, partial=partial,
                    **self._subtitles,
                )  # fmt: skip
            if self._book is not None and not partial:
                self._book.add(job.entry, transcript)
        except PycrispasrError as error:
            complain(str(error))
            failed = True
        self._print(job, transcript.segments)
        if self._prints(job) and not failed:
            self._progress.end_line()
        elif self._to_stdout and not failed:
            self._progress.write(formats.render(transcript, job.kinds[0], audio=name, **self._subtitles))
        self._progress.tell(
            f"{', '.join(map(str, written)) or name}: {clock(transcript.duration)} of audio in "
            f"{clock(transcript.timings.total)}{', stopped before its end' if partial else ''}"
        )
        for sentence in complaints(name, transcript):
            self._progress.complain(sentence)
        kept = ("ok", "truncated") if self._limited else ("ok",)  # a text is cut where that was asked for
        self.failed += failed or (not partial and any(segment.status not in kept for segment in transcript.segments))
        self._seconds += transcript.duration
        self._done += 1
        self._shown, self._text = 0, ""

    def _keep_partial(self) -> None:
        """Writes what there is of the recordings that were begun."""
        while self._begun:
            recording = self._begun.popleft()
            transcript = recording.transcript(time.perf_counter() - recording.begun, self._batch.work_on(recording))
            if transcript.segments:
                self._finish(self._plan[self._done], transcript, partial=True)

    def sum_up(self, *, always: bool) -> None:
        """Says on stderr what became of all of it."""
        took = time.perf_counter() - self._start
        if always:
            all_done = self._done == len(self._plan)
            count = f"{self._done}" if all_done else f"{self._done} of {len(self._plan)}"
            told = [f"{count} recording{'s' * (len(self._plan) != 1)} done"]
            if self.failed:
                told.append(f"{self.failed} of them not in full")
            speed = f", {self._seconds / took:.1f} times as fast as it was spoken" if self._seconds else ""
            tell(f"{', '.join(told)}; {clock(self._seconds)} of audio in {clock(took)}{speed}")
        if self.interrupted:
            rest = ": what was done stays, what was begun is in files with .partial in their names"
            complain(f"stopped by Ctrl-C{rest if any(job.stem for job in self._plan) else ''}")


def _source(job: _Job) -> str | BinaryIO:
    return sys.stdin.buffer if job.entry.audio == "-" else job.entry.audio


def complaints(name: str, transcript: Transcript) -> Iterator[str]:
    """Sentences about what is not as it should be."""
    count = collections.Counter(segment.status for segment in transcript.segments)
    of = f"of {len(transcript.segments)} segments"
    for segment in transcript.segments:
        if segment.error is not None:
            place = f" at {clock(segment.start)}" if len(transcript.segments) > 1 else ""
            told = segment.error if name in segment.error else f"{name}: {segment.error}"
            yield f"{told}{place}"
    if count["truncated"]:
        yield f"{name}: the text of {count['truncated']} {of} was cut, see --max-new-tokens"
    if count["looped"]:
        yield f"{name}: in {count['looped']} {of} one phrase came again and again; stopped"
    for warning in transcript.warnings:
        yield warning if name in warning else f"{name}: {warning}"
