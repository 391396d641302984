"""Recordings are transcribed by a pool of Ray Data's workers, and none is lost on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pycrispasr import InstallationError, Model, UsageError
from pycrispasr.ray import Transcriber, transcribe
from pycrispasr.results import manifest
from pycrispasr.results.segment import Segment, Token, Word

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
TEXTS = {name: (SAMPLES / f"{name}.txt").read_text("utf-8").strip() for name in ("digits", "hello", "spelling")}
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # nothing is written to the home, nothing sent
ADDED = [*manifest.RESULTS, "segments"]


@pytest.fixture(scope="module")
def data() -> Iterator[Any]:
    """Ray Data on a cluster of two CPUs and a GPU that nobody computes on."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        ray = pytest.importorskip("ray")
        pytest.importorskip("ray.data")
        ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray.data
        ray.shutdown()


pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\."),  # of Ray by Ray, not of Ray by us
]


def rows(dataset: Any, name: str = "audio") -> dict[str, dict[str, Any]]:
    """Rows by the recording's name; each comes once."""
    taken = dataset.take_all()
    named = {Path(row[name]).stem: row for row in taken}
    assert len(named) == len(taken)
    return named


def test_rows_of_paths_get_what_the_model_says(data: Any, tiny: Model) -> None:
    found = rows(transcribe([SAMPLES / f"{name}.wav" for name in TEXTS], model="tiny", word_timestamps=True))
    assert {name: row["text"] for name, row in found.items()} == TEXTS
    for name, row in found.items():
        transcript = tiny.transcribe(SAMPLES / f"{name}.wav", word_timestamps=True)
        assert list(row) == ["audio", *ADDED]
        assert {key: row[key] for key in manifest.RESULTS} == manifest.summary(transcript)
        assert [s["text"] for s in row["segments"]] == [s.text for s in transcript.segments]
        assert [w["text"] for w in row["segments"][0]["words"]] == row["text"].split()
        assert [t["id"] for t in row["segments"][0]["tokens"]] == [t.id for t in transcript.segments[0].tokens]


def test_folders_and_relative_paths_are_found_by_workers_elsewhere(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "within").mkdir()
    shutil.copy(SAMPLES / "hello.wav", tmp_path / "within")
    (tmp_path / "notes.txt").write_text("no audio")
    monkeypatch.chdir(tmp_path)
    (row,) = transcribe("within", model="tiny").take_all()
    assert (row["audio"], row["text"]) == (str(tmp_path / "within" / "hello.wav"), "hello")


@pytest.mark.parametrize("batch_format", ["default", "pyarrow", "pandas"])
def test_rows_of_bytes_in_any_format_keep_their_columns(data: Any, batch_format: str) -> None:
    files = data.read_binary_files([str(SAMPLES / f"{name}.wav") for name in TEXTS], include_paths=True)
    dataset = files.map_batches(
        Transcriber,
        fn_constructor_kwargs={"model": "tiny"},
        compute=data.ActorPoolStrategy(size=1),
        batch_size=2,
        batch_format=batch_format,
    )
    found = rows(dataset, "path")
    assert {name: row["text"] for name, row in found.items()} == TEXTS
    for name, row in found.items():
        assert row["bytes"] == (SAMPLES / f"{name}.wav").read_bytes()
        assert set(row) == {"bytes", "path", *ADDED}


def test_what_cannot_be_read_fails_by_itself_and_does_not_change_types(data: Any, tmp_path: Path) -> None:
    (tmp_path / "noise.wav").write_text("no audio")
    names = [str(SAMPLES / "hello.wav"), str(tmp_path / "noise.wav"), str(tmp_path / "gone.wav"), None]
    dataset = transcribe(
        data.from_items([{"file": name, "text": 7} for name in names]), model="tiny", batch_size=1, column="file"
    ).materialize()
    taken = {row["file"]: row for row in dataset.take_all()}
    assert [taken[name]["status"] for name in names] == ["ok", "failed", "failed", "failed"]
    assert [taken[name]["complete"] for name in names] == [True, False, False, False]
    assert [taken[name]["text"] for name in names] == ["hello", "", "", ""]
    assert taken[names[0]]["error"] is None
    assert "there is no such audio file" in taken[names[2]]["error"]
    assert all(taken[name]["error"] for name in names[1:])
    assert taken[names[2]]["segments"][0]["status"] == "failed"
    kinds = dict(zip(dataset.schema().names, map(str, dataset.schema().types), strict=True))
    assert {name: kinds[name] for name in manifest.RESULTS} == {
        "text": "string", "status": "string", "complete": "bool", "duration": "double", "error": "string",
    }  # fmt: skip
    for one in (Segment, Token, Word):
        for field in dataclasses.fields(one):
            assert f"{field.name}: " in kinds["segments"]


