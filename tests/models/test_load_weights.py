"""A checkpoint of any known packing fills the model it belongs to; everything else is refused with the way out.

The files are made here from RaCNN's own weights under invented "official" names, so that each packing is tested by
itself; `test_official.py` holds the real formats to the official outputs.
"""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fullfield
from fullfield.errors import CheckpointError, FullfieldError, ModelNotFoundError
from fullfield.models import registry
from fullfield.models.official import models_in
from fullfield.models.registry import OfficialFormat

SMALL: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_classes": 3}
FORMAT = OfficialFormat(
    renames=(
        (r"^patch_embed\.", "stem."),
        (r"^layers\.", "stages."),
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
    ),
    ignored=(r"^norm\d\.",),
    merged=r"^patch_embed\.0\.conv\.bias$",
    merge=lambda model: model.fuse(),
)
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _invented_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._OFFICIAL, "racnn", FORMAT)


def net(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return fullfield.create_model("racnn_pico", **SMALL | changes).eval()


def official(model: nn.Module, *, head: bool = True) -> State:
    """Return a model's weights under the invented official names."""
    named = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("head.") and not head:
            continue
        name = name.replace("stem.", "patch_embed.").replace("stages.", "layers.")
        named[name.replace("head.norm.", "norm.").replace("head.fc.", "head.")] = tensor
    return named


def saved(tmp_path: Path, contents: Any, name: str = "official.pth") -> Path:
    torch.save(contents, tmp_path / name)
    return tmp_path / name


def same(model: nn.Module, other: nn.Module) -> bool:
    x = torch.randn(2, 3, 32, 32)
    return torch.equal(model.eval()(x), other.eval()(x))


def refused(message: str, model: nn.Module | str, path: Path, **arguments: Any) -> str:
    """Assert that loading names the file and says what `message` matches, and that the module is as it was."""
    before = {n: t.clone() for n, t in model.state_dict().items()} if isinstance(model, nn.Module) else {}
    with pytest.raises(CheckpointError, match=message) as caught:
        fullfield.load_weights(model, path, **arguments)
    assert str(path) in str(caught.value)
    if isinstance(model, nn.Module):
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in before)
        assert not hasattr(model, "loaded_from")
    return str(caught.value)


# Packings


@pytest.mark.parametrize(
    "pack", [dict, OrderedDict, lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()}]
)
@pytest.mark.parametrize(
    "container", [None, "model", "state_dict", "model_state_dict", "net", "model_ema", "state_dict_ema"]
)
def test_each_container_is_opened(tmp_path: Path, container: str | None, pack: Callable[[State], Any]) -> None:
    source, target = net(1), net(2)
    state = pack(official(source))
    path = saved(tmp_path, state if container is None else {container: state, "epoch": 3, "optimizer": {"state": {}}})
    assert fullfield.load_weights(target, path) is target
    assert same(source, target)
    assert target.loaded_from.container == (container or "")


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "backbone.",
        "encoder.",
        "model.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.backbone.",
        "backbone.body.",
    ],
)
@pytest.mark.parametrize("naming", [official, nn.Module.state_dict])
def test_each_prefix_is_taken_off(tmp_path: Path, prefix: str, naming: Callable[[nn.Module], State]) -> None:
    source, target = net(1), net(2)
    path = saved(tmp_path, {"state_dict": {prefix + name: t for name, t in naming(source).items()}})
    assert same(source, fullfield.load_weights(target, path))
    assert target.loaded_from.prefix == prefix
    assert target.loaded_from.naming == ("official" if naming is official else "own")


