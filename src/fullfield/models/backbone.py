"""The four-stage skeleton that every family stands on: stem, stages, head, and timm's whole contract.

A family gives the stem and the stages (each a downsampling and a sequence of blocks); all that backbones share is
written once here: any input size, feature maps, classifier reset, gradient checkpointing, layer-wise decay groups,
and folding norms for inference. The contract is timm's (`forward_features`, `forward_head`,
`forward_intermediates`, `feature_info`, `group_matcher`, ...), so that every tool built on timm takes our models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import NormMlpClassifierHead
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

__all__ = ["Backbone", "Stage", "drop_path_rates"]


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return the drop probability of every block: rising linearly from 0 to `rate` over the net's depth.

    Args:
        rate: Probability at the last block.
        depths: Blocks a stage.
    """
    total = max(sum(depths) - 1, 1)
    rates = [rate * index / total for index in range(sum(depths))]
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]


class Stage(nn.Module):
    """One stage: downsampling, then blocks, then perhaps a norm, (B, C_in, H, W) -> (B, C, H', W').

    Args:
        downsample: Module that changes size and width; an identity in the first stage.
        blocks: Modules that keep both.
        norm: Normalises the stage's output (VAN, MogaNet); None for the families that do not.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm or nn.Identity()
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Downsample, run the blocks, keeping only block inputs if checkpointing is on, and normalise."""
        x = self.downsample(x)
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)  # type: ignore[no-any-return]


class Backbone(nn.Module):
    """An image backbone of a stem, stages and a classifier head.

    Args:
        stem: Module (B, in_chans, H, W) -> (B, dims[0], H/stem_stride, W/stem_stride).
        stages: The stages; all but the first halve the map.
        dims: Channels of each stage.
        stem_stride: Of the stem as a whole.
        in_chans: Channels of the image.
        num_classes: Of the classifier; 0 gives pooled features.
        global_pool: timm's pooling type; "" gives an unpooled map.
        drop_rate: Dropout before the classifier.
        head: A head with the attributes of `layers.PoolHead`; None for average pooling, LayerNorm, linear layer.
        min_size: Smaller images are padded with zeros, right and below, to this height and width. Families whose
            patches do not overlap need it: they have no map of an image that is smaller than a patch.
        device: Where the head's parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        *,
        dims: Sequence[int],
        stem_stride: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        head: nn.Module | None = None,
        min_size: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.min_size = min_size
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = dims[-1]
        self.drop_rate = drop_rate
        self.merged = self.fused = False
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.head: Any = head or NormMlpClassifierHead(
            dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, device=device, dtype=dtype
        )
        self.feature_info = [
            {"num_chs": dim, "reduction": stem_stride * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map, (B, in_chans, H, W) -> (B, C, H/32, W/32) (rounded up)."""
        return self.stages(self.stem(self._large_enough(x)))  # type: ignore[no-any-return]

    def _large_enough(self, x: Tensor) -> Tensor:
        if self.min_size > 1 and (x.shape[2] < self.min_size or x.shape[3] < self.min_size):
            missing = [max(0, self.min_size - side) for side in x.shape[2:]]
            return F.pad(x, (0, missing[1], 0, missing[0]))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or pooled and normalised features (B, C) if `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of chosen stages (timm's contract).

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages to take: the last n, those listed, or all.
            norm: Accepted for the contract; a stage that ends with a norm always applies it.
            stop_early: Do not run stages after the last one taken.
            output_fmt: Only "NCHW".
            intermediates_only: Return the maps alone.

        Returns:
            The maps, or (last map computed, maps).

        Raises:
            ValueError: Another output format.
        """
        del norm
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), _as_list(indices))
        maps = []
        x = self.stem(self._large_enough(x))
        for index, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if index in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last one taken, and the head (timm's contract).

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Accepted for the contract; there is no norm to drop.
            prune_head: Drop the head even if all stages stay.

        Returns:
            The indices of the stages taken.
        """
        del prune_norm
        take, last = feature_take_indices(len(self.stages), _as_list(indices))
        pruned = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or pruned:
            self.num_classes, self.global_pool = 0, ""
            self.head.reset(0, "", reset_other=True, in_features=self.num_features)
            self._fullfield_spec = None  # no registered name makes this net: it can't be saved by one
        return list(take)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer (an identity if there are no classes)."""
        return self.head.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a new one.

        Args:
            num_classes: Of the new classifier; 0 for none.
            global_pool: timm's pooling type, None to keep the present one.
        """
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head.reset(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass and keep only their inputs: less memory, about a third slower."""
        for stage in self.stages:
            assert isinstance(stage, Stage)  # noqa: S101 - for the type checker
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters for layer-wise learning-rate decay."""
        fine = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", MATCH_PREV_GROUP),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay would only pull off their scale."""
        return {name for name, _ in self.named_parameters() if name.endswith(".scale")}

    def merge_branches(self) -> Backbone:
        """Merge parallel branches into the one convolution that they equal, in place, for inference; return the model.

        Other norms stay. It is the form in which official "merged" checkpoints come (RepLKNet, UniRepLKNet); `fuse`
        does this and more. Outputs in eval mode stay equal up to rounding.
        """
        self.eval()
        self.merged = True
        for module in list(self.modules()):
            merge = getattr(module, "merge_branches", None)
            if module is not self and callable(merge):
                merge()
        return self

    def fuse(self) -> Backbone:
        """Fold every norm that can be folded into its convolution, in place, for inference; return the model.

        Outputs in eval mode stay equal up to rounding. A fused model can't be trained on.
        """
        if self.fused:
            return self
        self.merge_branches()
        for module in list(self.modules()):
            fuse = getattr(module, "fuse", None)
            if module is not self and callable(fuse):
                fuse()
        self.fused = True
        return self


def _as_list(indices: int | Sequence[int] | None) -> int | list[int] | None:
    return indices if indices is None or isinstance(indices, int) else list(indices)
