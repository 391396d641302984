"""From a model's name to its file, and downloads: the real client of the hub against a server of our own."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

import pycrispasr
from pycrispasr import Model, ModelNotFoundError, PycrispasrError, UsageError
from pycrispasr.models import hub

from . import hub_server
from .hub_server import MOSS, NEW, OLD, Q4_K, environment
from .sounds import make_tones

CONTENT = hub_server.CONTENT


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def incomplete(cache: Path) -> list[Path]:
    return list(cache.glob("*/blobs/*.incomplete"))


# Names.


@pytest.mark.parametrize(
    ("name", "repo", "file"),
    [
        ("moss-transcribe", MOSS, Q4_K),
        ("moss-transcribe:q4_k", MOSS, Q4_K),
        ("moss-transcribe:q8_0", MOSS, "moss-transcribe-preview-2b-q8_0.gguf"),
        ("moss-transcribe:f16", MOSS, "moss-transcribe-preview-2b-f16.gguf"),
        ("some/other", "some/other", "only.gguf"),
        ("some/other:only.gguf", "some/other", "only.gguf"),
        ("some/other:folder/[1] and*.gguf", "some/other", "folder/[1] and*.gguf"),
    ],
)
def test_names_become_files_of_the_hub(server: hub_server.Hub, cache: Path, name: str, repo: str, file: str) -> None:
    server.add(repo, file, name.encode())
    path = hub.resolve(name)
    assert path.read_bytes() == name.encode()
    assert path == cache / f"models--{repo.replace('/', '--')}" / "snapshots" / NEW / file
    asked = len(server.requests)
    assert hub.resolve(name) == path
    assert len(server.requests) == asked
    assert hub.cached(name) == [path]
    assert not incomplete(cache)


def test_a_revision_is_a_tag_or_a_commit(server: hub_server.Hub) -> None:
    for revision, content in [(None, b"new"), ("main", b"new"), ("v1", b"old"), (OLD, b"old"), (NEW, b"new")]:
        assert hub.resolve("org/repo:model.gguf", revision=revision).read_bytes() == content * 1000
        assert hub.resolve("org/repo", revision=revision).read_bytes() == content * 1000
    assert len(server.contents()) == 2
    asked = len(server.requests)
    assert hub.resolve("org/repo", revision="v1", local_files_only=True).parent.name == OLD
    assert len(server.requests) == asked


def test_only_files_of_the_hub_have_revisions() -> None:
    with pytest.raises(UsageError, match=r"'tiny' has no revision 'v1'"):
        hub.resolve("tiny", revision="v1")
    with pytest.raises(UsageError, match=r"has no revision 'v1'"):
        Model(hub.resolve("tiny"), revision="v1")


def test_models_are_opened_from_the_hub(server: hub_server.Hub, nano: Model, nano_path: Path) -> None:
    server.add("org/nano", "nano.gguf", nano_path.read_bytes(), (OLD,))
    with pytest.raises(ModelNotFoundError, match=r"pycrispasr models download org/nano:nano.gguf --revision v1"):
        Model("org/nano:nano.gguf", revision="v1", local_files_only=True)
    assert not server.requests
    with Model("org/nano:nano.gguf", revision="v1", threads=1) as model:
        assert model.info.name
    sound = make_tones(0.6, 1)
    fetched = pycrispasr.transcribe(sound, sample_rate=16000, model="org/nano", revision="v1", max_new_tokens=3)
    assert fetched == dataclasses.replace(
        nano.transcribe(sound, sample_rate=16000, max_new_tokens=3), timings=fetched.timings
    )


@pytest.mark.parametrize("files", [[], ["README.md"], ["a.gguf", "b.gguf"]])
def test_a_repository_without_one_gguf_file_asks_for_a_name(server: hub_server.Hub, files: list[str]) -> None:
    server.add("some/other", "config.json", b"{}")
    for file in files:
        server.add("some/other", file, file.encode())
    with pytest.raises(ModelNotFoundError, match=r"some/other:FILE"):
        hub.resolve("some/other")
    for file in files:
        hub.resolve(f"some/other:{file}")
    if len(files) == 2:  # in the cache, too
        with pytest.raises(ModelNotFoundError, match=r"some/other:FILE: a.gguf, b.gguf"):
            hub.resolve("some/other", local_files_only=True)


@pytest.mark.parametrize(
    "name",
    [
        "missing.gguf", "folder/missing.gguf", "./org/repo", "../repo", "/org/repo", "a/b/c", "whisper", "tiny:q8_1",
        "", "moss-transcribe:q9_9", "org/repo:../model.gguf",
    ],
)  # fmt: skip
def test_what_looks_like_a_path_never_asks_the_hub(server: hub_server.Hub, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        hub.resolve(name)
    with pytest.raises(ModelNotFoundError):
        hub.resolve(Path("org/repo"))
    assert not server.requests


def test_an_existing_file_goes_before_the_hub(
    server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    Path("org/repo").write_bytes(b"GGUF")
    assert hub.resolve("org/repo") == Path("org/repo")
    assert not server.requests


def test_tiny_is_part_of_the_package() -> None:
    path = hub.resolve("tiny", local_files_only=True)
    assert path == Path(hub.__file__).parent.parent / "bundled" / "tiny.gguf"
    assert hub.resolve("tiny:q8_0") == path


def test_the_registry_tells_the_truth_about_tiny() -> None:
    tiny = next(model for model in hub.models() if model.name == "tiny")
    fields = hub._registry()["tiny"]
    assert tiny.path is not None
    assert (tiny.size, fields["size"]) == (tiny.path.stat().st_size,) * 2
    assert tiny.sha256 == hashlib.sha256(tiny.path.read_bytes()).hexdigest()
    assert hub._type(tiny.path) == tiny.type


# The cache.


def test_a_file_that_two_revisions_share_is_fetched_once(server: hub_server.Hub) -> None:
    paths = {hub.resolve("moss-transcribe", revision=revision) for revision in (None, "v1")}
    assert len(paths) == 2
    assert len(server.contents()) == 1


def test_models_lists_names_and_what_else_is_cached(server: hub_server.Hub, nano_path: Path) -> None:
    before = hub.models()
    assert [model.name for model in before] == [
        "tiny", "moss-transcribe", "moss-transcribe:q8_0", "moss-transcribe:f16", "qwen3-asr:0.6b", "qwen3-asr:1.7b",
        "moss-diarize", "qwen3-aligner",
    ]  # fmt: skip
    assert [model.path is not None for model in before] == [True, *[False] * (len(before) - 1)]
    nano = nano_path.read_bytes()
    server.add("org/nano", "q/nano.gguf", nano + bytes(64), (OLD,))
    server.add("org/nano", "q/nano.gguf", nano, (NEW,))
    for name, revision in [
        ("org/nano:q/nano.gguf", None), ("org/nano:q/nano.gguf", "v1"), ("org/repo", None), ("moss-transcribe", None),
    ]:  # fmt: skip
        hub.resolve(name, revision=revision)
    found = hub.models()
    assert found[1].path == hub.resolve("moss-transcribe")
    assert found[1].size == len(CONTENT)
    assert [(model.name, model.revision, model.type, model.size) for model in found[len(before) :]] == [
        ("org/nano:q/nano.gguf", None, "F32", len(nano)),
        ("org/nano:q/nano.gguf", OLD, "F32", len(nano) + 64),
    ]  # not the other file, which is no model
    for model in found[len(before) :]:
        assert hub.resolve(model.name, revision=model.revision, local_files_only=True) == model.path


@pytest.mark.parametrize("damage", ["empty", "a file", "junk", "no blob", "bad ref", "refs to nothing"])
def test_a_damaged_cache_is_no_obstacle(server: hub_server.Hub, cache: Path, damage: str) -> None:
    if damage == "empty":
        cache.mkdir()
    elif damage == "a file":
        cache.write_bytes(b"")
    else:
        repo = hub.resolve("moss-transcribe").parents[2]
        (cache / "models--junk").mkdir()
        (cache / "junk.gguf").write_bytes(b"GGUF")
        if damage == "no blob":
            shutil.rmtree(repo / "blobs")
        elif damage == "bad ref":
            (repo / "refs" / "main").write_bytes(b"\xff\xfe")
        elif damage == "refs to nothing":
            shutil.rmtree(repo / "snapshots")
    expected = damage == "junk"
    first, second, *rest = [model.path is not None for model in hub.models()]
    assert (first, second, any(rest)) == (True, expected, False)


def test_remove_leaves_the_other_files(server: hub_server.Hub, cache: Path) -> None:
    server.add(MOSS, "moss-transcribe-preview-2b-q8_0.gguf", b"q8_0")
    large = hub.resolve("moss-transcribe:q8_0")
    for revision in (None, "v1"):
        hub.resolve("moss-transcribe", revision=revision)
    assert [path.parent.name for path in hub.cached("moss-transcribe")] == [OLD, NEW]
    assert hub.remove("moss-transcribe") == len(CONTENT)
    assert hub.cached("moss-transcribe") == []
    assert hub.resolve("moss-transcribe:q8_0", local_files_only=True) == large
    assert sum(path.stat().st_size for path in cache.glob("*/blobs/*")) == len(b"q8_0")
    assert hub.remove("moss-transcribe") == 0
    assert hub.remove("moss-transcribe:q8_0") == len(b"q8_0")
    assert not (cache / f"models--{MOSS.replace('/', '--')}").exists()
    assert hub.resolve("moss-transcribe").stat().st_size == len(CONTENT)


def test_remove_takes_all_of_a_repository(server: hub_server.Hub, cache: Path) -> None:
    for revision in (None, "v1"):
        hub.resolve("org/repo", revision=revision)
    assert hub.remove("org/repo") == 6000
    assert not list(cache.glob("*/snapshots/*/*"))
    with pytest.raises(UsageError, match=r"'tiny' does not lie in the"):
        hub.remove("tiny")


# Downloads.


@pytest.mark.parametrize("tells_size", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(server: hub_server.Hub, cache: Path, tells_size: bool) -> None:
    server.break_at, server.tells_size = 600_000, tells_size
    with pytest.raises(ModelNotFoundError, match=r"the 600 kB that have arrived are kept for the next try") as caught:
        hub.resolve("moss-transcribe")
    assert "\n" not in str(caught.value)
    (partial,) = incomplete(cache)
    assert partial.read_bytes() == CONTENT[:600_000]
    assert hub.models()[1].path is None
    before = len(server.contents())
    server.break_at = None
    assert hub.resolve("moss-transcribe").read_bytes() == CONTENT
    assert [headers.get("range") for headers in server.contents()[before:]] == ["bytes=600000-"]
    assert not incomplete(cache)


def test_one_short_break_is_not_even_noticed(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.break_at = 600_000

    def wait(seconds: float) -> None:
        server.break_at = None

    monkeypatch.setattr(time, "sleep", wait)
    assert hub.resolve("moss-transcribe").read_bytes() == CONTENT
    assert [headers.get("range") for headers in server.contents()] == [None, "bytes=600000-"]


@pytest.mark.parametrize("rest", [CONTENT, CONTENT[:-1] + b"x", CONTENT + b"more"], ids=["all", "wrong", "too much"])
def test_what_another_program_left_is_checked_too(server: hub_server.Hub, cache: Path, rest: bytes) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    partial = cache / f"models--{MOSS.replace('/', '--')}" / "blobs" / f"{digest}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(rest)
    if len(rest) == len(CONTENT) and rest != CONTENT:
        with pytest.raises(ModelNotFoundError, match="SHA-256"):
            hub.resolve("moss-transcribe")
    assert hub.resolve("moss-transcribe").read_bytes() == CONTENT
    assert len(server.contents()) == (rest != CONTENT)


def test_a_wrong_file_is_removed_and_never_seen(server: hub_server.Hub, cache: Path) -> None:
    server.corrupt = True
    with pytest.raises(ModelNotFoundError, match=r"not the hub's file \(its SHA-256 is .*removed: try again"):
        hub.resolve("moss-transcribe")
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    server.corrupt = False
    assert hub.resolve("moss-transcribe").read_bytes() == CONTENT
    assert [headers.get("range") for headers in server.contents()] == [None, None]


def test_a_file_of_a_wrong_size_is_removed(
    server: hub_server.Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.tells_size, server.etag = False, "not-a-sum"
    registry = {**hub._registry(), "moss-transcribe": {**hub._registry()["moss-transcribe"], "size": 1_024_001}}
    monkeypatch.setattr(hub, "_registry", lambda: registry)
    with pytest.raises(ModelNotFoundError, match=r"it has 1,024,000 bytes instead of 1,024,001"):
        hub.resolve("moss-transcribe")
    assert not incomplete(cache)
    assert hub.resolve("moss-transcribe", revision="v1").read_bytes() == CONTENT  # the size is another revision's


@pytest.mark.parametrize("right", [True, False])
def test_a_sum_in_the_registry_counts_whatever_the_hub_says(
    server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    server.etag = "not-a-sum"
    digest = hashlib.sha256(CONTENT if right else b"other").hexdigest()
    registry = {**hub._registry(), "moss-transcribe": {**hub._registry()["moss-transcribe"], "sha256": digest}}
    monkeypatch.setattr(hub, "_registry", lambda: registry)
    if right:
        assert hub.resolve("moss-transcribe").read_bytes() == CONTENT
    else:
        with pytest.raises(ModelNotFoundError, match=f"instead of {digest}"):
            hub.resolve("moss-transcribe")


def test_disk_space_is_checked_first(
    server: hub_server.Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    with pytest.raises(ModelNotFoundError, match=r"needs 1.02 MB of disk, and .*cache has 500 kB left.*HF_HOME"):
        hub.resolve("moss-transcribe")
    assert server.contents() == []
    assert capfd.readouterr() == ("", "")


def test_what_has_arrived_needs_no_space(server: hub_server.Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.break_at = 600_000
    with pytest.raises(ModelNotFoundError):
        hub.resolve("moss-transcribe")
    server.break_at = None
    usage = shutil.disk_usage(cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    assert hub.resolve("moss-transcribe").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "name", "revision", "message"),
    [
        ({"status": 401}, "moss-transcribe", None, r"GGUF does not exist, or is private: .*HF_TOKEN"),
        ({"private": {"org/repo"}}, "org/repo", None, r"org/repo does not exist, or is private: .*HF_TOKEN"),
        ({"gated": {"org/repo"}}, "org/repo:model.gguf", None, r"is gated: accept its terms at .*org/repo.*HF_TOKEN"),
        (
            {"status": 403},
            "org/repo:model.gguf",
            None,
            r"refuses to give out org/repo:model.gguf \(403\): set HF_TOKEN",
        ),
        ({}, "org/none", None, r"/org/none does not exist"),
        ({}, "org/none:a.gguf", None, r"/org/none does not exist"),
        ({}, "org/repo:a.gguf", None, r"/org/repo has no file 'a.gguf': .*/org/repo/tree/main lists its files"),
        ({}, "org/repo", "v2", r"/org/repo has no revision 'v2': name a branch, a tag or a commit"),
        ({}, "moss-transcribe", "v2", r"GGUF has no revision 'v2'"),
        ({"status": 429}, "moss-transcribe", None, r"too many requests \(429\): try again in some minutes"),
        ({"status": 500}, "moss-transcribe", None, r"fails to give out moss-transcribe \(500\): try again later"),
        ({"status": 503}, "org/repo", None, r"fails to give out org/repo \(503\): try again later"),
        ({"content_status": 429}, "moss-transcribe", None, r"too many requests \(429\)"),
        ({"content_status": 500}, "moss-transcribe", None, r"\(500\): try again later"),
        ({"break_at": 0}, "moss-transcribe", None, r"cannot be fetched \(.*\): check the name and the network.*path$"),
        (
            {"no_commit": True},
            "moss-transcribe",
            None,
            r"does not answer as a Hugging Face hub does: check HF_ENDPOINT",
        ),
        ({"etag": "../x"}, "moss-transcribe", None, r"does not answer as a Hugging Face hub does"),
    ],
)
def test_failures_are_one_sentence_with_the_way_out(
    server: hub_server.Hub,
    cache: Path,
    capfd: pytest.CaptureFixture[str],
    behaviour: dict[str, object],
    name: str,
    revision: str | None,
    message: str,
) -> None:
    for key, value in behaviour.items():
        setattr(server, key, value)
    with pytest.raises(ModelNotFoundError, match=message) as caught:
        hub.resolve(name, revision=revision)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not list(cache.glob("*/snapshots/*"))
    for key in behaviour:
        setattr(server, key, getattr(hub_server.Hub(), key))
    assert hub.resolve("moss-transcribe").read_bytes() == CONTENT  # nothing is left that stands in the way


@pytest.mark.parametrize("name", ["moss-transcribe", "org/repo", "org/repo:model.gguf"])
def test_without_network_the_error_tells_what_to_do(
    server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    with pytest.raises(
        ModelNotFoundError, match=r"refused\): check the name and the network.*pass its path$"
    ) as caught:
        hub.resolve(name)
    assert str(caught.value).startswith(f"{name} is not in the cache and cannot be fetched")


def test_offline_a_checkpoint_is_fetched_elsewhere(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=r"run `hf download org/some` on a machine with network"):
        hub.checkpoint("org/some")
    assert not server.requests


def test_a_full_disk(server: hub_server.Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def http_get(url: str, sink: object, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", http_get)
    with pytest.raises(ModelNotFoundError, match=r"cache is full, and moss-transcribe does not fit.*HF_HOME"):
        hub.resolve("moss-transcribe")


def test_a_cache_that_cannot_be_written(server: hub_server.Hub, cache: Path) -> None:
    cache.write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"cache cannot be used for moss-transcribe \(.*HF_HOME to a folder"):
        hub.resolve("moss-transcribe")


def test_the_token_goes_to_the_hub_and_nowhere_else(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.private = {"org/repo"}
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelNotFoundError, match=r"org/repo does not exist, or is private"):
        hub.resolve("org/repo")
    monkeypatch.setenv("HF_TOKEN", server.token)
    server.requests.clear()
    assert hub.resolve("org/repo").read_bytes() == b"new" * 1000
    assert {headers.get("authorization") for _, path, headers in server.requests if not path.startswith("/cdn/")} == {
        f"Bearer {server.token}"
    }
    assert [headers.get("authorization") for headers in server.contents()] == [None]


# Other processes, with nothing but the environment to tell them where the hub is.


def python(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )


SMALL_BLOCKS = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 10_000"
RESOLVE = "from pycrispasr import hub; print(hub.resolve('moss-transcribe'))"


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_the_environment_names_the_hub_and_its_cache(server: hub_server.Hub, tmp_path: Path, variable: str) -> None:
    env = environment(server, tmp_path / "home", HF_TOKEN=server.token)
    folder = tmp_path / "home" / "hub"
    if variable == "HF_HUB_CACHE":
        folder = tmp_path / "elsewhere"
        env[variable] = str(folder)
    server.private = {MOSS}
    done = python(RESOLVE, env)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).read_bytes() == CONTENT
    assert folder in Path(done.stdout.strip()).parents


def test_offline_the_error_tells_what_to_run_where(server: hub_server.Hub, tmp_path: Path) -> None:
    env = environment(server, tmp_path, HF_HUB_OFFLINE="1")
    for arguments in (["transcribe", "x.wav"], ["models", "download", "moss-transcribe"]):
        done = subprocess.run(
            [sys.executable, "-m", "pycrispasr", *arguments], env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert "run `pycrispasr models download moss-transcribe` on a machine with network and copy" in done.stderr
        assert f"copy its folder models--{MOSS.replace('/', '--')} into {tmp_path / 'hub'}" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not server.requests
    done = python(RESOLVE, environment(server, tmp_path))
    assert done.returncode == 0
    assert python(RESOLVE, env).stdout == done.stdout


def test_two_processes_at_once_end_with_one_good_file(server: hub_server.Hub, tmp_path: Path) -> None:
    server.slow = threading.Event()
    env = environment(server, tmp_path)
    command = [sys.executable, "-c", RESOLVE]
    processes = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    metadata = 0
    while metadata < 2:  # both have asked where the file is, and one of them has begun to fetch it
        assert all(process.poll() is None for process in processes)
        metadata = sum(method == "HEAD" for method, _, _ in list(server.requests))
        threading.Event().wait(0.01)
    server.slow.set()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert outputs[0][1] == ""
    assert Path(outputs[0][0].strip()).read_bytes() == CONTENT
    assert len(server.contents()) == 1
    assert not incomplete(tmp_path / "hub")


@pytest.mark.skipif(os.name == "nt", reason="a killed process")
def test_a_killed_download_is_taken_up(server: hub_server.Hub, tmp_path: Path) -> None:
    server.slow = threading.Event()
    env = environment(server, tmp_path)
    with subprocess.Popen([sys.executable, "-c", f"{SMALL_BLOCKS}; {RESOLVE}"], env=env) as process:
        while not any(path.stat().st_size > 100_000 for path in incomplete(tmp_path / "hub")):
            assert process.poll() is None
            threading.Event().wait(0.01)
        process.kill()
    server.slow.set()
    (partial,) = incomplete(tmp_path / "hub")
    have = partial.stat().st_size
    done = python(RESOLVE, env)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.contents()[-1]["range"] == f"bytes={have}-"
    assert Path(done.stdout.strip()).read_bytes() == CONTENT


FORBIDDEN = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(watch)
import pycrispasr
from pycrispasr.models import hub
for name, revision in CASES:
    with pycrispasr.Model(name, revision=revision, threads=1) as model:
        print(model.info.parameters)
print(len(hub.models()))
"""


