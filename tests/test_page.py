"""The page in a browser, on collections that are served: searched, filtered, compared, and looked at by axe."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from _page import CHROMIUM, Server, chromium, drop, enter, paste, served, settled
from _rows import made_up, raw
from _scenes import KINDS, album

from cbir_faiss.collection import Collection, recalled
from cbir_faiss.config import parse_config

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
for module in ("starlette", "uvicorn", "python_multipart"):
    pytest.importorskip(module, reason="pip install 'cbir-faiss[serve]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

PAGE = Path(__file__).parents[1] / "cbir_faiss" / "serve" / "page"
EACH = 8
STRANGE = 'großes <i>Bild "日本" \\ &amp; mehr'
LONG = "a label that somebody made of a whole sentence, with no thought of how wide a tile is " * 3
PATIENCE = 30_000  # milliseconds, on a machine that does other things


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes, two collections of them, many vectors, and a run."""
    root = tmp_path_factory.mktemp("shelf")
    photos = album(root / "photos", EACH, (160, 120))
    (photos / STRANGE).mkdir()
    shutil.copy(photos / "sea" / "000.jpg", photos / STRANGE / "später & schön?.jpg")
    (photos / LONG[:200].strip()).mkdir()
    shutil.copy(photos / "sea" / "001.jpg", photos / LONG[:200].strip() / "x.jpg")
    code = {"codecs": [{"name": "itq", "bits": 16}], "backends": [{"name": "faiss-binary-flat"}]}
    rescored = {**code, "rescore": [{"name": "float", "candidates": 20}]}
    floats = {"codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat"}], "extractors": [{"name": "histogram"}]}
    for name, parts in (("scenes", rescored), ("colours", floats)):
        config = parse_config({"source": {"name": "folder", "root": str(photos)}, **parts})
        Collection.build(config, root / f"{name}.cbir", cache=root / "cache").close()
    (photos / "night" / "007.jpg").unlink()
    np.save(root / "x.npy", np.random.default_rng(0).standard_normal((3000, 16), dtype=np.float32))
    many = parse_config({"source": {"name": "vectors", "file": str(root / "x.npy")}, **code})
    Collection.build(many, root / "many.cbir", cache=root / "cache").close()
    (root / "demo").mkdir()
    rows = [
        raw(0.84),
        made_up(bits=64, values=0.7),
        made_up(bits=256, values=0.83, memory=33.0),
        made_up("lsh", bits=64),
    ]
    rows[2].worst = [
        ("sea/001.jpg", ["sea"], 0.125),
        (f"{STRANGE}/später & schön?.jpg", [STRANGE], 0.25),
        ("city/003.jpg", ["another's"], 0.5),
        ("nowhere/x.jpg", ["nowhere"], 0.5),
    ]
    rows[2].classes = {"sea": (3, 0.75), "city": (2, 0.5)}
    results = {
        "environment": {},
        "recommendation": {"row": 2, "sentence": "Use the third."},
        "rows": [r.as_json() for r in rows],
    }
    (root / "demo" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (root / "demo" / "report.html").write_text("<!doctype html><title>report</title><p>all of it", encoding="utf-8")
    (root / "cut short").mkdir()
    (root / "cut short" / "results.json").write_text('{"rows": [')
    return root


@pytest.fixture(scope="module")
def server(shelf: Path) -> Iterator[Server]:
    places = [shelf / name for name in ("scenes.cbir", "colours.cbir", "many.cbir", "demo", "cut short")]
    with served(*places, cache=shelf / "cache") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page in a context of its own; what it complains of is an error of the test."""
    playwright.expect.set_options(timeout=PATIENCE)
    with browser.new_context(viewport={"width": 1200, "height": 800}) as context:
        opened = context.new_page()
        opened.set_default_timeout(PATIENCE)
        complaints: list[str] = []
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        yield opened
        assert [text for text in complaints if "Failed to load resource" not in text] == []


# The numbers of the tiles that are whole in the window.
IN_WINDOW = """() => [...document.querySelectorAll(".grid .tile")]
    .filter((one) => one.getBoundingClientRect().top >= 0 && one.getBoundingClientRect().bottom <= innerHeight)
    .map((one) => Number(one.dataset.index))
    .sort((a, b) => a - b)"""


def expect(found: Any) -> Any:
    return playwright.expect(found)


def names(page: Any) -> list[str]:
    """The paths of the photos that are shown, in their order."""
    settled(page)
    return list(page.locator(".grid .photo").evaluate_all("all => all.map((one) => one.title)"))


def fetched(page: Any, path: str, body: Any = None) -> Any:
    """What the server answers the page."""
    options = (
        {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)} if body else {}
    )
    return page.evaluate(
        "([path, options]) => fetch(path, options).then((answer) => answer.json())", [f"api/v1/{path}", options]
    )


# -- search


def test_a_photo_that_is_dropped_finds_itself_first(page: Any, server: Server, shelf: Path) -> None:
    enter(page, server)
    drop(page, shelf / "photos" / "city" / "003.jpg")
    expect(page.locator(".told")).to_contain_text("48 results")
    found = names(page)
    assert found[0] == "city/003.jpg"
    assert sum(name.startswith("city/") for name in found[:EACH]) >= EACH - 2
    assert "photo=" in page.url
    expect(page.locator("#said")).to_contain_text("The nearest is city/003.jpg")


def test_neither_a_search_nor_its_thumbnails_wait_for_those_of_before(page: Any, server: Server, shelf: Path) -> None:
    held: list[Any] = []
    page.route("**/thumb?**", lambda route: held.append(route) if len(held) < 4 else route.continue_())
    enter(page, server)
    expect(page.locator(".told")).to_contain_text("items")
    page.wait_for_timeout(500)
    assert page.locator(".grid img[src]").count() == 4  # of the six that a browser has on their way at once
    drop(page, shelf / "photos" / "city" / "003.jpg")
    expect(page.locator(".told")).to_contain_text("48 results")
    assert names(page)[0] == "city/003.jpg"
    assert page.locator(".grid img").evaluate_all("all => all.every((image) => image.naturalWidth > 0)")


def test_what_is_no_picture_is_told_in_words(page: Any, server: Server, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture at all")
    enter(page, server)
    drop(page, broken)
    expect(page.locator(".notice.bad")).to_contain_text("cannot be")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_a_photo_can_be_chosen(page: Any, server: Server, shelf: Path) -> None:
    enter(page, server)
    with page.expect_file_chooser() as choosing:
        page.get_by_role("button", name="Drop, paste or choose a photo").click()
    choosing.value.set_files([shelf / "photos" / "hills" / "001.jpg", shelf / "photos" / "hills" / "002.jpg"])
    expect(page.locator(".chip img")).to_have_count(2)
    settled(page)
    shown = page.locator(".chip img").evaluate_all(
        "all => all.map((one) => [one.naturalWidth > 0, one.width, getComputedStyle(one).opacity])"
    )
    assert shown == [[True, 56, "1"]] * 2
    assert names(page)[0].startswith("hills/")


def test_a_photo_is_pasted_and_more_are_shown(page: Any, server: Server, shelf: Path) -> None:
    enter(page, server)
    settled(page)
    paste(page, shelf / "photos" / "city" / "003.jpg")
    expect(page.locator(".told")).to_contain_text("48 results")
    assert names(page)[0] == "city/003.jpg"
    page.get_by_label("How many results").focus()
    page.get_by_label("How many results").select_option("12")
    expect(page.locator(".told")).to_contain_text("12 results")
    assert page.evaluate("document.activeElement.dataset.key") == "k", "the focus stays"
    assert re.search(r"[?&]k=12(&|$)", page.url)


def test_filters_have_counts_and_back_undoes_them(page: Any, server: Server) -> None:
    enter(page, server)
    expect(page.locator(".told")).to_contain_text("50 items")
    sea = page.locator("label.value", has_text="sea")
    expect(sea.locator(".soft")).to_have_text(str(EACH))
    sea.locator("input").focus()
    page.keyboard.press("Space")
    expect(page.locator(".told")).to_contain_text(f"{EACH} items of 50")
    assert all(name.startswith("sea/") for name in names(page))
    assert page.evaluate("document.activeElement.dataset.key") == '["label","sea"]', "the focus stays"
    page.locator("label.value", has_text="city").click()
    expect(page.locator(".told")).to_contain_text(f"{2 * EACH} items of 50")
    page.go_back()
    expect(page.locator(".told")).to_contain_text(f"{EACH} items of 50")
    page.go_back()
    expect(page.locator(".told")).to_have_text("50 items")
    expect(page.locator("label.value input:checked")).to_have_count(0)


def test_words_are_asked_for_only_where_they_can_be(page: Any, server: Server) -> None:
    """The field, with what it sends; what is found is tested where the text towers are."""

    def can(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "texts": True})

    def found(route: Any) -> None:
        sent.append(json.loads(route.request.post_data))
        route.fulfill(json={"results": [[]], "took_ms": 1.0})

    sent: list[dict[str, Any]] = []
    enter(page, server)
    settled(page)
    expect(page.get_by_role("search")).to_have_count(0)
    page.route("**/collections/scenes", can)
    page.route("**/collections/scenes/search", found)
    enter(page, server)
    settled(page)
    page.keyboard.press("t")
    page.keyboard.type("a red bus")
    page.keyboard.press("Enter")
    expect(page.locator(".told")).to_contain_text("0 results")
    assert page.evaluate("document.activeElement.name") == "text", "the focus stays"
    assert (sent[-1]["text"], sent[-1]["ids"], sent[-1]["combine"]) == (["a red bus"], [], False)
    enter(page, server, "#/c/scenes?text=a+red+bus&like=3")
    settled(page)
    assert (sent[-1]["text"], sent[-1]["ids"], sent[-1]["combine"]) == (["a red bus"], [3], True)
    page.get_by_role("link", name="Side by side").click()
    expect(page.get_by_label("Say what is to be seen")).to_have_value("a red bus")
    page.get_by_label("Say what is to be seen").fill("")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"compare\?like=3$"))


def test_what_is_beyond_the_cut_off_is_dimmed(page: Any, server: Server) -> None:
    def cut(route: Any) -> None:
        answer = route.fetch()
        results = answer.json()
        for place, hit in enumerate(results["results"][0]):
            hit["relevant"] = place < 7
        route.fulfill(response=answer, json=results)

    page.route("**/search", cut)
    enter(page, server, "#/c/scenes?like=3&k=12")
    expect(page.locator(".told")).to_contain_text("12 results, nearest first, 7 within the cut-off")
    expect(page.locator(".tile.beyond")).to_have_count(5)


def test_what_is_being_written_stays(page: Any, server: Server) -> None:
    enter(page, server)
    settled(page)
    page.get_by_label("In words").press_sequentially("label =")
    page.evaluate("() => { location.hash = '#/c/scenes?k=24' }")
    settled(page)
    expect(page.get_by_label("In words")).to_have_value("label =")
    assert page.evaluate("document.activeElement.name") == "where"


def test_a_filter_in_words_that_cannot_be_read_can_be_mended(page: Any, server: Server) -> None:
    enter(page, server)
    words = page.get_by_label("In words")
    words.fill("label = ")
    words.press("Enter")
    expect(page.locator(".notice.bad")).to_contain_text(re.compile("expected a number"))
    page.get_by_label("In words").fill('label = "night" or label = "sea"')
    page.get_by_label("In words").press("Enter")
    expect(page.locator(".told")).to_contain_text(f"{2 * EACH} items of 50")


def test_the_focus_is_on_the_first_result_wherever_one_was(page: Any, server: Server) -> None:
    page.set_viewport_size({"width": 1200, "height": 300})
    enter(page, server)
    settled(page)
    page.keyboard.press("g")
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    assert page.evaluate("scrollY") > 300
    page.keyboard.press("m")
    expect(page.locator(".told")).to_contain_text("48 results")
    expect(page.locator(".grid [data-index='0'] .photo")).to_be_focused()


def test_keys_go_from_photo_to_photo_and_search(page: Any, server: Server) -> None:
    enter(page, server)
    settled(page)
    page.keyboard.press("g")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    focused = page.evaluate("document.activeElement.title")
    assert focused in names(page)[1:]
    page.keyboard.press("m")
    expect(page.locator(".chip")).to_have_count(1)
    assert focused not in names(page), "an item does not find itself"
    assert page.evaluate("document.activeElement.title") == names(page)[0], "the focus is on what was found"
    page.keyboard.press("g")
    page.keyboard.press("a")
    expect(page.locator(".chip.like")).to_have_count(2)
    settled(page)
    page.keyboard.press("g")
    page.keyboard.press("n")
    expect(page.locator(".chip.unlike")).to_have_count(1)
    settled(page)
    assert re.search(r"like=\d+,\d+&unlike=\d+", page.url)
    page.get_by_role("button", name="Without this “not like”").click()
    expect(page.locator(".chip.unlike")).to_have_count(0)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_one_photo_is_opened_stepped_through_and_closed(page: Any, server: Server) -> None:
    enter(page, server, "#/c/scenes?like=3")
    found = names(page)
    page.locator(".grid .photo").first.focus()
    page.keyboard.press("Enter")
    box = page.get_by_role("dialog", name="Photo")
    expect(box.locator("h2")).to_have_text(found[0])
    page.keyboard.press("ArrowRight")
    expect(box.locator("h2")).to_have_text(found[1])
    expect(box.locator("dd").first).to_have_text(found[1].split("/")[0])
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    page.wait_for_url("**/#/c/scenes?like=3")
    assert page.evaluate("document.activeElement.title") == found[0], "the focus is where it was"
    page.keyboard.press("Enter")
    expect(box).to_be_visible()
    page.go_back()
    expect(box).to_have_count(0)
    enter(page, server, "#/c/scenes?like=3&item=5")
    expect(box.locator("dd").first).not_to_be_empty()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    page.wait_for_url("**/#/c/scenes?like=3")


def test_one_steps_on_into_what_is_not_loaded_yet(page: Any, server: Server) -> None:
    page.route("**/items?offset=120&*", lambda route: route.fulfill(status=503, json={"detail": "wait a moment"}))
    enter(page, server, "#/c/many?item=119")
    box = page.get_by_role("dialog", name="Photo")
    expect(box.locator("dd").first).not_to_be_empty()
    page.keyboard.press("ArrowRight")
    expect(box.get_by_text("Wait a moment")).to_be_in_viewport()
    page.unroute("**/items?offset=120&*")
    page.keyboard.press("ArrowRight")
    expect(box.locator("h2")).to_have_text("000000120")
    enter(page, server, "#/c/many?item=0")
    expect(box.locator("h2")).to_have_text("000000000")
    page.keyboard.press("ArrowLeft")
    expect(box.get_by_text("There is no other.")).to_be_in_viewport()
    page.keyboard.press("ArrowRight")
    expect(box.locator("h2")).to_have_text("000000001")
    expect(box.get_by_text("There is no other.")).to_have_count(0)
    enter(page, server, "#/c/many?item=2500")
    expect(box.locator("h2")).to_have_text("000002500")
    page.keyboard.press("ArrowRight")
    expect(box.get_by_text("What is beside it is not loaded.")).to_be_in_viewport()


def test_keys_of_one_character_can_be_turned_off(page: Any, server: Server) -> None:
    enter(page, server)
    settled(page)
    page.keyboard.press("?")
    page.get_by_role("checkbox", name="Keys of one character").uncheck()
    page.keyboard.press("Escape")
    enter(page, server)
    settled(page)
    keys = page.get_by_role("dialog", name="Keys")
    page.locator(".grid .photo").first.focus()
    for key in "?5tfm":
        page.keyboard.press(key)
    expect(keys).to_have_count(0)
    expect(page.locator(".told")).to_have_text("50 items")
    assert page.evaluate("document.activeElement.title") == names(page)[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Photo").locator("h2")).to_have_text(names(page)[1])
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keys").click()
    page.get_by_role("checkbox", name="Keys of one character").check()
    page.keyboard.press("Escape")
    page.keyboard.press("5")
    page.wait_for_url("**/state")


def test_a_link_is_a_state(page: Any, server: Server) -> None:
    enter(page, server)
    settled(page)
    page.locator("label.value", has_text="hills").click()
    settled(page)
    page.keyboard.press("g")
    page.keyboard.press("m")
    expect(page.locator(".chip")).to_have_count(1)
    here, found = page.url, names(page)
    other = page.context.new_page()
    other.goto(here)
    expect(other.locator(".chip")).to_have_count(1)
    assert names(other) == found


def test_a_link_says_gently_that_a_photo_is_not_in_it(page: Any, server: Server, shelf: Path) -> None:
    enter(page, server, "#/c/scenes?photo=pabc")
    expect(page.locator(".notice")).to_contain_text("a photo that a link cannot carry")
    drop(page, shelf / "photos" / "sea" / "002.jpg")
    expect(page.locator(".told")).to_contain_text("results")


def test_back_returns_to_where_one_had_scrolled(page: Any, server: Server) -> None:
    enter(page, server, "#/c/many")
    settled(page)
    page.evaluate("scrollTo(0, 9000)")
    page.wait_for_function("() => document.querySelector('.grid .photo')?.closest('li').dataset.index > 100")
    page.locator(".grid .tile:nth-child(20) .photo").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    there = page.evaluate("scrollY")
    page.get_by_role("dialog").get_by_role("button", name="More like this").click()
    expect(page.locator(".told")).to_contain_text("results")
    assert page.evaluate("scrollY") == 0
    page.go_back()
    page.go_back()
    expect(page.locator(".told")).to_contain_text("3,000 items")
    page.wait_for_function("(there) => Math.abs(scrollY - there) < 100", arg=there)
    assert there > 5000


def test_thousands_of_items_are_a_few_tiles(page: Any, server: Server) -> None:
    enter(page, server, "#/c/many")
    expect(page.locator(".told")).to_contain_text("3,000 items")
    settled(page)
    assert page.locator(".tile").count() < 150
    page.keyboard.press("g")
    page.keyboard.press("End")
    expect(page.locator(".grid [aria-posinset='3000'] .photo")).to_have_attribute("title", "000002999")
    assert page.locator(".tile").count() < 250
    expect(page.locator(".query")).to_contain_text("holds vectors")


def test_every_one_of_a_million_items_can_be_reached(page: Any, server: Server) -> None:
    """More rows than a browser has pixels for."""

    def items(route: Any) -> None:
        asked = parse_qs(urlsplit(route.request.url).query)
        first, number = (int(asked.get(name, ["0"])[0]) for name in ("offset", "limit"))
        some = range(first, min(first + number, 1_000_000))
        route.fulfill(json={"total": 1_000_000, "items": [{"id": i, "path": f"{i:06}", "label": None} for i in some]})

    def seen() -> list[int]:
        return list(page.evaluate(f"({IN_WINDOW})()"))

    def wait(wanted: str) -> None:
        page.wait_for_function(f"() => {{ const seen = ({IN_WINDOW})(); return {wanted}; }}")

    page.route("**/collections/many/items?*", items)
    enter(page, server, "#/c/many")
    expect(page.locator(".told")).to_contain_text("1,000,000 items")
    settled(page)
    tall = page.evaluate("document.documentElement.scrollHeight")
    for key, index in (("g", 0), ("End", 999_999), ("ArrowLeft", 999_998)):
        page.keyboard.press(key)
        page.wait_for_function("(title) => document.activeElement.title === title", arg=f"{index:06}")
        assert index in seen()
    page.evaluate("scrollTo(0, 0)")
    wait("seen[0] === 0")
    assert page.evaluate("document.documentElement.scrollHeight") == tall, "what has the focus lies elsewhere"
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.activeElement.title === '999997'")
    assert 999_997 in seen()
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
    wait("seen.some((index) => Math.abs(index - 500_000) < 100)")
    there = seen()
    assert there == [*range(there[0], there[-1] + 1)]
    page.keyboard.press("5")
    expect(page.locator(".figures")).to_be_visible()
    page.go_back()
    wait(f"seen[0] === {there[0]}")
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    wait("seen.at(-1) === 999_999")


# -- side by side


def test_side_by_side_marks_what_the_code_missed(page: Any, server: Server) -> None:
    enter(page, server, "#/c/scenes/compare?like=3&k=12")
    sides = page.locator(".side")
    expect(sides).to_have_count(3)
    asked = [
        fetched(page, "collections/scenes/search", {"ids": [3], "k": k, "rescore": how})
        for k, how in ((24, "exact"), (12, "none"))
    ]
    exact, code = (list(answer["results"][0]) for answer in asked)
    near = {hit["id"] for hit in exact if hit["distance"] <= exact[11]["distance"]}
    right = min(12, sum(hit["id"] in near for hit in code))
    told = f"Recall {right / 12:.2f}" if right < 12 else "Recall 1"
    expect(sides.nth(1).locator(".told").first).to_contain_text(told)
    expect(sides.nth(1).locator(".strip").first.locator(".wrong")).to_have_count(
        sum(hit["id"] not in near for hit in code)
    )
    expect(sides.nth(1).locator(".missing .tile")).to_have_count(12 - right)
    expect(sides.nth(0).locator(".missed")).not_to_have_count(0)
    expect(sides.nth(2).locator("h2")).to_contain_text("rescored by float")


def test_without_a_query_side_by_side_says_how_to_begin(page: Any, server: Server, shelf: Path) -> None:
    enter(page, server, "#/c/scenes/compare")
    expect(page.locator(".sides")).to_contain_text("One query, several ways")
    drop(page, shelf / "photos" / "meadow" / "001.jpg")
    expect(page.locator(".side")).to_have_count(3)


def test_two_collections_stand_beside_each_other(page: Any, server: Server) -> None:
    enter(page, server, "#/c/scenes/compare?like=3&k=12")
    expect(page.locator(".side")).to_have_count(3)
    page.get_by_label("Compare").select_option("colours")
    expect(page.locator(".side h2")).to_have_text(["scenes", "colours"])
    expect(page.locator(".side").nth(1).locator(".tile")).not_to_have_count(0)
    expect(page.locator(".side").nth(1)).to_contain_text("raw · faiss-flat")


# -- the other views


def test_duplicates_are_apart_from_what_only_looks_alike(page: Any, server: Server) -> None:
    enter(page, server, "#/c/scenes/duplicates?radius=1")
    copies = page.get_by_role("region", name="Exact copies")
    expect(copies.locator(".group")).to_have_count(2)
    expect(copies.get_by_title(f"{STRANGE}/später & schön?.jpg", exact=True)).to_have_count(1)
    expect(page.get_by_role("region", name="Look-alikes").locator(".far").nth(1)).to_contain_text("bit")
    expect(page.get_by_role("button", name="Select all but the first")).to_have_count(0)
    enter(page, server, "#/c/colours/duplicates")
    expect(page.locator(".controls")).to_contain_text("only exact copies")


def test_rows_of_a_run_are_sorted_filtered_and_paired(page: Any, server: Server) -> None:
    enter(page, server, "#/runs")
    page.get_by_role("link", name="demo").click()
    expect(page.locator("tbody tr")).to_have_count(4)
    expect(page.locator(".advice")).to_have_text("Use the third.")
    page.get_by_role("button", name="memory/item").click()
    expect(page.locator("th[aria-sort]")).to_contain_text("memory/item")
    first = page.locator("tbody tr").first
    expect(first).to_contain_text("10.0")
    page.get_by_label("Rows with").fill("itq 256")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator(".controls [role=status]")).to_have_text("1 of 4 rows")
    page.get_by_role("checkbox").check()
    page.get_by_label("Rows with").fill("raw")
    page.get_by_role("checkbox").check()
    pair = page.get_by_role("region", name="Beside each other")
    expect(pair.locator("tr").first).to_contain_text("itq 256 bits")
    expect(pair.locator(".better", has_text="0.8400")).to_have_count(1)
    with page.context.expect_page() as opening:
        page.get_by_role("link", name="The report").click()
    expect(opening.value.locator("p")).to_have_text("all of it")


def test_what_is_being_composed_is_left_alone(page: Any, server: Server) -> None:
    """Letters that become a word by an input method, in fields that are made anew with every letter."""
    labels = [[f"label {number}", 1] for number in range(12)]
    page.route("**/facets", lambda route: route.fulfill(json={"fields": {"label": [*labels, ["橋", 1]]}}))
    method = page.context.new_cdp_session(page)
    for fragment, name, written, shown in (
        ("#/runs/demo", "Rows with", "itq", page.locator("tbody tr", has_text="itq")),
        ("#/c/scenes", "Find values of label", "橋", page.locator("label.value")),
    ):
        enter(page, server, fragment)
        settled(page)
        field = page.get_by_label(name)
        field.focus()
        for number in (1, 2, 3):
            letters = "has"[:number] if written == "橋" else written[:number]
            method.send("Input.imeSetComposition", {"text": letters, "selectionStart": number, "selectionEnd": number})
            page.evaluate("() => new Promise((soon) => setTimeout(soon))")
        method.send("Input.insertText", {"text": written})
        expect(field).to_have_value(written)
        expect(field).to_be_focused()
        assert field.evaluate("one => one.selectionStart") == len(written)
        expect(shown).to_have_count(2 if written == "itq" else 1)
        page.keyboard.type(" x")
        expect(field).to_have_value(f"{written} x")


def test_state_tells_what_it_takes(page: Any, server: Server) -> None:
    enter(page, server, "#/c/scenes/state")
    expect(page.locator(".figures")).to_contain_text("50 items")
    expect(page.locator(".state")).to_contain_text("itq")
    expect(page.locator(".state")).to_contain_text("rescor")
    expect(page.locator("meter")).not_to_have_count(0)
    page.get_by_role("button", name="Measure it").click()
    expect(page.locator(".state")).to_contain_text("of the 10 nearest, over 20 items")
    ids = [
        fetched(page, f"collections/scenes/items?offset={place * 50 // 20}&limit=1")["items"][0]["id"]
        for place in range(20)
    ]
    answers = [
        fetched(page, "collections/scenes/search", {"ids": ids, "k": k, "rescore": how})
        for k, how in ((20, "exact"), (10, None))
    ]
    recalls = []
    for exact, found in zip(*(answer["results"] for answer in answers), strict=True):
        near = {hit["id"] for hit in exact if hit["distance"] <= exact[9]["distance"]}
        recalls.append(min(10, sum(hit["id"] in near for hit in found)) / 10)
    mean, around = np.mean(recalls), 1.96 * np.std(recalls, ddof=1) / np.sqrt(20)
    told = page.locator(".state b", has_text="±").inner_text().split(" ± ")
    assert [float(figure) for figure in told] == pytest.approx([mean, around], abs=0.006)


def test_a_lasso_on_the_map_shows_what_is_inside(page: Any, server: Server) -> None:
    enter(page, server, "#/c/scenes/map")
    expect(page.locator(".told")).to_have_text("50 items")
    expect(page.locator(".map")).to_contain_text("By two principal axes.")
    box = page.locator("canvas").bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98)]
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()
    expect(page.locator(".told")).to_contain_text("50 photos inside the lasso")
    expect(page.locator(".grid .photo")).not_to_have_count(0)
    assert "lasso=" in page.url
    page.get_by_role("button", name="Search with the first 20 together").click()
    expect(page.locator(".chip")).to_have_count(20)


def test_the_state_has_what_recall_said_last(page: Any, server: Server, shelf: Path) -> None:
    told = {"recall": 0.9, "ci95": [0.8, 1.0], "k": 10, "queries": 20}
    recalled.keep(shelf / "colours.cbir", told, 1)
    enter(page, server, "#/c/colours/state")
    said = "0.90 (0.80 to 1) of the 10 nearest, over 20 queries, by cbir recall"
    expect(page.get_by_text(said, exact=True)).to_be_visible()
    recalled.keep(shelf / "colours.cbir", told, 1234)
    enter(page, server, "#/c/colours/state")
    expect(page.get_by_text(said)).to_contain_text("of generation 1,234: the collection has changed since")


# -- bad weather


def test_a_missing_original_and_strange_names_have_their_place(page: Any, server: Server) -> None:
    enter(
        page,
        server,
        f"#/c/scenes?filter={quote(json.dumps({'label': ['night', LONG[:200].strip(), STRANGE]}))}",
    )
    expect(page.locator(".told")).to_contain_text(f"{EACH + 2} items of 50")
    gone = page.locator(".photo[title='night/007.jpg']")
    gone.click()
    box = page.get_by_role("dialog", name="Photo")
    expect(box).to_contain_text("The original file is gone")
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    expect(page.locator(".caption span", has_text=STRANGE)).to_have_count(1)
    assert all(
        page.locator(".grid .tile").evaluate_all("all => all.map((one) => one.scrollWidth <= one.clientWidth + 1)")
    )


def test_what_is_not_served_is_told(page: Any, server: Server) -> None:
    enter(page, server, "#/c/nowhere")
    expect(page.locator(".notice.bad")).to_contain_text("No collection 'nowhere'")
    enter(page, server, "#/c/scenes?item=99999")
    expect(page.get_by_role("dialog")).to_contain_text("No item with id 99999")
    enter(page, server, "#/c/scenes?%F0%9F%filter=[&k=x&like=,-1,a&item=")
    expect(page.locator(".told")).to_contain_text("50 items")


def test_a_run_that_cannot_be_read_takes_nothing_along(page: Any, server: Server) -> None:
    enter(page, server, "#/runs")
    expect(page.get_by_role("link", name="demo")).to_contain_text("4 rows")
    broken = page.get_by_role("link", name="cut short")
    expect(broken).to_contain_text("run 'cut short': results.json cannot be read")
    broken.click()
    expect(page.locator(".notice.bad")).to_contain_text("results.json cannot be read")
    page.route("**/api/v1/runs", lambda route: route.fulfill(status=503, json={"detail": "it is too busy"}))
    enter(page, server)
    expect(page.locator(".told")).to_have_text("50 items")
    page.get_by_role("link", name="Runs").click()
    expect(page.locator(".notice.bad")).to_contain_text("It is too busy")


@pytest.mark.slow
def test_a_server_that_goes_away_is_waited_for(page: Any, shelf: Path) -> None:
    with served(shelf / "scenes.cbir", cache=shelf / "cache") as first:
        enter(page, first)
        expect(page.locator(".told")).to_contain_text("50 items")
    page.keyboard.press("g")
    page.keyboard.press("m")
    banner = page.locator("#banner")
    expect(banner).to_contain_text("The server does not answer")
    with served(shelf / "scenes.cbir", cache=shelf / "cache", options=("--port", first.port)) as second:
        page.get_by_role("button", name="Try now").click()
        expect(banner).to_be_hidden()
        expect(page.locator(".notice.bad")).to_contain_text("Open the link that cbir serve printed")
        here = page.url.partition("#")[2]
        enter(page, second, f"#{here}")
        expect(page.locator(".told")).to_contain_text("results")


@pytest.mark.slow
def test_what_is_removed_leaves_its_file(page: Any, shelf: Path, tmp_path: Path) -> None:
    shutil.copytree(shelf / "scenes.cbir", tmp_path / "mine.cbir")
    with served(tmp_path / "mine.cbir", cache=shelf / "cache", options=("--port", "0", "--write")) as running:
        enter(page, running, "#/c/mine/duplicates?radius=0")
        copies = page.get_by_role("region", name="Exact copies")
        expect(copies.locator(".group")).to_have_count(2)
        copies.get_by_role("button", name="Select all but the first").first.click()
        page.get_by_role("button", name="Remove from the collection…").click()
        ask = page.get_by_role("dialog", name="Remove from the collection?")
        expect(ask).to_contain_text("Your files stay where they are")
        ask.get_by_role("button", name="Cancel").click()
        expect(copies.locator(".group")).to_have_count(2)
        page.get_by_role("button", name="Remove from the collection…").click()
        ask.get_by_role("button", name="Remove", exact=True).click()
        expect(copies.locator(".group")).to_have_count(1)
        page.get_by_role("link", name="Photos", exact=True).click()
        expect(page.locator(".told")).to_have_text("49 items")
        page.locator(".grid .photo").nth(2).click()
        page.get_by_role("dialog", name="Photo").get_by_role("button", name="Remove from the collection").click()
        ask.get_by_role("button", name="Remove", exact=True).click()
        expect(page.locator(".told")).to_have_text("48 items")
        expect(page.get_by_role("dialog")).to_have_count(0)
    assert len(list((shelf / "photos").rglob("*.jpg"))) == len(KINDS) * EACH + 1


def test_the_worst_queries_of_a_row_lead_to_what_is_found(page: Any, server: Server) -> None:
    enter(page, server, "#/runs/demo")
    settled(page)
    worst = page.get_by_role("region", name="Worst queries")
    expect(worst.locator("h3")).to_contain_text("itq 256 bits")
    tiles = worst.locator(".tile .photo")
    said = [[one.get_attribute("title"), one.evaluate("one => one.tagName")] for one in tiles.all()]
    strange = f"{STRANGE}/später & schön?.jpg"
    assert said == [["sea/001.jpg", "A"], [strange, "A"], ["city/003.jpg", "SPAN"], ["nowhere/x.jpg", "SPAN"]]
    worst.locator("summary").click()
    classes = worst.locator("details li").all_inner_texts()
    assert classes == ["city 0.5000 2 queries", "sea 0.7500 3 queries"], "the worst first"
    tiles.first.click()
    expect(page.locator(".side")).to_have_count(3)
    chip = page.locator(".chip a").get_attribute("aria-label")
    assert fetched(page, f"collections/scenes/items/{chip.removeprefix('Item ')}")["path"] == "sea/001.jpg"
    enter(page, server, "#/runs/demo?rows=0,1")
    settled(page)
    expect(worst).to_have_count(0)


# -- for everybody

STATES = {
    "photos": "#/c/scenes",
    "results": "#/c/scenes?like=3,4&unlike=20&k=12",
    "item": "#/c/scenes?like=3&item=4&k=12",
    "side by side": "#/c/scenes/compare?like=3&k=12",
    "duplicates": "#/c/scenes/duplicates?radius=2",
    "map": "#/c/scenes/map",
    "state": "#/c/scenes/state",
    "runs": "#/runs",
    "run": "#/runs/demo?rows=0,1,2,3",
}


def test_nothing_is_wider_than_a_phone(page: Any, server: Server) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    widths = {}
    for name, fragment in STATES.items():
        enter(page, server, fragment)
        settled(page)
        for filters in page.locator("summary:visible").all():
            filters.evaluate("one => one.click()")
        widths[name] = page.evaluate("document.documentElement.scrollWidth")
    assert set(widths.values()) == {360}, widths


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(page: Any, server: Server, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    faults = []
    for name, fragment in STATES.items():
        enter(page, server, fragment)
        settled(page)
        for fault in axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]:
            places = [node["target"] for node in fault["nodes"]][:3]
            faults.append((name, fault["impact"], fault["id"], places, fault["nodes"][0]["failureSummary"]))
    assert faults == []


def test_the_page_is_small_and_whole_and_has_nothing_inline() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
    assert sum(len(text.encode()) for text in files.values()) < 150_000
    for name, text in files.items():
        for other in re.findall(r'(?:from|src=|href=) ?"(?:\./)?([\w.]+\.(?:js|css|svg))"', text):
            assert other in files, f"{name} names {other}"
        assert not re.search(r"https?://(?!www\.w3\.org)", text), name
        assert not re.search(r"innerHTML|\bstyle=|javascript:| on\w+=\"", text), name
