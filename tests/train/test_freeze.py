"""Freezing: what moves in a step of the optimiser and what does not, for our models and timm's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fullfield
from fullfield.errors import ConfigError
from fullfield.train.freeze import freeze


def racnn() -> nn.Module:
    return fullfield.create_model("racnn_pico", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=3)


def moved_by_a_step(model: nn.Module) -> set[str]:
    """Names of parameters and buffers that a step in training mode changes."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1)
    F.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}


@pytest.mark.parametrize("name", ["racnn_pico", "resnet10t", "convnext_atto"])
def test_a_linear_probe_moves_the_classifier_alone(name: str) -> None:
    model = racnn() if name == "racnn_pico" else fullfield.create_model(name, num_classes=3)
    classifier = {id(p) for p in model.get_classifier().parameters()}
    counts = freeze(model, "backbone")
    moved = moved_by_a_step(model)
    assert moved == {name for name, p in model.named_parameters() if id(p) in classifier}
    assert counts.trained == sum(p.numel() for p in model.get_classifier().parameters())
    assert sum(counts) == sum(p.numel() for p in model.parameters())


def test_a_probe_of_a_distilled_net_leaves_both_classifiers() -> None:
    model = fullfield.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1)
    assert freeze(model, "backbone").trained == 2 * (192 * 3 + 3)


def test_stages_by_a_range_and_the_stem_stay_with_their_statistics() -> None:
    model = racnn()
    freeze(model, ["stem", "stages.0-2"])
    moved = moved_by_a_step(model)
    assert not any(name.startswith(("stem.", "stages.0.", "stages.1.", "stages.2.")) for name in moved)
    assert any(name.startswith("stages.3.") and name.endswith("running_mean") for name in moved)


def test_timms_stem_is_what_its_group_matcher_says() -> None:
    model = fullfield.create_model("resnet10t", num_classes=3)
    freeze(model, ["stem", "layer1"])
    moved = moved_by_a_step(model)
    assert moved
    assert not any(name.startswith(("conv1", "bn1", "layer1")) for name in moved)
    assert any(name.startswith("layer2") for name in moved)


def test_a_prefix_ends_at_a_dot() -> None:
    model = nn.ModuleDict({"a1": nn.Linear(2, 2), "a10": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    assert freeze(model, "a1") == (6, 12)
    assert model["a10"].weight.requires_grad
    assert model["a"].weight.requires_grad


def test_statistics_stay_in_copies_and_after_every_train() -> None:
    model = racnn()
    freeze(model, "backbone")
    averaged = copy.deepcopy(model)
    for net in (model, averaged):
        for _ in range(2):
            net.train()
            net(torch.randn(2, 3, 32, 32))
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all(int(norm.num_batches_tracked) == 0 and not norm.training for norm in norms)


def test_norms_that_are_trained_keep_learning_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    freeze(model, "0")
    model(torch.randn(2, 3, 4, 4))
    assert [int(model[i].num_batches_tracked) for i in (1, 3)] == [1, 1]


def test_frozen_parts_keep_nothing_for_the_backward_pass() -> None:
    model = fullfield.create_model("resnet10t", num_classes=3)

    def saved_bytes(net: nn.Module) -> int:
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            net.train()(torch.zeros(2, 3, 64, 64))
        return sum(saved.values())

    probe = copy.deepcopy(model)
    freeze(probe, "backbone")
    assert saved_bytes(probe) < 0.01 * saved_bytes(model)


def test_unknown_parts_are_named_with_the_nearest_and_nothing_is_frozen() -> None:
    model = racnn()
    with pytest.raises(
        ConfigError, match=r"'stage\.0'.*did you mean 'stages\.0'.*Give backbone, or one or more of stem"
    ):
        freeze(model, ["stem", "stage.0"])
    with pytest.raises(ConfigError, match=r"begins with 'stages\.4'"):
        freeze(model, "stages.2-4")
    with pytest.raises(ConfigError, match="empty range"):
        freeze(model, "stages.2-0")
    with pytest.raises(ConfigError, match="begins with ''"):
        freeze(model, "")
    assert all(p.requires_grad for p in model.parameters())


def test_something_must_be_left_to_train() -> None:
    model = racnn()
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze(model, ["backbone", "head"])
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match="has no classifier"):
        freeze(nn.Sequential(nn.Linear(2, 2)), "backbone")
    with pytest.raises(ConfigError, match="has no classifier"):
        freeze(fullfield.create_model("racnn_pico", num_classes=0), "backbone")
