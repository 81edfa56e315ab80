"""The global filter against circular convolution by loops, its resizing by hand, and the layer by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, export

from fullfield.errors import ConfigError
from fullfield.layers.global_filter import GlobalLocalFilter, filter_spectrum, resize_spectrum

F64 = torch.float64
MAPS = [(4, 6), (5, 7), (6, 3), (1, 1), (1, 5), (1, 4), (6, 1)]


def kernel_of(spectrum: Tensor, height: int, width: int) -> Tensor:
    """Sum the waves of half a spectrum, (C, H, W // 2 + 1, 2) -> (C, H, W); the other half are mirror images."""
    kernel = torch.zeros(spectrum.shape[0], height, width, dtype=F64)
    for u in range(height):
        for v in range(width // 2 + 1):
            times = 1 if v == 0 or 2 * v == width else 2
            for i in range(height):
                for j in range(width):
                    angle = 2 * math.pi * (u * i / height + v * j / width)
                    real, imaginary = spectrum[:, u, v].unbind(-1)
                    kernel[:, i, j] += times * (real * math.cos(angle) - imaginary * math.sin(angle))
    return kernel / (height * width)


def circular_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            y += kernel[:, i, j, None, None] * x.roll((i, j), dims=(2, 3))
    return y


def resized_by_hand(spectrum: Tensor, rows: int, columns: int) -> Tensor:
    """Interpolate linearly along rows, then columns, with the first and last entries in place."""
    for axis, count in ((1, rows), (2, columns)):
        old = spectrum.shape[axis]
        taken = []
        for index in range(count):
            position = index * (old - 1) / (count - 1) if count > 1 else 0.0
            low = min(int(position), old - 1)
            high = min(low + 1, old - 1)
            part = position - low
            taken.append((1 - part) * spectrum.select(axis, low) + part * spectrum.select(axis, high))
        spectrum = torch.stack(taken, dim=axis)
    return spectrum


@torch.no_grad()
def settled(dim: int = 8, size: int = 6) -> GlobalLocalFilter:
    """Make a layer whose norms and filters are as after some training."""
    layer = GlobalLocalFilter(dim, size, dtype=F64)
    for parameter in layer.parameters():
        parameter.normal_()
    return layer


@pytest.mark.parametrize("size", MAPS, ids=str)
def test_filtering_is_circular_convolution_over_the_whole_map(size: tuple[int, int]) -> None:
    x, spectrum = torch.randn(2, 3, *size, dtype=F64), torch.randn(3, size[0], size[1] // 2 + 1, 2, dtype=F64)
    expected = circular_convolution(x, kernel_of(spectrum, *size))
    torch.testing.assert_close(filter_spectrum(x, spectrum), expected, rtol=1e-10, atol=1e-12)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(filter_spectrum(last, spectrum), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [*MAPS, (7, 12), (14, 14), (3, 40)], ids=str)
def test_spectra_are_resized_between_frequencies_with_corners_in_place(size: tuple[int, int]) -> None:
    spectrum = torch.randn(3, 7, 4, 2, dtype=F64)
    resized = resize_spectrum(spectrum, *size)
    assert resized.is_contiguous()
    torch.testing.assert_close(resized, resized_by_hand(spectrum, size[0], size[1] // 2 + 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(14, 8), (7, 4), (24, 13), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_resizing_to_the_same_size_changes_no_bit(
    size: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectrum = torch.randn(5, *size, 2, dtype=dtype)
    height, width = size[0], 2 * size[1] - 1
    assert torch.equal(resize_spectrum(spectrum, height, width), spectrum)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(resize_spectrum(spectrum, height, width), spectrum)


@pytest.mark.parametrize("size", [(6, 6), (6, 7), (5, 9), (1, 1), (2, 1)], ids=str)
def test_layer_is_norm_local_and_global_halves_interleaved_norm(size: tuple[int, int]) -> None:
    layer, x = settled(), torch.randn(2, 8, *size, dtype=F64)

    def normalised(x: Tensor, norm: torch.nn.Module) -> Tensor:
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + 1e-6) * norm.weight[:, None, None] + norm.bias[:, None, None]

    z = normalised(x, layer.pre_norm)
    near = F.conv2d(z[:, :4], layer.local.weight, padding=1, groups=4)
    weight = resized_by_hand(layer.complex_weight, size[0], size[1] // 2 + 1).detach().numpy()
    waves = np.fft.rfft2(z[:, 4:].detach().numpy()) * (weight[..., 0] + 1j * weight[..., 1])
    far = torch.from_numpy(np.fft.irfft2(waves, s=size))
    mixed = torch.empty(2, 8, *size, dtype=F64)
    mixed[:, 0::2], mixed[:, 1::2] = near, far
    expected = normalised(mixed, layer.post_norm)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-10, atol=1e-12)


def test_a_pixel_sees_its_neighbours_in_one_half_and_the_whole_map_in_the_other() -> None:
    for far in (False, True):
        layer, x = settled(), torch.randn(1, 8, 9, 11, dtype=F64, requires_grad=True)
        with torch.no_grad():  # the norm after the halves would mix them
            (layer.local.weight if far else layer.complex_weight).zero_()
        layer(x)[:, :, 4, 5].square().sum().backward()
        assert x.grad is not None
        assert int(x.grad.abs().sum(1).gt(1e-9).sum()) == (9 * 11 if far else 3 * 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_transformed_in_float32(dtype: torch.dtype) -> None:
    x, spectrum = torch.randn(2, 3, 6, 5).to(dtype), torch.randn(3, 4, 4, 2).to(dtype)
    y = filter_spectrum(x, spectrum)
    assert y.dtype == torch.float32
    assert torch.equal(y, filter_spectrum(x.float(), spectrum.float()))
    assert filter_spectrum(x.double(), spectrum.double()).dtype == F64


def test_autocast_leaves_the_transform_in_float32() -> None:
    x, spectrum = torch.randn(2, 3, 6, 5), torch.randn(3, 4, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = filter_spectrum(x, spectrum)
        assert settled().float()(torch.randn(1, 8, 5, 5)).isfinite().all()
    assert torch.equal(y, filter_spectrum(x, spectrum))


@pytest.mark.parametrize("size", [(4, 5), (3, 4), (1, 1)], ids=str)
def test_gradients_are_right_at_its_own_and_at_another_size(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *size, dtype=F64, requires_grad=True)
    spectrum = torch.randn(2, 4, 3, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(filter_spectrum, (x, spectrum))


def test_an_exported_layer_holds_for_maps_of_any_size() -> None:
    layer = settled().eval()
    sides = {2: Dim("height", min=2, max=512), 3: Dim("width", min=2, max=512)}
    graph = export(layer, (torch.randn(2, 8, 6, 6, dtype=F64),), dynamic_shapes=({0: Dim("batch"), **sides},)).module()
    for size in [(6, 6), (5, 9), (2, 3), (14, 7)]:
        x = torch.randn(3, 8, *size, dtype=F64)
        torch.testing.assert_close(graph(x), layer(x), rtol=1e-12, atol=1e-12)


def test_the_spectrum_is_stored_as_real_numbers_drawn_as_officially() -> None:
    layer = GlobalLocalFilter(128, 14)
    assert layer.complex_weight.shape == (64, 14, 8, 2)
    assert layer.complex_weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert GlobalLocalFilter(8, 7).complex_weight.shape == (4, 7, 4, 2)


def test_dtype_and_device_reach_every_parameter() -> None:
    layer = GlobalLocalFilter(8, 6, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    assert layer(torch.empty(3, 8, 5, 4, device="meta", dtype=torch.bfloat16)).shape == (3, 8, 5, 4)


def test_halves_that_are_not_equal_and_maps_without_pixels_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be even, got 7"):
        GlobalLocalFilter(7, 6)
    with pytest.raises(ConfigError, match="at least 1 pixel, got 0"):
        GlobalLocalFilter(8, 0)


@pytest.mark.parametrize("shape", [(1, 4, 3, 2), (3, 4, 3), (3, 4, 3, 1)], ids=str)
def test_a_spectrum_that_is_not_one_filter_a_channel_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"spectrum must be \(C, h, w, 2\) for the 3 channels"):
        filter_spectrum(torch.randn(1, 3, 4, 4), torch.randn(shape))
