"""What steers a terminal reaches none, whoever wrote it: a model, a file's metadata, a server."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import gguf
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pycrispasr import Model, ModelFormatError, cli
from pycrispasr.cli import app, common
from pycrispasr.results import formats
from pycrispasr.results.cues import cues
from pycrispasr.runtimes import crispasr
from pycrispasr.text import json_text, plain, printable

from . import gguf_edit, hub_server, whisper_file
from .sounds import make_tones

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
STEERING = "\x1b[2J\x9b31m\u202e"
BYTE_CHARACTERS = {0x1B: "\u011b", 0x9B: "\u013d"}  # as a vocabulary of bytes writes them


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b\r\n\t\x85\u2028\u202e\u2069\ud800")))
def test_texts_keep_all_but_controls(text: str) -> None:
    assert not CONTROLS.search(plain(text))
    assert plain(plain(text)) == plain(text)
    assert not CONTROLS.search(printable(text))
    assert "\n" not in printable(text)
    assert json.loads(json_text(text)) == json.loads(json_text([text], indent=1))[0] == text
    assert not CONTROLS.search(json_text(text))
    if not CONTROLS.search(text) and not re.search("[\ud800-\udfff]", text):
        assert plain(text) == text


@pytest.mark.parametrize(
    "name", ["録音\u3000\uff11.wav", "a\xa0b", "\u0645\u06cc\u200c\u062e", "👩\u200d💻", "\ufeffx"]
)
def test_names_are_shown_as_they_are(name: str) -> None:
    assert printable(name) == plain(name) == name


@pytest.fixture(scope="module")
def hostile_path(nano_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose every word begins with what clears a terminal, and whose metadata do."""
    fields = gguf.GGUFReader(nano_path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    kept = {part for merge in merges for part in (*merge.split(" "), merge.replace(" ", ""))}
    steering = BYTE_CHARACTERS[0x1B] + "[2J" + "\u00c2" + BYTE_CHARACTERS[0x9B]  # U+009B in UTF-8
    values = {
        "tokenizer.ggml.tokens": [
            token if len(token) == 1 or "<|" in token or token in kept else steering + token for token in tokens
        ],
        "general.name": f"{STEERING}\nname",
    }
    return gguf_edit.rewrite(nano_path, tmp_path_factory.mktemp("hostile") / "model.gguf", values=values)


@pytest.fixture(scope="module")
def sound_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "tones.wav"
    soundfile.write(path, make_tones(2, seed=1), 16000)
    return path


def run(*arguments: object) -> str:
    """All that a command prints."""
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_model_s_words_steer_no_terminal_and_no_file(hostile_path: Path, sound_path: Path, tmp_path: Path) -> None:
    with Model(hostile_path, threads=1) as model:
        assert "\x1b[2J\x9b" in model.transcribe(sound_path, max_new_tokens=20).text
    options = ["-m", hostile_path, sound_path, "--max-new-tokens", "20"]
    assert not CONTROLS.search(run("transcribe", *options))
    kinds = [argument for kind in formats.FORMATS for argument in ("-f", kind)]
    run("transcribe", *options, *kinds, "-o", tmp_path / "out", "--results", tmp_path / "out" / "list.csv")
    run("transcribe", *options, "--results", tmp_path / "out" / "list.jsonl")
    written = list((tmp_path / "out").iterdir())
    assert len(written) == len(formats.FORMATS) + 2
    for path in written:
        content = path.read_bytes().decode().replace("\r\n", "\n")  # CSV's line ends
        assert not CONTROLS.search(content)
        assert "[2J" in content


@pytest.mark.skipif(crispasr.find() is None, reason="libcrispasr: pip install crispasr==0.8.45")
@pytest.mark.parametrize("isolate", [True, False])
def test_a_foreign_model_s_words_steer_no_terminal_and_no_file(sound_path: Path, tmp_path: Path, isolate: bool) -> None:
    path = tmp_path / "hostile.bin"
    whisper_file.write_random(path, word=f"{STEERING}\n\n7\n00:00:00,000 --> 00:09:00,000\n<b>")
    with Model(path, threads=1, isolate=isolate) as model:
        transcript = model.transcribe(sound_path)
    assert STEERING in transcript.text
    for kind in formats.FORMATS:
        content = formats.render(transcript, kind)
        assert not CONTROLS.search(content)
        assert "[2J31m" in content or kind == "json"
        if kind in ("srt", "vtt"):
            assert content.count("-->") == len(cues(transcript))
    if isolate:
        assert not CONTROLS.search(run("transcribe", "-m", path, sound_path, "--threads", "1"))


def test_an_error_of_the_library_quotes_a_file_without_its_controls(nano_path: Path, tmp_path: Path) -> None:
    merges = gguf.GGUFReader(nano_path).fields["tokenizer.ggml.merges"].contents()
    values = {"tokenizer.ggml.merges": [f"{STEERING} r", *merges[1:]]}
    with pytest.raises(ModelFormatError, match=re.escape(printable(STEERING))) as caught:
        Model(gguf_edit.rewrite(nano_path, tmp_path / "model.gguf", values=values))
    assert not CONTROLS.search(str(caught.value))


def test_metadata_of_a_file_steer_no_terminal(hostile_path: Path) -> None:
    shown = run("info", hostile_path)
    assert not CONTROLS.search(shown)
    assert "\\x1b[2J\\x9b31m\\u202e\\nname" in shown
    assert not CONTROLS.search(run("info", hostile_path, "--json"))


def test_a_server_s_words_steer_no_terminal(
    server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(f"{STEERING}\nmore")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fails)
    monkeypatch.setattr("sys.argv", ["pycrispasr", "models", "download", "moss-transcribe"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().err
    assert not CONTROLS.search(shown)
    assert "\\x1b[2J" in shown


def test_the_log_steers_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    common.log_to_stderr(logging.WARNING)
    logging.getLogger("pycrispasr").warning("%s", STEERING)
    assert capsys.readouterr().err == "\\x1b[2J\\x9b31m\\u202e\n"
