"""What the operator tests share: inputs, map sizes, the stated tolerances, every path of an operator.

Inputs are drawn with numpy from a seed, so a test's data does not depend on the order in which tests run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fullfield import ops

# Sizes that divide by the region size and that do not, smaller than it, and of a single pixel or row.
SIZES = [(57, 50), (20, 33), (5, 6), (3, 2), (7, 7), (1, 1), (1, 13)]

HALF_DTYPES = [torch.bfloat16, torch.float16]
ALL_DTYPES = [torch.float64, torch.float32, *HALF_DTYPES]

# Relative norms against the float64 loops. For half types the inputs are rounded first, then shared.
Y_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
GRAD_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def paths(operator: str) -> list[str]:
    """Return the names of all paths of `operator`."""
    return list(ops.PATHS[operator])


def paths_and_rule(operator: str) -> list[str | None]:
    """Return all paths of `operator` and None, which lets the measured rule choose."""
    return [None, *ops.PATHS[operator]]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers of that shape."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def scales(heads: int, similarity: str, pixels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return one scale a head, of both signs, that keeps the logits of `pixels` normal numbers near 1 to 4."""
    per_head = torch.tensor([2.5, -1.5, 4.0, 0.5], dtype=dtype)[:heads]
    return per_head if similarity == "cosine" else per_head / pixels


def float64(tensor: Tensor) -> np.ndarray:
    """Return the values as a float64 numpy array."""
    return tensor.detach().to(torch.float64).numpy()


def grads(y: Tensor, upstream: Tensor, wrt: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of <y, upstream> with respect to the tensors `wrt`."""
    return torch.autograd.grad(y, list(wrt), upstream.to(y.dtype))
