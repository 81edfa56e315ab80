"""The forecast of a training step's memory: its parts against PyTorch's own objects, its line against direct counts."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fullfield
from fullfield.measure.cost_training import training_memory
from fullfield.measure.memory import peak_memory_mb
from fullfield.train import memory
from fullfield.train.memory import Forecast, available_bytes, foresee

CPU = torch.device("cpu")
GB = 2**30


class Small(nn.Module):
    """Two stages of layers whose maps are far larger than their weights, with gradient checkpointing."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(width, width, 1), nn.Sigmoid()) for _ in range(8)]
        self.stem = nn.Conv2d(3, width, 1)
        self.stages = nn.ModuleList([nn.Sequential(*layers[:4]), nn.Sequential(*layers[4:])])
        self.head = nn.Linear(width, 10)
        self.checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = torch.utils.checkpoint.checkpoint(stage, x, use_reentrant=False) if self.checkpointing else stage(x)
        return self.head(x.mean((2, 3)))


def forecast(model: nn.Module, batch: int, **options: object) -> Forecast:
    asked = {"image_size": 32, "ema": False, "mixed": False, "checkpointing": False, "device": CPU} | options
    found = foresee(model, batch=batch, **asked)  # type: ignore[arg-type]
    assert found is not None
    return found


def with_available(monkeypatch: pytest.MonkeyPatch, count: int, model: nn.Module) -> None:
    """Let so many bytes be available to a process that holds the model already."""
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    monkeypatch.setattr(memory, "available_bytes", lambda _: count - held)


@pytest.mark.parametrize(
    ("name", "mixed", "checkpointing"),
    [
        ("small", False, False),
        ("small", True, False),
        ("small", False, True),
        ("resnet10t", True, True),
        pytest.param("resnet10t", False, False, marks=pytest.mark.slow),
        pytest.param("resnet10t", True, False, marks=pytest.mark.slow),
    ],
)
def test_the_line_through_two_batches_meets_the_count_of_a_large_one(
    name: str, mixed: bool, checkpointing: bool
) -> None:
    model = Small() if name == "small" else fullfield.create_model(name, num_classes=10)
    found = forecast(model, 96, mixed=mixed, checkpointing=checkpointing)
    counted = training_memory(
        model, batch=96, image_size=32, precision="bf16" if mixed else "float32", checkpointing=checkpointing
    )
    assert found.activation_bytes == pytest.approx(counted.activation_bytes, rel=0.002)
    both = counted.activation_bytes + counted.working_bytes
    assert found.activation_bytes + found.working_bytes == pytest.approx(both, rel=0.02)


@pytest.mark.slow
def test_the_line_of_racnn_meets_its_count_too() -> None:
    model = fullfield.create_model("racnn_pico", dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), num_classes=10)
    found, counted = forecast(model, 32, image_size=64), training_memory(model, batch=32, image_size=64)
    assert found.activation_bytes == pytest.approx(counted.activation_bytes, rel=0.002)
    # on a CPU RPWConv works in blocks of some MB, however large the batch
    assert counted.working_bytes <= found.working_bytes < counted.working_bytes + 16 * 2**20


def test_the_parts_are_the_bytes_of_pytorchs_own_objects() -> None:
    model = fullfield.create_model("resnet10t", num_classes=10)
    found = forecast(model, 4, ema=True, world_size=2)

    def count(tensors: list[Tensor]) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    optimizer = torch.optim.AdamW(model.parameters())
    F.cross_entropy(model(torch.zeros(4, 3, 32, 32)), torch.zeros(4, dtype=torch.int64)).backward()
    optimizer.step()
    gradients = count([p.grad for p in model.parameters() if p.grad is not None])
    moments = count([t for s in optimizer.state.values() for t in s.values() if t.ndim])
    average = AveragedModel(model).module
    assert found.weight_bytes == count([*model.parameters(), *model.buffers()])
    assert found.average_bytes == count([*average.parameters(), *average.buffers()])
    assert (found.gradient_bytes, found.optimizer_bytes, found.bucket_bytes) == (gradients, moments, gradients)
    parts = 2 * found.weight_bytes + 2 * gradients + moments + found.activation_bytes + found.working_bytes
    assert found.needed_bytes == round(parts * memory.SLACK["cpu"])


