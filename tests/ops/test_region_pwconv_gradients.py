"""Gradients of RPWConv: against finite differences, between paths and precisions, and finite where it is hard."""

from __future__ import annotations

import pytest
import torch

from fullfield.ops import region_pwconv

from . import oracle
from .cases import (
    ALL_DTYPES,
    GRAD_TOLERANCE,
    HALF_DTYPES,
    Y_TOLERANCE,
    float64,
    grads,
    normal,
    paths,
    paths_and_rule,
    scales,
)

PATHS = paths("region_pwconv")
PATHS_AND_RULE = paths_and_rule("region_pwconv")
SIMILARITIES = ["cosine", "inner"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("size", "region_size"), [((3, 5), 2), ((2, 3), 7), ((4, 4), 2)])
def test_gradients_equal_finite_differences(size, region_size, similarity, path):
    x = normal(1, 4, *size).requires_grad_()
    scale = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)

    def operator(x, scale):
        return region_pwconv(x, scale, region_size=region_size, heads=2, similarity=similarity, path=path)

    assert torch.autograd.gradcheck(operator, (x, scale))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_gradients_agree_between_paths_and_precisions(dtype, similarity):
    # float64 gradients are right by test_gradients_equal_finite_differences.
    x, upstream = normal(2, 8, 10, 9).to(dtype), normal(2, 8, 10, 9, seed=1).to(dtype)
    scale = scales(2, similarity, 9, torch.float32)

    def gradients(path, as_dtype, scale_dtype):
        leaves = x.to(as_dtype).requires_grad_(), scale.to(scale_dtype).requires_grad_()
        y = region_pwconv(*leaves, region_size=4, heads=2, similarity=similarity, path=path)
        return grads(y, upstream, leaves)

    dx_expected, ds_expected = gradients("reference", torch.float64, torch.float64)
    for path in PATHS_AND_RULE:
        dx, ds = gradients(path, dtype, torch.float64 if dtype == torch.float64 else torch.float32)
        assert dx.dtype == dtype
        assert oracle.relative_error(float64(dx), float64(dx_expected)) <= GRAD_TOLERANCE[dtype], path
        # ds is one number a head, summed with cancellation over all windows: five times the tolerance.
        assert oracle.relative_error(float64(ds), float64(ds_expected)) <= 5 * GRAD_TOLERANCE[dtype], path


@pytest.mark.parametrize("path", PATHS)
def test_clamped_scale_has_no_gradient(path):
    x, scale = normal(1, 6, 6, 6), torch.tensor([1000.0, 2.0], dtype=torch.float64, requires_grad=True)
    region_pwconv(x, scale, region_size=2, heads=2, path=path).square().sum().backward()
    assert scale.grad[0] == 0
    assert scale.grad[1] != 0


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("dead", ["one channel", "a whole head", "everything"])
def test_dead_channels_give_finite_outputs_and_gradients(dead, dtype, similarity, path):
    x = normal(2, 8, 9, 10)
    x[:, {"one channel": slice(3, 4), "a whole head": slice(4, 8), "everything": slice(None)}[dead]] = 0
    x = x.to(dtype).requires_grad_()
    scale = scales(2, similarity, 9, torch.float32).requires_grad_()
    y = region_pwconv(x, scale, region_size=4, heads=2, similarity=similarity, path=path)
    dx, ds = grads(y, normal(2, 8, 9, 10, seed=1), (x, scale))
    assert y.isfinite().all()
    assert dx.isfinite().all()
    assert ds.isfinite().all()


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", [100.0, 1e-4])
@pytest.mark.parametrize("region_size", [2, 7])
def test_large_and_tiny_values_stay_finite_in_half_precision(region_size, magnitude, dtype, similarity, path):
    # 100² times 20 pixels is beyond float16's 65504, and (1e-4)² below its smallest number.
    x = (magnitude * normal(1, 8, 9, 8)).to(dtype).requires_grad_()
    scale = torch.tensor([2.5, -1.5])
    if similarity == "inner":
        scale = scale / (20 * magnitude**2)
    scale.requires_grad_()
    y = region_pwconv(x, scale, region_size=region_size, heads=2, similarity=similarity, path=path)
    dx, ds = grads(y, normal(1, 8, 9, 8, seed=1), (x, scale))
    expected = oracle.region_pwconv(float64(x), scale.tolist(), region_size, similarity)
    assert oracle.relative_error(float64(y), expected) <= Y_TOLERANCE[dtype]
    assert dx.isfinite().all()
    assert ds.isfinite().all()
