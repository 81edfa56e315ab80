"""The Triton kernels in Triton's interpreter. pytest collects this file only in the process of test_interpreter.py.

Outputs are poisoned: under PyTorch's deterministic mode `torch.empty` is full of NaN, so what no program writes shows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from triton.runtime import interpreter

import fullfield
from fullfield.errors import ConfigError
from fullfield.ops import region_pwconv
from tests.ops.cases import float64, grads, normal, scales
from tests.ops.oracle import relative_error

# facts of the design: relative norms of y and dx; ds is one number a head, summed with cancellation
TOLERANCE = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (5e-3, 2e-2), torch.float16: (1e-3, 2e-3)}
DS_FACTOR = 5

# B, C, (H, W), r, heads. Few windows: the interpreter takes milliseconds a program.
CASES = {
    "tile": (1, 24, (9, 10), 2, 2),
    "tile, full block": (2, 32, (6, 4), 2, 2),
    "tile, several steps": (1, 40, (19, 17), 2, 1),
    "rows of 16": (1, 66, (1, 9), 2, 1),
    "rows of 32": (1, 96, (3, 5), 1, 1),
    "rows of 64": (1, 128, (7, 7), 1, 1),
    "pixel": (1, 150, (2, 2), 7, 1),
    "pixel, heads": (2, 24, (1, 3), 7, 2),
}


@pytest.fixture(autouse=True)
def _poisoned():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _right_bfloat16(monkeypatch):
    """Mend the interpreter: it multiplies the raw bits of bfloat16, and truncates where the hardware rounds."""
    builder = interpreter.InterpreterBuilder
    create_dot, cast = builder.create_dot, builder.cast_impl

    def wide(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self, a, b, *rest):
        return create_dot(self, wide(a), wide(b), *rest)

    def rounded(self, handle, to):
        if handle.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            bits = np.ascontiguousarray(handle.data).view(np.uint32)
            even = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            return interpreter.TensorHandle(even, tl.bfloat16)
        return cast(self, handle, to)

    monkeypatch.setattr(builder, "create_dot", dot)
    monkeypatch.setattr(builder, "cast_impl", rounded)


def run(x: Tensor, scale: Tensor, upstream: Tensor, path: str, **options) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, dx and ds."""
    leaves = x.detach().requires_grad_(), scale.detach().requires_grad_()
    y = region_pwconv(*leaves, path=path, **options)
    return (y.detach(), *grads(y, upstream, leaves))


def errors(x: Tensor, scale: Tensor, **options) -> tuple[float, float, float]:
    """Return the relative errors of y, dx and ds against the definition in float64."""
    upstream = normal(*x.shape, seed=1).to(x.dtype)
    got = run(x, scale, upstream, "triton", **options)
    expected = run(x.double(), scale.double(), upstream, "reference", **options)
    assert got[0].dtype == got[1].dtype == x.dtype
    return tuple(relative_error(float64(a), float64(b)) for a, b in zip(got, expected, strict=True))


