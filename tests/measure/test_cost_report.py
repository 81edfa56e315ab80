"""Costs per module and kind of operator, against arithmetic by hand from the papers' layouts."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fullfield
from fullfield.errors import ConfigError, ModelNotFoundError
from fullfield.measure import cost
from fullfield.measure.cost_report import CostReport, cost_report


def convnext_tiny_macs() -> int:
    """Liu et al., 2022: dims 96 to 768, depths 3, 3, 9, 3, kernels of 7, ratio 4; norms not counted."""
    total, dims = 56**2 * 16 * 3 * 96, (96, 192, 384, 768)
    for stage, (dim, depth) in enumerate(zip(dims, (3, 3, 9, 3), strict=True)):
        pixels = (56 // 2**stage) ** 2
        total += depth * pixels * (49 * dim + 8 * dim**2)
        total += pixels * 4 * dims[stage - 1] * dim if stage else 0
    return total + 768 * 1000


def swin_tiny_macs() -> int:
    """Liu et al., 2021: dims 96 to 768, depths 2, 2, 6, 2, windows of 7x7: 12 C^2 + 2 * 49 C a token."""
    total = 56**2 * 48 * 96
    for stage, depth in enumerate((2, 2, 6, 2)):
        dim, pixels = 96 * 2**stage, (56 // 2**stage) ** 2
        total += depth * pixels * (12 * dim**2 + 2 * 49 * dim)
        total += pixels * 2 * dim * dim if stage else 0  # 4 C/2 -> C
    return total + 768 * 1000


def replknet_31b_macs() -> int:
    """Ding et al., 2022: dims 128 to 1024, depths 2, 2, 18, 2, kernels 31, 29, 27, 13 with a 5x5 beside, unmerged."""
    total = 112**2 * (27 * 128 + 9 * 128 + 128**2) + 56**2 * 9 * 128
    for stage, (depth, kernel) in enumerate(zip((2, 2, 18, 2), (31, 29, 27, 13), strict=True)):
        dim, pixels = 128 * 2**stage, (56 // 2**stage) ** 2
        total += depth * pixels * (2 * dim**2 + (kernel**2 + 25) * dim + 8 * dim**2)
        total += 4 * pixels * dim // 2 * dim + pixels * 9 * dim if stage else 0
    return total + 1024 * 1000


def racnn_tiny_macs() -> tuple[int, int, int]:
    """`docs/models/racnn.md`: return all MACs, those of RPWConv, and the softmax elements r * r * C * d."""
    total, dynamic, softmax = 112**2 * 27 * 32 + 56**2 * 9 * 32 * 64, 0, 0
    for stage, (depth, r) in enumerate(zip((2, 3, 10, 3), (7, 7, 7, 1), strict=True)):
        dim, pixels = 64 * 2**stage, (56 // 2**stage) ** 2
        raffn = pixels * (2 * dim**2 + 9 * 2 * dim + 2 * dim**2)
        raglu = pixels * (4 * dim**2 + 9 * 2 * dim + 2 * dim**2) + r * r * 2 * 2 * dim * (2 * dim // 16)
        dynamic += depth * 2 * pixels * dim * 64
        softmax += depth * r * r * dim * 64
        total += depth * (raffn + raglu)
        total += pixels * 9 * dim // 2 * dim if stage else 0
    return total + dynamic + 512 * 1000, dynamic, softmax


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("convnext_tiny", convnext_tiny_macs()),
        ("swin_tiny_patch4_window7_224", swin_tiny_macs()),
        ("replknet_31b", replknet_31b_macs()),
        ("racnn_tiny", racnn_tiny_macs()[0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_macs_are_those_of_the_layout_by_hand(name: str, macs: int) -> None:
    report = cost_report(name)
    assert report.cost.macs == macs
    assert report.cost == cost(name)
    if name == "racnn_tiny":
        _, dynamic, softmax = racnn_tiny_macs()
        attention = kind(report, "attention")
        assert (attention.macs, attention.softmax_elements) == (dynamic, softmax)
        assert report.dynamic_share == pytest.approx(dynamic / macs)
        # the halves of RaGLU's first 1x1 convolution are used without calling the module, so hooks miss them too
        halves = sum(d * (56 // 2**i) ** 2 * 4 * (64 * 2**i) ** 2 for i, d in enumerate((2, 3, 10, 3)))
        assert report.missed_by_hooks == pytest.approx((dynamic + halves) / macs)


def kind(report: CostReport, name: str) -> Any:
    return next(group for group in report.by_operator() if group.name == name)


class Mixed(nn.Module):
    """A convolution, a depthwise one, attention by SDPA or by hand, and a transform to and fro."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.fused = fused
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        x = torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:])
        q = x.flatten(2).transpose(1, 2)[:, None]  # (B, 1, HW, 8)
        if self.fused:
            return F.scaled_dot_product_attention(q, q, q, scale=1.0)
        scores = (q @ q.transpose(-2, -1)) * 1.0
        return (scores + torch.zeros_like(scores)).softmax(-1) @ q


