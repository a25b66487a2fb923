"""The page in a real browser: it asks, streams, shows what the cache does, and where the answer has looked."""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from louiskv import LouisKV
from tests.reporting.browser import browser
from tests.serving.serving import Served, served, until

METHOD = LouisKV(budget=40, sink=3, window=12, unit_size=4, max_segment=8, dense_layers=1, tau=0.3)
DOCUMENT = "The baker \N{CROISSANT} rises before the sun. <b>Nobody</b> sees him on his way. " * 12
WIDE, NARROW = 1280, 390
ENOUGH = 20_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(METHOD, kept_memory=2**30, prefill_chunk=512) as running:
        # The random model would end where it likes.
        running.engine._turns.end_tokens = frozenset()
        yield running


class Opened:
    """A page in the browser, and what it complained about or asked for."""

    def __init__(self, chromium: Browser, url: str, width: int = WIDE, scheme: Any = "light", **more: Any) -> None:
        self.page: Page = chromium.new_page(viewport={"width": width, "height": 850}, color_scheme=scheme, **more)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda asked: self.requests.append(asked.url))
        self.page.goto(url)
        self.url = url

    def ask(self, question: str, tokens: int = 12) -> None:
        self.page.fill("#max", str(tokens))
        self.page.fill("#question", question)
        self.page.keyboard.press("Enter")

    def close(self) -> None:
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith((self.url, "data:"))] == []
        self.page.close()


def test_figures_that_come_behind_the_answer_are_shown(chromium: Browser, server: Served) -> None:
    opened, asked = Opened(chromium, server.url), list[Route]()
    page = opened.page
    expect(page.locator("#what")).to_have_text("tiny, LouisKV")

    def late(route: Route) -> None:
        asked.append(route)
        # The first call is made before the question, the second while the answer comes.
        if len(asked) != 2:
            route.continue_()

    page.route("**/louiskv/v1/figures", late)
    opened.ask("Who rises?")
    expect(page.locator("#answer-tokens")).to_have_text("12", timeout=ENOUGH)
    expect(page.locator("#stop")).to_be_visible(timeout=ENOUGH)
    asked[1].continue_()
    expect(page.locator("#moved")).to_have_text(re.compile(r"B$"), timeout=ENOUGH)
    expect(page.locator("#send")).to_be_visible(timeout=ENOUGH)
    assert len(asked) == 3, "one more at the end"
    opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (NARROW, "dark")], ids=["wide, light", "narrow, dark"])
def test_a_document_is_asked_about(chromium: Browser, server: Served, width: int, scheme: str) -> None:
    opened = Opened(chromium, server.url, width, scheme)
    page = opened.page
    expect(page.locator("#what")).to_have_text("tiny, LouisKV")
    page.get_by_role("button", name="Show").click()
    page.get_by_label("Text of the document").fill(DOCUMENT)
    # Long enough that also a page that is behind looks while rows are in use: between answers nothing lies there.
    opened.ask("Who rises?", 480)
    expect(page.locator("#heat")).to_be_visible(timeout=ENOUGH)
    # The text is shown as it is, and in one piece.
    assert page.locator("#heat").inner_text() == DOCUMENT.strip()
    assert page.evaluate("document.querySelector('#heat').childNodes.length") == 1
    levels = page.evaluate("[...CSS.highlights].map(([name, ranges]) => [name, ranges.size])")
    assert len(levels) > 2
    expect(page.locator("#prompt-tokens")).to_have_text(re.compile(r"\d"), timeout=ENOUGH)
    tokens = int(page.locator("#prompt-tokens").inner_text())
    assert sum(number for _, number in levels) < tokens, "ranges, not tokens"
    told = {"prompt-tokens": r"\d", "answer-tokens": r"\d", "moved": r"B$", "device-text": r"of .* tokens"}
    for name, form in told.items():
        # Each comes when the page asks for it next.
        expect(page.locator(f"#{name}")).to_have_text(re.compile(form), timeout=ENOUGH)
    expect(page.locator("#plot")).not_to_have_attribute("aria-label", "No steps yet", timeout=ENOUGH)
    box = page.locator("#heat").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 60, box["y"] + 22)
    expect(page.locator("#hint")).to_have_text(re.compile(r"%: \d+ of \d+ times"))
    page.locator("#places button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # A second turn goes on from the first one.
    opened.ask("And then?")
    expect(page.locator(".said.user")).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=ENOUGH)
    assert int(page.locator("#cached-tokens").inner_text().replace(",", "")) > len(DOCUMENT) / 3
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".said")).to_have_count(0)
    opened.close()


