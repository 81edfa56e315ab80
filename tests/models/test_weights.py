"""Every file that is not a whole Fullfield checkpoint is refused by name, and a failed save costs nothing."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fullfield
from fullfield.errors import CheckpointError, FullfieldError, RunError
from fullfield.models import weights

SMALL: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_classes": 3}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save a small model."""
    return fullfield.save(fullfield.create_model("racnn_pico", **SMALL), tmp_path / "good.safetensors")


def rewrite(
    file: Path, *, header: Callable[[Any], Any] = lambda h: h, tensors: Callable[[dict[str, Tensor]], Any] = dict
) -> Path:
    """Write a copy of a checkpoint with its header and its tensors changed."""
    with safe_open(file, framework="pt") as opened:
        old = json.loads(opened.metadata()["fullfield"])
    other = file.with_name("other.safetensors")
    save_file(dict(tensors(load_file(file))), other, {"format": "pt", "fullfield": json.dumps(header(old))})
    return other


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(file: Path, message: str, **arguments: Any) -> None:
    """Assert that loading names the file and says what `message` matches."""
    with pytest.raises(CheckpointError, match=message) as caught:
        fullfield.load(file, **arguments)
    assert str(file) in str(caught.value)
    assert isinstance(caught.value, FullfieldError)


# Files that are no checkpoints


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved: Path, kept: float) -> None:
    content = saved.read_bytes()
    size = int(kept * len(content)) if isinstance(kept, float) else kept
    refused(write(saved.with_name("cut.safetensors"), content[:size]), rf"\({size:,} bytes\).*may be truncated")


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "notes.safetensors", b"these are not weights\n" * 9), "not a whole safetensors file")


def test_a_pickled_file_is_refused_without_being_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": {"weight": torch.zeros(3)}, "trap": Trap()}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "of another format")
    assert not (tmp_path / "sprung").exists()


def test_weights_without_our_header_are_refused_with_another_way(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    refused(tmp_path / "foreign.safetensors", "not written by Fullfield.*load_state_dict")


def test_a_header_that_is_not_json_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "odd.safetensors", {"fullfield": "{not json"})
    refused(tmp_path / "odd.safetensors", "header is incomplete")


@pytest.mark.parametrize(
    "header", [{}, {"name": "racnn_pico"}, [], 3, {"name": "racnn_pico", "arguments": 3}, {"arguments": {}}], ids=str
)
def test_an_incomplete_header_is_refused(saved: Path, header: Any) -> None:
    refused(rewrite(saved, header=lambda _: header), "header is incomplete")


# Headers that ask for what they must not


def test_an_unknown_model_names_the_nearest(saved: Path) -> None:
    file = rewrite(saved, header=lambda h: {**h, "name": "racnn_picco"})
    refused(file, "'racnn_picco', which is not registered; did you mean 'racnn_pico'")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:elsewhere"])
def test_a_model_from_elsewhere_is_not_fetched(saved: Path, name: str) -> None:
    refused(rewrite(saved, header=lambda h: {**h, "name": name}), "not registered")


@pytest.mark.parametrize(
    "argument",
    ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "device", "dtype"],
)
def test_an_argument_that_would_fetch_or_unpickle_is_refused(saved: Path, argument: str) -> None:
    file = rewrite(saved, header=lambda h: {**h, "arguments": {**h["arguments"], argument: "evil.pth"}})
    refused(file, f"sets {argument}, which no checkpoint may")


@pytest.mark.parametrize("change", [{"regions": 7}, {"heads": 3}, {"num_classes": "many"}, {"dims": [8]}], ids=str)
def test_arguments_that_build_nothing_are_refused(saved: Path, change: dict[str, Any]) -> None:
    refused(rewrite(saved, header=lambda h: {**h, "arguments": h["arguments"] | change}), "racnn_pico can't be built")


# Tensors that do not fit


def test_missing_and_unknown_tensors_are_named(saved: Path) -> None:
    file = rewrite(saved, tensors=lambda t: {k.replace("stem.0", "trunk.0"): v for k, v in t.items()})
    refused(file, r"missing \(stem\.0\..*unknown \(trunk\.0\.")


