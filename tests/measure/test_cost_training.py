"""Memory of a training step by count, against what a layer must keep, PyTorch's allocator and measured peaks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from multiprocessing import get_context

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fullfield
from fullfield.errors import ConfigError
from fullfield.measure.cost_training import training_memory
from fullfield.measure.memory import peak_memory_mb
from fullfield.measure.runners import Setting, make_call


def layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(8 * 16, 10, bias=False))


def test_every_saved_map_counts_once_and_parameters_not() -> None:
    counted = training_memory(layers(), batch=2, optimizer="sgd", image_size=4)
    image, map_, logits = 2 * 3 * 16, 2 * 8 * 16, 2 * 10
    # the convolution's input, GELU's input and output, cross-entropy's log-softmax, target and weight of the mean
    assert counted.activation_bytes == 4 * (image + 2 * map_ + logits) + 2 * 8 + 4
    weights = 4 * (27 * 8 + 8 + 1280)
    assert (counted.weight_bytes, counted.gradient_bytes, counted.optimizer_bytes) == (weights, weights, 0)
    assert counted.total_bytes == 2 * weights + counted.activation_bytes + counted.working_bytes


@pytest.mark.parametrize(("optimizer", "numbers"), [("sgd", 0), ("sgd_momentum", 1), ("adamw", 2)])
def test_the_optimisers_state_is_what_pytorchs_optimiser_makes(optimizer: str, numbers: int) -> None:
    model = layers()
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1),
        "sgd_momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "adamw": torch.optim.AdamW,
    }
    made = makers[optimizer](model.parameters())
    model(torch.zeros(1, 3, 4, 4)).sum().backward()
    made.step()
    state = [t for s in made.state.values() for t in s.values() if isinstance(t, torch.Tensor) and t.ndim]
    counted = training_memory(model, optimizer=optimizer, image_size=4)
    assert counted.optimizer_bytes == sum(t.numel() * 4 for t in state) == numbers * counted.gradient_bytes


def test_frozen_parameters_have_neither_gradient_nor_state() -> None:
    model = layers().requires_grad_(False)
    model[3].requires_grad_(True)
    counted = training_memory(model, image_size=4)
    assert (counted.gradient_bytes, counted.optimizer_bytes) == (4 * 1280, 8 * 1280)
    assert counted.activation_bytes < training_memory(layers(), image_size=4).activation_bytes


def test_activations_grow_with_the_batch_and_checkpointing_saves_most() -> None:
    model = fullfield.create_model("convnext_tiny", depths=(2, 2, 4, 2))
    small, large = (training_memory(model, batch=b, image_size=64).activation_bytes for b in (2, 8))
    assert large == pytest.approx(4 * small, rel=0.01)
    model.set_grad_checkpointing()
    assert training_memory(model, batch=8, image_size=64).activation_bytes < 0.5 * large


def small(name: str) -> nn.Module:
    narrow = {"dims": (16, 32, 48, 64), "depths": (1, 2, 2, 1)} if name == "racnn_pico" else {}
    return fullfield.create_model(name, num_classes=10, **narrow)


def allocations(call: Callable[[], object]) -> list[int]:
    """What PyTorch's CPU allocator gave out (+) and took back (-) in a call, bytes, in their order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    results = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = sorted((event for event in results if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return [event.nbytes() for event in events]


@pytest.mark.parametrize(
    ("name", "checkpointing", "precision"),
    [
        ("resnet10t", False, "float32"),
        ("resnet10t", True, "bf16"),
        ("racnn_pico", True, "float32"),
        pytest.param("resnet10t", True, "float32", marks=pytest.mark.slow),
        pytest.param("resnet10t", False, "bf16", marks=pytest.mark.slow),
        pytest.param("racnn_pico", False, "float32", marks=pytest.mark.slow),
        pytest.param("racnn_pico", False, "bf16", marks=pytest.mark.slow),
        pytest.param("racnn_pico", True, "bf16", marks=pytest.mark.slow),
    ],
)
def test_the_count_is_what_the_allocator_gives_out_in_a_real_step(
    name: str, checkpointing: bool, precision: str
) -> None:
    model = small(name).train()
    model.set_grad_checkpointing(checkpointing)

    def forward() -> Tensor:
        images, labels = torch.zeros(4, 3, 64, 64), torch.zeros(4, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return F.cross_entropy(model(images).flatten(1).float(), labels)

    forward().backward()  # what is allocated once and for all
    model.zero_grad(set_to_none=True)
    kept: list[Tensor] = []
    held_bytes = sum(allocations(lambda: kept.append(forward())))
    kept.clear()
    peak_bytes = max(accumulate(allocations(lambda: forward().backward())))

    counted = training_memory(model, batch=4, image_size=64, precision=precision)
    blocks = {"resnet10t": 4, "racnn_pico": 6}[name]
    random_states = blocks * 5056 if checkpointing else 0  # with which a block draws the same numbers again
    assert held_bytes == pytest.approx(counted.activation_bytes + random_states, rel=0.005)
    bound = counted.activation_bytes + counted.working_bytes + counted.gradient_bytes
    assert 0.7 * bound < peak_bytes < 1.01 * bound


def test_the_stage_that_is_computed_again_is_its_activations() -> None:
    class Stages(nn.Module):
        """Two stages of layers that each keep their input; the second has maps of twice the width."""

        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.Sequential(*[nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sigmoid()) for _ in range(3)])
            self.widen = nn.Conv2d(8, 16, 1)
            self.wide = nn.Sequential(*[nn.Sequential(nn.Conv2d(16, 16, 1), nn.Sigmoid()) for _ in range(5)])
            self.checkpointing = False

        def set_grad_checkpointing(self, enable: bool = True) -> None:
            self.checkpointing = enable

        def forward(self, x: Tensor) -> Tensor:
            x = x.repeat(1, 2, 1, 1)
            for stage in (self.narrow, self.widen, self.wide):
                x = torch.utils.checkpoint.checkpoint(stage, x, use_reentrant=False) if self.checkpointing else stage(x)
            return x.mean((2, 3))

    model = Stages()
    map_bytes = 4 * 2 * 8 * 32 * 32
    counted = {on: training_memory(model, batch=2, image_size=32, channels=4, checkpointing=on) for on in (False, True)}
    small_bytes = 4 * 2 * 16 + 2 * 8 + 100
    # each sigmoid keeps its output, which is the next convolution's input: 3 and 5 maps, and the two inputs
    assert counted[False].activation_bytes == pytest.approx((1 + 3 + 2 * (1 + 5)) * map_bytes, abs=small_bytes)
    # the inputs of the three stages
    assert counted[True].activation_bytes == pytest.approx((1 + 1 + 2) * map_bytes, abs=small_bytes)
    # the wide stage's five sigmoids, and besides them a convolution's output and some gradients of maps
    assert 2 * 5 * map_bytes <= counted[True].working_bytes <= 2 * 8 * map_bytes
    assert not model.checkpointing