@pytest.mark.parametrize("fused", [True, False])
def test_each_kind_has_its_flops_bytes_and_softmax_elements(fused: bool) -> None:
    report = cost_report(Mixed(fused), image_size=(4, 8))
    convolution, depthwise = kind(report, "convolution"), kind(report, "depthwise convolution")
    attention, fft = kind(report, "attention"), kind(report, "FFT")
    assert [group.name for group in report.by_operator()] == [
        "convolution",
        "depthwise convolution",
        "attention",
        "FFT",
    ]
    assert (convolution.macs, convolution.weight_bytes, convolution.map_bytes) == (
        32 * 24,
        4 * (24 + 8),
        4 * 32 * (3 + 8),
    )
    assert (depthwise.macs, depthwise.weight_bytes, depthwise.map_bytes) == (32 * 8 * 25, 4 * 8 * 25, 4 * 32 * 16)
    # q, k, v are read and y is written; the 32 x 32 score matrix stays in the cache
    assert (attention.macs, attention.softmax_elements) == (2 * 32 * 32 * 8, 32 * 32)
    assert (attention.weight_bytes, attention.map_bytes) == (0, 4 * 4 * 32 * 8)
    assert fft.flops == 2 * 8 * round(5 * 32 * math.log2(32) / 2)  # two real transforms of 32 points a channel
    assert fft.map_bytes == 2 * 8 * (4 * 32 + 8 * 4 * 5)
    assert convolution.intensity == pytest.approx(2 * 32 * 24 / (4 * 32 + 4 * 32 * 11))
    assert report.missed_by_hooks == pytest.approx(1 - (32 * 24 + 32 * 200) / report.cost.macs)


@pytest.mark.parametrize("path", ["reference", "bmm", "sdpa", "blocked"])
def test_the_figures_of_rpwconv_do_not_depend_on_its_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fullfield.layers.RegionPWConv(64, 7, 2)
    monkeypatch.setenv("FULLFIELD_PATH_REGION_PWCONV", path)
    attention = cost_report(nn.Sequential(nn.Conv2d(3, 64, 1), layer), image_size=14).by_operator()[1]
    assert attention.name == "attention"
    assert (attention.macs, attention.softmax_elements) == (2 * 196 * 64 * 32, 49 * 64 * 32)
    assert attention.map_bytes == 4 * 4 * 64 * 196


