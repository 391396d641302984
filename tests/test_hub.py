"""From a model's name to its file. The hub is a stand-in: no test needs the network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from pycrispasr import ModelNotFoundError, hub


class Hub:
    """What was asked of the hub, and what it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cached: set[str] = set()
        self.online = True
        self.downloads: list[tuple[str, str]] = []
        self.files = ["README.md", "model.gguf"]

    def hf_hub_download(self, repo: str, file: str, local_files_only: bool = False) -> str:
        if local_files_only:
            if file not in self.cached:
                raise LocalEntryNotFoundError("not in the cache")
        else:
            self._connect()
            self.downloads.append((repo, file))
        return str(self.folder / file)

    def list_repo_files(self, repo: str) -> list[str]:
        self._connect()
        return self.files

    def _connect(self) -> None:
        if not self.online:
            raise ConnectionError("the hub cannot be reached\nand more") from OSError("no route to host")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    stand_in = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", stand_in.list_repo_files)
    return stand_in


MOSS = "cstr/MOSS-Transcribe-preview-2B-GGUF"


@pytest.mark.parametrize(
    ("name", "repo", "file"),
    [
        ("moss-transcribe", MOSS, "moss-transcribe-preview-2b-q4_k.gguf"),
        ("moss-transcribe:q4_k", MOSS, "moss-transcribe-preview-2b-q4_k.gguf"),
        ("moss-transcribe:q8_0", MOSS, "moss-transcribe-preview-2b-q8_0.gguf"),
        ("moss-transcribe:f16", MOSS, "moss-transcribe-preview-2b-f16.gguf"),
        ("org/repo", "org/repo", "model.gguf"),
        ("org/repo:other.gguf", "org/repo", "other.gguf"),
        ("org/repo:folder/other.gguf", "org/repo", "folder/other.gguf"),
    ],
)
def test_names_become_files_of_the_hub(stand_in: Hub, name: str, repo: str, file: str) -> None:
    assert hub.resolve(name) == stand_in.folder / file
    assert stand_in.downloads == [(repo, file)]


def test_a_cached_model_needs_no_network(stand_in: Hub) -> None:
    stand_in.online = False
    stand_in.cached = {"moss-transcribe-preview-2b-q4_k.gguf", "other.gguf"}
    assert hub.resolve("moss-transcribe").name == "moss-transcribe-preview-2b-q4_k.gguf"
    assert hub.resolve("org/repo:other.gguf").name == "other.gguf"


@pytest.mark.parametrize("name", ["moss-transcribe", "org/repo", "org/repo:model.gguf"])
def test_without_network_the_error_tells_what_to_do(stand_in: Hub, name: str) -> None:
    stand_in.online = False
    with pytest.raises(ModelNotFoundError) as caught:
        hub.resolve(name)
    assert name.split(":")[0].split("/")[-1] in str(caught.value).lower()
    assert "(no route to host)" in str(caught.value)
    assert "pass its path" in str(caught.value)


@pytest.mark.parametrize("files", [[], ["README.md"], ["a.gguf", "b.gguf"]])
def test_a_repository_without_one_gguf_file_asks_for_a_name(stand_in: Hub, files: list[str]) -> None:
    stand_in.files = files
    with pytest.raises(ModelNotFoundError, match=r"org/repo:FILE"):
        hub.resolve("org/repo")


@pytest.mark.parametrize(
    "name",
    ["missing.gguf", "folder/missing.gguf", "./org/repo", "../repo", "/org/repo", "a/b/c", "whisper", "tiny:q8_0", ""],
)
def test_what_looks_like_a_path_never_asks_the_hub(stand_in: Hub, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        hub.resolve(name)
    with pytest.raises(ModelNotFoundError):
        hub.resolve(Path("org/repo"))
    assert stand_in.downloads == []


def test_an_existing_file_goes_before_the_hub(stand_in: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    Path("org/repo").write_bytes(b"GGUF")
    assert hub.resolve("org/repo") == Path("org/repo")
    assert stand_in.downloads == []


def test_tiny_is_part_of_the_package() -> None:
    assert hub.resolve("tiny") == Path(hub.__file__).parent / "bundled" / "tiny.gguf"


def test_offline_only_the_cache_is_used(stand_in: Hub, tmp_path: Path) -> None:
    file = "moss-transcribe-preview-2b-q4_k.gguf"
    for name in ("moss-transcribe", f"{MOSS}:{file}"):
        with pytest.raises(ModelNotFoundError, match="is not in the cache"):
            hub.resolve(name, offline=True)
    with pytest.raises(ModelNotFoundError, match=r"must be named: org/repo:FILE\.gguf"):
        hub.resolve("org/repo", offline=True)
    stand_in.cached.add(file)
    assert hub.resolve("moss-transcribe", offline=True) == tmp_path / file
    assert hub.resolve("tiny", offline=True).name == "tiny.gguf"
    assert stand_in.downloads == []