def test_activations_make_room_for_the_gradients_of_larger_maps_before_them() -> None:
    def layers_of(width: int, count: int) -> list[nn.Module]:
        return [nn.Sequential(nn.Conv2d(width, width, 1), nn.Sigmoid()) for _ in range(count)]

    model = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.Sigmoid(), nn.AvgPool2d(2), *layers_of(32, 16), nn.AdaptiveAvgPool2d(1)
    )
    large_bytes = 4 * 2 * 32 * 32 * 32
    counted = training_memory(model, batch=2, image_size=32)
    # the large sigmoid's output and its pool, and 16 small maps of a quarter
    assert counted.activation_bytes == pytest.approx((1 + 1 / 4 + 16 / 4) * large_bytes, rel=0.05)
    # when the gradients of the two large maps come, the small ones have gone
    assert counted.working_bytes < large_bytes


def test_checkpointing_can_be_asked_for_without_changing_the_model() -> None:
    model = fullfield.create_model("convnext_atto", depths=(3, 3, 3, 3))
    asked = training_memory(model, image_size=32, checkpointing=True)
    model.set_grad_checkpointing(True)
    assert training_memory(model, image_size=32) == asked
    assert training_memory(model, image_size=32, checkpointing=False).activation_bytes > 2 * asked.activation_bytes
    assert all(stage.grad_checkpointing for stage in model.stages)


def measured_and_counted(name: str) -> tuple[float | None, float]:
    """Peak of a training step and the count of it, MB."""
    model = fullfield.create_model(name, **({"depths": (1, 1, 1, 1)} if name == "racnn_pico" else {}))
    counted = training_memory(model, batch=8, optimizer="sgd", image_size=128)
    call = make_call(model, Setting("train", 8, (128, 128)))
    call()
    needed = counted.activation_bytes + counted.working_bytes + counted.gradient_bytes
    return peak_memory_mb(call), needed / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "racnn_pico"])
def test_the_measured_peak_is_the_count_and_up_to_seven_tenths_more(name: str) -> None:
    # a process of its own: the heap of one that has freed much before does not grow
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        peak_mb, counted_mb = process.submit(measured_and_counted, name).result()
    if peak_mb is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert 0.9 < peak_mb / counted_mb < 1.7


def test_the_model_is_left_as_it_was_and_a_name_counts_the_same() -> None:
    model = fullfield.create_model("resnet18").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counted = training_memory(model, image_size=64)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert training_memory("resnet18", image_size=64).activation_bytes == counted.activation_bytes


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match=r"got 'adam'.*did you mean 'adamw'"):
        training_memory("resnet18", optimizer="adam")
    with pytest.raises(ConfigError, match="batch must be at least 1, got 0"):
        training_memory("resnet18", batch=0)
    with pytest.raises(ConfigError, match=r"precision must be one of float32, bf16, fp16, got 'bf61'.*'bf16'"):
        training_memory("resnet18", precision="bf61")
    with pytest.raises(ConfigError, match="Sequential has no gradient checkpointing"):
        training_memory(layers(), image_size=4, checkpointing=True)


def test_a_model_that_says_it_has_no_gradient_checkpointing_is_named() -> None:
    class Refuses(nn.Linear):
        def set_grad_checkpointing(self, enable: bool = True) -> None:
            assert not enable, "gradient checkpointing not supported"  # timm's words

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mean((2, 3)))

    assert training_memory(Refuses(3, 2), image_size=4, checkpointing=False).activation_bytes > 0
    with pytest.raises(ConfigError, match="Refuses has no gradient checkpointing"):
        training_memory(Refuses(3, 2), image_size=4, checkpointing=True)
