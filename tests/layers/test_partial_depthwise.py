"""The first channels are convolved as by a plain depthwise convolution, and the others pass bit by bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fullfield.errors import ConfigError
from fullfield.layers.partial_depthwise import PartialDepthwiseConv2d

F64 = torch.float64


def image(channels: int = 8) -> Tensor:
    return torch.randn(2, channels, 6, 9, dtype=F64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kernel_size", [3, 7, (1, 11), (11, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("share", "convolved"), [(0.25, 2), (0.5, 4), (0.3, 2), (0.9, 7), (0.01, 1), (1, 8)])
def test_first_channels_are_convolved_and_the_others_pass(
    kernel_size: int | tuple[int, int], dilation: int, share: float, convolved: int
) -> None:
    layer, x = PartialDepthwiseConv2d(8, kernel_size, share, dilation, dtype=F64), image()
    assert [p.shape[0] for p in layer.parameters()] == [convolved] * 2
    y = layer(x)
    assert torch.equal(y[:, convolved:], x[:, convolved:])
    for channel in range(convolved):  # one at a time, as no grouped convolution does
        kernel = layer.conv.weight[channel : channel + 1]
        height, width = kernel.shape[2:]
        padded = F.pad(x[:, channel : channel + 1], [dilation * (width // 2)] * 2 + [dilation * (height // 2)] * 2)
        expected = F.conv2d(padded, kernel, layer.conv.bias[channel : channel + 1], dilation=dilation)
        torch.testing.assert_close(y[:, channel : channel + 1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [0.25, 1])
def test_it_is_the_same_in_either_layout(share: float) -> None:
    layer, x = PartialDepthwiseConv2d(8, 5, share, dtype=F64), image()
    last = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, layer(x), rtol=1e-12, atol=1e-12)


def test_gradients_pass_through_both_parts() -> None:
    layer, x = PartialDepthwiseConv2d(8, 3, 0.5, dtype=F64), image().requires_grad_()
    layer(x).sum().backward()
    assert torch.equal(x.grad[:, 4:], torch.ones_like(x[:, 4:]))
    assert all(tensor.grad.isfinite().all() and tensor.grad.any() for tensor in (x, *layer.parameters()))


def test_device_dtype_and_bias_reach_the_parameters() -> None:
    layer = PartialDepthwiseConv2d(8, 3, bias=False, device="meta", dtype=torch.bfloat16)
    assert [(n, p.device.type, p.dtype) for n, p in layer.named_parameters()] == [
        ("conv.weight", "meta", torch.bfloat16)
    ]


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan")])
def test_a_share_that_is_none_is_named(share: float) -> None:
    with pytest.raises(ConfigError, match=rf"share must be more than 0 and at most 1.*got {share}"):
        PartialDepthwiseConv2d(8, 3, share)
