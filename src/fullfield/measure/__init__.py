"""Measuring: what a model costs, how fast it is, and what it sees. It works on any timm model as well as on ours.

The functions have the names of their modules, and hide them: `fullfield.measure.erf` is the function.
"""

from fullfield.measure.cam import cam
from fullfield.measure.cam_result import Cam
from fullfield.measure.choose import Choice, choose
from fullfield.measure.compare import compare
from fullfield.measure.compare_result import Budget, Comparison
from fullfield.measure.cost import Cost, cost
from fullfield.measure.cost_report import CostReport, cost_report
from fullfield.measure.erf import erf
from fullfield.measure.erf_result import Erf
from fullfield.measure.shift import shift
from fullfield.measure.shift_result import Shift
from fullfield.measure.speed import Bench, bench

__all__ = [
    "Bench",
    "Budget",
    "Cam",
    "Choice",
    "Comparison",
    "Cost",
    "CostReport",
    "Erf",
    "Shift",
    "bench",
    "cam",
    "choose",
    "compare",
    "cost",
    "cost_report",
    "erf",
    "shift",
]
