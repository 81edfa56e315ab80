"""What a model with published weights expects and answers: preprocessing and class names, from timm's configuration."""

from __future__ import annotations

from collections import Counter

import timm.data
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from fullfield.data import Preprocess

__all__ = ["published_classes", "published_preprocess"]


def published_preprocess(model: nn.Module) -> Preprocess:
    """Return the preprocessing that the published weights of a model were evaluated with.

    Args:
        model: Made by name; its `pretrained_cfg` says so.

    Raises:
        ConfigError: The model takes images of neither 3 channels nor 1.
    """
    data = timm.data.resolve_model_data_config(model)
    return Preprocess(
        image_size=data["input_size"][-1],
        crop_share=data["crop_pct"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        channels=int(getattr(model, "in_chans", data["input_size"][0])),
    )


def published_classes(count: int) -> tuple[str, ...]:
    """Return the names of the classes of published weights: ImageNet's, if there are as many, else "class 0" and so on.

    Args:
        count: Number of classes; 1000 is ImageNet-1k, 21841 ImageNet-22k. Names that occur twice (crane the bird and
            the machine) are followed by their WordNet number.
    """
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return tuple(f"class {index}" for index in range(count))
    info = ImageNetInfo(subset)
    names = [info.index_to_description(index).split(",")[0] for index in range(count)]
    uses = Counter(names)
    return tuple(
        name if uses[name] == 1 else f"{name} ({info.index_to_label_name(index)})" for index, name in enumerate(names)
    )
