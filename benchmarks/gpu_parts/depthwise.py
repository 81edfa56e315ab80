"""Large depthwise convolution: PyTorch's own in both layouts and every dtype, and the paths that need no kernel."""

import torch

from fullfield.ops import depthwise_conv2d
from gpu_parts.bounds import Ceilings
from gpu_parts.campaign import Campaign, Row, digits

# channels, side, kernel: RepLKNet-31B's and UniRepLKNet's stages, and a strip of SLaK
SHAPES = [
    (128, 56, (31, 31)),
    (256, 28, (29, 29)),
    (512, 14, (27, 27)),
    (1024, 7, (13, 13)),
    (80, 56, (3, 3)),
    (320, 14, (13, 13)),
    (124, 56, (51, 5)),
    (496, 14, (47, 5)),
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def measure(campaign: Campaign, ceilings: Ceilings) -> list[Row]:
    """Return one row a shape, dtype, layout, path and direction."""
    rows = []
    for channels, side, kernel in [(4, 8, (5, 5))] if campaign.dry else SHAPES:
        for dtype in DTYPES:
            for layout in ("nchw", "channels_last"):
                # the other paths once, in the dtype and layout that nets are run in
                others = ("toeplitz", "fft") if (dtype, layout) == (torch.bfloat16, "nchw") else ()
                for path in ("native", *others):
                    if path == "toeplitz" and side > 14:
                        continue
                    what = f"depthwise {channels} {side} {kernel} {dtype} {layout} {path}"
                    arguments = (campaign, ceilings, channels, side, kernel, dtype, layout, path)
                    rows += campaign.attempt(what, lambda arguments=arguments: _rows(*arguments)) or []
    return rows


def _rows(
    campaign: Campaign,
    ceilings: Ceilings,
    channels: int,
    side: int,
    kernel: tuple[int, int],
    dtype: torch.dtype,
    layout: str,
    path: str,
) -> list[Row]:
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(campaign.batch(64), channels, side, side, device=campaign.device, dtype=dtype)
    x = x.contiguous(memory_format=memory_format)
    weight = torch.randn(channels, 1, *kernel, device=campaign.device, dtype=dtype).requires_grad_()
    leaf, g = x.clone().requires_grad_(), torch.randn_like(x)

    def forward() -> None:
        with torch.no_grad():
            depthwise_conv2d(x, weight, path=path)

    def both() -> None:
        leaf.grad = weight.grad = None
        depthwise_conv2d(leaf, weight, path=path).backward(g)

    rows = []
    for direction, run, passes in (("forward", forward, 2), ("forward+backward", both, 7)):
        # some of these take 20 ms a call in PyTorch's own kernels
        time_us = campaign.time_us(run, repetitions=5)
        floor = 1e6 * passes * x.numel() * x.element_size() / ceilings.bytes_per_s
        rows.append(
            {
                "channels": channels,
                "side": side,
                "kernel_height": kernel[0],
                "kernel_width": kernel[1],
                "batch": len(x),
                "dtype": str(dtype).removeprefix("torch."),
                "layout": layout,
                "path": path,
                "direction": direction,
                "us": digits(time_us),
                "memory_floor_us": digits(floor),
                "times_floor": digits(time_us / floor),
            }
        )
    return rows
