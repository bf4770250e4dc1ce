"""A person's browser: examples, uploads, both answers, the RoIs, dark mode, a phone's width, and no stranger asked.

SF_LLAVA_SCREENSHOTS=DIR writes what was seen as PNG files.
"""

import os
import re
from pathlib import Path

import pytest

QUESTION = "Which shape is red?"
WAIT = 60_000  # milliseconds


@pytest.fixture
def open_page(served, browser):
    """Open the page in a fresh context; afterwards no request may have left this machine, and no error be logged."""
    contexts, requests, errors = [], [], []

    def open_page(width=1280, height=900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(served.local_url, timeout=WAIT)
        page.wait_for_selector("#chat .example", timeout=WAIT)
        page.wait_for_selector("#message textarea", timeout=WAIT)
        return page

    yield open_page
    for context in contexts:
        context.close()
    abroad = [url for url in requests if not url.startswith((served.local_url, "data:", "blob:"))]
    assert not abroad and not errors


def keep(page, name: str) -> None:
    if folder := os.environ.get("SF_LLAVA_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def attach(page, *paths) -> None:
    page.locator("#message input[type=file]").set_input_files(list(paths))
    page.wait_for_selector("#message .thumbnail-item", timeout=WAIT)


def send(page, text: str | None = None) -> None:
    if text is not None:
        page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("button", name="Submit").click()


def wait_for_answers(page, count: int = 1) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('#chat .verdict:not(.open)').length == count", arg=count, timeout=WAIT
    )


def test_an_example_is_answered_by_both_towers_side_by_side(open_page):
    page = open_page()
    keep(page, "start")
    page.locator("#chat .example").first.click()
    page.wait_for_function("() => document.querySelector('#message textarea').value.includes('Options:')", timeout=WAIT)
    send(page)
    wait_for_answers(page)
    left, right = page.locator("#chat .card").all()
    assert "SparseFormer" in left.inner_text() and "16 visual tokens" in left.inner_text()
    assert "CLIP" in right.inner_text() and "64 visual tokens" in right.inner_text()
    for card in (left, right):
        assert re.search(r"encoder [\d.]+ ms\s*prefill [\d.]+ ms\s*speed \d+", card.inner_text())
    a, b = left.bounding_box(), right.bounding_box()
    assert a["y"] == b["y"] and a["x"] + a["width"] <= b["x"] and abs(a["width"] - b["width"]) < 2
    page.wait_for_selector("#focus figure", timeout=WAIT)
    assert page.locator("#focus figure img[alt]").count() == 7
    keep(page, "desktop")


def test_an_upload_is_asked_about_over_several_turns_with_the_keyboard_alone(open_page, picture_files):
    page = open_page()
    attach(page, *picture_files[:2])
    box = page.get_by_role("textbox", name="Message")
    for number in (1, 2):
        box.fill(QUESTION)
        page.get_by_role("button", name="Submit").click(trial=True)  # it can be sent
        box.press("Enter")
        wait_for_answers(page, number)
    assert page.locator("#chat .sent").count() == 2
    assert "kept" in page.locator("#chat .card").last.inner_text()
    page.get_by_role("button", name="Clear").last.press("Enter")
    page.wait_for_selector("#chat .example", timeout=WAIT)
    assert page.locator("#focus figure").count() == 0


def test_what_is_typed_while_the_answers_grow_stays(open_page, picture_files, slow_model):
    page = open_page()
    attach(page, picture_files[0])
    send(page, QUESTION)
    page.wait_for_selector("#chat .card", timeout=WAIT)
    box = page.get_by_role("textbox", name="Message")
    box.fill("And which is blue?")
    wait_for_answers(page)
    page.get_by_role("button", name="Submit").wait_for(timeout=WAIT)
    assert box.input_value() == "And which is blue?"


def test_a_picture_can_be_pasted(open_page, picture_files):
    page = open_page()
    page.evaluate(
        """async bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
            const paste = new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
            document.querySelector("#message textarea").dispatchEvent(paste);
        }""",
        list(picture_files[0].read_bytes()),
    )
    page.wait_for_selector("#message .thumbnail-item", timeout=WAIT)
    send(page, QUESTION)
    wait_for_answers(page)


def test_a_file_that_is_no_picture_is_refused_in_the_chat_and_the_question_comes_back(open_page, tmp_path):
    page = open_page()
    (tmp_path / "notes.png").write_text("milk, bread")
    attach(page, tmp_path / "notes.png")
    send(page, QUESTION)
    note = page.wait_for_selector("#chat .note", timeout=WAIT)
    assert "notes.png is no picture" in note.inner_text()
    assert page.get_by_role("textbox", name="Message").input_value() == QUESTION


def test_markup_in_a_question_stays_text(open_page):
    page = open_page()
    evil = "<img src=x onerror=\"document.title='owned'\"> ${6*7} {{6*7}} **bold**"
    send(page, evil)
    page.wait_for_selector("#chat .card", timeout=WAIT)
    assert page.locator("#chat .question .said").inner_text() == evil
    assert page.title() != "owned"


def test_stop_ends_the_answer(open_page, picture_files, slow_model):
    page = open_page()
    page.get_by_label("number input for Temperature").fill("1")  # so that no two answers are the same
    attach(page, picture_files[0])
    send(page, QUESTION)
    page.get_by_role("button", name="Stop").click(timeout=WAIT)
    page.get_by_role("button", name="Submit").wait_for(timeout=WAIT)
    assert "(stopped)" in page.locator("#chat").inner_text()


def test_nothing_moves_while_the_answers_grow(open_page, picture_files, slow_model):
    page = open_page()
    attach(page, picture_files[0])
    send(page, QUESTION)
    page.wait_for_function("() => !document.querySelector('#message .thumbnail-item')", timeout=WAIT)  # it was taken
    places, finished = set(), False
    while not finished:
        finished = page.locator("#chat .verdict:not(.open)").count()
        box = page.get_by_role("textbox", name="Message").bounding_box()  # at the end too
        if page.locator("#chat .card").count():
            places.add((box["x"], box["y"]))
    assert len(places) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(scheme, open_page, picture_files):
    page = open_page(color_scheme=scheme)
    attach(page, picture_files[0])
    send(page, QUESTION)
    wait_for_answers(page)
    page.wait_for_selector("#focus figure", timeout=WAIT)
    keep(page, scheme)
    for selector in (".card .said", ".card .title", ".card .name", ".card .tokens", ".question .said", ".verdict"):
        assert page.evaluate(CONTRAST, f"#chat {selector}") >= 4.5, selector  # WCAG 2.2, level AA


def test_a_phone_shows_the_answers_below_each_other_and_nothing_beside_the_page(open_page, picture_files):
    page = open_page(390, 844, has_touch=True, is_mobile=True)
    keep(page, "phone_start")
    attach(page, picture_files[0])
    send(page, QUESTION)
    wait_for_answers(page)
    page.wait_for_selector("#focus figure", timeout=WAIT)
    keep(page, "phone")
    boxes = "[...document.querySelectorAll('#chat .card')].map(card => card.getBoundingClientRect().toJSON())"
    above, below = page.evaluate(boxes)  # both at one moment: the page may still be scrolling
    assert above["y"] + above["height"] <= below["y"] and above["x"] == below["x"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_role("button", name="Submit").is_visible()


CONTRAST = """selector => {
    const light = value => { value /= 255; return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4 };
    const share = [0.2126, 0.7152, 0.0722];
    const luminance = colour => share.reduce((sum, part, index) => sum + part * light(colour[index]), 0);
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    let element = document.querySelector(selector);
    const ink = luminance(parse(getComputedStyle(element).color));
    for (; element; element = element.parentElement) {
        const colour = parse(getComputedStyle(element).backgroundColor);
        if (colour.length == 3 || colour[3] > 0.9) {
            const paper = luminance(colour);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        }
    }
}"""
