"""The report in a real headless Chromium: nothing hostile runs, nothing breaks, all of it can be used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from benchmarks.browser import chromium, find_chromium

from ngdiff.report.page import compare_page, run_page
from ngdiff.report.run_files import Run
from report_runs import answers, evaluation, items, record, run, step

pytest.importorskip("playwright", reason="needs playwright (pip install -e .[dev])")
pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium here (Debian's package chromium has one)"
)

WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
SECONDS_TO_LOAD, SECONDS_TO_FILTER = 3.0, 0.3


@dataclass
class Visit:
    """An open page and everything that it said or asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    seconds: float = 0.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


class Visitor:
    """Opens pages from disk, and closes them."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser, self.folder, self.contexts = browser, folder, []  # type: ignore[var-annotated]

    def __call__(self, html: str, scheme: str = "light", window: dict[str, int] = WIDE) -> Visit:
        place = self.folder / "report.html"
        place.write_text(html, encoding="utf-8")
        context = self.browser.new_context(viewport=window, color_scheme=scheme, reduced_motion="reduce")
        self.contexts.append(context)
        context.set_default_timeout(10_000)
        visit = Visit(context.new_page())
        visit.page.on("console", lambda message: visit.said.append(f"{message.type}: {message.text}"))
        visit.page.on("pageerror", lambda error: visit.said.append(f"error: {error}"))
        visit.page.on("dialog", lambda dialog: (visit.said.append("dialog"), dialog.dismiss()))
        visit.page.on("request", lambda request: visit.asked.append(request.url))
        started = time.perf_counter()
        visit.page.goto(place.as_uri())
        visit.seconds = time.perf_counter() - started
        return visit

    def draw_all(self, visit: Visit) -> None:
        """Bring every chart near the screen."""
        visit.page.evaluate("drawings.forEach((drawing) => drawing.paint())")


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Visitor]:
    visitor = Visitor(browser, tmp_path)
    yield visitor
    for context in visitor.contexts:
        context.close()


def full_run() -> Run:
    """Return a run with all that a page can show."""
    found = answers([*items(0.1, 0.5, 0.2), *items(1.0, name="retain")])
    scores = ([3.0, 2.5, 1.0], [0.5, 1.5, 0.25])
    theirs = [{"place": "p", "question": "Who is 0?", "truth": "the author 0 sat", "answer": "nobody knows"}]
    return Run(
        "unlearned",
        record(steps=[step(n) for n in range(1, 13)]),
        evaluation(0.78, (0.67, 0.87), scores=scores, quality=0.2),
        evaluation(0.5, (0.4, 0.6), scores=scores, logs=(0.3, 0.6), texts={"forget": theirs}),
        evaluation(1.0, (1.0, 1.0), scores=scores, logs=(-2.0, -1.0)),
        found,
    )


def quiet(visit: Visit) -> None:
    """Assert that the page asked for nothing but itself and complained about nothing."""
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith("file:")] == [] and len(visit.asked) == 1


# ---- what hostile text can do ----

ATTACKS = (
    "<script>window.ran = 1</script>",
    '<img src="x" onerror="window.ran = 1">',
    "</script><script>window.ran = 1</script>",
    '"><svg onload="window.ran = 1">',
    "javascript:window.ran = 1",
    '<a href="javascript:window.ran = 1">click</a>',
    "{{ 7 * 7 }} ${window.ran = 1} <!--",
    "\u202eevil\u202c \u2066left\u2069 zero\u200bwidth\ufeff \u2028 \x00\x1b[31m",
)


def hostile_run() -> Run:
    poison = "\n".join(ATTACKS)
    found = []
    for item in items(0.1, 0.2):
        found.append(item | {"set": poison, "place": poison, "question": poison, "truth": poison})
    found[0] |= {"before": {"answer": poison}, "after": {"answer": poison}}
    found[1] |= {"after": {"answer": "A" * 500_000 + " the author " + "<b>" * 170_000}}
    found[1] |= {"question": "Q" * 200_000, "truth": "\u200b" * 30_000}
    probe = record()["probes"][0] | {"outcome": poison, "reason": poison}
    poisoned = record(
        settings={"model": poison, "forget": [poison], "method": poison},
        model={"name": poison},
        notes=[poison],
        probes=[probe],
        steps=[step(1, skipped=poison), step(2)],
        stop={"target_source": poison},
    )
    texts = {poison: [{"place": poison, "question": poison, "truth": poison, "answer": poison}]}
    return Run(poison, poisoned, evaluation(texts=texts), None, None, answers(found))


@pytest.mark.parametrize("page", ["run", "comparison"])
def test_hostile_text_does_nothing(visit: Visitor, page: str) -> None:
    run_ = hostile_run()
    found = visit(run_page(run_) if page == "run" else compare_page("\n".join(ATTACKS), [run_, full_run()]))
    assert found.seconds < SECONDS_TO_LOAD
    visit.draw_all(found)
    found.page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    if page == "run":
        while (button := found.page.query_selector('.side button[aria-expanded="false"]')) is not None:
            button.click()
        found.page.click("#probes button")
        assert found.page.locator(".said.all").first.is_visible()
        texts = found.page.locator("#answers-list").inner_text()
        assert "<script>window.ran = 1</script>" in texts and "U+202E" in texts
    assert found.page.evaluate("window.ran") is None
    assert found.page.locator("img, iframe, object, embed, a[href^='javascript']").count() == 0
    hidden = found.page.evaluate(
        "/[\\u202a-\\u202e\\u2066-\\u2069\\u200b\\ufeff]/.test(document.body.innerText)"
    )
    assert not hidden
    quiet(found)


def test_ten_thousand_items_stay_usable(visit: Visitor) -> None:
    many = []
    for place in range(10_000):
        item = items(place / 10_000)[0] if place % 2 else items(1.0, name="retain")[0]
        many.append(item | {"question": f"Who is number {place}?", "truth": f"the author {place} sat " * 12})
    found = visit(run_page(Run("many", record(), answers=answers(many))))
    assert found.seconds < SECONDS_TO_LOAD
    assert found.page.locator(".item").count() == 20
    assert "of 10000" in found.page.locator("#answers-count").inner_text()
    timed = """([id, value, event]) => {
        const field = document.getElementById(id);
        const times = [];
        for (const filled of ["", value, "", value]) {
            const started = performance.now();
            field.value = filled;
            field.dispatchEvent(new Event(event));
            document.body.getBoundingClientRect();
            times.push(performance.now() - started);
        }
        return Math.min(times[1], times[3]) / 1000;
    }"""
    for id_, value, event in (
        ("filter-set", "forget", "change"),
        ("filter-change", "lost", "change"),
        ("filter-text", "number 7", "input"),
    ):
        assert found.page.evaluate(timed, [id_, value, event]) < SECONDS_TO_FILTER
    assert "of 556" in found.page.locator("#answers-count").inner_text()  # odd numbers that begin with 7
    found.page.click("text=Next")
    assert found.page.locator("#answers-count").inner_text().startswith("21 to 40")
    quiet(found)


# ---- what a reader can do ----


def test_all_parts_are_drawn(visit: Visitor) -> None:
    found = visit(run_page(full_run()))
    visit.draw_all(found)
    page = found.page
    assert page.locator("#curves-charts .plot svg").count() == 11
    assert page.locator("#tradeoff-charts .plot svg").count() == 2
    assert page.locator("#membership-charts .plot svg").count() == 2
    assert "KS 1.000" in page.locator("#truth-charts .plot svg").text_content()
    first = page.locator(".item").first
    assert first.locator("h3").inner_text() == "Who is 1?"  # the one the model still knows best
    retrained = page.locator(".item", has_text="Who is 0?").first
    assert "nobody knows" in retrained.inner_text()
    marked = page.locator(".item").first.locator("mark").all_inner_texts()
    assert marked == ["the", "author", "1", "sat", "1"]  # before: all of the truth; after: "1" alone
    page.select_option("#filter-set", "retain")
    assert page.locator(".item").count() == 1
    quiet(found)


def test_a_probe_shows_its_parabola(visit: Visitor) -> None:
    found = visit(run_page(full_run()))
    visit.draw_all(found)
    dot = found.page.locator('[aria-description="probes"] > *').first
    dot.click()
    figure = found.page.locator("#probes figure")
    assert "Learning rate found 4.50e-5: accepted" in figure.inner_text()
    figure.locator("summary").click()
    cells = figure.locator("tbody td").all_inner_texts()
    assert cells == ["0.0042", "0.0040", "0.0039"]
    assert figure.locator(".plot svg circle").count() == 3
    quiet(found)


def test_the_keyboard_is_enough(visit: Visitor) -> None:
    found = visit(run_page(full_run()))
    page = found.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for selector, key in (
        ("#probes button", "Enter"),
        ("#curves-charts summary", "Space"),
        ("#theme", "Enter"),
    ):
        page.locator(selector).first.focus()
        page.keyboard.press(key)
    page.locator("#probes .plot svg").wait_for()
    assert page.locator("#probes button").first.get_attribute("aria-pressed") == "true"
    page.locator("#curves-charts tbody tr").first.wait_for()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    quiet(found)


def test_copying_the_command(visit: Visitor) -> None:
    found = visit(run_page(full_run()))
    found.page.evaluate(
        "navigator.clipboard && (navigator.clipboard.writeText = async (text) => { window.copied = text; })"
    )
    found.page.click("text=Copy the command")
    found.page.get_by_text("Copied").first.wait_for()
    assert found.page.evaluate("window.copied").startswith("ngdiff unlearn --model target")


@pytest.mark.parametrize(
    ("kind", "scheme", "only"),
    [
        ("run", "light", None),
        ("run", "dark", "color-contrast"),  # nothing else of it depends on the colours
        ("comparison", "light", "color-contrast"),
        ("comparison", "dark", None),
    ],
)
def test_accessibility(visit: Visitor, kind: str, scheme: str, only: str | None) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python", reason="needs axe-playwright-python, which has axe-core"
    )
    other = Run("other", record(settings={"method": "npo"}))
    found = visit(
        run_page(full_run()) if kind == "run" else compare_page("Comparison", [full_run(), other]), scheme
    )
    visit.draw_all(found)
    found.page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    if kind == "run":
        found.page.locator("#probes button").first.click()
    found.page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    settings = {"runOnly": [only]} if only else {}
    result = found.page.evaluate("(settings) => axe.run(document, settings)", settings)
    assert len(result["passes"]) >= (1 if only else 20)
    assert [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in result["violations"]] == []
    quiet(found)


def test_a_phone_scrolls_down_only(visit: Visitor) -> None:
    for html in (
        run_page(full_run()),
        run_page(hostile_run()),
        compare_page("Comparison", [full_run(), run()]),
    ):
        found = visit(html, window=PHONE)
        visit.draw_all(found)
        assert found.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_printing_draws_every_chart(visit: Visitor) -> None:
    found = visit(run_page(full_run()), "dark")
    assert found.page.locator(".plot svg").count() < found.page.locator(".plot").count()
    pdf = found.page.pdf()
    assert found.page.locator(".plot svg").count() == found.page.locator(".plot").count()
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 1
    found.page.emulate_media(media="print")
    assert not found.page.locator(".top").is_visible()
    assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
