"""How depthwise_conv2d behaves as a citizen of PyTorch: autograd, autocast, counting, export, compile, odd numbers."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fullfield.errors import ConfigError
from fullfield.layers import DepthwiseConv2d
from fullfield.ops import PATHS, depthwise_conv2d
from fullfield.ops.depthwise_trilinear import convolve, grad_input, grad_weight

from .cases import normal

FASTER = [path for path in PATHS["depthwise_conv2d"] if path != "native"]
PATHS_AND_RULE = [None, *PATHS["depthwise_conv2d"]]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class RecordOperators(TorchDispatchMode):
    """Names of the operators that a call reaches."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def differentiable(*sizes: int, seed: int = 0) -> Tensor:
    return normal(*sizes, seed=seed).requires_grad_()


@pytest.mark.parametrize("path", FASTER)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_first_and_second_gradients_equal_finite_differences(path: str, stride: int, dilation: int) -> None:
    x, weight = differentiable(2, 2, 5, 4, seed=1), differentiable(2, 1, 3, 5, seed=2)

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, stride=stride, dilation=dilation, path=path)

    assert torch.autograd.gradcheck(call, (x, weight))
    assert torch.autograd.gradgradcheck(call, (x, weight))


@pytest.mark.parametrize("op", [convolve, grad_input, grad_weight])
def test_custom_operators_pass_pytorch_s_own_checks(op) -> None:
    x, weight, g = differentiable(2, 2, 6, 5), differentiable(2, 1, 3, 3), differentiable(2, 2, 3, 3)
    geometry = (2, (1, 1), 1, "nchw")
    arguments = {
        convolve: (x, weight, *geometry),
        grad_input: (g, weight, (6, 5), False, *geometry),
        grad_weight: (x, g, (3, 3), *geometry),
    }[op]
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("path", FASTER)
@pytest.mark.parametrize(
    ("wanted", "unwanted"), [("grad_input", "grad_weight"), ("grad_weight", "grad_input")], ids=["frozen", "input"]
)
def test_only_the_gradient_that_is_asked_for_is_computed(path: str, wanted: str, unwanted: str) -> None:
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 5, 5)
    (x if wanted == "grad_input" else weight).requires_grad_()
    y = depthwise_conv2d(x, weight, path=path)
    with RecordOperators() as record:
        y.sum().backward()
    assert any(wanted in name for name in record.names)
    assert not any(unwanted in name for name in record.names)


def test_a_frozen_kernel_keeps_no_map_for_the_backward_pass() -> None:
    x, weight = torch.randn(2, 4, 9, 9, requires_grad=True), torch.randn(4, 1, 5, 5)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        depthwise_conv2d(x, weight, path="fft")
    assert kept == [(4, 1, 5, 5)]


