"""`pycrispasr transcribe`."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from pycrispasr.audio import addresses
from pycrispasr.cli.common import (
    TRANSCRIBE,
    ComputedIn,
    Context,
    ContextFile,
    Device,
    Isolate,
    Language,
    Mmap,
    Precision,
    Runtime,
    Threads,
    app,
    complain,
    is_terminal,
    log_to_stderr,
    read_context,
    standard_input,
    tell,
    until_stopped,
)
from pycrispasr.cli.progress import Progress, clock
from pycrispasr.decoding.job import Job
from pycrispasr.decoding.job import Progress as JobProgress
from pycrispasr.errors import CancelledError, PycrispasrError
from pycrispasr.model import Model
from pycrispasr.models import hub
from pycrispasr.options import BATCH, JobKeywords, Limits, ReadingOptions
from pycrispasr.results import files, formats, manifest
from pycrispasr.results.segment import Segment, Status
from pycrispasr.results.transcript import Transcript
from pycrispasr.text import separator

_LIMITS = Limits()


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


@app.command(rich_help_panel=TRANSCRIBE)
def transcribe(
    recordings: Annotated[
        list[str] | None,
        typer.Argument(metavar="AUDIO", help='Files, folders, web addresses; "-" is standard input.'),
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A name of `pycrispasr models`, a GGUF file or a Hugging Face repository."),
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
    aligner: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help=f"Have this model tell when each word was said: {hub.ALIGNER}, a GGUF file, ..."
        ),
    ] = None,
    vad: Annotated[
        Hearing,
        typer.Option(help="on: only speech is heard; off: all; auto: all but silence in more than 30 s."),
    ] = Hearing.auto,
    silence: Annotated[float | None, typer.Option(help="Seconds without speech that are left out.")] = None,
    channel: Annotated[
        int | None, typer.Option(min=0, help="The channel that is heard, from 0. Default: their mean.")
    ] = None,
    track: Annotated[
        int | None, typer.Option(min=0, help="The sound track that is heard, from 0. Default: the first one.")
    ] = None,
    max_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="A longer recording ends there, with an error.")
    ] = _LIMITS.seconds,
    max_download: Annotated[
        float, typer.Option(metavar="BYTES", help="The most that is taken of a web address, or of standard input.")
    ] = _LIMITS.download_bytes,
    max_download_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="The longest that a web address may take.")
    ] = _LIMITS.download_seconds,
    max_line_chars: Annotated[int, typer.Option(min=2, help="Letters in a line of subtitles, at most.")] = 42,
    max_cue_seconds: Annotated[
        float, typer.Option(min=0.1, max=1e6, help="Seconds that a subtitle is shown, at most.")
    ] = 7.0,
    batch: Annotated[
        int | None, typer.Option(min=1, help=f"Segments of audio that are decoded at once. Default: {BATCH}.")
    ] = None,
    device: Device = "auto",
    runtime: Annotated[
        Runtime, typer.Option("--runtime", "-r", help="crispasr: CrispASR's library, which runs other models too.")
    ] = Runtime.auto,
    isolate: Isolate = None,
    precision: ComputedIn = Precision.auto,
    mmap: Mmap = True,
    threads: Threads = None,
    language: Language = None,
    context: Context = None,
    context_file: ContextFile = None,
    speakers: Annotated[
        list[str] | None,
        typer.Option(
            "--speaker",
            metavar="NAME",
            help="Who speaks first, again for who is next, if the model tells.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where the text of a segment is cut. Default: 512, tried again in parts.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell on stderr what is done.")] = False,
) -> None:
    """Write what is said in recordings: text to stdout, or files into a folder."""
    if verbose:
        log_to_stderr(logging.INFO)
    wanted = [formats.FORMATS[formats.FORMATS.index(kind.value)] for kind in dict.fromkeys(kinds or [Format.txt])]
    if folder is None and len(wanted) > 1:
        raise typer.BadParameter("several formats need a folder for their files: -o DIR", param_hint="--format")
    if not recordings and listed is None:
        raise typer.BadParameter("name recordings, or a list of them with --manifest", param_hint="AUDIO")
    if resume and folder is None and results is None:
        raise typer.BadParameter("there is nothing to go on with: name -o DIR or --results FILE", param_hint="--resume")
    if resume and overwrite:
        raise typer.BadParameter("it cannot be set beside --overwrite", param_hint="--resume")
    limits = Limits(seconds=max_seconds, download_bytes=max_download, download_seconds=max_download_seconds)
    ReadingOptions(vad=vad.value, silence=silence)  # before any work
    expected = read_context(context, context_file)
    passed_over = collections.Counter[str]()
    found = manifest.expand(recordings or [], recursive=recursive, passed_over=passed_over)
    entries = [manifest.Entry(path, addresses.shown(path)) for path in found]
    entries += manifest.read(listed) if listed is not None else []
    roots = [path for path in recordings or [] if os.path.isdir(path)]
    rests = _rests(entries, folder, roots, wanted, overwrite=overwrite, resume=resume)
    with contextlib.ExitStack() as stack:
        book = None
        if results is not None:
            book = stack.enter_context(manifest.Results(results, entries, overwrite=overwrite, resume=resume))
        plan = []
        for entry, (stem, rest) in zip(entries, rests, strict=True):
            is_new = book is not None and not book.take(entry)
            if is_new or (rest and (stem is not None or book is None)):
                plan.append(_Item(entry, stem, rest, is_new))
        if not plan:
            tell("nothing to do: every recording is done" if resume else "nothing to do: the list is empty")
            return
        opened = stack.enter_context(
            Model(
                model,
                device=device,
                threads=threads,
                precision=precision.value,
                runtime=runtime.value,
                isolate=isolate,
                mmap=mmap,
            )
        )
        progress = stack.enter_context(Progress(len(plan), verbose=verbose, files=folder is not None))
        work = _Work(
            opened, plan, progress, book,
            to_stdout=to_stdout or folder is None,
            subtitles={"max_line_chars": max_line_chars, "max_cue_seconds": max_cue_seconds},
            overwrite=overwrite,
            kept=("ok",) if max_new_tokens is None else ("ok", "truncated"),  # a text is cut where that was asked for
        )  # fmt: skip
        options: JobKeywords = {
            "channel": channel, "track": track, "vad": vad.value, "silence": silence,
            "max_new_tokens": max_new_tokens, "limits": limits, "language": language, "context": expected,
            "word_timestamps": word_timestamps if aligner is None else "aligner", "aligner": aligner,
            "speakers": speakers,
        }  # fmt: skip
        if batch is not None:
            options["batch"] = batch
        stopped = until_stopped(lambda: work.run(options), work.stop)
    work.sum_up(
        always=verbose or folder is not None or (len(plan) > 1 and is_terminal(sys.stderr)),
        stopped=stopped,
        passed_over=_passed_over(passed_over),
    )
    if stopped:
        raise typer.Exit(128 + stopped)
    if work.count["done"] < len(plan):
        raise typer.Exit(1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Item:
    entry: manifest.Entry
    stem: Path | None  # of its files, or None for stdout
    kinds: list[formats.Format]  # that are to be written
    is_new: bool  # in the list of results


def _rests(
    entries: list[manifest.Entry],
    folder: str | None,
    roots: list[str],
    kinds: list[formats.Format],
    *,
    overwrite: bool,
    resume: bool,
) -> list[tuple[Path | None, list[formats.Format]]]:
    """Where each recording's files go, and which are still to be written."""
    if folder is None:
        return [(None, kinds) for _ in entries]
    kept = kinds if resume else []
    stems = files.stems([entry.audio for entry in entries], folder, roots=roots, kinds=kept)
    return [(stem, files.pending(stem, kinds, overwrite=overwrite, resume=resume)) for stem in stems]


