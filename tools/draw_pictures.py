"""Draws docs/pictures/*.svg, for docs/how-it-works.md: a real recording, and what the bundled model makes of it.

Needs matplotlib, for its colours.

python tools/draw_pictures.py
"""

from __future__ import annotations

import base64
import io
import math
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pycrispasr
from pycrispasr import audio
from pycrispasr.decoding import word_times
from pycrispasr.models import hub
from pycrispasr.runtimes import native

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "pictures"
SAMPLE = ROOT / "samples" / "digits.wav"
WIDTH = 760

# The pictures take the reader's light or dark, as the site does.
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #22303c; }
.small { font-size: 11px; fill: #52616e; }
.bold { font-weight: 600; }
.code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.box { fill: #e3f2ef; stroke: #2f8f83; }
.plain { fill: #eef1f4; stroke: #8795a1; }
.warm { fill: #fdeedd; stroke: #c9812e; }
.wave { fill: #2f8f83; }
.tip { fill: #52616e; }
.line { fill: none; stroke: #52616e; stroke-width: 1.2; }
.curve { fill: none; stroke: #c9812e; stroke-width: 1.4; }
.path { fill: none; stroke: #ffffff; stroke-width: 1.5; }
.faint { fill: none; stroke: #8795a1; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e3e8ee; }
  .small { fill: #a9b6c2; }
  .box { fill: #17413c; stroke: #56b8ab; }
  .plain { fill: #2b333c; stroke: #8795a1; }
  .warm { fill: #4b3418; stroke: #d99a4e; }
  .wave { fill: #56b8ab; }
  .tip { fill: #a9b6c2; }
  .line { stroke: #a9b6c2; }
  .curve { stroke: #e5ab66; }
}
"""


class Picture:
    """An SVG file that grows by parts."""

    def __init__(self, name: str, height: int, title: str) -> None:
        self.name, self.height, self.title = name, height, title
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, style: str = "") -> None:
        """Text whose baseline begins at a place; the style says whether it is centred there or ends there."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{style}">{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, style: str = "box", radius: float = 5) -> None:
        """A rectangle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{style}"/>'
        )

    def labelled(self, x: float, y: float, width: float, height: float, lines: list[str], style: str = "box") -> None:
        """A box with a name, and smaller lines below it."""
        self.box(x, y, width, height, style)
        top = y + height / 2 - (len(lines) - 1) * 8 + 4.5
        for place, line in enumerate(lines):
            self.text(x + width / 2, top + 16 * place, line, "middle bold" if place == 0 else "middle small")

    def line(self, points: list[tuple[float, float]], style: str = "line", tip: bool = False) -> None:
        """A line through points, with an arrow's tip at its end if wanted."""
        self.parts.append(f'<polyline points="{" ".join(f"{x:.4g},{y:.4g}" for x, y in points)}" class="{style}"/>')
        if tip:
            (x0, y0), (x, y) = points[-2:]
            angle = math.degrees(math.atan2(y - y0, x - x0))
            self.parts.append(
                f'<path d="M0,0 L-8,-4 L-8,4 Z" class="tip" transform="translate({x:g},{y:g}) rotate({angle:g})"/>'
            )

    def wave(self, x: float, y: float, width: float, height: float, samples: audio.Samples) -> None:
        """The largest and the smallest sample for each pixel, around the middle line y."""
        columns = np.array_split(samples, round(width))
        scale = height / 2 / max(float(np.abs(samples).max()), 1e-9)
        up = [(x + i, y - max(float(part.max()) * scale, 0.3)) for i, part in enumerate(columns)]
        down = [(x + i, y - min(float(part.min()) * scale, -0.3)) for i, part in enumerate(columns)]
        points = " ".join(f"{px:g},{py:.1f}" for px, py in up + down[::-1])
        self.parts.append(f'<polygon points="{points}" class="wave"/>')

    def image(self, x: float, y: float, width: float, height: float, values: npt.NDArray[Any]) -> None:
        """Numbers `[rows, columns]` as colours, the first row below."""
        from matplotlib import image

        file = io.BytesIO()
        image.imsave(file, values, origin="lower", cmap="viridis", format="png")
        content = base64.b64encode(file.getvalue()).decode()
        self.parts.append(
            f'<image x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" preserveAspectRatio="none" '
            f'style="image-rendering: pixelated" href="data:image/png;base64,{content}"/>'
        )

    def save(self) -> None:
        """Writes the file."""
        content = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(self.title)}">\n<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )
        path = OUT / f"{self.name}.svg"
        path.write_text(content, encoding="utf-8", newline="\n")
        print(f"{path.name}: {len(content)} bytes")


def way() -> None:
    picture = Picture("way", 252, "The data flow from a recording to text")
    steps = [
        ("Recording", "file, bytes, array,", "microphone, address", "audio/decoders.py"),
        ("Samples", "mono, 16,000 a second", "float32", "audio/reader.py"),
        ("Log-mel", "100 frames a second", "of 128 values", "csrc/mel.cpp"),
        ("Encoder", "13 rows a second", "of 2048 values", "csrc/nn/encoder.cpp"),
        ("Adapter, prompt", "13 positions a second", "and 10 around them", "csrc/session.cpp"),
        ("Decoder", "one token after the other", "until the last", "csrc/nn/decoder.cpp"),
        ("Segments", "text, status, tokens,", "times of words", "results/segment.py"),
        ("Output", "text, subtitles,", "tables, JSON", "results/formats.py"),
    ]
    width, height, gap = 160.0, 84.0, 36.0
    for place, (name, first, second, file) in enumerate(steps):
        row, column = divmod(place, 4)
        x, y = 5 + column * (width + gap), 6.0 + row * 130
        picture.labelled(x, y, width, height, [name, first, second], "box" if "csrc" in file else "plain")
        picture.text(x + width / 2, y + height + 15, file, "middle small code")
        if column:
            picture.line([(x - gap + 2, y + height / 2), (x - 2, y + height / 2)], tip=True)
    right, middle = 5 + 4 * width + 3 * gap, 118.0
    picture.line([(right - width / 2, 109), (right - width / 2, middle), (85, middle), (85, 134)], tip=True)
    picture.save()


def log_mel(samples: audio.Samples, mel: npt.NDArray[Any]) -> None:
    picture = Picture("log-mel", 336, "Samples, windows and the log-mel spectrogram of spoken digits")
    left, width = 60.0, 690.0
    seconds = len(samples) / audio.SAMPLE_RATE
    picture.text(left - 8, 40, "samples", "end small")
    picture.wave(left, 36, width, 60, samples)

    # A stretch of 65 ms under the glass: five windows, one every 10 ms.
    begin, stretch = 0.62, 0.065
    x0, x1 = left + begin / seconds * width, left + (begin + stretch) / seconds * width
    picture.box(x0, 4, x1 - x0, 64, "faint", 0)
    zoom, top = 430.0, 118.0
    picture.line([(x0, 68), (left + 130, 92)], "faint")
    picture.line([(x1, 68), (left + 130 + zoom, 92)], "faint")
    part = samples[round(begin * 16000) : round((begin + stretch) * 16000)]
    picture.wave(left + 130, top, zoom, 40, part)
    for place in range(5):
        phase = np.linspace(0, 2 * np.pi, 40)
        xs = left + 130 + (place * 0.010 + phase / (2 * np.pi) * 0.025) / stretch * zoom
        ys = top + 26 - 50 * (0.5 - 0.5 * np.cos(phase))
        picture.line([(float(x), float(y)) for x, y in zip(xs, ys, strict=True)], "curve")
    picture.text(left + 130 + zoom + 10, top - 6, "windows of 25 ms,", "small")
    picture.text(left + 130 + zoom + 10, top + 10, "one every 10 ms", "small")
    picture.text(left + 120, top - 6, "each: spectrum,", "end small")
    picture.text(left + 120, top + 10, "128 mel bands, log", "end small")

    picture.image(left, 160, width, 140, mel.T)
    picture.text(left - 8, 172, "8 kHz", "end small")
    picture.text(left - 8, 234, "log-mel", "end small")
    picture.text(left - 8, 299, "0 Hz", "end small")
    for second in range(int(seconds) + 1):
        x = left + second / seconds * width
        picture.line([(x, 300), (x, 306)])
        picture.text(x, 320, f"{second} s", "middle small")
    picture.save()


def encoder() -> None:
    picture = Picture("encoder", 306, "The convolutions of one second, and attention in windows of eight")
    picture.text(5, 16, "One second", "bold")
    sizes = [(100, 128, 1), (50, 64, 480), (25, 32, 480), (13, 16, 480)]
    x = 5.0
    for place, (frames, bands, channels) in enumerate(sizes):
        picture.box(x, 104 - bands * 0.6, frames * 0.9, bands * 0.6, "plain" if place == 0 else "box", 2)
        picture.text(x + frames * 0.45, 120, f"{frames} × {bands}", "middle small")
        picture.text(x + frames * 0.45, 135, "log-mel" if place == 0 else f"× {channels}", "middle small")
        x += frames * 0.9 + 52
        picture.line([(x - 46, 84), (x - 8, 84)], tip=True)
        picture.text(x - 28, 76, "conv" if place < 3 else "linear", "middle small")
    for row in range(13):
        picture.box(x + 2, 28 + row * 6, 150, 4, "warm", 1)
    picture.text(x + 76, 120, "13 rows of 1280 values,", "middle small")
    picture.text(x + 76, 135, "with their places in the second", "middle small")

    picture.text(5, 172, "20 seconds", "bold")
    for second in range(20):
        picture.box(5 + second * 22, 184, 20, 22, "warm", 2)
    picture.text(5, 224, "each second by itself", "small")
    for start, end in ((0, 8), (8, 16), (16, 20)):
        picture.box(5 + start * 22, 236, (end - start) * 22 - 2, 30, "box")
        picture.text(5 + (start + end) * 11 - 1, 255, f"{(end - start) * 13} rows", "middle small")
    picture.text(5, 284, "32 layers, in which the rows of 8 seconds attend to each other;", "small")
    picture.text(5, 299, "a window is encoded once, as soon as more audio follows it", "small")
    left, top, side = 560.0, 158.0, 124.0
    picture.box(left, top, side, side, "plain", 0)
    for start, end in ((0, 8), (8, 16), (16, 20)):
        a, b = start / 20 * side, end / 20 * side
        picture.box(left + a, top + a, b - a, b - a, "box", 0)
    picture.text(left + side / 2, 299, "row looks at row", "middle small")
    picture.save()


def prompt() -> None:
    picture = Picture("prompt", 264, "The adapter, and the prompt around the audio's rows")
    picture.text(5, 16, "Adapter, for each row", "bold")
    picture.labelled(5, 50, 110, 44, ["encoder row", "2048"], "warm")
    picture.labelled(190, 28, 130, 40, ["gate, SiLU", "8192"])
    picture.labelled(190, 78, 130, 40, ["up", "8192"])
    picture.labelled(385, 50, 60, 44, ["×", "8192"])
    picture.labelled(510, 50, 90, 44, ["down", "2048"])
    picture.line([(117, 72), (150, 72), (150, 48), (188, 48)], tip=True)
    picture.line([(117, 72), (150, 72), (150, 98), (188, 98)], tip=True)
    picture.line([(322, 48), (350, 48), (350, 66), (383, 66)], tip=True)
    picture.line([(322, 98), (350, 98), (350, 78), (383, 78)], tip=True)
    picture.line([(447, 72), (508, 72)], tip=True)

    picture.text(5, 152, "Prompt", "bold")
    y, x = 166.0, 5.0
    tokens = [
        ("<|im_start|>", 76, "plain"),
        ("user", 34, "plain"),
        ("\\n", 24, "plain"),
        ("begin", 40, "plain"),
        ("rows of audio, 13 a second", 196, "warm"),
        ("end", 32, "plain"),
        ("<|im_end|>", 68, "plain"),
        ("\\n", 24, "plain"),
        ("<|im_start|>", 76, "plain"),
        ("assistant", 60, "plain"),
        ("\\n", 24, "plain"),
        ("text …", 52, "box"),
    ]
    audio_x = text_x = 0.0
    for token, width, style in tokens:
        picture.box(x, y, width, 30, style, 3)
        picture.text(x + width / 2, y + 19, token, "middle small")
        audio_x = x + width / 2 if style == "warm" else audio_x
        text_x = x + width / 2
        x += width + 4
    picture.line([(602, 72), (650, 72), (650, 132), (audio_x, 132), (audio_x, 164)], tip=True)
    picture.line([(5, 208), (187, 208)])
    picture.text(5, 224, "read before the audio comes", "small")
    picture.line([(191, 208), (387, 208)])
    picture.text(191, 224, "window by window, as it comes", "small")
    picture.line([(391, 208), (699, 208)])
    picture.text(391, 224, "when the stretch has ended", "small")
    picture.line([(text_x, 230), (text_x, 200)], tip=True)
    picture.text(WIDTH - 5, 246, "written token by token", "end small")
    picture.save()


def decoder() -> None:
    picture = Picture("decoder", 300, "The decoder's cache, and how a draft is checked")
    picture.text(5, 16, "KV cache: what has been read stays read", "bold")
    moments = [
        ("8 s heard", 104, 0, 0),
        ("16 s heard", 208, 0, 0),
        ("end, at 20 s", 260, 6, 0),
        ("after 40 tokens", 260, 6, 40),
    ]
    for row, (name, rows, closing, tokens) in enumerate(moments):
        y = 28 + row * 27.0
        picture.text(112, y + 15, name, "end small")
        x = 120.0
        for count, style in ((4, "plain"), (rows, "warm"), (closing, "plain"), (tokens, "box")):
            if count:
                picture.box(x, y, max(count * 1.5, 8), 20, style, 2)
                x += max(count * 1.5, 8) + 1
    picture.text(640, 42, "prompt", "small")
    picture.box(620, 33, 12, 12, "plain", 2)
    picture.text(640, 64, "audio", "small")
    picture.box(620, 55, 12, 12, "warm", 2)
    picture.text(640, 86, "text", "small")
    picture.box(620, 77, 12, 12, "box", 2)

    picture.text(5, 172, "Draft: the text so far is expected again", "bold")
    draft = ["the", "ship", "sails", "on", "Mon", "day", "morn", "ing"]
    chosen = ["the", "ship", "sails", "on", "Sun", "day", "morn", "ing"]
    for place, (one, other) in enumerate(zip(draft, chosen, strict=True)):
        x = 120 + place * 62.0
        picture.box(x, 184, 58, 26, "plain", 3)
        picture.text(x + 29, 201, one, "middle small")
        picture.box(x, 240, 58, 26, "box" if one == other else "warm", 3)
        picture.text(x + 29, 257, other, "middle small")
        picture.line([(x + 29, 212), (x + 29, 238)], tip=True)
    picture.text(112, 201, "draft", "end small")
    picture.text(112, 257, "chosen", "end small")
    picture.text(120, 286, "read at once, kept as long as", "small")
    picture.text(120, 299, "the decoder chooses the same", "small")
    picture.text(368, 286, "its own choice", "small")
    picture.text(368, 299, "stands", "small")
    picture.text(462, 286, "followed again where it is right", "small")
    picture.save()


def words(samples: audio.Samples) -> None:
    path = hub.resolve("tiny")
    model = native.NativeModel(path, "cpu")
    info = model.info()
    heads, kind = word_times.heads_of(path, info["llm_layers"], info["llm_heads"])
    session = native.NativeSession(model, threads=1, heads=heads)
    session.feed(samples)
    session.end()
    tokens = [model.token_bytes(step[0]).decode().strip() for step in iter(session.next, None)]
    attention = session.attention()[: len(tokens)]
    attention = attention / attention.sum(axis=-1, keepdims=True)
    picture_rows = attention.mean(axis=1)
    edges = word_times.row_edges(len(samples) * 100 // audio.SAMPLE_RATE, info["chunk_frames"])
    others = (picture_rows.sum(axis=0) + 1 / picture_rows.shape[1]) / (len(tokens) + 1)
    path_of = word_times.warp(picture_rows - others)
    with pycrispasr.Model("tiny") as opened:
        found = opened.transcribe(SAMPLE, word_timestamps=True).segments[0].words or ()

    picture = Picture("word-times", 344, f"Attention of {len(heads)} {kind} heads, and the words' times")
    left, width, top, height = 60.0, 690.0, 8.0, 176.0
    seconds = len(samples) / audio.SAMPLE_RATE
    step = height / len(tokens)
    even = np.zeros((len(tokens), len(samples) * 100 // audio.SAMPLE_RATE))  # rows are not all equally long
    for row in range(len(edges) - 1):
        even[:, round(edges[row] * 100) : round(edges[row + 1] * 100)] = picture_rows[:, row : row + 1]
    picture.image(left, top, width, height, even[::-1])
    points: list[tuple[float, float]] = []
    for place, (first, last) in enumerate(path_of):
        y = top + (place + 0.5) * step
        points += [(left + edges[first] / seconds * width, y), (left + edges[last + 1] / seconds * width, y)]
        picture.text(left - 8, y + 4, tokens[place], "end small")
    picture.line([(float(x), float(y)) for x, y in points], "path")
    middle = top + height + 52
    for one in found:
        x0, x1 = left + one.start / seconds * width, left + one.end / seconds * width
        picture.box(x0, middle - 36, x1 - x0, 72, "warm", 2)
    picture.wave(left, middle, width, 60, samples)
    for one in found:
        x = left + (one.start + one.end) / 2 / seconds * width
        picture.text(x, middle + 52, one.text, "middle")
        picture.text(x, middle + 68, f"{one.start:.2f}–{one.end:.2f}", "middle small")
    picture.text(left, middle + 96, "above: each token's attention to each 80 ms, and the best path", "small")
    picture.text(left, middle + 111, "below: the words' edges, moved to where the sound begins and ends", "small")
    picture.save()


def main() -> None:
    samples = audio.load(SAMPLE)
    model = native.NativeModel(hub.resolve("tiny"), "cpu")
    OUT.mkdir(exist_ok=True)
    way()
    log_mel(samples, native.NativeSession(model, threads=1).log_mel(samples))
    encoder()
    prompt()
    decoder()
    words(samples)


if __name__ == "__main__":
    main()
