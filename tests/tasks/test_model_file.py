"""Models that users define in files of their own, and everything that can be wrong with such a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fullfield.errors import ConfigError, ModelNotFoundError
from fullfield.tasks.model_file import is_model_file, load_model_file

SOURCE = """
from __future__ import annotations

from dataclasses import dataclass

from torch import nn

import neighbour_of_net


@dataclass
class Widths:  # dataclasses look their module up in sys.modules
    first: int = neighbour_of_net.WIDTH


class Net(nn.Sequential):
    def __init__(self, width: int = Widths().first) -> None:
        super().__init__(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()


def build():
    import second_neighbour  # found when the factory is called, too

    return Net(second_neighbour.WIDTH)


def number():
    return 7


def misnamed():
    import fullfield

    return fullfield.create_model("racnn_tinny")


def fails():
    return [][1]


def leaves():
    raise SystemExit("enough")


made = Net(5)
"""
LINE = SOURCE.splitlines().index("    return [][1]") + 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour_of_net.py").write_text("WIDTH = 6\n")
    (tmp_path / "second_neighbour.py").write_text("WIDTH = 8\n")
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path / "net.py"


@pytest.mark.parametrize(("name", "width"), [("build", 8), ("Net", 6), ("made", 5)], ids=["function", "class", "made"])
def test_a_function_a_class_and_a_module_give_the_model_in_eval_mode(file: Path, name: str, width: int) -> None:
    path = list(sys.path)
    model = load_model_file(f"{file}:{name}")
    assert type(model).__name__ == "Net"
    assert not any(module.training for module in model.modules())
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, width, 6, 6)
    assert sys.path == path


def test_a_path_from_the_working_folder_and_a_path_object_are_taken(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert isinstance(load_model_file("net.py:build"), nn.Sequential)
    assert isinstance(load_model_file(Path("net.py:build")), nn.Sequential)


def test_two_files_of_one_name_do_not_meet_and_an_edited_file_is_read_again(tmp_path: Path) -> None:
    for folder, width in (("a", 3), ("b", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "torch.py").write_text(f"from torch.nn import Linear\nmade = Linear(1, {width})\n")
    widths = [load_model_file(tmp_path / folder / "torch.py:made").out_features for folder in ("a", "b")]
    assert widths == [3, 4]
    assert sys.modules["torch"] is torch
    (tmp_path / "a" / "torch.py").write_text("from torch import nn\nmade = nn.Linear(1, 1234)\n")
    assert load_model_file(tmp_path / "a" / "torch.py:made").out_features == 1234


def test_copies_of_an_experiment_have_neighbours_of_their_own(tmp_path: Path) -> None:
    for folder, width in (("a", 3), ("b", 4)):
        (tmp_path / folder / "parts").mkdir(parents=True)
        (tmp_path / folder / "parts" / "__init__.py").write_text("from parts.sizes import WIDTH\n")
        (tmp_path / folder / "parts" / "sizes.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "net.py").write_text(
            "from parts import WIDTH\nfrom torch import nn\nmade = nn.Linear(1, WIDTH)"
        )
    assert [load_model_file(tmp_path / folder / "net.py:made").out_features for folder in "aba"] == [3, 4, 3]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("net.py:build", True),
        (Path("a/net.py:build"), True),
        ("a/net.py", True),
        (r"C:\nets\net.py:Net", True),
        ("racnn_tiny", False),
        ("resnet50.a1_in1k", False),
        ("runs/net.py:build/checkpoints", False),
        ("weights.safetensors", False),
        (nn.Identity(), False),
        (None, False),
    ],
    ids=str,
)
def test_the_form_tells_a_file_from_names_and_runs(source: object, expected: bool) -> None:
    assert is_model_file(source) is expected


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("biuld", r"net\.py has no 'biuld'; did you mean 'build'\?; it defines Net, Wide, build, .*made"),
        ("", r"say what makes the model, as in .*net\.py:Net; it defines"),
        ("Wide", r"needs arguments \(missing a required argument: 'width'\); add a function without any"),
        ("number", r"net\.py:number gives int; it must give a torch\.nn\.Module"),
        ("__name__", "is str; it must be a function, a class or a module"),
        ("fails", rf"net\.py, line {LINE}, called as fails\(\): IndexError: list index out of range"),
        ("leaves", r"called as leaves\(\): SystemExit: enough"),
    ],
)
def test_a_name_that_gives_no_model_is_refused(file: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_model_file(f"{file}:{name}")


def test_errors_of_fullfield_come_through_as_they_are(file: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="'racnn_tiny'"):
        load_model_file(f"{file}:misnamed")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\ny = 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("x = (\n", r"line 1: SyntaxError: '\(' was never closed"),
        ("import nothing_of_this_name\n", "line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("raise SystemExit\n", "line 1: SystemExit"),
        ("", "it defines no function, class or module"),
        ("\xff\n", "SyntaxError"),
    ],
    ids=["fails", "syntax", "import", "leaves", "empty", "encoding"],
)
def test_a_file_that_fails_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text, encoding="latin-1")
    known = set(sys.modules)
    with pytest.raises(ConfigError, match=rf"broken\.py.*{says}"):
        load_model_file(f"{file}:build")
    assert not [name for name in set(sys.modules) - known if name.endswith("broken") and text]


def test_a_file_that_is_not_there_names_the_nearest(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*nett\.py; did you mean 'net\.py'"):
        load_model_file(file.with_name("nett.py:build"))
    with pytest.raises(ConfigError, match=r"there is no file nowhere/net\.py"):
        load_model_file("nowhere/net.py:build")
    with pytest.raises(ConfigError, match=r"'racnn_tiny' is no model in a file; name it as path/to/file\.py:factory"):
        load_model_file("racnn_tiny")
