"""Models, and the devices they run on."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import os
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pycrispasr import audio
from pycrispasr.audio import CHUNK_SECONDS, Audio
from pycrispasr.decoding import word_times
from pycrispasr.decoding.scheduler import Batch, Recording, side_by_side
from pycrispasr.errors import (
    ClosedError,
    ModelFormatError,
    UnsupportedModelError,
    UnsupportedOperationError,
    UsageError,
)
from pycrispasr.live.session import Session
from pycrispasr.models import hub
from pycrispasr.results.transcript import Segment, Status, Token, Transcript
from pycrispasr.runtimes import crispasr, native
from pycrispasr.segmentation.segmenter import Cutter, Vad

if TYPE_CHECKING:
    from typing_extensions import Self

Runtime = Literal["auto", "pycrispasr", "crispasr"]
Precision = Literal["auto", "f32", "bf16"]

BATCH = 4
"""Stretches that are decoded side by side unless told otherwise: more take more memory and save little more time."""

_OUR_ARCHITECTURE = "moss_transcribe"  # "general.architecture" of the files that our own runtime runs


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """Something a model can run on.

    Attributes:
        name: What `Model` takes: "cpu", "cuda:0", ...
        description: The maker's name of it.
        features: For a CPU the instruction sets in use, separated by spaces.
        memory_free: Bytes.
        memory_total: Bytes.
    """

    name: str
    description: str
    features: str
    memory_free: int
    memory_total: int


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """A kind of device beside the CPU.

    Attributes:
        name: "cuda", "metal" or "vulkan": what the names of its devices begin with.
        compiled: True where this build contains it, or a package that is installed beside it.
        missing: Why it has no device here, and what to do; "" where it has one.
    """

    name: str
    compiled: bool
    missing: str


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model's sizes.

    Attributes:
        name: The file's own name for it, or "".
        device: The name of the device it runs on.
        sample_rate: Audio samples per second: 16000.
        hop_length: Samples per log-mel frame: 160.
        n_mels: Bins of the log-mel spectrogram.
        chunk_frames: Log-mel frames that the convolutions see together.
        chunk_rows: Audio rows that they make of these.
        window_rows: Audio rows that attend to each other in the encoder.
        encoder_layers: Transformer layers of the encoder.
        encoder_d_model: Width of the encoder.
        encoder_output: Columns of an encoder row.
        llm_layers: Layers of the decoder.
        llm_heads: Attention heads of each.
        llm_hidden: Width of the decoder.
        llm_vocab: Tokens in the vocabulary.
        llm_max_positions: Tokens that the decoder can hold, prompt and text together.
        eos_token: The token that ends a text.
        file_bytes: Size of the file.
        weight_bytes: Size of the tensors in use.
        kv_bytes_per_token: Memory that the decoder keeps for each token of prompt and text.
        parameters: Number of weights.
    """

    name: str
    device: str
    sample_rate: int
    hop_length: int
    n_mels: int
    chunk_frames: int
    chunk_rows: int
    window_rows: int
    encoder_layers: int
    encoder_d_model: int
    encoder_output: int
    llm_layers: int
    llm_heads: int
    llm_hidden: int
    llm_vocab: int
    llm_max_positions: int
    eos_token: int
    file_bytes: int
    weight_bytes: int
    kv_bytes_per_token: int
    parameters: int


