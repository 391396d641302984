"""faster-whisper's module `utils`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycrispasr.compat import common
from pycrispasr.compat.common import format_timestamp as format_timestamp
from pycrispasr.models import hub


def available_models() -> list[str]:
    """Names that `WhisperModel` takes: ours, and Whisper's, which stand for "moss-transcribe"."""
    return common.available_models()


def download_model(
    size_or_id: str,
    output_dir: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | None = None,
    revision: str | None = None,
    use_auth_token: str | bool | None = None,
) -> str:
    """Fetches a model, and gives the path of its file, which `WhisperModel` takes.

    Args:
        size_or_id: As for `WhisperModel`.
        output_dir: A folder to copy it into. None: it stays in the Hugging Face cache.
        local_files_only: Use no network.
        cache_dir: Has no effect: models are in the Hugging Face cache, which HF_HOME moves.
        revision: A branch, tag or commit of a repository of the Hugging Face hub.
        use_auth_token: Has no effect: HF_TOKEN is read.

    Raises:
        ModelNotFoundError: There is no such model, or it cannot be fetched.
    """
    if cache_dir is not None:
        common.warn(f"cache_dir={cache_dir!r} has no effect: HF_HOME says where models are kept")
    if use_auth_token is not None:
        common.warn("use_auth_token has no effect: HF_TOKEN is read")
    name, revision = common.model_name(size_or_id, revision)
    path = hub.resolve(name, revision=revision, local_files_only=local_files_only)
    if output_dir is not None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(shutil.copy(path, folder / path.name))
    return str(path)


def get_logger() -> logging.Logger:
    """The package's logger."""
    return logging.getLogger("pycrispasr")


def get_end(segments: Sequence[dict[str, Any]]) -> float | None:
    """When the last word of segments ends, which are dictionaries; None where there is none."""
    return common.last_time(segments)
