"""The report page, read back with the standard library's HTML parser and compared with what was put in.

`Page` keeps every tag and every text with the classes of the elements around it, and fails on tags that are
not balanced, so each test that reads a page also checks its structure.
"""

from __future__ import annotations

import base64
import errno
import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fullfield.errors import DataError, MissingExtraError, RunError
from fullfield.train.report import ReportImage, RunReport, write_report

VOID = {"meta", "link", "img", "br", "hr", "input"}
NAN = float("nan")


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # path of tag.class, text
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {[tag for tag, _ in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        path = "/".join(f"{tag}.{attrs.get('class') or ''}" for tag, attrs in self.open)
        if data.strip() and "style" not in path:
            self.texts.append((path, " ".join(data.split())))

    def text(self) -> str:
        return " ".join(text for _, text in self.texts)

    def within(self, *parts: str) -> list[str]:
        return [text for path, text in self.texts if all(part in path for part in parts)]

    def rows(self, table: str) -> list[list[str]]:
        """The cells of each body row of the table with that class, empty ones left out."""
        rows: list[list[str]] = []
        inside = False
        for path, text in self.texts:
            inside = f"table.{table}" in path and "tbody." in path
            if not inside:
                continue
            if "/th." in path:
                rows.append([])
            rows[-1].append(text)
        return rows


def render(report: RunReport, folder: Path) -> Page:
    return Page(write_report(report, folder / "report.html").read_text(encoding="utf-8"))


def photo(path: str = "photo.jpg", true: str = "cat", predicted: str = "cat", size: int = 200) -> ReportImage:
    return ReportImage(Path(path), true, predicted, 0.875, Image.new("RGB", (size, size // 2), "teal"))


def make_report(n: int = 3, epochs: int = 4, **changes: object) -> RunReport:
    generator = np.random.default_rng(n)
    confusion = generator.integers(0, 3, (n, n)) + np.diag(generator.integers(3, 12, n))
    history = [
        {
            "epoch": epoch,
            "lr": 1e-3,
            "train_loss": 2 / epoch,
            "val_loss": 2.5 / epoch,
            "val_top1": 1 - 1 / (epoch + 1),
            "val_top5": 1 - 1 / (epoch + 3),
            "images_per_s": 123.4,
            "seconds": 30.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    report = RunReport(
        title="racnn_pico on pets",
        command="fullfield train pets --model racnn_pico --epochs 4",
        config={"model": "racnn_pico", "epochs": epochs, "lr": 0.001, "resume": None},
        environment={"torch": "2.11.0", "device": "cpu"},
        history=history,
        classes=tuple(f"class_{i:03d}" for i in range(n)),
        split="test",
        confusion=confusion,
        metrics={
            "images": 1234.0,
            "top1": 0.8432,
            "top5": 0.9761,
            "mean_recall": 0.8127,
            "majority": 0.3115,
            "params": 6_020_000.0,
            "macs": 934_000_000.0,
        },
        best=[photo()],
        worst=[photo(predicted="dog")],
        unreadable=[],
        notes=[],
    )
    return replace(report, **changes)


@pytest.mark.parametrize("n", [1, 2, 7, 20, 21])
@pytest.mark.parametrize("epochs", [0, 1, 50])
def test_tags_are_balanced_for_any_number_of_classes_and_epochs(n: int, epochs: int, tmp_path: Path):
    page = render(make_report(n, epochs), tmp_path)
    assert [text for path, text in page.texts if path.endswith("h1.")] == ["racnn_pico on pets"]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_figures_appear_as_given(tmp_path: Path):
    page = render(make_report(n=7), tmp_path)
    text = page.text()
    assert "84.3 % top-1 accuracy on 1,234 held-out images of the test split" in text
    assert "most frequent class every time would be right for 31.1 %" in text
    cards = dict(zip(page.within("dl.cards", "/dt."), page.within("dl.cards", "/dd."), strict=True))
    assert cards == {
        "Top-5": "97.6 %",
        "Mean recall": "81.3 %",
        "Parameters": "6.02 M",
        "MACs per image": "934 M",
        "Epochs": "4",
        "Training time": "2 min 00 s",
    }
    assert "highest validation top-1 is 80.0 %, in epoch 4" in text
    assert page.within("pre.", "code.") == ["fullfield train pets --model racnn_pico --epochs 4"]
    assert page.within("table.settings")[:6] == ["model", "racnn_pico", "epochs", "4", "lr", "0.001"]


def test_missing_and_nan_figures_are_dashes(tmp_path: Path):
    page = render(make_report(n=7, epochs=0, metrics={"top1": NAN, "params": NAN}), tmp_path)
    assert "– top-1 accuracy on – held-out images" in page.text()
    assert "would be right for – ." in page.text()
    assert page.within("dl.cards", "/dd.") == ["–", "–", "–", "–", "0", "–"]
    assert page.text().count("No value was recorded.") == 2


def test_top5_is_not_shown_where_it_says_nothing(tmp_path: Path):
    page = render(make_report(n=5), tmp_path)
    assert "Top-5" not in page.within("dl.cards", "/dt.")
    assert "top-5" not in page.within("svg.")


def test_names_and_values_are_escaped(tmp_path: Path):
    hostile = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }} 日本 & 'quoted'")
    report = make_report(
        title=hostile[0],
        command=hostile[1],
        classes=hostile,
        config={hostile[0]: hostile[1]},
        environment={"device": hostile[1]},
        best=[photo(hostile[1], hostile[0], hostile[1])],
        worst=[ReportImage(Path("/absent/" + hostile[0]), hostile[1], hostile[0], 0.5)],
        unreadable=[(hostile[1], hostile[0])],
        notes=[hostile[1]],
        metrics={hostile[0]: 1.0},
    )
    page = render(report, tmp_path)
    assert not {"script", "iframe"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 1
    assert images[0]["alt"] == f"{hostile[0]}, predicted as {hostile[1]}"
    for name in hostile:
        assert name in page.within("table.matrix")
    assert hostile[0] in page.within("dl.cards", "/dt.")


@pytest.mark.parametrize("n", [4, 30])
def test_page_makes_no_request(n: int, tmp_path: Path):
    report = make_report(n)
    text = write_report(report, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    page = Page(text)
    targets = [
        (tag, value or "")
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    assert targets
    assert all(value.startswith(("data:", "#")) for _, value in targets)
    policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_matrix_shows_every_count(tmp_path: Path):
    report = make_report(n=12)
    rows = render(report, tmp_path).rows("matrix many")
    assert [row[0] for row in rows] == list(report.classes)
    assert [[int(cell) for cell in row[1:]] for row in rows] == report.confusion.tolist()


def test_many_classes_list_the_most_frequent_confusions(tmp_path: Path):
    report = make_report(n=25)
    report.confusion[3, 7] = 41
    report.confusion[24, 0] = 40
    page = render(report, tmp_path)
    cells = page.within("table.list pairs", "/td.")
    pairs = [(cells[i], cells[i + 1], int(cells[i + 2])) for i in range(0, len(cells), 3)]
    assert pairs[:2] == [("class_003", "class_007", 41), ("class_024", "class_000", 40)]
    off_diagonal = sorted((int(report.confusion[i, j]) for i in range(25) for j in range(25) if i != j), reverse=True)
    assert [count for _, _, count in pairs] == off_diagonal[:20]
    assert not page.rows("matrix many")


def test_recall_runs_from_worst_to_best_and_ends_with_classes_without_images(tmp_path: Path):
    confusion = np.array([[9, 1, 0, 0], [4, 5, 1, 0], [0, 0, 0, 0], [0, 0, 0, 20]])
    report = make_report(n=4, confusion=confusion, classes=("ant", "bee", "cow", "dog"))
    page = render(report, tmp_path)
    assert page.rows("list classes") == [
        ["bee", "10", "50.0 %", "ant", "× 4"],
        ["ant", "10", "90.0 %", "bee", "× 1"],
        ["dog", "20", "100.0 %"],
        ["cow", "0", "–"],
    ]


def test_a_run_without_mistakes_says_so(tmp_path: Path):
    for n in (2, 30):
        report = make_report(n, confusion=np.eye(n, dtype=np.int64), worst=[])
        assert "No image was misclassified." in render(report, tmp_path).text()
    nothing = make_report(2, confusion=np.zeros((2, 2), dtype=np.int64), best=[], worst=[])
    assert "No image was evaluated." in render(nothing, tmp_path).text()


def test_a_thousand_classes_stay_below_five_megabytes(tmp_path: Path):
    n = 1000
    classes = tuple(f"{i} " + "a long name " * 8 for i in range(n))
    confusion = np.random.default_rng(0).integers(0, 3, (n, n))
    report = make_report(n, epochs=300, classes=classes, confusion=confusion, best=[photo()] * 24)
    path = write_report(report, tmp_path / "report.html")
    assert path.stat().st_size < 5e6
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.rows("list classes")) == n


def test_nan_in_the_history_is_a_gap_and_is_named_in_the_table(tmp_path: Path):
    report = make_report(epochs=5)
    report.history[2]["val_loss"] = NAN
    report.history[3]["train_loss"] = float("inf")
    del report.history[4]["lr"]
    page = render(report, tmp_path)
    table = page.within("details.", "/td.")
    rows = [table[i : i + 8] for i in range(0, len(table), 8)]
    assert rows[2][3] == "nan"
    assert rows[3][2] == "inf"
    assert rows[4][1] == "–"
    assert rows[0] == ["1", "0.001", "2.0000", "2.5000", "50.0 %", "75.0 %", "123", "30.0 s"]


def test_thumbnails_are_small_jpegs_and_a_lost_image_has_a_placeholder(tmp_path: Path):
    Image.new("RGB", (900, 600), "navy").save(tmp_path / "large.png")
    shown = [
        ReportImage(tmp_path / "large.png", "cat", "cat", 0.9),
        ReportImage(tmp_path / "gone.png", "cat", "cat", 0.9999),
        photo(size=2),
        ReportImage(Path("thin.png"), "cat", "cat", 1.0, Image.new("RGBA", (1, 2000), "red")),
    ]
    page = render(make_report(best=shown, worst=[]), tmp_path)
    sizes = []
    for tag, attrs in page.tags:
        if tag == "img":
            kind, _, data = (attrs["src"] or "").partition(";base64,")
            assert kind == "data:image/jpeg"
            assert attrs["alt"]
            sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == [(128, 85), (2, 1), (1, 128)]
    assert page.within("div.missing") == ["cannot be read"]
    assert page.within("ul.gallery", "num") == ["90.0 %", "> 99.9 %", "87.5 %", "100.0 %"]


def test_unreadable_images_are_listed_and_a_long_list_is_counted(tmp_path: Path):
    bad = [(f"train/{i}.jpg", "is empty (0 bytes)") for i in range(1500)]
    page = render(make_report(unreadable=bad), tmp_path)
    listed = page.within("table.list files", "code.")
    assert listed == [name for name, _ in bad[:200]]
    assert "1,500 skipped in this run." in page.text()
    assert "and 1,300 more." in page.text()
    assert "could not be read" not in render(make_report(), tmp_path).text()


def test_file_names_that_are_not_utf8_can_be_reported(tmp_path: Path):
    page = render(make_report(unreadable=[("caf\udce9.jpg", "is empty")]), tmp_path)
    assert "caf\\udce9.jpg" in page.text()


def test_a_failure_while_rendering_leaves_the_old_report(tmp_path: Path):
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="no text"):
        write_report(make_report(config={"model": Broken()}), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, text: str, **options: str) -> int:
        self.write_bytes(text.encode()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "report.html"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match=r"disk is full.*report\.html"):
        write_report(make_report(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_report(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match=r"report\.html"):
        write_report(make_report(), tmp_path / "file" / "report.html")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[train\]'"):
        write_report(make_report(), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_matrix_of_another_size_than_the_classes_is_refused():
    with pytest.raises(DataError, match=r"\(3, 3\), but 2 classes need \(2, 2\)"):
        make_report(n=3, classes=("a", "b"))