class Model:
    """A speech recognition model, ready to use.

    A model never changes: any number of threads may use it at once. It is a context manager, which closes it.
    Pickled, it is its arguments, with which another process opens it anew.

    Args:
        name: "moss-transcribe" (fetched from the Hugging Face hub at its first use), "moss-transcribe:q8_0",
            "moss-transcribe:f16", "tiny" (the small model in this package), the path of a GGUF file, or
            "org/repo:file.gguf" of the hub.
        device: The name of one of `devices()`; "cuda", "metal" or "vulkan" for the first of these; or "auto": a
            graphics card where there is one, else the CPU. Where the card does not start, or has too little memory for
            the weights, "auto" goes on to the CPU with a warning in the log. With a `precision`, "auto" is the CPU.
        threads: Threads for computing on the CPU. None: the number of physical cores that this process may use. The
            result does not depend on it.
        precision: What products with the model's matrices are computed in. "f32": nothing is rounded, whatever the
            file's types. "bf16": factors are rounded to BF16, in which the model was trained, and sums are kept in
            F32. "auto": the fastest that leaves texts as they are, BF16 where the processor has fast instructions for
            it, else F32. Quantised matrices are multiplied in 8-bit integers where that is faster, and for single
            tokens always, unless "f32" is asked for. A GPU takes "auto" only.
        runtime: What computes. "pycrispasr": this package's own library, which runs MOSS-Transcribe. "crispasr":
            CrispASR's library (extra `[crispasr]`), which runs models of many architectures, but can only `transcribe`
            whole recordings. "auto": the former where the file is of its architecture, else the latter.
        revision: A branch, tag or commit of the model's repository on the hub; by default its newest state at the first
            use.
        local_files_only: Never use the network, not even for a model that is not here yet.

    Raises:
        ModelNotFoundError: There is no such model, or it cannot be fetched or read.
        ModelFormatError: The file is no GGUF, or it is truncated or contradicts itself.
        UnsupportedModelError: The file is of another architecture, or has tensors of a type that cannot be computed.
        DeviceError: There is no such device, or it failed, or has no instructions for this precision.
        OutOfMemoryError: An allocation failed.
        InstallationError: `runtime` is "crispasr", and its library is missing.
        UsageError: `threads` is not positive, or there is no such runtime or precision, or `revision` is given for a
            file that is not from the hub.
        UnsupportedOperationError: The runtime offers no choice of precision.
    """

    def __init__(
        self,
        name: str | os.PathLike[str] = hub.DEFAULT,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: Precision = "auto",
        runtime: Runtime = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        self._native: native.NativeModel | None = None
        self._crispasr: crispasr.CrispasrModel | None = None
        self._info: ModelInfo | None = None
        self._name = os.fsdecode(name)
        self._threads = 0 if threads is None else _positive("threads", threads)
        self._path = hub.resolve(name, revision=revision, local_files_only=local_files_only)
        self._arguments: dict[str, Any] = {
            "device": device, "threads": threads, "precision": precision, "runtime": runtime, "revision": revision,
            "local_files_only": local_files_only,
        }  # fmt: skip
        opened = _open(self._path, device, self._threads, precision, runtime)
        if isinstance(opened, native.NativeModel):
            self._native = opened
            self._info = ModelInfo(**opened.info())
        else:
            self._crispasr = opened
        self._runtime: Runtime = "pycrispasr" if self._info else "crispasr"

    def transcribe(
        self,
        audio: Audio,
        *,
        sample_rate: float | None = None,
        channel: int | None = None,
        track: int | None = None,
        vad: Vad = "auto",
        silence: float | None = None,
        max_new_tokens: int | None = None,
        batch: int = BATCH,
        word_timestamps: bool = False,
        progress: Callable[[float, float | None], object] | None = None,
    ) -> Transcript:
        """Transcribes a whole recording.

        A recording longer than 30 seconds is cut, where nobody speaks if that is possible, into stretches: one segment
        each. Up to `batch` of them are decoded side by side, which takes less time and more memory; the text does not
        depend on it. The audio is read as it is needed: hours of it take no more memory than minutes.

        A stretch whose text repeats itself without end or is cut off, or that cannot be worked on, is tried once more
        in two parts, cut where it is quietest. What then still fails stays in the transcript with its `status`, and
        `complete` is false.

        Args:
            audio: A path, the bytes of an audio file, a binary file object, or an array of samples of shape `[frames]`
                or `[frames, channels]`: see `pycrispasr.audio.load`.
            sample_rate: Samples per second of an array.
            channel: Which channel of several is heard, from 0. None: their mean.
            track: Which sound track of a file with several is heard, from 0. None: the first one, with a warning.
            vad: How a long recording is cut. "on": a voice activity detector (Silero's) finds speech, and what lies
                between is left out. "off": all audio is heard, cut where it is quietest. "auto": as "on" for more than
                30 seconds, but only what is quiet too is left out, so that no music or noise is passed over in which
                somebody might speak.
            silence: Seconds without speech that end a stretch, and are left out. None: 0.8 with "on", 1.0 with "auto".
            max_new_tokens: The text of a stretch is cut after so many tokens; its segment's status is "truncated" then.
                None: 512, which is more than anybody says in 30 seconds; a stretch that reaches it is tried again in
                two parts.
            batch: How many stretches are decoded side by side.
            word_timestamps: Tell when each word was said: `Segment.words`, and `Token.start` and `Token.end`.
            progress: Called with the seconds of audio done and their total, or None where that is not known yet: at the
                beginning, and when stretches are done.

        Raises:
            AudioError: The audio cannot be read or understood, or is too short.
            UsageError: `max_new_tokens`, `batch` or `silence` is not positive, or there is no such `vad`.
            ClosedError: The model is closed.
            ModelFormatError: With `word_timestamps`: the file beside the model that names its heads is damaged.
            OutOfMemoryError: An allocation failed.
            UnsupportedOperationError: `word_timestamps`, and CrispASR's library runs the model, or a GPU.
        """
        if self._crispasr is not None:
            if word_timestamps:
                raise _unsupported("word_timestamps of ours")
            return self._transcribe_whole(
                self._crispasr, audio, sample_rate, channel, track, vad, silence, max_new_tokens, progress
            )
        with self._feed(
            audio, sample_rate, channel, track, vad, silence, max_new_tokens, batch, word_timestamps
        ) as session:
            return session.finish(progress=progress)

    def segments(
        self,
        audio: Audio,
        *,
        sample_rate: float | None = None,
        channel: int | None = None,
        track: int | None = None,
        vad: Vad = "auto",
        silence: float | None = None,
        max_new_tokens: int | None = None,
        batch: int = BATCH,
        word_timestamps: bool = False,
    ) -> Iterator[Segment]:
        """Transcribes a whole recording, and gives its segments one by one as they become final.

        Args:
            audio: As for `transcribe`.
            sample_rate: As for `transcribe`.
            channel: As for `transcribe`.
            track: As for `transcribe`.
            vad: As for `transcribe`.
            silence: As for `transcribe`.
            max_new_tokens: As for `transcribe`.
            batch: As for `transcribe`.
            word_timestamps: As for `transcribe`.

        Returns:
            A generator of those that are in the `Transcript`, in order. Closing it, or leaving the loop over it, stops
            the work and frees its memory.

        Raises:
            AudioError: As for `transcribe`.
            UsageError: As for `transcribe`.
            ClosedError: As for `transcribe`.
            OutOfMemoryError: As for `transcribe`.
            UnsupportedOperationError: CrispASR's library runs the model.
        """
        return _segments(
            self._feed(audio, sample_rate, channel, track, vad, silence, max_new_tokens, batch, word_timestamps)
        )

    def transcribe_many(
        self,
        recordings: Iterable[Audio],
        *,
        sample_rate: float | None = None,
        channel: int | None = None,
        track: int | None = None,
        vad: Vad = "auto",
        silence: float | None = None,
        max_new_tokens: int | None = None,
        batch: int = BATCH,
        word_timestamps: bool = False,
        errors: Literal["keep", "raise"] = "keep",
    ) -> Iterator[Transcript]:
        """Transcribes recordings side by side, each as `transcribe` would, and gives their transcripts in order.

        As soon as a stretch of one recording is done, the next one takes its place, of whichever recording it is; a
        recording is read when there is room for its first stretch. So memory does not grow with their number.

        Args:
            recordings: Any number of what `transcribe` takes.
            sample_rate: Samples per second of arrays.
            channel: As for `transcribe`.
            track: As for `transcribe`.
            vad: As for `transcribe`.
            silence: As for `transcribe`.
            max_new_tokens: As for `transcribe`.
            batch: How many stretches are decoded side by side.
            word_timestamps: As for `transcribe`.
            errors: "keep": a recording that `transcribe` would raise an error for has a transcript with no text, whose
                only segment has the status "failed" and the error's message; the others go on. "raise": the error is
                raised when the transcripts before it have been given, and ends the generator.

        Returns:
            A generator. Closing it, or leaving the loop over it, stops the work and frees its memory.

        Raises:
            Exception: What `recordings` raises, when the recordings before it have been given.
            AudioError: With `errors="raise"`: a recording cannot be read, or is too short.
            UsageError: `max_new_tokens`, `batch` or `silence` is not positive, or there is no such `vad` or `errors`.
            ClosedError: The model is closed.
            OutOfMemoryError: An allocation failed.
            UnsupportedOperationError: CrispASR's library runs the model.
        """
        if errors not in ("keep", "raise"):
            raise UsageError(f"errors cannot be {errors!r}: choose 'keep' or 'raise'")
        runner = self._batch(max_new_tokens, batch, word_timestamps)
        Cutter(vad=vad, silence=silence)  # tells at once what cannot be
        opened = (
            Recording.open(one, sample_rate=sample_rate, channel=channel, track=track, vad=vad, silence=silence)
            for one in recordings
        )
        return _transcribe_many(runner, opened, keep=errors == "keep")

    def _batch(self, max_new_tokens: int | None, batch: int, word_timestamps: bool = False) -> Batch:
        """Room for so many stretches side by side."""
        model, aligner = self._opened(), self._aligner(word_timestamps)
        session = native.NativeSession(
            model,
            threads=self._threads,
            max_new_tokens=_limit(max_new_tokens),
            sequences=_positive("batch", batch),
            heads=aligner.heads if aligner else (),
        )
        retried: tuple[Status, ...] = ("looped", "truncated") if max_new_tokens is None else ("looped",)
        return Batch(session, model.token_bytes, retried, aligner)

    def stream(
        self,
        audio: Audio,
        *,
        sample_rate: float | None = None,
        channel: int | None = None,
        track: int | None = None,
        vad: Vad = "auto",
        silence: float | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Token]:
        """Transcribes a whole recording, and gives its tokens one by one as they are decoded.

        A stretch that does not end well is not tried again, since its tokens have been given: see `segments`.

        Args:
            audio: As for `transcribe`.
            sample_rate: As for `transcribe`.
            channel: As for `transcribe`.
            track: As for `transcribe`.
            vad: As for `transcribe`.
            silence: As for `transcribe`.
            max_new_tokens: As for `transcribe`.

        Returns:
            A generator. Closing it, or leaving the loop over it, stops the work and frees its memory.

        Raises:
            AudioError: As for `transcribe`.
            UsageError: As for `transcribe`.
            ClosedError: As for `transcribe`.
            OutOfMemoryError: As for `transcribe`.
            UnsupportedOperationError: CrispASR's library runs the model.
        """
        return _drain(self._feed(audio, sample_rate, channel, track, vad, silence, max_new_tokens, 1))

    def session(
        self,
        *,
        vad: Vad = "auto",
        silence: float | None = None,
        partial_every: float | None = 1.0,
        buffer: float = 30.0,
        max_new_tokens: int | None = None,
        batch: int = 1,
        word_timestamps: bool = False,
    ) -> Session:
        """A session, for audio that comes in parts, and for a transcription that can be cancelled.

        Args:
            vad: As for `transcribe`. With "on", each utterance becomes final as soon as silence has followed it; with
                "auto", that begins after 30 seconds; with "off", every stretch is as long as possible.
            silence: As for `transcribe`.
            partial_every: Seconds of audio after which the text so far is made, for `Session.text` and `Partial`
                events, or None for never. It takes at most about half of the time, and is made more rarely than asked
                for where a machine is too slow.
            buffer: Seconds of audio that wait for their turn after `Session.push`, at the most.
            max_new_tokens: As for `transcribe`.
            batch: How many stretches are decoded side by side. With more than one the text of each comes later, and
                all of it sooner: for recordings that are fed faster than they were spoken.
            word_timestamps: As for `transcribe`. Segments have their words when they are final; tokens that
                `Session.tokens` gives before have no times.

        Raises:
            UsageError: An option is not positive, or there is no such `vad`.
            ClosedError: The model is closed.
            OutOfMemoryError: An allocation failed.
            UnsupportedOperationError: CrispASR's library runs the model.
        """
        return Session(
            self._batch(max_new_tokens, batch, word_timestamps),
            vad=vad,
            silence=silence,
            partial_every=None if partial_every is None else _seconds("partial_every", partial_every),
            buffer=_seconds("buffer", buffer),
        )

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text (byte-level BPE with the model's own vocabulary), without special ones.

        Raises:
            ClosedError: The model is closed.
            UnsupportedOperationError: CrispASR's library runs the model.
        """
        return self._opened().tokenize(unicodedata.normalize("NFC", text).encode())

    @property
    def info(self) -> ModelInfo:
        """The model's sizes. They can still be read after `close`.

        Raises:
            UnsupportedOperationError: CrispASR's library runs the model, which does not tell them.
        """
        if self._info is None:
            raise _unsupported("the sizes of a model")
        return self._info

    @property
    def runtime(self) -> Runtime:
        """What computes: "pycrispasr" or "crispasr"."""
        return self._runtime

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._native is None and self._crispasr is None

    def close(self) -> None:
        """Gives the model's memory back, as soon as its last session is closed too. Closing twice is allowed."""
        self._native = None
        self._crispasr = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[str | Path], Model], tuple[str | Path]]:
        """For pickle and copy: the model is opened again with the same arguments, a path as an absolute one.

        Raises:
            ClosedError: The model is closed.
        """
        if self.closed:
            raise _model_closed(self._name)
        path = self._path.absolute()
        is_path = Path(self._name).absolute() == path
        return functools.partial(type(self), **self._arguments), (path if is_path else self._name,)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"device={self._info.device!r}" if self._info else "runtime='crispasr'"
        return f"<pycrispasr.Model {self._name!r} {state}>"

    def _opened(self) -> native.NativeModel:
        model = self._native
        if self._crispasr is not None:
            raise _unsupported("tokens one by one, audio in parts, or a tokenizer")
        if model is None:
            raise _model_closed(self._name)
        return model

    def _aligner(self, wanted: bool) -> word_times.Aligner | None:
        """What gives times to words, where they are wanted."""
        if not wanted:
            return None
        heads, kind = word_times.heads_of(self._path, self.info.llm_layers, self.info.llm_heads)
        return word_times.Aligner(heads, kind, self.info.chunk_frames)

    def _feed(
        self,
        recording: Audio,
        sample_rate: float | None,
        channel: int | None,
        track: int | None,
        vad: Vad,
        silence: float | None,
        max_new_tokens: int | None,
        batch: int,
        word_timestamps: bool = False,
    ) -> Session:
        """A session with the whole recording in it."""
        self._opened()
        _positive("batch", batch)
        whole = Recording.open(
            recording, sample_rate=sample_rate, channel=channel, track=track, vad=vad, silence=silence
        )
        if whole.failure is not None:
            raise whole.failure
        expected = whole.seconds_expected
        one = expected is not None and expected <= CHUNK_SECONDS
        session = Session(self._batch(max_new_tokens, 1 if one else batch, word_timestamps))
        session._take(whole)
        return session

    def _transcribe_whole(
        self,
        runtime: crispasr.CrispasrModel,
        recording: Audio,
        sample_rate: float | None,
        channel: int | None,
        track: int | None,
        vad: Vad,
        silence: float | None,
        max_new_tokens: int | None,
        progress: Callable[[float, float | None], object] | None,
    ) -> Transcript:
        limit = _limit(max_new_tokens)
        samples = audio.load(recording, sample_rate=sample_rate, channel=channel, track=track)
        return runtime.transcribe(samples, vad=vad, silence=silence, max_new_tokens=limit, progress=progress)


