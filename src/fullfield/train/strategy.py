"""How a run's processes share the work: the arguments of Lightning's Trainer for one process or several."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.train.processes import Processes
from fullfield.train.settings import TrainSettings

__all__ = ["strategy_of"]


def strategy_of(settings: TrainSettings, device: torch.device, processes: Processes) -> dict[str, Any]:
    """Return accelerator, devices, num_nodes and strategy for `Trainer`.

    Args:
        settings: Fitted.
        device: Of a single process; several on a machine with GPUs take one each.
        processes: That train together.

    Raises:
        ConfigError: The strategy needs more than one process, or GPUs.
        MissingExtraError: DeepSpeed is not installed.
    """
    gpu = device.type == "cuda"
    accelerator = "gpu" if gpu else device.type
    if processes.size == 1:
        if settings.strategy not in ("auto", "ddp"):
            raise ConfigError(
                f"strategy {settings.strategy} shares work among processes; there is one. Add --devices N"
            )
        return {"accelerator": accelerator, "devices": [device.index or 0] if gpu else 1}
    place = {
        "accelerator": accelerator,
        "devices": processes.local_size,
        "num_nodes": processes.size // processes.local_size,
    }
    if settings.strategy == "deepspeed":
        return place | {"strategy": _deepspeed(gpu)}
    if settings.strategy == "fsdp":
        raise ConfigError("strategy fsdp is not supported yet; use ddp")
    return place | {"strategy": DDPStrategy(gradient_as_bucket_view=True, static_graph=False)}


def _deepspeed(gpu: bool) -> Any:
    if not gpu:
        raise ConfigError("strategy deepspeed needs GPUs; use ddp or fsdp")
    try:
        import deepspeed  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("strategy deepspeed needs the package: pip install deepspeed") from error
    from pytorch_lightning.strategies import DeepSpeedStrategy

    return DeepSpeedStrategy(stage=2)
