"""Files of the Hugging Face hub: fetched, checked, and kept in the hub's own cache.

The cache is shared with the hub's other clients: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A
file is fetched under another name, checked, and only then given its place there; the hub's client alone would neither
take up a broken download nor check a file's sum.

Names come from callers and from servers, and become paths. `Remote` and `metadata` let through only what stays in the
cache, and no link in it is followed to write or to remove anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fnmatch
import hashlib
import logging
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycrispasr.atomic import replacing
from pycrispasr.errors import ModelNotFoundError, PycrispasrError, UsageError
from pycrispasr.terminal import is_terminal
from pycrispasr.text import bytes_text, printable

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

MAIN = "main"  # the revision that the hub gives where none is named


_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_GIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9A-Za-z_-]{1,128}")  # becomes a file's name
_REPO = re.compile(r"(?!.*(?:--|\.\.))[0-9A-Za-z_][\w.-]*/[0-9A-Za-z_][\w.-]*", re.ASCII)
_NOT_IN_PATHS = re.compile(r"[\\:\x00-\x1f\x7f]")

_logger = logging.getLogger("pycrispasr")


@dataclasses.dataclass(frozen=True, slots=True)
class Remote:
    """A file of the hub, as a caller named it. None of its parts leads out of the cache.

    Raises:
        ModelNotFoundError: There can be no such repository or file.
        UsageError: There can be no such revision.
    """

    name: str
    repo: str
    file: str | None  # None: the only GGUF file of the repository; "": all that a checkpoint is made of
    revision: str
    size: int | None = None
    sha256: str | None = None
    pinned: bool = False  # the revision is the registry's, and the caller named none

    def __post_init__(self) -> None:
        if not _REPO.fullmatch(self.repo):
            raise ModelNotFoundError(
                f"{self.repo!r} cannot be a repository of the Hugging Face hub: name it as org/repo"
            )
        if self.file and not stays_inside(self.file):
            raise ModelNotFoundError(f"{self.file!r} cannot be a file of {self.repo}: its path would lead out of it")
        if not stays_inside(self.revision):
            raise UsageError(f"revision cannot be {self.revision!r}: name a branch, a tag or a commit of {self.repo}")

    @property
    def command(self) -> str:
        """What fetches it."""
        if self.file == "":
            return f"hf download {self.repo}"
        option = "" if self._is_default else f" --revision {self.revision}"
        return f"pycrispasr models download {self.name}{option}"

    @property
    def folder(self) -> Path:
        """Where the cache holds its repository."""
        return cache_folder() / f"models--{self.repo.replace('/', '--')}"

    @property
    def snapshot(self) -> Path | None:
        """Where the cache holds its revision, or would hold it; None where it does not know which commit that is."""
        try:
            commit = (self.folder / "refs" / self.revision).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            commit = self.revision
        return self.folder / "snapshots" / commit if _COMMIT.fullmatch(commit) else None

    @property
    def _is_default(self) -> bool:
        return self.pinned or self.revision == MAIN

    def __str__(self) -> str:
        return self.name if self._is_default else f"{self.name} (revision {self.revision})"


def stays_inside(path: str) -> bool:
    """Whether a path with slashes, put behind a folder, leads to what is in that folder, on any system."""
    return not _NOT_IN_PATHS.search(path) and all(part not in ("", ".", "..") for part in path.split("/"))


def cache_folder() -> Path:
    """The hub's cache: HF_HUB_CACHE, or a folder in HF_HOME."""
    from huggingface_hub import constants

    try:
        return Path(constants.HF_HUB_CACHE).expanduser().resolve()
    except RuntimeError:
        raise ModelNotFoundError(
            "there is no home folder to keep models in (HOME is not set, and this user has none): set HF_HOME to a "
            "folder, or pass the path of a model"
        ) from None


