"""The models of a page: their names, what they give, and what is said of those that can't be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from fullfield.app.shelf import Shelf, Shelved
from fullfield.errors import CheckpointError, ConfigError


class Answering:
    """Stands for the predictor of an exported file."""

    name = "racnn_pico"

    def close(self) -> None:
        pass


def test_labels_name_the_net_and_the_last_part_of_the_path_and_no_folder(shelf: Shelf) -> None:
    assert shelf.labels == [
        "racnn_pico (classify.safetensors)",
        "fcos racnn_pico (detect.safetensors)",
        "upernet racnn_pico (segment.safetensors)",
    ]
    assert [shelf[label].predictor.task for label in shelf.labels] == ["classify", "detect", "segment"]


def test_models_of_one_name_get_labels_of_their_own(weights: dict[str, Path], tmp_path: Path) -> None:
    twin = tmp_path / "classify.safetensors"
    twin.write_bytes(weights["classify"].read_bytes())
    found = Shelf([weights["classify"], twin], device="cpu")
    assert found.labels == ["racnn_pico (classify.safetensors)", "racnn_pico (classify.safetensors) 2"]


def test_page_without_a_model_or_with_one_twice_is_refused(weights: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="name at least one model"):
        Shelf([])
    with pytest.raises(ConfigError, match=r"classify\.safetensors is named twice"):
        Shelf([weights["classify"], str(weights["classify"])])


def test_wrong_path_ends_the_start_and_not_a_click(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing"):
        Shelf([tmp_path / "nothing.safetensors"])


def test_label_that_the_page_does_not_have_is_told(shelf: Shelf) -> None:
    for label in ("another", None, 3, ["a list"]):
        with pytest.raises(ConfigError, match="load the page again"):
            shelf[label]


def test_net_is_opened_once_and_is_that_of_the_file(shelf: Shelf) -> None:
    label = shelf.labels[0]
    net = shelf.net(label, "maps")
    assert net.classes == shelf[label].predictor.classes
    assert shelf.net(label, "maps") is net


def test_exported_file_has_no_net_and_says_what_to_do(
    weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fullfield.app.shelf.Predictor", lambda *_, **__: Answering())
    found = Shelf(["folder/pico.onnx", weights["classify"]])
    assert found.labels[0] == "racnn_pico (pico.onnx)"
    assert found.with_net == found.labels[1:]
    with pytest.raises(ConfigError, match=r"exported file.*For fields start the page with the run"):
        found.net(found.labels[0], "fields")


def test_pretrained_weights_are_asked_for_only_where_a_name_may_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def opened(source: str, *, pretrained: bool, **_: object) -> Answering:
        asked.append((source, pretrained))
        return Answering()

    monkeypatch.setattr("fullfield.app.shelf.Predictor", opened)
    Shelf(["pico.onnx", "resnet18"], pretrained=True)
    assert asked == [("pico.onnx", False), ("resnet18", True)]


def test_report_is_found_from_the_run_and_from_its_weights(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    best = tmp_path / "checkpoints" / "best.safetensors"
    assert Shelved("a", str(tmp_path), Answering()).report is None  # type: ignore[arg-type]
    (tmp_path / "report.html").write_text("")
    for source in (tmp_path, best):
        assert Shelved("a", str(source), Answering()).report == tmp_path / "report.html"  # type: ignore[arg-type]
