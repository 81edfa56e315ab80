"""Starting weights that depend on a convolution's fan-out, as PVT, VAN, MogaNet and their relatives draw them.

A convolution starts from a normal distribution of variance 2 / fan_out (He et al. 2015, equation 14), where the
fan-out of a grouped convolution counts one group: kernel height x kernel width x output channels / groups.
`nn.init.kaiming_normal_` does not divide by the groups, which would start a depthwise kernel far too small.
"""

from __future__ import annotations

import math

from torch import nn

__all__ = ["initialise_by_fan_out"]


def initialise_by_fan_out(module: nn.Module) -> None:
    """Draw the weights of all convolutions and linear layers in `module` anew, in place.

    Args:
        module: Its `nn.Conv2d` get normal weights of variance 2 / fan_out, its `nn.Linear` truncated normal weights of
            deviation 0.02; biases of both become 0. Norms and all other parameters stay. Any device, meta included.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            nn.init.normal_(layer.weight, std=math.sqrt(2 * layer.groups / (height * width * layer.out_channels)))
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
