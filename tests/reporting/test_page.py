"""The page, opened in a browser: nothing is missing, nothing is fetched, nothing is too wide."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from louiskv.errors import ResultsError
from louiskv.reporting.content import Section
from louiskv.reporting.page import SECTIONS, Chapter, chapters, render
from louiskv.reporting.records import Found, find
from tests.reporting.browser import browser
from tests.reporting.synthetic import everything, write

WIDE, NARROW = 1280, 420


@dataclass
class Opened:
    """A page in the browser, and what it complained about or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Chapter]]:
    folder = write(tmp_path_factory.mktemp("results"), everything())
    found = find(folder)
    made = chapters(found)
    path = folder / "report.html"
    path.write_text(render(found, made, "Results <of> a & b"), encoding="utf-8")
    return path, made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(params=[(WIDE, "light"), (NARROW, "dark")], ids=["wide, light", "narrow, dark"])
def opened(request: pytest.FixtureRequest, chromium: Browser, drawn: tuple[Path, list[Chapter]]) -> Iterator[Opened]:
    width, scheme = request.param
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    told = Opened(page)
    page.on("console", lambda message: told.complaints.append(message.text))
    page.on("pageerror", lambda error: told.complaints.append(str(error)))
    page.on("requestfailed", lambda failed: told.complaints.append(failed.url))
    page.on("request", lambda asked: told.requests.append(asked.url))
    page.goto(drawn[0].as_uri())
    yield told
    page.close()


def test_the_page_stands_alone_and_fits(opened: Opened, drawn: tuple[Path, list[Chapter]]) -> None:
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("window.innerWidth")
    boxes = page.locator("figure.drawn > svg").evaluate_all(
        "each => each.map(svg => [svg.getBoundingClientRect(), svg.checkVisibility()])"
        ".map(([box, visible]) => [visible, box.width, box.height])"
    )
    assert len(boxes) > 30
    assert all(visible and width > 200 and height > 80 for visible, width, height in boxes)
    # What a figure is drawn in is seen on its card, light or dark.
    ink, card = page.evaluate(
        "[getComputedStyle(document.querySelector('figure svg text')).fill, "
        "getComputedStyle(document.querySelector('figure')).backgroundColor]"
    )
    assert abs(_light(ink) - _light(card)) > 120
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [drawn[0].as_uri()]


def test_every_section_is_there_and_linked(opened: Opened) -> None:
    links = opened.page.locator("nav a").all()
    targets = [link.get_attribute("href") or "" for link in links]
    assert {target.removeprefix("#model-1-") for target in targets} >= set(SECTIONS)
    assert all(opened.page.locator(target).count() == 1 for target in targets)
    assert opened.page.locator("h1").inner_text() == "Results <of> a & b"
    for name in SECTIONS:
        assert opened.page.locator(f"#model-1-{name} figure").count() > 0, name


def test_a_click_sorts_and_another_turns_it_round(opened: Opened) -> None:
    table = opened.page.locator("#model-1-speed table", has_text="tokens a second").first
    heads = table.locator("th").all_inner_texts()
    for column, kind in (("ms a token", float), ("method", str)):
        place = heads.index(column)
        cells = table.locator(f"tbody td:nth-child({place + 1})")
        button = table.get_by_role("button", name=column, exact=True)
        for turned in (False, True):
            button.click()
            shown = [kind(text) for text in cells.all_inner_texts()]
            assert shown == sorted(shown, reverse=turned)
            order = table.locator("th").nth(place).get_attribute("aria-sort")
            assert order == ("descending" if turned else "ascending")
    # What is unknown stays below.
    budgets = table.locator("tbody td:nth-child(2)")
    for _ in range(2):
        table.get_by_role("button", name="budget").click()
        shown_budgets = budgets.all_inner_texts()
        assert shown_budgets[-1] == "-" and shown_budgets[0] != "-"


def test_every_figure_tells_what_made_it(drawn: tuple[Path, list[Chapter]]) -> None:
    page = drawn[0].read_text(encoding="utf-8")
    assert page.count("made by 1 command") > 30
    for command in ("eval", "probe", "bench decode", "bench prefill", "bench ops", "bench serve"):
        assert f"<code>louiskv {command} --output" in page
    assert "0123abcd" in page and "some processor" in page
    assert not re.search(r"(src|href)=\"(https?:|//)|url\((?!#)|@import", page)
    assert len(page) < 6e6


def test_ids_are_unique_in_what_is_not_shared(drawn: tuple[Path, list[Chapter]]) -> None:
    svgs = re.findall(r"<svg.*?</svg>", drawn[0].read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(svgs) > 30
    for svg in svgs:
        ids = re.findall(r'id="([^"]+)"', svg)
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
        assert len(ids) == len(set(ids)) and set(used) <= set(ids)


def test_only_what_was_measured_has_a_section(drawn: tuple[Path, list[Chapter]], tmp_path: Path) -> None:
    _, (chapter,) = drawn
    assert [section.name for section in chapter.sections] == list(SECTIONS)
    records = [record for record in everything(["full", "louiskv"], [128]) if record["kind"] == "prefill"]
    other = [{**record, "key": f"other {record['key']}", "dtype": "bfloat16"} for record in records[:1]]
    made = chapters(
        Found(records=[{**each, "base": each["method"], "label": each["method"]} for each in records + other])
    )
    assert [each.title for each in made] == ["tiny/model in float32", "tiny/model in bfloat16"]
    assert [_names(each.sections) for each in made] == [["speed"], ["speed"]]


def test_records_of_another_version_are_named() -> None:
    records = [record for record in everything(["louiskv"], [128]) if record["kind"] == "fidelity"]
    told: dict[str, Any] = {**records[0], "base": "louiskv", "label": "louiskv 128"}
    del told["curves"]
    with pytest.raises(ResultsError, match=r"A result of tiny/model in float32 has no 'curves': .* another version"):
        chapters(Found(records=[told]))


def _names(sections: list[Section]) -> list[str]:
    return [section.name for section in sections]


def _light(color: str) -> float:
    red, green, blue = map(int, re.findall(r"\d+", color)[:3])
    return 0.3 * red + 0.6 * green + 0.1 * blue
