"""The classifier head of families that normalise the map before pooling, or not at all."""

from __future__ import annotations

from typing import Any

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

__all__ = ["PoolHead"]


class PoolHead(nn.Module):
    """Norm, global pooling, dropout, linear layer, (B, C, H, W) -> (B, num_classes).

    Args:
        in_features: Channels C.
        num_classes: Of the classifier; 0 gives pooled features (B, C).
        pool_type: timm's pooling type; "" keeps the map.
        drop_rate: Dropout before the classifier.
        norm: Applied to the map; None where the last stage has normalised it.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        norm: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.norm = norm or nn.Identity()
        self._dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type)

    def reset(
        self,
        num_classes: int,
        pool_type: str | None = None,
        reset_other: bool = False,
        in_features: int | None = None,
    ) -> None:
        """Start a new classifier.

        Args:
            num_classes: Of the new classifier; 0 for none.
            pool_type: timm's pooling type, None to keep the present one.
            reset_other: Drop the norm too.
            in_features: Channels from now on, None to keep them.
        """
        if pool_type is not None:
            self.pool_type = pool_type
            self.global_pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        if reset_other:
            self.norm = nn.Identity()
        self.in_features = in_features or self.in_features
        if hasattr(self, "fc") and isinstance(self.fc, nn.Linear | nn.Conv2d):
            self._dd = {"device": self.fc.weight.device, "dtype": self.fc.weight.dtype}
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = (
                nn.Linear(self.in_features, num_classes, **self._dd)
                if self.pool_type
                else nn.Conv2d(self.in_features, num_classes, 1, **self._dd)
            )

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or what the classifier would be given if `pre_logits`."""
        x = self.drop(self.global_pool(self.norm(x)))
        return x if pre_logits else self.fc(x)
