"""RPWConv against float64 loops over windows, and the facts that hold for it whatever the path."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfield.errors import ConfigError
from fullfield.ops import region_pwconv

from . import oracle
from .cases import (
    ALL_DTYPES,
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

PATHS = paths("region_pwconv")
PATHS_AND_RULE = paths_and_rule("region_pwconv")
SIMILARITIES = ["cosine", "inner"]


def pixels_of_largest_window(height: int, width: int, region_size: int) -> int:
    return math.ceil(height / region_size) * math.ceil(width / region_size)


# -- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region_size", range(1, 10))
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_path_equals_the_loop_over_windows(size, region_size, similarity):
    # The largest map has one head number a region size: its loops are the slow part of this file.
    for heads in (1, 2, 4) if size != (57, 50) else ((1, 2, 4)[region_size % 3],):
        x = normal(2 if size[0] < 20 else 1, 8, *size)
        scale = scales(heads, similarity, pixels_of_largest_window(*size, region_size))
        expected = oracle.region_pwconv(x.numpy(), scale.tolist(), region_size, similarity)
        for path in PATHS_AND_RULE:
            y = region_pwconv(x, scale, region_size=region_size, heads=heads, similarity=similarity, path=path)
            error = oracle.relative_error(y.numpy(), expected)
            assert error <= 1e-10, f"path {path}, heads {heads}: {error:.1e}"


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_width=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    region_size=st.integers(1, 14),
    similarity=st.sampled_from(SIMILARITIES),
    path=st.sampled_from(PATHS_AND_RULE),
    magnitude=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_loop_over_windows(
    batch, heads, head_width, height, width, region_size, similarity, path, magnitude, seed
):
    x = magnitude * normal(batch, heads * head_width, height, width, seed=seed)
    scale = normal(heads, seed=seed + 1) * (4 if similarity == "cosine" else 1 / magnitude**2)
    y = region_pwconv(x, scale, region_size=region_size, heads=heads, similarity=similarity, path=path)
    expected = oracle.region_pwconv(x.numpy(), scale.tolist(), region_size, similarity)
    assert oracle.relative_error(y.numpy(), expected) <= 1e-10


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=str)
def test_lower_precisions_stay_within_their_tolerance(dtype, similarity, path):
    for size, region_size in [((20, 33), 7), ((33, 26), 4), ((5, 6), 4), ((3, 2), 7), ((7, 7), 7), ((7, 7), 1)]:
        x = normal(1, 16, *size).to(dtype)
        scale = scales(2, similarity, pixels_of_largest_window(*size, region_size), torch.float32)
        y = region_pwconv(x, scale, region_size=region_size, heads=2, similarity=similarity, path=path)
        expected = oracle.region_pwconv(float64(x), scale.tolist(), region_size, similarity)
        assert y.dtype == dtype
        error = oracle.relative_error(float64(y), expected)
        assert error <= Y_TOLERANCE[dtype], f"{size}, r = {region_size}: {error:.1e}"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [60.0, -60.0, 1000.0, -1000.0])
def test_large_scales_are_exact_and_clamped_at_60(scale, path):
    x = normal(2, 6, 8, 9)
    clamped = [max(-60.0, min(60.0, scale))]
    expected = oracle.region_pwconv(x.numpy(), clamped, 3)
    for dtype, tolerance in [(torch.float64, 1e-10), (torch.float32, 1e-4)]:
        y = region_pwconv(x.to(dtype), torch.tensor([scale], dtype=dtype), region_size=3, path=path)
        assert oracle.relative_error(float64(y), expected) <= tolerance


@pytest.mark.parametrize("path", PATHS)
def test_inner_similarity_does_not_clamp_its_scale(path):
    x = 0.05 * normal(1, 6, 8, 9)
    y = region_pwconv(x, torch.tensor([200.0]).double(), region_size=3, similarity="inner", path=path)
    expected = oracle.region_pwconv(x.numpy(), [200.0], 3, "inner")
    assert oracle.relative_error(y.numpy(), expected) <= 1e-10


@pytest.mark.parametrize("path", PATHS)
def test_one_pixel_windows_weigh_channels_by_sign_alone(path):
    # With one pixel a window every cosine is +1 or -1 (up to eps), so the weights follow from signs.
    x = torch.tensor([3.0, -2.0, 5.0, -1.0], dtype=torch.float64).reshape(1, 4, 1, 1)
    x = x.expand(1, 4, 7, 7)
    scale = torch.tensor([1.5], dtype=torch.float64)
    y = region_pwconv(x, scale, region_size=7, path=path)
    alike, unlike = math.exp(1.5), math.exp(-1.5)
    positive = (alike * (3 + 5) + unlike * (-2 - 1)) / (2 * alike + 2 * unlike)
    negative = (unlike * (3 + 5) + alike * (-2 - 1)) / (2 * alike + 2 * unlike)
    expected = torch.tensor([positive, negative, positive, negative]).double().reshape(1, 4, 1, 1)
    torch.testing.assert_close(y, expected.expand(1, 4, 7, 7), rtol=1e-5, atol=1e-5)


# -- what follows from the equation -----------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_region_larger_than_the_map_makes_every_pixel_a_window(path):
    x, scale = normal(2, 6, 3, 4), torch.tensor([2.0, 3.0]).double()
    as_large = region_pwconv(x, scale, region_size=4, heads=2, path=path)
    larger = region_pwconv(x, scale, region_size=100, heads=2, path=path)
    torch.testing.assert_close(larger, as_large, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_heads_of_one_channel_return_the_input(path):
    x = normal(2, 4, 5, 6)
    y = region_pwconv(x, scales(4, "cosine", 1), region_size=2, heads=4, path=path)
    torch.testing.assert_close(y, x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_heads_are_contiguous_groups_that_do_not_see_each_other(path):
    x, scale = normal(1, 8, 9, 7), torch.tensor([2.0, -3.0]).double()
    y = region_pwconv(x, scale, region_size=4, heads=2, path=path)
    first = region_pwconv(x[:, :4], scale[:1], region_size=4, path=path)
    second = region_pwconv(x[:, 4:], scale[1:], region_size=4, path=path)
    torch.testing.assert_close(y, torch.cat([first, second], dim=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_a_pixel_changes_its_own_window_only(path):
    x, scale = normal(1, 4, 11, 10), torch.tensor([2.0]).double()
    changed = x.clone()
    changed[:, 1, 4, 5] += 1.0
    difference = region_pwconv(changed, scale, region_size=3, path=path) - region_pwconv(
        x, scale, region_size=3, path=path
    )
    touched = difference.abs().amax(dim=(0, 1)) > 1e-9
    expected = np.zeros((11, 10), dtype=bool)
    for row, column in oracle.windows(11, 10, 3)[(4 % 3, 5 % 3)]:
        expected[row, column] = True
    np.testing.assert_array_equal(touched.numpy(), expected)


@pytest.mark.parametrize("path", PATHS)
def test_images_of_a_batch_do_not_see_each_other(path):
    x, scale = normal(3, 4, 9, 8), torch.tensor([2.0]).double()
    y = region_pwconv(x, scale, region_size=4, path=path)
    alone = torch.cat([region_pwconv(image[None], scale, region_size=4, path=path) for image in x])
    torch.testing.assert_close(y, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("size", "region_size"), [((14, 21), 7), ((6, 8), 2), ((5, 5), 5)])
def test_circular_shift_of_input_shifts_output(size, region_size, similarity, path):
    x = normal(2, 6, *size)
    scale = scales(2, similarity, pixels_of_largest_window(*size, region_size))
    y = region_pwconv(x, scale, region_size=region_size, heads=2, similarity=similarity, path=path)
    for shift in [(1, 0), (0, 1), (-3, 2), (region_size, 1)]:
        rolled = region_pwconv(
            x.roll(shift, (2, 3)), scale, region_size=region_size, heads=2, similarity=similarity, path=path
        )
        torch.testing.assert_close(rolled, y.roll(shift, (2, 3)), rtol=0, atol=1e-12)


def test_padding_leaves_gram_matrix_norm_and_output_unchanged():
    # One window of a 20×33 map in regions of 7, from scratch: its 2×4 true pixels, then with the zeros that
    # padding to 21×35 brings to it (pixel rows 6, 13, 20 and columns 5, 12, ..., 33).
    x = np.random.default_rng(0).standard_normal((6, 20, 33))
    padded = np.zeros((6, 21, 35))
    padded[:, :20, :33] = x
    true_window, padded_window = x[:, 6::7, 5::7].reshape(6, -1), padded[:, 6::7, 5::7].reshape(6, -1)
    assert (true_window.shape[1], padded_window.shape[1]) == (8, 15)

    np.testing.assert_allclose(padded_window @ padded_window.T, true_window @ true_window.T, atol=1e-14)
    np.testing.assert_allclose((padded_window**2).sum(1), (true_window**2).sum(1), rtol=1e-14)
    mixed = oracle.mix_rows(padded_window, 2.0, "cosine").reshape(6, 3, 5)
    for path in PATHS:
        y = region_pwconv(torch.from_numpy(x)[None], torch.tensor([2.0]).double(), region_size=7, path=path)
        np.testing.assert_allclose(y[0, :, 6::7, 5::7].numpy(), mixed[:, :2, :4], rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_zero_padding_by_the_caller_changes_nothing(similarity, path):
    x = normal(2, 6, 20, 33)
    scale = scales(2, similarity, 15)
    y = region_pwconv(x, scale, region_size=7, heads=2, similarity=similarity, path=path)
    padded = F.pad(x, (0, 2, 0, 1))
    y_padded = region_pwconv(padded, scale, region_size=7, heads=2, similarity=similarity, path=path)
    torch.testing.assert_close(y_padded[:, :, :20, :33], y, rtol=0, atol=1e-12)
    assert y_padded[:, :, 20:].abs().max() == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_window_is_attention_with_channels_as_tokens(path):
    x, s = normal(2, 6, 9, 8), 3.0
    y = region_pwconv(x, torch.tensor([s]).double(), region_size=3, path=path)
    for i in range(3):
        for j in range(3):
            window = x[:, :, i::3, j::3].flatten(2)  # (B, C, n): C tokens of n features
            unit = window * torch.rsqrt(window.square().sum(-1, keepdim=True) + 1e-6)
            expected = F.scaled_dot_product_attention(s * unit, unit, window, scale=1.0)
            torch.testing.assert_close(y[:, :, i::3, j::3].flatten(2), expected, rtol=0, atol=1e-12)


# -- memory, dtypes, batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("size", [(14, 14), (15, 10), (3, 4)], ids=str)
def test_channels_last_stays_channels_last_with_equal_values(size, dtype, path):
    x, scale = normal(2, 8, *size).to(dtype), scales(2, "cosine", 1, torch.float32)
    contiguous = region_pwconv(x, scale, heads=2, path=path)
    last = region_pwconv(x.to(memory_format=torch.channels_last), scale, heads=2, path=path)
    assert contiguous.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert contiguous.dtype == last.dtype == dtype
    assert oracle.relative_error(float64(last), float64(contiguous)) <= Y_TOLERANCE[dtype]


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, ::2, 1:],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x.flip(3).permute(0, 1, 3, 2)[..., 2:9],
    ],
    ids=["sliced", "transposed", "every other channel", "expanded", "flipped and permuted"],
)
def test_strided_views_give_the_values_of_their_copies(view, path):
    x = view(normal(2, 8, 13, 12))
    scale = scales(2, "cosine", 1)
    y = region_pwconv(x, scale, region_size=3, heads=2, path=path)
    copy = region_pwconv(x.clone(memory_format=torch.contiguous_format), scale, region_size=3, heads=2, path=path)
    torch.testing.assert_close(y, copy, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_inputs_are_left_as_they_were(path):
    x, scale = normal(2, 6, 9, 8), torch.tensor([1000.0]).double()
    x_before, scale_before = x.clone(), scale.clone()
    region_pwconv(x, scale, region_size=4, path=path)
    assert torch.equal(x, x_before)
    assert torch.equal(scale, scale_before)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_a_batch_of_no_images_gives_no_images(path):
    x = torch.zeros(0, 6, 9, 8, requires_grad=True)
    y = region_pwconv(x, torch.ones(2), region_size=4, heads=2, path=path)
    assert y.shape == (0, 6, 9, 8)
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_meta_tensors_give_shape_and_dtype(dtype, path):
    x = torch.empty(2, 6, 9, 8, device="meta", dtype=dtype)
    y = region_pwconv(x, torch.empty(2, device="meta"), region_size=4, heads=2, path=path)
    assert y.is_meta
    assert (y.shape, y.dtype) == (x.shape, dtype)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_bfloat16_accuracy_and_finite_gradients(dtype, similarity, path):
    x = normal(2, 8, 9, 10).to(dtype)
    x[:, 3] = 0
    x.requires_grad_()
    scale = scales(2, similarity, 9, torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = region_pwconv(x, scale, region_size=4, heads=2, similarity=similarity, path=path)
    expected = oracle.region_pwconv(float64(x), scale.tolist(), 4, similarity)
    assert oracle.relative_error(float64(y), expected) <= Y_TOLERANCE[torch.bfloat16]
    dx, ds = grads(y, normal(2, 8, 9, 10, seed=1), (x, scale))
    assert dx.isfinite().all()
    assert ds.isfinite().all()


# -- signature and bad input ------------------------------------------------------------------------------------


def test_public_signature_is_the_documented_one():
    parameters = inspect.signature(region_pwconv).parameters
    assert list(parameters) == ["x", "scale", "region_size", "heads", "similarity", "path"]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(parameters)[2:])
    defaults = {name: parameters[name].default for name in list(parameters)[2:]}
    assert defaults == {"region_size": 7, "heads": 1, "similarity": "cosine", "path": None}


@pytest.mark.parametrize(
    ("x", "scale", "options"),
    [
        (torch.zeros(4, 6, 6), torch.ones(1), {}),
        (torch.zeros(1, 4, 6, 6, 6), torch.ones(1), {}),
        (torch.zeros(1, 4, 6, 6), torch.ones(3), {"heads": 3}),
        (torch.zeros(1, 4, 6, 6), torch.ones(8), {"heads": 8}),
        (torch.zeros(1, 4, 6, 6), torch.ones(0), {"heads": 0}),
        (torch.zeros(1, 4, 6, 6), torch.ones(1), {"heads": -1}),
        (torch.zeros(1, 4, 6, 6), torch.ones(2), {}),
        (torch.zeros(1, 4, 6, 6), torch.ones(1), {"heads": 2}),
        (torch.zeros(1, 4, 6, 6), torch.ones(2, 1), {"heads": 2}),
        (torch.zeros(1, 4, 6, 6), torch.tensor(1.0), {}),
        (torch.zeros(1, 4, 6, 6), torch.ones(1), {"region_size": 0}),
        (torch.zeros(1, 4, 6, 6), torch.ones(1), {"region_size": -7}),
        (torch.zeros(1, 4, 6, 6), torch.ones(1), {"region_size": 3.5}),
        (torch.zeros(1, 4, 6, 6), torch.ones(1), {"region_size": "7"}),
        (torch.zeros(1, 4, 6, 6), torch.ones(1), {"region_size": (7, 7)}),
        (torch.zeros(1, 4, 6, 6, dtype=torch.int64), torch.ones(1), {}),
        (torch.zeros(1, 4, 6, 6, dtype=torch.uint8), torch.ones(1), {}),
        (torch.zeros(1, 4, 6, 6, dtype=torch.bool), torch.ones(1), {}),
    ],
    ids=[
        "x of rank 3",
        "x of rank 5",
        "4 channels in 3 heads",
        "4 channels in 8 heads",
        "no heads",
        "negative heads",
        "two scales for one head",
        "one scale for two heads",
        "scale of rank 2",
        "scale of rank 0",
        "region size 0",
        "negative region size",
        "fractional region size",
        "region size as text",
        "region size as a pair",
        "int64",
        "uint8",
        "bool",
    ],
)
def test_bad_input_is_a_value_or_type_error(x, scale, options):
    for path in PATHS_AND_RULE:
        with pytest.raises((ValueError, TypeError)) as caught:
            region_pwconv(x, scale, **options, path=path)
        assert len(str(caught.value)) > 20


def test_errors_name_the_wrong_value():
    with pytest.raises(ValueError, match=r"(?s)(\b10\b.*\b4\b|\b4\b.*\b10\b)"):
        region_pwconv(torch.zeros(1, 10, 6, 6), torch.ones(4), heads=4)
    with pytest.raises(ValueError, match="-7"):
        region_pwconv(torch.zeros(1, 4, 6, 6), torch.ones(1), region_size=-7)
    with pytest.raises((ValueError, TypeError), match="int64"):
        region_pwconv(torch.zeros(1, 4, 6, 6, dtype=torch.int64), torch.ones(1))


def test_unknown_similarity_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"(?s)'cosin'.*'cosine'"):
        region_pwconv(torch.zeros(1, 4, 6, 6), torch.ones(1), similarity="cosin")
