"""Dynamic PWConv, the whole map as one window: against float64 loops, and its tie to RPWConv at r = 1."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfield.errors import ConfigError
from fullfield.ops import dynamic_pwconv, region_pwconv

from . import oracle
from .cases import (
    ALL_DTYPES,
    GRAD_TOLERANCE,
    HALF_DTYPES,
    SIZES,
    Y_TOLERANCE,
    float64,
    grads,
    normal,
    paths,
    paths_and_rule,
    scales,
)

PATHS = paths("dynamic_pwconv")
PATHS_AND_RULE = paths_and_rule("dynamic_pwconv")
SIMILARITIES = ["cosine", "inner"]


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("size", [*SIZES, (13,), (1,), (2, 3, 4), (1, 2, 2, 3)], ids=str)
def test_every_path_equals_the_loop(size, heads, similarity, path):
    x, scale = normal(2, 8, *size), scales(heads, similarity, math.prod(size))
    y = dynamic_pwconv(x, scale, heads=heads, similarity=similarity, path=path)
    assert oracle.relative_error(y.numpy(), oracle.dynamic_pwconv(x.numpy(), scale.tolist(), similarity)) <= 1e-10


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_width=st.integers(1, 5),
    spatial=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    similarity=st.sampled_from(SIMILARITIES),
    path=st.sampled_from(PATHS_AND_RULE),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_loop(batch, heads, head_width, spatial, similarity, path, seed):
    x = normal(batch, heads * head_width, *spatial, seed=seed)
    scale = 2 * normal(heads, seed=seed + 1)
    y = dynamic_pwconv(x, scale, heads=heads, similarity=similarity, path=path)
    assert oracle.relative_error(y.numpy(), oracle.dynamic_pwconv(x.numpy(), scale.tolist(), similarity)) <= 1e-10


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=str)
@pytest.mark.parametrize("size", [(57, 50), (5, 6), (1, 1)], ids=str)
def test_lower_precisions_stay_within_their_tolerance(size, dtype, similarity, path):
    x = normal(2, 16, *size).to(dtype)
    scale = scales(2, similarity, math.prod(size), torch.float32)
    y = dynamic_pwconv(x, scale, heads=2, similarity=similarity, path=path)
    expected = oracle.dynamic_pwconv(float64(x), scale.tolist(), similarity)
    assert y.dtype == dtype
    assert oracle.relative_error(float64(y), expected) <= Y_TOLERANCE[dtype]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_region_of_one_pixel_is_the_same_operator(similarity, path):
    x, scale = normal(2, 8, 9, 11), scales(2, similarity, 99)
    whole = dynamic_pwconv(x, scale, heads=2, similarity=similarity, path=path)
    region = region_pwconv(x, scale, region_size=1, heads=2, similarity=similarity, path=path)
    torch.testing.assert_close(whole, region, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_it_is_attention_with_channels_as_tokens(path):
    x, s = normal(2, 6, 9, 8), 3.0
    y = dynamic_pwconv(x, torch.tensor([s]).double(), path=path)
    rows = x.flatten(2)
    unit = rows * torch.rsqrt(rows.square().sum(-1, keepdim=True) + 1e-6)
    expected = F.scaled_dot_product_attention(s * unit, unit, rows, scale=1.0)
    torch.testing.assert_close(y.flatten(2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_reordered_pixels_come_out_reordered(path):
    x, scale = normal(2, 6, 40), torch.tensor([2.0]).double()
    order = torch.from_numpy(normal(40, seed=3).numpy().argsort())
    torch.testing.assert_close(
        dynamic_pwconv(x[:, :, order], scale, path=path),
        dynamic_pwconv(x, scale, path=path)[:, :, order],
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [60.0, -60.0, 1000.0, -1000.0])
def test_large_scales_are_exact_and_clamped_at_60(scale, path):
    x = normal(2, 6, 8, 9)
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]  # two channels so alike that 60 and 1000 weigh them differently
    y = dynamic_pwconv(x, torch.tensor([scale]).double(), path=path)
    expected = oracle.dynamic_pwconv(x.numpy(), [max(-60.0, min(60.0, scale))])
    assert oracle.relative_error(y.numpy(), expected) <= 1e-10


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("size", [(7,), (2, 3), (1,)], ids=str)
def test_gradients_equal_finite_differences(size, similarity, path):
    x = normal(2, 4, *size).requires_grad_()
    scale = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)

    def operator(x, scale):
        return dynamic_pwconv(x, scale, heads=2, similarity=similarity, path=path)

    assert torch.autograd.gradcheck(operator, (x, scale))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_gradients_agree_between_paths_and_precisions(dtype, similarity):
    x, upstream = normal(2, 8, 10, 9).to(dtype), normal(2, 8, 10, 9, seed=1).to(dtype)
    scale = scales(2, similarity, 90, torch.float32)

    def gradients(path, as_dtype, scale_dtype):
        leaves = x.to(as_dtype).requires_grad_(), scale.to(scale_dtype).requires_grad_()
        return grads(dynamic_pwconv(*leaves, heads=2, similarity=similarity, path=path), upstream, leaves)

    dx_expected, ds_expected = gradients("reference", torch.float64, torch.float64)
    for path in PATHS_AND_RULE:
        dx, ds = gradients(path, dtype, torch.float64 if dtype == torch.float64 else torch.float32)
        assert dx.dtype == dtype
        assert oracle.relative_error(float64(dx), float64(dx_expected)) <= GRAD_TOLERANCE[dtype], path
        # ds is one number a head, summed with cancellation: five times the tolerance.
        assert oracle.relative_error(float64(ds), float64(ds_expected)) <= 5 * GRAD_TOLERANCE[dtype], path


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("dead", [slice(3, 4), slice(4, 8), slice(None)], ids=["one", "a head", "all"])
def test_dead_channels_give_finite_outputs_and_gradients(dead, dtype, similarity, path):
    x = normal(2, 8, 9, 10)
    x[:, dead] = 0
    x = x.to(dtype).requires_grad_()
    scale = scales(2, similarity, 90, torch.float32).requires_grad_()
    y = dynamic_pwconv(x, scale, heads=2, similarity=similarity, path=path)
    dx, ds = grads(y, normal(2, 8, 9, 10, seed=1), (x, scale))
    assert y.isfinite().all()
    assert dx.isfinite().all()
    assert ds.isfinite().all()


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", [100.0, 1e-4])
def test_large_and_tiny_values_stay_finite_in_half_precision(magnitude, dtype, similarity, path):
    x = (magnitude * normal(1, 8, 20, 20)).to(dtype).requires_grad_()
    scale = torch.tensor([2.5, -1.5])
    if similarity == "inner":
        scale = scale / (400 * magnitude**2)
    scale.requires_grad_()
    y = dynamic_pwconv(x, scale, heads=2, similarity=similarity, path=path)
    dx, ds = grads(y, normal(1, 8, 20, 20, seed=1), (x, scale))
    expected = oracle.dynamic_pwconv(float64(x), scale.tolist(), similarity)
    assert oracle.relative_error(float64(y), expected) <= Y_TOLERANCE[dtype]
    assert dx.isfinite().all()
    assert ds.isfinite().all()


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_channels_last_stays_channels_last_with_equal_values(dtype, path):
    x, scale = normal(2, 8, 9, 10).to(dtype), scales(2, "cosine", 1, torch.float32)
    contiguous = dynamic_pwconv(x, scale, heads=2, path=path)
    last = dynamic_pwconv(x.to(memory_format=torch.channels_last), scale, heads=2, path=path)
    assert contiguous.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert contiguous.dtype == last.dtype == dtype
    assert oracle.relative_error(float64(last), float64(contiguous)) <= Y_TOLERANCE[dtype]


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, :, ::2, 1:], lambda x: x.transpose(2, 3), lambda x: x[:1].expand(3, -1, -1, -1)],
    ids=["sliced", "transposed", "expanded"],
)
def test_strided_views_give_the_values_of_their_copies(view, path):
    x, scale = view(normal(2, 8, 13, 12)), scales(2, "cosine", 1)
    y = dynamic_pwconv(x, scale, heads=2, path=path)
    copy = dynamic_pwconv(x.clone(memory_format=torch.contiguous_format), scale, heads=2, path=path)
    torch.testing.assert_close(y, copy, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_a_batch_of_no_images_gives_no_images(path):
    assert dynamic_pwconv(torch.zeros(0, 6, 9, 8), torch.ones(2), heads=2, path=path).shape == (0, 6, 9, 8)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_autocast_gives_bfloat16_accuracy_and_finite_gradients(path):
    x, scale = normal(2, 8, 9, 10, dtype=torch.float32).requires_grad_(), torch.tensor([2.5, -1.5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = dynamic_pwconv(x, scale, heads=2, path=path)
    expected = oracle.dynamic_pwconv(float64(x), scale.tolist())
    assert oracle.relative_error(float64(y), expected) <= Y_TOLERANCE[torch.bfloat16]
    (dx,) = grads(y, normal(2, 8, 9, 10, seed=1), (x,))
    assert dx.isfinite().all()


@pytest.mark.parametrize(
    ("x", "scale", "heads"),
    [
        (torch.zeros(4), torch.ones(1), 1),
        (torch.zeros(1, 4, 6), torch.ones(3), 3),
        (torch.zeros(1, 4, 6), torch.ones(0), 0),
        (torch.zeros(1, 4, 6), torch.ones(2), 1),
        (torch.zeros(1, 4, 6), torch.ones(1, 2), 2),
        (torch.zeros(1, 4, 6), torch.tensor(1.0), 1),
        (torch.zeros(1, 4, 6, dtype=torch.int32), torch.ones(1), 1),
    ],
    ids=["rank 1", "4 channels in 3 heads", "no heads", "scales", "scale rank 2", "scale rank 0", "int32"],
)
def test_bad_input_is_a_value_or_type_error(x, scale, heads):
    for path in PATHS_AND_RULE:
        with pytest.raises((ValueError, TypeError)) as caught:
            dynamic_pwconv(x, scale, heads=heads, path=path)
        assert len(str(caught.value)) > 20


def test_unknown_similarity_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"(?s)'iner'.*'inner'"):
        dynamic_pwconv(torch.zeros(1, 4, 6), torch.ones(1), similarity="iner")
