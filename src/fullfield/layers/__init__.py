"""Layers: modules that own parameters and call operators. One a file; none knows a model family."""

from fullfield.layers.conv_norm import ConvNorm, fold_norm_into_conv, fold_norm_into_next_conv, norm_as_affine
from fullfield.layers.depthwise import DepthwiseConv2d
from fullfield.layers.ffn import FFN
from fullfield.layers.head import PoolHead
from fullfield.layers.raffn import RaFFN
from fullfield.layers.raglu import RaGLU
from fullfield.layers.region_attention import RegionAttention
from fullfield.layers.region_pwconv import RegionPWConv
from fullfield.layers.residual import ResidualBranch

__all__ = [
    "FFN",
    "ConvNorm",
    "DepthwiseConv2d",
    "PoolHead",
    "RaFFN",
    "RaGLU",
    "RegionAttention",
    "RegionPWConv",
    "ResidualBranch",
    "fold_norm_into_conv",
    "fold_norm_into_next_conv",
    "norm_as_affine",
]
