"""A sparse run keeps its zeros exactly, moves them by the rule, and resumes bit for bit."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

import fullfield
from fullfield.data import ImageBatch
from fullfield.errors import ConfigError
from fullfield.layers.sparsity import count_parameters, erdos_renyi_densities, prunable_weights
from fullfield.tasks import ClassificationTask
from fullfield.train.module import TrainModule
from fullfield.train.settings import TrainSettings
from fullfield.train.sparsity import PruneAndGrow, SparsityConfig, prune_rate, sparse_averaging
from tests.images import TINY

SMALL: dict[str, Any] = {"dims": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "kernel_sizes": (7, 7, 5, 3)}
BATCHES = 6  # an epoch


def module(epochs: int = 2, **model: Any) -> TrainModule:
    torch.manual_seed(0)
    settings = TrainSettings("photos", epochs=epochs, lr=0.01, mixup=0.2)
    arguments = SMALL | {"small_kernel": 3, "num_classes": 3, "layer_scale": 0.1, "drop_path_rate": 0.1} | model
    net = fullfield.create_model("slak_tiny", **arguments)
    task = ClassificationTask(net, 3, mixup=0.2)
    return TrainModule(task, settings, total_steps=BATCHES * epochs, paths=[f"{i}.jpg" for i in range(99)])


def batches(count: int = BATCHES) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    made = [
        ImageBatch(torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0]), torch.arange(4), ())
        for _ in range(count)
    ]
    return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


class Watch(Callback):
    """Keep what every step left: counts of the masks, what is not zero outside them, and how masks changed."""

    def __init__(self, sparse: PruneAndGrow) -> None:
        self.sparse = sparse
        self.masks: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weights = prunable_weights(pl_module.task.model)
        self.masks.append({name: mask.clone() for name, mask in self.sparse.masks.items()})
        self.weights.append({name: weight.detach().clone() for name, weight in weights.items()})
        for name, mask in self.sparse.masks.items():
            kept = [v for v in trainer.optimizers[0].state[weights[name]].values() if v.shape == mask.shape]
            assert len(kept) == 2  # AdamW's two moments
            assert all(not tensor[~mask].any() for tensor in (weights[name], *kept))


class SaveFirstEpoch(Callback):
    """Save the trainer's state after the first epoch, as `RunKeeper` does after every one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def fit(
    pl_module: TrainModule, callbacks: list[Callback], epochs: int = 2, data: Any = None, **options: Any
) -> pl.Trainer:
    path = options.pop("ckpt_path", None)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(pl_module, data or batches(), ckpt_path=path, weights_only=True)
    return trainer


def sparse(epochs: int = 2, seed: int = 0, **options: Any) -> PruneAndGrow:
    return PruneAndGrow(SparsityConfig(**{"every": 4, "init": "erk"} | options), BATCHES * epochs, seed)


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("init", ["snip", "erk", "uniform"])
def test_number_of_living_weights_is_exact_after_every_step_and_the_dead_are_zero(init: str, growth: str) -> None:
    callback, net = sparse(init=init, growth=growth), module()
    watch = Watch(callback)
    fit(net, [callback, watch])
    weights = prunable_weights(net.task.model)
    prunable = sum(w.numel() for w in weights.values())
    counts = [{name: int(m.sum()) for name, m in masks.items()} for masks in watch.masks]
    assert len(counts) == 2 * BATCHES
    assert all(count == counts[0] for count in counts)
    left = sum(counts[0].get(name, w.numel()) for name, w in weights.items())
    assert left == pytest.approx(0.6 * prunable, abs=0.01 * prunable)
    changed = [
        any(not torch.equal(a[name], b[name]) for name in a) for a, b in zip(watch.masks, watch.masks[1:], strict=False)
    ]
    assert [i + 2 for i, moved in enumerate(changed) if moved] == [4, 8, 12]  # steps count from 1
    dense, non_zero = count_parameters(net.task.model)
    assert non_zero <= dense - prunable + left


def test_densities_are_those_of_the_chosen_rule() -> None:
    callback, net = sparse(), module()
    expected = erdos_renyi_densities(prunable_weights(net.task.model), 0.6)
    fit(net, [callback])
    sizes = {name: mask.numel() for name, mask in callback.masks.items()}
    assert {name: int(mask.sum()) for name, mask in callback.masks.items()} == {
        name: round(density * sizes[name]) for name, density in expected.items() if density < 0.99
    }


