"""Files of the Hugging Face hub: fetched, checked, and kept in the hub's own cache.

The cache is shared with the hub's other clients: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A
file is fetched under another name, checked, and only then given its place there; the hub's client alone would neither
take up a broken download nor check a file's sum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycrispasr.atomic import replacing
from pycrispasr.errors import ModelNotFoundError, PycrispasrError
from pycrispasr.terminal import is_terminal
from pycrispasr.text import bytes_text, printable

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

MAIN = "main"  # the revision that the hub gives where none is named


_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, slots=True)
class Remote:
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
        option = "" if self.revision == MAIN else f" --revision {self.revision}"
        return f"pycrispasr models download {self.name}{option}"

    @property
    def folder(self) -> Path:
        """Where the cache holds its repository."""
        return cache_folder() / f"models--{self.repo.replace('/', '--')}"

    def __str__(self) -> str:
        return self.name if self.revision == MAIN else f"{self.name} (revision {self.revision})"


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
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    with from_hub(remote):
        file = remote.file or only_one(remote.repo, _listed(remote))
        metadata = get_hf_file_metadata(hf_hub_url(remote.repo, file, revision=remote.revision))
        commit, etag = metadata.commit_hash, metadata.etag
        if not commit or not etag or not re.fullmatch(r"[\w.-]+", etag):
            raise ModelNotFoundError(
                f"{_endpoint()} does not answer as a Hugging Face hub does: check HF_ENDPOINT, and whether a proxy or "
                "a login page stands before the network"
            )
        blob = remote.folder / "blobs" / etag
        lock = cache_folder() / ".locks" / remote.folder.name / f"{etag}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # another process may be fetching it: then it is there afterwards
            if not blob.exists():
                _download(remote, file, metadata, blob)
        # The file is there under its sum; now the hub's client gives it its name, of the very commit that was fetched.
        path = Path(hf_hub_download(remote.repo, file, cache_dir=cache_folder(), revision=commit))
        if remote.revision != commit:
            _write(remote.folder / "refs" / remote.revision, commit)
    return path


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


def _download(remote: Remote, file: str, metadata: HfFileMetadata, blob: Path) -> None:
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
                f"{remote} needs {bytes_text(size - have)} of disk, and {cache_folder()} has {bytes_text(free)} left: "
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
