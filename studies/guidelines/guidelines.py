"""What the five guidelines of the RepLKNet paper cost on this machine: parameters, MACs, latency and reach.

    python studies/guidelines/guidelines.py             -> guidelines.csv beside this file, docs/guidelines.md filled
    python studies/guidelines/guidelines.py --only G3   prints the table of one guideline and writes nothing

All nets have random weights: what a guideline does for accuracy needs training on ImageNet, which is not run here.
Latency is the median of a few forward passes; candidates that are compared run in turn, see
`fullfield.measure.timing`. Images are contiguous (NCHW). "Plain" is `F.conv2d`, as in `nn.Conv2d`; "dispatched" is what
`fullfield.ops.depthwise_conv2d` chooses for the same input.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tables
import torch
import torch.nn.functional as F
from tables import Table
from torch import Tensor, nn

import fullfield
from fullfield.layers.depthwise import replace_depthwise
from fullfield.measure.cost import Cost, cost
from fullfield.measure.environment import environment
from fullfield.measure.erf import erf
from fullfield.measure.timing import time_interleaved

LARGE = (31, 29, 27, 13)  # RepLKNet-31's kernels, stage by stage
PLAIN = {"FULLFIELD_PATH_DEPTHWISE_CONV2D": "native"}
ROUNDS = 3


def images(side: int | tuple[int, int], batch: int = 1) -> Tensor:
    """Return standard normal images."""
    height, width = (side, side) if isinstance(side, int) else side
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def replknet(**changes: Any) -> Any:
    """Return a RepLKNet of 31B's widths in training form, in eval mode."""
    torch.manual_seed(0)
    gc.collect()
    return fullfield.create_model("replknet_31b", **changes).eval()


def counted(model: nn.Module, size: int | tuple[int, int] = 224) -> Cost:
    """Count a model at a size, without computing anything."""
    return cost(copy.deepcopy(model).to("meta"), image_size=size)


def counts(model: nn.Module) -> dict[str, str]:
    """Return parameters and MACs at 224 as figures."""
    return {"parameters (M)": millions(counted(model).params), "MACs (G)": billions(counted(model).macs)}


def named(kernel_sizes: Sequence[int]) -> str:
    """Return kernels as the tables write them."""
    return str(kernel_sizes[0]) if len(set(kernel_sizes)) == 1 else ", ".join(map(str, kernel_sizes))


def millions(count: int) -> str:
    return f"{count / 1e6:.2f}"


def billions(count: int) -> str:
    return f"{count / 1e9:.2f}"


