"""The residual branch is x + drop_path(gamma * f(norm(x))), and folds its norm only where that is exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fullfield.layers import FFN, RaFFN, RaGLU, ResidualBranch

F64 = torch.float64


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, 5, 7, dtype=F64)


@torch.no_grad()
def settle(norm: nn.Module) -> None:
    """Give a norm statistics and weights as after some training."""
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.normal_()
    norm.bias.normal_()


@pytest.mark.parametrize("layer_scale", [None, 0.25])
def test_branch_is_normalised_scaled_and_added(layer_scale: float | None) -> None:
    branch, x = ResidualBranch(6, nn.Conv2d(6, 6, 1, dtype=F64), layer_scale, dtype=F64).eval(), image()
    settle(branch.norm)
    mean, var, weight, bias = (
        t[:, None, None]
        for t in (branch.norm.running_mean, branch.norm.running_var, branch.norm.weight, branch.norm.bias)
    )
    body = branch.body((x - mean) / torch.sqrt(var + 1e-5) * weight + bias)
    torch.testing.assert_close(branch(x), x + (layer_scale or 1) * body, rtol=1e-12, atol=1e-12)


def test_layer_scale_is_one_learned_factor_a_channel() -> None:
    with_scale = ResidualBranch(6, nn.Identity(), layer_scale=1e-4)
    without = ResidualBranch(6, nn.Identity())
    extra = dict(with_scale.named_parameters()).keys() - dict(without.named_parameters()).keys()
    assert [with_scale.get_parameter(name).tolist() for name in extra] == [pytest.approx([1e-4] * 6)]


def test_drop_path_skips_the_branch_for_whole_samples_and_keeps_its_mean() -> None:
    branch, x = ResidualBranch(6, nn.Identity(), drop_path=0.25, dtype=F64), image(batch=400)
    added = (branch(x) - x) / branch.norm(x)
    factor = added.flatten(1)
    assert torch.allclose(factor, factor[:, :1].expand_as(factor))
    assert set(factor[:, 0].mul(1000).round().tolist()) == {0.0, 1333.0}  # skipped, or divided by 1 - 0.25
    assert (factor[:, 0] == 0).double().mean() == pytest.approx(0.25, abs=0.07)
    branch.eval()
    torch.testing.assert_close(branch(x), x + branch.norm(x))


@pytest.mark.parametrize("body", [FFN(6, dtype=F64), RaGLU(6, nn.Identity(), dtype=F64)], ids=["ffn", "raglu"])
@torch.no_grad()
def test_fusing_folds_the_norm_into_a_leading_1x1(body: nn.Module) -> None:
    branch, x = ResidualBranch(6, body, 0.5, dtype=F64).eval(), image()
    settle(branch.norm)
    y = branch(x)
    branch.fuse()
    assert isinstance(branch.norm, nn.Identity)
    torch.testing.assert_close(branch(x), y, rtol=1e-12, atol=1e-12)
    branch.fuse()
    torch.testing.assert_close(branch(x), y, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_fusing_leaves_the_norm_before_a_mixer() -> None:
    branch, x = ResidualBranch(6, RaFFN(6, nn.Identity(), dtype=F64), dtype=F64).eval(), image()
    settle(branch.norm)
    y = branch(x)
    branch.fuse()
    assert isinstance(branch.norm, nn.BatchNorm2d)
    assert torch.equal(branch(x), y)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_finite_and_reach_everything(training: bool) -> None:
    branch, x = ResidualBranch(6, FFN(6, dtype=F64), 1e-4, dtype=F64).train(training), image().requires_grad_()
    branch(x).square().sum().backward()
    for tensor in (x, *branch.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
