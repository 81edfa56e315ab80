"""Class-activation maps: which parts of an image speak for a class, of any classifier, dense model or detector.

The maps are those of the `grad-cam` library (see `cam_methods`); this file finds what it needs to be told, the layer
(`cam_layer`) and the target (`cam_targets`), and says of every map how far to trust it (`cam_scores`). A map of random
weights means nothing, so every result says whether the weights are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from fullfield.data import Preprocess, eval_transform, read_image
from fullfield.errors import CheckpointError, ConfigError, FullfieldError, nearest
from fullfield.measure.cam_layer import find_layer
from fullfield.measure.cam_methods import METHODS, activation_map, first_not_finite
from fullfield.measure.cam_place import find_place
from fullfield.measure.cam_result import Cam
from fullfield.measure.cam_scores import cam_scores
from fullfield.measure.cam_targets import find_target, one_output
from fullfield.measure.dense_model import dense_preprocess, dense_view, image_for_maps
from fullfield.measure.erf_gradient import is_out_of_memory
from fullfield.measure.erf_model import MeasuredModel, open_measured
from fullfield.measure.feature_maps import frozen
from fullfield.tasks.model_file import is_model_file
from fullfield.tasks.open import OpenedDense, open_any
from fullfield.tasks.source import OpenedModel

__all__ = ["METHODS", "ImageLike", "ModelSource", "cam", "open_with_classes"]

ModelSource = str | Path | nn.Module | OpenedModel | OpenedDense | MeasuredModel
ImageLike = str | Path | Image.Image | Tensor
"""A file, a picture, or a tensor (C, H, W) or (1, C, H, W) that is preprocessed already (0 to 1 where the model
normalises)."""


def cam(
    model: ModelSource,
    image: ImageLike,
    *,
    method: str = "grad-cam",
    layer: str = "",
    target: int | str | None = None,
    classes: Sequence[str] = (),
    image_size: int | None = None,
    steps: int = 20,
    orders: int = 2,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "auto",
    pretrained: bool = False,
) -> Cam:
    """Map which parts of an image speak for a class.

    Args:
        model: A run folder, a weights file, a registered name, "path/to/file.py:factory", or any module that returns
            logits (B, K), a map of logits (B, K, h, w), or torchvision's detections. It is left as it was: mode,
            gradients and hooks. Runs for detection and segmentation are explained as wholes.
        image: See `ImageLike`.
        method: One of `METHODS`. "hires-cam" shows only what the class score is computed from where the layer is
            followed by pooling and one linear layer; "eigen-cam" knows no class, and its sign is the library's.
        layer: A name that `fullfield erf MODEL --list-layers` prints; "" finds one (see `cam_layer`).
        target: A class by index or name; None takes the likeliest, the one with the largest area (segmentation), or
            the detection with the highest score.
        classes: Names of the classes by index; known already for runs and for ImageNet.
        image_size: Side in pixels to resize files and pictures to, of dense models the shorter one; None for the
            model's own.
        steps: Points of the deletion and insertion curves less one; 0 leaves the scores out.
        orders: Random maps that the scores are compared with.
        batch_size: Images at a time while scoring; halved where memory runs out.
        seed: Of the random maps and of ties.
        device: For a model that is opened here: "auto", "cpu", "cuda", ...
        pretrained: For a registered name: fetch timm's weights.

    Returns:
        The map with its scores; `.plot("cam.png")` draws them.

    Raises:
        ConfigError: The method, layer or class is not known, the layer has no map, the image is smaller than its
            stride, or memory does not suffice.
        CheckpointError: The path holds no usable weights, or an activation is not finite; the layer is named.
        ImageError: The image can't be read.
        MissingExtraError: grad-cam is not installed.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}: it is one of {', '.join(METHODS)}{nearest(method, METHODS)}")
    if steps < 0:
        raise ConfigError(f"steps must be at least 1, or 0 for no scores, got {steps}")
    measured, known = open_with_classes(model, pretrained=pretrained, device=device, image_size=image_size)
    classes = classes or known
    preprocess = _preprocess_of(measured)
    if image_size is not None:
        preprocess = replace(preprocess, image_size=image_size)
    pixels = _tensor_of(image, measured.model, preprocess, image_size).to(measured.device, measured.dtype)
    with frozen(measured.model):
        try:
            return _explain(
                measured,
                pixels,
                preprocess,
                _name_of(image),
                method,
                layer,
                target,
                classes,
                {"steps": steps, "orders": orders, "batch_size": batch_size, "seed": seed},
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            H, W = pixels.shape[2:]
            raise ConfigError(
                f"memory does not suffice for the gradient of one image of {H} x {W} pixels; use a smaller image_size"
                " (--image-size), another device, or eigen-cam, which takes no gradient"
            ) from error


def open_with_classes(
    model: ModelSource, *, pretrained: bool = False, device: str = "auto", image_size: int | None = None
) -> tuple[MeasuredModel, tuple[str, ...]]:
    """Open a model, and return it with the names of its classes, none where they are not known.

    Args:
        model: As for `cam`.
        pretrained: For a registered name: fetch timm's weights.
        device: Of a model that is opened here: "auto", "cpu", "cuda", ...
        image_size: Attention nets of a fixed size are set to it, if they are opened here.

    Raises:
        CheckpointError: The path holds no usable weights.
        ModelNotFoundError: Neither a path nor a registered name.
        ConfigError: The device is not to be had here, or the file that should define the model does not.
    """
    if isinstance(model, str | Path) and not is_model_file(model):
        model = open_any(model, pretrained=pretrained, device=device)
    if isinstance(model, OpenedDense):
        backbone = open_measured(model)
        whole = replace(backbone, name=backbone.name.removeprefix("backbone of "), is_backbone=False)
        return replace(whole, model=dense_view(model.model)), model.classes
    if isinstance(model, nn.Module):
        model = dense_view(model)
    classes = model.classes if isinstance(model, OpenedModel) else ()
    return open_measured(model, pretrained=pretrained, device=device, image_size=image_size), classes


def _explain(
    measured: MeasuredModel,
    pixels: Tensor,
    preprocess: Preprocess,
    source: str,
    method: str,
    layer: str,
    target: int | str | None,
    classes: Sequence[str],
    scoring: dict[str, int],
) -> Cam:
    model = measured.model
    output = _run(model, pixels)
    if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
        raise CheckpointError(first_not_finite(model, pixels, layer))
    wanted = find_target(output, target, classes)

    def scalar(of_model: object) -> Tensor:
        first = one_output(of_model)
        return wanted.scalar(first[0])

    layer = layer or find_layer(model, pixels, scalar)
    heat, map_size = activation_map(method, model, layer, pixels, wanted.scalar)
    place = find_place(model, layer, pixels, map_size)
    heat = place(heat)
    scores = None
    if scoring["steps"]:
        scores = cam_scores(
            lambda images: wanted.confidence(one_output(model(images))),
            pixels,
            heat,
            map_size,
            fill=_fill_of(model, pixels),
            place=place,
            **scoring,
        )
    return Cam(
        model=measured.name,
        weights=measured.weights,
        method=method,
        layer=layer,
        map_size=map_size,
        source=source,
        task=wanted.task,
        class_index=wanted.index,
        class_name=wanted.name,
        confidence=float(wanted.confidence(output)[0]),
        map=heat,
        image=_picture_of(pixels, preprocess),
        scores=scores,
        box=wanted.box,
        note=wanted.note,
    )


def _run(model: nn.Module, pixels: Tensor) -> object:
    """Return what the model gives for one image."""
    try:
        with torch.no_grad():
            return one_output(model(pixels))
    except (FullfieldError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        C, H, W = pixels.shape[1:]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{type(model).__name__} can't take an image of {H} x {W} pixels and {C} channels ({reason}); try its own"
            " size, or a multiple of its stride (image_size=224)"
        ) from error


def _tensor_of(image: ImageLike, model: nn.Module, preprocess: Preprocess, image_size: int | None) -> Tensor:
    """Return (1, C, H, W)."""
    if not isinstance(image, Tensor):
        picture = image.convert("RGB") if isinstance(image, Image.Image) else read_image(Path(image))
        dense = dense_preprocess(model)
        if dense is not None:
            return image_for_maps(picture, dense, image_size)
        return eval_transform(preprocess)(picture)[None]
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or len(batch) != 1 or not batch.is_floating_point() or 0 in batch.shape:
        raise ConfigError(
            f"the image must be a floating-point tensor (C, H, W) or (1, C, H, W), got {image.dtype} of shape"
            f" {tuple(image.shape)}; explain images one by one"
        )
    if image_size is not None and (image_size, image_size) != tuple(batch.shape[2:]):
        H, W = batch.shape[2:]
        raise ConfigError(f"the image is a tensor of {H} x {W} pixels: resize it yourself, or leave out image_size")
    return batch.detach()


def _preprocess_of(measured: MeasuredModel) -> Preprocess:
    """Return how the model wants its images: detectors and segmenters normalise them themselves."""
    if _own_mean(measured.model) is None:
        return measured.preprocess
    channels = measured.preprocess.channels
    return replace(measured.preprocess, mean=(0.0,) * channels, std=(1.0,) * channels)


def _own_mean(model: nn.Module) -> list[float] | None:
    """Return the mean colour that a model subtracts itself; None of one that takes normalised images."""
    dense = dense_preprocess(model)
    if dense is not None:
        return list(dense.mean)
    mean = getattr(getattr(model, "transform", None), "image_mean", None)
    return None if mean is None else [float(value) for value in mean]


def _fill_of(model: nn.Module, pixels: Tensor) -> Tensor | None:
    mean = _own_mean(model)
    return None if mean is None else pixels.new_tensor(mean)[None, :, None, None]


def _picture_of(pixels: Tensor, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) of a normalised image (1, C, H, W); of another number of channels their mean, in grey."""
    image = pixels[0].double().cpu()
    if len(image) != len(preprocess.mean):
        image = image.mean(dim=0, keepdim=True)
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    else:
        mean, std = (image.new_tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
        image = image * std + mean
    picture = (255 * image.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def _name_of(image: ImageLike) -> str:
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or "a picture")
    return "a given image" if isinstance(image, Tensor) else str(image)
