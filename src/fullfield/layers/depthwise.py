"""Depthwise convolution as a module: `nn.Conv2d` whose forward takes the fastest path of our operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fullfield.ops import depthwise_conv2d

__all__ = ["DepthwiseConv2d", "replace_depthwise"]


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution that keeps the size at stride 1, (B, C, H, W) -> (B, C, ceil(H/s), ceil(W/s)).

    It is an `nn.Conv2d` in all but speed: parameters, their names and their initialisation are the same.

    Args:
        channels: C.
        kernel_size: Odd, or (height, width) of a strip, both odd.
        stride: s.
        dilation: Distance of the kernel's taps.
        bias: Learn a bias.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        super().__init__(
            channels,
            channels,
            (height, width),
            stride,
            padding=(dilation * (height // 2), dilation * (width // 2)),
            dilation=dilation,
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; a single image (C, H, W) takes PyTorch's own path."""
        if x.ndim == 3:
            return super().forward(x)
        padding = (int(self.padding[0]), int(self.padding[1]))
        return depthwise_conv2d(
            x, self.weight, self.bias, stride=self.stride[0], padding=padding, dilation=self.dilation[0]
        )


def replace_depthwise(module: nn.Module) -> int:
    """Swap every depthwise `nn.Conv2d` inside a module for `DepthwiseConv2d`, in place.

    The new modules hold the same Parameters under the same names, so optimisers and state dicts stay valid; hooks on
    the old ones are lost. Only plain convolutions are swapped: groups = in = out channels, padding of zeros that keeps
    the size at stride 1, stride 1 or 2. Those that a module inherits, parametrises or fills later are left alone.

    Args:
        module: Any model, such as timm's; it can't itself be the convolution.

    Returns:
        How many convolutions were swapped; 0 where there is none.
    """
    swapped: dict[nn.Module, DepthwiseConv2d] = {}
    for parent in list(module.modules()):
        # Not `named_children`, which leaves out the second name of a module that a parent holds twice.
        for name, child in list(parent._modules.items()):
            if child is not None and (child in swapped or _is_plain_depthwise(child)):
                swapped.setdefault(child, _same_parameters(child))
                setattr(parent, name, swapped[child])
    return len(swapped)


def _is_plain_depthwise(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    kernel, dilation = module.kernel_size, module.dilation
    return (
        module.groups == module.in_channels == module.out_channels
        and all(size % 2 == 1 for size in kernel)
        and module.stride in ((1, 1), (2, 2))
        and dilation[0] == dilation[1]
        and tuple(module.padding) == (dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2))
    )


def _same_parameters(conv: nn.Module) -> DepthwiseConv2d:
    assert isinstance(conv, nn.Conv2d)  # noqa: S101 - for the type checker
    swapped = DepthwiseConv2d(
        conv.in_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        conv.stride[0],
        conv.dilation[0],
        bias=conv.bias is not None,
        device="meta",
    )
    swapped.weight, swapped.bias = conv.weight, conv.bias
    return swapped.train(conv.training)
