"""Models, and the devices they run on."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pycrispasr.audio import CHUNK_SECONDS, Audio, load
from pycrispasr.decoding import forced_alignment, word_times
from pycrispasr.decoding.conversation import Conversation
from pycrispasr.decoding.decoder import CrispasrDecoder, Decoder, EngineDecoder
from pycrispasr.decoding.engine import Engine, EngineStats
from pycrispasr.decoding.forced_alignment import ForcedAligner
from pycrispasr.decoding.job import Job, Progress
from pycrispasr.decoding.recording import Recording
from pycrispasr.decoding.scheduler import Scheduler
from pycrispasr.errors import (
    ClosedError,
    ModelFormatError,
    UnsupportedModelError,
    UnsupportedOperationError,
    UsageError,
)
from pycrispasr.live.driver import Driver
from pycrispasr.live.session import Session
from pycrispasr.models import foreign, hub
from pycrispasr.models.families import ALIGNER, FAMILIES, Family
from pycrispasr.options import (
    AlignKeywords,
    DecodingOptions,
    JobKeywords,
    LoadingKeywords,
    LoadingOptions,
    ReadingOptions,
    Runtime,
    SessionKeywords,
    StreamKeywords,
    TranscribeKeywords,
    check_names,
    check_seconds,
    takes,
)
from pycrispasr.results.segment import Segment, Status, Token
from pycrispasr.results.transcript import Transcript
from pycrispasr.runtimes import crispasr, native
from pycrispasr.runtimes.crispasr_process import IsolatedCrispasrModel
from pycrispasr.segmentation.parts import PartsSegmenter
from pycrispasr.segmentation.segmenter import Segmenter
from pycrispasr.text import bytes_text

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_logger = logging.getLogger("pycrispasr")

_MOST_SEQUENCES = 16
_POSITIONS = 1024  # of the decoder, that a segment of 30 seconds takes

# Of models that hear whole recordings.
_TOKENS_PER_SECOND = 12  # of text with its speakers and times: more than two people say who interrupt each other
_MARKERS_PER_SECOND = 1  # tokens that tell the time, at the most
_PROMPT = 512  # positions beside these
_OVERLAP = 60.0  # seconds of two parts of a recording


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
        architecture: Its family, as its file calls it: "moss_transcribe", "qwen3asr".
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
        encoder_channels: Channels of the encoder's convolutions.
        encoder_output: Columns of an encoder row.
        llm_layers: Layers of the decoder.
        llm_heads: Attention heads of each.
        llm_hidden: Width of the decoder.
        llm_ffn: Width of the gated MLP in each layer of the decoder.
        llm_vocab: Tokens in the vocabulary.
        llm_max_positions: Tokens that the decoder can hold, prompt and text together.
        eos_token: The token that ends a text; of several, the first.
        file_bytes: Size of the file.
        weight_bytes: Size of the tensors in use.
        kv_bytes_per_token: Memory that the decoder keeps for each token of prompt and text.
        parameters: Number of weights.
        align_bins: Bins of time that a model for `Model.align` tells apart; 0 for one that writes what it hears.
        align_bin_ms: Milliseconds of each.
    """

    architecture: str
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
    encoder_channels: int
    encoder_output: int
    llm_layers: int
    llm_heads: int
    llm_hidden: int
    llm_ffn: int
    llm_vocab: int
    llm_max_positions: int
    eos_token: int
    file_bytes: int
    weight_bytes: int
    kv_bytes_per_token: int
    parameters: int
    align_bins: int
    align_bin_ms: int


