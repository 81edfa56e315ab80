"""A file that is no whole file of weights, or that would run code, is refused by name before anything is built."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fullfield
from fullfield.errors import CheckpointError
from fullfield.models.weight_file import read_state_dict

STATE = {"head.weight": torch.randn(3, 32), "head.bias": torch.zeros(3), "stem.weight": torch.randn(64, 3, 7, 7)}


def saved(tmp_path: Path, contents: Any, name: str = "official.pth") -> Path:
    torch.save(contents, tmp_path / name)
    return tmp_path / name


def refused(message: str, path: Path) -> None:
    """Assert that reading names the file and says what `message` matches."""
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # PyTorch's, on formats that it means to drop
@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)])
def test_tensors_that_are_not_dense_are_refused(tmp_path: Path, make: Callable[[Tensor], Tensor]) -> None:
    state = {**STATE, "head.weight": make(torch.ones(3, 32))}
    refused("sparse, quantised", saved(tmp_path, state))


# Files that are no weights


@pytest.mark.parametrize("kept", [3, 100, 0.5, 0.99])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float, legacy: bool) -> None:
    torch.save(STATE, tmp_path / "cut.pth", _use_new_zipfile_serialization=not legacy)
    content = (tmp_path / "cut.pth").read_bytes()
    size = int(kept * len(content)) if isinstance(kept, float) else kept
    (tmp_path / "cut.pth").write_bytes(content[:size])
    refused(rf"\({size:,} bytes\).*may be truncated", tmp_path / "cut.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>Google Drive - Virus scan warning</html>", "web page.*browser"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
        (b"these are not weights", "neither a whole PyTorch file nor safetensors"),
        (bytes(range(256)) * 9, "neither a whole PyTorch file nor safetensors"),
        (b"\x80\x02}q\x00.", "neither|no state dict"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    refused(message, tmp_path / "model.pth")


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as opened:
        opened.writestr("README.txt", "weights inside? no")
    refused("neither a whole PyTorch file", tmp_path / "model.pth")


@pytest.mark.parametrize("contents", [{"epoch": 3}, [torch.zeros(3)], torch.zeros(3), {}, {3: torch.zeros(3)}], ids=str)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, contents: Any) -> None:
    refused("has no state dict", saved(tmp_path, contents))


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    saved(tmp_path, STATE, "good.pth")
    refused("did you mean 'good.pth'", tmp_path / "goood.pth")
    refused("can't be read.*give a file of weights", tmp_path)
    with pytest.raises(CheckpointError, match="not a run with weights"):
        fullfield.load_weights("racnn_pico", tmp_path)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


class Shell:
    def __reduce__(self) -> Any:
        return (os.system, ("true",))


def test_code_in_a_file_is_not_run_and_named(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": STATE, "trap": Trap(tmp_path / "sprung")})
    refused(r"pathlib\.Path would have to be run.*nothing from a file is executed.*torch.save", path)
    assert not (tmp_path / "sprung").exists()
    refused(r"posix\.system|nt\.system", saved(tmp_path, {"model": STATE, "trap": Shell()}))
    refused(r"torch\.nn\.modules.*would have to be run", saved(tmp_path, {"model": nn.Linear(2, 3)}))


def test_even_a_stand_in_hides_no_code(tmp_path: Path) -> None:
    class Hidden:
        def __reduce__(self) -> Any:
            return (getattr, (Path(tmp_path), "touch"))  # `getattr` is an inert stand-in when a file asks for it

    assert read_state_dict(saved(tmp_path, {"model": STATE, "x": Hidden()})).tensors.keys() == STATE.keys()


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 3)).save(str(tmp_path / "model.pt"))
    refused("TorchScript", tmp_path / "model.pt")
