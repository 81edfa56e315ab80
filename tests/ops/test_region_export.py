"""The region operators in exported graphs: known and free sizes give what eager gives, in tensors of few axes."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from fullfield.ops import region_gate, region_pool, region_pwconv
from tests.ops.oracle import relative_error

SIDES = [(14, 21), (17, 23), (7, 7), (5, 9), (3, 4), (1, 30)]  # whole regions, padded, one region, sides below r
MOST_AXES = 5  # of Core ML's tensors


class Mixed(nn.Module):
    def __init__(self, similarity: str) -> None:
        super().__init__()
        self.similarity = similarity
        self.scale = nn.Parameter(torch.tensor([1.5, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return region_pwconv(x, self.scale, region_size=7, heads=2, similarity=self.similarity)


class Gated(nn.Module):
    def __init__(self, placement: str) -> None:
        super().__init__()
        self.placement = placement

    def forward(self, x: Tensor) -> Tensor:
        return region_gate(x, torch.sigmoid(region_pool(x, 7)), placement=self.placement)


MODULES = {
    "cosine": Mixed("cosine"),
    "inner": Mixed("inner"),
    "nearest": Gated("nearest"),
    "modulo": Gated("modulo"),
}


def images(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 8, height, width, generator=torch.Generator().manual_seed(height * width))


def most_axes(program: ExportedProgram) -> int:
    values = [node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    return max(value.ndim for value in values)


@pytest.mark.parametrize("side", SIDES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_a_graph_of_one_size_gives_what_eager_gives(name: str, side: tuple[int, int]) -> None:
    module, x = MODULES[name], images(*side)
    with torch.no_grad():
        program = export(module, (x,))
        assert relative_error(program.module()(x), module(x)) < 1e-6
    assert most_axes(program) <= MOST_AXES


@pytest.mark.parametrize("name", MODULES)
def test_a_graph_of_free_size_gives_what_eager_gives_at_every_size(name: str) -> None:
    module = MODULES[name]
    with torch.no_grad():
        program = export(module, (images(30, 45),), dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},))
        for batch, side in enumerate(SIDES[:-1], 1):
            x = images(*side, batch)
            assert relative_error(program.module()(x), module(x)) < 1e-6, side
    assert most_axes(program) <= MOST_AXES


@pytest.mark.parametrize("name", MODULES)
def test_a_graph_of_whole_regions_has_no_padding(name: str) -> None:
    with torch.no_grad():
        program = export(MODULES[name], (images(14, 21),))
    assert not any("pad" in str(node.target) for node in program.graph.nodes)