def test_a_fourier_transform_counts_5_n_log2_n_and_half_of_it_if_it_is_real() -> None:
    z, x = torch.zeros(3, 8, 10, dtype=torch.complex64), torch.zeros(3, 8, 10)
    whole = 5 * 80 * math.log2(80)
    for call, flops in (
        (lambda: torch.fft.fft(z), 3 * 8 * 5 * 10 * math.log2(10)),
        (lambda: torch.fft.ifft2(z), 3 * whole),
        (lambda: torch.fft.rfft2(x), 3 * whole / 2),
        (lambda: torch.fft.irfft2(z[..., :6], s=(8, 10)), 3 * whole / 2),
        (lambda: torch.fft.fft(z[:, :, :1]), 0),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == pytest.approx(flops, abs=2)
        assert counter.get_total_flops() % 2 == 0


def test_a_depthwise_convolution_by_fft_counts_as_the_direct_one() -> None:
    x, weight = torch.zeros(2, 4, 12, 12), torch.zeros(4, 1, 7, 7)
    with FlopCounterMode(display=False) as counter:
        fullfield.ops.depthwise_conv2d(x, weight, path="fft")
    assert counter.get_total_flops() == 2 * x.numel() * 49


def test_the_sum_is_that_of_pytorchs_counter_and_of_the_modules_at_any_depth() -> None:
    model = fullfield.create_model("hornet_tiny_gf", depths=(1, 1, 1, 1)).eval()
    report = cost_report(model, image_size=64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 64))
    assert report.cost.flops == counter.get_total_flops() == 2 * report.cost.macs
    for depth in range(6):
        groups = report.by_module(depth)
        assert sum(group.flops for group in groups) == report.cost.flops
        assert sum(group.params or 0 for group in groups) == report.cost.params
    assert [group.name for group in report.by_module(1)] == ["stem", "stages", "head"]
    assert [group.name for group in report.by_module(0)] == [""]


def test_modules_have_the_cost_of_what_runs_in_them() -> None:
    groups = {group.name: group for group in cost_report(Mixed(), image_size=4).by_module(2)}
    assert list(groups) == ["", "stem.0", "depthwise"]
    assert groups["stem.0"].macs == 16 * 24
    assert (groups["depthwise"].macs, groups["depthwise"].params) == (16 * 200, 200)
    assert {op.kind for op in groups[""].operators} == {"attention", "FFT"}


def test_a_softmax_that_is_no_attention_is_its_own_kind() -> None:
    report = cost_report(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Softmax(dim=1)), image_size=4)
    assert [(g.name, g.macs, g.softmax_elements) for g in report.by_operator()] == [
        ("convolution", 16 * 15, 0),
        ("softmax", 0, 16 * 5),
    ]


class Stubborn(nn.Module):
    """A module with a tensor that is neither parameter nor buffer, so that it does not run on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.offset = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + self.offset.to("cpu"))


def test_a_module_that_needs_real_tensors_is_counted_and_left_as_it_was() -> None:
    model = Stubborn().train()
    assert cost_report(model, image_size=5).cost.macs == 9 * 27 * 4
    assert model.training
    assert not model.conv._forward_hooks
    assert not model.conv._forward_pre_hooks


def test_weights_used_in_part_or_resized_are_weights() -> None:
    class Half(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, 2 * self.weight[:4], None)

    report = cost_report(nn.Sequential(nn.Flatten(), Half(12, 8)), image_size=2)
    assert (report.operators[0].weight_bytes, report.operators[0].map_bytes) == (4 * 4 * 12, 4 * (12 + 4))
    assert report.dynamic_share == 0


def test_a_report_is_saved_as_a_table_and_drawn(tmp_path: Path) -> None:
    report = cost_report(Mixed(), image_size=4)
    with report.save(tmp_path / "cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == ["total", *["operator"] * 4, *["module"] * 3]
    assert int(rows[0]["flops"]) == report.cost.flops
    pytest.importorskip("matplotlib")
    assert report.plot(tmp_path / "cost.svg").read_text(encoding="utf-8").count("stem.0") == 1


def test_bad_input_is_named() -> None:
    with pytest.raises(ModelNotFoundError, match="resnet50"):
        cost_report("resnet5O")
    with pytest.raises(ConfigError, match="depth must be at least 0, got -1"):
        cost_report(nn.Conv2d(3, 4, 1), image_size=4).by_module(-1)
    with pytest.raises(RuntimeError, match="channels"):
        cost_report(nn.Sequential(nn.Conv2d(5, 3, 1)), image_size=8)
