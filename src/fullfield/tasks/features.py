"""Feature maps for dense tasks: any registered net as the source of maps at strides 4, 8, 16 and 32.

The net is kept whole, under its own parameter names and without a classifier, so that weights of a classification run
fit it and everything that looks into a classifier looks into the backbone of a detector as well. Maps are taken by
timm's `forward_intermediates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.models.registry import create_model

__all__ = ["STRIDES", "FeatureBackbone"]

STRIDES = (4, 8, 16, 32)
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False, "dynamic_mask": True},  # Swin: windows and masks made for each image
    {"strict_img_size": False},
    {"dynamic_img_size": True},
)


class FeatureBackbone(nn.Module):
    """A net as a source of feature maps, (B, in_chans, H, W) -> maps at `strides`, finest first.

    Args:
        name: Of `fullfield models`, timm's included.
        strides: Of the maps, ascending; the net must have a map at each.
        optional_strides: Further strides whose maps are taken where the net has them.
        **arguments: Of `create_model`, such as `in_chans`, `drop_path_rate` or `pretrained`.

    Attributes:
        model: The net, without a classifier.
        channels: Of each map.
        strides: Of each map, pixels of the image.

    Raises:
        ConfigError: The net has no map at one of the strides (a plain ViT has but one), or can't be built so.
        ModelNotFoundError: There is no such net.
    """

    def __init__(
        self, name: str, *, strides: Sequence[int] = STRIDES, optional_strides: Sequence[int] = (), **arguments: Any
    ) -> None:
        super().__init__()
        self.name = name
        self.arguments = {key: value for key, value in arguments.items() if key != "pretrained"}
        self.model = _create(name, arguments)
        found: dict[int, int] = {}
        for index, info in enumerate(_feature_info(name, self.model)):
            found[int(info["reduction"])] = index  # the last map of a stride is the deepest
        missing = [stride for stride in strides if stride not in found]
        if missing or not hasattr(self.model, "forward_intermediates"):
            have = ", ".join(map(str, sorted(found))) or "none"
            raise ConfigError(
                f"{name} has feature maps at strides {have}, and {', '.join(map(str, missing)) or 'named maps'} is"
                " needed; choose a net with four stages (`fullfield models`), such as racnn_tiny or convnext_tiny"
            )
        taken = sorted({*strides, *(stride for stride in optional_strides if stride in found)})
        self.indices = [found[stride] for stride in taken]
        infos = _feature_info(name, self.model)
        self.channels = tuple(int(infos[index]["num_chs"]) for index in self.indices)
        self.strides = tuple(taken)
        _freeze_unused(self.model)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) each."""
        model: Any = self.model
        try:
            maps = model.forward_intermediates(x, indices=self.indices, intermediates_only=True, output_fmt="NCHW")
        except AssertionError as error:  # of nets whose windows must divide the map, such as MaxViT's
            raise ConfigError(
                f"{self.name} can't take images of {x.shape[2]} x {x.shape[3]} pixels ({error}); choose a net that"
                " takes any size, such as racnn_tiny or convnext_tiny"
            ) from error
        return list(maps)

    def extra_repr(self) -> str:
        """Show what a reader of a printed model wants to know."""
        return f"{self.name!r}, strides={self.strides}, channels={self.channels}"


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build the net without a classifier, ready for images of any size where it can be."""
    arguments = {"num_classes": 0, **arguments}
    cfg = get_pretrained_cfg(name.partition(".")[0])
    tries = _ANY_SIZE if cfg is not None and cfg.fixed_input_size and "img_size" not in arguments else ()
    for extra in (*tries, {}):
        try:
            return create_model(name, **arguments, **extra)
        except TypeError as error:  # an argument that this family does not know
            if not extra:
                raise ConfigError(f"{name} can't be built with {arguments}: {str(error).splitlines()[0]}") from error
        except (AssertionError, RuntimeError, OSError) as error:
            raise ConfigError(f"{name} can't be built with {arguments}: {str(error).splitlines()[0]}") from error
    raise AssertionError("unreachable")


def _freeze_unused(model: nn.Module) -> None:
    """Let no gradient be expected for the norm of a classifier's head, which no map goes through."""
    for name in ("head", "norm_pre_head"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Module):
            head.requires_grad_(False)


def _feature_info(name: str, model: nn.Module) -> list[dict[str, Any]]:
    info: Any = getattr(model, "feature_info", None)
    if info is None:
        raise ConfigError(f"{name} has no feature maps that timm knows of; choose a net with four stages")
    if isinstance(info, list):
        return list(info)
    return list(info.get_dicts())
