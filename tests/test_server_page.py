"""The page of `pycrispasr serve`: what it is made of, and, with the marker `browser`, what it does in Chromium."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from .serving import httpx, serving

PAGE = resources.files("pycrispasr") / "server" / "page"
SAMPLES = Path(__file__).parents[1] / "samples"
TEXT = " ".join((SAMPLES / "long.txt").read_text("utf-8").split())
KEY = "sesame"

Page = Any  # Playwright's, which need not be there


def read(name: str) -> str:
    return (PAGE / name).read_text("utf-8")


def test_the_page_is_three_small_files() -> None:
    sizes = {file.name: len(file.read_bytes()) for file in PAGE.iterdir()}
    assert set(sizes) == {"index.html", "app.js", "style.css"}
    assert sum(sizes.values()) < 100_000


@pytest.mark.parametrize("name", ["index.html", "app.js", "style.css"])
def test_nothing_on_the_page_comes_from_elsewhere(name: str) -> None:
    namespace = "http://www.w3.org/2000/svg"  # a name; nothing is there to fetch
    assert not re.findall(r"""(?:https?|wss?):\/\/\w[^\s"'`]*|["'(]\/\/\w|@import""", read(name).replace(namespace, ""))


def test_a_strict_content_security_policy_allows_all_of_the_page() -> None:
    html = read("index.html")
    assert not re.findall(r"<style|\sstyle=|\son\w+=|javascript:", html)
    assert re.findall(r"<script[^>]*>([^<]*)", html) == [""]


def test_text_of_the_server_never_becomes_markup() -> None:
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
    assert not re.findall(markup, read("app.js"))


def test_the_script_finds_every_element_that_it_looks_for() -> None:
    script, html = read("app.js"), read("index.html")
    ids = set(re.findall(r'byId\("([^"]+)"', script))
    parts = set(re.findall(r'\bpart\("([^"]+)"', script))
    assert len(ids) > 10
    assert len(parts) > 10
    assert ids <= set(re.findall(r'\sid="([^"]+)"', html))
    assert parts <= set(re.findall(r'data-part="([^"]+)"', html))


def test_a_stream_of_verbose_json_tells_each_segment_when_it_is_final(server: str) -> None:
    form = {"model": "tiny", "response_format": "verbose_json", "stream": "true", "timestamp_granularities[]": ["word"]}
    form |= {"chunking_strategy": '{"type": "server_vad", "silence_duration_ms": 300}'}
    files = {"file": ("long.wav", (SAMPLES / "long.wav").read_bytes())}
    whole = httpx.post(f"{server}v1/audio/transcriptions", data={**form, "stream": ""}, files=files).json()
    answer = httpx.post(f"{server}v1/audio/transcriptions", data=form, files=files)
    *parts, done = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    kinds = [part.pop("type") for part in parts]
    assert kinds == ["transcript.text.delta", "transcript.text.segment"] * (len(kinds) // 2)
    assert "".join(part["delta"] for part in parts[::2]) == done["text"] == TEXT
    segments = [(part["start"], part["end"], part["text"]) for part in parts[1::2]]
    assert len(segments) > 5
    assert segments == sorted(segments)
    assert done.pop("type") == "transcript.text.done"
    assert done == whole


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as running:
        yield f"{running.url}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, whose microphone hears `samples/long.wav`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium")
    microphone = f"--use-file-for-fake-audio-capture={SAMPLES / 'long.wav'}%noloop"
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", microphone]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", *fake])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """Opens pages, and fails where one of them broke its Content-Security-Policy or threw an error."""
    with contextlib.ExitStack() as stack:
        faults: list[str] = []

        def hear(message: Any) -> None:
            if "Content Security Policy" in message.text:
                faults.append(message.text)

        def opened(address: str, script: str = "", **options: Any) -> Page:
            context = stack.enter_context(browser.new_context(permissions=["microphone"], **options))
            page = context.new_page()
            page.on("console", hear)
            page.on("filechooser", lambda _: None)  # from now on the dialog is not shown but told of
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.add_init_script(script)
            page.goto(address)
            return page

        yield opened
    assert not faults


