"""Photographs the page of `pycrispasr serve` with a transcript: docs/pictures/serve.png.

Needs the extras `serve` and `browser`, and Chromium (Debian's `chromium` will do).

python tools/photograph_page.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "pictures" / "serve.png"
RECORDING = ROOT / "samples" / "long.wav"
WIDTH, HEIGHT = 880, 660


def main() -> None:
    command = [sys.executable, "-m", "pycrispasr", "serve", "-m", "tiny", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        assert server.stderr is not None
        address = next(line for line in server.stderr if line.startswith("listening at")).split()[2].rstrip(";")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            photograph(browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5), address)
            browser.close()
    finally:
        server.terminate()
        server.wait()
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


def photograph(page: Page, address: str) -> None:
    """Opens the page, gives it a recording, and goes to a word."""
    page.goto(address)
    page.set_input_files("#files", RECORDING)
    expect(page.get_by_role("button", name="Download SRT")).to_be_visible(timeout=60_000)
    page.get_by_label("Position").fill("9.9")
    expect(page.locator(".now")).to_have_text("april")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.screenshot(path=OUT)


if __name__ == "__main__":
    main()
