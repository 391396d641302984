"""From a model's name to its file: in this package, on this disk, in the Hugging Face hub's cache, or on the hub.

What the names stand for is told in `models.json`. The cache is the hub's own, shared with its other clients:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A file is fetched under another name, checked, and only
then given its place there; the hub's client alone would neither take up a broken download nor check a file's sum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pycrispasr.atomic import replacing
from pycrispasr.errors import ModelNotFoundError, PycrispasrError, UsageError
from pycrispasr.models import gguf_file
from pycrispasr.results.formats import bytes_text

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

DEFAULT = "moss-transcribe"
"""The model that is used where none is named."""

_BUNDLED = Path(__file__).parent.parent / "bundled"
_MAIN = "main"  # the revision that the hub gives where none is named
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that has a name of its own here, or lies in the hub's cache.

    Attributes:
        name: What `Model` takes.
        type: The type of most of its weights, e.g. "Q4_K".
        repo: Its repository on the hub, or None for the one in this package.
        file: Its file there.
        revision: The commit that `Model` must be given to open this very file, or None where it needs none.
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Remote:
    """A file of the hub, as a caller named it."""

    name: str
    repo: str
    file: str | None  # None: the only GGUF file of the repository; "": all that a checkpoint is made of
    revision: str
    size: int | None = None
    sha256: str | None = None

    @property
    def command(self) -> str:
        """What fetches it."""
        if self.file == "":
            return f"hf download {self.repo}"
        option = "" if self.revision == _MAIN else f" --revision {self.revision}"
        return f"pycrispasr models download {self.name}{option}"

    @property
    def folder(self) -> Path:
        """Where the cache holds its repository."""
        return _cache() / f"models--{self.repo.replace('/', '--')}"

    def __str__(self) -> str:
        return self.name if self.revision == _MAIN else f"{self.name} (revision {self.revision})"


def resolve(name: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The file of a model, fetched from the Hugging Face hub at its first use.

    A model in the hub's cache is used without the network. A download shows a progress bar on a terminal; after a break
    the next call goes on where it stopped. What was fetched is checked against the hub's size and checksum.

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
    return _cached(found) or _fetch(found, local_files_only)


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

    Other files of the repository stay.

    Args:
        name: As for `cached`.

    Returns:
        How many bytes became free.

    Raises:
        ModelNotFoundError: There is no such model, or its files cannot be removed.
        UsageError: It is not from the hub.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    remote, doomed = _remote(name), set(cached(name))
    freed = 0
    with _quiet_hub():
        try:
            for partial in remote.folder.glob("blobs/*.incomplete"):
                size = partial.stat().st_size
                partial.unlink()
                freed += size
            cache = scan_cache_dir(_cache())
            repos = [repo for repo in cache.repos if repo.repo_type == "model" and repo.repo_id == remote.repo]
            revisions = [revision for repo in repos for revision in repo.revisions]
            staying = {file.blob_path for each in revisions for file in each.files if file.file_path not in doomed}
            blobs = {file.blob_path: file.size_on_disk for each in revisions for file in each.files}
            whole = [each for each in revisions if each.files and {file.file_path for file in each.files} <= doomed]
            cache.delete_revisions(*(each.commit_hash for each in whole)).execute()
            for path in doomed:  # what is left of them lies beside other files
                path.unlink(missing_ok=True)
            for blob, size in blobs.items():
                if blob not in staying:
                    blob.unlink(missing_ok=True)
                    freed += size
        except CacheNotFound:
            pass
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"{remote} cannot be removed from the cache ({_reason(error)}): remove {remote.folder} yourself"
            ) from error
    return freed


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

        with _from_hub(_Remote(text, text, "", _MAIN)):
            return Path(
                snapshot_download(text, cache_dir=_cache(), allow_patterns=["*.json", "*.safetensors", "merges.txt"])
            )
    raise ModelNotFoundError(
        f"there is no folder {text!r}: name the folder of a Hugging Face checkpoint, or its repository as org/name"
    )


# Names.


@functools.cache
def _registry() -> dict[str, dict[str, Any]]:
    """What the names of our own stand for: `KnownModel`'s fields by name."""
    registry: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("models.json").read_text("utf-8"))
    return registry