def expect(target: Any) -> Any:
    from playwright.sync_api import expect

    return expect(target)


def drop(page: Page, *files: Path) -> None:
    """Drops files on the page, as from a file manager."""
    contents = [[file.name, list(file.read_bytes())] for file in files]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of files) transfer.items.add(new File([new Uint8Array(bytes)], name));
            return transfer;
        }""",
        contents,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def transcribed(page: Page) -> Page:
    """The page with the transcript of `samples/long.wav`."""
    drop(page, SAMPLES / "long.wav")
    expect(page.get_by_role("button", name="Download SRT")).to_be_visible()
    return page


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.locator(".body").all_inner_texts()).split())


def downloaded(page: Page, name: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Download {name}").click()
    assert download.value.suggested_filename.startswith("long.")
    return Path(download.value.path()).read_text("utf-8")


def watch(page: Page) -> None:
    """Has the page note which words are lit from now on, and to which time the recording goes."""
    page.evaluate(
        """() => {
            const { dataset } = document.body;
            dataset.lit = "";
            new MutationObserver((changes) => {
                for (const { target } of changes) if (target.matches(".now")) dataset.lit += `${target.textContent} `;
            }).observe(document.querySelector(".text"), { subtree: true, attributeFilter: ["class"] });
            const audio = document.querySelector("audio");
            audio.addEventListener("seeking", () => (dataset.sought = audio.currentTime));
        }"""
    )


def expect_sought(page: Page, time: float) -> None:
    expect(page.locator("body")).to_have_attribute("data-sought", re.compile(r"\d"))
    assert float(page.locator("body").get_attribute("data-sought")) == pytest.approx(time, abs=0.01)


def answer(page: Page, *answers: dict[str, Any]) -> None:
    """Gives these answers to transcriptions, and the server's own to what follows."""
    left = list(answers)

    def handle(route: Any) -> None:
        if left:
            route.fulfill(**left.pop(0))
        else:
            route.continue_()

    page.route("**/v1/audio/transcriptions", handle)


def stream(*events: dict[str, Any]) -> dict[str, Any]:
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return {"status": 200, "headers": {"content-type": "text/event-stream"}, "body": body}