def fetch(remote: Remote, local_files_only: bool) -> Path:
    """Downloads a file into the cache."""
    if local_files_only:
        raise ModelNotFoundError(
            f"{remote} is not in the cache {cache_folder()}, and the network is not to be used: run "
            f"`{remote.command}` first, or pass the path of a file"
        )
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    with from_hub(remote):
        file = remote.file or only_one(remote.repo, _listed(remote))
        remote = dataclasses.replace(remote, file=file)
        told = metadata(remote)
        commit, etag = str(told.commit_hash), str(told.etag)
        blob = _place(remote.folder / "blobs" / etag)
        lock = _place(cache_folder() / ".locks" / remote.folder.name / f"{etag}.lock")
        with WeakFileLock(lock):  # another process may be fetching it: then it is there afterwards
            if not blob.exists():
                _download(remote, told, blob)
            elif remote.sha256 not in (None, etag):  # the name that it has there is not the sum that is known
                _check(blob, remote, told)
        path = _place(remote.folder / "snapshots" / commit / file)
        _name(blob, path)
        if remote.revision != commit:
            _write(_place(remote.folder / "refs" / remote.revision), commit)
    return path


def fetch_checkpoint(remote: Remote, patterns: Iterable[str]) -> Path:
    """Downloads those files of a repository whose names match, all of one commit. Without the network, what is there.

    Returns:
        The folder that holds them.
    """
    from huggingface_hub import model_info

    wanted = tuple(patterns)
    try:
        with from_hub(remote):
            told = model_info(remote.repo, revision=remote.revision)
            commit = told.sha or ""
            if not _COMMIT.fullmatch(commit):
                raise _no_hub()
            names = [file.rfilename for file in told.siblings or ()]
            for file in names:
                if any(fnmatch.fnmatch(file, pattern) for pattern in wanted):
                    one = dataclasses.replace(remote, file=file, revision=commit)
                    if not (remote.folder / "snapshots" / commit / file).is_file():
                        fetch(one, local_files_only=False)
            _write(_place(remote.folder / "refs" / remote.revision), commit)
    except ModelNotFoundError:
        cached = remote.snapshot
        if cached is None or not (cached / "config.json").is_file():
            raise
        return cached
    return remote.folder / "snapshots" / commit