def test_a_segmenter_s_backbone_is_taken_and_its_heads_are_named(tmp_path: Path) -> None:
    source, target = net(1), net(2)
    heads = {"decode_head.conv_seg.weight": torch.ones(3), "auxiliary_head.conv_seg.weight": torch.ones(3)}
    norms = {f"backbone.norm{i}.weight": torch.ones(8) for i in range(4)}
    backbone = {f"backbone.{name}": t for name, t in official(source, head=False).items()}
    path = saved(tmp_path, {"meta": {"CLASSES": ("road",)}, "state_dict": backbone | norms | heads})
    fc = target.head.fc.weight.clone()
    fullfield.load_weights(target, path)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(source.forward_features(x), target.forward_features(x))
    report = target.loaded_from
    assert set(report.ignored) == heads.keys() | norms.keys()
    assert report.classifier == "fresh"
    assert set(report.fresh) == {"head.fc.weight", "head.fc.bias", "head.norm.weight", "head.norm.bias"}
    assert torch.equal(target.head.fc.weight, fc)


def test_of_two_state_dicts_the_plain_one_is_taken_and_the_average_on_request(tmp_path: Path) -> None:
    plain, average = net(1), net(2)
    path = saved(tmp_path, {"model_ema": official(average), "model": official(plain)})
    taken = fullfield.load_weights(net(3), path)
    assert same(plain, taken)
    assert taken.loaded_from.others == ("model_ema",)
    assert "also in the file: 'model_ema'" in str(taken.loaded_from)
    assert same(average, fullfield.load_weights(net(3), path, which="model_ema"))
    refused(
        "no state dict 'model_emma'; did you mean 'model_ema'.*'model_ema', 'model'", net(), path, which="model_emma"
    )


def test_two_unknown_state_dicts_must_be_told_apart(tmp_path: Path) -> None:
    path = saved(tmp_path, {"teacher": official(net(1)), "student": official(net(2))})
    refused("'teacher', 'student'; say which", net(), path)
    assert same(net(2), fullfield.load_weights(net(3), path, which="student"))
    refused("it is one state dict", net(), saved(tmp_path, official(net()), "bare.pth"), which="student")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_converted_to_the_model_s(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in official(net(1)).items()}
    target = fullfield.load_weights(net(2), saved(tmp_path, state))
    assert target.stem[0].conv.weight.dtype == torch.float32
    assert torch.equal(target.stem[0].conv.weight, state["patch_embed.0.conv.weight"].float())


def test_missing_counters_and_dimensions_of_size_one_do_not_matter(tmp_path: Path) -> None:
    source, target = net(1), net(2)
    state = {
        n: t[..., None, None] if n == "head.weight" else t for n, t in official(source).items() if "tracked" not in n
    }
    assert same(source, fullfield.load_weights(target, saved(tmp_path, state)))


@pytest.mark.parametrize("legacy", [True, False])
def test_files_of_before_pytorch_1_6_are_read_too(tmp_path: Path, legacy: bool) -> None:
    source = net(1)
    torch.save(official(source), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert same(source, fullfield.load_weights(net(2), tmp_path / "a.pth"))


def test_a_safetensors_file_of_others_is_read(tmp_path: Path) -> None:
    source = net(1)
    save_file(official(source), tmp_path / "model.safetensors")
    assert same(source, fullfield.load_weights(net(2), tmp_path / "model.safetensors"))


def test_arguments_and_numbers_beside_the_weights_are_not_executed_and_not_needed(tmp_path: Path) -> None:
    source, allowed = net(1), torch.serialization.get_safe_globals()
    extra = {
        "args": argparse.Namespace(lr=1e-3, out=Path("x"), nested=argparse.Namespace(a=1)),
        "max_accuracy": np.float64(82.5),
        "history": np.arange(3),
    }
    target = fullfield.load_weights(net(2), saved(tmp_path, {"model": official(source), **extra}))
    assert same(source, target)
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


# Forms


def test_a_merged_file_brings_the_model_to_its_form(tmp_path: Path) -> None:
    source, target = net(1), net(2)
    x = torch.randn(2, 3, 32, 32)
    y = source(x)
    path = saved(tmp_path, official(source.fuse()))
    assert not target.fused
    fullfield.load_weights(target, path)
    assert target.fused
    assert target.loaded_from.form == "merged"
    torch.testing.assert_close(target(x), y, rtol=1e-4, atol=1e-5)


def test_a_plain_state_dict_of_a_fused_model_fuses(tmp_path: Path) -> None:
    source = net(1).fuse()
    target = fullfield.load_weights(net(2), saved(tmp_path, source.state_dict()))
    assert (target.fused, target.loaded_from.form) == (True, "fused")
    assert same(source, target)


def test_a_fused_model_refuses_unfused_weights_and_says_why(tmp_path: Path) -> None:
    refused("merged already: load weights into a new one", net().fuse(), saved(tmp_path, official(net(1))))


# Names instead of modules


@pytest.mark.parametrize(("classes", "channels"), [(3, 3), (1000, 3), (21841, 1)])
def test_a_name_is_built_with_the_file_s_classes_and_channels(tmp_path: Path, classes: int, channels: int) -> None:
    torch.manual_seed(1)
    source = fullfield.create_model("racnn_pico", num_classes=classes, in_chans=channels).eval()
    made: Any = fullfield.load_weights("racnn_pico", saved(tmp_path, {"model": official(source)}))
    assert not made.training
    x = torch.randn(1, channels, 32, 32)
    assert torch.equal(made(x), source(x))
    assert (made.num_classes, made.loaded_from.classifier) == (classes, "loaded")
    assert fullfield.models.model_spec(made).name == "racnn_pico"


def test_a_name_with_a_file_of_the_backbone_alone_has_a_random_classifier_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, official(fullfield.create_model("racnn_pico"), head=False))
    made: Any = fullfield.load_weights("racnn_pico", path)
    assert (made.num_classes, made.loaded_from.classifier) == (1000, "fresh")
    assert [(r.levelno, "classifier fresh" in r.message) for r in caplog.records] == [(logging.WARNING, True)]


