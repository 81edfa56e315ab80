"""The skeleton by itself: drop rates, a net of one's own, pruning that asks for nothing more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

import fullfield
from fullfield.layers import FFN, ConvNorm, ResidualBranch
from fullfield.models import Backbone, Stage
from fullfield.models.backbone import drop_path_rates


def tiny_net(**arguments: Any) -> Backbone:
    """Make a family of one's own: two stages of plain MLPs."""
    stages = [
        Stage(nn.Identity(), [ResidualBranch(8, FFN(8)), ResidualBranch(8, FFN(8))]),
        Stage(ConvNorm(8, 16, stride=2), [ResidualBranch(16, FFN(16))]),
    ]
    return Backbone(ConvNorm(3, 8, stride=2), stages, dims=(8, 16), stem_stride=2, **arguments)


@pytest.mark.parametrize("depths", [(2, 3, 10, 3), (1,), (1, 1), (3, 4, 13, 4)], ids=str)
def test_drop_rates_rise_linearly_from_zero_to_the_rate(depths: tuple[int, ...]) -> None:
    rates = drop_path_rates(0.3, depths)
    assert tuple(len(stage) for stage in rates) == depths
    flat = [rate for stage in rates for rate in stage]
    last = len(flat) - 1
    assert flat == pytest.approx([0.3 * k / last if last else 0.0 for k in range(len(flat))])


def test_each_block_drops_at_its_rate() -> None:
    model = fullfield.create_model("racnn_pico", depths=(1, 2, 1, 1), drop_path_rate=0.4, device="meta")
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])  # two branches a block, none in the first


def test_a_net_of_two_stages_keeps_the_contract() -> None:
    model, x = tiny_net(num_classes=4).eval(), torch.randn(2, 3, 9, 13)
    assert model(x).shape == (2, 4)
    assert [(f["num_chs"], f["reduction"]) for f in model.feature_info] == [(8, 2), (16, 4)]
    last, maps = model.forward_intermediates(x)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 5, 7), (2, 16, 3, 4)]
    assert torch.equal(last, maps[-1])
    assert torch.equal(model.forward_features(x), last)


@pytest.mark.parametrize("index", [4, -5])
def test_a_stage_that_does_not_exist_is_refused(index: int) -> None:
    model = fullfield.create_model("racnn_pico", depths=(1, 1, 1, 1))
    with pytest.raises(AssertionError, match="out of range"):
        model.forward_intermediates(torch.zeros(1, 3, 32, 32), indices=[index])


@pytest.mark.parametrize(("prune_head", "head_stays"), [(True, False), (False, True)])
def test_pruning_to_the_last_stage_keeps_the_head_only_if_asked(prune_head: bool, head_stays: bool) -> None:
    model, x = tiny_net(num_classes=4).eval(), torch.randn(2, 3, 9, 13)
    y = model(x)
    assert model.prune_intermediate_layers(1, prune_head=prune_head) == [1]
    assert (model(x).shape == y.shape) is head_stays
    assert model.num_classes == (4 if head_stays else 0)


def test_checkpointing_keeps_only_the_inputs_of_blocks() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    elements = []
    for enable in (False, True):
        model = tiny_net(num_classes=4)
        model.set_grad_checkpointing(enable)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.randn(2, 3, 32, 32))
        elements.append(sum(t.numel() for t in kept))
    assert elements[1] < elements[0] / 2


def test_checkpointing_is_off_in_eval_and_can_be_turned_off() -> None:
    model = tiny_net()
    model.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in model.stages)
    model.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in model.stages)


def test_fusing_sets_eval_mode_and_says_so() -> None:
    model = tiny_net().train()
    assert not model.fused
    model.fuse()
    assert model.fused
    assert not model.training
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