def metadata(remote: Remote) -> HfFileMetadata:
    """What the hub says about a file: its commit, its size, and an ETag, which is the SHA-256 of large files.

    Raises:
        ModelNotFoundError: What answers is no hub: its commit is none, or not the one that was asked for, or its ETag
            can be no file's name.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    told = get_hf_file_metadata(hf_hub_url(remote.repo, remote.file or "", revision=remote.revision))
    commit, etag = told.commit_hash or "", told.etag or ""
    is_asked = commit == remote.revision or not _COMMIT.fullmatch(remote.revision)
    if not (_COMMIT.fullmatch(commit) and is_asked and _ETAG.fullmatch(etag)):
        raise _no_hub()
    if remote.sha256 and _SHA256.fullmatch(etag) and etag != remote.sha256:
        raise ModelNotFoundError(
            f"the hub's file for {remote} is not the one that this version of pycrispasr knows (its SHA-256 is {etag} "
            f"instead of {remote.sha256}): update pycrispasr, or name the file as {remote.repo}:{remote.file}"
        )
    return told


def is_sha256(text: str) -> bool:
    """Whether a text can be a checksum."""
    return _SHA256.fullmatch(text) is not None


def _no_hub() -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{_endpoint()} does not answer as a Hugging Face hub does: check HF_ENDPOINT, and whether a proxy or a login "
        "page stands before the network"
    )


def _place(path: Path) -> Path:
    """A path in the cache to write, in a folder that is there now.

    Raises:
        ModelNotFoundError: A link leads out of the cache.
    """
    if not path.parent.resolve().is_relative_to(cache_folder()) or (path.suffix == ".lock" and path.is_symlink()):
        raise ModelNotFoundError(
            f"{str(path)!r} is not in the cache {cache_folder()}, since a link leads out of it: remove that link, or "
            "set HF_HOME to another folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _name(blob: Path, path: Path) -> None:
    """Gives contents of the cache the name of a file: by a link, or where there are none, as on Windows, as a copy."""
    if path.is_file() and path.samefile(blob):
        return
    part = path.with_name(f".{blob.name[:64]}.part")
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        shutil.copyfile(blob, part)
    os.replace(part, path)


def discard(remote: Remote, paths: Iterable[Path]) -> int:
    """Removes files of a repository from the cache, contents that no other file has, and what broken downloads left.

    A link that leads elsewhere is removed itself, and never what it leads to.

    Returns:
        How many bytes became free.
    """
    folder, blobs = remote.folder, remote.folder / "blobs"
    contents: set[Path] = set()
    freed = 0
    for path in paths:
        link = next((each for each in _ways(path) if each.is_symlink()), None)
        if link is not None:
            _logger.warning("%s is a link to %s: the link is removed, and what it leads to stays", link, link.resolve())
            link.unlink()
        elif os.path.lexists(path):
            contents |= _contents(path, blobs)
            freed += _unlink(path)
    if folder.is_symlink() or not folder.is_dir():
        return freed
    left = [path for path in folder.glob("snapshots/**/*") if path.is_symlink() or path.is_file()]
    if not blobs.is_symlink():
        staying = {content for path in left for content in _contents(path, blobs)}
        doomed = (contents - staying).union(blobs.glob("*.incomplete"), [] if left else blobs.glob("*"))
        freed += sum(map(_unlink, doomed))
    if not left:
        shutil.rmtree(folder)
        return freed
    for path in sorted(folder.glob("snapshots/**"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for ref in folder.glob("refs/**/*"):
        if ref.is_file() and not (folder / "snapshots" / ref.read_text("utf-8", "replace").strip()).is_dir():
            ref.unlink()
    return freed


def _ways(path: Path) -> Iterator[Path]:
    """The folders between the cache and a file of it, from the outermost on."""
    cache = cache_folder()
    yield from (each for each in reversed(path.parents) if cache in each.parents)


def _contents(path: Path, blobs: Path) -> set[Path]:
    """The blob that a file's name is a link to; nothing where it is no link, or one to elsewhere."""
    if not path.is_symlink():
        return set()
    target = path.parent / os.readlink(path)
    return {blobs / target.name} if target.parent.resolve() == blobs.resolve() else set()


def _unlink(path: Path) -> int:
    """Removes a file or a link, and tells how many bytes became free."""
    found = path.lstat()
    path.unlink()
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _listed(remote: Remote) -> list[str]:
    """The GGUF files of a repository on the hub."""
    from huggingface_hub import list_repo_files

    return [file for file in list_repo_files(remote.repo, revision=remote.revision) if file.endswith(".gguf")]


def only_one(repo: str, files: Iterable[str]) -> str:
    """The name of the only file.

    Raises:
        ModelNotFoundError: There is none, or there are several.
    """
    names = sorted(files)
    if len(names) != 1:
        raise ModelNotFoundError(
            f"{repo} has {len(names)} GGUF files, so name one as {repo}:FILE: {', '.join(names) or 'there is none'}"
        )
    return names[0]


