"""`fullfield.optimize`: the same answers from a folded, laid out, cast or compiled copy."""

import shutil

import pytest
import timm
import torch
from torch import nn

import fullfield
from fullfield.errors import ConfigError

NAMES = ("racnn_pico", "unireplknet_a", "moganet_xtiny", "resnet10t", "mobileone_s0", "test_vit")


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7).eval()


def images_of(model: nn.Module, batch: int = 2) -> torch.Tensor:
    # smaller maps of RaCNN have windows of one pixel, whose weights depend on signs alone: rounding may turn them
    side = {"VisionTransformer": 160, "RaCNN": 224}.get(type(model).__name__, 96)
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_answers_stay_the_same(name: str, channels_last: bool) -> None:
    model = model_of(name)
    images = images_of(model)
    with torch.no_grad():
        expected = model(images)
    found = fullfield.optimize(model, channels_last=channels_last)(images)
    assert difference(found, expected) < 1e-5
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("unireplknet_a").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fullfield.optimize(model, dtype=torch.bfloat16)
    assert model.training
    assert {name for name, x in model.named_parameters() if x.requires_grad} == set(dict(model.named_parameters()))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_agree_to_their_precision_and_answer_in_float32(dtype: torch.dtype) -> None:
    model = model_of("racnn_pico")
    images = images_of(model)
    with torch.no_grad():
        expected = model(images)
    optimized = fullfield.optimize(model, dtype=dtype)
    found = optimized(images)
    assert found.dtype == torch.float32
    assert difference(found, expected) < 5e-2
    assert {x.dtype for x in optimized.parameters()} == {dtype}


def test_layout_and_dtype_of_the_images_do_not_matter() -> None:
    model = fullfield.optimize(model_of("racnn_pico"))
    images = images_of(model.model)
    expected = model(images)
    assert torch.equal(model(images.contiguous(memory_format=torch.channels_last)), expected)
    assert difference(model(images.double()), expected) < 1e-6


def test_outputs_in_any_structure_are_kept() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"maps": [x, x * 2], "count": torch.tensor(3)}

    found = fullfield.optimize(Two(), dtype=torch.bfloat16)(torch.ones(1, 3, 4, 4))
    assert found["count"].dtype == torch.int64
    assert [x.dtype for x in found["maps"]] == [torch.float32] * 2


def test_answers_of_one_call_survive_the_next() -> None:
    model = fullfield.optimize(nn.Identity())
    first = model(torch.zeros(1, 3, 4, 4))
    model(torch.ones(1, 3, 4, 4))
    assert float(first.abs().max()) == 0


def test_it_can_not_be_trained() -> None:
    model = fullfield.optimize(model_of("resnet10t"))
    assert not model.eval().training
    with pytest.raises(ConfigError, match="can't be trained"):
        model.train()


def test_weights_that_float16_can_not_hold_are_refused() -> None:
    layer = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        layer.weight[0, 0] = 7e4
    with pytest.raises(ConfigError, match=r"weight has weights beyond the range of torch.float16; use torch.bfloat16"):
        fullfield.optimize(layer, dtype=torch.float16)
    fullfield.optimize(layer, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "compiled"}, "did you mean 'compile'"),
        ({"backend": "tensorrt"}, "there are eager, compile, cuda_graphs"),
        ({"backend": "cuda_graphs", "device": "cpu"}, "need a CUDA device"),
        ({"dtype": torch.int8}, "dtype must be one of torch.float32"),
    ],
)
def test_what_is_impossible_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fullfield.optimize(nn.Identity(), **arguments)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")),
    reason="torch.compile makes C++ on a CPU, and no compiler (c++, g++ or clang++) is on the PATH",
)
def test_compiled_answers_are_the_same() -> None:
    model = model_of("racnn_pico")
    images = images_of(model)
    with torch.no_grad():
        expected = model(images)
    assert difference(fullfield.optimize(model, backend="compile")(images), expected) < 1e-5


def test_what_can_not_be_compiled_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def failing(model: nn.Module, **_: object):
        def call(images: torch.Tensor) -> torch.Tensor:
            raise TorchDynamoException("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(ConfigError, match=r"can't compile Identity here: no C\+\+ compiler.*leave out the backend"):
        fullfield.optimize(nn.Identity(), backend="compile")(torch.ones(1, 3, 4, 4))
