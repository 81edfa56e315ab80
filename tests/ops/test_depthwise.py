"""Every path of depthwise_conv2d, in every direction, equals a slow loop over outputs and taps in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from fullfield.errors import ConfigError
from fullfield.ops import PATHS, depthwise_conv2d

from .cases import float64, normal

PATHS_AND_RULE = [None, *PATHS["depthwise_conv2d"]]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of one convolution; padding None keeps the size."""

    kernel: tuple[int, int]
    size: tuple[int, int]
    stride: int = 1
    dilation: int = 1
    padding: int | tuple[int, int] | None = None

    @property
    def pads(self) -> tuple[int, int]:
        if self.padding is None:
            return self.dilation * (self.kernel[0] // 2), self.dilation * (self.kernel[1] // 2)
        return (self.padding, self.padding) if isinstance(self.padding, int) else self.padding

    def arguments(self) -> dict:
        padding = "same" if self.padding is None else self.padding
        return {"stride": self.stride, "dilation": self.dilation, "padding": padding}


CASES = [
    Case((3, 3), (9, 8)),
    Case((5, 5), (1, 1)),
    Case((13, 13), (7, 6)),
    Case((11, 11), (12, 9)),
    Case((15, 15), (16, 15)),
    Case((51, 5), (7, 9)),
    Case((5, 51), (9, 16)),
    Case((51, 51), (7, 7)),
    Case((31, 31), (10, 12)),
    Case((7, 7), (14, 13), stride=2),
    Case((17, 17), (15, 14), stride=2),
    Case((3, 3), (1, 13), stride=2),
    Case((7, 7), (13, 14), dilation=3),
    Case((3, 3), (5, 1), dilation=7),
    Case((3, 3), (9, 9), stride=2, dilation=2),
    Case((4, 3), (9, 8), padding=(2, 1)),
    Case((12, 12), (16, 15), padding=4),
    Case((4, 4), (9, 8), padding=0),
    Case((3, 3), (5, 6), padding=5),
    Case((3, 3), (5, 6), stride=2, padding=(4, 0)),
]


def terms(case: Case, output: tuple[int, int]):
    """Yield (output pixels, input pixels, tap) of every product of the definition that has a pixel of the map."""
    (kh, kw), (height, width), (ph, pw) = case.kernel, case.size, case.pads
    for i in range(kh):
        for j in range(kw):
            for h in range(output[0]):
                for w in range(output[1]):
                    row = case.stride * h + case.dilation * i - ph
                    column = case.stride * w + case.dilation * j - pw
                    if 0 <= row < height and 0 <= column < width:
                        yield (h, w), (row, column), (i, j)


def loop(x: np.ndarray, weight: np.ndarray, g: np.ndarray | None, case: Case) -> tuple[np.ndarray, ...]:
    """Return y, and with the upstream gradient g also dx and dk, product by product in float64."""
    output = tuple(
        (size + 2 * pad - case.dilation * (k - 1) - 1) // case.stride + 1
        for size, pad, k in zip(case.size, case.pads, case.kernel, strict=True)
    )
    y, dx, dk = np.zeros((*x.shape[:2], *output)), np.zeros_like(x), np.zeros_like(weight)
    for (h, w), (row, column), (i, j) in terms(case, output):
        y[:, :, h, w] += x[:, :, row, column] * weight[:, 0, i, j]
        if g is not None:
            dx[:, :, row, column] += g[:, :, h, w] * weight[:, 0, i, j]
            dk[:, 0, i, j] += (g[:, :, h, w] * x[:, :, row, column]).sum(0)
    return y, dx, dk


def relative_error(actual: Tensor, expected: np.ndarray) -> float:
    assert tuple(actual.shape) == expected.shape
    return float(np.linalg.norm(float64(actual) - expected) / max(np.linalg.norm(expected), 1e-12))


REFERENCES: dict[Case, tuple] = {}


def reference(case: Case) -> tuple:
    """Return x, weight, g and what the loop gives for them; the loop runs once a case."""
    if case not in REFERENCES:
        x, weight = normal(2, 3, *case.size, seed=1), normal(3, 1, *case.kernel, seed=2)
        y, _, _ = loop(float64(x), float64(weight), None, case)
        g = normal(*y.shape, seed=3)
        REFERENCES[case] = (x, weight, g, loop(float64(x), float64(weight), float64(g), case))
    return REFERENCES[case]


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_path_equals_the_loop_in_every_direction(case: Case, path: str | None) -> None:
    x64, weight64, g64, expected = reference(case)
    for dtype, y_tolerance, grad_tolerance in ((torch.float64, 1e-10, 1e-10), (torch.float32, 1e-5, 2e-5)):
        for layout in LAYOUTS:
            x = x64.to(dtype).contiguous(memory_format=layout).requires_grad_()
            weight = weight64.to(dtype).requires_grad_()
            y = depthwise_conv2d(x, weight, path=path, **case.arguments())
            g = g64.to(dtype).contiguous(memory_format=layout)
            dx, dk = torch.autograd.grad(y, (x, weight), g)
            assert y.dtype == dx.dtype == dk.dtype == dtype
            assert y.is_contiguous(memory_format=layout)
            assert relative_error(y, expected[0]) < y_tolerance
            assert relative_error(dx, expected[1]) < grad_tolerance
            assert relative_error(dk, expected[2]) < grad_tolerance


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_bias_is_added_and_its_gradient_is_the_sum(path: str | None) -> None:
    case = Case((5, 5), (6, 7))
    x, weight, g, expected = reference(case)
    bias = normal(3, seed=4).requires_grad_()
    y = depthwise_conv2d(x, weight, bias, path=path)
    assert relative_error(y, expected[0] + float64(bias)[:, None, None]) < 1e-10
    (db,) = torch.autograd.grad(y, bias, g)
    assert relative_error(db, float64(g).sum((0, 2, 3))) < 1e-10


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("case", [Case((9, 9), (12, 11)), Case((21, 5), (14, 12))], ids=str)
def test_bfloat16_stays_within_its_rounding(case: Case, path: str | None) -> None:
    x64, weight64, g64, _ = reference(case)
    x, weight, g = (t.to(torch.bfloat16) for t in (x64, weight64, g64))
    y, dx, dk = loop(float64(x), float64(weight), float64(g), case)
    x.requires_grad_(), weight.requires_grad_()
    actual = depthwise_conv2d(x, weight, path=path)
    grads = torch.autograd.grad(actual, (x, weight), g)
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, y) < 1e-2
    assert relative_error(grads[0], dx) < 1e-2
    assert relative_error(grads[1], dk) < 2e-2


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_inputs_that_are_not_contiguous_are_taken_as_they_are(path: str | None) -> None:
    case = Case((5, 7), (6, 8))
    x, weight, g, expected = reference(case)
    wide = torch.zeros(2, 3, 6, 16, dtype=x.dtype)
    wide[..., ::2] = x
    strided = wide[..., ::2].requires_grad_()
    flipped = weight.flip(3).contiguous().flip(3).transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    y = depthwise_conv2d(strided, flipped, path=path)
    dx, dk = torch.autograd.grad(y, (strided, flipped), g.transpose(2, 3).contiguous().transpose(2, 3))
    for actual, wanted in zip((y, dx, dk), expected, strict=True):
        assert relative_error(actual, wanted) < 1e-10


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_a_gradient_of_one_number_repeated_is_taken(path: str | None) -> None:
    x, weight, _, _ = reference(Case((5, 5), (6, 7)))
    x = x.clone().requires_grad_()
    depthwise_conv2d(x, weight, path=path).sum().backward()
    ones = np.ones(x.shape)
    assert relative_error(x.grad, loop(float64(x), float64(weight), ones, Case((5, 5), (6, 7)))[1]) < 1e-10


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("stride", [1, 2])
def test_an_empty_batch_gives_an_empty_map_and_zero_gradients(path: str | None, stride: int) -> None:
    x, weight = torch.zeros(0, 4, 9, 8, requires_grad=True), torch.ones(4, 1, 7, 7, requires_grad=True)
    y = depthwise_conv2d(x, weight, stride=stride, path=path)
    assert y.shape == (0, 4, -(-9 // stride), 8 // stride)
    dx, dk = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape
    assert torch.equal(dk, torch.zeros_like(weight))


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize(("batch", "channels"), [(1, 40), (33, 2)])
def test_batches_and_channels_beyond_one_block_are_all_computed(path: str | None, batch: int, channels: int) -> None:
    # 33 maps of 100x100 points do not fit one block of the Fourier path; toeplitz has a bound on the map.
    side = 12 if path == "toeplitz" else 90
    x, weight = normal(batch, channels, side, side).float(), normal(channels, 1, 9, 9).float()
    y = depthwise_conv2d(x, weight, path=path)
    one = depthwise_conv2d(x[-1:, -1:].double(), weight[-1:].double(), path="native")
    assert relative_error(y[-1:, -1:], float64(one)) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": torch.zeros(4, 9, 8)}, ValueError, r"\(B, C, H, W\)"),
        ({"x": torch.zeros(1, 4, 9, 8, dtype=torch.int64)}, TypeError, "floating point"),
        ({"weight": torch.zeros(4, 2, 3, 3)}, ValueError, r"\(C, 1, KH, KW\) with C = 4"),
        ({"weight": torch.zeros(8, 1, 3, 3)}, ValueError, r"got shape \(8, 1, 3, 3\)"),
        ({"weight": torch.zeros(4, 1, 5, 5).double(), "path": "fft"}, TypeError, "one dtype"),
        ({"weight": torch.zeros(4, 1, 4, 3)}, ValueError, r"odd kernel, got \(4, 3\)"),
        ({"padding": "valid"}, ValueError, "'valid'"),
        ({"padding": -1}, ValueError, "-1"),
        ({"stride": 0}, ValueError, "at least 1, got 0"),
        ({"dilation": 0}, ValueError, "at least 1"),
        ({"weight": torch.zeros(4, 1, 11, 11), "padding": 0, "path": "fft"}, ValueError, "larger than the map"),
        ({"path": "toplitz"}, ConfigError, "did you mean 'toeplitz'"),
        ({"x": torch.zeros(1, 4, 17, 16), "path": "toeplitz"}, ConfigError, r"17x16; use path='fft'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_by_name(arguments: dict, error: type[Exception], words: str) -> None:
    given = {"x": torch.zeros(1, 4, 9, 8), "weight": torch.zeros(4, 1, 3, 3)} | arguments
    with pytest.raises(error, match=words):
        depthwise_conv2d(**given)
