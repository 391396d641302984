#!/usr/bin/env python3
"""Writes into models.json which commit, size and SHA-256 the published files have: before a release.

From then on a name of our own stands for that very file. What the hub tells is taken for true, so run it where nothing
stands between, and read the difference before it is committed. `--unpin` takes all of it out again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from pycrispasr.errors import PycrispasrError
from pycrispasr.models import download, hub

MODELS = Path(hub.__file__).with_name("models.json")


def pin(path: Path, revision: str = download.MAIN) -> None:
    """Asks the hub for every file, and writes what it tells.

    Args:
        path: The registry.
        revision: The branch, tag or commit whose newest state is taken.

    Raises:
        PycrispasrError: The hub cannot be asked, or tells no size or no SHA-256. Nothing is written then.
    """
    registry = json.loads(path.read_text(encoding="utf-8"))
    for name, fields in registry.items():
        if fields["repo"] is None:
            continue
        remote = download.Remote(name, fields["repo"], fields["file"], revision)
        with download.from_hub(remote):
            told = download.metadata(remote)
        if not told.size or not download.is_sha256(told.etag or ""):
            raise PycrispasrError(f"the hub tells no size and SHA-256 of {remote}: {told}")
        fields |= {"revision": told.commit_hash, "size": told.size, "sha256": told.etag}
    _write(path, registry)


def unpin(path: Path) -> None:
    """Lets the names stand for the newest files again."""
    registry = json.loads(path.read_text(encoding="utf-8"))
    for fields in registry.values():
        if fields["repo"] is not None:
            fields |= dict.fromkeys(("revision", "size", "sha256"))
    _write(path, registry)


def _write(path: Path, registry: dict[str, dict[str, object]]) -> None:
    known = {field.name for field in dataclasses.fields(hub.KnownModel)}
    assert all(known.issuperset(fields) for fields in registry.values())
    path.write_text(json.dumps(registry, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--revision", default=download.MAIN, help="a branch, tag or commit; default: %(default)s")
    parser.add_argument("--unpin", action="store_true", help="take commits, sizes and checksums out")
    options = parser.parse_args()
    try:
        unpin(MODELS) if options.unpin else pin(MODELS, options.revision)
    except PycrispasrError as error:
        sys.exit(f"pin_models: {error}")


if __name__ == "__main__":
    main()
