"""Every recipe is one that the trainer takes: it parses, its net can be built, and its header says what is true."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

import fullfield
from fullfield.cli import train as cli
from fullfield.errors import ConfigError
from fullfield.measure import cost
from fullfield.measure.compare_dense import compare_dense
from fullfield.train.kinds import kind_of
from fullfield.train.settings import TrainSettings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
HEADINGS = ("Settings", "Cost", "Expected", "Command")
TRAIN_IMAGES = 1_281_167  # of ImageNet-1K
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def header(path: Path) -> dict[str, str]:
    """Return the comment lines at the top of a recipe by their heading; the first line is the title."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#"))
    parts = {"Title": lines[0].strip()}
    for line in lines[1:]:
        heading, colon, text = line.strip().partition(": ")
        if line.startswith("   "):
            parts[list(parts)[-1]] += " " + line.strip()
        else:
            assert colon, line
            parts[heading] = text
    return parts


def settings(path: Path) -> TrainSettings:
    return TrainSettings.from_yaml(path, data="DATA")


def classes(path: Path) -> int:
    return {"cifar10": 10, "cifar100": 100}.get(path.stem, 1000)


@cache
def macs(model: str, image_size: int | None, num_classes: int, arguments: tuple[str, ...]) -> int:
    read = TrainSettings(data="DATA", model_args=arguments).model_arguments()
    return cost(model, image_size=image_size, num_classes=num_classes, **read).macs


@cache
def dense_macs(
    task: str, model: str, head: str, arguments: tuple[str, ...], classes: int, size: tuple[int, int]
) -> int:
    """Return the MACs of a whole detector or segmenter; it is built from the settings, head and all."""
    read = TrainSettings(data="DATA", head_args=arguments).head_arguments()
    found = compare_dense(
        [model], task, head=head, head_arguments=read, num_classes=classes, sizes=[size], timed=False, device="cpu"
    )
    assert not found.not_measured
    return found.models[0].costs[0].macs


def counted_macs(path: Path) -> int:
    read = settings(path)
    assert read.model is not None
    assert read.image_size is not None
    if read.task == "auto":
        return macs(read.model, read.image_size, classes(path), read.model_args)
    assert read.head is not None
    assert not read.model_args
    many = {"coco": 80, "ade20k": 150, "cityscapes": 19}[path.stem.partition("_")[0]]
    size = (read.image_size, read.long_side or read.image_size)
    return dense_macs(read.task, read.model, read.head, read.head_args, many, size)


@every_recipe
def test_header_has_title_source_cost_expectation_and_command(path: Path) -> None:
    parts = header(path)
    assert tuple(parts) == ("Title", *HEADINGS)
    assert all(parts.values())
    assert "figure" in parts["Expected"]


@every_recipe
def test_settings_are_taken_as_written_and_data_and_machine_are_left_to_the_command(path: Path) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert not {"data", "out", "seed", "device", "devices"} & set(written)
    read = settings(path)
    for name, value in written.items():
        told = getattr(read, name)
        assert told == (tuple(value) if isinstance(value, list) else value), name


@every_recipe
def test_command_of_the_header_trains_with_this_recipe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = header(path)["Command"].partition(" (")[0]
    program, subcommand, *rest = shlex.split(command)
    assert (program, subcommand, rest[:3]) == ("fullfield", "train", ["DATA", "--config", f"recipes/{path.name}"])
    seen: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(fullfield, "train", lambda **given: seen.update(given))
    assert cli.run(rest) == 0
    given = {"weights": "RUN"} if "--weights" in rest else {}
    assert vars(seen["settings"]) == vars(settings(path)) | given


@every_recipe
def test_settings_are_those_of_the_recipes_task(path: Path) -> None:
    read = settings(path)
    kind_of("classify" if read.task == "auto" else read.task).check_settings(read)


