"""Recordings of strangers: what may be opened, and files that are made to do harm."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycrispasr import AudioError, Model, OutOfMemoryError, UsageError, audio
from pycrispasr.audio import addresses, containers

from .command import run
from .sound_files import flash_video, matroska, sndfile
from .sounds import make_tones

SOUND = make_tones(1)
WAV = sndfile(SOUND, 16000)


# ---- What a recording may be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("allow", ["data", "public"])
def test_no_path_is_opened_where_only_data_is_allowed(allow: audio.Audio, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(WAV)
    names = [path, str(path), path.as_uri(), str(tmp_path), "/dev/zero", "gone.wav", f" {path.as_uri()}"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
        names.append(str(tmp_path / "pipe"))
    for name in names:
        with pytest.raises(AudioError, match="a name is not followed here"):
            audio.open(name, allow=allow)  # type: ignore[arg-type]
    for name in ("ftp://host/a.wav", "FILE:///etc/passwd"):
        with pytest.raises(AudioError):
            audio.open(name, allow=allow)  # type: ignore[arg-type]


@pytest.mark.parametrize("allow", ["data", "public", "all"])
def test_data_is_always_allowed(allow: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(WAV)
    with path.open("rb") as file:
        for content in (WAV, bytearray(WAV), memoryview(WAV), file):
            np.testing.assert_array_equal(audio.load(content, allow=allow), audio.load(WAV))  # type: ignore[arg-type]
    assert len(audio.load(SOUND, sample_rate=16000, allow=allow)) == 16000  # type: ignore[arg-type]


def test_no_host_is_asked_where_only_data_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a host was looked up"))
    with pytest.raises(AudioError, match=r"allow='data': pass bytes or a file object"):
        audio.open("https://example.org/a.wav", allow="data")


def test_every_call_passes_it_on(nano: Model, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(WAV)
    for call in (nano.transcribe, nano.segments, nano.stream):
        with pytest.raises(AudioError, match="a name is not followed here"):
            call(path, allow="data")
    refused, done = nano.transcribe_many([path, WAV], allow="data", max_new_tokens=2)
    assert [refused.segments[0].status, done.segments[0].status] == ["failed", "truncated"]


def test_there_is_no_other_choice(nano: Model) -> None:
    for call in (audio.open, audio.load, nano.transcribe, nano.job):
        with pytest.raises(UsageError, match="allow cannot be 'files': choose 'all', 'public' or 'data'"):
            call(WAV, allow="files")  # type: ignore[operator]


# ---- Addresses that are public ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "ff0e::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::",
        "2001:db8::1", "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_an_address_of_this_machine_or_of_a_private_network_is_not_public(address: str) -> None:
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert addresses.is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_is_as_public_as_the_one_that_it_stands_for(address: ipaddress.IPv4Address) -> None:
    wanted = addresses.is_public(str(address))
    assert addresses.is_public(f"::ffff:{address}") == wanted
    assert addresses.is_public(str(ipaddress.IPv6Address((0x64FF9B << 96) + int(address)))) == wanted


# ---- What of an address is shown -------------------------------------------------------------------------------------

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_characters="/?#@\\:[]"), max_size=12)
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), max_size=12).map(lambda text: f"SECRET{text}")


@given(NAMES, SECRETS, SECRETS, SECRETS)
def test_no_secret_of_an_address_is_shown(user: str, password: str, query: str, fragment: str) -> None:
    place = "https://host:8443/a/b.wav"
    for written in (password, password.translate({ord(letter): "%40" for letter in "/?#@"})):
        url = f"https://{user}:{written}@host:8443/a/b.wav?token={query}#{fragment}"
        shown = addresses.shown(url)
        assert "SECRET" not in shown
        assert addresses.shown(shown) == shown
        assert addresses.shown(f"  {url}\n").strip() == shown
    assert shown.startswith(f"{place}?<")
    assert addresses.shown(f"{place}#{fragment}") == place


@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#")), unique=True))
def test_addresses_that_differ_can_be_told_apart(queries: list[str]) -> None:
    urls = [f"https://host/get?id={query}" for query in queries]
    assert len({addresses.shown(url) for url in urls}) == len(urls)


@pytest.mark.parametrize(
    "name",
    ["talk.wav", "me:secret@host", "what?.wav", "a#b.wav", "http://[::1]:80/@me/a.wav", "http://host:80/a@b.wav",
     "https://host/@me:here/a.wav", "http://host", "http://"],
)  # fmt: skip
def test_what_holds_no_secret_is_shown_as_it_is(name: str) -> None:
    assert addresses.shown(name) == name


# ---- Files that do harm ----------------------------------------------------------------------------------------------


def test_a_stream_that_begins_late_ends_nothing() -> None:
    with audio.open(flash_video(7)) as reader:
        assert sum(map(len, reader.blocks())) / 16000 == pytest.approx(7, abs=0.2)
        assert reader.warnings == []


def test_a_clock_that_jumps_by_centuries_takes_no_memory() -> None:
    with audio.open(matroska([0, 10**12])) as reader:
        assert sum(map(len, reader.blocks())) == 2 * 320
        assert any("its clock jumps by +999999999.98 s" in warning for warning in reader.warnings)


@pytest.mark.parametrize(
    "content",
    [
        b".snd" + bytes(8) + b"\0\0\0\3\0\0\x3e\x80\0\0\0\1" + bytes(64),  # samples of no length at place 0: itself
        b".snd" + b"\0\0\0\x18" + b"\xff" * 4 + b"\0\0\0\3\0\0\x3e\x80\x7f\xff\xff\xff" + bytes(64),  # channels
        b"\xff" * 1_000_000,  # each byte could begin a frame of MP3
        b"fLaC\0\0\0\x22" + bytes(10),
        WAV[:28] + bytes(4) + WAV[32:40] + b"\xff" * 4 + WAV[44:],  # no bytes per second, no size
    ],
)
def test_a_header_that_makes_no_sense_ends_soon(content: bytes) -> None:
    with contextlib.suppress(AudioError):
        assert np.isfinite(audio.load(content)).all()
    assert len(containers.parts(io.BytesIO(content))) < 10


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (IndexError("list index out of range"), AudioError, "it cannot be read (IndexError: list index out of range)"),
        (RecursionError("too deep"), AudioError, "it cannot be read (RecursionError: too deep)"),
        (ValueError("\x1b[31mred\n"), AudioError, r"it cannot be read (ValueError: \x1b[31mred\n)"),
        (MemoryError(), OutOfMemoryError, "there is too little memory to read it"),
        (OSError(5, "Input/output error"), AudioError, "cannot be read: Input/output error"),
    ],
)
def test_whatever_a_decoder_throws_is_an_error_of_that_recording(
    error: Exception, kind: type, told: str, nano: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soundfile

    count = 0

    def read(*_: object, **__: object) -> np.ndarray:
        nonlocal count
        count += 1
        if count == 1:
            raise error
        return np.zeros(0, np.float32)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    failed, done = nano.transcribe_many([WAV, SOUND], sample_rate=16000, max_new_tokens=2)
    assert failed.segments[0].status == "failed"
    assert told in (failed.segments[0].error or "")
    assert done.segments[0].text
    count = 0
    with pytest.raises(kind) as caught:
        audio.load(WAV)
    assert told in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_stops_the_program_is_no_error_of_a_recording(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    import soundfile

    def read(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    with pytest.raises(error):
        audio.load(WAV)


def test_the_other_recordings_of_a_run_go_on(nano_path: Path, tmp_path: Path) -> None:
    files = {
        "late.flv": flash_video(7)[:4000], "jump.mkv": matroska([0, 10**12]), "nothing.mkv": b"\x1a\x45\xdf\xa3",
        "rate.mkv": matroska([0, 20], rate=2**30), "good.wav": WAV,
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    results = tmp_path / "results.jsonl"
    done = run(
        "transcribe", "-m", nano_path, "--max-new-tokens", 2, "--results", results, *(tmp_path / name for name in files)
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    rows = {Path(row["audio"]).name: row for row in map(json.loads, results.read_text().splitlines())}
    assert rows["good.wav"]["text"]
    assert [rows[name]["status"] == "failed" for name in files] == [False, False, True, True, False]


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"audio": ' * 50_000, f'{{"audio": "a.wav", "size": {"9" * 5000}}}', r'{"audio": "a\u0000.wav"}',
     r'{"audio": "\ud800.wav"}'],
    ids=["nested", "nested-objects", "digits", "zero", "surrogate"],
)  # fmt: skip
def test_a_list_that_does_harm_is_an_error_of_the_list(line: str, nano_path: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.jsonl"
    listed.write_text(line, encoding="utf-8")
    done = run("transcribe", "-m", nano_path, "--manifest", listed, "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "list.jsonl" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---- Standard output -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "subtype"), [("SDS", "PCM_16"), ("SDS", "PCM_24"), ("CAF", "ALAC_16")])
@pytest.mark.parametrize("library", ["both", "libsndfile"])
def test_nothing_is_printed_about_damage(
    form: str, subtype: str, library: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "libsndfile":
        monkeypatch.setitem(sys.modules, "av", None)
    content = sndfile(SOUND, 16000, format=form, subtype=subtype)
    for place in (*range(21, 48), len(content) // 2, len(content) - 200):
        damaged = bytearray(content)
        damaged[place : place + 130] = bytes(130)
        with contextlib.suppress(AudioError):
            audio.load(bytes(damaged))
    assert capfd.readouterr().out == ""
    if library == "both":
        assert np.abs(audio.load(content)[:16000] - SOUND).max() < 1e-3
    else:
        with pytest.raises(AudioError, match=r"pip install 'pycrispasr\[av\]'"):
            audio.load(content)