def case(name: str, dtype: torch.dtype, similarity: str = "cosine", seed: int = 0) -> tuple[Tensor, Tensor, dict]:
    B, C, size, region_size, heads = CASES[name]
    x = normal(B, C, *size, seed=seed).to(dtype)
    pixels = -(-size[0] // region_size) * -(-size[1] // region_size)
    scale = scales(heads, similarity, pixels, torch.float32)
    return x, scale, {"region_size": region_size, "heads": heads, "similarity": similarity}


def check(x: Tensor, scale: Tensor, options: dict, ds_factor: int = DS_FACTOR) -> None:
    y, dx, ds = errors(x, scale, **options)
    y_tolerance, dx_tolerance = TOLERANCE[x.dtype]
    assert y <= y_tolerance, f"y {y:.1e}"
    assert dx <= dx_tolerance, f"dx {dx:.1e}"
    assert ds <= ds_factor * dx_tolerance, f"ds {ds:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_y_dx_and_ds_are_within_their_tolerances(name, dtype):
    check(*case(name, dtype))


@pytest.mark.parametrize("name", [name for name in CASES if "pixel" not in name])
def test_inner_products_are_too(name):
    check(*case(name, torch.float32, "inner"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_inner_products_are_too_in_half_precision(name, dtype):
    check(*case(name, dtype, "inner"))


@pytest.mark.parametrize("name", ["tile", "tile, several steps", "rows of 16", "pixel"])
@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
def test_channels_last_is_read_and_written_as_it_lies(dtype, name):
    x, scale, options = case(name, dtype)
    last = x.to(memory_format=torch.channels_last)
    upstream = normal(*x.shape, seed=1).to(dtype)
    expected = run(x, scale, upstream, "triton", **options)
    got = run(last, scale, upstream, "triton", **options)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert got[1].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["tile", "tile, several steps", "rows of 16", "pixel"])
def test_the_same_bits_twice(name):
    x, scale, options = case(name, torch.float16)
    upstream = normal(*x.shape, seed=1).half()
    first, second = (run(x, scale, upstream, "triton", **options) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["tile", "rows of 16", "pixel"])
def test_dead_channels_are_within_the_tolerances(name, dtype):
    x, scale, options = case(name, dtype)
    x[:, 3] = 0
    x[:, 10:] *= normal(1, x.shape[1] - 10, 1, 1, seed=5).to(dtype) > 0
    # their gradients are 1 / sqrt(eps) = 1000 times as large; "rows" takes delta from y as rounded, so ds feels that
    check(x, scale, options, ds_factor=4 * DS_FACTOR if name.startswith("rows") else DS_FACTOR)


@pytest.mark.parametrize("name", ["tile", "rows of 16", "pixel"])
@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (60.0, torch.float32),
        (60.0, torch.float16),
        (-60.0, torch.bfloat16),
        (-60.0, torch.float16),
        (1000.0, torch.float32),
    ],
    ids=str,
)
def test_large_scales_are_clamped_and_right(name, scale, dtype):
    # at |s| = 60 an error of a cosine counts 60 times in a logit
    x, scales_, options = case(name, dtype)
    x[:, 1] = x[:, 0]
    x[:, 3] = 0
    y, dx, ds = run(x, torch.full_like(scales_, scale), normal(*x.shape, seed=1).to(dtype), "triton", **options)
    clamped = torch.full_like(scales_, max(-60.0, min(60.0, scale))).double()
    expected, _, _ = run(x.double(), clamped, normal(*x.shape, seed=1), "reference", **options)
    assert relative_error(float64(y), float64(expected)) <= 10 * TOLERANCE[dtype][0]
    assert dx.isfinite().all()
    assert ds.isfinite().all()


@pytest.mark.parametrize("magnitude", [100.0, 1e-4])
@pytest.mark.parametrize("name", ["tile", "rows of 16", "pixel"])
def test_large_and_tiny_values_stay_finite_in_float16(name, magnitude):
    x, scale, options = case(name, torch.float16)
    y, dx, ds = run((magnitude * x.float()).half(), scale, normal(*x.shape, seed=1).half(), "triton", **options)
    assert y.isfinite().all()
    assert dx.isfinite().all()
    assert ds.isfinite().all()


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, :, ::2, 1:], lambda x: x.transpose(2, 3), lambda x: x[:1].expand(2, -1, -1, -1)],
    ids=["sliced", "transposed", "expanded"],
)
def test_strided_views_and_expanded_gradients_give_the_values_of_their_copies(view):
    x, scale = view(normal(1, 8, 6, 5).float()), torch.tensor([2.5, -1.5])
    leaf = x.detach().requires_grad_()
    y = region_pwconv(leaf, scale, region_size=2, heads=2, path="triton")
    y.sum().backward()  # its gradient is one number, expanded
    copy = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    expected = region_pwconv(copy, scale, region_size=2, heads=2, path="triton")
    expected.backward(torch.ones_like(expected))
    assert torch.equal(y, expected)
    assert torch.equal(leaf.grad, copy.grad)


def test_the_operator_obeys_pytorchs_rules_for_custom_operators():
    torch.use_deterministic_algorithms(False)
    x, scale = normal(1, 4, 2, 3).float().requires_grad_(), torch.tensor([2.5], requires_grad=True)
    results = torch.library.opcheck(torch.ops.fullfield.region_pwconv, (x, scale, 1, 2, 1, True, 1e-6))
    assert set(results.values()) == {"SUCCESS"}


def test_compile_export_checkpoint_and_autocast_give_the_values_of_a_plain_call():
    torch.use_deterministic_algorithms(False)
    x, scale, options = case("tile", torch.float32)
    upstream = normal(*x.shape, seed=1).float()

    def call(x: Tensor, scale: Tensor) -> Tensor:
        return region_pwconv(x, scale, path="triton", **options)

    expected = run(x, scale, upstream, "triton", **options)

    def results(function) -> tuple[Tensor, ...]:
        leaves = x.clone().requires_grad_(), scale.clone().requires_grad_()
        y = function(*leaves)
        return (y, *grads(y, upstream, leaves))

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    checkpointed = lambda x, scale: checkpoint(call, x, scale, use_reentrant=False)  # noqa: E731
    for function in (compiled, checkpointed):
        for a, b in zip(results(function), expected, strict=True):
            assert torch.equal(a, b)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return call(x, scale)

    exported = torch.export.export(Module(), (x, scale))
    assert "fullfield.region_pwconv" in str(exported.graph)
    assert torch.equal(exported.module()(x, scale), expected[0])

    for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, dx, _ = results(function)
        assert y.dtype == dx.dtype == torch.float32
        assert relative_error(float64(y), float64(expected[0])) <= 1e-2
        assert relative_error(float64(dx), float64(expected[1])) <= 2e-2