@pytest.mark.browser
def test_what_is_said_into_the_microphone_is_written_while_it_is_said(server: str, open_page: Any) -> None:
    page = open_page(server)
    page.get_by_role("button", name="Talk").click()
    expect(page.locator(".tentative").filter(has_text=re.compile(r"\w")).first).to_be_visible()
    expect(page.locator(".body").last).to_contain_text("goodbye", timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Download Text")).to_be_visible()
    assert text_of(page) == TEXT
    page.get_by_role("button", name="Find the times of words").click()
    expect(page.locator(".unit")).to_have_count(len(TEXT.split()))
    assert text_of(page) == TEXT


@pytest.mark.browser
def test_a_dropped_recording_plays_with_its_words_lit(server: str, open_page: Any) -> None:
    page = transcribed(open_page(server))
    assert text_of(page) == TEXT
    watch(page)
    page.get_by_role("button", name="Play").click()
    expect(page.locator("body")).to_have_attribute("data-lit", re.compile("^hello please start tomorrow "))
    page.get_by_label("Speed").select_option("2")
    assert page.evaluate("document.querySelector('audio').playbackRate") == 2


@pytest.mark.browser
def test_a_click_on_a_word_goes_there(server: str, open_page: Any) -> None:
    page = transcribed(open_page(server))
    words = {word["word"]: word for word in json.loads(downloaded(page, "JSON"))["words"]}
    watch(page)
    page.locator(".unit", has_text="seven").click()
    expect_sought(page, words["seven"]["start"])
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


@pytest.mark.browser
def test_the_text_can_be_walked_through_and_played_with_the_keyboard(server: str, open_page: Any) -> None:
    page = open_page(server)
    focused = page.locator(":focus")
    page.keyboard.press("Tab")
    expect(focused).to_have_accessible_name("Choose files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(SAMPLES / "long.wav")
    expect(page.get_by_role("button", name="Download SRT")).to_be_visible()
    page.get_by_role("button", name="Talk").focus()
    names = []
    while page.locator(".unit:focus").count() == 0:
        page.keyboard.press("Tab")
        names.append(focused.evaluate("element => element.ariaLabel ?? element.textContent.trim()"))
    assert names == [
        "Remove long.wav", "Play", "Position", "Speed",
        "Download SRT", "Download VTT", "Download JSON", "Download Text", "Copy text", "hello",
    ]  # fmt: skip
    for pressed, word in [("ArrowRight", "please"), ("End", "goodbye"), ("ArrowLeft", "you"), ("Home", "hello")]:
        page.keyboard.press(pressed)
        expect(focused).to_have_text(word)
    last = json.loads(downloaded(page, "JSON"))["words"][-1]
    watch(page)
    page.locator(".unit").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect_sought(page, last["start"])
    assert page.locator(".text [tabindex], .text [role=button]").count() == 1


@pytest.mark.browser
def test_a_transcript_is_saved_in_four_formats(server: str, open_page: Any, tmp_path: Path) -> None:
    import pysubs2
    import webvtt

    page = transcribed(open_page(server))
    result = json.loads(downloaded(page, "JSON"))
    assert " ".join(word["word"] for word in result["words"]) == result["text"] == TEXT
    assert downloaded(page, "Text") == f"{TEXT}\n"
    subtitles = pysubs2.SSAFile.from_string(downloaded(page, "SRT"))
    assert " ".join(event.plaintext for event in subtitles).split() == TEXT.split()
    (tmp_path / "long.vtt").write_text(downloaded(page, "VTT"), "utf-8")
    captions = webvtt.read(tmp_path / "long.vtt")
    assert [caption.text for caption in captions] == [event.plaintext for event in subtitles]
    for caption, event in zip(captions, subtitles, strict=True):
        assert caption.start_in_seconds == event.start // 1000
        assert max(map(len, caption.lines)) <= 42
    starts = {round(word["start"], 3) for word in result["words"]}
    assert {event.start / 1000 for event in subtitles} <= starts


@pytest.mark.browser
def test_subtitles_of_a_model_without_words_share_out_the_time_of_a_segment(server: str, open_page: Any) -> None:
    said = (
        "One two three four five six seven eight nine ten eleven twelve, thirteen fourteen fifteen <sixteen>, and more."
    )
    segment = {"start": 10, "end": 20, "text": f" {said}"}
    page = open_page(server)
    answer(page, stream({"type": "transcript.text.done", "text": said, "segments": [segment]}))
    transcribed(page)
    expect(page.locator(".unit")).to_have_text([said])
    cues = downloaded(page, "VTT").split("\n\n")[1:]
    assert len(cues) == 2
    assert cues[0].startswith("00:00:10.000 --> ")
    assert "--> 00:00:20.000" in cues[1]
    assert "&lt;sixteen&gt;" in cues[1]


@pytest.mark.browser
def test_markup_in_a_transcript_stays_text(server: str, open_page: Any) -> None:
    said = "<img src=x onerror=alert(1)> & <b>"
    words = [{"word": word, "start": index, "end": index + 1} for index, word in enumerate(said.split())]
    page = open_page(server)
    answer(page, stream({"type": "transcript.text.done", "text": said, "words": words, "segments": []}))
    transcribed(page)
    assert text_of(page) == said
    assert page.locator("img, .text b").count() == 0


@pytest.mark.browser
def test_a_wrong_key_is_asked_for_again(open_page: Any) -> None:
    with serving(api_keys=(KEY,)) as running:
        page = open_page(running.url)
        expect(page.locator("#notice")).to_contain_text("The server asks for an API key.")
        page.get_by_role("button", name="Enter key").click()
        page.get_by_label("Key", exact=True).fill("guess")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text("The server does not take this key.")
        drop(page, SAMPLES / "long.wav")
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator(".unit")).to_have_count(len(TEXT.split()))
        page.get_by_role("button", name="Talk").click()
        spoken = page.locator("article", has_text="Recording")
        expect(spoken).to_contain_text("hello please", timeout=20_000)
        assert page.evaluate("[document.cookie, localStorage.length]") == ["", 0]


@pytest.mark.browser
def test_a_recording_that_is_too_large_is_told_of(open_page: Any) -> None:
    with serving(max_upload=100_000) as running:
        page = open_page(running.url)
        drop(page, SAMPLES / "long.wav")
        expect(page.locator(".problem")).to_contain_text("too large")


@pytest.mark.browser
def test_a_server_that_has_gone_is_told_of_and_tried_again(open_page: Any) -> None:
    with serving() as running:
        page = open_page(running.url)
        expect(page.locator("#model-name")).to_have_text("tiny")
    drop(page, SAMPLES / "hello.wav")
    expect(page.locator(".problem")).to_contain_text("The server cannot be reached. Is it still running?")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".problem")).to_contain_text("cannot be reached")


