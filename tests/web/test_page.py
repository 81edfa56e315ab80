"""The page in headless Chromium: every tab, bad files, a phone, the keyboard, and nothing asked of the outside.

That no request leaves the machine is checked after every test, in `conftest.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from tests.images import write_photo

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.web

PHONE = {"width": 400, "height": 800}
TABS = ("Answer", "Class map", "Fields", "Compare", "Cost", "Report")


@pytest.fixture(scope="session")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red photograph, which the run has learned to name."""
    return write_photo(tmp_path_factory.mktemp("given") / "red.jpg", "red", seed=7)


def give(page: Page, file: Path) -> None:
    """Choose a file, in place of the picture that may be there."""
    clear = page.locator("#picture").get_by_label(re.compile("Clear|Remove"))
    if clear.count():
        clear.first.click()
    page.locator("#picture input[type=file]").set_input_files(file)


def open_tab(page: Page, name: str) -> None:
    """Open a tab, from the menu of those that do not fit if it is there."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
        return
    page.locator(".overflow-menu > button").click()
    page.locator(".overflow-dropdown button", has_text=name).click()


def choose(page: Page, box: str, option: str) -> None:
    """Choose from a dropdown."""
    page.locator(f"{box} input").click()
    page.get_by_role("option", name=option).first.click()


def first_class(page: Page, where: str = "#answer-text") -> str:
    """Wait for a classifier's answer, and return the likeliest class."""
    return page.locator(f"{where} .ff-first .ff-name").inner_text()


# --- answers ---


def test_uploaded_picture_is_named(page: Page, red: Path) -> None:
    give(page, red)
    assert first_class(page) == "red"
    assert "racnn_pico (finished)" in page.locator("#answer-text .ff-model").inner_text()


def test_sample_of_the_package_is_answered(page: Page) -> None:
    page.locator("#samples button.gallery-item").first.click()
    assert first_class(page) in ("blue", "green", "red")


def test_switched_model_answers_about_the_same_picture(page: Page, red: Path) -> None:
    give(page, red)
    assert first_class(page) == "red"
    choose(page, "#model", "colours.onnx")
    page.locator("#answer-text .ff-model", has_text="ONNX Runtime").wait_for()
    assert first_class(page) == "red"
    choose(page, "#model", "mobilenetv3_small_050")
    page.locator("#answer-text .ff-note", has_text="Random weights").wait_for()


def test_two_models_are_compared_side_by_side(page: Page, red: Path) -> None:
    give(page, red)
    open_tab(page, "Compare")
    choose(page, "#other-model", "colours.onnx")
    page.locator("#compare-start").click()
    assert first_class(page, "#compare-first") == first_class(page, "#compare-second") == "red"
    left, right = (page.locator(f"#compare-{side}").bounding_box() for side in ("first", "second"))
    assert left is not None
    assert right is not None
    assert left["x"] + left["width"] <= right["x"]
    assert abs(left["y"] - right["y"]) < 2


# --- looking inside ---


def test_class_map_is_drawn_for_the_chosen_class(page: Page, red: Path) -> None:
    give(page, red)
    first_class(page)
    open_tab(page, "Class map")
    choose(page, "#map-class", "green")
    page.locator("#map-start").click()
    page.locator("#map-picture img").wait_for()
    assert "What speaks for green" in page.locator("#map-text").inner_text()


def test_class_map_of_an_exported_file_is_a_sentence(page: Page, red: Path) -> None:
    choose(page, "#model", "colours.onnx")
    give(page, red)
    first_class(page)
    open_tab(page, "Class map")
    page.locator("#map-start").click()
    alert = page.get_by_role("alert").filter(has_text="is an exported file").first
    assert "start the page with the run" in alert.inner_text()


def test_fields_of_two_models_are_shown_by_stage(page: Page) -> None:
    open_tab(page, "Fields")
    assert page.get_by_label("colours.onnx").count() == 0
    page.get_by_label("mobilenetv3_small_050").check()
    page.locator("#field-start").click()
    page.locator("#field-text h3").nth(1).wait_for()
    maps = page.locator("#field-text .ff-maps")
    assert maps.nth(0).locator("img").count() == 4
    assert page.locator("#field-text .ff-muted", has_text="Trained weights.").count() == 1
    assert page.locator("#field-text .ff-note", has_text="Random weights").count() == 1
    assert page.locator("#field-text img").first.get_attribute("alt", timeout=1000)