@takes(LoadingKeywords)
class Model:
    """A speech recognition model, ready to use.

    A model never changes: any number of threads may use it at once. It is a context manager, which closes it.
    Pickled, it is its arguments, with which another process opens it anew.

    Args:
        name: "moss-transcribe" (fetched from the Hugging Face hub at its first use), "moss-transcribe:q8_0",
            "moss-transcribe:f16", "qwen3-asr:0.6b", "qwen3-asr:1.7b", "qwen3-aligner" (for `align`), "tiny" (the small
            model in this package), the path of a GGUF file, or "org/repo:file.gguf" of the hub.
        **options: See `LoadingOptions`.

    Raises:
        ModelNotFoundError: There is no such model, or it cannot be fetched or read.
        ModelFormatError: The file is no GGUF, or it is truncated or contradicts itself.
        UnsupportedModelError: The file is of another architecture, or has tensors of a type that cannot be computed.
        DeviceError: There is no such device, or it failed, or has no instructions for this precision.
        OutOfMemoryError: An allocation failed.
        InstallationError: `runtime` is "crispasr", and its library is missing.
        UsageError: `threads` is not positive, or there is no such runtime or precision, or `revision` is given for a
            file that is not from the hub.
        UnsupportedOperationError: The runtime offers no choice of precision; or `isolate`, and this program cannot
            start another Python.
    """

    def __init__(self, name: str | os.PathLike[str] = hub.DEFAULT, **options: Unpack[LoadingKeywords]) -> None:
        self._native: native.NativeModel | None = None
        self._crispasr: crispasr.CrispasrModel | IsolatedCrispasrModel | None = None
        self._info: ModelInfo | None = None
        self._longest = CHUNK_SECONDS
        self._family: Family | None = None
        self._engines: dict[int, Engine] = {}  # by process
        self._aligners: dict[str, Model] = {}  # by name
        self._name = os.fsdecode(name)
        check_names("Model", options, LoadingKeywords)
        self._options = LoadingOptions.of(options)
        self._path = hub.resolve(name, revision=self._options.revision, local_files_only=self._options.local_files_only)
        opened = _open(self._path, self._options)
        if isinstance(opened, native.NativeModel):
            self._native = opened
            self._info = ModelInfo(**opened.info())
            self._family = ALIGNER if self._info.align_bins else FAMILIES[self._info.architecture]
            if self._family.conversation:
                self._longest = _longest(self._info, self._options.sequences or 1)
        else:
            self._crispasr = opened
        self._runtime: Runtime = "pycrispasr" if self._info else "crispasr"

    @takes(JobKeywords)
    def transcribe(
        self,
        audio: Audio,
        *,
        progress: Callable[[float, float | None], object] | None = None,
        **options: Unpack[JobKeywords],
    ) -> Transcript:
        """Transcribes a whole recording.

        A recording longer than 30 seconds is divided, where nobody speaks if that is possible, into segments. Up to
        `batch` of them are decoded at once, which takes less time and more memory; the text does not depend on it. The
        audio is read as it is needed: hours of it take no more memory than minutes.

        A segment whose text repeats itself without end or is cut off, or that cannot be worked on, is tried once more
        in two parts, cut where it is quietest. What then still fails stays in the transcript with its `status`, and
        `complete` is false.

        Args:
            audio: A path, the bytes of an audio file, a binary file object, or an array of samples of shape `[frames]`
                or `[frames, channels]`: see `pycrispasr.audio.load`.
            progress: Called with the seconds of audio done and their total, or None where that is not known yet: at the
                beginning, and when segments are done.
            **options: See `ReadingOptions` and `DecodingOptions`.

        Raises:
            AudioError: The audio cannot be read or understood, or is too short.
            UsageError: `max_new_tokens`, `batch` or `silence` is not positive, or there is no such `vad`.
            ClosedError: The model is closed.
            ModelFormatError: With `word_timestamps`: the file beside the model that names its heads is damaged.
            OutOfMemoryError: An allocation failed.
            UnsupportedOperationError: `word_timestamps`, and CrispASR's library runs the model, or a GPU; or the model
                takes no such `language`, or no `context`.
        """
        check_names("transcribe", options, JobKeywords)
        with self._single(audio, ReadingOptions.of(options), DecodingOptions.of(options), progress) as job:
            return next(job)

    @takes(JobKeywords)
    def segments(self, audio: Audio, **options: Unpack[JobKeywords]) -> Iterator[Segment]:
        """Transcribes a whole recording, and gives its segments one by one as they become final.

        Args:
            audio: As for `transcribe`.
            **options: See `ReadingOptions` and `DecodingOptions`.

        Returns:
            A generator of those that are in the `Transcript`, in order. Closing it, or leaving the loop over it, stops
            the work and frees its memory.

        Raises:
            PycrispasrError: What `transcribe` raises.
            UnsupportedOperationError: CrispASR's library runs the model.
        """
        check_names("segments", options, JobKeywords)
        self._opened()
        return _segments(self._single(audio, ReadingOptions.of(options), DecodingOptions.of(options)))

    @takes(StreamKeywords)
    def stream(self, audio: Audio, **options: Unpack[StreamKeywords]) -> Iterator[Token]:
        """Transcribes a whole recording, and gives its tokens one by one as they are decoded.

        A segment that does not end well is not tried again, since its tokens have been given: see `segments`.

        Args:
            audio: As for `transcribe`.
            **options: See `ReadingOptions` and `DecodingOptions`.

        Returns:
            A generator. Closing it, or leaving the loop over it, stops the work and frees its memory.

        Raises:
            PycrispasrError: What `transcribe` raises.
            UnsupportedOperationError: CrispASR's library runs the model.
        """
        check_names("stream", options, StreamKeywords)
        self._opened()
        decoding = DecodingOptions.of({**options, "batch": 1})
        return _tokens(self._single(audio, ReadingOptions.of(options), decoding))

    @takes(JobKeywords)
    def transcribe_many(
        self,
        recordings: Iterable[Audio],
        *,
        errors: Literal["keep", "raise"] = "keep",
        **options: Unpack[JobKeywords],
    ) -> Iterator[Transcript]:
        """Transcribes recordings, several at once, each as `transcribe` would, and gives their transcripts in order.

        As soon as a segment of one recording is done, the next one takes its place, of whichever recording it is; a
        recording is read when there is room for its first segment. So memory does not grow with their number. `job`
        does the same work, and tells how far it is.

        Args:
            recordings: Any number of what `transcribe` takes.
            errors: "keep": a recording that `transcribe` would raise an error for has a transcript with no text, whose
                only segment has the status "failed" and the error's message; the others go on. "raise": the error is
                raised when the transcripts before it have been given, and ends the generator.
            **options: See `ReadingOptions` and `DecodingOptions`.

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
        check_names("transcribe_many", options, JobKeywords)
        self._opened()
        return _transcripts(self.job(recordings, errors=errors, **options))

    @takes(JobKeywords)
    def job(
        self,
        recordings: Iterable[Audio],
        *,
        errors: Literal["keep", "raise"] = "keep",
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[JobKeywords],
    ) -> Job:
        """Recordings on their way to transcripts: to iterate over, to look at meanwhile, and to cancel.

        `transcribe`, `segments`, `stream` and `transcribe_many` stand on it.

        Args:
            recordings: Any number of what `transcribe` takes. Each is taken when there is room for its first segment.
            errors: As for `transcribe_many`.
            progress: Called whenever there is a new token of a segment or a segment is done, and before a transcript is
                given.
            **options: See `ReadingOptions` and `DecodingOptions`.

        Raises:
            UsageError: `max_new_tokens`, `batch` or `silence` is not positive, or there is no such `vad` or `errors`.
            ClosedError: The model is closed.
            OutOfMemoryError: An allocation failed.
            UnsupportedOperationError: `word_timestamps`, and CrispASR's library runs the model, or a GPU; or the model
                takes no such `language`, or no `context`.
        """
        check_names("job", options, JobKeywords)
        if errors not in ("keep", "raise"):
            raise UsageError(f"errors cannot be {errors!r}: choose 'keep' or 'raise'")
        reading = ReadingOptions.of(options)
        decoding = DecodingOptions.of(options)
        decoder = self._decoder(decoding)
        open_one = self._opener(reading, decoding)
        opened = (open_one(recording) for recording in recordings)
        return Job(Scheduler(decoder, opened), errors=errors, progress=progress)

    @takes(SessionKeywords, batch=1)
    def session(
        self, *, partial_every: float | None = 1.0, buffer: float = 30.0, **options: Unpack[SessionKeywords]
    ) -> Session:
        """A session, for audio that comes in parts, and for a transcription that can be cancelled.

        With `vad="on"` each utterance becomes final as soon as silence has followed it; with "auto" that begins after
        30 seconds; with "off" every segment is as long as possible. With a `batch` of more than one the text of each
        segment comes later, and all of it sooner: for recordings that are fed faster than they were spoken. Segments
        have their words when they are final; tokens that `Session.tokens` gives before have no times.

        Args:
            partial_every: Seconds of audio after which the text so far is made, for `Session.text` and `Partial`
                events, or None for never. It takes at most about half of the time, and is made more rarely than asked
                for where a machine is too slow.
            buffer: Seconds of audio that wait for their turn after `Session.push`, at the most.
            **options: See `ReadingOptions` and `DecodingOptions`.

        Raises:
            UsageError: An option is not positive, or there is no such `vad`.
            ClosedError: The model is closed.
            OutOfMemoryError: An allocation failed.
            UnsupportedOperationError: CrispASR's library runs the model.
        """
        check_names("session", options, SessionKeywords)
        reading = ReadingOptions.of(options)
        return Session(
            Driver(
                self._engine_decoder(DecodingOptions.of({"batch": 1, **options}), live=True),
                vad=reading.vad,
                silence=reading.silence,
                partial_every=None if partial_every is None else check_seconds("partial_every", partial_every),
                buffer=check_seconds("buffer", buffer),
            )
        )

    @takes(AlignKeywords)
    def align(
        self,
        audio: Audio,
        text: str | Sequence[str] | Transcript,
        *,
        language: str | None = None,
        **options: Unpack[AlignKeywords],
    ) -> Transcript:
        """Tells when each word of a known text was said, with a model that is made for that ("qwen3-aligner").

        Audio and text are read in one pass, so that a long recording needs the segments of a `Transcript`, of whatever
        model: each of these is aligned by itself. Its makers have trained the published model with up to five minutes.

        Args:
            audio: As for `transcribe`.
            text: What is said in the recording. Each line becomes a segment of the result. Or its words, for writing
                whose words cannot be told by spaces. Or a transcript of this recording.
            language: One of `languages` or its English name; None: as the transcript tells it, or else the text is
                taken for one in which spaces divide words, and each Chinese character is a word.
            **options: See `ReadingOptions`.

        Returns:
            The text as a transcript whose `words` have times; or the given one, with those of its words and tokens. Its
            segments that cannot be aligned have none, and `warnings` say why.

        Raises:
            AudioError: The audio cannot be read or understood; or audio and text are too long for one pass; or no
                segment of a transcript can be aligned, or one ends behind the recording.
            UsageError: The text has no words.
            UnsupportedOperationError: The model is no aligner, or does not know the language; or the text is Japanese,
                and the package `nagisa`, which finds its words, is not installed.
            ClosedError: The model is closed.
            OutOfMemoryError: An allocation failed.
        """
        check_names("align", options, AlignKeywords)
        if not isinstance(text, str | Transcript) and not all(isinstance(word, str) for word in text):
            raise TypeError(f"text must be a str, a list of str or a Transcript, not {text!r:.40}")
        aligner = self._forced_aligner()
        code = None if language is None or self._family is None else self._family.language(language)
        if isinstance(text, str | Transcript):
            forced_alignment.check_language(code)
        samples = load(audio, **options)
        if isinstance(text, Transcript):
            return forced_alignment.align_transcript(aligner, samples, text, code)
        return forced_alignment.align_text(aligner, samples, text, code)

    def stats(self) -> EngineStats:
        """What the model's engine does, for all who use the model together. Any thread; it does no work.

        Raises:
            ClosedError: The model is closed.
            UnsupportedOperationError: CrispASR's library runs the model.
        """
        return self._engine(self._opened()).stats(self.info.weight_bytes)

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
    def longest(self) -> float:
        """Seconds of audio that the model hears in one go, at the most: longer recordings are divided.

        30; for a model that tells speakers apart as much as its positions and half of the free memory allow: a second
        takes an audio row for each 80 ms, and leaves room for 12 tokens of text.
        """
        if self._family is None or not self._family.conversation:
            return CHUNK_SECONDS
        return self._longest

    @property
    def languages(self) -> dict[str, str]:
        """What `language` can be: English names by code, of which either will do.

        Empty: the model takes no language, but writes what it hears.
        """
        return {} if self._family is None else dict(sorted(self._family.languages.items()))

    @property
    def takes_context(self) -> bool:
        """True where the model takes `context`."""
        return self._family is not None and self._family.takes_context

    @property
    def tells_speakers(self) -> bool:
        """True where the model tells speakers apart, for `Segment.speaker`."""
        return self._family is not None and self._family.conversation

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
        self._engines.clear()
        while self._aligners:
            self._aligners.popitem()[1].close()
        second, self._crispasr = self._crispasr, None
        if second is not None:
            second.close()

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
        arguments = dataclasses.asdict(self._options)
        return functools.partial(type(self), **arguments), (path if is_path else self._name,)

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

    def _single(
        self,
        audio: Audio,
        reading: ReadingOptions,
        decoding: DecodingOptions,
        progress: Callable[[float, float | None], object] | None = None,
    ) -> Job:
        """A job with one recording, which raises what the recording fails of, at once where it cannot be opened."""
        if self.closed:
            raise _model_closed(self._name)
        decoder = self._decoder(decoding)  # first: what it refuses need not be opened
        recording = self._opener(reading, decoding)(audio)
        if recording.failure is not None:
            raise recording.failure
        expected = recording.seconds_expected
        if expected is not None and expected <= CHUNK_SECONDS:
            decoder = self._decoder(dataclasses.replace(decoding, batch=1))
        report = None if progress is None else _Relay(progress)
        return Job(Scheduler(decoder, iter((recording,))), errors="raise", progress=report)

    def _opener(self, reading: ReadingOptions, decoding: DecodingOptions) -> Callable[[Audio], Recording]:
        """What opens recordings, and divides them as the model needs it."""
        if self._family is None or not self._family.conversation:
            return lambda recording: Recording.open(
                recording, reading, Segmenter(vad=reading.vad, silence=reading.silence)
            )
        longest = self.longest
        overlap = min(_OVERLAP, longest / 4)
        names = decoding.speakers or ()
        return lambda recording: Recording.open(
            recording, reading, PartsSegmenter(longest, overlap), Conversation(names, overlap)
        )

    def _decoder(self, options: DecodingOptions) -> Decoder:
        model = self._crispasr
        if model is None:
            return self._engine_decoder(options)
        if options.word_timestamps and not options.by_aligner:
            raise UnsupportedOperationError(
                "CrispASR's library, which runs this model, gives no word_timestamps of ours: "
                "word_timestamps='aligner' takes them from a model of their own"
            )
        if options.language is not None or options.context_text is not None:
            raise _unsupported("choice of language or context")
        if options.speakers is not None:
            raise _unsupported("speakers")
        return CrispasrDecoder(model, options.token_limit, self._aligner(options) if options.by_aligner else None)

    def _aligner(self, options: DecodingOptions) -> ForcedAligner:
        """What gives times to words, opened if need be."""
        chosen = hub.ALIGNER if options.aligner is None else options.aligner
        if not isinstance(chosen, Model):
            name, own = os.fsdecode(chosen), self._options
            if name not in self._aligners:
                made = Model(
                    chosen,
                    device=own.device,
                    threads=own.threads,
                    precision=own.precision,
                    local_files_only=own.local_files_only,
                    mmap=own.mmap,
                )
                self._aligners.setdefault(name, made)
            chosen = self._aligners[name]
        return chosen._forced_aligner()

    def _forced_aligner(self) -> ForcedAligner:
        """This model as one that tells when words were said."""
        model, info = self._opened(), self.info
        if not info.align_bins:
            raise UnsupportedOperationError(
                f"{self._name!r} writes what it hears, and does not tell when a known text was said: use an aligner, "
                f"such as {hub.ALIGNER!r}"
            )
        return ForcedAligner(self._engine(model), model, info.align_bin_ms)

    def _engine_decoder(self, options: DecodingOptions, *, live: bool = False) -> EngineDecoder:
        model = self._opened()
        aligner: word_times.Aligner | ForcedAligner | None = None
        if self.info.align_bins:
            raise UnsupportedOperationError(
                f"{self._name!r} writes no text, it tells when a known one was said: see Model.align; use a model that "
                "transcribes, such as 'qwen3-asr:0.6b'"
            )
        family = FAMILIES[self.info.architecture]
        language = None if options.language is None else family.language(options.language)
        context = options.context_text
        if options.speakers is not None and (live or not family.conversation):
            numbered = "a session numbers speakers anew in each of its segments, so it tells none"
            why = numbered if family.conversation else f"{family.name} does not tell speakers apart"
            raise UnsupportedOperationError(
                f"speakers={list(options.speakers)!r}: {why}; leave it out, or transcribe a recording with moss-diarize"
            )
        if options.word_timestamps and family.conversation and not options.by_aligner:
            raise UnsupportedOperationError(
                f"word_timestamps: {family.name} tells times of segments only; word_timestamps='aligner' takes "
                "those of words from a model of their own"
            )
        if context is not None and not family.takes_context:
            raise UnsupportedOperationError(
                f"context={_shortened(context)!r}: {family.name} takes no context; leave it out, or use a model that "
                "takes one, such as qwen3-asr:0.6b"
            )
        engine = self._engine(model)
        session = engine.opened()
        if options.by_aligner:
            forced_alignment.check_language(language)
            aligner = self._aligner(options)
        elif options.word_timestamps:
            heads, kind = word_times.heads_of(self._path, self.info.llm_layers, self.info.llm_heads)
            if not session.heads:
                raise UnsupportedOperationError(f"word_timestamps cannot be on the device {self.info.device!r}")
            aligner = word_times.Aligner(heads, kind, self.info.chunk_frames)
        retried: tuple[Status, ...] = ("looped", "truncated") if options.max_new_tokens is None else ("looped",)
        return EngineDecoder(
            engine,
            model,
            batch=options.batch,
            token_limit=functools.partial(_token_limit, options, family.conversation),
            live=live,
            retried=retried,
            aligner=aligner,
            language=None if language is None else family.languages[language],
            context=context,
            reader=functools.partial(family.reader, language),
        )

    def _engine(self, model: native.NativeModel) -> Engine:
        """This process's engine: threads do not survive a fork."""
        process = os.getpid()
        engine = self._engines.get(process)
        if engine is None:
            made = Engine(functools.partial(_open_session, model, self._path, self._options))
            engine = self._engines.setdefault(process, made)
        return engine