def _alias(name: str) -> KnownModel | None:
    """What a name of our own stands for, if it is one."""
    base, _, kind = name.partition(":")
    if base not in _registry():
        return None
    for key in (name, base):  # "moss-transcribe:q4_k" is "moss-transcribe"
        if key in _registry():
            model = KnownModel(name=name, **_registry()[key])
            if key == name or kind == model.type.lower():
                return model
    types = [fields["type"].lower() for key, fields in _registry().items() if key.partition(":")[0] == base]
    raise ModelNotFoundError(f"{name!r} does not exist: the types of {base} are {', '.join(types)}")


def _find(name: str | os.PathLike[str], revision: str | None) -> Path | _Remote:
    """The file that a name stands for: here, or on the hub."""
    text = os.fsdecode(name)
    path = Path(text)
    if isinstance(name, str):
        repo, _, file = name.partition(":")
        alias = _alias(name)
        if alias and alias.repo:
            known = revision in (None, alias.revision)  # the size and the sum are of the registry's revision
            return _Remote(
                name,
                alias.repo,
                alias.file,
                revision or alias.revision or _MAIN,
                alias.size if known else None,
                alias.sha256 if known else None,
            )
        if alias:
            path = _BUNDLED / alias.file
        elif _names_repo(repo, file) and not os.path.exists(text):
            return _Remote(name, repo, file or None, revision or _MAIN)
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


def _remote(name: str) -> _Remote:
    found = _find(name, None)
    if isinstance(found, Path):
        raise UsageError(f"{name!r} does not lie in the Hugging Face hub's cache, but is {found}")
    return found


def _names_repo(repo: str, file: str) -> bool:
    """Whether a name is meant as "org/repo" or "org/repo:file.gguf", rather than as a path that does not exist."""
    org, _, rest = repo.partition("/")
    is_path = org in ("", ".", "..", "~") or "\\" in repo or "/" in rest or (not file and rest.endswith(".gguf"))
    return bool(rest) and not is_path and ".." not in file.split("/")


# The cache.


def _cache() -> Path:
    """The hub's cache: HF_HUB_CACHE, or a folder in HF_HOME."""
    from huggingface_hub import constants

    try:
        return Path(constants.HF_HUB_CACHE).expanduser().resolve()
    except RuntimeError:
        raise ModelNotFoundError(
            "there is no home folder to keep models in (HOME is not set, and this user has none): set HF_HOME to a "
            "folder, or pass the path of a model"
        ) from None


def _cached(remote: _Remote) -> Path | None:
    """The file in the cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    with _from_hub(remote):
        if remote.file:
            path = try_to_load_from_cache(remote.repo, remote.file, cache_dir=_cache(), revision=remote.revision)
            return Path(path) if isinstance(path, str) else None
        ref = remote.folder / "refs" / remote.revision
        snapshot = remote.folder / "snapshots" / (ref.read_text("utf-8") if ref.is_file() else remote.revision)
        files = [path.relative_to(snapshot).as_posix() for path in snapshot.glob("**/*.gguf") if path.is_file()]
        return snapshot / _only(remote.repo, files) if files else None


def _cached_files() -> Iterator[tuple[str, str, bool, Path, str]]:
    """All GGUF files in the cache: repository, commit, whether it is the main branch's, path, name; none if damaged."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        with _quiet_hub():
            repos = scan_cache_dir(_cache()).repos
    except (CacheNotFound, ModelNotFoundError, OSError, ValueError):
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda revision: _MAIN not in revision.refs):
            for file in sorted(revision.files, key=lambda file: file.file_path):
                if repo.repo_type == "model" and file.file_name.endswith(".gguf"):
                    name = file.file_path.relative_to(revision.snapshot_path).as_posix()
                    yield repo.repo_id, revision.commit_hash, _MAIN in revision.refs, file.file_path, name


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
            if b"moss_transcribe" not in file.read(4096):  # quick: the architecture comes first
                return None
        groups = gguf_file.read(path)[1]
    except (OSError, PycrispasrError):
        return None
    return max(groups, key=lambda group: group.parameters).type if groups else None


