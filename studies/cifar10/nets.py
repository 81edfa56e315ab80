"""The two nets of the study: RaCNN and a ConvNeXt-like net, of equal MACs on maps of the same sizes.

Both halve the image in the stem and have four stages, so that an image of 32 pixels gives maps of 16, 8, 4 and 2.
timm's ConvNeXt halves the map before its first stage too where the stem has a stride of 2; `convnext_patch2` leaves
that out. Its LayerScale starts at 1, which is as if there were none, because RaCNN has none and its usual 1e-6 needs
longer than these runs to grow (timm takes an argument of None for one not given, so it can't be switched off).
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from torch import nn

from fullfield.measure.cost import Cost, cost
from fullfield.train.settings import TrainSettings

__all__ = ["IMAGE_SIZE", "NETS", "convnext_patch2", "counted"]

IMAGE_SIZE = 32  # pixels
NETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "RaCNN": ("racnn_pico", ("dims=[24,48,96,192]", "depths=[1,2,3,1]", "stem_stride=2", "region_size=[4,2,1,1]")),
    "ConvNeXt": ("convnext_patch2", ("dims=[32,64,128,224]", "depths=[1,1,3,1]", "ls_init_value=1")),
}
"""Name in the tables -> registered name and model arguments, as in `TrainSettings`."""


@register_model
def convnext_patch2(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Build timm's convnext_atto with a stem of 2x2 patches and the first stage at the stem's stride."""
    model: nn.Module = timm.create_model("convnext_atto", pretrained=pretrained, patch_size=2, **arguments)
    model.stages[0].downsample = nn.Identity()  # type: ignore[union-attr,index]
    return model


def counted(net: str) -> Cost:
    """Return parameters and MACs of a net of `NETS` for one image of the study."""
    name, model_args = NETS[net]
    arguments = TrainSettings(data="-", model_args=model_args).model_arguments()
    return cost(name, image_size=IMAGE_SIZE, num_classes=10, **arguments)
