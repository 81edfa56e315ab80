"""The model card: what its YAML says as huggingface_hub reads it, what its text says, and what hostile names become."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import fullfield
from fullfield.deploy.hub import from_pretrained, save_pretrained
from fullfield.deploy.model_card import config_json, model_card
from fullfield.deploy.shared_facts import FIGURES, Evaluated, SharedFacts, read_facts
from fullfield.measure import cost
from fullfield.tasks.open import open_any

PIPELINES = {"classify": "image-classification", "detect": "object-detection", "segment": "image-segmentation"}


def facts(task: str = "classify", **more: Any) -> SharedFacts:
    values: dict[str, Any] = {
        "task": task,
        "name": "racnn_pico" if task == "classify" else "head racnn_pico",
        "architecture": "racnn_pico",
        "arguments": {"in_chans": 3},
        "form": "training",
        "classes": ("cat", "dog"),
        "preprocess": {
            "image_size": 64,
            "crop_share": 1,
            "mean": [0],
            "std": [1],
            "interpolation": "bicubic",
            "channels": 3,
        },
        "params": 6_010_000,
        "macs": 928_000_000,
        "macs_size": (3, 64, 96),
        "evaluated": Evaluated("test", 72, dict.fromkeys(FIGURES[task], 0.125), {"cat": 0.75, "dog": 0.25}),
        "settings": {"epochs": 3, "lr": 5e-3, "mixup": 0.0, "hflip": True, "repeats": 1},
        "head": "" if task == "classify" else "head",
    }
    return SharedFacts(**values | more)


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_the_hub_reads_library_task_and_figures_from_the_cards_head(task: str) -> None:
    card = ModelCard(model_card(facts(task), "anna/cells", license="mit", data="my photos"))
    data = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("fullfield", "mit", PIPELINES[task])
    assert {"fullfield", "racnn_pico"} <= set(data.tags)
    assert data.model_name == "cells"
    assert {result.metric_value for result in data.eval_results} == {0.125}
    assert {(r.task_type, r.dataset_name, r.dataset_split) for r in data.eval_results} == {
        (PIPELINES[task], "my photos", "test")
    }


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_a_card_has_every_section_and_the_figures_of_its_task(task: str) -> None:
    text = model_card(facts(task), "anna/cells")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sections == ["Use", "Classes", "Training", "Figures", "Size", "Limits", "Licence"]
    assert "72 images" in text
    assert "6.01 M parameters, 0.928 G MACs" in text
    assert "3×64×96" in text
    assert text.count("12.5%") == len(FIGURES[task]) - ("loss" in FIGURES[task])
    assert text.index("| dog | 25.0% |") < text.index("| cat | 75.0% |")
    assert "| `epochs` | 3 |" in text
    assert "mixup" not in text
    assert "repeats" not in text


def test_what_only_the_author_knows_is_left_to_fill_in() -> None:
    text = model_card(facts(), "anna/cells")
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "unknown"
    assert text.count("o be filled in by the author") == 3  # data, purpose, licence
    assert "Trained on the sample blood\\_cells" in model_card(facts(data="blood_cells"), "anna/cells")


def test_without_figures_none_are_claimed() -> None:
    text = model_card(facts(evaluated=None), "anna/cells")
    assert "## Figures\n\nNone were measured." in text
    assert "model-index" not in text


def test_names_of_classes_are_text_and_nothing_else() -> None:
    hostile = (
        "</td><script>alert(1)</script>",
        "a | b",
        "line\nbreak\n## Title",
        "[x](http://e.vil)",
        "`c`",
        "---\nx: 1",
    )
    evaluated = Evaluated("val", 3, {"top1": 1.0}, dict.fromkeys(hostile, 0.5))
    text = model_card(facts(classes=hostile, evaluated=evaluated), "anna/cells", data="--- <b>\n# me")
    body = ModelCard(text).text
    assert "<script>" not in body.replace("\\<", "")
    assert re.search(r"(?<!\\)[<\[]", body.partition("## Classes")[2]) is None
    assert len(re.findall(r"^## ", body, re.MULTILINE)) == 7
    for row in re.findall(r"^\|.*$", body, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) == 3, row
    assert ModelCard(text).data.eval_results[0].dataset_name == "--- <b>\n# me"


def test_of_a_thousand_classes_fifty_are_listed_and_config_has_all() -> None:
    classes = tuple(f"class{number}" for number in range(1000))
    many = facts(classes=classes, evaluated=None)
    text = model_card(many, "anna/cells")
    assert "class49, and 950 more in config.json." in text
    assert config_json(many)["label_names"] == list(classes)


def test_the_facts_of_a_run_are_those_of_its_own_files(finished: Path) -> None:
    found = read_facts(finished)
    written = json.loads((finished / "evaluation" / "evaluation.json").read_text())
    assert found.evaluated is not None
    assert found.evaluated.split == written["split"]
    assert found.evaluated.images == sum(map(sum, written["confusion"]))
    assert found.evaluated.figures["top1"] == written["top1"]
    assert found.evaluated.per_class == written["recall"]
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert {name: config[name] for name in found.settings} == found.settings
    assert (found.settings["epochs"], found.settings["seed"]) == (3, 0)
    assert found.started_from == "random weights"
    counted = cost(open_any(finished, device="cpu").model, image_size=32)
    assert (found.params, found.macs, found.macs_size) == (counted.params, counted.macs, (3, 32, 32))


def test_a_setting_that_is_a_path_is_not_told(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"precision": "/home/anna/bf16", "lr_rule": "a b", "weights": "/home/anna/best.safetensors", "ema": ["x"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = read_facts(run)
    assert not {"precision", "lr_rule", "weights", "ema"} & found.settings.keys()
    assert found.started_from == "other weights"


@pytest.mark.parametrize(
    "damaged", ["", "[]", '{"split": "/home/anna", "top1": 1}', '{"split": "val", "confusion": 3}']
)
def test_a_damaged_evaluation_leaves_the_trainers_own_figure(finished: Path, tmp_path: Path, damaged: str) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "evaluation" / "evaluation.json").write_text(damaged)
    found = read_facts(run).evaluated
    assert found is not None
    assert (found.split, list(found.figures)) == ("val", ["top1"])
    assert found.images == 6


def test_the_cards_example_runs(finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pretrained(finished, tmp_path / "shared", repository="anna/cells")
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line]) <= 5
    shutil.copy(next(photos.rglob("*.jpg")), tmp_path / "photo.jpg")
    shutil.copytree(folder, tmp_path / "anna" / "cells")  # a folder of that name is taken before the Hub
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fullfield, "from_pretrained", from_pretrained, raising=False)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - ours
