"""Results get files of their own, whole or not at all, and nothing that is there is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycrispasr import OutputError, PycrispasrError, Segment, Timings, Transcript, UsageError
from pycrispasr.atomic import replacing
from pycrispasr.results import files, formats
from pycrispasr.results.formats import FORMATS

SPOKEN = Transcript("hello 你好", (Segment(0, 2, "hello 你好", (), "ok"),), 2.0, None, True, Timings())


def stems(*recordings: str, folder: str | None = "out", roots: tuple[str, ...] = ()) -> list[str]:
    return [path.as_posix() for path in files.stems(recordings, folder, roots=iter(roots))]


def everything(folder: Path) -> dict[str, str]:
    """What is in a folder, also what is hidden."""
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()
    }


def test_files_have_the_recordings_name_without_its_ending() -> None:
    assert stems("talk.mp3", "/some/where/v1.2.wav", "noending", ".hidden") == [
        "out/talk", "out/v1.2", "out/noending", "out/.hidden"
    ]  # fmt: skip
    assert files.files(Path("out/v1.2"), FORMATS) == {
        "txt": Path("out/v1.2.txt"),
        "srt": Path("out/v1.2.srt"),
        "vtt": Path("out/v1.2.vtt"),
        "tsv": Path("out/v1.2.tsv"),
        "json": Path("out/v1.2.json"),
        "audacity": Path("out/v1.2.labels.txt"),
    }
    assert files.files(Path("talk"), ["srt"], partial=True) == {"srt": Path("talk.partial.srt")}


def test_standard_input_and_urls_have_names() -> None:
    assert stems("-", "https://x.org/a/my%20talk.mp3?token=1", "http://x.org", "http://x.org/..%2f..%2fetc%3f") == [
        "out/stdin", "out/my talk", "out/x", "out/etc_"
    ]  # fmt: skip
    dots = stems("x://./?a", "http://../?b", "http://x.org/%2e%2e", "http://x.org/a/...")  # which would be folders
    assert dots == ["out/url", "out/url-2", "out/url-3", "out/url-4"]
    assert stems("-", "https://x.org/a.mp3", "sub/b.mp3", folder=None) == ["stdin", "a", "sub/b"]


def test_recordings_that_were_found_in_a_folder_keep_their_place_in_it() -> None:
    found = ("in/a.mp3", "in/day/b.mp3", "in/day/deep/c.mp3", "other/d.mp3")
    assert stems(*found, roots=("in/",)) == ["out/a", "out/day/b", "out/day/deep/c", "out/d"]
    assert stems(*found, roots=("in", "in/day")) == ["out/a", "out/b", "out/deep/c", "out/d"]
    assert stems(*found, folder=None, roots=("in",)) == ["in/a", "in/day/b", "in/day/deep/c", "other/d"]


def test_recordings_that_would_share_a_file_have_longer_names() -> None:
    assert stems("a/x.mp3", "a/x.wav", "a/y.wav") == ["out/x.mp3", "out/x.wav", "out/y"]
    assert stems("a/x.mp3", "a/X.wav") == ["out/x.mp3", "out/X.wav"]
    assert stems("a/x.mp3", "b/x.mp3", "b/x.mp3") == ["out/x.mp3", "out/x.mp3-2", "out/x.mp3-3"]
    assert stems("a/x.mp3", "b/x.mp3", folder=None) == ["a/x", "b/x"]
    assert stems("x.mp3", "x.partial.mp3", "x.labels.mp3") == ["out/x.mp3", "out/x.partial.mp3", "out/x.labels.mp3"]


def test_a_recording_is_not_its_own_result() -> None:
    assert stems("talk.json", "odd.TXT", "x", "x.txt", folder=None) == ["talk.json", "odd.TXT", "x-2", "x.txt"]


NAMES = st.lists(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "a/", "b/", "a/b/"]),
        st.sampled_from(["x", "X", "x.mp3", "x.mp3-2", "x.partial", "x.labels", "x.labels.txt"]),
        st.sampled_from(["", ".mp3", ".wav", ".txt", ".mp3-2", ".partial", ".labels"]),
    ),
    max_size=12,
)


@settings(max_examples=500, deadline=None)
@given(names=NAMES, folder=st.sampled_from(["out", None]), roots=st.sampled_from([(), ("a",), ("a", "b")]))
def test_no_two_files_are_the_same_and_no_recording_is_among_them(
    names: list[str], folder: str | None, roots: tuple[str, ...]
) -> None:
    names = list(dict.fromkeys(names))
    found = [
        path.as_posix().casefold()
        for stem in files.stems(names, folder, roots=roots)
        for partial in (False, True)
        for path in files.files(stem, FORMATS, partial=partial).values()
    ]
    assert len(found) == len(set(found)) == len(names) * 2 * len(FORMATS)
    assert not {os.path.normpath(name) for name in names} & set(found)


def test_every_format_is_written_as_utf8_with_the_folder(tmp_path: Path) -> None:
    stem = tmp_path / "new" / "folder" / "talk"
    written = files.write(SPOKEN, stem, FORMATS, audio="talk.mp3")
    assert written == list(files.files(stem, FORMATS).values())
    for kind, path in zip(FORMATS, written, strict=True):
        assert path.read_bytes() == formats.render(SPOKEN, kind, audio="talk.mp3").encode("utf-8")
    assert json.loads((stem.parent / "talk.json").read_text("utf-8"))["audio"] == "talk.mp3"
    assert len(everything(tmp_path)) == len(FORMATS)


def test_files_have_the_rights_that_new_files_get(tmp_path: Path) -> None:
    (path,) = files.write(SPOKEN, tmp_path / "talk", ["txt"])
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_limits_of_subtitles_are_passed_on(tmp_path: Path) -> None:
    (path,) = files.write(SPOKEN, tmp_path / "a", ["srt"], max_line_chars=5, max_lines=1, max_cue_seconds=0.5)
    assert path.read_text("utf-8") == SPOKEN.to_srt(max_line_chars=5, max_lines=1, max_cue_seconds=0.5)


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    (path,) = files.write(SPOKEN, tmp_path / "a", ["json"], audio="\udcff.wav")
    assert json.loads(path.read_text("utf-8"))["audio"] == "\udcff.wav"


def test_what_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    there = tmp_path / "talk.srt"
    there.write_text("mine")
    for call in (
        lambda: files.pending(tmp_path / "talk", ["txt", "srt"]),
        lambda: files.write(SPOKEN, tmp_path / "talk", ["txt", "srt"]),
    ):
        with pytest.raises(OutputError, match=r"talk\.srt' is already there: --overwrite"):
            call()
    assert everything(tmp_path) == {"talk.srt": "mine"}
    assert files.pending(tmp_path / "talk", ["txt", "srt"], overwrite=True) == ["txt", "srt"]
    files.write(SPOKEN, tmp_path / "talk", ["srt"], overwrite=True)
    assert everything(tmp_path) == {"talk.srt": SPOKEN.to_srt()}


def test_resuming_leaves_only_what_is_missing(tmp_path: Path) -> None:
    stem = tmp_path / "talk"
    assert files.pending(stem, ["txt", "srt"], resume=True) == ["txt", "srt"]
    files.write(SPOKEN, stem, ["txt"])
    files.write(SPOKEN, stem, ["srt"], partial=True)
    assert files.pending(stem, ["txt", "srt"], resume=True) == ["srt"]
    files.write(SPOKEN, stem, ["srt"])
    assert files.pending(stem, ["txt", "srt"], resume=True) == []
    with pytest.raises(UsageError, match="overwrite and resume cannot both"):
        files.pending(stem, ["txt"], overwrite=True, resume=True)


def test_partial_results_have_names_of_their_own_until_complete_ones_come(tmp_path: Path) -> None:
    stem = tmp_path / "talk"
    for _ in range(2):
        (path,) = files.write(SPOKEN, stem, ["txt"], partial=True)
    assert path == tmp_path / "talk.partial.txt"
    assert files.pending(stem, ["txt"]) == ["txt"]
    files.write(SPOKEN, stem, ["txt"])
    assert everything(tmp_path) == {"talk.txt": "hello 你好\n"}
    files.write(SPOKEN, stem, ["txt"], partial=True)
    assert set(everything(tmp_path)) == {"talk.txt", "talk.partial.txt"}


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no format 'doc'"):
        files.write(SPOKEN, tmp_path / "talk", ["txt", "doc"])  # type: ignore[list-item]
    assert everything(tmp_path) == {}


class _Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OutputError),
        (_Stop(), _Stop),
        (MemoryError(), MemoryError),
    ],
    ids=["full disk", "Ctrl-C", "no memory"],
)
@pytest.mark.parametrize("unnamed", [True, False])
def test_a_failure_leaves_what_was_there_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
    unnamed: bool,
) -> None:
    files.write(SPOKEN, tmp_path / "talk", ["srt", "txt"])
    before = everything(tmp_path)
    real = Path.write_text

    def fail(self: Path, data: str, **options: str) -> int:
        real(self, data[: len(data) // 2], **options)  # type: ignore[arg-type]
        raise failure

    if not unnamed:  # as on systems whose files must have a name
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(raised) as caught:
        files.write(SPOKEN, tmp_path / "talk", ["srt", "txt"], overwrite=True)
    if raised is OutputError:
        assert "talk.srt' cannot be written (No space left on device): name a writable folder" in str(caught.value)
    assert everything(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    ) if sys.platform == "linux" else None  # fmt: skip
    if done is None or done.returncode:
        pytest.skip("a file system can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_is_told_of_and_left_clean(small_disk: Path) -> None:
    files.write(SPOKEN, small_disk / "talk", ["txt"])
    long = Transcript("hello " * 20_000, SPOKEN.segments, 2.0, None, True, Timings())
    with pytest.raises(OutputError, match=r"talk\.txt' cannot be written \(No space left on device\)"):
        files.write(long, small_disk / "talk", ["txt"], overwrite=True)
    assert everything(small_disk) == {"talk.txt": "hello 你好\n"}
    files.write(SPOKEN, small_disk / "other", ["txt"])


@pytest.mark.parametrize("obstacle", ["file", "folder", "long"])
def test_what_cannot_be_written_is_told_in_one_sentence(tmp_path: Path, obstacle: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.txt").mkdir()
    stem = {"file": tmp_path / "file" / "talk", "folder": tmp_path / "folder", "long": tmp_path / ("x" * 300)}[obstacle]
    with pytest.raises(PycrispasrError, match="cannot be written") as caught:
        files.write(SPOKEN, stem, ["txt"], overwrite=True)
    assert isinstance(caught.value, OutputError)
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == {"file": ""}


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without names are Linux's")
def test_a_killed_process_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from pycrispasr.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as part: part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "talk.txt")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert everything(tmp_path) == {"talk.txt": "new"}
