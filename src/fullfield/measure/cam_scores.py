"""Deletion and insertion: does the model lose the class when the pixels that a map marks are taken away?

Source: RISE (Petsiuk, Das and Saenko 2018), section 4.2. Pixels are taken in the order of the map, highest first.
Deletion replaces them by the mean colour of the training set (0 after normalisation) and should lose the class soon:
a small area under the curve is good. Insertion brings them into a blurred image and should find the class soon: a
large area is good. Ours: ties (a rectified map has many zeros) are ordered at random from a seed, and the reference is
the same measure for random maps with the units of the layer, enlarged in the same way, so that only the place differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from fullfield.errors import ConfigError
from fullfield.measure.cam_place import Place
from fullfield.measure.erf_gradient import is_out_of_memory
from fullfield.progress import console

__all__ = ["CamScores", "Curve", "blurred", "cam_scores", "deletion_and_insertion", "random_maps"]

BLUR_SIGMA, BLUR_SIZE = 5 / 224, 11 / 224  # of the image's side: RISE has 5 and 11 pixels at 224

Confidence = Callable[[Tensor], Tensor]
Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Curve:
    """The model's confidence while pixels change, from none to all."""

    share: tuple[float, ...]
    """Of the pixels, 0 to 1."""
    confidence: tuple[float, ...]

    @property
    def auc(self) -> float:
        """Area under the curve, between 0 and 1, by trapezoids."""
        return float(np.trapezoid(self.confidence, self.share))


@dataclass(frozen=True)
class CamScores:
    """Deletion and insertion of a map, and what random maps give."""

    deletion: Curve
    """A small area is good."""
    insertion: Curve
    """A large area is good."""
    random_deletion: Curve
    """Mean over the random maps."""
    random_insertion: Curve


def cam_scores(
    confidence: Confidence,
    image: Tensor,
    heat: Map,
    map_size: tuple[int, int],
    *,
    steps: int,
    orders: int,
    batch_size: int,
    seed: int,
    fill: Tensor | None = None,
    place: Place = lambda heat: heat,
) -> CamScores:
    """Score a map, and random maps for comparison.

    Args:
        confidence: Images (B, C, H, W) -> (B,) in [0, 1].
        image: (1, C, H, W), normalised.
        heat: (H, W), the map.
        map_size: (h, w) of the random maps before they are enlarged.
        steps: Points of a curve less one; the model runs 2 * steps + 1 times a map, on as many images.
        orders: Random maps.
        batch_size: Images at a time; halved where memory runs out.
        seed: Of the random maps and of the order of ties.
        fill: (1, C, 1, 1), what deleted pixels become; None for 0.
        place: Moves the random maps as the map was moved, see `cam_place`.

    Raises:
        ConfigError: Memory does not suffice for one image, or a number is below 1.
    """
    if min(steps, orders, batch_size) < 1:
        raise ConfigError(f"steps, orders and batch_size must be at least 1, got {steps}, {orders} and {batch_size}")
    maps = [heat, *map(place, random_maps(orders, map_size, (image.shape[2], image.shape[3]), seed))]
    pairs = [
        deletion_and_insertion(confidence, image, one, steps=steps, batch_size=batch_size, seed=seed + i, fill=fill)
        for i, one in enumerate(maps)
    ]
    deletion, insertion = pairs[0]
    return CamScores(deletion, insertion, _mean([p[0] for p in pairs[1:]]), _mean([p[1] for p in pairs[1:]]))


def deletion_and_insertion(
    confidence: Confidence,
    image: Tensor,
    heat: Map,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    fill: Tensor | None = None,
) -> tuple[Curve, Curve]:
    """Return the deletion and the insertion curve of one map; the arguments are those of `cam_scores`."""
    shares = np.linspace(0, 1, steps + 1)
    rank = torch.from_numpy(_ranks(heat, seed)).to(image.device)
    counts = torch.from_numpy(np.round(shares * heat.size).astype(np.int64)).to(image.device)
    taken = rank[None, None] < counts[:, None, None, None]  # (steps + 1, 1, H, W)
    soft = blurred(image)
    gone = torch.zeros_like(image) if fill is None else fill.to(image).expand_as(image)
    deletion = _run(confidence, lambda part: torch.where(part, gone, image), taken, batch_size)
    insertion = _run(confidence, lambda part: torch.where(part, image, soft), taken, batch_size)
    share = tuple(float(value) for value in shares)
    return Curve(share, deletion), Curve(share, insertion)


def random_maps(count: int, map_size: tuple[int, int], image_size: tuple[int, int], seed: int) -> list[Map]:
    """Return uniform noise (h, w), enlarged to (H, W) bilinearly, as the library enlarges its maps."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((count, 1, *map_size), generator=generator)
    enlarged = F.interpolate(noise, image_size, mode="bilinear", align_corners=False)
    return list(enlarged[:, 0].numpy())


def blurred(image: Tensor) -> Tensor:
    """Return an image (1, C, H, W) under RISE's Gaussian blur, which grows with the image."""
    side = max(image.shape[2:])
    kernel = 2 * max(1, round((BLUR_SIZE * side - 1) / 2)) + 1
    smallest = min(image.shape[2:])
    kernel = min(kernel, 2 * ((smallest - 1) // 2) + 1)  # torchvision mirrors at the border: the kernel has to fit
    soft: Tensor = gaussian_blur(image.float(), [kernel, kernel], [BLUR_SIGMA * side, BLUR_SIGMA * side])
    return soft.to(image.dtype)


def _ranks(heat: Map, seed: int) -> npt.NDArray[np.int64]:
    """Return (H, W), 0 for the highest pixel; equal ones in a random order."""
    flat = heat.ravel()
    order = np.lexsort((np.random.default_rng(seed).random(flat.size), -flat))
    ranks = np.empty(flat.size, dtype=np.int64)
    ranks[order] = np.arange(flat.size)
    return ranks.reshape(heat.shape)


def _run(
    confidence: Confidence, change: Callable[[Tensor], Tensor], taken: Tensor, batch_size: int
) -> tuple[float, ...]:
    values: list[float] = []
    while len(values) < len(taken):
        part = taken[len(values) : len(values) + batch_size]
        try:
            with torch.inference_mode():
                values += confidence(change(part)).double().tolist()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise ConfigError(
                    "memory does not suffice for one image; use a smaller image_size (--image-size) or another device"
                ) from error
            batch_size = len(part) // 2
            console.print(
                f"out of memory with {len(part)} images at a time; going on with {batch_size}", style="yellow"
            )
    return tuple(values)


def _mean(curves: Sequence[Curve]) -> Curve:
    values: Any = np.mean([curve.confidence for curve in curves], axis=0)
    return Curve(curves[0].share, tuple(float(value) for value in values))
