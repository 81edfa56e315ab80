"""region_pwconv on every path against its bound, and Region Attention eager and compiled."""

import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fullfield.layers import RegionAttention
from fullfield.ops import region_pwconv
from fullfield.ops.kernels import region_pwconv as operator
from fullfield.ops.kernels.plan import plan
from gpu_parts.bounds import Ceilings, RegionShape, other_shapes, tiny_stages
from gpu_parts.campaign import Campaign, Row, digits

PATHS = ("triton", "sdpa", "bmm", "bmm compiled")
WARPS = (1, 2, 4, 8)


def measure(campaign: Campaign, ceilings: Ceilings) -> list[Row]:
    """Return one row a shape, direction and path; rows of the chosen plan first, then those of other warps."""
    shapes = [RegionShape("dry tile", 1, 16, 4, 2, 1), RegionShape("dry rows", 1, 80, 2, 1, 1)]
    rows = []
    for shape in shapes if campaign.dry else tiny_stages(128) + other_shapes(128):
        for path in PATHS:
            rows += (
                campaign.attempt(f"{shape.name} {path}", lambda s=shape, p=path: _rows(campaign, ceilings, s, p)) or []
            )
    for shape in shapes[:1] if campaign.dry else tiny_stages(128):
        for warps in WARPS:
            what = f"{shape.name} triton, {warps} warps"
            rows += campaign.attempt(what, lambda s=shape, w=warps: _with_warps(campaign, ceilings, s, w)) or []
    return rows


def _with_warps(campaign: Campaign, ceilings: Ceilings, shape: RegionShape, warps: int) -> list[Row]:
    """Time the kernels with another number of warps than the plan's."""
    chosen = plan(shape.head_width, shape.pixels)
    assert chosen is not None  # the stages of racnn_tiny have one  # noqa: S101
    original = operator.plan
    operator.plan = lambda *_, **__: replace(chosen, forward_warps=warps, backward_warps=warps)
    try:
        return [row | {"path": f"triton, {warps} warps"} for row in _rows(campaign, ceilings, shape, "triton")]
    finally:
        operator.plan = original


def _rows(campaign: Campaign, ceilings: Ceilings, shape: RegionShape, path: str) -> list[Row]:
    size = (shape.batch, shape.channels, shape.side, shape.side)
    x = torch.randn(size, device=campaign.device).bfloat16().contiguous(memory_format=torch.channels_last)
    if campaign.dry and path == "triton":
        x = x.half()  # the interpreter lacks bfloat16
    g, leaf = torch.randn_like(x), x.clone().requires_grad_()
    scale = torch.full((shape.heads,), 6.0, device=campaign.device)
    s_leaf = scale.clone().requires_grad_()
    call = _operator(campaign, shape, path)

    def forward() -> None:
        with torch.no_grad():
            call(x, scale)

    def both() -> None:
        leaf.grad = s_leaf.grad = None
        call(leaf, s_leaf).backward(g)

    rows = []
    for direction, run in (("forward", forward), ("forward+backward", both)):
        time_us, peak = campaign.time_us(run), campaign.peak_mb(run)
        floors = shape.floors_us(ceilings, direction)
        bound = max(floors.values())
        rows.append(
            {
                "shape": shape.name,
                "batch": shape.batch,
                "channels": shape.channels,
                "side": shape.side,
                "region_size": shape.region_size,
                "heads": shape.heads,
                "pixels": shape.pixels,
                "direction": direction,
                "path": path,
                "us": digits(time_us),
                **{f"{name}_floor_us": digits(floor) for name, floor in floors.items()},
                "fraction_of_bound": digits(bound / time_us, 3),
                "peak_mb": digits(peak),
                "x_mb": digits(x.numel() * x.element_size() / 1e6),
            }
        )
    return rows


def _operator(campaign: Campaign, shape: RegionShape, path: str) -> Callable[[Tensor, Tensor], Tensor]:
    def call(x: Tensor, scale: Tensor) -> Tensor:
        name = path.split()[0]
        with torch.autocast(campaign.device, dtype=torch.bfloat16, enabled=name == "bmm"):
            return region_pwconv(x, scale, region_size=shape.region_size, heads=shape.heads, path=name)

    return torch.compile(call, backend="eager" if campaign.dry else "inductor") if path.endswith("compiled") else call


def measure_attention(campaign: Campaign, ceilings: Ceilings) -> list[Row]:
    """Time Region Attention at the hidden width of RaGLU (2C); its bound reads x twice and writes it once."""
    rows = []
    for shape in [RegionShape("dry", 1, 8, 4, 2, 1)] if campaign.dry else tiny_stages(128):
        for form in ("eager", "compiled"):
            row = campaign.attempt(
                f"attention {shape.name} {form}", lambda s=shape, f=form: _attention(campaign, ceilings, s, f)
            )
            rows += [row] if row else []
    return rows


def _attention(campaign: Campaign, ceilings: Ceilings, shape: RegionShape, form: str) -> Row:
    width = 2 * shape.channels
    module: Callable[[Tensor], Tensor] = RegionAttention(width, shape.region_size).to(campaign.device).bfloat16()
    x = torch.randn(shape.batch, width, shape.side, shape.side, device=campaign.device).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    if form == "compiled":
        module = torch.compile(module, backend="eager" if campaign.dry else "inductor")

    def forward() -> None:
        with torch.no_grad():
            module(x)

    time_us = campaign.time_us(forward)
    bound = 1e6 * 3 * x.numel() * x.element_size() / ceilings.bytes_per_s
    return {
        "shape": shape.name,
        "channels": width,
        "side": shape.side,
        "form": form,
        "us": digits(time_us),
        "bound_us": digits(bound),
        "fraction_of_bound": digits(bound / time_us, 3),
        "peak_mb": digits(campaign.peak_mb(forward)),
    }


def forced(path: str | None) -> None:
    """Send every region_pwconv of a net to one path, or back to the rule."""
    if path is None:
        os.environ.pop("FULLFIELD_PATH_REGION_PWCONV", None)
    else:
        os.environ["FULLFIELD_PATH_REGION_PWCONV"] = path