def growth(count: float, base: float) -> str:
    return f"{100 * (count / base - 1):+.1f} %"


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Make every depthwise convolution `F.conv2d` while the block runs."""
    before = os.environ.copy()
    os.environ.update(PLAIN)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def depthwise_seconds(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return seconds of a forward pass, and of the depthwise convolutions in it."""
    started, spent = 0.0, 0.0

    def start(*_: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    def stop(*_: Any) -> None:
        nonlocal spent
        spent += time.perf_counter() - started

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            hooks += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    begun = time.perf_counter()
    model(x)
    total = time.perf_counter() - begun
    for hook in hooks:
        hook.remove()
    return total, spent


@torch.inference_mode()
def plain_and_dispatched(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Return latency and the depthwise convolutions' share of it, plain and dispatched, measured in turn."""
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "dispatched": []}
    for number in range(ROUNDS + 1):
        with plain_convolutions():
            before = depthwise_seconds(model, x)
        after = depthwise_seconds(model, x)
        if number:  # the first round warms up
            found["plain"].append(before)
            found["dispatched"].append(after)
    figures = {}
    for way, seconds in found.items():
        share = statistics.median(depthwise / total for total, depthwise in seconds)
        figures[f"{way} (ms)"] = f"{1e3 * statistics.median(total for total, _ in seconds):.0f}"
        figures[f"depthwise share, {way}"] = f"{100 * share:.1f} %"
    speed_up = statistics.median(b / a for (b, _), (a, _) in zip(*found.values(), strict=True))
    return figures | {"speed-up": f"{speed_up:.2f}"}


@torch.inference_mode()
def latencies_ms(calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS, warm_up: int = 1) -> dict[str, float]:
    """Return the median latency of calls timed in turn, milliseconds."""
    timed = time_interleaved(calls, seconds=0, min_rounds=rounds, warm_up=warm_up)
    return {name: 1e3 * samples.median_s for name, samples in timed.items()}


def large_kernels_are_efficient() -> Table:
    """G1: what kernels of 31 add to a net of kernels of 3, and the share of latency that they take."""
    table: Table = {}
    costs = []
    for kernels in ((3,) * 4, LARGE):
        model = replknet(kernel_sizes=kernels).merge_branches()
        table[f"RepLKNet, kernels {named(kernels)}"] = counts(model) | plain_and_dispatched(model, images(224))
        costs.append(counted(model))
    small, large = costs
    table["its growth"] = {
        "parameters (M)": growth(large.params, small.params),
        "MACs (G)": growth(large.macs, small.macs),
    }
    table["published growth and shares (GPU)"] = {
        "parameters (M)": "+10.4 %",
        "MACs (G)": "+18.6 %",
        "depthwise share, plain": "49.5 %",
        "depthwise share, dispatched": "12.3 %",
    }
    for kernels in ((7,) * 4, LARGE):
        torch.manual_seed(0)
        model = fullfield.create_model("convnext_tiny", kernel_sizes=kernels).eval()
        figures = counts(model)
        replace_depthwise(model)
        table[f"ConvNeXt-T of timm, kernels {named(kernels)}"] = figures | plain_and_dispatched(model, images(224))
    return table


def shortcuts_carry_the_gradient() -> Table:
    """G2: how much of the gradient reaches the first stage, and how large the field is, with and without shortcuts."""
    table: Table = {}
    for kernels in (LARGE, (3,) * 4):
        for shortcut in (True, False):
            model = replknet(kernel_sizes=kernels, shortcut=shortcut)
            field = erf(model, images(512, batch=2), layer="stages.3")
            table[f"kernels {named(kernels)}, {'with' if shortcut else 'without'} shortcuts"] = {
                "gradient entering stage 4 that reaches stage 1": f"{gradient_ratio(model, images(224, batch=2)):.3g}",
                "r(50 %)": f"{100 * field.area_ratio[0.5]:.1f} %",
                "r(99 %)": f"{100 * field.area_ratio[0.99]:.1f} %",
            }
    return table


def gradient_ratio(model: Any, x: Tensor) -> float:
    """Return the gradient's root mean square at the first stage's input over that at the last stage's output.

    The net is in training mode, so that each norm standardises what it gets; the gradient that enters is random.
    """
    model.train()
    with torch.no_grad():
        first = model.stem(x)
    last = model.stages(first.requires_grad_())
    entering = torch.randn(last.shape, generator=torch.Generator().manual_seed(1))
    (reaching,) = torch.autograd.grad(last, first, entering)
    model.eval()
    return float(reaching.square().mean().sqrt() / entering.square().mean().sqrt())


def small_kernels_vanish_in_the_merge() -> Table:
    """G3: what a small kernel beside the large one costs in training, and that nothing of it is left after merging."""
    table: Table = {}
    x = images(224)
    for small_kernel in (0, 3, 5):
        model = replknet(small_kernel=small_kernel)
        with torch.no_grad():
            model.train()(images(64, batch=4))  # the norms get statistics, so that merging has something to do
        model.eval()
        merged = copy.deepcopy(model).merge_branches()
        before, after = logits(model, x), logits(merged, x)
        timed = latencies_ms({"training": lambda m=model: m(x), "merged": lambda m=merged: m(x)})
        table[f"small kernel {small_kernel or 'none'}"] = {
            "parameters (M)": millions(counted(model).params),
            "merged (M)": millions(counted(merged).params),
            "MACs (G)": billions(counted(model).macs),
            "merged (G)": billions(counted(merged).macs),
            "forward (ms)": f"{timed['training']:.0f}",
            "merged (ms)": f"{timed['merged']:.0f}",
            "outputs differ by": f"{float((after - before).norm() / before.norm()):.0e}",
        }
    return table


@torch.inference_mode()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs in float64, so that their difference has no rounding of its own."""
    return model(x).double()  # type: ignore[no-any-return]


def cost_at_the_sizes_of_dense_tasks() -> Table:
    """G4: what the kernels cost at the sizes of segmentation and detection, over kernels of 3."""
    table: Table = {}
    nets = {kernels: replknet(kernel_sizes=kernels).merge_branches() for kernels in ((3,) * 4, (13,) * 4, LARGE)}
    # the largest takes long enough to need neither a warm-up nor a median
    for size, rounds, warm_up in [((224, 224), ROUNDS, 1), ((512, 512), ROUNDS, 1), ((800, 1333), 1, 0)]:
        x = images(size)
        calls = {named(kernels): functools.partial(net.forward_features, x) for kernels, net in nets.items()}
        timed = latencies_ms(calls, rounds, warm_up)
        base = counted(nets[3, 3, 3, 3], size).macs
        for kernels, net in nets.items():
            macs, latency_ms = counted(net, size).macs, timed[named(kernels)]
            table[f"{size[0]}×{size[1]}, kernels {named(kernels)}"] = {
                "MACs (G)": f"{macs / 1e9:.1f}",
                "over kernels 3": f"{macs / base:.3f}",
                "latency (ms)": f"{latency_ms:.0f}",
                "latency over kernels 3": f"{latency_ms / timed['3']:.2f}",
            }
    return table


def large_kernels_on_small_maps() -> Table:
    """G5: what a kernel larger than the last stage's 7x7 map costs there, and what it reaches."""
    nets = {size: replknet(kernel_sizes=(*LARGE[:3], size)).merge_branches() for size in (3, 7, 13)}
    x = torch.randn(8, 1024, 7, 7, generator=torch.Generator().manual_seed(0))
    calls = {str(size): functools.partial(net.stages[3].blocks, x) for size, net in nets.items()}
    timed = latencies_ms(calls, rounds=10)
    table: Table = {}
    for size, net in nets.items():
        seen, told_apart = reach(size, side=7)
        table[f"{size}×{size} on 7×7"] = counts(net) | {
            "last stage, batch 8 (ms)": f"{timed[str(size)]:.1f}",
            "of the map seen by one kernel": f"{100 * seen:.0f} %",
            "positions that padding tells apart": f"{told_apart} of 49",
        }
    return table


def reach(kernel_size: int, side: int) -> tuple[float, int]:
    """Return the mean share of a map that one kernel sees, and how many sets of taps lie within the map.

    Args:
        kernel_size: Odd.
        side: Of the map.

    Returns:
        The share over all positions; and the number of positions that differ by which taps meet padding, which is
        how a kernel can know where it is.
    """
    taps = F.unfold(torch.ones(1, 1, side, side), kernel_size, padding=kernel_size // 2)[0]  # (taps, positions)
    return float(taps.sum(0).mean() / side**2), len(taps.unique(dim=1).T)


GUIDELINES: dict[str, Callable[[], Table]] = {
    "G1": large_kernels_are_efficient,
    "G2": shortcuts_carry_the_gradient,
    "G3": small_kernels_vanish_in_the_merge,
    "G4": cost_at_the_sizes_of_dense_tasks,
    "G5": large_kernels_on_small_maps,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GUIDELINES, help="print one guideline's table and write nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {}
    for name, measure in GUIDELINES.items():
        if arguments.only in (None, name):
            begun = time.perf_counter()
            found[name] = measure()
            print(f"{name}, {time.perf_counter() - begun:.0f} s: {(measure.__doc__ or '').partition(': ')[2]}\n")
            print(tables.markdown(found[name]) + "\n")
    if arguments.only is None:
        tables.write(found, environment())
        tables.fill()


if __name__ == "__main__":
    main()
