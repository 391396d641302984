"""Tells PyInstaller what belongs to this package: an entry point leads here, so programs need no options for it."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """Where the hooks are."""
    return [str(Path(__file__).parent)]
