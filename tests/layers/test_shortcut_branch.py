"""The branch is x + drop_path(gamma * (n + f(n))), n = norm(x), and folds exactly into one multiply-add."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fullfield.layers.multi_order import MultiOrderGatedAggregation
from fullfield.layers.shortcut_branch import ShortcutBranch

F64 = torch.float64


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 8, 5, 7, dtype=F64)


@torch.no_grad()
def trained(layer_scale: float | None = 0.25, drop_path: float = 0.0, bias: bool = True) -> ShortcutBranch:
    """Make a branch whose norm has statistics and whose factor differs by channel, as after some training."""
    body = MultiOrderGatedAggregation(8, dtype=F64)
    if not bias:
        body.project_in.bias = body.project_out.bias = None
    branch = ShortcutBranch(8, body, layer_scale, drop_path, dtype=F64).eval()
    norm = branch.norm
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.normal_()
    norm.bias.normal_()
    if layer_scale is not None:
        branch.gamma.gamma.normal_()
    return branch


@torch.no_grad()
def by_hand(branch: ShortcutBranch, x: Tensor) -> Tensor:
    norm = branch.norm
    mean, var, weight, bias = (t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    n = (x - mean) / torch.sqrt(var + 1e-5) * weight + bias
    gamma = 1 if isinstance(branch.gamma, nn.Identity) else branch.gamma.gamma[:, None, None]
    return x + gamma * (n + branch.body(n))


@pytest.mark.parametrize("layer_scale", [None, 0.25])
@torch.no_grad()
def test_the_normalised_map_and_the_body_s_output_are_scaled_and_added(layer_scale: float | None) -> None:
    branch, x = trained(layer_scale), image()
    torch.testing.assert_close(branch(x), by_hand(branch, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer_scale", [None, 0.25])
@torch.no_grad()
def test_fusing_leaves_neither_norm_nor_factor_and_changes_nothing(layer_scale: float | None, bias: bool) -> None:
    branch, x = trained(layer_scale, bias=bias), image()
    y = by_hand(branch, x)
    branch.fuse()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in branch.modules())
    assert isinstance(branch.gamma, nn.Identity)
    torch.testing.assert_close(branch(x), y, rtol=1e-12, atol=1e-12)
    once = {name: value.clone() for name, value in branch.state_dict().items()}
    branch.fuse()
    assert all(torch.equal(once[name], value) for name, value in branch.state_dict().items())


@torch.no_grad()
def test_a_fused_branch_runs_under_autocast() -> None:
    branch, x = trained(), image()
    y = branch(x)
    branch.float().fuse()
    with torch.autocast("cpu", torch.bfloat16):
        low = branch(x.float())
    assert float((low - y).norm() / y.norm()) < 0.05


def test_drop_path_skips_the_branch_for_whole_samples_in_training_alone() -> None:
    branch, x = trained(drop_path=0.5), image(batch=64)
    plain = by_hand(branch, x)
    torch.testing.assert_close(branch(x), plain)
    branch.drop_path.train()
    changed = (branch(x) != x).flatten(1).any(1)
    assert 0 < changed.sum() < 64


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_finite_and_reach_everything(training: bool) -> None:
    branch, x = trained().train(training), image().requires_grad_()
    branch(x).square().sum().backward()
    for tensor in (x, *branch.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@torch.no_grad()
def test_a_body_that_does_not_start_with_a_1x1_is_refused_before_anything_changes() -> None:
    branch, x = trained(), image()
    branch.body.project_in = nn.Conv2d(8, 8, 3, padding=1, dtype=F64)
    y = branch(x)
    with pytest.raises(ValueError, match="only a dense 1x1 convolution"):
        branch.fuse()
    assert torch.equal(branch(x), y)
