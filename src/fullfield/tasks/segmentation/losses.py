"""Losses of semantic segmentation: cross-entropy, Dice, Lovász-Softmax and focal, and weighted sums of them.

Each takes logits (B, K, H, W) of any floating dtype and labels (B, H, W) int64, and returns a mean over the pixels that
are not `ignore_index` in float32 (float64 for such logits). A batch without such pixels gives 0, with gradient 0: a
crop may lie wholly in unlabelled ground. segmentation-models-pytorch's losses are not used: on such a batch its
Lovász loss is no scalar and its focal loss NaN, and its Dice loss keeps an int64 one-hot map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.errors import ConfigError, nearest

__all__ = ["LOSSES", "SegmentationLoss", "cross_entropy", "dice", "focal", "lovasz_softmax", "read_loss"]


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy, nats.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W), 0 to K - 1 or `ignore_index`.
        ignore_index: The label of pixels that do not count.
        class_weights: (K,); the mean is then sum(w[y] * loss) / sum(w[y]).
    """
    logits = _accurate(logits)
    weights = None if class_weights is None else class_weights.to(logits.dtype)
    total = F.cross_entropy(logits, labels, weight=weights, ignore_index=ignore_index, reduction="sum")
    valid = labels != ignore_index
    count = valid.sum().to(logits.dtype) if weights is None else (weights[labels.where(valid, 0)] * valid).sum()
    return total / count.clamp(min=torch.finfo(logits.dtype).tiny)


def focal(logits: Tensor, labels: Tensor, ignore_index: int, gamma: float = 2.0) -> Tensor:
    """Return the mean of -(1 - p)^gamma log p, p the share of the true class (Lin et al. 2017, eq. 4)."""
    valid = labels != ignore_index
    log_p = _accurate(logits).log_softmax(dim=1).gather(1, labels.where(valid, 0)[:, None])[:, 0]
    return -((1 - log_p.exp()) ** gamma * log_p * valid).sum() / valid.sum().clamp(min=1)


def dice(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Return 1 - 2 |P Y| / (|P| + |Y|), over the batch, as the mean over the classes that occur in it.

    P are the shares of the softmax and Y the truth (Milletari et al. 2016, with sums in place of squares, as
    segmentation-models-pytorch has it; that library counts a class that does not occur as a loss of 0).
    """
    shares, truth = _labelled(logits, labels, ignore_index)  # (P, K), (P,)
    classes = shares.shape[1]
    right = shares.gather(1, truth[:, None])[:, 0]
    both = shares.new_zeros(classes).index_add(0, truth, right)
    count = torch.bincount(truth, minlength=classes).to(shares.dtype)
    occurs = (count > 0).to(shares.dtype)
    # where a class does not occur the denominator may be 0; its loss does not count
    loss = 1 - 2 * both / (shares.sum(dim=0) + count + (1 - occurs))
    return (loss * occurs).sum() / occurs.sum().clamp(min=1)


def lovasz_softmax(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Return the Lovász-Softmax loss over the batch, the mean over the classes that occur in it.

    It is the convex extension of 1 - IoU to errors between 0 and 1 (Berman et al. 2018, eq. 8 and algorithm 1).
    """
    shares, truth = _labelled(logits, labels, ignore_index)  # (P, K), (P,)
    losses = []
    for label in truth.unique().tolist():
        is_class = (truth == label).to(shares.dtype)
        errors, order = (is_class - shares[:, label]).abs().sort(descending=True)
        losses.append(errors @ _jaccard_steps(is_class[order]))
    return torch.stack(losses).mean() if losses else shares.sum()


def _jaccard_steps(truth_sorted: Tensor) -> Tensor:
    """Return how much 1 - IoU grows with each further error, (P,) in the order of the errors (algorithm 1)."""
    total = truth_sorted.sum()
    intersection = total - truth_sorted.cumsum(0)
    union = total + (1 - truth_sorted).cumsum(0)
    return (1 - intersection / union).diff(prepend=total.new_zeros(1))


def _labelled(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the shares (P, K) and labels (P,) of the pixels that count."""
    valid = labels != ignore_index
    return _accurate(logits).softmax(dim=1).movedim(1, -1)[valid], labels[valid]


def _accurate(logits: Tensor) -> Tensor:
    """Return at least float32: sums over a million pixels are lost in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


LOSSES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "lovasz": lovasz_softmax,
    "focal": focal,
}


def read_loss(text: str) -> dict[str, float]:
    """Return the weight of each loss in a text such as "cross_entropy+dice" or "cross_entropy:1+lovasz:0.5".

    Raises:
        ConfigError: A loss is unknown (the nearest is named) or comes twice, or a weight is not above 0.
    """
    weights: dict[str, float] = {}
    for part in text.split("+"):
        name, colon, number = (piece.strip() for piece in part.partition(":"))
        if name not in LOSSES:
            raise ConfigError(
                f"there is no segmentation loss {name!r} in {text!r}; losses: {', '.join(LOSSES)}, joined by +"
                f"{nearest(name, LOSSES)}"
            )
        if name in weights:
            raise ConfigError(f"the loss {name!r} comes twice in {text!r}; name it once, with the sum of its weights")
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ConfigError(f"the weight {number!r} of {name!r} in {text!r} must be a number above 0, such as 0.5")
        weights[name] = weight
    return weights


class SegmentationLoss(nn.Module):
    """A weighted sum of losses, of logits (B, K, H, W) and labels (B, H, W).

    Args:
        text: See `read_loss`.
        ignore_index: The label of pixels that do not count.
        class_weights: Of the cross-entropy, one number, at least 0, a class.

    Raises:
        ConfigError: The text can't be read, or the weights are impossible or have nothing to weigh.
    """

    def __init__(self, text: str, ignore_index: int, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.text = text
        self.weights = read_loss(text)
        self.ignore_index = ignore_index
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)
        if class_weights is not None:
            if "cross_entropy" not in self.weights:
                raise ConfigError(f"class weights weigh the cross-entropy, which is not in {text!r}; leave them out")
            self.class_weights = torch.tensor(class_weights, dtype=torch.float32)
            if not (
                self.class_weights.isfinite().all() and (self.class_weights >= 0).all() and self.class_weights.any()
            ):
                raise ConfigError(f"class weights are {list(class_weights)}; they must be at least 0 and not all 0")

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum, a scalar.

        Raises:
            ConfigError: There are not as many class weights as classes.
        """
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise ConfigError(f"there are {len(self.class_weights)} class weights and {logits.shape[1]} classes")
        total = logits.new_zeros((), dtype=_accurate(logits[:0]).dtype)
        for name, weight in self.weights.items():
            if name == "cross_entropy":
                value = cross_entropy(logits, labels, self.ignore_index, self.class_weights)
            else:
                value = LOSSES[name](logits, labels, self.ignore_index)
            total = total + weight * value
        return total

    def extra_repr(self) -> str:
        """Show what a reader of a printed model wants to know."""
        return f"{self.text!r}, ignore_index={self.ignore_index}"
