"""From a model's name to its file."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pycrispasr.errors import ModelNotFoundError

DEFAULT = "moss-transcribe"
"""The model that is used where none is named."""

_BUNDLED = Path(__file__).parent / "bundled"
_MOSS_REPO = "cstr/MOSS-Transcribe-preview-2B-GGUF"
_MOSS_TYPES = ("q4_k", "q8_0", "f16")  # the first one is the default


def resolve(name: str | os.PathLike[str], *, offline: bool = False) -> Path:
    """The file of a model, fetched from the Hugging Face hub at its first use.

    A model in the hub's cache is used without the network. A download shows the hub's progress bar on a terminal.

    Args:
        name: One of
            "tiny", the small model inside this package;
            "moss-transcribe", the published model in Q4_K, or "moss-transcribe:q8_0", "moss-transcribe:f16";
            the path of a GGUF file: a PathLike, an existing file, or a text that ends in ".gguf";
            "org/repo" of the hub, if it has one GGUF file, or "org/repo:file.gguf".
        offline: Use no network: only what is in the hub's cache, for which "org/repo" needs its file's name.

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
            return _fetch(_MOSS_REPO, f"moss-transcribe-preview-2b-{kind or _MOSS_TYPES[0]}.gguf", offline)
        elif _names_repo(alias, kind) and not os.path.exists(text):
            if offline and not kind:
                raise ModelNotFoundError(f"without the network the file in {name!r} must be named: {name}:FILE.gguf")
            return _fetch(alias, kind or _only_gguf(alias), offline)
    if os.path.isdir(path):
        raise ModelNotFoundError(f"{text!r} is a directory: name the GGUF file in it")
    if not os.path.exists(path):
        raise ModelNotFoundError(
            f"there is no model {text!r}: name a GGUF file, tiny, {DEFAULT}, {DEFAULT}:q8_0, {DEFAULT}:f16, "
            "or a file on the Hugging Face hub as org/repo:file.gguf"
        )
    return path


def checkpoint(source: str | os.PathLike[str]) -> Path:
    """The folder of an original checkpoint, fetched from the Hugging Face hub at its first use.

    Args:
        source: A folder, or "org/name" on the hub. Of a repository only what `convert` reads is fetched.

    Raises:
        ModelNotFoundError: There is no such folder or repository, or it cannot be fetched.
    """
    text = os.fsdecode(source)
    if os.path.isdir(text):
        return Path(text)
    if isinstance(source, str) and _names_repo(text, "") and not os.path.exists(text):
        from huggingface_hub import snapshot_download

        with _from_hub(text):
            return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors", "merges.txt"]))
    raise ModelNotFoundError(
        f"there is no folder {text!r}: name the folder of a Hugging Face checkpoint, or its repository as org/name"
    )


def _names_repo(repo: str, file: str) -> bool:
    """Whether a name is meant as "org/repo" or "org/repo:file.gguf", rather than as a path that does not exist."""
    org, _, rest = repo.partition("/")
    is_path = org in ("", ".", "..", "~") or "\\" in repo or "/" in rest or (not file and rest.endswith(".gguf"))
    return bool(rest) and not is_path


def _fetch(repo: str, file: str, offline: bool) -> Path:
    """The file in the hub's cache, downloaded if it is not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _from_hub(f"{repo}:{file}"):
        try:
            return Path(hf_hub_download(repo, file, local_files_only=True))
        except LocalEntryNotFoundError:
            if offline:
                raise
            return Path(hf_hub_download(repo, file))


def _only_gguf(repo: str) -> str:
    """The name of a repository's GGUF file."""
    from huggingface_hub import list_repo_files

    with _from_hub(repo):
        files = [file for file in list_repo_files(repo) if file.endswith(".gguf")]
    if len(files) != 1:
        raise ModelNotFoundError(
            f"{repo} has {len(files)} GGUF files, so name one as {repo}:FILE: {', '.join(files) or 'there is none'}"
        )
    return files[0]


@contextlib.contextmanager
def _from_hub(what: str) -> Iterator[None]:
    """Makes the hub's failures ours, and keeps its warnings about every retry off stderr."""
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except Exception as error:  # the hub raises its HTTP client's errors, which change with its version
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        raise ModelNotFoundError(
            f"{what} is not in the cache and cannot be fetched ({reason}): "
            "check the name and the network, or download the file elsewhere and pass its path"
        ) from error
    finally:
        hub_logging.set_verbosity(verbosity)