@pytest.mark.browser
def test_a_lost_connection_keeps_what_was_heard(open_page: Any) -> None:
    page = open_page("about:blank")
    lines: list[Any] = []
    page.route_web_socket("**/v1/realtime*", lambda line: (lines.append(line), line.connect_to_server()))
    with serving() as running:
        page.goto(running.url)
        page.get_by_role("button", name="Talk").click()
        expect(page.locator("article")).to_contain_text("hello please", timeout=20_000)
        lines[0].close(code=1012)
        expect(page.locator(".problem")).to_contain_text("The connection was lost.")
    expect(page.locator("article")).to_contain_text("hello please")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    expect(page.get_by_role("button", name="Talk")).to_be_visible()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError') }", "refused the"),
        ("mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError') }", "is no microphone"),
        ("__defineGetter__('mediaDevices', () => undefined)", "no way to a microphone"),
    ],
)
def test_a_microphone_that_cannot_be_used_is_told_of(server: str, open_page: Any, script: str, sentence: str) -> None:
    page = open_page(server, f"navigator.{script}")
    page.get_by_role("button", name="Talk").click()
    expect(page.locator("#notice")).to_contain_text(sentence)
    expect(page.get_by_role("button", name="Talk")).to_be_enabled()


@pytest.mark.browser
def test_a_busy_server_is_asked_again_when_it_says_so(server: str, open_page: Any) -> None:
    page = open_page(server)
    answer(page, {"status": 429, "headers": {"retry-after": "2"}, "body": ""})
    drop(page, SAMPLES / "long.wav")
    expect(page.locator(".work")).to_contain_text("The server is busy. Trying again in 2 s.")
    expect(page.locator(".unit")).to_have_count(len(TEXT.split()))


@pytest.mark.browser
def test_an_error_behind_the_first_words_keeps_them(server: str, open_page: Any) -> None:
    page = open_page(server)
    error = {"type": "error", "error": {"message": "The model has failed.", "type": "server_error"}}
    answer(page, stream({"type": "transcript.text.delta", "delta": "so far"}, error))
    drop(page, SAMPLES / "long.wav")
    expect(page.locator(".problem")).to_contain_text("The model has failed.")
    assert text_of(page) == "so far"


@pytest.mark.browser
def test_a_transcription_can_be_cancelled_and_begun_again(server: str, open_page: Any) -> None:
    page = open_page(server)
    held: list[Any] = []
    page.route("**/v1/audio/transcriptions", lambda route: held.append(route))
    with page.expect_event("requestfailed") as failed:
        drop(page, SAMPLES / "long.wav")
        page.get_by_role("button", name="Cancel").click()
    assert "ABORTED" in failed.value.failure
    expect(page.get_by_text("Cancelled.", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_focused()
    page.unroute("**/v1/audio/transcriptions")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".unit")).to_have_count(len(TEXT.split()))


