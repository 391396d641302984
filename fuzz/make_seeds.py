"""Writes what the fuzzers begin with: a folder of small files for each target, and a model for those that need one.

python fuzz/make_seeds.py FOLDER
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
from pathlib import Path

import numpy as np
import soundfile

from pycrispasr.models import random_model

# The smallest sizes that have every part of the architecture: 15 kB, and a millisecond for a second of audio.
SMALLEST = {
    "enc.num_mel_bins": 8,
    "enc.encoder_layers": 1,
    "enc.d_model": 8,
    "enc.encoder_attention_heads": 2,
    "enc.encoder_ffn_dim": 8,
    "enc.downsample_hidden_size": 4,
    "enc.output_dim": 8,
    "adapter.hidden_size": 8,
    "llm.hidden_size": 8,
    "llm.num_layers": 1,
    "llm.num_heads": 2,
    "llm.num_kv_heads": 1,
    "llm.head_dim": 4,
    "llm.intermediate_size": 8,
    "llm.vocab_size": 276,
    "llm.max_position_embeddings": 512,
}
# Windows of 80 ms, of which the model takes 14: few bytes of a session's course are more than it has room for.
SHORT_WINDOWS = {"enc.n_window": 2, "enc.n_window_infer": 8, "llm.max_position_embeddings": 40}
WHOLE_BLOCKS = {"llm.hidden_size": 32, "llm.intermediate_size": 32, "llm.head_dim": 16}


def models(folder: Path) -> None:
    """Model files of every type that blocks of 32 allow, with and without what may be left out."""
    for kind in ("f32", "f16", "bf16", "q8_0", "q4_0", "q5_1"):
        is_float = kind in ("f32", "f16", "bf16")
        sizes = SMALLEST if is_float else SMALLEST | WHOLE_BLOCKS
        random_model.generate(folder / f"{kind}.gguf", hyperparameters=sizes, type=kind, mel_tables=kind == "f32")
    short = SMALLEST | SHORT_WINDOWS
    random_model.generate(folder / "short_windows.gguf", hyperparameters=short, type="f16", mel_tables=False)
    untied = SMALLEST | {"llm.tied_embeddings": False, "llm.num_layers": 2, "enc.n_window": 8, "enc.n_window_infer": 32}
    random_model.generate(folder / "untied.gguf", hyperparameters=untied, type="f16", mel_tables=False)
    for family, more in (
        ("qwen3-asr", {}),
        # Windows of 160 ms, and room for its long instruction, a token for each byte.
        ("moss-diarize", {"enc.max_source_positions": 8, "llm.vocab_size": 300, "llm.max_position_embeddings": 512}),
    ):
        random_model.generate(
            folder / f"{family}.gguf",
            preset=f"{family}-nano",
            hyperparameters=SMALLEST | more,
            type="f16",
            mel_tables=False,
        )
    aligner = {key: size for key, size in SMALLEST.items() if key != "adapter.hidden_size"} | {"align.bins": 20}
    for bias in (0, 1):
        random_model.generate(
            folder / f"aligner_{bias}.gguf", preset="qwen3-aligner-nano", type="f16", mel_tables=False,
            hyperparameters=aligner | {"align.bias": bias},
        )  # fmt: skip


def texts(folder: Path) -> None:
    """Words, and what cuts them."""
    for name, text in {
        "words": "four hundred and september twenty one yankee juliett",
        "contractions": "I'm, you're; he'LL we've don't 'tis",
        "spaces": " a  b\t\tc\r\n\r\n  d \u3000e\u00a0f\n",
        "numbers": "3.14159 ½ ² ١٢٣ 一二三",
        "scripts": "你好世界 Straße naïve Ελλάδα Привет नमस्ते 👩‍🚀",
        "special": "<|im_start|>user<|im_end|>",
        "long": "assistant" * 100,
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "not_utf8").write_bytes(bytes(range(256)))


def matrices(folder: Path) -> None:
    """Rows of each float type, sound and not, to each kind of quantised type."""
    values = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    odd = np.array([np.nan, np.inf, -np.inf, 3e38, 1e-45, 0, -0.0, 65504], np.float32)
    for target in range(30):
        for name, content in (("sound", values.tobytes()), ("odd", odd.tobytes())):
            header = struct.pack("<HHH", 0, target, 4 * (target % 2) + ((2048 + 7) << 4))
            (folder / f"{name}_{target}").write_bytes(header + content)
        header = struct.pack("<HHH", target, (target + 1) % 30, (2048 + 7) << 4)
        (folder / f"blocks_{target}").write_bytes(header + bytes(range(256)))


def calls(folder: Path) -> None:
    """Courses that a session takes, of up to 72 bytes: see session.cpp for the numbers."""

    def feed(sequence: int, count: int) -> bytes:
        return struct.pack("<bBHhHf", sequence, 0, count, 300, 0, 0.1)

    begin = struct.pack("<Bbbbb", 255, 4, 2, 0, 1)
    used = struct.pack("<B", 2)
    end = struct.pack("<bBh", 0, 3, -1)
    following = struct.pack("<bBb", 0, 4, 1)
    both = struct.pack("<bBb", 0, 4, 2)
    hypothesis = struct.pack("<bBB", 0, 6, 8)
    result, attention = struct.pack("<bB", 0, 10), struct.pack("<bBH", 0, 11, 4000)
    clear, reset, cancel = struct.pack("<bB", 0, 7), struct.pack("<bB", 0, 8), struct.pack("<bBB", 0, 9, 1)
    one = feed(0, 4000) + end + following * 2 + result + attention
    other = struct.pack("<bBh", 1, 3, 500)
    for name, course in {
        "one": begin + one,
        "used": used + one,
        "again": used + one + clear + one,
        "two": begin + feed(0, 4000) + feed(1, 3000) + end + other + both * 5,
        "hypotheses": used + (feed(0, 4000) + hypothesis) * 3 + end + following * 2,
        "too_long": used + feed(0, 4000) * 5 + end,
        "cancelled": begin + feed(0, 4000) + cancel + end + following + reset + one,
    }.items():
        (folder / name).write_bytes(course)


def recordings(folder: Path) -> None:
    """A tenth of a second in each format that libsndfile writes, and joined, cut and packed files."""
    sound = (0.3 * np.sin(np.arange(800) ** 1.2 / 9)).astype(np.float32)
    stereo = np.stack([sound, -sound[::-1]], axis=1)
    for kind, subtype, samples in (
        ("WAV", "PCM_16", sound),
        ("WAV", "FLOAT", stereo),
        ("WAV", "ULAW", sound),
        ("WAV", "IMA_ADPCM", sound),
        ("RF64", "PCM_16", sound),
        ("W64", "PCM_16", sound),
        ("AIFF", "PCM_16", stereo),
        ("AU", "PCM_16", sound),
        ("CAF", "PCM_16", sound),
        ("FLAC", "PCM_16", stereo),
        ("OGG", "VORBIS", sound),
        ("OGG", "OPUS", sound),
        ("MP3", "MPEG_LAYER_III", sound),
    ):
        file = io.BytesIO()
        soundfile.write(file, samples, 8000, format=kind, subtype=subtype)
        content = file.getvalue()
        (folder / f"{kind}_{subtype}".lower()).write_bytes(b"\0" + content)
        if subtype in ("PCM_16", "VORBIS", "MPEG_LAYER_III"):
            (folder / f"joined_{kind}".lower()).write_bytes(b"\0" + content * 2)
            (folder / f"cut_{kind}".lower()).write_bytes(b"\1" + content[: len(content) * 2 // 3])
    try:
        import av
    except ImportError:
        return
    for name, codec in (("mp4", "aac"), ("matroska", "libopus"), ("mpegts", "mp2"), ("webm", "libopus")):
        file = io.BytesIO()
        with av.open(file, "w", format=name) as container:
            stream = container.add_stream(codec, rate=48000)
            frame = av.AudioFrame.from_ndarray(np.tile(sound, 6)[None], format="fltp", layout="mono")
            frame.sample_rate = 48000
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        (folder / name).write_bytes(b"\0" + file.getvalue())


def model_files(folder: Path) -> None:
    """What models are shown and made of: see targets.py for the first byte."""
    path = folder / "gguf"
    random_model.generate(path, hyperparameters=SMALLEST, type="f16", mel_tables=False)
    path.write_bytes(b"\0" + path.read_bytes()[:9000])
    for kind in ("F32", "BF16", "I64"):
        tensor = {"dtype": kind, "shape": [2, 2], "data_offsets": [0, {"F32": 16, "BF16": 8, "I64": 32}[kind]]}
        header = json.dumps({"__metadata__": {"format": "pt"}, "model.weight": tensor}).encode()
        (folder / f"safetensors_{kind}").write_bytes(b"\1" + struct.pack("<Q", len(header)) + header + bytes(32))
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    tokenizer = {"model": model, "added_tokens": [{"id": 3, "content": "<|im_end|>"}]}
    (folder / "tokenizer").write_bytes(b"\2" + json.dumps(tokenizer).encode())


def lists(folder: Path) -> None:
    """Lists of recordings and of results, CSV and JSON Lines."""
    (folder / "csv").write_bytes(b'\0audio,speaker\na.wav,"one, two"\nhttps://u:p@example.org/b.mp3,\n')
    (folder / "columns").write_bytes(b"\0path,text,status\r\na.wav,hello,done\r\n")
    (folder / "json").write_bytes(b'\1{"audio": "a.wav", "n": 1}\n{"audio_filepath": "b.wav", "tags": ["x", null]}\n')
    (folder / "results_csv").write_bytes(
        b"\2audio,text,status,complete,duration,error\na.wav,hello,done,True,1.5,\nb.wav,,failed,False,,no file\n"
    )
    (folder / "results_json").write_bytes(
        b'\3{"audio": "a.wav", "text": "hello", "status": "done", "complete": true, "duration": 1.5, "error": null}\n'
    )


def outputs(folder: Path) -> None:
    """Texts and names: see targets.py for the numbers."""
    for number, text in enumerate(("hello world", "a --> b\n\n<c>{\\an8}", '你好\u2028\u202e\t,"', "x" * 300, "")):
        (folder / str(number)).write_bytes(
            bytes(range(0, 96, 12)) + bytes([number % 2]) + f"{text}\0../talk.{text[:3]}\0{text}".encode()
        )


def answers(folder: Path) -> None:
    """What a hub answers to the requests of a download, one after the other, as HTTP."""
    commit, digest = "1" * 40, hashlib.sha256(b"GGUF").hexdigest()
    head = (
        f'HTTP/1.1 200 OK\r\nX-Repo-Commit: {commit}\r\nETag: "{digest}"\r\nX-Linked-Size: 4\r\n'
        "Content-Length: 4\r\n\r\n"
    ).encode()
    body = json.dumps([{"type": "file", "path": "a.gguf", "size": 4, "oid": "0"}]).encode()
    tree = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    content = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nGGUF"
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    sound = (
        b"HTTP/1.1 200 OK\r\n\r\n" + b".snd\0\0\0\x18\xff\xff\xff\xff\0\0\0\1\0\0\x1f\x40\0\0\0\1" + b"\x55\xd5" * 90
    )
    elsewhere = b"HTTP/1.1 302 Found\r\nLocation: https://files.example.org/b.au\r\n\r\n"
    inside = b"HTTP/1.1 302 Found\r\nLocation: http://files.internal/b.au\r\n\r\n"
    missing = b"HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\n\r\n"
    for name, course in {
        "file": (b"\0", head, content),
        "only_file": (b"\1", tree, head, content),
        "moved": (b"\0", moved, head, content),
        "missing": (b"\0", missing),
        "recording": (b"\2", sound),
        "recording_elsewhere": (b"\4", elsewhere, sound),
        "recording_inside": (b"\4", inside, sound),
        "public_recording": (b"\5", elsewhere, sound),
    }.items():
        (folder / name).write_bytes(course[0] + b"\0\0\0\0".join(course[1:]))


def make(folder: Path) -> None:
    """Writes all of them, a folder for each target."""
    for target, write in {
        "model": models,
        "tokenizer": texts,
        "quantize": matrices,
        "session": calls,
        "audio": recordings,
        "model_files": model_files,
        "lists": lists,
        "outputs": outputs,
        "hub": answers,
    }.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        write(folder / target)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