class _Relay:
    """Tells of a job's progress in seconds, when they have grown."""

    def __init__(self, tell: Callable[[float, float | None], object]) -> None:
        self._tell, self._done = tell, -1.0

    def __call__(self, progress: Progress) -> None:
        if progress.seconds > self._done:
            self._done = progress.seconds
            self._tell(progress.seconds, progress.expected)


def _segments(job: Job) -> Iterator[Segment]:
    with job:
        yield from job.segments()


def _tokens(job: Job) -> Iterator[Token]:
    with job:
        yield from job.tokens()


def _transcripts(job: Job) -> Iterator[Transcript]:
    with job:
        yield from job


def _token_limit(options: DecodingOptions, conversation: bool, seconds: float) -> int:
    """Tokens at which the text of a segment is cut."""
    if options.max_new_tokens is None and conversation:
        return max(options.token_limit, round(_TOKENS_PER_SECOND * seconds))
    return options.token_limit


def _open_session(model: native.NativeModel, path: Path, options: LoadingOptions) -> native.NativeSession:
    """The session of a model's engine, with the heads that word times are read from where the device can do that."""
    info = model.info()
    if info["align_bins"]:
        return native.NativeSession(model, threads=options.threads or 0)
    sequences = options.sequences or _sequences(info)
    make = functools.partial(native.NativeSession, model, threads=options.threads or 0, sequences=sequences)
    try:
        return make(heads=word_times.heads_of(path, info["llm_layers"], info["llm_heads"]).heads)
    except (ModelFormatError, UnsupportedOperationError):
        return make()  # who asks for word times is told why there are none