def test_parts_of_a_gpu_are_shared_and_threads_follow_the_cpus(data: Any) -> None:
    class Telling(Transcriber):
        def __call__(self, batch: Any) -> Any:
            import ray

            table = super().__call__(batch)
            for name, value in (
                ("process", os.getpid()),
                ("threads", self._model._threads),
                ("gpus", ",".join(map(str, ray.get_gpu_ids()))),
            ):
                table = table.append_column(name, [[value] * len(table)])
            return table

    def told(workers: int, **resources: float) -> list[dict[str, Any]]:
        paths = [{"audio": str(SAMPLES / "long.wav")} for _ in range(8)]
        return list(
            data.from_items(paths)
            .map_batches(
                Telling,
                fn_constructor_kwargs={"model": "tiny"},
                compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                batch_size=1,
                **resources,
            )
            .take_all()
        )

    shared = told(2, num_gpus=0.5, num_cpus=0.5)
    assert len({row["process"] for row in shared}) == 2
    assert {(row["gpus"], row["threads"]) for row in shared} == {("0", 1)}
    assert {row["threads"] for row in told(1, num_cpus=2)} == {2}


def workers() -> list[psutil.Process]:
    """The processes that hold models."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def patiently(attempt: Callable[[], Any]) -> Any:
    """The first result that is true."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if result := attempt():
            return result
        time.sleep(0.05)
    raise AssertionError("it did not happen within two minutes")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_rows_of_a_killed_worker_are_done_again_and_come_once(data: Any, tmp_path: Path) -> None:
    held = tmp_path / "held.wav"  # a worker that reads it waits for us
    os.mkfifo(held)
    names = [SAMPLES / "digits.wav", held, SAMPLES / "spelling.wav", SAMPLES / "hello.wav"]
    found: dict[str, dict[str, Any]] = {}
    failures: list[BaseException] = []

    def work() -> None:
        try:
            found.update(rows(transcribe(names, model="tiny", batch_size=2)))
        except BaseException as failure:  # noqa: BLE001  it belongs to the other thread
            failures.append(failure)

    def opened() -> int | None:
        assert not failures
        try:
            return os.open(held, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads yet
                raise
            return None

    thread = threading.Thread(target=work)
    thread.start()
    pipe = patiently(opened)
    (victim,) = workers()
    victim.kill()
    patiently(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)
    os.close(pipe)
    pipe = patiently(opened)  # the next one
    assert victim.pid not in [worker.pid for worker in workers()]
    os.set_blocking(pipe, True)
    with open(pipe, "wb") as file:
        file.write((SAMPLES / "hello.wav").read_bytes())
    thread.join(120)
    assert not failures
    assert {name: row["text"] for name, row in found.items()} == TEXTS | {"held": "hello"}


def test_a_model_that_is_not_there_ends_the_work_with_its_reason(data: Any) -> None:
    import ray

    with pytest.raises(ray.exceptions.RayError, match="no-such-model"):
        transcribe(SAMPLES / "hello.wav", model="no-such-model").take_all()


@pytest.mark.parametrize(
    ("row", "options", "sentence"),
    [
        ({"name": "a.wav"}, {}, "there is no column of recordings: name it with column=; there are 'name'"),
        ({"audio": "a.wav"}, {"column": "sound"}, "there is no column 'sound'; there are 'audio'"),
        ({"audio": 7}, {}, "column 'audio' holds int64: it must hold paths, addresses or bytes of audio files"),
    ],
)
def test_columns_that_hold_no_recordings_are_told_of(
    data: Any, row: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    import ray

    with pytest.raises((ray.exceptions.RayError, UsageError), match=re.escape(sentence)):
        transcribe(data.from_items([row]), model="tiny", **options).take_all()


def test_wrong_calls_fail_before_a_worker_is_started(data: Any) -> None:
    with pytest.raises(TypeError, match="beams"):
        transcribe("a.wav", beams=5)
    with pytest.raises(UsageError, match="there are no recordings"):
        transcribe([])


def test_without_ray_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(InstallationError, match=re.escape("pip install 'pycrispasr[ray]'")):
        transcribe("a.wav")


def test_the_pages_examples_run_and_print_what_is_shown(data: Any) -> None:
    page = (ROOT / "docs" / "ray.md").read_text("utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", page, re.DOTALL | re.MULTILINE)
    assert len(examples) == 2
    for example, shown in examples:
        done = subprocess.run(
            [sys.executable, "-c", example],
            cwd=ROOT,
            env=os.environ | QUIET | {"RAY_ADDRESS": "local"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        assert shown.strip() in ("", done.stdout.strip())


def test_every_column_has_a_type() -> None:
    pa = pytest.importorskip("pyarrow")
    from pycrispasr.ray.data import _types

    kinds = dict(_types())
    assert list(kinds) == ADDED
    segment = kinds["segments"].value_type
    assert [segment.field(i).name for i in range(segment.num_fields)] == list(typing.get_type_hints(Segment))
    token = segment.field("tokens").type.value_type
    assert {token.field(i).name: token.field(i).type for i in range(token.num_fields)} == {
        "id": pa.int64(), "text": pa.string(), "probability": pa.float64(), "start": pa.float64(), "end": pa.float64(),
    }  # fmt: skip