def test_without_a_mouse(chromium: Browser, server: Served) -> None:
    opened = Opened(chromium, server.url)
    page = opened.page
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=ENOUGH)
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"send", "max", "temperature", "choose", "fold"} <= set(names)
    assert page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, canvas, svg')].every(each => each.hidden || "
        "each.textContent.trim() || each.labels?.length || each.ariaLabel || each.type === 'file')"
    )
    opened.close()


def test_an_answer_is_stopped_and_its_row_is_free(chromium: Browser, server: Served) -> None:
    opened = Opened(chromium, server.url)
    opened.page.evaluate("document.querySelector('#temperature').value = 1.5")
    opened.ask("Go on", 3000)
    expect(opened.page.locator(".said.assistant")).not_to_have_text("", timeout=ENOUGH)
    opened.page.get_by_role("button", name="Stop").click()
    expect(opened.page.get_by_role("button", name="Send")).to_be_visible(timeout=ENOUGH)
    until(lambda: server.engine.figures().running == 0)
    opened.close()


def test_a_new_chat_knows_nothing_of_the_one_that_was_still_going_on(chromium: Browser, server: Served) -> None:
    opened = Opened(chromium, server.url)
    page = opened.page
    opened.ask("The old question", 3000)
    expect(page.locator(".said.assistant")).not_to_have_text("", timeout=ENOUGH)
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=ENOUGH)
    expect(page.locator(".said")).to_have_count(0)
    expect(page.locator("#question")).to_have_value("")
    assert page.evaluate("state.messages") == []
    # Nor does one with another document.
    opened.ask("Hello", 3)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=ENOUGH)
    assert page.evaluate("state.messages.length") == 2
    page.get_by_role("button", name="Show").click()
    page.get_by_label("Text of the document").fill("Another one")
    expect(page.locator(".said")).to_have_count(0)
    assert page.evaluate("state.messages") == []
    opened.close()


def test_a_file_is_dropped_and_an_error_is_said(chromium: Browser, server: Served, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("word " * 3000)
    opened = Opened(chromium, server.url)
    opened.page.set_input_files("#file", file)
    expect(opened.page.locator("#source")).to_have_value(re.compile("^word word"))
    opened.ask("What is it?")
    expect(opened.page.get_by_role("alert")).to_contain_text("maximum context length is 4096 tokens")
    expect(opened.page.locator("#question")).to_have_value("What is it?")
    assert all("400" in complaint for complaint in opened.complaints)
    opened.complaints.clear()
    opened.close()


def test_the_page_asks_for_the_key(chromium: Browser) -> None:
    with served(METHOD, api_key="secret") as server:
        opened = Opened(chromium, server.url)
        page = opened.page
        for key in ("wrong", "secret"):
            page.get_by_label("This server wants a key.").fill(key)
            page.keyboard.press("Enter")
            page.wait_for_timeout(200)
        expect(page.locator("#what")).to_have_text("tiny, LouisKV")
        assert all("401" in complaint for complaint in opened.complaints)
        opened.complaints.clear()
        opened.close()


def test_thirty_thousand_tokens_are_shown_fast(chromium: Browser, server: Served) -> None:
    opened = Opened(chromium, server.url)
    runs = [[f"word{place} ", place % 97, place % 8] for place in range(15_000)]
    text = "".join(run[0] for run in runs).strip()  # type: ignore[misc]
    told = {"heat": {"runs": runs, "total": 100, "layers": 2, "levels": [0.01, 0.03, 0.07, 0.15, 0.3, 0.5, 0.75]}}
    opened.page.route("**/louiskv/v1/answers/x", lambda route: route.fulfill(json=told))
    taken = opened.page.evaluate(
        "async (text) => { const begun = performance.now(); await showHeat('x', text); "
        "document.querySelector('#heat').getBoundingClientRect(); return performance.now() - begun; }",
        text,
    )
    assert taken < 3000
    assert opened.page.evaluate("document.querySelectorAll('*').length") < 200
    opened.close()


def test_the_page_asks_nobody_else() -> None:
    page = files("louiskv.serving").joinpath("page.html").read_text("utf-8")
    assert not re.search(r"(src|href)=\"(https?:|//)|url\((?!#)|@import", page)
    assert len(page) < 60_000