def test_a_tensor_of_another_shape_is_named(saved: Path) -> None:
    file = rewrite(saved, tensors=lambda t: {**t, "head.fc.weight": torch.zeros(3, 31)})
    refused(file, r"1 of another shape \(head\.fc\.weight\)")


def test_weights_of_another_variant_are_refused(saved: Path) -> None:
    refused(rewrite(saved, header=lambda h: {**h, "arguments": {"num_classes": 3}}), "does not fit its model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved: Path, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["head.fc.bias"][1] = value
        return tensors

    refused(rewrite(saved, tensors=spoil), "not finite")


# Classes


def test_another_number_of_classes_is_refused_with_the_way_out(saved: Path) -> None:
    refused(saved, r"has 3 classes, 5 are needed.*reset_classifier=True", num_classes=5)


def test_a_new_classifier_stands_on_the_file_s_features(saved: Path) -> None:
    x = torch.randn(2, 3, 32, 32)
    old, new = fullfield.load(saved), fullfield.load(saved, num_classes=5, reset_classifier=True)
    assert new(x).shape == (2, 5)
    assert torch.equal(new.forward_features(x), old.forward_features(x))
    same = fullfield.load(saved, num_classes=3, reset_classifier=True)
    assert torch.equal(same(x), old(x))


# Finding files


def test_a_missing_file_names_the_nearest_beside_it(saved: Path) -> None:
    refused(saved.with_name("goood.safetensors"), "no checkpoint or run folder.*did you mean 'good.safetensors'")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere" / "model.safetensors", "no checkpoint or run folder")


def test_a_run_folder_without_weights_says_what_a_run_has(tmp_path: Path) -> None:
    refused(tmp_path, "not a run with weights.*best.safetensors")


def test_a_run_folder_gives_its_best_weights_or_else_its_last(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    model = fullfield.create_model("racnn_pico", **SMALL)
    last = fullfield.save(model, tmp_path / "checkpoints" / "last.safetensors")
    assert weights.find_weights(tmp_path) == last
    best = fullfield.save(model, tmp_path / "checkpoints" / "best.safetensors")
    assert weights.find_weights(tmp_path) == best
    assert weights.load_checkpoint(tmp_path).path == best


# Saving


def test_a_module_of_unknown_making_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Linear can't be saved.*create_model"):
        fullfield.save(nn.Linear(2, 3), tmp_path / "model.safetensors")
    pruned = fullfield.create_model("racnn_pico", **SMALL)
    pruned.prune_intermediate_layers([0, 1])
    with pytest.raises(CheckpointError, match="prune"):
        fullfield.save(pruned, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="plain JSON"):
        fullfield.save(fullfield.create_model("racnn_pico", **SMALL), tmp_path / "m.safetensors", {"x": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [{"features_only": True, "out_indices": (1, 3)}, {"global_pool": "max"}], ids=str)
def test_models_made_with_other_arguments_come_back(tmp_path: Path, arguments: dict[str, Any]) -> None:
    small = {k: v for k, v in SMALL.items() if k != "num_classes"}
    model, x = fullfield.create_model("racnn_pico", **small, **arguments).eval(), torch.randn(1, 3, 32, 32)
    again = fullfield.load(fullfield.save(model, tmp_path / "model.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(again(x), model(x), strict=True))


def test_a_model_of_timm_comes_back(tmp_path: Path) -> None:
    model, x = fullfield.create_model("resnet18", num_classes=3).eval(), torch.randn(1, 3, 32, 32)
    assert torch.equal(fullfield.load(fullfield.save(model, tmp_path / "model.safetensors"))(x), model(x))


def test_weights_in_channels_last_come_back(tmp_path: Path) -> None:
    model, x = fullfield.create_model("racnn_pico", **SMALL).eval(), torch.randn(1, 3, 32, 32)
    y = model(x)
    model.to(memory_format=torch.channels_last)
    assert torch.equal(fullfield.load(fullfield.save(model, tmp_path / "model.safetensors"))(x), y)


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(_tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half of a che")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(RunError, match=rf"disk is full, {saved}.*previous version is intact"):
        fullfield.save(fullfield.create_model("racnn_pico", **SMALL), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere"):
        fullfield.save(fullfield.create_model("racnn_pico", **SMALL), tmp_path / "nowhere" / "model.safetensors")
