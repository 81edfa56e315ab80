"""Names: what is listed, what is refused, and what a model remembers of how it was made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import nn

import fullfield
from fullfield.errors import ConfigError, FullfieldError, ModelNotFoundError
from fullfield.models import ModelInfo, ModelSpec, create_model, list_models, model_spec, registry
from fullfield.models.peers import PEERS
from fullfield.models.racnn import RaCNN, RaCNNConfig

RACNN = ["racnn_pico", "racnn_nano", "racnn_tiny", "racnn_small", "racnn_base", "racnn_tiny_literal", "racnn_tiny_grid"]
SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "num_classes": 3}

REGISTER = """
import sys
from types import ModuleType
import timm, fullfield
from fullfield.models.peers import PEERS
from fullfield.models.racnn import RaCNN, RaCNNConfig
from fullfield.models.registry import register_family
home = sys.modules["own_nets"] = ModuleType("own_nets")
register_family("own_nets", RaCNN, {"own_net": RaCNNConfig((8, 16), (1, 1), region_size=7)}, crop_pct=0.9)
assert home.own_net is timm.models.model_entrypoint("own_net")
assert timm.create_model("own_net", num_classes=3).num_classes == 3
assert timm.get_pretrained_cfg("own_net").crop_pct == 0.9
assert fullfield.list_models("own*")[0] == fullfield.ModelInfo("own_net", "fullfield", "own_nets")
"""


@pytest.fixture
def home() -> Iterator[str]:
    """Give the name of a module that exists for the test alone."""
    name = "fullfield_test_family"
    sys.modules[name] = ModuleType(name)
    yield name
    del sys.modules[name]


@pytest.mark.parametrize("name", ["racnn_tinny", "racnn-tiny", "resnet5O", "RACNN_TINY"])
def test_an_unknown_name_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"'{name}'.*did you mean '(racnn_tiny|resnet50)'") as caught:
        create_model(name)
    assert isinstance(caught.value, FullfieldError)
    assert isinstance(caught.value, ValueError)


def test_a_name_near_nothing_still_says_where_the_list_is() -> None:
    with pytest.raises(ModelNotFoundError, match="fullfield models"):
        create_model("!")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:somewhere", ""])
def test_a_name_that_would_fetch_or_read_something_is_no_model(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        create_model(name)


def test_an_unknown_argument_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'stem_strides'; did you mean 'stem_stride'"):
        create_model("racnn_pico", stem_strides=2)


@pytest.mark.parametrize("taken", ["resnet50", "racnn_tiny"])
def test_a_name_that_is_taken_is_never_shadowed(home: str, taken: str) -> None:
    before, names = timm.models.model_entrypoint(taken), timm.list_models()
    cfg = RaCNNConfig(dims=(8,), depths=(1,), region_size=1)
    with pytest.raises(ValueError, match=rf"{taken}: registered already"):
        registry.register_family(home, RaCNN, {"a_new_net": cfg, taken: cfg})
    assert timm.models.model_entrypoint(taken) is before
    assert timm.list_models() == names  # nor was the free one beside it


def test_a_registered_family_is_made_by_timm_and_listed_as_ours() -> None:
    # in a process of its own: timm's registry has no way back
    done = subprocess.run([sys.executable, "-c", REGISTER], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr


def test_without_a_pattern_the_list_is_ours_and_the_peers_of_timm_s() -> None:
    infos = list_models()
    assert [info.name for info in infos if info.family == "racnn"] == RACNN
    assert [info.name for info in infos if info.source == "timm"] == list(PEERS)
    assert [info.source for info in infos] == sorted(info.source for info in infos)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("racnn_tiny", ["racnn_tiny"]),
        ("racnn_tiny*", ["racnn_tiny", "racnn_tiny_literal", "racnn_tiny_grid"]),
        ("racnn_?a*", ["racnn_nano", "racnn_base"]),
    ],
)
def test_a_pattern_is_a_shell_pattern(pattern: str, names: list[str]) -> None:
    assert sorted(info.name for info in list_models(pattern)) == sorted(names)


def test_the_list_of_everything_is_timm_s_with_each_name_once_and_ours_first() -> None:
    infos = list_models("*")
    names = [info.name for info in infos]
    assert sorted(names) == sorted(timm.list_models())
    assert set(RACNN) <= set(names[: len(list_models())])
    assert ModelInfo("resnet50", "timm", "resnet") in infos


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'racn_tinny\*'.*did you mean"):
        list_models("racn_tinny*")


def test_a_model_remembers_its_name_and_arguments_however_it_was_made() -> None:
    arguments = {**SMALL, "in_chans": 1, "region_size": (7, 4, 2, 1)}
    for make in (create_model, timm.create_model):
        assert model_spec(make("racnn_pico", **arguments)) == ModelSpec(
            "racnn_pico", {**arguments, "global_pool": "avg"}
        )


def test_what_could_fetch_or_unpickle_is_not_remembered() -> None:
    model = create_model("racnn_pico", pretrained=False, checkpoint_path="", cache_dir=None, device="meta", **SMALL)
    spec = model_spec(model)
    assert spec is not None
    assert spec.arguments.keys() == {*SMALL, "global_pool"}


def test_a_reset_classifier_is_remembered_as_it_is() -> None:
    model = create_model("racnn_pico", **SMALL)
    model.reset_classifier(7, "")
    spec = model_spec(model)
    assert spec is not None
    assert (spec.arguments["num_classes"], spec.arguments["global_pool"]) == (7, "")


def test_the_spec_makes_the_same_architecture_again() -> None:
    for name, arguments in [("racnn_pico", {**SMALL, "token_mixer": "ffn"}), ("resnet18", {"num_classes": 4})]:
        model = create_model(name, **arguments)
        spec = model_spec(model)
        assert spec is not None
        again = create_model(spec.name, **spec.arguments)
        assert _shapes(again) == _shapes(model)


def test_models_of_others_and_pruned_ones_have_no_spec() -> None:
    assert model_spec(timm.create_model("resnet18", device="meta")) is None
    pruned = create_model("racnn_pico", **SMALL)
    pruned.prune_intermediate_layers([0])
    assert model_spec(pruned) is None


def test_weights_that_do_not_exist_are_refused() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for racnn_pico"):
        fullfield.create_model("racnn_pico", pretrained=True)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