def test_costs_and_report_are_shown(page: Page) -> None:
    open_tab(page, "Cost")
    page.locator("#cost-text table").wait_for()
    heads = page.locator("#cost-text thead th").all_inner_texts()
    assert heads == ["model", "image", "parameters", "MACs", "FLOPs"]
    open_tab(page, "Report")
    frame = page.frame_locator("#report-frame iframe")
    frame.get_by_role("heading", level=1).wait_for()
    assert page.locator("#report-frame iframe").get_attribute("sandbox") == ""
    title = frame.get_by_role("heading", level=1).inner_text()
    frame.get_by_role("link").first.click()  # to a part of the report
    assert frame.get_by_role("heading", level=1).inner_text() == title
    choose(page, "#model", "mobilenetv3_small_050")
    page.get_by_role("alert").filter(has_text="has no report").wait_for()


# --- bad files ---


def test_bad_files_are_sentences_and_the_next_good_one_is_answered(page: Page, red: Path, tmp_path: Path) -> None:
    text, cut, bomb = (tmp_path / name for name in ("text.jpg", "cut.jpg", "bomb.png"))
    text.write_text("not an image")
    cut.write_bytes(red.read_bytes()[:400])
    Image.new("1", (12000, 12000)).save(bomb)
    for file, sentence in (
        (text, "text.jpg: is not a JPEG"),
        (cut, "cut.jpg: is damaged or cut off"),
        (bomb, "bomb.png: has 12000 x 12000 pixels, more than the limit"),
    ):
        give(page, file)
        page.get_by_role("alert").filter(has_text=sentence).wait_for()
        assert page.get_by_text("Traceback").count() == 0
    give(page, red)
    assert first_class(page) == "red"
    assert page.locator(".ff-problem").filter(visible=True).count() == 0


def test_forged_path_of_the_server_is_not_read(address: str, models: list[str]) -> None:
    secret = Path(models[0]) / "config.yaml"
    for path in (str(secret), "/etc/passwd"):
        given = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        with httpx.Client(base_url=address, timeout=60) as client:
            config: dict[str, Any] = client.get("config").json()
            for call in config["dependencies"]:
                body = {"fn_index": call["id"], "data": [given] * len(call["inputs"]), "session_hash": "forged"}
                client.post("gradio_api/queue/join", json=body)
            told = client.get("gradio_api/queue/data", params={"session_hash": "forged"}).text
        assert "root:" not in told
        assert "blood" not in told
        assert "scale_min" not in told


# --- phones, keyboards, the dark ---


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_phone_shows_every_tab_without_scrolling_sideways(page: Page, red: Path) -> None:
    give(page, red)
    assert first_class(page) == "red"
    for name in TABS:
        open_tab(page, name)
        if name == "Fields":
            page.locator("#field-start").click()
            page.locator("#field-text img").first.wait_for()
        if name == "Cost":
            page.locator("#cost-text table").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name


def test_keyboard_alone_reaches_everything_in_order(page: Page) -> None:
    order = [
        ("model", "#model"),
        ("picture", "#picture"),
        ("samples", "#samples"),
        ("tabs", "[role=tablist]"),
    ]
    seen: list[str] = []
    for _ in range(30):
        page.keyboard.press("Tab")
        for name, selector in order:
            inside = f"document.activeElement.closest({selector!r}) !== null"
            if page.evaluate(inside) and (not seen or seen[-1] != name):
                seen.append(name)
    assert [name for name, _ in order] == list(dict.fromkeys(seen))


def test_sample_and_tab_are_chosen_with_the_keyboard(page: Page) -> None:
    page.locator("#samples button.gallery-item").first.focus()
    page.keyboard.press("Enter")
    assert first_class(page) in ("blue", "green", "red")
    page.get_by_role("tab", name="Cost", exact=True).focus()
    page.keyboard.press("Enter")
    page.locator("#cost-text table").wait_for()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_every_control_has_a_name(page: Page) -> None:
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('.gradio-container :is(input, button, select, textarea)')]
        .filter((e) => e.offsetParent !== null && e.type !== 'file')
        .filter((e) => !(e.getAttribute('aria-label') || e.title || e.innerText.trim() || e.labels?.length
            || e.closest('label')?.innerText.trim() || e.querySelector('img[alt]')))
        .map((e) => e.outerHTML.slice(0, 160))"""
    )
    assert unnamed == []
