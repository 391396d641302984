"""Nothing that a name or a server says leads outside the hub's cache, and a file counts as checked when it was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import pin_models
import pytest

from pycrispasr import ModelNotFoundError, PycrispasrError, UsageError
from pycrispasr.models import download, hub

from . import hub_server
from .hub_server import CONTENT, MOSS, NEW, OLD, Q4_K

REPO_FOLDER = "models--org--repo"
OUT = ["..", "../../x", "a/../../x", "/x", "a//b", "", ".", "a\\..\\..\\x", "C:x", "x\0", "a/.", "x\n"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that is none of the cache's."""
    path = tmp_path / "outside" / "mine.gguf"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    return path


def everything(folder: Path) -> list[str]:
    """All files and links below a folder, but not those of the cache."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if "cache" not in path.parts and (path.is_symlink() or path.is_file())
    )


# What names say.


@pytest.mark.parametrize("revision", [revision for revision in OUT if revision])
def test_a_revision_stays_in_the_cache(server: hub_server.Hub, tmp_path: Path, revision: str) -> None:
    for name in ("org/repo", "org/repo:model.gguf", "moss-transcribe"):
        with pytest.raises(UsageError, match=r"revision cannot be .*: name a branch, a tag or a commit"):
            hub.resolve(name, revision=revision)
    assert not server.requests
    assert everything(tmp_path) == []


@pytest.mark.parametrize("revision", ["refs/pr/1", "feature/x", "v1.0", "a.b-c_d"])
def test_branches_and_tags_may_have_slashes_and_dots(revision: str) -> None:
    assert download.Remote("org/repo", "org/repo", "a.gguf", revision).snapshot is None


@pytest.mark.parametrize("file", [file for file in OUT if file])
def test_a_file_stays_in_the_cache(server: hub_server.Hub, tmp_path: Path, file: str) -> None:
    for call in (hub.resolve, hub.cached, hub.remove):
        with pytest.raises(ModelNotFoundError):
            call(f"org/repo:{file}")
    assert not server.requests
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    "repo", ["org/..", "../repo", "org/re\\po", "o:g/repo", "org/a--b", "org/\x1b[2J", "org/re po"]
)
def test_a_repository_stays_in_the_cache(server: hub_server.Hub, repo: str) -> None:
    with pytest.raises(ModelNotFoundError):
        hub.resolve(f"{repo}:model.gguf")
    with pytest.raises(ModelNotFoundError):
        hub.checkpoint(repo)
    assert not server.requests


# What servers say.


def check_that_it_is_no_hub(server: hub_server.Hub, tmp_path: Path) -> None:
    """Nothing of a model or a checkpoint is fetched from what answers like this, or written."""
    server.add("org/some", "config.json", b"{}")
    for call in (lambda: hub.resolve("moss-transcribe"), lambda: hub.checkpoint("org/some")):
        with pytest.raises(ModelNotFoundError, match="does not answer as a Hugging Face hub does"):
            call()
    assert not server.contents()
    assert everything(tmp_path) == []


@pytest.mark.parametrize("etag", ["..", ".", "../../../x", "a/b", "a\\b", "x" * 200, "C:x", "x.incomplete"])
def test_an_etag_that_is_no_name_is_an_error(server: hub_server.Hub, tmp_path: Path, etag: str) -> None:
    server.etag = etag
    check_that_it_is_no_hub(server, tmp_path)


@pytest.mark.parametrize("commit", ["..", "../../x", "main", "1" * 39, "G" * 40, OLD + "/../../x"])
def test_a_commit_that_is_none_is_an_error(server: hub_server.Hub, tmp_path: Path, commit: str) -> None:
    server.commit = commit
    check_that_it_is_no_hub(server, tmp_path)


def test_another_commit_than_the_one_asked_for_is_an_error(server: hub_server.Hub) -> None:
    server.commit = NEW
    with pytest.raises(ModelNotFoundError, match="does not answer as a Hugging Face hub does"):
        hub.resolve("org/repo:model.gguf", revision=OLD)


@pytest.mark.parametrize("file", ["../../../x.gguf", "/x.gguf", "a\\..\\x.gguf"])
def test_a_listed_file_stays_in_the_cache(server: hub_server.Hub, tmp_path: Path, file: str) -> None:
    server.add("org/some", "config.json", b"{}")
    server.listed = [file, file.replace("gguf", "json")]
    for call in (lambda: hub.resolve("org/some"), lambda: hub.checkpoint("org/some")):
        with pytest.raises(ModelNotFoundError, match="cannot be a file of org/some: its path would lead out of it"):
            call()
    assert everything(tmp_path) == []


@pytest.mark.parametrize("content", ["../../../outside", "../../..", "\udcff", "x" * 5000])
def test_a_ref_that_names_no_commit_is_none(server: hub_server.Hub, cache: Path, outside: Path, content: str) -> None:
    ref = cache / REPO_FOLDER / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelNotFoundError, match="is not in the cache"):
        hub.resolve("org/repo:mine.gguf", local_files_only=True)
    assert hub.resolve("org/repo:model.gguf").parent.name == NEW
    assert ref.read_text() == NEW


# What links in the cache say.


@pytest.mark.parametrize("part", ["", "blobs", "refs", "snapshots", f"snapshots/{NEW}"])
def test_nothing_is_written_through_a_link(
    server: hub_server.Hub, cache: Path, outside: Path, tmp_path: Path, part: str
) -> None:
    link = cache / REPO_FOLDER / part
    link.parent.mkdir(parents=True)
    link.symlink_to(outside.parent, target_is_directory=True)
    with pytest.raises(ModelNotFoundError, match=r"is not in the cache .*, since a link leads out of it"):
        hub.resolve("org/repo")
    assert everything(tmp_path) == ["outside/mine.gguf"]
    assert outside.read_bytes() == b"mine"


@pytest.mark.parametrize("place", ["partial", "lock"])
def test_no_link_is_written_through(server: hub_server.Hub, cache: Path, outside: Path, place: str) -> None:
    etag = hashlib.sha256(b"new" * 1000).hexdigest()
    link = {
        "partial": cache / REPO_FOLDER / "blobs" / f"{etag}.incomplete",
        "lock": cache / ".locks" / REPO_FOLDER / f"{etag}.lock",
    }[place]
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    if place == "lock":
        with pytest.raises(ModelNotFoundError, match="leads out of it"):
            hub.resolve("org/repo")
    else:
        assert hub.resolve("org/repo").read_bytes() == b"new" * 1000
    assert outside.read_bytes() == b"mine"


def test_a_file_s_name_takes_the_place_of_a_link(server: hub_server.Hub, cache: Path, outside: Path) -> None:
    link = cache / REPO_FOLDER / "snapshots" / NEW / "model.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    assert hub.resolve("org/repo:model.gguf", revision=NEW) == link  # somebody put their own file there
    (cache / REPO_FOLDER / "refs").mkdir()
    outside.unlink()
    assert hub.resolve("org/repo:model.gguf").read_bytes() == b"new" * 1000
    assert not outside.exists()


@pytest.mark.parametrize("part", ["", "snapshots", f"snapshots/{NEW}", f"snapshots/{NEW}/folder"])
@pytest.mark.parametrize("name", ["org/some", "org/some:folder/model.gguf"])
def test_removal_stops_at_a_linked_folder(
    server: hub_server.Hub, cache: Path, tmp_path: Path, part: str, name: str
) -> None:
    server.add("org/some", "folder/model.gguf", b"model", (NEW,))
    path = hub.resolve("org/some")
    blob = path.resolve()
    path.unlink()
    path.symlink_to(blob)
    moved = cache / "models--org--some" / part
    shutil.move(moved, tmp_path / "moved")
    moved.symlink_to(tmp_path / "moved", target_is_directory=True)
    before = everything(tmp_path)
    hub.remove(name)
    assert everything(tmp_path) == before
    assert not hub.cached(name)


def test_removal_takes_links_and_leaves_what_they_lead_to(server: hub_server.Hub, cache: Path, outside: Path) -> None:
    path = hub.resolve("org/repo")
    blob = path.resolve()
    blob.unlink()
    blob.symlink_to(outside)  # the contents were moved to another disk
    assert hub.remove("org/repo") == 0
    assert not path.exists()
    assert not os.path.lexists(blob)
    hub.resolve("org/repo")
    path.unlink()
    path.symlink_to(outside)
    assert hub.remove("org/repo") == 3000  # the contents that nothing leads to
    assert outside.read_bytes() == b"mine"
    assert not (cache / REPO_FOLDER).exists()


def test_removal_leaves_another_repository_s_contents(server: hub_server.Hub, cache: Path) -> None:
    server.add("org/some", "model.gguf", b"some", (NEW,))
    some, path = hub.resolve("org/some"), hub.resolve("org/repo")
    path.unlink()
    path.symlink_to(some.resolve())
    hub.remove("org/repo")
    assert some.read_bytes() == b"some"


def test_removal_takes_refs_of_what_is_gone(server: hub_server.Hub, cache: Path) -> None:
    for revision in ("v1", "main"):
        hub.resolve("org/repo", revision=revision)
    server.add("org/repo", "other.gguf", b"other", (NEW,))
    hub.resolve("org/repo:other.gguf")
    assert hub.remove("org/repo:model.gguf") == 6000
    assert [path.name for path in (cache / REPO_FOLDER / "refs").iterdir()] == ["main"]
    assert [path.name for path in (cache / REPO_FOLDER / "snapshots").iterdir()] == [NEW]


def test_without_links_files_are_copies(server: hub_server.Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a privilege is missing")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = hub.resolve("org/repo")
    assert not path.is_symlink()
    assert path.read_bytes() == b"new" * 1000
    assert hub.resolve("org/repo", local_files_only=True) == path
    assert hub.remove("org/repo") >= 3000
    assert not (cache / REPO_FOLDER).exists()


# What counts as checked.


def pinned(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    registry = {**hub._registry(), "moss-transcribe": {**hub._registry()["moss-transcribe"], **fields}}
    monkeypatch.setattr(hub, "_registry", lambda: registry)


@pytest.mark.parametrize(("tells_size", "compared"), [(True, "only its size"), (False, "nothing")])
def test_a_file_without_a_checksum_is_told_of(
    server: hub_server.Hub, caplog: pytest.LogCaptureFixture, tells_size: bool, compared: str
) -> None:
    server.etag, server.tells_size = "5f3-abc", tells_size
    with caplog.at_level(logging.WARNING):
        hub.resolve("moss-transcribe")
    (told,) = caplog.messages
    assert told == f"moss-transcribe: the hub tells no checksum of it, so that {compared} could be compared"


def test_a_checked_file_is_not_told_of(
    server: hub_server.Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.resolve("org/repo")
    server.etag = "5f3-abc"
    pinned(monkeypatch, sha256=hashlib.sha256(CONTENT).hexdigest())
    hub.resolve("moss-transcribe")
    assert caplog.messages == []


@pytest.mark.parametrize("corrupt", [True, False])
def test_git_s_hash_of_a_small_file_is_a_checksum(
    server: hub_server.Hub, caplog: pytest.LogCaptureFixture, corrupt: bool
) -> None:
    content = b"new" * 1000
    server.etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    server.corrupt = corrupt
    if corrupt:
        with pytest.raises(ModelNotFoundError, match=r"its git's hash is .* instead of .*removed"):
            hub.resolve("org/repo")
    else:
        assert hub.resolve("org/repo").read_bytes() == content
    assert caplog.messages == []


def test_a_pinned_name_stands_for_one_commit(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(MOSS, Q4_K, b"old" * 1000, (OLD,))
    digest = hashlib.sha256(b"old" * 1000).hexdigest()
    pinned(monkeypatch, revision=OLD, size=3000, sha256=digest)
    with pytest.raises(
        ModelNotFoundError, match=r"^moss-transcribe is not .*`pycrispasr models download moss-transcribe`"
    ):
        hub.resolve("moss-transcribe", local_files_only=True)
    assert hub.resolve("moss-transcribe").read_bytes() == b"old" * 1000
    assert hub.resolve("moss-transcribe", revision="main").read_bytes() == CONTENT
    assert hub.resolve("moss-transcribe", local_files_only=True).parent.name == OLD
    assert next(model for model in hub.models() if model.name == "moss-transcribe").revision == OLD


def test_another_file_than_the_pinned_one_is_not_even_fetched(
    server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(b"another").hexdigest()
    pinned(monkeypatch, sha256=digest)
    with pytest.raises(ModelNotFoundError, match=rf"is not the one that .* instead of {digest}\): update pycrispasr"):
        hub.resolve("moss-transcribe")
    assert not server.contents()


def test_contents_from_before_are_checked_too(
    server: hub_server.Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.etag = "5f3-abc"
    pinned(monkeypatch, sha256=hashlib.sha256(CONTENT).hexdigest())
    blob = cache / f"models--{MOSS.replace('/', '--')}" / "blobs" / server.etag
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x" * len(CONTENT))
    with pytest.raises(ModelNotFoundError, match="SHA-256"):
        hub.resolve("moss-transcribe")
    assert hub.resolve("moss-transcribe").read_bytes() == CONTENT


# The registry.


def test_the_registry_has_what_known_models_have() -> None:
    registry = json.loads(pin_models.MODELS.read_text("utf-8"))
    for name, fields in registry.items():
        model = hub.KnownModel(name=name, **fields)
        for each, form in ((model.sha256, 64), (model.revision, 40)):
            assert each is None or (len(each) == form and set(each) <= set("0123456789abcdef"))
        assert (model.sha256 is None) == (model.size is None)
        assert model.repo is None or (model.revision is None) == (model.sha256 is None)


def test_names_are_pinned_by_a_command(server: hub_server.Hub, tmp_path: Path) -> None:
    registry = tmp_path / "models.json"
    shutil.copyfile(pin_models.MODELS, registry)
    before = json.loads(registry.read_text("utf-8"))
    with pytest.raises(PycrispasrError, match="has no file"):
        pin_models.pin(registry)
    assert json.loads(registry.read_text("utf-8")) == before
    for name, fields in before.items():
        if fields["repo"]:
            server.add(fields["repo"], fields["file"], name.encode())
    pin_models.pin(registry)
    after = json.loads(registry.read_text("utf-8"))
    for name, fields in after.items():
        told = (NEW, len(name), hashlib.sha256(name.encode()).hexdigest())
        assert before[name] | {} == before[name]
        if fields["repo"]:
            assert (fields["revision"], fields["size"], fields["sha256"]) == told
        else:
            assert fields == before[name]
    pin_models.unpin(registry)
    assert json.loads(registry.read_text("utf-8")) == {
        name: fields | (dict.fromkeys(("revision", "size", "sha256")) if fields["repo"] else {})
        for name, fields in before.items()
    }
    server.etag = "5f3-abc"
    with pytest.raises(PycrispasrError, match="tells no size and SHA-256 of moss-transcribe"):
        pin_models.pin(registry)
