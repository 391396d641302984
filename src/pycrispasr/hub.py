"""From a model's name to its file."""

from __future__ import annotations

import os
from pathlib import Path

from pycrispasr.errors import ModelNotFoundError

DEFAULT = "moss-transcribe"
"""The model that is used where none is named."""

_BUNDLED = Path(__file__).parent / "bundled"
_MOSS_REPO = "cstr/MOSS-Transcribe-preview-2B-GGUF"
_MOSS_TYPES = ("q4_k", "q8_0", "f16")  # the first one is the default


def resolve(name: str | os.PathLike[str]) -> Path:
    """The file of a model, fetched from the Hugging Face hub at its first use.

    Args:
        name: One of
            "tiny", the small model inside this package;
            "moss-transcribe", the published model in Q4_K, or "moss-transcribe:q8_0", "moss-transcribe:f16";
            the path of a GGUF file: a PathLike, an existing file, or a text that ends in ".gguf";
            "org/repo" of the hub, if it has one GGUF file, or "org/repo:file.gguf".

    Returns:
        A path, which exists.

    Raises:
        ModelNotFoundError: There is no such model, or it cannot be fetched.
    """
    text = os.fsdecode(name)
    path = Path(text)
    if isinstance(name, str):
        alias, _, kind = name.partition(":")
        if name == "tiny":
            path = _BUNDLED / "tiny.gguf"
        elif alias == DEFAULT:
            if kind and kind not in _MOSS_TYPES:
                raise ModelNotFoundError(f"{name!r} does not exist: the types of {alias} are {', '.join(_MOSS_TYPES)}")
            return _fetch(_MOSS_REPO, f"moss-transcribe-preview-2b-{kind or _MOSS_TYPES[0]}.gguf")
        elif _names_repo(alias, kind) and not os.path.exists(text):
            return _fetch(alias, kind or _only_gguf(alias))
    if os.path.isdir(path):
        raise ModelNotFoundError(f"{text!r} is a directory: name the GGUF file in it")
    if not os.path.exists(path):
        raise ModelNotFoundError(
            f"there is no model {text!r}: name a GGUF file, tiny, {DEFAULT}, {DEFAULT}:q8_0, {DEFAULT}:f16, "
            "or a file on the Hugging Face hub as org/repo:file.gguf"
        )
    return path


def _names_repo(repo: str, file: str) -> bool:
    """Whether a name is meant as "org/repo" or "org/repo:file.gguf", rather than as a path that does not exist."""
    org, _, rest = repo.partition("/")
    is_path = org in ("", ".", "..", "~") or "\\" in repo or "/" in rest or (not file and rest.endswith(".gguf"))
    return bool(rest) and not is_path


def _fetch(repo: str, file: str) -> Path:
    """The file in the hub's cache, downloaded if it is not there."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, file, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(huggingface_hub.hf_hub_download(repo, file))
    except Exception as error:  # the hub raises its HTTP client's errors, which change with its version
        raise ModelNotFoundError(_cannot_fetch(f"{repo}:{file}", error)) from error


def _only_gguf(repo: str) -> str:
    """The name of a repository's GGUF file."""
    import huggingface_hub

    try:
        files = [file for file in huggingface_hub.list_repo_files(repo) if file.endswith(".gguf")]
    except Exception as error:  # as above
        raise ModelNotFoundError(_cannot_fetch(repo, error)) from error
    if len(files) != 1:
        raise ModelNotFoundError(
            f"{repo} has {len(files)} GGUF files, so name one as {repo}:FILE: {', '.join(files) or 'there is none'}"
        )
    return files[0]


def _cannot_fetch(what: str, error: Exception) -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return (
        f"{what} is not in the cache and cannot be fetched ({reason[0]}): "
        "check the name and the network, or download the file elsewhere and pass its path"
    )
