"""What README.md and docs/ tell the user to type works: commands parse, Python runs, files and targets exist."""

import csv
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from fullfield.cli import main
from fullfield.cli import train as train_cli
from fullfield.cli.parse import parse
from fullfield.measure import cost
from fullfield.train.settings import TrainSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md", "studies/cifar10/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMANDS = sorted(
    {
        line.removeprefix("$ ")
        for page in PAGES
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("$ fullfield")
    }
)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ARGUMENTS = {
    command: getattr(
        import_module(f"fullfield.cli.{'evaluate' if command == 'eval' else command}"),
        f"{command.capitalize()}Arguments",
    )
    for command in main.COMMANDS
}


def without_run_and_recipe(arguments):
    """Return the arguments of `fullfield train` without a run to resume, which isn't there, and a recipe, which is."""
    resumed, arguments = train_cli._take(arguments, "--resume")
    _, arguments = train_cli._take_list(arguments, "--allow-change")
    recipe, arguments = train_cli._take(arguments, "--config")
    if recipe is not None and "VERSION" not in recipe:
        assert (ROOT / recipe).is_file()
    if resumed is not None and (not arguments or arguments[0].startswith("-")):
        arguments = ["PHOTOS", *arguments]
    return arguments


@pytest.mark.parametrize("line", COMMANDS)
def test_every_fullfield_command_of_the_pages_parses(line):
    _, command, *rest = shlex.split(line, comments=True)
    assert command in main.COMMANDS
    if command == "train":
        rest = without_run_and_recipe(rest)
    parse(ARGUMENTS[command], command, rest)


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets


def test_backbone_example_of_the_readme_runs():
    code = next(block for block in PYTHON if "features_only" in block)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert [tuple(m.shape[2:]) for m in names["maps"]] == [(50, 84), (25, 42), (13, 21), (7, 11)]


def test_training_example_of_the_readme_calls_what_exists(monkeypatch, tmp_path):
    code = next(block for block in PYTHON if "fullfield.train(" in block)
    seen = {}

    class Result:
        class evaluation:  # noqa: N801
            class result:  # noqa: N801
                top1 = 1.0

        report = tmp_path

    def fake_train(data, **options):
        seen["settings"] = TrainSettings(data=data, **options)
        return Result

    monkeypatch.setattr("fullfield.train.run.train", fake_train)
    monkeypatch.setattr("fullfield.tasks.predict_any.predict_any", lambda *_: [])
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert seen["settings"].epochs == 10


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_of_the_pages_lead_to_files(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "models" / "racnn.md"], ids=lambda p: p.name)
def test_parameters_and_macs_in_the_tables_are_the_counted_ones(page):
    text = page.read_text(encoding="utf-8").partition("## Speed")[0]
    rows = re.findall(r"^\| `(racnn_\w+)` \|(.*)\|$", text, re.MULTILINE)
    assert rows
    for name, cells in rows:
        numbers = [float(n) for n in re.findall(r"(?<![\d.])\d+\.\d+(?![\d.]| %)", cells)]
        counted = cost(name)
        assert numbers[:2] == [round(counted.params / 1e6, 2), round(counted.macs / 1e9, 3)], name


def test_speeds_in_the_readme_are_the_stored_ones():
    with (ROOT / "benchmarks" / "results" / "racnn_cpu.csv").open(newline="", encoding="utf-8") as file:
        stored = {(row["model"], row["mode"]): row for row in csv.DictReader(file)}
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", README.partition("## Speed")[2], re.MULTILINE)
    assert len(rows) == 4
    for name, cells in rows:
        forward, training = stored[name, "forward"], stored[name, "training step"]
        told = [float(cell.removesuffix("×")) for cell in cells.replace(" ", "").split("|")]
        expected = [
            round(float(forward["images_per_s"]), 1),
            round(float(training["images_per_s"]), 1),
            float(forward["speed_of_racnn_tiny_to_it"]),
            float(training["speed_of_racnn_tiny_to_it"]),
            float(forward["per_mac"]),
        ]
        assert told == pytest.approx(expected, abs=0.0051), name
