"""Two processes that share the weights give the run of one that has them all, and their states fit any number."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

import fullfield
from fullfield.errors import ConfigError
from fullfield.models.registry import create_model
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.settings import TrainSettings
from fullfield.train.sharding import blocks_of, check_strategy, shard
from tests.images import TINY, TINY_ARGV, best_weights, read_rows, write_photos
from tests.train.test_processes import Run, losses
from tests.train.test_resume import assert_same_run

CHECKED = TINY | {"precision": "64", "lr": 1e-4}
"""With an average of the weights, in float64, and at a rate at which rounding errors do not grow."""
MODEL_PARTS = ("state_dict", "current_model_state", "averaging_state")
SHARDED: dict[str, Any] = {"devices": 2, "strategy": "fsdp"}


def last_state(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(RunFolder(run).states[0], weights_only=True)
    return state


def assert_close_runs(run: Path, other: Path) -> None:
    """Assert equal figures, and a last state of model and optimiser with the same entries and nearly equal values."""
    assert losses(run) == pytest.approx(losses(other), rel=1e-9, abs=1e-9)
    for column in ("val_loss", "val_top1"):  # the loss is summed in float32
        ours, theirs = ([float(row[column]) for row in read_rows(path / "metrics.csv")] for path in (run, other))
        assert ours == pytest.approx(theirs, rel=1e-6)
    state, other_state = last_state(run), last_state(other)
    assert state.keys() == other_state.keys()
    for part in state.keys() & {*MODEL_PARTS, "optimizer_states", "lr_schedulers"}:
        torch.testing.assert_close(state[part], other_state[part], rtol=1e-7, atol=1e-10, check_stride=False, msg=part)
    best, other_best = best_weights(run), best_weights(other)
    described, other_described = ({n: (t.dtype, t.shape) for n, t in found.items()} for found in (best, other_best))
    assert described == other_described


def test_two_processes_that_share_weights_and_their_average_give_the_run_of_one(photos: Path, tmp_path: Path) -> None:
    alone = fullfield.train(photos, out=tmp_path / "alone", **CHECKED).run
    shared = fullfield.train(photos, out=tmp_path / "shared", **CHECKED, **SHARDED)
    assert_close_runs(shared.run, alone)
    assert shared.report.exists()
    net, other = fullfield.load(shared.run), fullfield.load(alone)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(net(image), other(image), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2, "grad_checkpointing": True, "channels_last": False},
        {"freeze": ("stem", "stages.0"), "layer_decay": 0.75, "mixup": 0.3},
        {"model": "resnet10t", "model_args": ()},
        {"ema": 0.0, "sync_bn": False, "model": "resnet10t", "model_args": ()},
    ],
    ids=lambda options: " ".join(options),
)
def test_shared_weights_give_the_run_of_whole_ones(photos: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    whole = fullfield.train(photos, out=tmp_path / "whole", devices=2, **CHECKED | options).run
    shared = fullfield.train(photos, out=tmp_path / "shared", **CHECKED | SHARDED | options).run
    assert_close_runs(shared, whole)


@pytest.mark.slow
def test_validation_images_that_do_not_divide_are_all_counted_once(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "train")
    # nine, in batches of 2 x 4: one process has a batch more; and one process has a batch that can't be read
    write_photos(tmp_path / "photos" / "val", each=3, seed=1)
    (tmp_path / "photos" / "val" / "red" / "02.jpg").write_bytes(b"")
    options = CHECKED | {"epochs": 1}
    alone, shared = (
        fullfield.train(tmp_path / "photos", out=tmp_path / name, **options, **more).run
        for name, more in (("alone", {}), ("shared", SHARDED))
    )
    assert_close_runs(shared, alone)


# --- stopping and going on ---

PAIR = [*TINY_ARGV, "--workers", "1", "--devices", "2", "--strategy", "fsdp", "--epochs", "8", "--mixup", "0.3"]


def to_its_end(*arguments: str) -> None:
    run = Run(*arguments)
    said, _ = run.process.communicate(timeout=400)
    assert run.process.returncode == 0, said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_that_was_killed_then_stopped_ends_as_if_nothing_had_happened(photos: Path, tmp_path: Path) -> None:
    to_its_end(str(photos), "--out", str(tmp_path / "whole"), *PAIR)
    run = tmp_path / "run"
    killed = Run(str(photos), "--out", str(run), *PAIR, "--checkpoint-every", "2")
    killed.wait_for("checkpoints/step-*8.ckpt", run)  # within an epoch of three steps
    killed.kill()
    stopped = Run("--resume", str(run))
    stopped.wait_for("checkpoints/step-*1[5-9].ckpt", run)
    stopped.process.send_signal(signal.SIGTERM)
    said, _ = stopped.process.communicate(timeout=100)
    assert stopped.process.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    to_its_end("--resume", str(run))
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (SHARDED, {"devices": 1, "strategy": "ddp"}),
        (SHARDED, {"devices": 2, "strategy": "ddp"}),
        ({}, SHARDED),
        (SHARDED, {"devices": 4}),
    ],
    ids=["one", "ddp", "shared", "four"],
)
def test_state_goes_on_with_another_strategy_and_number_of_processes(
    photos: Path, tmp_path: Path, first: dict[str, Any], then: dict[str, Any]
) -> None:
    whole = fullfield.train(photos, out=tmp_path / "whole", **CHECKED).run
    run = tmp_path / "run"
    fullfield.train(photos, out=run, **CHECKED, **first, checkpoint_every="2")
    for state in RunFolder(run).states[:1]:  # the last; the one before stands within the last epoch
        state.unlink()
    fullfield.train(resume=run, **then)
    assert_close_runs(run, whole)


# --- what is divided ---


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """The first of two processes, without the other: nothing is sent."""
    dist.init_process_group("fake", rank=0, world_size=2, store=dist.HashStore())
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


NETS = {
    "racnn_pico": 24,
    "replknet_31b": 48,
    "resnet18": 8,
    "vit_tiny_patch16_224": 12,
    "poolformer_s12": 0,  # names no layer groups
}


@pytest.mark.parametrize("name", NETS)
def test_each_process_holds_half_of_the_weights_under_their_names(name: str, mesh: DeviceMesh) -> None:
    net = (create_model(name) if name.startswith(("racnn", "replknet")) else timm.create_model(name)).float()
    names = list(net.state_dict())
    total = sum(p.numel() * p.element_size() for p in net.parameters())
    assert len(blocks_of(net)) == NETS[name]
    shard(net, mesh)
    assert list(net.state_dict()) == names
    held = 0
    for parameter in net.parameters():
        assert isinstance(parameter, DTensor)
        held += parameter.to_local().untyped_storage().nbytes()
    assert 0.5 * total <= held <= 0.52 * total


def test_parameter_without_an_axis_is_refused_by_name(mesh: DeviceMesh) -> None:
    net = nn.Linear(2, 2)
    net.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match="temperature has none; use --strategy ddp"):
        shard(net, mesh)


def test_blocks_are_those_of_the_stages_and_no_part_of_one() -> None:
    net = create_model("racnn_pico")
    blocks = blocks_of(net)
    assert {id(b) for b in blocks} == {id(b) for stage in net.stages for b in stage.blocks}  # type: ignore[union-attr]
    assert blocks_of(nn.Linear(2, 2)) == []


# --- what does not go with it ---


@pytest.mark.parametrize(
    ("options", "processes", "said"),
    [
        ({"sparsity": 0.4}, 2, "use --sparsity 0"),
        ({"precision": "16"}, 2, "use --precision bf16"),
        ({}, 1, "use --devices 2 or more"),
    ],
)
def test_what_can_not_be_divided_is_refused_with_the_way_out(
    options: dict[str, Any], processes: int, said: str
) -> None:
    settings = TrainSettings("photos", strategy="fsdp", **options)
    with pytest.raises(ConfigError, match=said):
        check_strategy(settings, processes)
    check_strategy(TrainSettings("photos", **options), processes)


def test_refusal_comes_before_there_is_a_run_folder(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use --devices 2 or more"):
        fullfield.train(photos, out=tmp_path / "run", **TINY, strategy="fsdp")
    assert not (tmp_path / "run").exists()