@every_recipe
def test_net_can_be_built_and_its_macs_are_those_of_the_header(path: Path) -> None:
    number, unit = re.findall(r"^([\d.]+) ([GM])MACs x ", header(path)["Cost"])[0]
    assert float(number) == round(counted_macs(path) / {"G": 1e9, "M": 1e6}[unit], 3)


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if settings(path).task != "auto"], ids=lambda path: path.stem
)
def test_epochs_of_dense_recipes_are_the_published_schedules(path: Path) -> None:
    read, parts = settings(path), header(path)
    assert "not run at full scale" in parts["Expected"]
    images = int(re.findall(r"x ([\d,]+) images", parts["Cost"])[0].replace(",", ""))
    assert images == {"coco": 118_287, "ade20k": 20_210, "cityscapes": 2_975}[path.stem.partition("_")[0]]
    if read.task == "detect":
        assert read.epochs == 12 * int(re.findall(r"_(\d)x_", path.stem)[0])
        return
    steps, batch = (int(n.replace(",", "")) for n in re.findall(r", ([\d,]+) steps of (\d+) at", parts["Title"])[0])
    assert read.epochs == round(steps * batch / images)


def test_setting_of_another_task_is_refused() -> None:
    read = TrainSettings.from_yaml(FOLDER / "ade20k_upernet_racnn_tiny.yaml", data="DATA", mixup=0.8)
    with pytest.raises(ConfigError, match="--mixup means nothing for --task segment"):
        kind_of("segment").check_settings(read)


@every_recipe
def test_epochs_of_the_header_are_those_of_the_settings(path: Path) -> None:
    assert f"x {settings(path).epochs} epochs" in header(path)["Cost"]


@every_recipe
def test_weights_that_are_fetched_exist(path: Path) -> None:
    read = settings(path)
    for name in filter(None, (read.model if read.pretrained else None, read.teacher)):
        assert name in timm.list_pretrained(name.partition(".")[0] + ".*")


def test_gpu_hours_are_the_estimate_of_the_page() -> None:
    speed = 3037
    assert f"({speed} images/s" in PAGE
    for path in (path for path in RECIPES if "1,281,167 images" in header(path)["Cost"]):
        told = re.search(r"About (\d+) GPU-hours \(an estimate, see README.md\)", header(path)["Cost"])
        assert told is not None
        read = settings(path)
        assert read.model is not None
        assert read.epochs is not None
        forward = 3 * macs(read.model, read.image_size, 1000, ())
        if read.teacher is not None:
            forward += macs(read.teacher, read.image_size, 1000, ())
        hours = TRAIN_IMAGES * read.epochs / speed / 3600 * forward / macs("racnn_tiny", 224, 1000, ())
        assert int(told[1]) == pytest.approx(hours, abs=0.51), path.name


def test_page_lists_every_recipe_with_its_net_and_epochs() -> None:
    rows = {
        name: [cell.strip(" `") for cell in cells.split("|")]
        for name, cells in re.findall(r"^\| \[(\w+\.yaml)\]\(\1\) \|(.*)\|$", PAGE, re.MULTILINE)
    }
    assert sorted(rows) == [path.name for path in RECIPES]
    for path in RECIPES:
        read = settings(path)
        net, size, epochs = rows[path.name][1:4]
        assert (net, int(size), int(epochs)) == (str(read.model).partition(".")[0], read.image_size, read.epochs)


def test_commands_of_the_page_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = re.findall(r"^\$ fullfield train (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 3
    seen: list[TrainSettings] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(fullfield, "train", lambda *, settings: seen.append(settings))
    for command in commands:
        cli.run(shlex.split(command.replace("fullfield-VERSION/", "")))
    assert [(used.devices, used.accumulate) for used in seen] == [(1, 1), (1, 1), (8, 2)]


def test_links_of_the_page_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("size", ["nano", "tiny", "small", "base"])
def test_sizes_differ_in_nothing_but_the_net_and_its_stochastic_depth(size: str) -> None:
    pico, other = (vars(settings(FOLDER / f"imagenet1k_racnn_{name}.yaml")) for name in ("pico", size))
    assert {name for name in pico if pico[name] != other[name]} <= {"model", "drop_path"}
    assert other["model"] == f"racnn_{size}"


def test_misspelt_setting_in_a_recipe_is_refused_with_the_right_name(tmp_path: Path) -> None:
    text = (FOLDER / "cifar10.yaml").read_text(encoding="utf-8").replace("label_smoothing:", "label_smooting:")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml.*label_smooting.*label_smoothing"):
        settings(tmp_path / "mine.yaml")