def test_frozen_parts_and_a_single_process_need_less() -> None:
    model = Small()
    whole = forecast(model, 4)
    assert (whole.average_bytes, whole.bucket_bytes) == (0, 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    probe = forecast(model, 4)
    assert probe.gradient_bytes == 4 * (16 * 10 + 10)
    assert probe.activation_bytes < 0.01 * whole.activation_bytes
    assert probe.weight_bytes == whole.weight_bytes


def test_a_step_that_fits_has_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small()
    with_available(monkeypatch, 8 * GB, model)
    found = forecast(model, 8)
    assert found.fits
    assert found.advice() == ""
    assert found.available_bytes == 8 * GB
    assert found.summary() == "about 0.0 GB of 8.0 GB"


def test_the_offered_batch_is_the_largest_multiple_of_8_that_fits_by_a_count_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Small()

    def need(batch: int) -> float:
        return training_memory(model, batch=batch, image_size=32).total_bytes * memory.SLACK["cpu"]

    with_available(monkeypatch, round((need(40) + need(48)) / 2), model)
    found = forecast(model, 256)
    assert not found.fits
    assert found.fitting_batch == 40
    assert "try --batch-size 40" in found.advice()
    assert "--batch-size 320" in found.advice(parts=8)


def test_small_batches_are_powers_of_two_and_never_a_single_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small()
    need = [forecast(model, batch).needed_bytes for batch in (2, 4, 8)]
    for available, offered in ((need[2] - 1, 4), (need[1] - 1, 2), (need[0] - 1, None)):
        with_available(monkeypatch, available, model)
        assert forecast(model, 8).fitting_batch == offered
        assert forecast(model, 256).fitting_batch == offered


def test_checkpointing_is_offered_only_where_it_fits_by_its_own_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small()
    plain, checkpointed = (forecast(model, 64, checkpointing=on).needed_bytes for on in (False, True))
    assert checkpointed < 0.8 * plain
    with_available(monkeypatch, checkpointed, model)
    found = forecast(model, 64)
    assert found.checkpointed_bytes == checkpointed
    assert found.advice().endswith(f"try --batch-size {found.fitting_batch} or --grad-checkpointing")
    with_available(monkeypatch, checkpointed - 1, model)
    assert "checkpointing" not in forecast(model, 64).advice()
    assert forecast(model, 64, checkpointing=True).checkpointed_bytes is None  # it is on already
    assert not model.checkpointing


def test_both_together_are_the_last_resort_and_then_a_smaller_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small()
    plain, checkpointed = (forecast(model, 2, checkpointing=on).needed_bytes for on in (False, True))
    with_available(monkeypatch, (plain + checkpointed) // 2, model)
    assert forecast(model, 64).advice().endswith("try --grad-checkpointing with --batch-size 2")
    with_available(monkeypatch, checkpointed - 1, model)
    assert forecast(model, 64).advice().endswith("try a smaller --model or --image-size")


def test_advice_says_how_much_is_needed_and_there() -> None:
    parts = {"weight_bytes": GB, "gradient_bytes": GB, "optimizer_bytes": 2 * GB, "average_bytes": GB}
    found = Forecast(128, **parts, bucket_bytes=0, activation_bytes=4 * GB, working_bytes=0, slack=1.0,
                     available_bytes=8 * GB, fitting_batch=96, checkpointed_bytes=6 * GB)  # fmt: skip
    assert found.advice() == "needs about 9.0 GB of 8.0 GB: try --batch-size 96 or --grad-checkpointing"
    assert replace(found, available_bytes=None).fits
    assert replace(found, available_bytes=None).summary() == "about 9.0 GB"


def test_a_model_that_can_not_be_counted_is_said_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    class Looks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x.mean((2, 3)))
            return y if float(y.sum()) > 0 else -y

    options = {"image_size": 8, "ema": True, "mixed": False, "checkpointing": False, "device": CPU}
    assert foresee(Looks(3, 2), batch=4, **options) is None
    assert "training step of Looks can't be counted (" in capsys.readouterr().err
    assert foresee(Small(), batch=4, optimizer="lion", **options) is None
    assert "got 'lion'" in capsys.readouterr().err


def test_grey_images_and_weights_that_are_elsewhere_are_counted_on_the_device() -> None:
    grey = fullfield.create_model("resnet10t", in_chans=1, num_classes=3)
    here = forecast(grey, 4, channels=1)
    with torch.device("meta"):
        there = fullfield.create_model("resnet10t", in_chans=1, num_classes=3)
    assert replace(forecast(there, 4, channels=1), available_bytes=None) == replace(here, available_bytes=None)


def test_the_model_is_left_as_it_was() -> None:
    model = Small().eval()
    before = copy.deepcopy(model.state_dict())
    forecast(model, 4)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def system(root: Path, available_kb: int = 9000) -> None:
    write(root, proc__meminfo=f"MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:  {available_kb} kB\n")


def test_without_limits_the_systems_own_figure_is_taken(tmp_path: Path) -> None:
    system(tmp_path)
    write(tmp_path, proc__self__cgroup="0::/user.slice\n")
    (tmp_path / "sys/fs/cgroup/user.slice").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/user.slice/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/user.slice/memory.current").write_text("5\n")
    assert available_bytes(CPU, root=tmp_path) == 9000 * 1024


@pytest.mark.parametrize("limited", ["job", ""])
def test_the_limit_of_a_control_group_or_of_one_above_it_counts(tmp_path: Path, limited: str) -> None:
    system(tmp_path)
    write(tmp_path, proc__self__cgroup="0::/slurm/job\n")
    group = tmp_path / "sys/fs/cgroup/slurm" / limited
    group.mkdir(parents=True)
    (group / "memory.max").write_text("4000000\n")
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.stat").write_text("anon 7\ninactive_file 500000\n")  # cached files, given back when needed
    assert available_bytes(CPU, root=tmp_path) == 1_500_000


def test_control_groups_of_version_1_count_also_in_a_container_that_sees_its_own_as_the_top(tmp_path: Path) -> None:
    system(tmp_path)
    write(tmp_path, proc__self__cgroup="9:name=systemd:/\n4:cpu,memory:/docker/abc\n")
    group = tmp_path / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("4000000\n")
    (group / "memory.usage_in_bytes").write_text("1000000\n")
    assert available_bytes(CPU, root=tmp_path) == 3_000_000
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # no limit
    assert available_bytes(CPU, root=tmp_path) == 9000 * 1024


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    system(tmp_path)
    write(tmp_path, proc__self__cgroup="0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1000\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("2000\n")
    assert available_bytes(CPU, root=tmp_path) == 0


def test_without_proc_posix_tells_and_other_devices_tell_nothing(tmp_path: Path) -> None:
    found = available_bytes(CPU, root=tmp_path)
    assert found is None or 0 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert available_bytes(torch.device("meta"), root=tmp_path) is None


def test_this_machine_has_memory_left() -> None:
    found = available_bytes(CPU)
    assert found is None or found > 10 * 2**20


def test_several_processes_share_a_cpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small()
    monkeypatch.setattr(memory, "available_bytes", lambda _: 8 * GB)
    one, four = (forecast(model, 4, world_size=n).available_bytes for n in (1, 4))
    assert one is not None
    assert four is not None
    assert one - four == 6 * GB


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_the_measured_peak_of_a_real_step_is_near_the_forecast(name: str) -> None:
    model = fullfield.create_model(name, **({"img_size": 128} if name.startswith("vit") else {})).train()
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = torch.randn(32, 3, 128, 128), torch.zeros(32, dtype=torch.int64)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    peak_mb = peak_memory_mb(step)
    if peak_mb is None:
        pytest.skip("this system does not tell the peak memory of a process")
    found = forecast(model, 32, image_size=128)
    held = found.weight_bytes + found.optimizer_bytes  # in memory before the step
    assert 0.55 < (peak_mb * 2**20 + held) / found.needed_bytes < 1.05
