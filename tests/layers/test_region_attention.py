"""Region Attention against loops over windows, and against timm's squeeze-and-excite where r = 1."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from timm.layers import SEModule

from fullfield.layers import RegionAttention
from tests.ops import oracle

Array = npt.NDArray[np.float64]


def gates_of(cells: Array, layer: RegionAttention) -> Array:
    """Return sigmoid(W2 gelu(W1 c + b1) + b2) of every cell c of (B, C, h, w), cell by cell."""
    w1, b1, w2, b2 = (
        t.detach().squeeze().numpy()
        for t in (layer.reduce.weight, layer.reduce.bias, layer.expand.weight, layer.expand.bias)
    )
    w1, w2 = w1.reshape(-1, cells.shape[1]), w2.reshape(cells.shape[1], -1)
    gates = np.empty_like(cells)
    for b in range(cells.shape[0]):
        for i in range(cells.shape[2]):
            for j in range(cells.shape[3]):
                hidden = w1 @ cells[b, :, i, j] + np.atleast_1d(b1)
                hidden = np.array([h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
                gates[b, :, i, j] = 1 / (1 + np.exp(-(w2 @ hidden + b2)))
    return gates


@pytest.mark.parametrize("placement", ["nearest", "modulo"])
@pytest.mark.parametrize(("size", "region_size"), [((9, 11), 4), ((8, 8), 4), ((3, 10), 7), ((1, 1), 7)], ids=str)
def test_layer_equals_the_loop_over_windows(size: tuple[int, int], region_size: int, placement: str) -> None:
    layer = RegionAttention(32, region_size, placement=placement, dtype=torch.float64)
    x = np.random.default_rng(0).standard_normal((2, 32, *size))
    gates = gates_of(oracle.region_pool(x, region_size), layer)
    y = layer(torch.from_numpy(x)).detach().numpy()
    assert oracle.relative_error(y, oracle.region_gate(x, gates, placement)) < 1e-12


def test_with_one_region_it_is_squeeze_and_excite() -> None:
    layer = RegionAttention(32, region_size=1, dtype=torch.float64)
    squeeze = SEModule(32, rd_channels=2, act_layer=torch.nn.GELU, dtype=torch.float64)
    squeeze.fc1.load_state_dict(layer.reduce.state_dict())
    squeeze.fc2.load_state_dict(layer.expand.state_dict())
    x = torch.randn(2, 32, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(layer(x), squeeze(x), rtol=1e-12, atol=1e-12)


def test_the_hidden_layer_is_a_sixteenth_and_at_least_one_channel() -> None:
    assert RegionAttention(64).reduce.out_channels == 4
    assert RegionAttention(64, reduction=8).reduce.out_channels == 8
    assert RegionAttention(8).reduce.out_channels == 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(9, 8), (2, 3), (1, 1)], ids=str)
def test_gradients_are_finite_and_reach_everything(size: tuple[int, int], training: bool) -> None:
    layer = RegionAttention(16, region_size=4).train(training)
    x = torch.randn(2, 16, *size, requires_grad=True)
    layer(x).square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


def test_unknown_placement_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'modulus'.*did you mean 'modulo'"):
        RegionAttention(16, placement="modulus")