def _sequences(info: dict[str, Any]) -> int:
    """How many segments are decoded at once: as many as half of the free memory has room for, and at most 16.

    One of a model whose segments are whole recordings, since each takes as much memory as the longest.
    """
    if FAMILIES[info["architecture"]].conversation:
        return 1
    return max(1, min(_MOST_SEQUENCES, _free(info["device"]) // 2 // (_POSITIONS * int(info["kv_bytes_per_token"]))))


def _free(device: str) -> int:
    """Bytes of memory."""
    return next(int(one["memory_free"]) for one in native.devices() if one["name"] == device)


def _longest(info: ModelInfo, sequences: int) -> float:
    """Seconds of audio for which a model that hears whole recordings has positions, and this machine memory."""
    rows = info.chunk_rows / info.chunk_frames * info.sample_rate / info.hop_length  # a second
    per_second = rows + _MARKERS_PER_SECOND + _TOKENS_PER_SECOND
    memory = _free(info.device) // 2 // (sequences * info.kv_bytes_per_token)
    seconds = max(CHUNK_SECONDS, (min(info.llm_max_positions, memory) - _PROMPT) // per_second)
    _logger.info(
        "%s hears %.0f s of audio in one go: for each second %.1f audio rows, and room for %d tokens; %d positions "
        "take %s of memory",
        info.name or info.architecture, seconds, rows, _TOKENS_PER_SECOND, seconds * per_second + _PROMPT,
        bytes_text(round((seconds * per_second + _PROMPT) * info.kv_bytes_per_token)),
    )  # fmt: skip
    return seconds


def _open(path: Path, options: LoadingOptions) -> native.NativeModel | crispasr.CrispasrModel | IsolatedCrispasrModel:
    """The model in the runtime that was asked for, or else in the one that runs it."""
    threads = options.threads or 0
    if options.runtime == "crispasr":
        if options.precision != "auto":
            raise UnsupportedOperationError(
                f"CrispASR's library offers no choice of precision: leave out precision={options.precision!r}"
            )
        return foreign.open_with_crispasr(path, options.device, threads, options.isolate)
    try:
        return native.NativeModel(path, options.device, options.precision, mmap=options.mmap)
    except (ModelFormatError, UnsupportedModelError) as error:
        # Only now does anything else look into the file: it is sound, or no GGUF.
        kind = None if options.runtime == "pycrispasr" else foreign.architecture(path)
        if not kind or kind in FAMILIES:
            raise
        refusal = str(error)
    if crispasr.find() is None:
        raise UnsupportedModelError(f"{refusal}; CrispASR's library may run it: {crispasr.HOW}")
    try:
        return foreign.open_with_crispasr(path, options.device, threads, options.isolate)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{refusal}; {error}") from error


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _model_closed(name: str) -> ClosedError:
    return ClosedError(f"the model {name!r} is closed: open it again with Model({name!r})")


def _unsupported(what: str) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"CrispASR's library, which runs this model, gives no {what}: it can only transcribe() a whole recording"
    )


def devices() -> list[Device]:
    """The devices that a model can run on, the one that "auto" picks first."""
    return [Device(**fields) for fields in native.devices()]


def backends() -> list[Backend]:
    """The kinds of devices beside the CPU, in this build or not."""
    return [Backend(**fields) for fields in native.backends()]


@takes(TranscribeKeywords)
def transcribe(
    audio: Audio,
    *,
    model: str | os.PathLike[str] = hub.DEFAULT,
    progress: Callable[[float, float | None], object] | None = None,
    **options: Unpack[TranscribeKeywords],
) -> Transcript:
    """Opens a model, transcribes one recording, and closes the model.

    For more than one recording make a `Model` once: opening it takes time.

    Args:
        audio: See `Model.transcribe`.
        model: See `Model`.
        progress: See `Model.transcribe`.
        **options: See `LoadingOptions`, `ReadingOptions` and `DecodingOptions`.

    Raises:
        PycrispasrError: What `Model` and `Model.transcribe` raise.
    """
    check_names("transcribe", options, TranscribeKeywords)
    with Model(model, **dataclasses.asdict(LoadingOptions.of(options))) as opened:
        reading, decoding = ReadingOptions.of(options), DecodingOptions.of(options)
        return opened.transcribe(audio, progress=progress, **reading.keywords(), **decoding.keywords())