def _open(
    path: Path, device: str, threads: int, precision: Precision, runtime: Runtime
) -> native.NativeModel | crispasr.CrispasrModel:
    """The model in the runtime that was asked for, or else in the one that runs it."""
    if runtime not in ("auto", "pycrispasr", "crispasr"):
        raise UsageError(f"there is no runtime {runtime!r}: choose 'auto', 'pycrispasr' or 'crispasr'")
    if precision not in ("auto", "f32", "bf16"):
        raise UsageError(f"there is no precision {precision!r}: choose 'auto', 'f32' or 'bf16'")
    if runtime == "crispasr":
        if precision != "auto":
            raise UnsupportedOperationError(
                f"CrispASR's library offers no choice of precision: leave out precision={precision!r}"
            )
        return crispasr.CrispasrModel(path, device, threads)
    try:
        return native.NativeModel(path, device, precision)
    except (ModelFormatError, UnsupportedModelError) as error:
        # Only now does anything else look into the file: it is sound, or no GGUF.
        kind = None if runtime == "pycrispasr" else crispasr.architecture(path)
        if not kind or kind == _OUR_ARCHITECTURE:
            raise
        refusal = str(error)
    if crispasr.find() is None:
        raise UnsupportedModelError(f"{refusal}; CrispASR's library may run it: {crispasr.HOW}")
    try:
        return crispasr.CrispasrModel(path, device, threads)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{refusal}; {error}") from error


