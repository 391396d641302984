"""Records commands in a terminal, and draws the recording as an SVG picture that moves: docs/terminal.svg.

Everything in it is what the commands printed, when they printed it. Needs pyte, which knows what a terminal does with
what is printed, and a Unix system.

python tools/record_terminal.py
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "terminal.svg"
COMMANDS = [
    "pycrispasr transcribe -m tiny samples/hello.wav samples/digits.wav",
    "pycrispasr live -m tiny - < samples/long.raw",
]
COLUMNS, ROWS = 84, 9
CHARACTER, LINE, EDGE = 8.4, 20, 16  # sizes in pixels
TYPING = 0.03  # seconds for each character of a command
REST = 4.0  # seconds for which the end stands

STYLE = """
text { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d5dde5; white-space: pre; }
.prompt { fill: #56b8ab; } .dim { fill: #8b98a5; } .screen { fill: #1b232b; stroke: #5d6b78; }
.frame { visibility: hidden; }
"""


class Frame(NamedTuple):
    """What is on the screen from a moment on: for each line its stretches of text, each dim or not."""

    time: float
    lines: tuple[tuple[tuple[str, bool], ...], ...]


def seen(screen: Any, clock: float) -> Frame:
    """What is on the screen now. pyte does not know dim text, so `feed` shows it as italics."""
    lines = []
    for row in range(ROWS):
        stretches: list[tuple[str, bool]] = []
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            if stretches and stretches[-1][1] == cell.italics:
                stretches[-1] = stretches[-1][0] + cell.data, cell.italics
            else:
                stretches.append((cell.data, cell.italics))
        if stretches and not stretches[-1][0].strip():
            stretches.pop()
        lines.append(tuple(stretches))
    return Frame(clock, tuple(lines))


def record() -> list[Frame]:
    import pyte

    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    frames: list[Frame] = []
    clock = 0.0

    def feed(data: bytes, moment: float) -> None:
        stream.feed(data.replace(b"\x1b[2m", b"\x1b[3m"))
        frame = seen(screen, moment)
        if not frames or frames[-1].lines != frame.lines:
            frames.append(frame)

    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TERM": "xterm-256color",
        "COLUMNS": str(COLUMNS),
        "LINES": str(ROWS),
    }
    for command in COMMANDS:
        feed(b"$ ", clock)
        for end in range(4, len(command) + 4, 4):
            clock += 4 * TYPING
            feed(command[end - 4 : end].encode(), clock)
        clock += 0.3
        feed(b"\r\n", clock)
        master, slave = pty.openpty()
        begun = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave, close_fds=True
        )
        os.close(slave)
        while True:
            if select.select([master], [], [], 0.05)[0]:
                try:
                    data = os.read(master, 65536)
                except OSError:  # the end, on Linux
                    break
                if not data:
                    break
                feed(data, clock + time.monotonic() - begun)
            elif process.poll() is not None:
                break
        os.close(master)
        if process.wait():
            raise SystemExit(f"{command}: exit status {process.returncode}")
        clock += time.monotonic() - begun + 0.8
    return frames


def draw(frames: list[Frame]) -> str:
    width, height = round(COLUMNS * CHARACTER + 2 * EDGE), ROWS * LINE + 2 * EDGE
    total = frames[-1].time + REST
    style, groups = [STYLE], []
    for place, frame in enumerate(frames):
        begin = frame.time / total * 100
        end = frames[place + 1].time / total * 100 if place + 1 < len(frames) else 100.0
        # Seen from its moment to the next one's.
        style.append(
            f"@keyframes f{place} {{ 0% {{ visibility: {'visible' if begin == 0 else 'hidden'} }} "
            f"{begin:.2f}% {{ visibility: visible }} {end:.2f}%, 100% {{ visibility: "
            f"{'visible' if place + 1 == len(frames) else 'hidden'} }} }}\n"
            f"#f{place} {{ animation: f{place} {total:.2f}s step-end infinite }}"
        )
        texts = []
        for row, line in enumerate(frame.lines):
            y = EDGE + (row + 0.75) * LINE
            spans: list[str] = []
            for text, dim in line:
                if not spans and text.startswith("$ "):
                    spans.append('<tspan class="prompt">$ </tspan>')
                    text = text[2:]
                spans.append(f'<tspan class="dim">{escape(text)}</tspan>' if dim else escape(text.rstrip() or text))
            if spans:
                texts.append(f'<text x="{EDGE}" y="{y:g}" xml:space="preserve">{"".join(spans)}</text>')
        groups.append(f'<g id="f{place}" class="frame">{"".join(texts)}</g>')
    # The end, for those who want nothing to move, and where nothing can.
    style.append(f"#f{len(frames) - 1} {{ visibility: visible }}")
    style.append("@media (prefers-reduced-motion: reduce) { .frame { animation: none !important } }")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="A terminal: {escape("; ".join(COMMANDS), quote=True)}">\n<style>'
        + "\n".join(style)
        + f'\n</style>\n<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" class="screen"/>\n'
        + "\n".join(groups)
        + "\n</svg>\n"
    )


def main() -> None:
    if not shutil.which("bash"):
        raise SystemExit("bash is missing")
    frames = record()
    content = draw(frames)
    OUT.write_text(content, encoding="utf-8", newline="\n")
    print(f"{OUT.name}: {len(frames)} frames, {frames[-1].time:.1f} s, {len(content.encode())} bytes")


if __name__ == "__main__":
    main()