@pytest.mark.browser
def test_several_recordings_are_listed_in_their_order(server: str, open_page: Any) -> None:
    page = open_page(server)
    names = ["hello.wav", "date.mp3", "digits.wav", "spelling.wav"]
    drop(page, *(SAMPLES / name for name in names))
    expect(page.get_by_role("button", name="Download SRT")).to_have_count(len(names))
    assert page.get_by_role("heading", level=2).all_inner_texts() == names
    for name in names:
        said = " ".join((SAMPLES / name).with_suffix(".txt").read_text("utf-8").split())
        expect(page.get_by_role("group", name=f"Text of {name}").locator(".body")).to_have_text(said)
    page.get_by_role("button", name="Remove date.mp3").click()
    expect(page.get_by_role("button", name="Remove digits.wav")).to_be_focused()


@pytest.mark.browser
def test_a_model_is_chosen_where_there_are_several(server: str, open_page: Any) -> None:
    page = open_page("about:blank")
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in ("large", "tiny")]
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": models}))
    page.goto(server)
    page.get_by_label("Model").select_option("tiny")
    with page.expect_request("**/v1/audio/transcriptions") as request:
        drop(page, SAMPLES / "hello.wav")
    assert re.search(r'name="model"\s+tiny\s', request.value.post_data_buffer.decode("latin-1"))


@pytest.mark.browser
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_the_microphones_rate_is_changed_without_aliases(server: str, open_page: Any, rate: int) -> None:
    page = open_page(server)
    passed, stopped = page.evaluate(
        """async (rate) => {
            const { Resampler } = await import(new URL("app.js", location));
            const tone = (hertz, at = rate) =>
                Float32Array.from({ length: at }, (_, i) => Math.sin((2 * Math.PI * hertz * i) / at));
            const resampled = (samples) => {
                const resampler = new Resampler(rate, 16000);
                const starts = Array.from({ length: Math.ceil(rate / 128) }, (_, i) => 128 * i);
                const blocks = starts.map((start) => samples.slice(start, start + 128));
                return [...blocks.flatMap((block) => resampler.push(block)), ...resampler.end()];
            };
            const right = tone(1000, 16000);
            const error = resampled(tone(1000)).map((y, i) => y - right[i]).slice(500, 15500);
            const loudest = (samples) => samples.reduce((most, y) => Math.max(most, Math.abs(y)), 0);
            return [loudest(error), rate > 22000 ? loudest(resampled(tone(10000)).slice(500, 15500)) : 0];
        }""",
        rate,
    )
    assert passed < 1e-3
    assert stopped < 1e-3


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_of_the_page_is_accessible_and_fits(server: str, open_page: Any, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install -e '.[browser]'").Axe()
    page = open_page(server, color_scheme=scheme, reduced_motion="reduce", viewport={"width": width, "height": 800})

    def check(state: str) -> None:
        results = axe.run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]})
        assert results.violations_count == 0, f"{state}: {results.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state

    check("at the beginning")
    page.get_by_role("button", name="Talk").click()
    expect(page.locator(".tentative").filter(has_text=re.compile(r"\w")).first).to_be_visible()
    check("while somebody talks")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Download SRT")).to_have_count(1)
    drop(page, SAMPLES / "long.wav")
    expect(page.get_by_role("button", name="Download SRT")).to_have_count(2)
    page.get_by_label("Position").first.fill("9.9")
    expect(page.locator(".now")).to_have_text("april")
    check("with transcripts")
    answer(page, {"status": 429, "headers": {"retry-after": "60"}, "body": ""}, {"status": 415, "body": ""})
    drop(page, SAMPLES / "hello.wav", SAMPLES / "date.mp3")
    expect(page.locator(".problem:visible, .work:visible")).to_have_count(2)
    check("with an error, and while it waits")
    page.route("**/v1/models", lambda route: route.fulfill(status=401, body=""))
    page.reload()
    page.get_by_role("button", name="Enter key").click()
    check("with the question for a key")