def test_no_network_when_the_file_is_here(server: hub_server.Hub, tmp_path: Path, nano_path: Path) -> None:
    nano = nano_path.read_bytes()
    server.add(MOSS, Q4_K, nano)
    server.add("org/nano", "nano.gguf", nano)
    cases = [
        ("moss-transcribe", None), ("moss-transcribe:q4_k", None), ("moss-transcribe", "v1"), ("org/nano", None),
        ("org/nano", "v1"), ("org/nano:nano.gguf", None), ("org/nano:nano.gguf", "v1"), ("org/nano:nano.gguf", OLD),
        ("tiny", None), (str(nano_path), None),
    ]  # fmt: skip
    env = environment(server, tmp_path)
    fetched = python(
        f"from pycrispasr import hub\nfor name, revision in {cases}: hub.resolve(name, revision=revision)", env
    )
    assert (fetched.returncode, fetched.stderr) == (0, "")
    asked = len(server.requests)
    done = python(f"CASES = {cases}\n{FORBIDDEN}", env)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == len(cases) + 1
    assert len(server.requests) == asked
    hidden = python(f"CASES = [('moss-transcribe:f16', None)]\n{FORBIDDEN}", env)  # the hook does see the network
    assert "socket." in hidden.stderr
    assert len(server.requests) == asked


def test_every_failure_is_ours(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a surprise\nwith details")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fails)
    with pytest.raises(PycrispasrError, match=r"cannot be fetched \(a surprise\)"):
        hub.resolve("moss-transcribe")