# Fetching.


def _fetch(remote: _Remote, local_files_only: bool) -> Path:
    """Downloads a file into the cache."""
    if local_files_only:
        raise ModelNotFoundError(
            f"{remote} is not in the cache {_cache()}, and the network is not to be used: run "
            f"`{remote.command}` first, or pass the path of a file"
        )
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    with _from_hub(remote):
        file = remote.file or _only(remote.repo, _listed(remote))
        metadata = get_hf_file_metadata(hf_hub_url(remote.repo, file, revision=remote.revision))
        commit, etag = metadata.commit_hash, metadata.etag
        if not commit or not etag or not re.fullmatch(r"[\w.-]+", etag):
            raise ModelNotFoundError(
                f"{_endpoint()} does not answer as a Hugging Face hub does: check HF_ENDPOINT, and whether a proxy or "
                "a login page stands before the network"
            )
        blob = remote.folder / "blobs" / etag
        lock = _cache() / ".locks" / remote.folder.name / f"{etag}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # another process may be fetching it: then it is there afterwards
            if not blob.exists():
                _download(remote, file, metadata, blob)
        # The file is there under its sum; now the hub's client gives it its name, of the very commit that was fetched.
        path = Path(hf_hub_download(remote.repo, file, cache_dir=_cache(), revision=commit))
        if remote.revision != commit:
            _write(remote.folder / "refs" / remote.revision, commit)
    return path


def _listed(remote: _Remote) -> list[str]:
    """The GGUF files of a repository on the hub."""
    from huggingface_hub import list_repo_files

    return [file for file in list_repo_files(remote.repo, revision=remote.revision) if file.endswith(".gguf")]


def _only(repo: str, files: Iterable[str]) -> str:
    names = sorted(files)
    if len(names) != 1:
        raise ModelNotFoundError(
            f"{repo} has {len(names)} GGUF files, so name one as {repo}:FILE: {', '.join(names) or 'there is none'}"
        )
    return names[0]


def _download(remote: _Remote, file: str, metadata: HfFileMetadata, blob: Path) -> None:
    """Downloads and checks a file's contents. What a broken download leaves is kept, and taken up by the next one."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    partial = blob.with_name(f"{blob.name}.incomplete")  # the hub's name for such files: its tools show and remove them
    size = metadata.size or remote.size  # where the hub tells none, old versions of its client say 0
    have = partial.stat().st_size if partial.exists() else 0
    if size is not None and have > size:
        partial.unlink()
        have = 0
    if size is not None:
        free = shutil.disk_usage(partial.parent).free
        if free < size - have:
            raise ModelNotFoundError(
                f"{remote} needs {bytes_text(size - have)} of disk, and {_cache()} has {bytes_text(free)} left: "
                "make room there, or set HF_HOME to a folder on a larger disk"
            )
    try:
        if size is None or have < size:
            with partial.open("ab") as sink:
                http_get(
                    hf_hub_url(remote.repo, file, revision=metadata.commit_hash),
                    sink,
                    resume_size=have,
                    headers=build_hf_headers(),
                    displayed_filename=file,
                )
                sink.flush()
                os.fsync(sink.fileno())
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", 0) == 416:  # what is there is no part of it
            partial.unlink()
        raise
    wrong = _wrong(partial, size, {remote.sha256, metadata.etag})
    if wrong:
        partial.unlink()
        raise ModelNotFoundError(
            f"what was fetched of {remote} is not the hub's file ({wrong}) and was removed: try again, and look for a "
            "proxy that changes it if that does not help"
        )
    os.replace(partial, blob)


def _wrong(path: Path, size: int | None, sums: set[str | None]) -> str:
    """What is wrong with a file's contents, or ""."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"it has {actual:,} bytes instead of {size:,}"
    wanted = {each for each in sums if each and _SHA256.fullmatch(each)}  # other ETags are no sums of the contents
    if not wanted:
        return ""
    digest = hashlib.sha256()
    progress: Any = tqdm(  # type: ignore[no-untyped-call]
        total=actual, desc="checking", unit="B", unit_scale=True, disable=not is_terminal(sys.stderr)
    )
    with path.open("rb") as source, progress as bar:
        while block := source.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    if wanted != {digest.hexdigest()}:
        return f"its SHA-256 is {digest.hexdigest()} instead of {', '.join(sorted(wanted - {digest.hexdigest()}))}"
    return ""