class Mixing(torch.nn.Module):
    """The operator with its weight, for DDP."""

    def __init__(self) -> None:
        super().__init__()
        _, scale, self.options = case("tile", torch.float32)
        self.scale = torch.nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return region_pwconv(x, self.scale, path="triton", **self.options)


def gradient_of_share(rank: int, address: str, found: list[Tensor]) -> None:
    """One of two processes: the gradient that DDP gives it for its own image."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = DistributedDataParallel(Mixing())
    model(normal(1, *case("tile", torch.float32)[0].shape[1:], seed=rank).float()).square().sum().backward()
    found[rank].copy_(model.module.scale.grad)
    dist.destroy_process_group()


def test_ddp_gives_every_process_the_mean_of_the_gradients(tmp_path):
    model = Mixing()
    found = [torch.full((2,), torch.nan).share_memory_() for _ in range(2)]
    mp.spawn(gradient_of_share, ((tmp_path / "meeting").as_uri(), found), nprocs=2)
    gradients = []
    for rank in range(2):
        model.zero_grad()
        model(normal(1, *case("tile", torch.float32)[0].shape[1:], seed=rank).float()).square().sum().backward()
        gradients.append(model.scale.grad.clone())
    assert not torch.equal(*gradients)
    mean = (gradients[0] + gradients[1]) / 2
    assert all(torch.equal(one, mean) for one in found)


def test_flops_are_those_of_two_products_forward_and_five_backward():
    x, scale, options = case("tile", torch.float32)
    windows, pixels, head_width = 4, 25, 12
    product = 2 * windows * options["heads"] * head_width**2 * pixels
    with FlopCounterMode(display=False) as counter:
        y = region_pwconv(x.requires_grad_(), scale, path="triton", **options)
        assert counter.get_total_flops() == 2 * product
        y.backward(y.detach())
    assert counter.get_total_flops() == 7 * product


def test_training_keeps_nothing_but_x_where_the_map_fits_a_program():
    x, scale, options = case("tile", torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        region_pwconv(x.requires_grad_(), scale, path="triton", **options)
    assert sum(t.numel() for t in kept if t.numel() > scale.numel()) == x.numel()


def test_a_batch_of_no_images_gives_no_images():
    x = torch.zeros(0, 6, 9, 8, requires_grad=True)
    y = region_pwconv(x, torch.ones(2), region_size=4, heads=2, path="triton")
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape


def test_float64_is_refused_here_too():
    with pytest.raises(ConfigError, match="float64"):
        region_pwconv(normal(1, 4, 3, 3), torch.ones(1), path="triton")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_shapes_are_within_the_tolerances(seed):
    draw = np.random.default_rng(seed)
    heads = int(draw.integers(1, 4))
    C = heads * int(draw.integers(1, 90 if seed % 4 == 0 else 40))
    H, W = (int(draw.integers(1, 18)) for _ in range(2))
    region_size = int(draw.integers(1, 4))
    dtype = list(TOLERANCE)[seed % 3]
    x = normal(1, C, H, W, seed=seed).to(dtype)
    check(x, torch.from_numpy(4 * draw.standard_normal(heads)).float(), {"region_size": region_size, "heads": heads})


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_thousand_training_steps_stay_finite_and_learn(dtype, monkeypatch):
    torch.use_deterministic_algorithms(False)  # it would fill every operator's new tensors with NaN, which takes time
    torch.manual_seed(0)
    monkeypatch.setenv("FULLFIELD_PATH_REGION_PWCONV", "triton")
    # "tile" in the first two stages, "rows" in the third, and "pixel" in the fourth, which has a map of 1 × 1
    shape = {"dims": (8, 16, 128, 32), "depths": (1, 1, 1, 1), "region_size": 1, "heads": 1}
    model = fullfield.create_model("racnn_pico", num_classes=2, **shape)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    images, labels = normal(2, 3, 32, 32).float(), torch.arange(2)
    losses = []
    for _ in range(1000):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.1 * losses[0]


def test_this_is_the_interpreter():
    assert triton.knobs.runtime.interpret
