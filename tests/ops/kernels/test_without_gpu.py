"""Machines without a GPU or without Triton: the package works, the rule stays away, a forced path says why."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fullfield.errors import ConfigError
from fullfield.ops import region_pwconv
from fullfield.ops.dispatch import GPU_PATHS, PATHS
from fullfield.ops.kernels import is_fastest, region_pwconv_triton
from fullfield.ops.kernels import region_pwconv as module

X, SCALE = torch.randn(1, 8, 9, 10), torch.ones(2)


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("FULLFIELD_PATH_REGION_PWCONV", raising=False)


def test_importing_the_package_imports_no_triton():
    program = (
        "import sys; sys.modules['triton'] = None\n"  # importing it now raises
        "import torch, fullfield.models\n"
        "from fullfield.ops import region_pwconv\n"
        "print(region_pwconv(torch.randn(1, 8, 9, 10), torch.ones(2), heads=2).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "[1, 8, 9, 10]" in done.stdout, done.stderr


def test_forced_on_a_cpu_it_names_the_device_and_the_way_out():
    with pytest.raises(ConfigError, match=r"(?s)'triton'.*CUDA.*cpu.*path=None"):
        region_pwconv(X, SCALE, heads=2, path="triton")


def test_forced_by_the_environment_it_says_the_same(monkeypatch):
    monkeypatch.setenv("FULLFIELD_PATH_REGION_PWCONV", "triton")
    with pytest.raises(ConfigError, match="CUDA"):
        region_pwconv(X, SCALE, heads=2)


def test_float64_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"float16.*float64"):
        region_pwconv(X.double(), SCALE, heads=2, path="triton")


def test_sizes_without_a_kernel_are_named_with_the_path_that_serves_them():
    x = torch.empty(1, 160, 40, 40, device="meta")
    with pytest.raises(ConfigError, match=r"1600 pixels.*160 channels.*'bmm'"):
        region_pwconv_triton(x, torch.empty(1, device="meta"), 1, 1, 1, "cosine", 1e-6)


def test_images_beyond_32_bit_offsets_are_refused():
    with pytest.raises(ConfigError, match=r"2\*\*31"):
        region_pwconv(torch.empty(1, 64, 8192, 8192, device="meta"), SCALE, heads=2, path="triton")


def test_the_rule_never_chooses_it_without_cuda(monkeypatch):
    monkeypatch.setattr(module, "VERIFIED_CAPABILITIES", frozenset({(9, 0)}))
    assert not is_fastest(X, 7, 7, 2, "cosine")
    assert not is_fastest(X.to("meta"), 7, 7, 2, "cosine")


def test_it_is_a_path_of_some_machines_and_no_path_of_the_others_tests():
    assert GPU_PATHS == {"region_pwconv": ("triton",)}
    assert "triton" not in PATHS["region_pwconv"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_meta_tensors_give_shape_dtype_and_layout(dtype, layout):
    x = torch.empty(2, 16, 9, 8, device="meta", dtype=dtype).to(memory_format=layout).requires_grad_()
    y = region_pwconv(x, torch.empty(2, device="meta"), region_size=4, heads=2, path="triton")
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert y.is_contiguous(memory_format=layout)
    y.backward(torch.empty_like(y))
    assert x.grad.is_contiguous(memory_format=layout)
