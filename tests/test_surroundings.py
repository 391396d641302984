"""Programs without standard streams, without a home, and with names as long as they can be: nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pycrispasr.models import hub

from . import hub_server
from .command import run
from .hub_server import environment
from .sounds import SAMPLES

TINY = ("transcribe", "-m", "tiny")
TEXTS = {path.stem: path.read_text(encoding="utf-8").strip() for path in SAMPLES.glob("*.txt")}
HELLO, DIGITS = SAMPLES / "hello.wav", SAMPLES / "digits.wav"

unix = pytest.mark.skipif(os.name == "nt", reason="descriptors and users of Unix")

# ---- Standard streams ------------------------------------------------------------------------------------------------

STREAMS = {
    "none at all": "sys.stdin = sys.stdout = sys.stderr = None",  # pythonw, programs with windows
    "closed": "[s.close() for s in (sys.stdin, sys.stdout, sys.stderr)]",
    "no descriptors": "[os.close(n) for n in range(3)]; sys.stdin = sys.stdout = sys.stderr = None",
}
LIBRARY = """
import os, sys
out = open({out!r}, "w")
{streams}
import pycrispasr
from pycrispasr.models import hub
print(pycrispasr.transcribe({audio!r}, model="tiny").text, file=out)
print(hub.resolve("moss-transcribe").stat().st_size, file=out)
out.flush()
os._exit(0)
"""


@unix
@pytest.mark.parametrize("streams", STREAMS)
def test_a_program_without_standard_streams_transcribes_and_downloads(
    streams: str, server: hub_server.Hub, tmp_path: Path
) -> None:
    code = LIBRARY.format(out=str(tmp_path / "out"), streams=STREAMS[streams], audio=str(HELLO))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(server, tmp_path / "home"), capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out").read_text() == f"hello\n{len(hub_server.CONTENT)}\n"


@unix
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_the_command_works_with_standard_streams_closed(
    closed: tuple[int, ...], server: hub_server.Hub, tmp_path: Path
) -> None:
    """What is written goes where it belongs: a file must not take the number of a stream that is closed."""
    redirected = " ".join(f"{number}>&-" if number else "0<&-" for number in closed)
    env = environment(server, tmp_path / "home")
    script = (
        f'"$0" -m pycrispasr transcribe -m tiny "$1" -v -f json -o "$2" --results "$2/r.csv" --stdout {redirected} &&'
        f' "$0" -m pycrispasr models download moss-transcribe {redirected}'
    )
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, str(HELLO), str(tmp_path / "out")], env=env, capture_output=True,
        encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "hello.json").read_text().startswith("{")
    assert (tmp_path / "out" / "hello.json").read_text().endswith("}\n")
    assert len((tmp_path / "out" / "r.csv").read_text().splitlines()) == 2
    assert done.stdout.startswith("hello\n" if 1 not in closed else "")
    with_audio = subprocess.run(
        ["sh", "-c", f'"$0" -m pycrispasr transcribe -m tiny - <"$1" {redirected}', sys.executable, str(HELLO)],
        capture_output=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    if 0 in closed:
        assert with_audio.returncode == 1
        assert with_audio.stderr == ("pycrispasr: there is no standard input: name a file\n" if 2 not in closed else "")
    else:
        assert with_audio.returncode == 0


# ---- No home ---------------------------------------------------------------------------------------------------------

NO_HOME = """
import pwd, sys
def nobody(number):
    raise KeyError(number)
pwd.getpwuid = nobody
from pycrispasr.cli import main
main()
"""


@unix
@pytest.mark.parametrize(
    "arguments",
    [("models",), ("models", "download", "moss-transcribe"), (*TINY, HELLO), ("info", "moss-transcribe")],
)
def test_a_user_without_a_home_gets_a_sentence_or_a_result(arguments: tuple[object, ...]) -> None:
    """As in containers that run as any number."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HOME", "HF_", "XDG_"))}
    command = [sys.executable, "-c", NO_HOME, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=60, check=False)
    if "moss-transcribe" in arguments:
        assert done.returncode == 1
        assert done.stderr.startswith("pycrispasr: there is no home folder to keep models in")
        assert "set HF_HOME" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "hello\n" if arguments[0] == "transcribe" else "tiny" in done.stdout


def test_a_cache_without_a_home_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~nobody-of-this-name/hub")
    with pytest.raises(hub.ModelNotFoundError, match=r"there is no home folder .*: set HF_HOME to a folder"):
        hub.resolve("moss-transcribe")
    assert [model.name for model in hub.models() if model.path] == ["tiny"]


