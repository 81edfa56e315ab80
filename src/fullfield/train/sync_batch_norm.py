"""BatchNorm over the images of all processes (Ioffe & Szegedy 2015, with the statistics of the global batch).

On GPUs this is PyTorch's `SyncBatchNorm`, which refuses other devices, and which DDP refuses there too. Here is the
same for CPUs, by differentiable sums over the processes, so that a run of several processes on CPUs equals one of one.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fullfield.tasks.segmentation.heads import PooledBatchNorm2d

__all__ = ["convert_batch_norm", "normalise_together"]


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient of a sum that all of them use is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed


def normalise_together(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Return what BatchNorm in training makes of the images of all processes, and move its running statistics.

    Args:
        norm: Parameters, running statistics, momentum and eps.
        x: (B, C, ...), this process's images; B may differ among processes.

    Returns:
        (B, C, ...). Its gradient takes account of how each process's images move the statistics of all.
    """
    dtype = x.dtype
    x = x if dtype == torch.float64 else x.float()  # under autocast maps are of half precision; statistics are not
    axes = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = torch.tensor([x.numel() / x.shape[1]], dtype=x.dtype)
    sums = _Sum.apply(torch.cat([x.sum(axes), count]))
    n = float(sums[-1].detach())
    mean = sums[:-1] / n
    centred = x - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(axes)) / n  # around the mean: the mean of squares would lose digits
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        tracked = cast("Tensor", norm.num_batches_tracked)
        tracked.add_(1)
        share = 1.0 / float(tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.detach(), share)
        norm.running_var.lerp_(variance.detach() * (n / max(n - 1, 1)), share)
    y: Tensor = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(dtype)


def _together(norm: nn.Module) -> bool:
    return norm.training and dist.is_initialized() and dist.get_world_size() > 1


class _BatchNorm1d(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return normalise_together(self, x) if _together(self) else super().forward(x)


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return normalise_together(self, x) if _together(self) else super().forward(x)


class _BatchNorm3d(nn.BatchNorm3d):
    def forward(self, x: Tensor) -> Tensor:
        return normalise_together(self, x) if _together(self) else super().forward(x)


class _PooledBatchNorm2d(PooledBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return normalise_together(self, x) if _together(self) else super().forward(x)


class _BatchNormAct2d(BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(normalise_together(self, x))) if _together(self) else super().forward(x)
        return y


_ON_CPU: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.BatchNorm3d: _BatchNorm3d,
    BatchNormAct2d: _BatchNormAct2d,
    PooledBatchNorm2d: _PooledBatchNorm2d,
}


def convert_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm of a model, timm's with activations included, one over all processes.

    Parameters and buffers are the model's own and keep their names. On a CPU the modules stay what they are, and are
    a BatchNorm as before where there is one process.

    Args:
        model: To convert, in place on a CPU.
        device: That it will be trained on.
    """
    if device.type != "cpu":
        converted: nn.Module = convert_sync_batchnorm(model)
        return converted
    for module in model.modules():
        if type(module) in _ON_CPU:
            module.__class__ = _ON_CPU[type(module)]
    return model