class _Work:
    """The jobs on their way, and what became of them."""

    def __init__(
        self,
        model: Model,
        plan: list[_Item],
        progress: Progress,
        book: manifest.Results | None,
        *,
        to_stdout: bool,
        subtitles: dict[str, Any],
        overwrite: bool,
        kept: tuple[Status, ...],
    ) -> None:
        self.count = collections.Counter[str]()  # recordings: "done", "in part", "failed"
        self._model, self._plan, self._progress, self._book = model, plan, progress, book
        self._to_stdout, self._subtitles, self._overwrite, self._kept = to_stdout, subtitles, overwrite, kept
        self._todo = collections.deque(plan)
        self._seconds = self._before = 0.0  # of audio that is done with: now, and when the job began
        self._shown = 0  # final segments of the first recording that was begun
        self._text = ""  # of these
        self._start = time.perf_counter()
        self._job: Job | None = None
        self._stopped = False
        self._saving = threading.Lock()

    def run(self, options: JobKeywords) -> None:
        """Does all items."""
        # Standard input may be slow to come: nothing waits for it, and it is not read before its turn.
        for _, items in itertools.groupby(self._plan, lambda item: item.entry.audio == "-"):
            recordings = (_source(item) for item in items)
            self._before = self._seconds
            self._job = self._model.job(recordings, progress=self._show, **options)
            try:
                if self._stopped:
                    return
                for transcript in self._job:
                    self._finish(self._todo.popleft(), transcript)
            except CancelledError:
                self._keep_partial()
                return

    def stop(self) -> bool:
        """Ends the work soon. True where it cannot be ended: leave it alone."""
        self._stopped = True
        job = self._job
        if job is None:
            return False
        job.cancel()
        if job.stuck:
            self._keep_partial()
        return job.stuck

    def _show(self, progress: JobProgress) -> None:
        """Prints what has become final of the first recording that is not done, and how far the work is."""
        item = self._todo[0]
        self._print(item, progress.segments)
        done = len(self._plan) - len(self._todo)
        known = self._before + (progress.read if progress.expected is None else progress.expected)
        self._progress.update(
            item.entry.shown, self._before + progress.seconds, jobs=done, known=(known, done + progress.begun),
            text=progress.text or (progress.segments[-1].text if progress.segments else ""),
        )  # fmt: skip

    def _prints(self, job: _Item) -> bool:
        """True where text is printed as it becomes final."""
        return self._to_stdout and (job.kinds == ["txt"] or job.stem is not None)

    def _print(self, job: _Item, segments: Sequence[Segment]) -> None:
        """Prints those that are new, of all segments of a recording that are final."""
        if self._prints(job):
            for segment in segments[self._shown :]:
                text = formats.labelled(segment)
                gap = "\n" if segment.speaker and self._text else separator(self._text, text)
                self._progress.print(text, gap=gap)
                self._text += gap + text
                self._shown += 1

    def _finish(self, job: _Item, transcript: Transcript, *, partial: bool = False) -> None:
        """A recording is done, or the work on it was stopped."""
        name = job.entry.shown
        statuses = {segment.status for segment in transcript.segments}
        outcome = "failed" if statuses == {"failed"} else "done" if statuses.issubset(self._kept) else "in part"
        self._print(job, transcript.segments)
        if self._prints(job) and outcome != "failed":
            self._progress.end_line()
        elif self._to_stdout and outcome != "failed":
            self._progress.write(formats.render(transcript, job.kinds[0], audio=name, **self._subtitles))
        written: list[Path] = []
        try:
            if job.stem is not None and outcome != "failed":
                written = files.write(
                    transcript, job.stem, job.kinds, audio=name, overwrite=self._overwrite, partial=partial,
                    **self._subtitles,
                )  # fmt: skip
            if self._book is not None and job.is_new and not partial:
                self._book.add(job.entry, transcript)
        except PycrispasrError as error:
            self._progress.complain(str(error))
            outcome = "failed"
        if outcome != "failed":
            self._progress.tell(
                f"{', '.join(map(str, written)) or name}: {clock(transcript.duration)} of audio in "
                f"{clock(transcript.timings.total)}{', stopped before its end' if partial else ''}"
            )
        for sentence in complaints(name, transcript):
            self._progress.complain(sentence)
        if not partial:
            self.count[outcome] += 1
        self._seconds += transcript.duration
        self._shown, self._text = 0, ""

    def _keep_partial(self) -> None:
        """Writes what there is of the recordings that were begun, once."""
        with self._saving:
            job, self._job = self._job, None
            for transcript, item in zip(job.partial() if job is not None else (), tuple(self._todo), strict=False):
                if transcript.text:
                    self._finish(item, transcript, partial=True)

    def sum_up(self, *, always: bool, stopped: int, passed_over: str) -> None:
        """Says on stderr what became of all of it, by which signal it was stopped, and what was passed over."""
        took = time.perf_counter() - self._start
        if always:
            all_done = self.count["done"] == len(self._plan)
            told = [f"{self.count['done']}{'' if all_done else f' of {len(self._plan)}'}"]
            told[0] += f" recording{'s' * (len(self._plan) != 1)} done"
            told += [f"{self.count[outcome]} {outcome}" for outcome in ("in part", "failed") if self.count[outcome]]
            speed = f", {self._seconds / took:.1f} times as fast as it was spoken" if self._seconds else ""
            tell(
                f"{', '.join(told)}; {clock(self._seconds)} of audio in {clock(took)}{speed}"
                f"{passed_over and '; '}{passed_over}"
            )
        elif passed_over:
            tell(passed_over)
        if stopped:
            rest = ": what was done stays, what was begun is in files with .partial in their names"
            by = "Ctrl-C" if stopped == signal.SIGINT else signal.Signals(stopped).name
            complain(f"stopped by {by}{rest if any(job.stem for job in self._plan) else ''}")


def _passed_over(endings: collections.Counter[str]) -> str:
    """Files in folders that are no recordings by their names: "3 files passed over: 2 .txt, 1 .jpg"."""
    total = sum(endings.values())
    if not total:
        return ""
    most = [f"{count} {ending or 'without an ending'}" for ending, count in endings.most_common(5)]
    more = f", and {len(endings) - 5} more endings" if len(endings) > 5 else ""
    return f"{total} file{'s' * (total > 1)} passed over: {', '.join(most)}{more}"


def _source(job: _Item) -> str | BinaryIO:
    return standard_input() if job.entry.audio == "-" else job.entry.audio


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