@pytest.mark.parametrize("path", FASTER)
@pytest.mark.parametrize(("stride", "kernel"), [(1, (5, 3)), (2, (7, 7)), (1, (31, 5))])
def test_flops_are_those_of_the_direct_convolution_in_each_direction(
    path: str, stride: int, kernel: tuple[int, int]
) -> None:
    x, weight = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(4, 1, *kernel, requires_grad=True)
    outputs = -(-9 // stride) * -(-8 // stride)
    flops = 2 * 2 * 4 * outputs * kernel[0] * kernel[1]

    def call() -> Tensor:
        return depthwise_conv2d(x, weight, stride=stride, path=path)

    assert counted(call) == flops
    assert counted(lambda: call().sum().backward()) == 3 * flops
    assert counted(torch.no_grad()(call)) == flops


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kernel", [(3, 3), (13, 13), (31, 31), (5, 51)])
def test_the_rule_counts_what_pytorch_counts(device: str, kernel: tuple[int, int]) -> None:
    x, weight = torch.zeros(1, 16, 56, 56, device=device), torch.zeros(16, 1, *kernel, device=device)
    native = counted(lambda: F.conv2d(x, weight, padding=(kernel[0] // 2, kernel[1] // 2), groups=16))
    assert counted(lambda: depthwise_conv2d(x, weight)) == native == 2 * 16 * 56 * 56 * kernel[0] * kernel[1]


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("bias", [False, True])
def test_autocast_gives_its_dtype_as_conv2d_does(path: str | None, bias: bool) -> None:
    x, weight = torch.randn(2, 4, 12, 12, requires_grad=True), torch.randn(4, 1, 9, 9, requires_grad=True)
    shift = torch.randn(4) if bias else None
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, shift, path=path)
        expected = F.conv2d(x, weight, shift, padding=4, groups=4)
    assert y.dtype == expected.dtype == torch.bfloat16
    assert ((y - expected).float().norm() / expected.float().norm()).item() < 1e-2
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_call_gives_the_same_bits(path: str | None, layout: torch.memory_format) -> None:
    x = torch.randn(3, 20, 14, 14).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(20, 1, 15, 15, requires_grad=True)
    runs = []
    for _ in range(2):
        y = depthwise_conv2d(x, weight, path=path)
        runs.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_stays_in_its_sample_and_channel(path: str | None, layout: torch.memory_format) -> None:
    x = torch.randn(3, 18, 14, 14).contiguous(memory_format=layout)
    x[1, 7, 4, 4] = float("nan")
    x.requires_grad_()
    weight = torch.randn(18, 1, 15, 15, requires_grad=True)
    y = depthwise_conv2d(x, weight, path=path)
    dx, dk = torch.autograd.grad(y, (x, weight), torch.randn_like(y))
    spoilt = y.isnan().any(dim=3).any(dim=2)
    assert spoilt.nonzero().tolist() == [[1, 7]]
    assert dx.isfinite().all()
    assert dk.isnan().flatten(1).any(dim=1).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize(("kernel", "size"), [(13, 56), (31, 56), (21, 28), (31, 14), (13, 7), (51, 7)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_rule_equals_float64_at_the_sizes_of_real_nets(kernel: int, size: int, layout: torch.memory_format) -> None:
    # Enough work for the rule to leave PyTorch's own path; float64 by that path is independent of all of ours.
    x = normal(2, 16, size, size, seed=1).contiguous(memory_format=layout).requires_grad_()
    weight, g = differentiable(16, 1, kernel, kernel, seed=2), normal(2, 16, size, size, seed=3)
    expected = F.conv2d(x, weight, padding=kernel // 2, groups=16)
    expected = (expected, *torch.autograd.grad(expected, (x, weight), g))
    x32, weight32 = x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    y = depthwise_conv2d(x32, weight32)
    actual = (y, *torch.autograd.grad(y, (x32, weight32), g.float()))
    for value, wanted, tolerance in zip(actual, expected, (1e-5, 2e-5, 2e-5), strict=True):
        assert ((value - wanted).norm() / wanted.norm()).item() < tolerance
        assert value.is_contiguous(memory_format=layout) or value is actual[2]


class Net(nn.Module):
    """A wide kernel and a strip, which the rule never leaves to PyTorch on a CPU."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(DepthwiseConv2d(8, 31), DepthwiseConv2d(8, (5, 51), stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_the_net_of_these_tests_takes_our_operators(net: Net) -> None:
    with RecordOperators() as record, torch.no_grad():
        net(torch.randn(1, 8, 24, 24))
    assert sum("fullfield" in name for name in record.names) == 2


@pytest.mark.parametrize("forced", [None, "fft"])
def test_an_exported_graph_holds_plain_convolutions_for_any_size(
    net: Net, forced: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("FULLFIELD_PATH_DEPTHWISE_CONV2D", forced)
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    graph = torch.export.export(
        net, (torch.randn(2, 8, 40, 24),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC} | sides,)
    )
    calls = [
        str(node.target) for node in graph.graph.nodes if node.op == "call_function" and "conv" in str(node.target)
    ]
    assert calls == ["aten.conv2d.default"] * 2
    for size in ((1, 8, 40, 24), (3, 8, 33, 70)):
        x = torch.randn(*size)
        torch.testing.assert_close(graph.module()(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_traced_graph_holds_no_operator_of_ours(net: Net) -> None:
    x = torch.randn(1, 8, 24, 24)
    traced = torch.jit.trace(net, x, check_trace=False)
    assert "fullfield::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [None, "fft"])
def test_a_compiled_step_is_one_graph_that_equals_eager(path: str | None) -> None:
    x, weight = torch.randn(2, 8, 24, 24), torch.randn(8, 1, 31, 31, requires_grad=True)

    def step(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, path=path)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    grads = []
    for call in (step, compiled):
        y = call(x, weight)
        grads.append((y, *torch.autograd.grad(y.square().mean(), weight)))
    for eager, other in zip(*grads, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-4, atol=1e-4)


def test_vmap_over_kernels_equals_a_loop_over_them() -> None:
    x, kernels = torch.randn(1, 8, 24, 24), torch.randn(3, 8, 1, 31, 31)
    y = torch.func.vmap(depthwise_conv2d, in_dims=(None, 0))(x, kernels)
    torch.testing.assert_close(y, torch.stack([depthwise_conv2d(x, k) for k in kernels]), rtol=1e-4, atol=1e-4)


def test_forward_mode_gradients_take_the_native_path_and_others_say_so() -> None:
    x, weight = torch.randn(1, 8, 24, 24), torch.randn(8, 1, 31, 31)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(depthwise_conv2d(dual, weight, path="native")).tangent
        assert tangent.shape == x.shape
        torch.testing.assert_close(forward_ad.unpack_dual(depthwise_conv2d(dual, weight)).tangent, tangent)
        with pytest.raises(ConfigError, match=r"forward-mode gradients .* path='native'"):
            depthwise_conv2d(dual, weight, path="fft")


def test_a_net_can_be_copied_and_saved_after_a_step(net: Net) -> None:
    trained = copy.deepcopy(net)
    x = torch.randn(1, 8, 24, 24)
    trained(x).sum().backward()
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(trained), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded(x), net(x))


@pytest.mark.parametrize("path", PATHS["depthwise_conv2d"])
def test_the_environment_variable_forces_every_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 1, 5, 5)
    with RecordOperators() as by_argument:
        depthwise_conv2d(x, weight, path=path)
    monkeypatch.setenv("FULLFIELD_PATH_DEPTHWISE_CONV2D", path)
    with RecordOperators() as by_variable:
        depthwise_conv2d(x, weight)
    assert by_variable.names == by_argument.names
    assert any("fullfield" in name for name in by_variable.names) == (path != "native")
