"""The mean of every window: over the pixels that it truly has, in every dtype, against float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfield.ops import region_pool

from . import oracle
from .cases import ALL_DTYPES, SIZES, float64, grads, normal, paths, paths_and_rule

PATHS = paths("region_pool")
PATHS_AND_RULE = paths_and_rule("region_pool")


@pytest.mark.parametrize("region_size", range(1, 10))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_path_equals_the_loop_over_windows(size, region_size):
    x = normal(1, 3, *size)
    expected = oracle.region_pool(x.numpy(), region_size)
    for path in PATHS_AND_RULE:
        means = region_pool(x, region_size, path=path)
        assert means.shape == (1, 3, min(region_size, size[0]), min(region_size, size[1]))
        np.testing.assert_allclose(means.numpy(), expected, rtol=0, atol=1e-14, err_msg=str(path))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 15),
    width=st.integers(1, 15),
    region_size=st.integers(1, 17),
    path=st.sampled_from(PATHS_AND_RULE),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_loop_over_windows(batch, channels, height, width, region_size, path, seed):
    x = normal(batch, channels, height, width, seed=seed)
    means = region_pool(x, region_size, path=path)
    np.testing.assert_allclose(means.numpy(), oracle.region_pool(x.numpy(), region_size), rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, (8, 15)], ids=str)
def test_constant_map_keeps_its_value_however_few_pixels_a_window_has(size, dtype, path):
    # Means over a padded count would be smaller wherever the region size does not divide the map.
    means = region_pool(torch.full((2, 3, *size), 3.0, dtype=dtype), 7, path=path)
    assert means.dtype == dtype
    assert torch.equal(means, torch.full_like(means, 3.0))


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize(("dtype", "spacing"), [(torch.float16, 0.5), (torch.bfloat16, 4.0), (torch.float32, 1e-3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_means_of_ten_thousand_large_values_neither_overflow_nor_drift(memory_format, dtype, spacing, path):
    # Their sum is 1e7: beyond float16's range, and far past where a bfloat16 sum stops growing. The result
    # may be off by one step of the number format at 1000.
    x = (1000 + 20 * normal(1, 2, 100, 100)).to(dtype).to(memory_format=memory_format)
    for region_size in (1, 3):
        means = region_pool(x, region_size, path=path)
        expected = oracle.region_pool(float64(x), region_size)
        np.testing.assert_allclose(float64(means), expected, rtol=0, atol=spacing)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("size", "region_size"), [((5, 7), 3), ((2, 3), 4), ((4, 4), 2)])
def test_gradients_equal_finite_differences(size, region_size, path):
    x = normal(1, 2, *size).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: region_pool(x, region_size, path=path), (x,))


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_gradient_is_one_over_the_true_count(dtype, path):
    x = normal(1, 2, 9, 11).to(dtype).requires_grad_()
    means = region_pool(x, 4, path=path)
    (dx,) = grads(means, torch.ones_like(means), (x,))
    expected = np.zeros((1, 2, 9, 11))
    for pixels in oracle.windows(9, 11, 4).values():
        for row, column in pixels:
            expected[:, :, row, column] = 1 / len(pixels)
    assert dx.dtype == dtype
    np.testing.assert_allclose(float64(dx), expected, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("path", PATHS)
def test_circular_shift_of_input_shifts_the_means(path):
    x = normal(2, 3, 12, 8)
    means = region_pool(x, 4, path=path)
    rolled = region_pool(x.roll((1, -2), (2, 3)), 4, path=path)
    torch.testing.assert_close(rolled, means.roll((1, -2), (2, 3)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("size", [(14, 14), (15, 10), (3, 4)], ids=str)
def test_channels_last_stays_channels_last_with_equal_values(size, dtype, path):
    x = normal(2, 6, *size).to(dtype)
    contiguous = region_pool(x, 7, path=path)
    last = region_pool(x.to(memory_format=torch.channels_last), 7, path=path)
    assert contiguous.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, contiguous)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, :, ::2, 1:], lambda x: x.transpose(2, 3), lambda x: x[:1].expand(3, -1, -1, -1)],
    ids=["sliced", "transposed", "expanded"],
)
def test_strided_views_give_the_values_of_their_copies(view, path):
    x = view(normal(2, 4, 13, 12))
    torch.testing.assert_close(
        region_pool(x, 5, path=path),
        region_pool(x.clone(memory_format=torch.contiguous_format), 5, path=path),
        rtol=0,
        atol=1e-14,
    )


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_a_batch_of_no_images_gives_no_images(path):
    assert region_pool(torch.zeros(0, 6, 9, 4), 7, path=path).shape == (0, 6, 7, 4)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("size", [(14, 14), (15, 10), (3, 4)], ids=str)
def test_meta_tensors_give_the_shape(size, path):
    x = torch.empty(2, 6, *size, device="meta")
    assert region_pool(x, 7, path=path).shape == (2, 6, min(7, size[0]), min(7, size[1]))


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_autocast_works_with_finite_gradients(path):
    x = normal(2, 6, 9, 10, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        means = region_pool(x, 4, path=path)
    assert oracle.relative_error(float64(means), oracle.region_pool(float64(x), 4)) <= 1e-2
    (dx,) = grads(means, torch.ones_like(means), (x,))
    assert dx.isfinite().all()


@pytest.mark.parametrize(
    ("x", "region_size"),
    [
        (torch.zeros(4, 6, 6), 7),
        (torch.zeros(1, 1, 4, 6, 6), 7),
        (torch.zeros(1, 4, 6, 6), 0),
        (torch.zeros(1, 4, 6, 6), -1),
        (torch.zeros(1, 4, 6, 6), 2.5),
        (torch.zeros(1, 4, 6, 6), "7"),
        (torch.zeros(1, 4, 6, 6), None),
        (torch.zeros(1, 4, 6, 6, dtype=torch.int64), 7),
    ],
    ids=["rank 3", "rank 5", "size 0", "negative", "fraction", "text", "none", "int64"],
)
def test_bad_input_is_a_value_or_type_error(x, region_size):
    for path in PATHS_AND_RULE:
        with pytest.raises((ValueError, TypeError)) as caught:
            region_pool(x, region_size, path=path)
        assert len(str(caught.value)) > 20