def test_a_change_moves_the_smallest_by_the_rate_and_what_grows_starts_at_zero_and_then_trains() -> None:
    callback, net = sparse(growth="gradient", every=4), module()
    watch = Watch(callback)
    fit(net, [callback, watch])
    rate = prune_rate(4, total=2 * BATCHES, start=0.5)
    trained = 0
    for name, old in watch.masks[2].items():
        new, before, after = watch.masks[3][name], watch.weights[3][name], watch.weights[4][name]
        count = math.ceil(rate * int(old.sum()))
        dead, born = old & ~new, new & ~old
        assert int(dead.sum()) == int(born.sum()) <= count  # what is pruned may grow again at once
        assert not before[born].any()
        trained += int(after[born].count_nonzero())
        staying = watch.weights[3][name][old & new].abs()
        assert staying.count_nonzero() >= int(old.sum()) - count
    assert trained > 0


@pytest.mark.parametrize("init", ["snip", "erk"])
@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(init: str, growth: str, tmp_path: Path) -> None:
    file = tmp_path / "first_epoch.ckpt"
    whole, resumed = (sparse(init=init, growth=growth, seed=7) for _ in range(2))
    net, again = module(), module()
    fit(net, [whole, sparse_averaging(0.9), SaveFirstEpoch(file)])
    fit(again, [resumed, sparse_averaging(0.9)], ckpt_path=file)
    assert resumed.steps == whole.steps == 2 * BATCHES
    assert whole.masks.keys() == resumed.masks.keys()
    assert all(torch.equal(whole.masks[name], resumed.masks[name]) for name in whole.masks)
    saved = next(state for state in torch.load(file, weights_only=True)["callbacks"].values() if "masks" in state)
    assert saved["steps"] == BATCHES
    assert not all(torch.equal(whole.masks[name], saved["masks"][name]) for name in whole.masks)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_sparse_checkpoint_keeps_its_own_zeros() -> None:
    net, callback = module(), sparse(init="zeros", every=100)
    weights = prunable_weights(net.task.model)
    zeros = {name: torch.rand(weight.shape) < 0.3 for name, weight in weights.items() if ".fc" in name}
    with torch.no_grad():
        for name, dead in zeros.items():
            weights[name].masked_fill_(dead, 0)
    fit(net, [callback], epochs=1)
    assert callback.masks.keys() == zeros.keys()
    assert all(torch.equal(weights[name] == 0, dead) for name, dead in zeros.items())


def test_dense_weights_have_no_zeros_to_keep() -> None:
    with pytest.raises(ConfigError, match="no zeros to keep; start from a sparse checkpoint"):
        fit(module(), [sparse(init="zeros")], epochs=1)


def test_masks_depend_on_the_seed() -> None:
    one, other = sparse(seed=1), sparse(seed=2)
    for callback in (one, other):
        fit(module(), [callback], epochs=1)
    assert not all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)


def test_accumulated_batches_count_as_one_step() -> None:
    callback = sparse(epochs=1, every=2)
    trainer = fit(module(epochs=1), [callback], epochs=1, accumulate_grad_batches=2)
    assert callback.steps == trainer.global_step == BATCHES // 2


def test_the_score_of_the_first_batch_leaves_no_trace() -> None:
    net, callback = module(), sparse(init="snip")
    callback._weights = prunable_weights(net.task.model)
    before, batch = copy.deepcopy(net.state_dict()), next(iter(batches()))
    random_state = torch.get_rng_state()
    gradients = callback._gradients(net, batch)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert any(gradient.any() for gradient in gradients.values())


def test_masks_wait_for_a_batch_with_an_image() -> None:
    empty = ImageBatch(torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64), torch.zeros(0), ())
    callback: PruneAndGrow = sparse()
    nothing: Any = None
    callback.on_train_batch_start(nothing, nothing, empty, 0)
    assert callback.masks == {}


