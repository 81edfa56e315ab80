"""Adaptive average pooling as products of matrices, against PyTorch's and in traced nets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.deploy.formats.adaptive_pool import adaptive_avg_pool2d, with_exportable_pooling
from fullfield.deploy.formats.onnx_file import write_onnx
from fullfield.deploy.graph import ExportGraph, capture, export_module
from fullfield.errors import ConfigError

from .test_graph import classifier
from .test_onnx_file import difference

GREY = ((0.5,) * 3, (0.5,) * 3)


class Pooled(nn.Module):
    """A convolution, pooling, and the mean of each row of bins."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.conv(x))
        return pooled.mean(1).flatten(1)


@pytest.mark.parametrize("bins", [(1, 1), (2, 2), (3, 3), (6, 6), (7, 4)])
def test_bins_are_pytorchs_at_every_size_fewer_pixels_than_bins_included(bins: tuple[int, int]) -> None:
    for height in range(1, 30):
        for width in (1, 5, 12, 33):
            x = torch.rand(2, 3, height, width)
            torch.testing.assert_close(adaptive_avg_pool2d(x, bins), F.adaptive_avg_pool2d(x, bins), rtol=0, atol=1e-6)


def test_halves_stay_halves() -> None:
    x = torch.rand(1, 2, 7, 9).half()
    found = adaptive_avg_pool2d(x, (2, 3))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), F.adaptive_avg_pool2d(x.float(), (2, 3)), rtol=0, atol=2e-3)


def test_a_file_of_free_size_pools_as_pytorch_at_every_remainder(tmp_path: Path) -> None:
    _, described = export_module(classifier("test_resnet"))
    graph = ExportGraph(Pooled(nn.AdaptiveAvgPool2d((3, 6))), *GREY).eval()
    path = write_onnx(graph, described, tmp_path / "net.onnx")
    for height in range(9, 22):
        assert difference(graph, path, torch.rand(2, 3, height, 2 * height + 3)) < 1e-5


def test_max_pooling_into_bins_is_refused_at_free_sizes_and_written_at_one(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra fullfield[export]")
    _, described = export_module(classifier("test_resnet"))
    graph = ExportGraph(Pooled(nn.AdaptiveMaxPool2d(4)), *GREY).eval()
    path = tmp_path / "net.onnx"
    with pytest.raises(ConfigError, match=r"aten\.adaptive_max_pool2d\S* of test_resnet.*--size"):
        write_onnx(graph, described, path)
    assert not list(tmp_path.iterdir())
    write_onnx(graph, replace(described, height=64, width=96), path)
    assert difference(graph, path, torch.rand(2, 3, 64, 96)) < 1e-5


def test_pooling_at_a_known_size_or_into_one_bin_is_left_as_it_is() -> None:
    _, described = export_module(classifier("test_resnet"))
    for bins, sized in ((1, described), (3, replace(described, height=64, width=96))):
        program = capture(ExportGraph(Pooled(nn.AdaptiveAvgPool2d(bins)), *GREY).eval(), sized)
        assert with_exportable_pooling(program, "net") is program