def test_an_unknown_name_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'racnn_pico'"):
        fullfield.load_weights("racnn_picco", saved(tmp_path, official(net())))


def test_a_file_of_fullfield_s_own_loads_into_modules_and_names(tmp_path: Path) -> None:
    for source in (net(1), net(1).merge_branches(), net(1).fuse()):
        path = fullfield.save(source, tmp_path / "own.safetensors")
        assert same(source, fullfield.load_weights(net(2), path))
        made = fullfield.load_weights("racnn_pico", path)  # with the architecture of the header
        assert same(source, made)
        assert (made.merged, made.fused) == (source.merged, source.fused)
    refused("does not fit racnn_nano.*This file is racnn_pico's", "racnn_nano", path)


# Wrappers and other models


def test_wrapped_models_are_filled_inside(tmp_path: Path) -> None:
    source = net(1)
    path = saved(tmp_path, official(source))
    features = fullfield.create_model(
        "racnn_pico", features_only=True, **{k: v for k, v in SMALL.items() if k != "num_classes"}
    ).eval()
    fullfield.load_weights(features, path)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(features(x)[-1], source.forward_features(x))
    assert features.loaded_from.classifier == "none"
    assert "head.weight" in " ".join(features.loaded_from.ignored) or "head.fc.weight" in features.loaded_from.ignored
    compiled: Any = torch.compile(net(2))
    assert torch.equal(fullfield.load_weights(compiled, path)._orig_mod(x), source(x))


def test_a_model_without_a_classifier_takes_the_backbone(tmp_path: Path) -> None:
    source, target = net(1), net(2, num_classes=0)
    fullfield.load_weights(target, saved(tmp_path, official(source)))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(target(x), source.forward_head(source.forward_features(x), pre_logits=True))
    assert target.loaded_from.classifier == "none"


