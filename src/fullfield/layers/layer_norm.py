"""LayerNorm over the channels of a map, whose output keeps the memory format of its input."""

from __future__ import annotations

import timm.layers
import torch
from torch import Tensor

from fullfield.ops.layout import is_channels_last

__all__ = ["LayerNorm2d"]


class LayerNorm2d(timm.layers.LayerNorm2d):
    """timm's `LayerNorm2d`, (B, C, H, W) -> (B, C, H, W); its arguments, parameters and their names.

    timm's hands on channels_last maps whatever it is given. A net whose norms stand between its stages then runs in
    channels_last throughout, in which 1x1 convolutions of a single image are slower on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every pixel over its channels."""
        y: Tensor = super().forward(x)
        return y.contiguous(memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)