def _write(path: Path, text: str) -> None:
    """Writes a small file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


# Failures.


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keeps the hub's warnings about every retry off stderr, and its progress bars off what is no terminal."""
    from huggingface_hub import utils

    bars: Any = utils
    verbosity = utils.logging.get_verbosity()
    hides_bars = not is_terminal(sys.stderr) and not bars.are_progress_bars_disabled()
    utils.logging.set_verbosity(logging.ERROR)
    if hides_bars:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if hides_bars:
            bars.enable_progress_bars()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at it. A program without a console has no standard streams, or closed ones."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


@contextlib.contextmanager
def _from_hub(remote: _Remote) -> Iterator[None]:
    """Makes the hub's failures ours."""
    with _quiet_hub():
        try:
            yield
        except PycrispasrError:
            raise
        except Exception as error:  # the hub raises its HTTP client's errors, which change with its version
            raise ModelNotFoundError(_explained(remote, error)) from error


def _explained(remote: _Remote, error: Exception) -> str:
    """One sentence: what failed, and the way out."""
    from huggingface_hub import errors

    page = f"{_endpoint()}/{remote.repo}"
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return (
                f"{remote} is not in the cache, and HF_HUB_OFFLINE forbids the network: run `{remote.command}` on a "
                f"machine with network and copy its folder {remote.folder.name} into {_cache()}, or download the file "
                "elsewhere and pass its path"
            )
        if isinstance(cause, errors.GatedRepoError):
            return f"{remote} is gated: accept its terms at {page}, and set HF_TOKEN to a token of your account"
        if isinstance(cause, errors.RepositoryNotFoundError) or status == 401:  # the hub does not tell which
            return f"{page} does not exist, or is private: check the name, or set HF_TOKEN to a token that may read it"
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"{page} has no revision {remote.revision!r}: name a branch, a tag or a commit of it"
        if isinstance(cause, errors.EntryNotFoundError) and status:
            return f"{page} has no file {remote.file!r}: {page}/tree/{remote.revision} lists its files"
        if status == 403:
            return f"{_endpoint()} refuses to give out {remote} (403): set HF_TOKEN to a token that may read it"
        if status == 429:
            return f"{_endpoint()} has had too many requests (429): try again in some minutes, or set HF_TOKEN"
        if status >= 500:
            return f"{_endpoint()} fails to give out {remote} ({status}): try again later"
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of the cache {_cache()} is full, and {remote} does not fit: make room there, or set HF_HOME "
                "to a folder on a larger disk; what has arrived is kept for the next try"
            )
        if isinstance(cause, OSError) and cause.errno is not None and cause.filename is not None:
            return (
                f"the cache {_cache()} cannot be used for {remote} ({cause.strerror}: {cause.filename}): "
                "make it readable and writable, or set HF_HOME to a folder that is"
            )
    root: BaseException = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    arrived = sum(path.stat().st_size for path in remote.folder.glob("blobs/*.incomplete"))
    return (
        f"{remote} is not in the cache and cannot be fetched ({_reason(root)}): check the name and the network "
        "(HTTPS_PROXY for a proxy, HF_ENDPOINT for a mirror) and try again, or download the file elsewhere and pass "
        "its path" + f"; the {bytes_text(arrived)} that have arrived are kept for the next try" * (arrived > 0)
    )


def _reason(error: BaseException) -> str:
    line = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", line)
