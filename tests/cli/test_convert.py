"""`fullfield convert` makes files that load, predict and train take, says what it did, and overwrites nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fullfield
from fullfield.cli.convert import run
from fullfield.cli.main import main
from fullfield.models.registry import model_spec
from fullfield.models.weights import load_checkpoint
from fullfield.tasks.pretrained import published_classes
from fullfield.tasks.source import open_model

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `fullfield convert ...`; return its exit code, standard output and standard error."""

    def convert(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["convert", *map(str, argv)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return convert


def weights(name: str = "racnn_pico", **arguments: Any) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(1)
    model = fullfield.create_model(name, **arguments).eval()
    return model, model.state_dict()


def saved(tmp_path: Path, contents: Any) -> Path:
    torch.save(contents, tmp_path / "in.pth")
    return tmp_path / "in.pth"


def test_the_model_is_found_and_the_file_gives_the_same_outputs_with_names_and_preprocessing(
    call: Call, tmp_path: Path
) -> None:
    model, state = weights()
    path = saved(tmp_path, {"state_dict": {f"module.{n}": t for n, t in state.items()}, "model_ema": {}})
    code, out, _ = call(path, tmp_path / "out.safetensors")
    assert code == 0
    assert f"racnn_pico: {len(state)} tensors of 'state_dict'" in out
    assert "under 'module.'" in out
    assert "loaded back, the same outputs" in out
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(fullfield.load(tmp_path / "out.safetensors")(x), model(x))
    opened = open_model(tmp_path / "out.safetensors")
    assert (opened.preprocess.image_size, opened.preprocess.crop_share) == (224, 0.95)
    assert (len(opened.classes), opened.classes[0], opened.classes[999]) == (1000, "tench", "toilet tissue")


def test_class_names_are_unique(tmp_path: Path) -> None:
    names = published_classes(1000)
    assert len(set(names)) == 1000
    assert [name for name in names if name.startswith("crane")] == ["crane (n02012849)", "crane (n03126707)"]
    assert published_classes(3) == ("class 0", "class 1", "class 2")
    assert len(set(published_classes(21841))) == 21841


def test_the_average_is_taken_on_request(call: Call, tmp_path: Path) -> None:
    _, plain = weights(num_classes=3)
    average = {name: t / 2 if t.is_floating_point() else t for name, t in plain.items()}
    path = saved(tmp_path, {"model": plain, "model_ema": average})
    code, out, _ = call(path, tmp_path / "out.safetensors", "--which", "model_ema", "--model", "racnn_pico")
    assert code == 0
    assert "also in the file: 'model'" in out
    found = fullfield.load(tmp_path / "out.safetensors").state_dict()
    assert torch.equal(found["head.fc.weight"], average["head.fc.weight"])


def test_fusing_folds_the_norms_and_states_the_rounding(call: Call, tmp_path: Path) -> None:
    model, state = weights(num_classes=3)
    argv = (saved(tmp_path, state), tmp_path / "out.safetensors", "--model", "racnn_pico")
    code, out, _ = call(*argv, "--fuse", "--image-size", "96")
    assert code == 0
    assert "outputs within" in out
    fused: Any = fullfield.load(tmp_path / "out.safetensors")
    assert fused.fused
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-4)
    assert open_model(tmp_path / "out.safetensors").preprocess.image_size == 96


def test_a_backbone_alone_is_written_without_a_classifier(call: Call, tmp_path: Path) -> None:
    model, state = weights()
    backbone = {f"backbone.{n}": t for n, t in state.items() if not n.startswith("head.")}
    path = saved(tmp_path, backbone | {"neck.w": torch.ones(2)})
    code, out, err = call(path, tmp_path / "out.safetensors", "--model", "racnn_pico")
    assert code == 0
    assert "classifier fresh" in out
    assert "the file has no classifier, and none was written" in err
    made: Any = fullfield.load(tmp_path / "out.safetensors")
    assert made.num_classes == 0
    tuned: Any = fullfield.load(tmp_path / "out.safetensors", num_classes=5, reset_classifier=True)
    x = torch.randn(1, 3, 64, 64)
    assert tuned(x).shape == (1, 5)
    assert torch.equal(tuned.forward_features(x), model.forward_features(x))


def test_a_fullfield_file_keeps_its_classes_and_architecture(call: Call, tmp_path: Path) -> None:
    model, _ = weights(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=2)
    stored = {"task": "classify", "classes": ["cat", "dog"], "preprocess": {"image_size": 48}}
    fullfield.save(model, tmp_path / "own.safetensors", stored)
    code, _, _ = call(tmp_path / "own.safetensors", tmp_path / "out.safetensors", "--fuse")
    assert code == 0
    checkpoint = load_checkpoint(tmp_path / "out.safetensors")
    assert checkpoint.metadata["classes"] == ["cat", "dog"]
    assert checkpoint.metadata["preprocess"]["image_size"] == 48
    spec = model_spec(checkpoint.model)
    assert spec is not None
    assert list(spec.arguments["dims"]) == [8, 16, 24, 32]


def test_a_model_of_timm_is_converted_by_its_name(call: Call, tmp_path: Path) -> None:
    model, state = weights("resnet10t", num_classes=3)
    path = saved(tmp_path, state)
    code, _, err = call(path, tmp_path / "out.safetensors")
    assert (code, "those of no model of Fullfield's" in err or "nearest of Fullfield's" in err) == (1, True)
    assert call(path, tmp_path / "out.safetensors", "--model", "resnet10t")[0] == 0
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(fullfield.load(tmp_path / "out.safetensors")(x), model(x))


def test_what_can_not_be_done_is_one_line_and_writes_nothing(call: Call, tmp_path: Path) -> None:
    path = saved(tmp_path, weights("racnn_tiny", num_classes=2)[1])
    out = tmp_path / "out.safetensors"
    for code, argv, says in [
        (1, (tmp_path / "inn.pth", out), "did you mean 'in.pth'"),
        (2, (path, tmp_path / "out.pth"), "must end in .safetensors"),
        (1, (path, out), "fits racnn_tiny and racnn_tiny_grid"),
        (1, (path, out, "--model", "racnn_pico"), "does not fit racnn_pico"),
        (1, (path, out, "--model", "racnn_tinny"), "did you mean 'racnn_tiny'"),
        (1, (path, out, "--model", "racnn_tiny", "--which", "ema"), "it is one state dict"),
        (2, (path, out, "--model", "racnn_tiny", "--image-size", "0"), "image_size is 0"),
        (1, (path, tmp_path / "nowhere" / "out.safetensors", "--model", "racnn_tiny"), "nowhere"),
    ]:
        found, _, err = call(*argv)
        assert (found, says in " ".join(err.split())) == (code, True), (argv, err)
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced_only_when_told(call: Call, tmp_path: Path) -> None:
    path = saved(tmp_path, weights(num_classes=2)[1])
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    code, _, err = call(path, out)
    assert code == 1
    assert "exists and is not overwritten unasked" in err
    assert out.read_bytes() == b"precious"
    assert run([str(path), str(out), "--overwrite", "--model", "racnn_pico"]) == 0
    assert fullfield.load(out) is not None