def _download(remote: Remote, told: HfFileMetadata, blob: Path) -> None:
    """Downloads and checks a file's contents. What a broken download leaves is kept, and taken up by the next one."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    file = remote.file or ""
    partial = blob.with_name(f"{blob.name}.incomplete")  # the hub's name for such files: its tools show and remove them
    size = told.size or remote.size  # where the hub tells none, old versions of its client say 0
    if partial.is_symlink():
        partial.unlink()
    have = partial.stat().st_size if partial.exists() else 0
    if size is not None and have > size:
        partial.unlink()
        have = 0
    if size is not None:
        free = shutil.disk_usage(partial.parent).free
        if free < size - have:
            raise ModelNotFoundError(
                f"{remote} needs {bytes_text(size - have)} of disk, and {cache_folder()} has {bytes_text(free)} left: "
                "make room there, or set HF_HOME to a folder on a larger disk"
            )
    try:
        if size is None or have < size:
            with partial.open("ab") as sink:
                http_get(
                    hf_hub_url(remote.repo, file, revision=told.commit_hash),
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
    _check(partial, remote, told)
    os.replace(partial, blob)


def _check(path: Path, remote: Remote, told: HfFileMetadata) -> None:
    """Compares contents with what the hub tells and what the registry has. Wrong ones are removed.

    The hub's ETag is the SHA-256 of a large file, and git's hash of a small one. One of another kind, from a mirror, is
    no sum: unless the registry has one, only the size is compared then, and the log says so.

    Raises:
        ModelNotFoundError: They are wrong.
    """
    sums = {each for each in (remote.sha256, told.etag) if each and (_SHA256.fullmatch(each) or _GIT.fullmatch(each))}
    size = told.size or remote.size
    wrong = _wrong(path, size, sums)
    if wrong:
        path.unlink()
        raise ModelNotFoundError(
            f"what was fetched of {remote} is not the hub's file ({wrong}) and was removed: try again, and look for a "
            "proxy that changes it if that does not help"
        )
    if not sums:
        compared = "nothing" if size is None else "only its size"
        _logger.warning("%s: the hub tells no checksum of it, so that %s could be compared", remote, compared)


def _wrong(path: Path, size: int | None, wanted: set[str]) -> str:
    """What is wrong with a file's contents, or ""."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"it has {actual:,} bytes instead of {size:,}"
    if not wanted:
        return ""
    digests = {"SHA-256": hashlib.sha256(), "git's hash": hashlib.sha1(b"blob %d\0" % actual, usedforsecurity=False)}
    progress: Any = tqdm(  # type: ignore[no-untyped-call]
        total=actual, desc="checking", unit="B", unit_scale=True, disable=not is_terminal(sys.stderr)
    )
    kinds = {each: "SHA-256" if _SHA256.fullmatch(each) else "git's hash" for each in wanted}
    with path.open("rb") as source, progress as bar:
        while block := source.read(1 << 22):
            for kind in {*kinds.values()}:
                digests[kind].update(block)
            bar.update(len(block))
    for each, kind in sorted(kinds.items()):
        if digests[kind].hexdigest() != each:
            return f"its {kind} is {digests[kind].hexdigest()} instead of {each}"
    return ""


def _write(path: Path, text: str) -> None:
    """Writes a small file so that nobody ever sees half of it."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
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


@contextlib.contextmanager
def from_hub(remote: Remote) -> Iterator[None]:
    """Makes the hub's failures ours."""
    with quiet_hub():
        try:
            yield
        except PycrispasrError:
            raise
        except Exception as error:  # the hub raises its HTTP client's errors, which change with its version
            raise ModelNotFoundError(_explained(remote, error)) from error


def _explained(remote: Remote, error: Exception) -> str:
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
                f"machine with network and copy its folder {remote.folder.name} into {cache_folder()}, or download the "
                "file elsewhere and pass its path"
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
                f"the disk of the cache {cache_folder()} is full, and {remote} does not fit: make room there, or set "
                "HF_HOME to a folder on a larger disk; what has arrived is kept for the next try"
            )
        if isinstance(cause, OSError) and cause.errno is not None and cause.filename is not None:
            return (
                f"the cache {cache_folder()} cannot be used for {remote} ({cause.strerror}: {cause.filename}): "
                "make it readable and writable, or set HF_HOME to a folder that is"
            )
    root: BaseException = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    arrived = sum(path.stat().st_size for path in remote.folder.glob("blobs/*.incomplete"))
    return (
        f"{remote} is not in the cache and cannot be fetched ({reason_of(root)}): check the name and the network "
        "(HTTPS_PROXY for a proxy, HF_ENDPOINT for a mirror) and try again, or download the file elsewhere and pass "
        "its path" + f"; the {bytes_text(arrived)} that have arrived are kept for the next try" * (arrived > 0)
    )


def reason_of(error: BaseException) -> str:
    """What an error says, in one line."""
    line = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
    return printable(re.sub(r"^\[Errno -?\d+\] ", "", line))