def _model_closed(name: str) -> ClosedError:
    return ClosedError(f"the model {name!r} is closed: open it again with Model({name!r})")


def _unsupported(what: str) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"CrispASR's library, which runs this model, gives no {what}: it can only transcribe() a whole recording"
    )


def _transcribe_many(batch: Batch, recordings: Iterator[Recording], *, keep: bool) -> Iterator[Transcript]:
    for recording in side_by_side(batch, recordings, collections.deque()):
        if recording is None:
            continue
        if recording.failure is not None and not keep:
            raise recording.failure
        yield recording.transcript(time.perf_counter() - recording.begun)


def _segments(session: Session) -> Iterator[Segment]:
    with session:
        yield from iter(session._next_segment, None)


def _drain(session: Session) -> Iterator[Token]:
    with session:
        yield from session.tokens()


def _limit(max_new_tokens: int | None) -> int:
    return 512 if max_new_tokens is None else _positive("max_new_tokens", max_new_tokens)


def _positive(name: str, value: int) -> int:
    if native.int32(name, value) < 1:
        raise UsageError(f"{name} cannot be {value}: it must be at least 1")
    return value


def _seconds(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UsageError(f"{name} cannot be {value}: it must be a positive number of seconds")
    return float(value)


def devices() -> list[Device]:
    """The devices that a model can run on, the one that "auto" picks first."""
    return [Device(**fields) for fields in native.devices()]


def backends() -> list[Backend]:
    """The kinds of devices beside the CPU, in this build or not."""
    return [Backend(**fields) for fields in native.backends()]


def transcribe(
    audio: Audio,
    *,
    model: str | os.PathLike[str] = hub.DEFAULT,
    device: str = "auto",
    threads: int | None = None,
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    revision: str | None = None,
    local_files_only: bool = False,
    sample_rate: float | None = None,
    channel: int | None = None,
    track: int | None = None,
    vad: Vad = "auto",
    silence: float | None = None,
    max_new_tokens: int | None = None,
    batch: int = BATCH,
    word_timestamps: bool = False,
    progress: Callable[[float, float | None], object] | None = None,
) -> Transcript:
    """Opens a model, transcribes one recording, and closes the model.

    For more than one recording make a `Model` once: opening it takes time.

    Args:
        audio: See `Model.transcribe`.
        model: See `Model`.
        device: See `Model`.
        threads: See `Model`.
        precision: See `Model`.
        runtime: See `Model`.
        revision: See `Model`.
        local_files_only: See `Model`.
        sample_rate: See `Model.transcribe`.
        channel: See `Model.transcribe`.
        track: See `Model.transcribe`.
        vad: See `Model.transcribe`.
        silence: See `Model.transcribe`.
        max_new_tokens: See `Model.transcribe`.
        batch: See `Model.transcribe`.
        word_timestamps: See `Model.transcribe`.
        progress: See `Model.transcribe`.

    Raises:
        PycrispasrError: What `Model` and `Model.transcribe` raise.
    """
    with Model(
        model, device=device, threads=threads, precision=precision, runtime=runtime, revision=revision,
        local_files_only=local_files_only,
    ) as opened:  # fmt: skip
        return opened.transcribe(
            audio, sample_rate=sample_rate, channel=channel, track=track, vad=vad, silence=silence,
            max_new_tokens=max_new_tokens, batch=batch, word_timestamps=word_timestamps, progress=progress,
        )  # fmt: skip
