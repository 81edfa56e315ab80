"""The comparison's page, read back with the standard library's HTML parser and compared with what was put in."""

from __future__ import annotations

import base64
import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fullfield.errors import ConfigError, MissingExtraError, RunError
from fullfield.measure.compare_accuracy import Accuracy
from fullfield.measure.compare_result import Compared, Comparison
from fullfield.measure.report import write_page
from tests.measure.comparison import full_model, made_up

VOID = {"meta", "link", "img", "br", "line", "circle", "rect", "image"}


class Page(HTMLParser):
    """Every tag and text of a page; fails on tags that are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("th", "td"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and {"th", "td"} & set(self.open):
            self.cells[-1][-1] = f"{self.cells[-1][-1]} {data.strip()}".strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, start: str) -> list[str]:
        return next(cells for cells in self.cells if cells[0].startswith(start))

    def values(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for kind, attrs in self.tags if kind == tag and name in attrs]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return made_up()


def render(found: Comparison, folder: Path) -> Page:
    return Page(write_page(found, folder / "page.html").read_text(encoding="utf-8"))


def bare(label: str) -> Compared:
    """A model of which nothing was measured."""
    return Compared(label, "unknown", 32)


def test_figures_stand_in_the_row_of_their_model(comparison: Comparison, tmp_path: Path) -> None:
    page = render(comparison, tmp_path)
    large = comparison.models[1]
    assert large.cost is not None
    row = page.row("2 large trained weights, 32 px")
    assert row[1] == "58.0 %"
    assert row[2] == f"{large.cost.cost.params / 1e3:.3g} k"
    assert row[4] == "8.00 ms 14.4 ms"  # median and 90th percentile of 8, 8 and 16 ms
    assert row[5] == "250"  # 4 images in 16 ms
    assert row[6] == "0.50 × 0.50–0.50"
    assert row[7] == "12 MB"
    assert row[8] == f"{100 * large.erfs[-1].area_ratio[0.5]:.1f} % {100 * large.erfs[-1].area_ratio[0.99]:.1f} %"
    assert "Top-1 of small, large: Table 1 of a paper." in page.text
    assert "Shortest latency 4.00 ms small" in page.text
    assert "Highest top-1 58.0 % large" in page.text


def test_charts_have_a_point_a_model_and_pictures_are_of_each_stage(comparison: Comparison, tmp_path: Path) -> None:
    page = render(comparison, tmp_path)
    assert sum(tag == "circle" for tag, _ in page.tags) == 2 * 2
    fields = page.values("image", "href")
    maps = page.values("img", "src")
    assert (len(fields), len(maps)) == (2 * 2, 1 + 2)
    for uri in (*fields, *maps):
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            assert picture.size == (32, 32)
    result = comparison.models[0].erfs[0]
    left, top = (float(page.values("rect", name)[0]) for name in ("x", "y"))
    side = result.squares[0.5].width
    assert (left + side / 2, top + side / 2) == (result.centre[1] + 0.5, result.centre[0] + 0.5)
    assert "deletion 0.50 (random 0.40)" in page.text


def test_bars_fill_their_width_with_the_shares(comparison: Comparison, tmp_path: Path) -> None:
    page = render(comparison, tmp_path)
    widths = [float(width) for style in page.values("i", "style") for width in re.findall(r"width: ([\d.]+)%", style)]
    assert len(widths) == 2 * 3 * 3
    assert [sum(widths[i : i + 3]) for i in range(0, len(widths), 3)] == pytest.approx([100] * 6, abs=0.02)
    assert "stage 2: 2.50 ms, 55.6 %" in page.values("i", "title")


def test_what_is_missing_is_told_once_with_its_reason_and_never_filled_in(
    comparison: Comparison, tmp_path: Path
) -> None:
    page = render(comparison, tmp_path)
    assert page.row("Building the model") == ["Building the model", "broken", "it has no weights"]
    assert page.row("Class-activation map") == ["Class-activation map", "small, large", "grad-cam is missing"]
    page = render(replace(comparison, models=(bare("a"), bare("b"))), tmp_path)
    assert page.row("1 a")[1:] == ["–", "–", "–", "–", "–", "–", "– –"]
    for name in ("charts", "stages", "fields", "maps"):
        assert name not in page.values("h2", "id")
        assert f"#{name}" not in page.values("a", "href")


def test_without_accuracies_none_is_drawn(tmp_path: Path) -> None:
    page = render(made_up((full_model("a", 4, accuracy=None), full_model("b", 8, accuracy=None))), tmp_path)
    assert "No accuracy is known of these models, so none is drawn." in page.text
    assert "Throughput and MACs" in page.text
    assert "accuracy, %" not in page.text


def test_random_weights_are_told_beside_every_picture(tmp_path: Path) -> None:
    page = render(made_up((full_model("a", 4, weights="random", cam=made_cam_without_scores()),)), tmp_path)
    assert page.row("1 a")[0] == "1 a random weights, 32 px"
    assert "random weights: it means nothing" in page.text
    assert "75.0 %" not in page.text


def made_cam_without_scores():  # type: ignore[no-untyped-def]
    cam = full_model("a", 4).cam
    assert cam is not None
    return replace(cam, scores=None, weights="random")


def test_links_lead_somewhere_and_ids_are_unique(comparison: Comparison, tmp_path: Path) -> None:
    page = render(replace(comparison, notes=("a note", "another")), tmp_path)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {href.removeprefix("#") for href in page.values("a", "href")} <= set(ids)


HOSTILE = '"><script>alert(1)</script>{{ 7 * 7 }}\udce9 写'


def test_hostile_names_are_shown_and_nothing_is_requested(tmp_path: Path) -> None:
    model = full_model(HOSTILE, 4, accuracy=Accuracy(0.5, HOSTILE))
    assert model.cam is not None
    model = replace(model, cam=replace(model.cam, class_name=HOSTILE, source=HOSTILE))
    found = replace(made_up((model, full_model("b", 8))), data=HOSTILE, command=HOSTILE, notes=(HOSTILE,))
    page = render(found, tmp_path)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "form")]
    assert "49" not in page.row("1 ")[0]
    assert '"><script>alert(1)</script>{{ 7 * 7 }}\\udce9 写' in page.text
    urls = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "data")]
    assert all((url or "").startswith(("data:", "#")) for url in urls)
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'")


def test_a_page_of_nothing_is_refused_with_the_reasons(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model could be built.*broken: it has no weights"):
        write_page(replace(comparison, models=()), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_page(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "page.html"
    old.write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match="the disk is full"):
        write_page(comparison, old)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert old.read_text() == "old"


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_with_its_extra(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"(?i)needs " + missing + r".*fullfield\[look\]"):
        write_page(comparison, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
