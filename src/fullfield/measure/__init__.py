"""Measuring: what a model costs. It works on any timm model as well as on ours."""

from fullfield.measure.cost import Cost, cost

__all__ = ["Cost", "cost"]
