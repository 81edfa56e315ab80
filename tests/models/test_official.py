"""Official checkpoints load strictly, and our nets then give the official code's outputs, as they are and fused.

`fixtures/official/` holds, for each variant, the names and shapes of the official state dict and the official
outputs on weights and images that a written rule makes (`tests/official_rule.py`), so that no weights are stored.
`make test` compares the outputs of the smallest net of each family in float32, `make test-all` of all in float64.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fullfield
from fullfield.models.registry import OfficialFormat, official_format
from fullfield.models.weight_names import Fit, compare, identify, readings, to_form
from tests.official_rule import rule_images, rule_weights

FOLDER = Path(__file__).parents[1] / "fixtures" / "official"
FIXTURES: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))
}
TOLERANCE = 1e-5  # relative norm; the stored outputs are float32
TITLES = {"tensors": "training", "merged_tensors": "merged"}


def families() -> dict[str, list[str]]:
    """Return the variants of each repository, smallest first."""
    found: dict[str, list[str]] = {}
    for name in sorted(FIXTURES, key=lambda name: FIXTURES[name]["params"]):
        found.setdefault(FIXTURES[name]["repository"], []).append(name)
    return found


SMALLEST = [names[0] for names in families().values()]
QUICK_PARAMS = 40e6  # making more weights by the rule takes seconds
MERGED = [name for name in FIXTURES if "merged_tensors" in FIXTURES[name]]


def shapes(name: str, form: str = "tensors") -> dict[str, tuple[int, ...]]:
    return {tensor: tuple(shape) for tensor, shape in FIXTURES[name][form].items()}


def on_meta(name: str, form: str) -> dict[str, Tensor]:
    counter = {"num_batches_tracked": torch.int64}
    return {
        tensor: torch.empty(shape, device="meta", dtype=counter.get(tensor.rpartition(".")[2]))
        for tensor, shape in shapes(name, form).items()
    }


def fit_of(name: str, form: str) -> Fit:
    """Return how the official names fit our variant in the family's format, without memory."""
    official = official_format(name)
    assert isinstance(official, OfficialFormat)
    reading = next(r for r in readings(on_meta(name, form), official) if r.naming == "official")
    assert reading.forms == (TITLES[form],)
    model = fullfield.create_model(name, device="meta")
    to_form(model, reading.forms[0], official)
    return compare(reading, reading.forms[0], model.state_dict(), ("head.fc.",), ("head.",))


def loaded(tmp_path: Path, name: str, form: str, dtype: torch.dtype) -> Any:
    """Return our net with the rule's weights, by way of a file like the official ones."""
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in rule_weights(shapes(name, form)).items()}
    path = tmp_path / "official.pth"
    torch.save({"model": weights, "epoch": 299}, path)
    model = fullfield.create_model(name, dtype=dtype).eval()
    fullfield.load_weights(model, path)
    path.unlink()
    assert model.loaded_from.form == TITLES[form]
    assert model.loaded_from.classifier == "loaded"
    return model


def difference(model: Any, name: str, key: str) -> float:
    """Return ‖our logits - official logits‖ / ‖official logits‖ for a stored output, such as "logits_224x224"."""
    expected = load_file(FOLDER / f"{name}.safetensors")[key].double().reshape(-1)
    height, width = map(int, key.rpartition("_")[2].split("x"))
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        logits = model(rule_images(height, width).to(dtype))[0].double()
    return float((logits - expected).norm() / expected.norm())


def keys(name: str) -> list[str]:
    return [f"logits_{height}x{width}" for height, width in FIXTURES[name]["sizes"]]


def test_every_family_with_a_format_has_fixtures_of_its_smallest_net() -> None:
    formats = {info.family for info in fullfield.list_models() if official_format(info.name)}
    assert formats == {info.family for info in fullfield.list_models() if info.name in FIXTURES}
    assert {name for name in FIXTURES if official_format(name) is None} == set()


@pytest.mark.parametrize("name", FIXTURES)
def test_every_official_name_is_one_of_ours_with_its_shape(name: str) -> None:
    fit = fit_of(name, "tensors")
    assert fit.describe() == f"{len(shapes(name))} tensors fit; no differences"
    assert (fit.fresh, fit.unused, fit.reading.ignored) == ((), (), ())


@pytest.mark.parametrize("name", MERGED)
def test_every_name_of_a_merged_file_is_one_of_our_merged_net(name: str) -> None:
    fit = fit_of(name, "merged_tensors")
    assert fit.describe() == f"{len(shapes(name, 'merged_tensors'))} tensors fit; no differences"
    assert (fit.fresh, fit.unused, fit.reading.ignored) == ((), (), ())


@pytest.mark.parametrize("name", FIXTURES)
def test_the_parameter_count_is_the_official_one(name: str) -> None:
    model = fullfield.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == FIXTURES[name]["params"]


def test_of_families_that_share_names_the_right_variant_is_known() -> None:
    assert identify(on_meta("hornet_tiny_gf", "tensors")) == ["hornet_tiny_gf"]
    assert identify(on_meta("slak_tiny", "tensors")) == ["slak_tiny"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("form", TITLES)
def test_every_variant_is_known_by_its_official_names(name: str, form: str) -> None:
    if form in FIXTURES[name]:
        assert identify(on_meta(name, form)) == [name]


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_nets_give_the_official_outputs(name: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, name, "tensors", torch.float32)
    square, oblong = keys(name)
    assert difference(model, name, square) < TOLERANCE
    assert difference(model.fuse(), name, oblong) < TOLERANCE


@pytest.mark.parametrize("name", [n for n in SMALLEST if n in MERGED and FIXTURES[n]["params"] < QUICK_PARAMS])
def test_the_smallest_nets_give_the_outputs_of_official_merged_files(name: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, name, "merged_tensors", torch.float32)
    assert model.merged
    assert difference(model, name, "merged_logits_224x224") < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
def test_every_net_gives_the_official_outputs_as_it_is_and_fused(name: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, name, "tensors", torch.float64)
    assert all(difference(model, name, key) < TOLERANCE for key in keys(name))
    model.fuse()
    assert all(difference(model, name, key) < TOLERANCE for key in keys(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", MERGED)
def test_every_merged_file_gives_the_official_outputs_and_survives_saving(name: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, name, "merged_tensors", torch.float64)
    assert difference(model, name, "merged_logits_224x224") < TOLERANCE
    again = fullfield.load(fullfield.save(model, tmp_path / "merged.safetensors"))
    assert difference(again, name, "merged_logits_224x224") < TOLERANCE
    assert difference(again.fuse(), name, "merged_logits_224x224") < TOLERANCE
