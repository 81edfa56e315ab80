"""`torch.compile` gives what eager gives, on the smallest RaCNN.

Inductor writes C++ on a CPU, which takes one to two minutes for the whole net; that is for `make test-all`.
`make test` still traces the whole net in one graph, and compiles a block with windows and one without.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from .zoo import build, images, relative_error

SHALLOW: dict[str, Any] = {"dims": (16, 24), "depths": (1, 1), "region_size": (7, 1)}
TOLERANCE = 1e-4  # float32, relative norm; 224 pixels, where random weights do not amplify rounding

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")),
    reason="torch.compile makes C++ on a CPU, and no compiler (c++, g++ or clang++) is on the PATH",
)


@torch.no_grad()
def test_racnn_pico_is_traced_as_one_graph_that_equals_eager() -> None:
    model, x = build("racnn_pico", dtype=torch.float32), images(1, 3, 224, 224, dtype=torch.float32)
    traced = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative_error(traced(x), model(x)) < TOLERANCE


def test_training_steps_are_traced_and_give_the_same_gradients() -> None:
    model, x = build("racnn_pico", num_classes=5, **SHALLOW).train(), images(2, 3, 70, 50)
    gradients = []
    for call in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        call(x).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert max(relative_error(b, a) for a, b in zip(*gradients, strict=True)) < 1e-9


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("changes", [SHALLOW, pytest.param({}, marks=pytest.mark.slow)], ids=["two_stages", "whole"])
def test_compiled_racnn_pico_equals_eager(changes: dict[str, Any]) -> None:
    model, x = build("racnn_pico", dtype=torch.float32, **changes), images(2, 3, 224, 224, dtype=torch.float32)
    assert relative_error(torch.compile(model)(x), model(x)) < TOLERANCE
