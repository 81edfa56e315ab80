"""The written rule that makes weights and images from names and sizes alone, so that no weights need storing.

Parity fixtures are the official code's outputs on these weights; `tests/fixtures/official/README.md` says how anyone
with the official repository makes them again. numpy's legacy generator is used because its stream is frozen for good.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

__all__ = ["rule_images", "rule_tensor", "rule_weights"]


def rule_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor, float64, that the rule gives an official name and shape.

    The generator is seeded with the CRC-32 of the name. Running variances are uniform in 0.5 to 1.5; running means and
    biases are normal with deviation 0.1; other vectors, also those with dimensions of size 1 unless they are the weight
    of a convolution (norm weights, layer scales, response norms), are uniform in 0.5 to 1.5, and a twentieth of that
    where the name starts with "layer_scale" (VAN, MogaNet: their gates square the map, which larger factors blow up
    over the blocks); everything else is normal with deviation 1 / sqrt(elements an output). Counters are 0.
    """
    random = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if leaf in ("running_mean", "bias", "beta"):
        values = 0.1 * random.standard_normal(shape)
    elif leaf == "running_var" or (max(shape, default=1) == math.prod(shape) and not (leaf == "weight" and shape[1:])):
        values = random.uniform(0.5, 1.5, shape) * (0.05 if leaf.startswith("layer_scale") else 1)
    else:
        values = random.standard_normal(shape) / math.sqrt(math.prod(shape) / shape[0])
    return torch.from_numpy(np.asarray(values, dtype=np.float64))


def rule_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return a whole state dict by the rule, from official name -> shape."""
    return {name: rule_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def rule_images(height: int, width: int) -> Tensor:
    """Return one image (1, 3, H, W), float64, standard normal, seeded with 1000 * H + W."""
    random = np.random.RandomState(1000 * height + width)
    return torch.from_numpy(random.standard_normal((1, 3, height, width)))
