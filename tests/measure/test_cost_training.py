"""Memory of a training step by count, against what a layer must keep and against measured peaks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
    assert counted.total_bytes == 2 * weights + counted.activation_bytes


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


@pytest.mark.parametrize("name", ["resnet18", "racnn_pico"])
def test_the_measured_peak_is_the_count_and_up_to_seven_tenths_more(name: str) -> None:
    model = fullfield.create_model(name, **({"depths": (1, 1, 1, 1)} if name == "racnn_pico" else {}))
    counted = training_memory(model, batch=8, optimizer="sgd", image_size=128)
    call = make_call(model, Setting("train", 8, (128, 128)))
    call()
    peak_mb = peak_memory_mb(call)
    if peak_mb is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert 0.9 < peak_mb / ((counted.activation_bytes + counted.gradient_bytes) / 2**20) < 1.7


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
