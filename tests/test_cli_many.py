"""`pycrispasr transcribe` with many recordings: folders, lists of them and of results, and going on with the work."""

from __future__ import annotations

import csv
import http.server
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pycrispasr import Model, audio
from pycrispasr.errors import AudioError, AudioNotFoundError, OutputError, UsageError
from pycrispasr.results import manifest
from pycrispasr.results.segment import Segment
from pycrispasr.results.transcript import Timings, Transcript

from .command import begin, run, unboxed
from .sounds import NAMES, SAMPLES, Composition

TEXTS = {path.stem: path.read_text(encoding="utf-8").strip() for path in SAMPLES.glob("*.txt")}
TINY = ("transcribe", "-m", "tiny")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with recordings in it, and in a folder within, and with other things."""
    folder = tmp_path / "in"
    for name in ("hello.wav", "b/digits.wav", "b/date.mp3", ".hidden/spelling.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAMPLES / Path(name).name, folder / name)
    (folder / "b" / "notes.txt").write_text("no sound")
    (folder / "b" / ".hidden.wav").write_text("no sound")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_s_recordings_become_files_in_every_format(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(*TINY, "--recursive", tree, "-f", "srt", "-f", "json", "-f", "txt", "-o", out)
    assert (done.returncode, done.stdout) == (0, "")
    stems = ["b/date", "b/digits", "hello"]
    assert names(out) == sorted(f"{stem}.{kind}" for stem in stems for kind in ("json", "srt", "txt"))
    for stem in stems:
        assert (out / f"{stem}.txt").read_text("utf-8") == TEXTS[Path(stem).name] + "\n"
        content = json.loads((out / f"{stem}.json").read_text("utf-8"))
        assert content["text"] == TEXTS[Path(stem).name]
        assert content["audio"].startswith(str(tree / stem))
    *lines, summary = done.stderr.splitlines()
    assert [line.split(": ")[0].split(", ")[0] for line in lines] == [
        str(out / f"{stem}.srt") for stem in ("hello", "b/date", "b/digits")
    ]
    assert summary.startswith("3 recordings done; 7.2 s of audio in ")
    assert "times as fast as it was spoken" in summary


def test_a_folder_without_recursive_or_without_recordings_is_refused_before_any_work(tree: Path) -> None:
    done = run(*TINY, tree)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--recursive" in done.stderr
    for path in tree.rglob("*.[wm]*"):
        path.unlink()
    done = run(*TINY, "--recursive", tree)
    assert done.returncode == 1
    assert "no audio file" in done.stderr


def test_expanding_keeps_the_order_of_paths_and_of_names(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["-", str(tree), "http://host/a.mp3", "missing.wav"]
    found = [str(tree / name) for name in ("hello.wav", "b/date.mp3", "b/digits.wav")]
    assert list(manifest.expand(paths, recursive=True)) == ["-", *found, "http://host/a.mp3", "missing.wav"]
    with pytest.raises(UsageError, match="--recursive"):
        list(manifest.expand(paths))
    (tree / "empty").mkdir()
    with pytest.raises(AudioNotFoundError, match="no audio file"):
        list(manifest.expand([str(tree / "empty")], recursive=True))

    def refuse(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(AudioError, match="cannot be read: Permission denied"):
        list(manifest.expand([str(tree)], recursive=True))


def test_nothing_is_overwritten_unless_that_is_asked_for(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "digits.txt").write_text("mine")
    command = (*TINY, tree / "hello.wav", tree / "b" / "digits.wav", "-o", out)
    done = run(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert "digits.txt' is already there: --overwrite replaces it, --resume keeps it" in done.stderr
    assert names(out) == ["digits.txt"]  # nothing was begun
    assert run(*command, "--resume").returncode == 0
    assert (out / "hello.txt").read_text() == "hello\n"
    assert (out / "digits.txt").read_text() == "mine"
    done = run(*command, "--resume")
    assert (done.returncode, done.stderr) == (0, "nothing to do: every recording is done\n")
    assert run(*command, "--resume", "-f", "txt", "-f", "tsv").returncode == 0
    assert (out / "digits.txt").read_text() == "mine"
    assert names(out) == ["digits.tsv", "digits.txt", "hello.tsv", "hello.txt"]
    assert run(*command, "--overwrite").returncode == 0
    assert (out / "digits.txt").read_text() == TEXTS["digits"] + "\n"


def test_stdout_has_the_text_beside_the_files(tree: Path, tmp_path: Path) -> None:
    done = run(*TINY, tree / "hello.wav", tree / "b" / "date.mp3", "-o", tmp_path / "out", "-f", "json", "--stdout")
    assert (done.returncode, done.stdout) == (0, f"hello\n{TEXTS['date']}\n")
    assert names(tmp_path / "out") == ["date.json", "hello.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-f", "srt", "-f", "vtt"], "-o DIR"),
        (["--resume"], "-o DIR or --results FILE"),
        (["--resume", "--overwrite", "-o", "out"], "--overwrite"),
        (["--channel", "-1"], "--channel"),
        (["--silence", "0"], "silence cannot be 0.0"),
        (["--vad", "maybe"], "--vad"),
        (["--max-line-chars", "1"], "--max-line-chars"),
        (["--max-cue-seconds", "inf"], "--max-cue-seconds"),
        (["--manifest", "nowhere.csv"], "'nowhere.csv' cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_are_told_before_any_work(options: list[str], words: str, tmp_path: Path) -> None:
    done = run("transcribe", "-m", "missing.gguf", *options, SAMPLES / "hello.wav", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in unboxed(done.stderr)
    assert names(tmp_path) == []


def test_options_of_reading_and_of_subtitles_are_obeyed(tmp_path: Path) -> None:
    hello, digits = (audio.load(SAMPLES / f"{name}.wav") for name in ("hello", "digits"))
    stereo = np.zeros((len(digits), 2), np.float32)
    stereo[: len(hello), 0], stereo[:, 1] = hello, digits
    soundfile.write(tmp_path / "both.wav", stereo, 16000)
    for channel, name in ((0, "hello"), (1, "digits")):
        assert run(*TINY, "--channel", channel, tmp_path / "both.wav").stdout == TEXTS[name] + "\n"
    done = run(*TINY, "--channel", 2, tmp_path / "both.wav")
    assert done.returncode == 1
    assert "there is no channel 2" in done.stderr

    done = run(*TINY, "-f", "srt", "--max-line-chars", 20, "--max-cue-seconds", 2, SAMPLES / "long.wav")
    lines = [line for line in done.stdout.splitlines() if line and not line.isdigit() and "-->" not in line]
    assert max(map(len, lines)) <= 20
    assert " ".join(lines) == TEXTS["long"]

    done = run(*TINY, "-f", "json", "--word-timestamps", SAMPLES / "digits.wav")
    words = json.loads(done.stdout)["segments"][0]["words"]
    assert [word["text"] for word in words] == TEXTS["digits"].split()
    assert all(before["end"] <= after["start"] for before, after in pairwise(words))


def test_silence_is_left_out_as_vad_says(tmp_path: Path) -> None:
    gap = np.zeros(20 * 16000, np.float32)
    clip = audio.load(SAMPLES / "hello.wav")
    soundfile.write(tmp_path / "gaps.wav", np.concatenate([gap, clip, gap, clip, gap]), 16000)

    def spans(*options: object) -> list[tuple[float, float]]:
        done = run(*TINY, "-f", "json", *options, tmp_path / "gaps.wav")
        assert done.returncode == 0
        return [(round(s["start"]), round(s["end"])) for s in json.loads(done.stdout)["segments"]]

    assert spans() == spans("--vad", "on") == [(20, 21), (41, 42)]
    assert spans("--silence", 25) == [(20, 46)]  # cut in the longest pause
    whole = spans("--vad", "off")
    assert (whole[0][0], whole[-1][1]) == (0, 62)
    assert all(before[1] == after[0] for before, after in pairwise(whole))


def test_lists_go_in_with_any_columns_and_results_come_out(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "id,path,text\n7,in/hello.wav,Hello!\n8,in/missing.wav,\n9,in/b/digits.wav,\n", encoding="utf-8-sig"
    )
    done = run(*TINY, SAMPLES / "date.mp3", "--manifest", tmp_path / "list.csv", "--results", tmp_path / "out.csv")
    assert done.returncode == 1
    assert "missing.wav" in done.stderr
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("audio", "id", "path", "input_text", "text", "status", "complete", "duration", "error"),
    ]
    assert [row["audio"] for row in rows] == [
        str(SAMPLES / "date.mp3"), "in/hello.wav", "in/missing.wav", "in/b/digits.wav",
    ]  # fmt: skip
    assert [row["id"] for row in rows] == ["", "7", "8", "9"]
    assert [row["input_text"] for row in rows] == ["", "Hello!", "", ""]
    assert [row["text"] for row in rows] == [TEXTS["date"], "hello", "", TEXTS["digits"]]
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok"]
    assert [row["complete"] for row in rows] == ["True", "True", "False", "True"]
    assert "missing.wav" in rows[2]["error"]

    (tmp_path / "list.jsonl").write_text(
        '{"audio_filepath": "in/hello.wav", "duration": 9, "speaker": {"name": "Zoë"}}\n\n{"file": "in/b/date.mp3"}\n',
        encoding="utf-8",
    )
    done = run(
        *TINY, "--manifest", tmp_path / "list.jsonl", "--results", tmp_path / "out.jsonl", "-o", tmp_path / "out"
    )
    assert (done.returncode, done.stdout) == (0, "")
    hello, date = map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())
    assert (hello["audio"], hello["text"], hello["speaker"]) == ("in/hello.wav", "hello", {"name": "Zoë"})
    assert (hello["input_duration"], round(hello["duration"], 1)) == (9, 0.9)
    assert date["segments"][0]["text"] == TEXTS["date"]
    assert names(tmp_path / "out") == ["date.txt", "hello.txt"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.csv", b"name,id\nhello.wav,1\n", "entry 1 of .* names no recording: it needs a column 'audio'"),
        ("list.csv", b"audio\nhello.wav\n\n,\n", "entry 2"),
        ("list.csv", b"audio\n\xff\xfe\n", "cannot be read"),
        ("list.jsonl", b'{"audio": "hello.wav"}\n\nhello.wav\n', "line 3 of .* is no JSON"),
        ("list.jsonl", b'{"audio": "hello.wav"}\n{"audio": 5}\n', "entry 2"),
        ("list.jsonl", b"[1]\n", "entry 1"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        manifest.read(tmp_path / name)


def test_paths_in_lists_start_where_the_list_is(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("audio\na b.wav\n/c.wav\nhttp://host/d.wav\n-\n")
    assert [entry.audio for entry in manifest.read(tmp_path / "list.csv")] == [
        str(tmp_path / "a b.wav"), "/c.wav", "http://host/d.wav", "-",
    ]  # fmt: skip
    assert manifest.read(tmp_path / "list.csv")[0].name == "a b.wav"


def transcript(text: str, status: str = "ok") -> Transcript:
    segment = Segment(0, 1, text, (), status, error="broken" if status == "failed" else None)  # type: ignore[arg-type]
    return Transcript(text, (segment,), 1, None, status == "ok", Timings())


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_a_list_of_results_goes_on_wherever_it_was_cut_off(name: str, tmp_path: Path) -> None:
    """In every byte; an entry that failed is tried again; texts with line breaks and of any length are kept."""
    path = tmp_path / name
    texts = ["one", 'two "quoted"\nlines\r\n', "three, four", "五"]
    entries = [manifest.Entry(f"{i}.wav", f"{i}.wav", {"note": "a\nb"}) for i in range(len(texts))]

    def write() -> None:
        with manifest.Results(path, entries, resume=True) as results:
            for entry, text in zip(entries, texts, strict=True):
                if entry.name not in results.done:
                    results.add(entry, transcript(text))

    write()
    whole = path.read_bytes()
    ends = []
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with manifest.Results(path, entries, resume=True) as results:
            ends.append(len(results.done))
        write()
        assert path.read_bytes() == whole, cut
    assert ends == sorted(ends)
    assert set(ends) == set(range(len(texts) + 1))

    path.unlink()
    with manifest.Results(path, entries) as results:
        for entry, text in zip(entries, texts, strict=True):
            results.add(entry, transcript(text, "failed" if text == "one" else "ok"))
    with manifest.Results(path, entries, resume=True) as results:
        assert results.done == {"1.wav", "2.wav", "3.wav"}
        results.add(entries[0], transcript("long " * 50_000))
    with manifest.Results(path, entries, resume=True) as results:
        assert len(results.done) == 4
    with pytest.raises(OutputError, match="already there"):
        manifest.Results(path, entries)
    before = path.read_bytes()
    with manifest.Results(path, entries, overwrite=True) as results:
        assert path.read_bytes() == before  # until there is something better
        results.add(entries[0], transcript("new"))
    with manifest.Results(path, entries, resume=True) as results:
        assert results.done == {"0.wav"}


def test_a_list_of_results_and_files_go_on_together(tree: Path, tmp_path: Path) -> None:
    out, results = tmp_path / "out", tmp_path / "results.csv"
    command = (*TINY, "--recursive", tree, "-o", out, "--results", results)
    assert run(*command).returncode == 0
    whole = results.read_bytes()
    results.write_bytes(whole[:-3])  # the work ended between the two
    (out / "hello.txt").unlink()
    done = run(*command, "--resume")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].startswith("2 recordings done")
    assert results.read_bytes() == whole
    assert names(out) == ["b/date.txt", "b/digits.txt", "hello.txt"]


def test_a_model_that_is_missing_leaves_no_list_behind(tmp_path: Path) -> None:
    command = ("--results", tmp_path / "results.csv", SAMPLES / "hello.wav")
    assert run("transcribe", "-m", "missing.gguf", *command).returncode == 1
    assert run(*TINY, *command).returncode == 0


@pytest.fixture
def address() -> Iterator[str]:
    """A web server for the bundled recordings."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SAMPLES))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_web_addresses_are_recordings(address: str, tmp_path: Path) -> None:
    done = run(*TINY, f"{address}/hello.wav?a=b", f"{address}/missing.wav", "-o", tmp_path / "out", "--stdout")
    assert (done.returncode, done.stdout) == (1, "hello\n")
    assert "404" in done.stderr
    assert names(tmp_path / "out") == ["hello.txt"]
    assert done.stderr.splitlines()[-1].startswith("1 of 2 recordings done, 1 failed; 0.9 s of audio")


