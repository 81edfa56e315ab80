"""The contract that every registered model keeps: timm's interface, any size, exact folding, files, export.

`make test` runs it on the smallest variant of each family, `make test-all` on all. The checks know no family; what
one cannot do is declared in `zoo.py`. Equalities hold in float64 to 1e-10, at a size whose maps the regions do not
divide; in float32 they hold to 1e-4 at 224, where maps are as in use (on maps of a few pixels a random net
amplifies rounding a thousandfold).
"""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fullfield
from fullfield.models.weights import load_checkpoint

from .folding import foldable_norms
from .zoo import (
    DECLARED,
    MODELS,
    SIZES,
    build,
    contract_params,
    declared,
    images,
    map_side,
    params_on_meta,
    randomise_norms,
    relative_error,
    smallest_of_each_family,
)

EXACT = 1e-10  # float64, relative norm
CLOSE = 1e-4  # float32 at 224, relative norm
CPU_LIMIT = 120e6  # parameters that a machine with little memory still holds


@pytest.mark.parametrize("name", MODELS)
class TestEveryVariant:
    """What is cheap enough to hold for every variant in every run."""

    def test_it_is_built_without_memory_and_with_as_many_parameters_as_for_real(self, name: str) -> None:
        model = fullfield.create_model(name, device="meta")
        assert {t.device.type for t in model.state_dict().values()} == {"meta"}
        if params_on_meta(name) > CPU_LIMIT:
            pytest.skip(f"{params_on_meta(name) / 1e6:.0f} M parameters are built for real by no quick test")
        assert sum(p.numel() for p in fullfield.create_model(name).parameters()) == params_on_meta(name)

    def test_its_list_of_features_is_one_entry_a_stage_on_ever_smaller_maps(self, name: str) -> None:
        features = timm.create_model(name, features_only=True, device="meta").feature_info
        reductions = features.reduction()
        assert len(features.channels()) == len(reductions) == len(features.module_name())
        assert reductions == sorted(set(reductions))
        assert all(math.log2(r).is_integer() for r in reductions)

    def test_timm_knows_it(self, name: str) -> None:
        assert timm.is_model(name)
        assert timm.models.model_entrypoint(name).__module__.startswith("fullfield.models.")
        channels, height, width = timm.get_pretrained_cfg(name).input_size
        assert channels == 3
        assert height == width
        assert (height == 384) == name.endswith("_384")


def test_declared_exceptions_name_families_and_checks_that_exist() -> None:
    assert DECLARED.keys() <= {info.family for info in MODELS.values()}
    for family in DECLARED.values():
        assert all(hasattr(TestContract, check) for check in family.skips)


def test_every_family_has_its_smallest_variant_in_the_quick_run() -> None:
    assert {MODELS[name].family for name in smallest_of_each_family()} == {info.family for info in MODELS.values()}


