"""The groups of parameters that AdamW treats differently: without weight decay, and with a rate for each depth.

Source of layer-wise decay: Clark et al., "ELECTRA", 2020, as timm computes it. The net of a dense model is
decayed as it would be as a classifier; pyramid and head, which are new, learn at the full rate.
"""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from fullfield.tasks.features import FeatureBackbone

__all__ = ["parameter_groups"]


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None, lr: float
) -> list[dict[str, Any]]:
    """Return the optimiser's groups of all parameters that need a gradient.

    Args:
        model: A classifier, or a dense model with a `backbone`.
        weight_decay: Not on biases, norms and what the net names in `no_weight_decay`.
        layer_decay: Factor of the rate from each layer group to the one before it; None for one rate.
        lr: Peak learning rate.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, FeatureBackbone):
        return _groups(model, weight_decay, layer_decay, lr)
    inside = {id(parameter) for parameter in backbone.parameters()}
    outside = nn.Module()
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if id(parameter) not in inside:
            outside.register_parameter(f"{index}_{name.replace('.', '_')}", parameter)
    return [*_groups(backbone.model, weight_decay, layer_decay, lr), *param_groups_weight_decay(outside, weight_decay)]


def _groups(model: nn.Module, weight_decay: float, layer_decay: float | None, lr: float) -> list[dict[str, Any]]:
    skip: Any = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    if layer_decay is None:
        return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skip)  # type: ignore[no-any-return]
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        model, weight_decay, no_weight_decay_list=skip, layer_decay=layer_decay
    )
    for group in groups:
        group["lr"] = lr * group.pop("lr_scale", 1.0)
    return groups
