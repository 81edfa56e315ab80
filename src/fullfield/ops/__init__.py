"""Operators: functions from tensors to tensors, without parameters.

Each file holds one operator: the plain reference that reads like the equation, the faster paths, and the rule
that chooses. Whatever is here knows no module and no model.
"""

from fullfield.ops.depthwise import depthwise_conv2d
from fullfield.ops.dispatch import PATHS
from fullfield.ops.dynamic_pwconv import dynamic_pwconv
from fullfield.ops.flops import register_missing_formulas
from fullfield.ops.region_gate import region_gate
from fullfield.ops.region_pool import region_pool
from fullfield.ops.region_pwconv import region_pwconv

register_missing_formulas()

__all__ = ["PATHS", "depthwise_conv2d", "dynamic_pwconv", "region_gate", "region_pool", "region_pwconv"]
