"""Global response normalisation against a loop over the paper's definition and against timm's layer."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor

from fullfield.layers.grn import GRN


def drawn(dim: int, bias: bool = True) -> GRN:
    """Make a GRN whose gamma and beta are not 0."""
    grn = GRN(dim, bias=bias, dtype=torch.float64)
    for parameter in grn.parameters():
        torch.nn.init.normal_(parameter)
    return grn


def by_loop(x: Tensor, gamma: list[float], beta: list[float], eps: float = 1e-6) -> Tensor:
    """Follow algorithm 1 of ConvNeXt V2 one image and one channel at a time."""
    y = torch.empty_like(x)
    for b, image in enumerate(x):
        responses = [math.sqrt(sum(v * v for v in channel.flatten().tolist())) for channel in image]
        mean = sum(responses) / len(responses)
        for c, channel in enumerate(image):
            y[b, c] = gamma[c] * (channel * (responses[c] / (mean + eps))) + beta[c] + channel
    return y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (5, 4)])
def test_it_is_the_papers_definition(bias: bool, size: tuple[int, int]) -> None:
    grn, x = drawn(6, bias), torch.randn(3, 6, *size, dtype=torch.float64)
    beta = [0.0] * 6 if grn.beta is None else grn.beta.tolist()
    torch.testing.assert_close(grn(x), by_loop(x, grn.gamma.tolist(), beta), rtol=1e-12, atol=1e-12)


def test_it_equals_timms_layer_with_the_same_weights() -> None:
    grn, x = drawn(6), torch.randn(2, 6, 7, 5, dtype=torch.float64)
    theirs = GlobalResponseNorm(6, channels_last=False, dtype=torch.float64)
    theirs.load_state_dict({"weight": grn.gamma.detach(), "bias": grn.beta.detach()})
    torch.testing.assert_close(grn(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_as_the_identity(bias: bool) -> None:
    x = torch.randn(2, 6, 7, 5)
    assert torch.equal(GRN(6, bias=bias)(x), x)


def test_without_bias_there_is_no_beta() -> None:
    assert [name for name, _ in GRN(6, bias=False).named_parameters()] == ["gamma"]
    assert [name for name, _ in GRN(6).named_parameters()] == ["gamma", "beta"]


@pytest.mark.parametrize("bias", [True, False])
def test_both_layouts_give_the_same_and_keep_theirs(bias: bool) -> None:
    grn, x = drawn(6, bias), torch.randn(2, 6, 7, 5, dtype=torch.float64)
    last = grn(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert grn(x).is_contiguous()
    torch.testing.assert_close(last, grn(x), rtol=1e-12, atol=1e-12, check_stride=False)


def test_gradients_are_those_of_finite_differences() -> None:
    grn = drawn(3)
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: grn(inputs[0]), (x, *grn.parameters()))


def test_an_empty_channel_and_an_empty_map_have_finite_gradients() -> None:
    for zeros in (slice(0, 1), slice(None)):
        grn, x = drawn(4), torch.randn(1, 4, 3, 3, dtype=torch.float64)
        x[:, zeros] = 0
        x.requires_grad_()
        grn(x).sum().backward()
        assert x.grad is not None
        assert all(t.isfinite().all() for t in (x.grad, grn.gamma.grad, grn.beta.grad) if t is not None)


def test_squares_that_float16_cannot_hold_do_not_overflow() -> None:
    x = torch.full((1, 4, 3, 3), 1000.0, dtype=torch.float16)
    grn = GRN(4, dtype=torch.float16)
    torch.nn.init.ones_(grn.gamma)
    assert torch.allclose(grn(x), torch.full_like(x, 2000.0))


def test_parameters_are_made_where_and_as_asked() -> None:
    grn = GRN(4, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in grn.parameters()} == {("meta", torch.bfloat16)}


def test_a_map_of_other_channels_is_refused() -> None:
    with pytest.raises(RuntimeError):
        GRN(4)(torch.randn(1, 5, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_dead_channel_gives_finite_gradients(dtype: torch.dtype) -> None:
    grn, x = drawn(3).to(dtype), torch.randn(2, 3, 4, 4, dtype=dtype)
    x[:, 1] = 0
    x.requires_grad_()
    grn(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    torch.testing.assert_close(grn(x)[:, 1], grn.beta[1].expand(2, 4, 4))


def test_large_values_in_half_precision_do_not_overflow() -> None:
    grn, x = drawn(2), 1000 * torch.randn(1, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(grn.half()(x.half()).double(), grn.double()(x), rtol=2e-2, atol=10.0)


def test_channels_last_gives_the_same() -> None:
    grn, x = drawn(5), torch.randn(2, 5, 7, 6, dtype=torch.float64)
    y = grn(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, grn(x), rtol=1e-12, atol=1e-12)
