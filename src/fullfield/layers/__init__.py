"""Layers: modules that own parameters and call operators. One a file; none knows a model family."""

from fullfield.layers.band_depthwise import BandDepthwiseConv
from fullfield.layers.channel_aggregation import ChannelAggregationFFN
from fullfield.layers.conv_norm import ConvNorm, fold_norm_into_conv, fold_norm_into_next_conv, norm_as_affine
from fullfield.layers.depthwise import DepthwiseConv2d, replace_depthwise
from fullfield.layers.ffn import FFN
from fullfield.layers.global_filter import GlobalLocalFilter
from fullfield.layers.gnconv import GnConv
from fullfield.layers.grn import GRN
from fullfield.layers.head import PoolHead
from fullfield.layers.initialise import initialise_by_fan_out
from fullfield.layers.large_kernel_attention import LargeKernelAttention
from fullfield.layers.layer_norm import LayerNorm2d
from fullfield.layers.multi_order import MultiOrderDepthwise, MultiOrderGatedAggregation
from fullfield.layers.partial_depthwise import PartialDepthwiseConv2d
from fullfield.layers.raffn import RaFFN
from fullfield.layers.raglu import RaGLU
from fullfield.layers.region_attention import RegionAttention
from fullfield.layers.region_pwconv import RegionPWConv
from fullfield.layers.reparam import Branch, ReparamDepthwiseConv
from fullfield.layers.residual import ResidualBranch
from fullfield.layers.shortcut_branch import ShortcutBranch

__all__ = [
    "FFN",
    "GRN",
    "BandDepthwiseConv",
    "Branch",
    "ChannelAggregationFFN",
    "ConvNorm",
    "DepthwiseConv2d",
    "GlobalLocalFilter",
    "GnConv",
    "LargeKernelAttention",
    "LayerNorm2d",
    "MultiOrderDepthwise",
    "MultiOrderGatedAggregation",
    "PartialDepthwiseConv2d",
    "PoolHead",
    "RaFFN",
    "RaGLU",
    "RegionAttention",
    "RegionPWConv",
    "ReparamDepthwiseConv",
    "ResidualBranch",
    "ShortcutBranch",
    "fold_norm_into_conv",
    "fold_norm_into_next_conv",
    "initialise_by_fan_out",
    "norm_as_affine",
    "replace_depthwise",
]