def test_models_of_timm_take_their_own_names_and_what_timm_translates(tmp_path: Path) -> None:
    torch.manual_seed(1)
    resnet = fullfield.create_model("resnet10t", num_classes=5)
    path = saved(tmp_path, {"state_dict": {f"module.{n}": t for n, t in resnet.state_dict().items()}})
    made = fullfield.load_weights("resnet10t", path)
    assert same(resnet, made)
    assert made.loaded_from.prefix == "module."
    convnext = fullfield.create_model("convnext_atto", num_classes=5)
    state = {n.replace("head.norm.", "norm.").replace("head.fc.", "head."): t for n, t in convnext.state_dict().items()}
    state = {n.replace("stem.", "downsample_layers.0.").replace(".blocks.", "."): t for n, t in state.items()}
    state = {n.replace(".conv_dw.", ".dwconv.").replace(".mlp.fc", ".pwconv"): t for n, t in state.items()}
    for i in range(1, 4):
        state = {n.replace(f"stages.{i}.downsample.", f"downsample_layers.{i}."): t for n, t in state.items()}
    target = fullfield.create_model("convnext_atto", num_classes=5)
    fullfield.load_weights(target, saved(tmp_path, {"model": state}))
    assert target.loaded_from.naming == "timm"
    assert same(convnext, target)


def test_what_was_done_is_logged_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fullfield")
    target = fullfield.load_weights(net(2), saved(tmp_path, {"model": official(net(1))}))
    assert [r.message for r in caplog.records] == [str(target.loaded_from)]
    assert "racnn_pico" in caplog.text
    assert "official names; training form; classifier loaded" in caplog.text


# Refusals of what does not fit


def test_another_classifier_is_refused_with_the_way_out_and_kept_on_request(tmp_path: Path) -> None:
    source = net(1)
    path = saved(tmp_path, official(source))
    refused(
        r"another classifier.*head\.fc\.\w+ \(3.*instead of \(5.*reset_classifier=True", net(2, num_classes=5), path
    )
    target = net(2, num_classes=5)
    own = target.head.fc.weight.clone()
    fullfield.load_weights(target, path, reset_classifier=True)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(target.forward_features(x), source.forward_features(x))
    assert torch.equal(target.head.fc.weight, own)
    assert (target.loaded_from.classifier, target.loaded_from.fresh) == ("fresh", ("head.fc.weight", "head.fc.bias"))


def test_a_file_of_another_variant_is_called_by_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path, official(fullfield.create_model("racnn_nano", num_classes=7)))
    refused("does not fit racnn_pico.*of another shape.*This file is racnn_nano's", "racnn_pico", path)
    assert models_in(path) == ["racnn_nano"]


def test_variants_without_parameters_of_their_own_are_all_named(tmp_path: Path) -> None:
    path = saved(tmp_path, official(fullfield.create_model("racnn_tiny_literal", depths=(2, 3, 10, 3))))
    assert {"racnn_tiny", "racnn_tiny_grid", "racnn_tiny_literal"} >= set(models_in(path)) > set()


def test_an_edited_file_names_the_three_nearest_and_how_they_differ(tmp_path: Path) -> None:
    state = official(fullfield.create_model("racnn_nano"))
    first = next(name for name in state if name.startswith("layers.0"))
    state["layers.9.extra"] = state.pop(first)
    message = refused("1 missing.*1 unknown", "racnn_nano", saved(tmp_path, state))
    near = [line.split(":")[0].strip() for line in message.splitlines()[1:]]
    assert len(near) == 3
    assert near[0] == "racnn_nano"
    assert "layers.9.extra" in message.replace("stages", "layers")
    with pytest.raises(CheckpointError, match="fits no model of Fullfield's"):
        models_in(tmp_path / "official.pth")


def test_names_of_no_model_are_quoted(tmp_path: Path) -> None:
    path = saved(tmp_path, {"alpha": torch.zeros(3), "beta": torch.zeros(2)})
    refused(r"0 tensors fit.*\(alpha, beta, \.\.\.\) are those of no model", net(), path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = {n: t.clone() for n, t in official(net(1)).items()}
    state["head.bias"][1] = value
    refused(r"not finite \(head\.fc\.bias\)", net(), saved(tmp_path, state))


def test_quantised_whole_numbers_are_refused(tmp_path: Path) -> None:
    state = {**official(net(1)), "head.weight": torch.ones(3, 32, dtype=torch.int8)}
    refused(r"head\.fc\.weight \(3, 32\) int8 instead of \(3, 32\)", net(), saved(tmp_path, state))


def test_every_refusal_is_an_error_of_fullfield_s() -> None:
    assert issubclass(CheckpointError, FullfieldError)
