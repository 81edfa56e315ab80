"""`fullfield.optimize`: a model made ready for inference in PyTorch itself, without a file.

What the formats do to a graph is done to the module here: branches and norms folded, weights laid out and cast for the
device, and, if asked for, compiled. Nothing is measured: `fullfield bench` says what each step is worth on a machine.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fullfield.deploy.graph import fused
from fullfield.errors import ConfigError, nearest

__all__ = ["BACKENDS", "DTYPES", "Optimized", "optimize"]

BACKENDS = ("eager", "compile", "cuda_graphs")
"""Eager PyTorch; torch.compile; torch.compile whose kernels are replayed as one CUDA graph."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Optimized(nn.Module):
    """A model for inference that takes images as they come; made by `optimize`.

    Args:
        model: In eval mode, on its device, in its layout and dtype.
        call: `model`, or what stands for it when it is compiled.
        device: To which images are moved.
        dtype: To which images are cast.
        memory_format: In which images are laid out.
    """

    def __init__(
        self, model: nn.Module, call: Any, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        super().__init__()
        self.model = model
        self._calls = (call,)  # a tuple, so that the compiled module's parameters aren't registered twice
        self._images: dict[str, Any] = {"device": device, "dtype": dtype, "memory_format": memory_format}

    def forward(self, images: Tensor) -> Any:
        """Run the model without autograd.

        Args:
            images: (B, C, H, W), as the model takes them (normalised), any floating dtype, layout and device.

        Returns:
            What the model returns, its floating-point tensors in float32.

        Raises:
            ConfigError: PyTorch can't compile the model here.
        """
        from torch._dynamo.exc import TorchDynamoException

        try:
            with torch.inference_mode():
                outputs = self._calls[0](images.to(**self._images))
                return tree_map_only(Tensor, _in_single, outputs)
        except TorchDynamoException as error:
            cause = getattr(error, "inner_exception", None) or error
            said = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise ConfigError(
                f"torch.compile can't compile {type(self.model).__name__} here: {said}. On a CPU it needs a C++"
                " compiler (g++ or clang); leave out the backend to run it eagerly"
            ) from error

    def train(self, mode: bool = True) -> Optimized:
        """Stay in eval mode.

        Raises:
            ConfigError: Training is asked for.
        """
        if mode:
            raise ConfigError("an optimized model can't be trained: its norms and branches are folded. Train the model")
        return super().train(False)


def optimize(
    model: nn.Module,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    backend: str = "eager",
) -> Optimized:
    """Return a copy of a model that gives the same answers faster, for inference only.

    Args:
        model: (B, C, H, W) -> tensors in any structure: one of Fullfield's, of timm's, or any other module. Norms and
            branches are folded where it knows how. It is left as it was.
        device: Where the copy runs; None for where the model is.
        dtype: Of its weights and arithmetic: float32, or bfloat16 or float16 where the device is fast at them.
        channels_last: Lay weights and maps out as (B, H, W, C), which tensor cores want. On a CPU it helps nets with
            many 1x1 convolutions.
        backend: "eager", "compile" (torch.compile; compiled anew for each shape), or "cuda_graphs" (compiled, and
            replayed as one CUDA graph for each shape, which pays where a batch is small).

    Returns:
        The copy; see `Optimized.forward`.

    Raises:
        ConfigError: The backend or dtype is unknown, CUDA graphs are asked for without a GPU, or a weight is beyond
            what float16 can hold (65504).
    """
    if backend not in BACKENDS:
        hint = nearest(backend, BACKENDS) or f"; there are {', '.join(BACKENDS)}"
        raise ConfigError(f"there is no backend {backend!r}{hint}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    place = torch.device(device) if device is not None else _device_of(model)
    if backend == "cuda_graphs" and place.type != "cuda":
        raise ConfigError(f"CUDA graphs need a CUDA device, and the model is for {place}; use backend='compile'")
    ready = fused(deepcopy(model)).requires_grad_(False)
    _check_range(ready, dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    ready = ready.to(device=place, dtype=dtype).to(memory_format=memory_format)
    mode = "reduce-overhead" if backend == "cuda_graphs" else None
    call: Any = ready if backend == "eager" else torch.compile(ready, mode=mode, dynamic=False)
    return Optimized(ready, call, place, dtype, memory_format).eval()


def _device_of(model: nn.Module) -> torch.device:
    return next((x.device for x in model.parameters()), torch.device("cpu"))


def _check_range(model: nn.Module, dtype: torch.dtype) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool((value.to(dtype).isfinite() | ~value.isfinite()).all()):
            raise ConfigError(f"{name} has weights beyond the range of {dtype}; use torch.bfloat16 or torch.float32")


def _in_single(x: Tensor) -> Tensor:
    # cloned: the next replay of a CUDA graph writes over the last one's outputs
    return x.to(torch.float32, copy=True) if x.is_floating_point() else x.clone()
