"""From a model's name to its file: in this package, on this disk, in the Hugging Face hub's cache, or on the hub.

`models.json` says what the names stand for.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycrispasr.errors import ModelNotFoundError, PycrispasrError, UsageError
from pycrispasr.models import gguf_file
from pycrispasr.models.download import (
    MAIN,
    Remote,
    cache_folder,
    discard,
    fetch,
    fetch_checkpoint,
    from_hub,
    only_one,
    quiet_hub,
    reason_of,
)
from pycrispasr.models.families import FAMILIES

DEFAULT = "moss-transcribe"
"""The model that is used where none is named."""

ALIGNER = "qwen3-aligner"
"""The model that tells when words were said, where none is named."""

_BUNDLED = Path(__file__).parent.parent / "bundled"


@dataclasses.dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that has a name of its own here, or lies in the hub's cache.

    Attributes:
        name: What `Model` takes.
        type: The type of most of its weights, e.g. "Q4_K".
        repo: Its repository on the hub, or None for the one in this package.
        file: Its file there.
        revision: The commit that `Model` must be given to open this very file, or None where it needs none. Of a name
            of our own the commit that it stands for, or None for the newest one.
        size: Bytes, or None where only the hub knows.
        approximate_size: Bytes, for a file whose `size` is not known, or None.
        sha256: The file's checksum in hexadecimal, or None where only the hub knows.
        description: A line for people.
        licence: Its SPDX identifier, or None where it is not known.
        path: Where it lies, or None where it must be fetched first.
    """

    name: str
    type: str
    repo: str | None
    file: str
    revision: str | None = None
    size: int | None = None
    approximate_size: int | None = None
    sha256: str | None = None
    description: str = ""
    licence: str | None = None
    path: Path | None = None


def resolve(name: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The file of a model, fetched from the Hugging Face hub at its first use.

    A model in the hub's cache is used without the network. A download shows a progress bar on a terminal; after a break
    the next call goes on where it stopped. What was fetched is checked against the hub's size and checksum, and against
    those that this package knows for names of its own.

    Args:
        name: One of
            "tiny", the small model inside this package;
            "moss-transcribe", the published model in Q4_K, or "moss-transcribe:q8_0", "moss-transcribe:f16";
            the path of a GGUF file: a PathLike, an existing file, or a text that ends in ".gguf";
            "org/repo" of the hub, if it has one GGUF file, or "org/repo:file.gguf".
        revision: A branch, tag or commit of the repository; by default its newest state at the first use.
        local_files_only: Never use the network.

    Returns:
        A path, which exists.

    Raises:
        ModelNotFoundError: There is no such model, or it cannot be fetched.
        UsageError: `revision` is given for a file that is not from the hub.
    """
    found = _find(name, revision)
    if isinstance(found, Path):
        return found
    return _cached(found) or fetch(found, local_files_only)


def models() -> list[KnownModel]:
    """The models with names of their own, and then those that our runtime opens among the rest of the hub's cache."""
    known = [_locate(name, KnownModel(name=name, **fields)) for name, fields in _registry().items()]
    seen = {os.path.realpath(model.path) for model in known if model.path}
    for repo, commit, is_main, path, file in _cached_files():
        kind = None if os.path.realpath(path) in seen else _type(path)
        if kind:
            seen.add(os.path.realpath(path))
            revision, size = None if is_main else commit, path.stat().st_size
            known.append(KnownModel(f"{repo}:{file}", kind, repo, file, revision=revision, size=size, path=path))
    return known


def cached(name: str) -> list[Path]:
    """Where a model lies in the hub's cache, in every revision that was fetched: nothing, if it was not.

    Args:
        name: As for `resolve`; "org/repo" means each GGUF file of the repository.

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: It is not from the hub.
    """
    remote = _remote(name)
    pattern = f"snapshots/*/{glob.escape(remote.file)}" if remote.file else "snapshots/*/**/*.gguf"
    return sorted(remote.folder.glob(pattern))


def remove(name: str) -> int:
    """Removes a model from the hub's cache in every revision, and what broken downloads left of its repository.

    Other files of the repository stay, and so does all that lies outside the cache: of a link that leads there, the
    link is removed.

    Args:
        name: As for `cached`.

    Returns:
        How many bytes became free.

    Raises:
        ModelNotFoundError: There is no such model, or its files cannot be removed.
        UsageError: It is not from the hub.
    """
    remote = _remote(name)
    try:
        return discard(remote, cached(name))
    except OSError as error:
        raise ModelNotFoundError(
            f"{remote} cannot be removed from the cache ({reason_of(error)}): remove {remote.folder} yourself"
        ) from error


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
        return fetch_checkpoint(Remote(text, text, "", MAIN), ("*.json", "*.safetensors", "merges.txt"))
    raise ModelNotFoundError(
        f"there is no folder {text!r}: name the folder of a Hugging Face checkpoint, or its repository as org/name"
    )


@functools.cache
def _registry() -> dict[str, dict[str, Any]]:
    """What the names of our own stand for: `KnownModel`'s fields by name."""
    registry: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("models.json").read_text("utf-8"))
    return registry