def test_odd_audio_is_told_of_on_stderr(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    done = run(*TINY, tmp_path / "silent.wav", SAMPLES / "hello.wav")
    assert (done.returncode, done.stdout) == (0, "\nhello\n")
    (warning,) = done.stderr.splitlines()
    assert warning.startswith(f"pycrispasr: {tmp_path / 'silent.wav'}: it is silent")


def test_a_file_that_vanishes_before_its_turn_does_not_stop_the_others(tree: Path, tmp_path: Path) -> None:
    command = (*TINY, "-", "--recursive", tree, "-o", tmp_path / "out")
    with begin(*command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        time.sleep(2)  # the folder has been listed: nothing tells when
        (tree / "b" / "digits.wav").unlink()
        process.stdin.write((SAMPLES / "spelling.wav").read_bytes())
        process.stdin.close()
        told = process.stderr.read().decode()
        assert process.wait() == 1
    assert names(tmp_path / "out") == ["b/date.txt", "hello.txt", "stdin.txt"]
    assert (tmp_path / "out" / "stdin.txt").read_text() == TEXTS["spelling"] + "\n"
    assert "digits.wav': there is no such audio file" in told


def test_a_killed_worker_leaves_whole_files_and_the_work_goes_on(tiny: Model, tmp_path: Path) -> None:
    recordings = tmp_path / "in"
    recordings.mkdir()
    for number in range(8):
        Composition(30, seed=number).write(recordings / f"{number:02}.flac")
    out, results = tmp_path / "out", tmp_path / "results.jsonl"
    command = (*TINY, "--recursive", recordings, "-f", "json", "-f", "srt", "-o", out, "--results", results)
    with begin(*command, stderr=subprocess.DEVNULL) as process:
        while not (out / "01.srt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    there = names(out)
    assert {"00.json", "00.srt", "01.json", "01.srt"} <= set(there)
    assert all(name[2:] in (".json", ".srt") for name in there)
    assert all(json.loads((out / name).read_text())["complete"] for name in there if name.endswith("json"))
    before = {name: (out / name).stat().st_mtime_ns for name in there}
    done = run(*command, "--resume")
    assert done.returncode == 0
    assert {name: (out / name).stat().st_mtime_ns for name in there} == before
    assert names(out) == [f"{number:02}.{kind}" for number in range(8) for kind in ("json", "srt")]
    rows = list(map(json.loads, results.read_text().splitlines()))
    assert sorted(row["audio"] for row in rows) == [str(path) for path in sorted(recordings.iterdir())]
    for row in rows:
        assert row["text"] == tiny.transcribe(row["audio"]).text


def test_the_files_of_many_recordings_can_be_told_apart(tmp_path: Path) -> None:
    """Names from the bundled recordings, as the documentation shows."""
    done = run(*TINY, "--recursive", f"{SAMPLES}/", "-f", "srt", "-f", "json", "-o", tmp_path)
    assert done.returncode == 0
    stems = {path.stem for path in SAMPLES.iterdir() if path.suffix in (".wav", ".mp3")}
    assert {*NAMES} < stems
    assert names(tmp_path) == sorted(f"{stem}.{kind}" for stem in stems for kind in ("srt", "json"))