@pytest.mark.parametrize("name", contract_params())
class TestContract:
    """The whole contract."""

    @pytest.fixture(autouse=True)
    def _skip_what_is_declared(self, request: pytest.FixtureRequest, name: str) -> None:
        reason = declared(name).skips.get(request.node.originalname)
        if reason:
            pytest.skip(f"{MODELS[name].family} declares: {reason}")

    # Building

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_device_and_dtype_reach_every_parameter_and_statistic(self, name: str, dtype: torch.dtype) -> None:
        model = timm.create_model(name, device="cpu", dtype=dtype, num_classes=5)
        assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {dtype}
        y = model.eval()(images(1, 3, 64, 64, dtype=dtype))
        assert y.dtype == dtype
        assert y.isfinite().all()

    @pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 6])
    def test_images_may_have_any_number_of_channels(self, name: str, in_chans: int) -> None:
        model = build(name, in_chans=in_chans, num_classes=5)
        assert model(images(1, in_chans, 64, 64)).isfinite().all()
        with pytest.raises(RuntimeError):
            model(images(1, in_chans + 1, 64, 64))

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_images_may_have_any_size(self, name: str, size: tuple[int, int]) -> None:
        if min(size) < declared(name).min_size:
            pytest.skip(f"{MODELS[name].family} declares a smallest size of {declared(name).min_size}")
        # as initialised: under norms that are drawn, a net of 90 blocks that multiply overflows float32
        y = fullfield.create_model(name).eval()(images(1, 3, *size, dtype=torch.float32))
        assert y.shape == (1, 1000)
        assert y.isfinite().all()

    # Head

    def test_the_head_on_the_features_is_the_model(self, name: str) -> None:
        model, x = build(name), images(2, 3, 70, 50)
        features = model.forward_features(x)
        assert features.shape[:2] == (2, model.num_features)
        assert torch.equal(model.forward_head(features), model(x))
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
        assert torch.equal(model.get_classifier()(pre_logits), model(x))

    @pytest.mark.parametrize("num_classes", [0, 1, 7])
    def test_any_number_of_classes_and_none_gives_features(self, name: str, num_classes: int) -> None:
        model = build(name, num_classes=num_classes)
        assert model(images(2, 3, 64, 64)).shape == (2, num_classes or model.num_features)
        assert isinstance(model.get_classifier(), nn.Linear if num_classes else nn.Identity)

    def test_reset_classifier_replaces_the_classifier_alone(self, name: str) -> None:
        model, x = build(name), images(2, 3, 64, 64)
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(7)
        assert model.num_classes == model.get_classifier().out_features == 7
        assert model(x).shape == (2, 7)
        model.reset_classifier(0)
        assert torch.equal(model(x), features)
        model.reset_classifier(0, "")
        rows = map_side(name, 64, model.feature_info[-1]["reduction"])
        assert model(x).shape == (2, model.num_features, rows, rows)
        model.reset_classifier(9, "avg")
        assert model(x).shape == (2, 9)

    # Features

    @pytest.mark.parametrize("out_indices", [None, (0, 2), (-1,)], ids=str)
    def test_features_only_gives_the_maps_it_announces(self, name: str, out_indices: tuple[int, ...] | None) -> None:
        every = fullfield.create_model(name, device="meta").feature_info
        model = timm.create_model(name, features_only=True, **({"out_indices": out_indices} if out_indices else {}))
        wanted = [every[i] for i in out_indices or range(len(every))]
        assert model.feature_info.channels() == [info["num_chs"] for info in wanted]
        assert model.feature_info.reduction() == [info["reduction"] for info in wanted]
        maps = model.eval()(images(1, 3, 97, 130, dtype=torch.float32))
        assert [tuple(m.shape) for m in maps] == [
            (1, info["num_chs"], map_side(name, 97, info["reduction"]), map_side(name, 130, info["reduction"]))
            for info in wanted
        ]

    def test_forward_intermediates_gives_the_maps_of_features_only(self, name: str) -> None:
        model, x = build(name), images(2, 3, 70, 50)
        extractor = timm.create_model(name, features_only=True, dtype=torch.float64).eval()
        extractor.model.load_state_dict(model.state_dict(), strict=False)
        maps = extractor(x)
        stages = range(len(maps))
        for indices, taken in [(None, stages), (2, stages[-2:]), ([0, 2], (0, 2)), ((-1,), stages[-1:])]:
            for stop_early in (False, True):
                last, found = model.forward_intermediates(x, indices=indices, stop_early=stop_early)
                alone = model.forward_intermediates(x, indices=indices, stop_early=stop_early, intermediates_only=True)
                assert len(found) == len(alone) == len(taken)
                assert all(
                    torch.equal(found[k], maps[i]) and torch.equal(alone[k], maps[i]) for k, i in enumerate(taken)
                )
                assert torch.equal(last, maps[max(taken) if stop_early else -1])
        with pytest.raises(ValueError, match="NHWC"):
            model.forward_intermediates(x, output_fmt="NHWC")

    def test_pruning_leaves_the_stages_that_are_taken(self, name: str) -> None:
        model, x = build(name), images(2, 3, 70, 50)
        maps = model.forward_intermediates(x, intermediates_only=True)
        params = sum(p.numel() for p in model.parameters())
        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        assert sum(p.numel() for p in model.parameters()) < params
        assert torch.equal(model.forward_features(x), maps[1])
        assert torch.equal(model(x), maps[1])
        assert model.num_features == maps[1].shape[1]

    # Training

    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        model = build(name, num_classes=5).train()
        nn.functional.cross_entropy(model(images(4, 3, 64, 64)), torch.tensor([0, 1, 2, 3])).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == []
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_drop_path_acts_in_training_alone(self, name: str) -> None:
        model, plain = build(name, drop_path_rate=0.3), build(name)
        plain.load_state_dict(model.state_dict())
        x = images(4, 3, 64, 64)
        assert torch.equal(model(x), plain(x))
        assert torch.equal(plain.train()(x), plain(x))
        assert not torch.equal(model.train()(x), model(x))

    @pytest.mark.parametrize("drop_path_rate", [0.0, 0.3])
    def test_checkpointing_changes_no_gradient(self, name: str, drop_path_rate: float) -> None:
        x, gradients = images(2, 3, 50, 64), []
        for enable in (False, True):
            model = build(name, num_classes=5, drop_path_rate=drop_path_rate).train()
            model.set_grad_checkpointing(enable)
            torch.manual_seed(3)
            loss = model(x).square().mean()
            loss.backward()
            gradients.append([loss.detach()] + [p.grad for p in model.parameters()])
        # a block that drop_path leaves out for both images has gradients of zeros, of which there is no relative error
        assert all(torch.equal(b, a) or relative_error(b, a) < EXACT for a, b in zip(*gradients, strict=True))

    def test_layer_groups_cover_every_parameter_from_the_stem_to_the_head(self, name: str) -> None:
        model = build(name)
        names = [n for n, _ in model.named_parameters()]
        layer = group_parameters(model, model.group_matcher(), reverse=True)
        assert sorted(layer) == sorted(names)
        assert set(layer.values()) == set(range(max(layer.values()) + 1))
        assert {layer[n] for n in names if n.startswith("stem.")} == {0}
        assert {layer[n] for n in names if n.startswith("head.")} == {max(layer.values())}
        in_forward_order = [layer[n] for n in names]
        assert in_forward_order == sorted(in_forward_order)
        coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
        assert max(coarse.values()) == len(model.feature_info) + 1

    def test_layer_decay_gives_the_head_the_full_rate_and_each_parameter_once(self, name: str) -> None:
        model = build(name)
        groups = param_groups_layer_decay(model, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.7)
        found = [id(p) for group in groups for p in group["params"]]
        assert sorted(found) == sorted(id(p) for p in model.parameters())
        rate = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        assert rate[id(model.get_classifier().weight)] == 1
        assert min(rate.values()) == rate[id(next(model.parameters()))] < 1

    def test_parameters_without_weight_decay_exist(self, name: str) -> None:
        model = build(name)
        assert model.no_weight_decay() <= dict(model.named_parameters()).keys()

    # Inference

    def test_the_same_image_gives_the_same_bits(self, name: str) -> None:
        model, x = build(name, dtype=torch.float32), images(2, 3, 70, 50, dtype=torch.float32)
        assert torch.equal(model(x), model(x))

    def test_an_image_alone_is_classified_as_in_a_batch(self, name: str) -> None:
        model, x = build(name), images(8, 3, 50, 64)
        assert relative_error(torch.cat([model(image) for image in x.split(1)]), model(x)) < EXACT

    @pytest.mark.parametrize(
        ("dtype", "size", "tolerance"), [(torch.float64, (70, 50), EXACT), (torch.float32, (224, 224), CLOSE)], ids=str
    )
    def test_channels_last_gives_the_same(
        self, name: str, dtype: torch.dtype, size: tuple[int, int], tolerance: float
    ) -> None:
        model, x = build(name, dtype=dtype), images(2, 3, *size, dtype=dtype)
        y, x_last = model(x), x.contiguous(memory_format=torch.channels_last)
        assert relative_error(model(x_last), y) < tolerance
        assert relative_error(model.to(memory_format=torch.channels_last)(x_last), y) < tolerance

    def test_bfloat16_is_finite_with_and_without_autocast(self, name: str) -> None:
        x = images(2, 3, 70, 50, dtype=torch.float32)
        model = build(name, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).isfinite().all()
            model.train()(x).float().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert build(name, dtype=torch.bfloat16)(x.bfloat16()).isfinite().all()

    def test_flops_are_counted_and_the_same_without_memory(self, name: str) -> None:
        counts = []
        for device in ("cpu", "meta"):
            model = fullfield.create_model(name, device=device).eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, 3, 64, 64, device=device))
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0

    # Folding norms

    @pytest.mark.parametrize(
        ("dtype", "size", "tolerance"), [(torch.float64, (70, 50), EXACT), (torch.float32, (224, 224), CLOSE)], ids=str
    )
    def test_fusing_changes_nothing_but_rounding(
        self, name: str, dtype: torch.dtype, size: tuple[int, int], tolerance: float
    ) -> None:
        model, x = build(name, dtype=dtype), images(2, 3, *size, dtype=dtype)
        y = model(x)
        fused = model.fuse()
        assert fused is model
        assert relative_error(fused(x), y) < tolerance
        once = {k: v.clone() for k, v in fused.state_dict().items()}
        again = fused.fuse().state_dict()
        assert once.keys() == again.keys()
        assert all(torch.equal(once[k], again[k]) for k in once)

    def test_fusing_leaves_no_norm_that_could_be_folded(self, name: str) -> None:
        model, x = build(name), images(1, 3, 64, 64)
        norms, foldable = _norms(model), foldable_norms(model, x)
        model.fuse()
        assert foldable_norms(model, x) == 0
        assert _norms(model) <= norms - foldable

    # Files and copies

    def test_state_goes_round_through_torch_save(self, name: str) -> None:
        model, other, x = build(name), fullfield.create_model(name, dtype=torch.float64).eval(), images(1, 3, 70, 50)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert torch.equal(other(x), model(x))

    def test_a_copy_shares_nothing(self, name: str) -> None:
        model, x = build(name), images(1, 3, 70, 50)
        y, twin = model(x), copy.deepcopy(model)
        assert torch.equal(twin(x), y)
        randomise_norms(twin)
        assert torch.equal(model(x), y)

    @pytest.mark.parametrize("how", ["plain", "fused", "reset", "unpooled", "one_channel", "bfloat16"])
    def test_a_saved_model_comes_back_bit_by_bit(self, name: str, how: str, tmp_path: Any) -> None:
        arguments = {"in_chans": 1, "num_classes": 5, "drop_path_rate": 0.1} if how == "one_channel" else {}
        model = build(name, dtype=torch.bfloat16 if how == "bfloat16" else torch.float32, **arguments)
        if how == "fused":
            model.fuse()
        if how == "reset":
            model.reset_classifier(3)
        if how == "unpooled":
            model.reset_classifier(0, "")
        metadata = {"classes": ["a", "b"], "mean": [0.5, 0.25]}
        checkpoint = load_checkpoint(fullfield.save(model, tmp_path / "model.safetensors", metadata))
        assert checkpoint.metadata == metadata
        assert checkpoint.spec.name == name
        assert not checkpoint.model.training
        old, new = model.state_dict(), checkpoint.model.state_dict()
        assert old.keys() == new.keys()
        assert all(torch.equal(old[k], new[k]) and old[k].dtype == new[k].dtype for k in old)
        x = images(1, model.in_chans, 70, 50, dtype=next(model.parameters()).dtype)
        assert torch.equal(fullfield.load(tmp_path / "model.safetensors")(x), model(x))


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