def _alias(name: str) -> KnownModel | None:
    """What a name of our own stands for, if it is one."""
    base, _, kind = name.partition(":")
    keys = [key for key in _registry() if key.partition(":")[0] == base]
    if not keys:
        return None
    for key in (name, base):  # "moss-transcribe:q4_k" is "moss-transcribe"
        if key in _registry():
            model = KnownModel(name=name, **_registry()[key])
            if key == name or kind == model.type.lower():
                return model
    if base not in keys:
        raise ModelNotFoundError(f"{name!r} does not exist: choose {' or '.join(keys)}")
    types = [_registry()[key]["type"].lower() for key in keys]
    raise ModelNotFoundError(f"{name!r} does not exist: the types of {base} are {', '.join(types)}")


def _find(name: str | os.PathLike[str], revision: str | None) -> Path | Remote:
    """The file that a name stands for: here, or on the hub."""
    text = os.fsdecode(name)
    path = Path(text)
    if isinstance(name, str):
        repo, _, file = name.partition(":")
        alias = _alias(name)
        if alias and alias.repo:
            known = revision in (None, alias.revision)  # the size and the sum are of the registry's revision
            return Remote(
                name,
                alias.repo,
                alias.file,
                revision or alias.revision or MAIN,
                alias.size if known else None,
                alias.sha256 if known else None,
                pinned=revision is None and alias.revision is not None,
            )
        if alias:
            path = _BUNDLED / alias.file
        elif _names_repo(repo, file) and not os.path.exists(text):
            return Remote(name, repo, file or None, revision or MAIN)
    if os.path.isdir(path):
        raise ModelNotFoundError(f"{text!r} is a directory: name the GGUF file in it")
    if not os.path.exists(path):
        raise ModelNotFoundError(
            f"there is no model {text!r}: name a GGUF file, {', '.join(_registry())}, "
            "or a file on the Hugging Face hub as org/repo:file.gguf"
        )
    if revision is not None:
        raise UsageError(f"{text!r} has no revision {revision!r}: only models of the Hugging Face hub have revisions")
    return path


def _remote(name: str) -> Remote:
    found = _find(name, None)
    if isinstance(found, Path):
        raise UsageError(f"{name!r} does not lie in the Hugging Face hub's cache, but is {found}")
    return found


def _names_repo(repo: str, file: str) -> bool:
    """Whether a name is meant as "org/repo" or "org/repo:file.gguf", rather than as a path that does not exist."""
    org, _, rest = repo.partition("/")
    is_path = org in ("", ".", "..", "~") or "\\" in repo or "/" in rest or (not file and rest.endswith(".gguf"))
    return bool(rest) and not is_path and ".." not in file.split("/")


def _cached(remote: Remote) -> Path | None:
    """The file in the cache, if it is there."""
    with from_hub(remote):
        snapshot = remote.snapshot
        if snapshot is None:
            return None
        if remote.file:
            return snapshot / remote.file if (snapshot / remote.file).is_file() else None
        files = [path.relative_to(snapshot).as_posix() for path in snapshot.glob("**/*.gguf") if path.is_file()]
        return snapshot / only_one(remote.repo, files) if files else None


def _cached_files() -> Iterator[tuple[str, str, bool, Path, str]]:
    """All GGUF files in the cache: repository, commit, whether it is the main branch's, path, name; none if damaged."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        with quiet_hub():
            repos = scan_cache_dir(cache_folder()).repos
    except (CacheNotFound, ModelNotFoundError, OSError, ValueError):
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda revision: MAIN not in revision.refs):
            for file in sorted(revision.files, key=lambda file: file.file_path):
                if repo.repo_type == "model" and file.file_name.endswith(".gguf"):
                    name = file.file_path.relative_to(revision.snapshot_path).as_posix()
                    yield repo.repo_id, revision.commit_hash, MAIN in revision.refs, file.file_path, name


def _locate(name: str, model: KnownModel) -> KnownModel:
    """A model of the registry with its place, and its size as it is there."""
    found = _find(name, None)
    try:
        path = found if isinstance(found, Path) else _cached(found)
        return dataclasses.replace(model, path=path, size=path.stat().st_size) if path else model
    except (OSError, PycrispasrError):  # a damaged cache
        return model


def _type(path: Path) -> str | None:
    """The type of most weights of a file that our runtime opens; None for any other file."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            if not any(name.encode() in head for name in FAMILIES):  # quick: the architecture comes first
                return None
        groups = gguf_file.read(path)[1]
    except (OSError, PycrispasrError):
        return None
    return max(groups, key=lambda group: group.parameters).type if groups else None