def test_the_averaged_weights_are_as_sparse_as_the_others() -> None:
    net, callback = module(), sparse()
    watch = Watch(callback)
    fit(net, [callback, sparse_averaging(0.99), watch])  # at the end the averaged weights are in the model
    averaged, last = prunable_weights(net.task.model), watch.weights[-1]
    assert any(not torch.equal(averaged[name], last[name]) for name in last)
    assert all(torch.equal(averaged[name] == 0, last[name] == 0) for name in last)


def test_average_is_the_formula_in_a_loop_with_zeros_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(50, generator=generator).double() for _ in range(20)]
    alive = [torch.rand(50, generator=generator) < 0.7 for _ in states]
    states = [state * mask for state, mask in zip(states, alive, strict=True)]
    toy = pl.LightningModule()
    toy.weight = torch.nn.Parameter(states[0].clone())
    callback = sparse_averaging(0.9)
    trainer: Any = SimpleNamespace(global_step=0)
    callback.setup(trainer, toy, "fit")
    expected = states[0].tolist()
    for step, state in enumerate(states, 1):
        toy.weight.data.copy_(state)
        trainer.global_step = step
        callback.on_train_batch_end(trainer, toy, None, None, 0)
        if step > 1:
            d = min(0.9, step / (step + 9))
            expected = [
                now if now == 0 or old == 0 else d * old + (1 - d) * now
                for old, now in zip(expected, state.tolist(), strict=True)
            ]
    callback.on_train_end(trainer, toy)
    assert toy.weight.tolist() == pytest.approx(expected, abs=1e-12)


def test_prune_rate_falls_along_a_cosine_from_start_to_floor() -> None:
    rates = [prune_rate(step, total=100, start=0.5) for step in (0, 25, 50, 75, 100, 101)]
    middle, half = (0.5 + 0.005) / 2, (0.5 - 0.005) / 2
    root = half / math.sqrt(2)
    assert rates == pytest.approx([0.5, middle + root, middle, middle - root, 0.005, 0.005])


def test_only_the_named_weights_are_pruned() -> None:
    callback, net = sparse(only=r"large_kernel\.(tall|wide)"), module()
    fit(net, [callback], epochs=1)
    assert callback.masks
    assert all(".tall." in name or ".wide." in name for name in callback.masks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0}, r"sparsity must be between 0 and 1, both excluded, got 0"),
        ({"sparsity": 1.0}, r"sparsity must be .* got 1\.0"),
        ({"sparsity": math.nan}, r"sparsity must be .* got nan"),
        ({"prune_rate": 1.5}, r"prune_rate must be .* got 1\.5"),
        ({"init": "snap"}, r"unknown init of sparsity 'snap'; known: snip, erk, uniform, zeros; did you mean 'snip'"),
        ({"growth": "gradent"}, r"unknown growth of sparsity 'gradent'.*did you mean 'gradient'"),
        ({"every": 0}, r"every must be a whole number of steps, at least 1, got 0"),
        ({"every": True}, r"every must be .* got True"),
        ({"only": "("}, r"only must be a regular expression, got '\('"),
    ],
    ids=str,
)
def test_an_impossible_setting_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparsityConfig(**options)


def test_names_that_no_weight_has_stop_the_run_at_its_start() -> None:
    with pytest.raises(ConfigError, match="no prunable weight has 'strips' in its name"):
        fit(module(), [sparse(only="strips")], epochs=1)


def test_a_run_with_sparsity_ends_with_a_sparse_checkpoint_and_keeps_its_zeros_in_the_next(
    photos: Path, tmp_path: Path
) -> None:
    options = TINY | {"model_args": ("dims=[16,32,48,64]", "depths=[1,1,1,1]"), "epochs": 2, "sparsity": 0.4}
    first = fullfield.train(photos, out=tmp_path / "first", **options).run
    net = fullfield.load(first)
    count, vectors = count_parameters(net), sum(p.numel() for p in net.parameters() if p.ndim == 1)
    alive = (count.non_zero - vectors) / (count.dense - vectors)
    assert 0.4 < alive < 0.61  # in so short a run many have grown in the last step and are zero still
    second = fullfield.train(photos, out=tmp_path / "second", weights=first, **options).run
    assert count_parameters(fullfield.load(second)).non_zero <= count.non_zero  # no SNIP anew, which would give 60 %
