"""Triton kernels, reached only through the operators of `fullfield.ops`. Importing this needs no Triton.

plan.py            which kernel, which blocks: plain numbers
region_pwconv.py   the custom operator: fake kernel, autograd, FLOPs, and why it may not run here
launch.py          starts the kernels; imported at the first call
addressing.py, tile.py, rows.py, pixel.py    the kernels
"""

from fullfield.ops.kernels.region_pwconv import is_fastest, region_pwconv_triton

__all__ = ["is_fastest", "region_pwconv_triton"]
