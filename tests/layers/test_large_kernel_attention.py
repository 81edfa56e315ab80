"""LKA against sums of shifted products in float64, and the decomposition of VAN's equation 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fullfield.errors import ConfigError
from fullfield.layers.large_kernel_attention import LargeKernelAttention, decomposed_kernel

from .by_hand import depthwise_by_hand, pointwise_by_hand

F64 = torch.float64


def image(channels: int = 6, size: tuple[int, int] = (11, 13)) -> Tensor:
    return torch.randn(2, channels, *size, dtype=F64)


@pytest.mark.parametrize("size", [(11, 13), (30, 7), (1, 1)], ids=str)
@pytest.mark.parametrize(("kernel_size", "dilation"), [(21, 3), (35, 5), (7, 1)])
@torch.no_grad()
def test_lka_is_the_map_times_three_convolutions_of_it(size: tuple[int, int], kernel_size: int, dilation: int) -> None:
    layer, x = LargeKernelAttention(6, kernel_size, dilation, dtype=F64), image(size=size)
    attention = pointwise_by_hand(
        depthwise_by_hand(depthwise_by_hand(x, layer.depthwise), layer.dilated), layer.pointwise
    )
    torch.testing.assert_close(layer(x), x * attention, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "kernels"), [(21, 3, (5, 7)), (28, 4, (7, 7)), (14, 3, (5, 5)), (7, 1, (1, 7))]
)
def test_a_large_kernel_becomes_the_paper_s_two_small_ones(
    kernel_size: int, dilation: int, kernels: tuple[int, int]
) -> None:
    assert decomposed_kernel(kernel_size, dilation) == kernels


def test_the_default_attention_sees_23_by_23_pixels() -> None:
    layer, x = LargeKernelAttention(3, dtype=F64), image(3, (41, 41)).requires_grad_()
    attention = layer.pointwise(layer.dilated(layer.depthwise(x)))
    (seen,) = torch.autograd.grad(attention[:, :, 20, 20].sum(), x)
    rows, columns = (seen.abs().sum((0, 1)) > 1e-9).nonzero(as_tuple=True)  # a transform rounds zeros
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (9, 31, 9, 31)


def test_parameters_are_those_of_the_three_convolutions() -> None:
    assert sum(p.numel() for p in LargeKernelAttention(8).parameters()) == 8 * 26 + 8 * 50 + 8 * 9


def test_the_input_is_left_as_it_was() -> None:
    layer, x = LargeKernelAttention(6, dtype=F64), image()
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [(9, 8), (1, 1)], ids=str)
def test_gradients_are_finite_and_reach_everything(size: tuple[int, int]) -> None:
    layer, x = LargeKernelAttention(6, dtype=F64), image(size=size).requires_grad_()
    layer(x).square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "message"),
    [
        (7, 2, r"must be odd, got 7 / 2 -> 4; kernel_size=6 or 10"),
        (0, 3, r"kernel_size of large kernel attention must be an int of at least 1, got 0"),
        (21, 0, r"dilation of .* got 0"),
        (21.0, 3, r"kernel_size of .* got 21.0"),
        (True, 3, r"kernel_size of .* got True"),
    ],
    ids=str,
)
def test_an_impossible_kernel_is_named_with_the_way_out(kernel_size: int, dilation: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LargeKernelAttention(6, kernel_size, dilation)


def test_the_sizes_that_an_error_proposes_are_possible() -> None:
    assert decomposed_kernel(6, 2) == (3, 3)
    assert decomposed_kernel(10, 2) == (3, 5)