# ---- Long names ------------------------------------------------------------------------------------------------------


@pytest.fixture
def longest(tmp_path: Path) -> int:
    return os.pathconf(tmp_path, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255


@unix
@pytest.mark.parametrize("kind", ["txt", "srt", "json", "audacity"])
@pytest.mark.parametrize("letter", ["a", "会"])
def test_a_result_s_name_may_be_as_long_as_names_can_be(kind: str, letter: str, longest: int, tmp_path: Path) -> None:
    ending = {"audacity": ".labels.txt"}.get(kind, f".{kind}")
    stem = letter * ((longest - len(ending)) // len(letter.encode()))
    recording = tmp_path / f"{stem}.wav"
    if len(os.fsencode(recording.name)) > longest:  # its own ending is the longer one
        recording = tmp_path / f"{stem}.au"
    try:
        recording.write_bytes(HELLO.read_bytes())
    except OSError:
        pytest.skip("this recording's own name is too long")
    done = run(*TINY, "-f", kind, "-o", tmp_path / "out", recording)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [stem + ending]
    assert "hello" in (tmp_path / "out" / (stem + ending)).read_text()


@unix
def test_a_name_that_is_too_long_is_refused_before_any_work(longest: int, tmp_path: Path) -> None:
    recording = tmp_path / ("a" * (longest - 4) + ".wav")
    recording.write_bytes(HELLO.read_bytes())
    for folder in (tmp_path / "out", tmp_path / "not" / "there"):
        done = run(*TINY, "-f", "txt", "-f", "json", "-o", folder, HELLO, recording)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"its name has {longest + 1} bytes, more than the file system allows" in done.stderr
        assert "rename the recording" in done.stderr
        assert not folder.exists()


@unix
def test_a_stopped_transcription_with_a_long_name_is_written_too(longest: int, tmp_path: Path) -> None:
    from pycrispasr import Segment, Timings, Transcript
    from pycrispasr.results import files

    transcript = Transcript("hello", (Segment(0, 1, "hello", (), "cancelled"),), 1, None, False, Timings())
    written = set()
    for letter in "ab":
        stem = tmp_path / ("会" * ((longest - 5) // 3) + letter)
        (path,) = files.write(transcript, stem, ["txt"], partial=True)
        assert path.read_text() == "hello\n"
        assert path.name.endswith(".partial.txt")
        written.add(path)
        files.write(transcript, stem, ["txt"])
        assert not path.exists()  # the complete one has taken its place
    assert len(written) == 2


# ---- Folders, and going on -------------------------------------------------------------------------------------------


NO_SOUND = """aqt apv ans art asc ass avif avs avs2 avs3 cdata cdg cdxl cgi cif dat diz evc flm gif h261 h264 h265 h266
264 265 266 heic heif hevc h26l avc ice idf idx ifv ipu j2k jss jxl mcc mjpeg mjpg mks mpl2 mpo mvi mods nfo obu pdv pjs
qcif rcv rgb rt sami scc sdr2 ser sga smi srt stl sub sup txt v v210 vc1 vt vtt vvc webvtt xl y4m yop yuv yuv10
bitpacked bmv ty+"""
TOO_COMMON = "str adf adp ads afc vb son way wa 302 daud fap fwse rco tco laf nsp sdns sdx svs xmd al ul sb sw ub uw"
NO_HEADER = "c2 722 g728 sln aptxhd sbg raw musx"  # FFmpeg knows these by their names alone


def test_what_the_libraries_can_read_is_taken_from_folders() -> None:
    """By the endings that they name themselves, without those of pictures, texts and bare bytes."""
    import av
    import soundfile

    from pycrispasr.results.manifest import ENDINGS

    named = {name.lower() for name in soundfile.available_formats()}
    for name in av.formats_available:
        try:
            named |= set(av.ContainerFormat(name, "r").extensions)
        except ValueError:
            continue
    assert named - ENDINGS - set(f"{NO_SOUND} {TOO_COMMON} {NO_HEADER}".split()) == set()
    for ending in ("wmv", "mpe", "mts", "m2ts", "spx", "vob", "3g2", "ogv", "mp2", "amr", "gsm", "voc", "snd", "weba"):
        assert ending in ENDINGS


def test_files_that_are_passed_over_are_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.WMV").write_bytes(HELLO.read_bytes())  # what it is shows in its bytes
    for name in ("notes.txt", "more.TXT", "cover.jpg", "README", ".hidden.txt"):
        (folder / name).write_text("no sound")
    done = run(*TINY, "--recursive", folder)
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert done.stderr == "4 files passed over: 2 .txt, 1 without an ending, 1 .jpg\n"
    done = run(*TINY, "--recursive", folder, "-o", tmp_path / "out")
    assert done.stderr.splitlines()[-1].endswith("; 4 files passed over: 2 .txt, 1 without an ending, 1 .jpg")


def test_a_list_that_names_a_recording_twice_has_two_rows_after_going_on(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"audio,note\n{HELLO},first\n{HELLO},second\n{HELLO},third\n")
    results = tmp_path / "results.csv"
    command = (*TINY, "--manifest", table, "--results", results)
    assert run(*command).returncode == 0
    whole = results.read_text().splitlines(keepends=True)
    assert [line.split(",")[1] for line in whole[1:]] == ["first", "second", "third"]
    for left in range(1, 5):
        results.write_text("".join(whole[:left]))
        done = run(*command, "--resume")
        assert done.returncode == 0
        assert results.read_text().splitlines(keepends=True) == whole
        assert (done.stderr == "nothing to do: every recording is done\n") == (left == 4)


@unix
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_names_that_are_no_text_are_done_once(ending: str, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)
    for name in (b"caf\xe9.wav", b"\xff\xfe.wav", "ä\\udce9.wav".encode()):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(HELLO.read_bytes())
    results = tmp_path / f"results.{ending}"
    command = (*TINY, "--recursive", tmp_path / "in", "--results", results)
    assert run(*command).returncode == 0
    before = results.read_bytes()
    assert len(before.splitlines()) == 3 + (ending == "csv")
    done = run(*command, "--resume")
    assert (done.returncode, done.stderr) == (0, "nothing to do: every recording is done\n")
    assert results.read_bytes() == before


@pytest.mark.parametrize("marks", [True, False])
def test_a_result_is_not_taken_for_that_of_another_recording(
    marks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a place for a mark on files."""
    from pycrispasr.results import files

    if not marks:
        for name in ("setxattr", "getxattr"):
            monkeypatch.delattr(os, name, raising=False)
    elif not hasattr(os, "setxattr"):
        pytest.skip("this system has no attributes of files")
    for name, content in (("talk.wav", HELLO), ("talk.mp3", SAMPLES / "date.mp3")):
        (tmp_path / name).write_bytes(content.read_bytes())
    out = tmp_path / "out"

    def names(*recordings: str, kinds: tuple[str, ...] = ("txt",)) -> list[str]:
        paths = [str(tmp_path / one) for one in recordings]
        return [path.name for path in files.stems(paths, out, kinds=kinds)]  # type: ignore[arg-type]

    assert names("talk.wav") == ["talk"]
    out.mkdir()
    (out / "talk.txt").write_text("hello\n")
    files._mark(out / "talk.txt", str(tmp_path / "talk.wav"))
    if marks:
        assert names("talk.wav") == ["talk"]
    assert names("talk.mp3") == ["talk.mp3"]
    assert names("talk.mp3", kinds=("srt",)) == ["talk"]  # of that there is none yet
    (tmp_path / "talk.wav").unlink()
    if not marks:
        assert names("talk.mp3") == ["talk"]  # nothing tells that it is another's


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="this system has no attributes of files")
def test_going_on_does_what_another_recording_s_file_only_seems_to_have_done(tmp_path: Path) -> None:
    for name, content in (("a/talk.wav", HELLO), ("b/talk.mp3", SAMPLES / "date.mp3"), ("c/talk.wav", DIGITS)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content.read_bytes())
    out = tmp_path / "out"
    for name in ("a/talk.wav", "b/talk.mp3", "c/talk.wav", "a/talk.wav"):
        assert run(*TINY, tmp_path / name, "-o", out, "--resume").returncode == 0
    assert {path.name: path.read_text().strip() for path in out.iterdir()} == {
        "talk.txt": TEXTS["hello"], "talk.mp3.txt": TEXTS["date"], "talk.wav.txt": TEXTS["digits"],
    }  # fmt: skip
    (tmp_path / "a").rename(tmp_path / "moved")
    done = run(*TINY, tmp_path / "moved" / "talk.wav", "-o", out, "--resume")
    assert done.stderr == "nothing to do: every recording is done\n"
