"""Distillation against the formulas of the papers in float64, and teachers of every kind against their own pipeline."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn

import fullfield
from fullfield.data import Preprocess, eval_transform
from fullfield.errors import ConfigError, ModelNotFoundError
from fullfield.tasks.source import OpenedModel, open_model
from fullfield.train import distill
from fullfield.train.distill import Distillation, Teacher, open_teacher

CLASSES = ("blue", "green", "red")
PLAIN = Preprocess(32)


class Answers(nn.Module):
    """Logits are a product of the image with learned weights."""

    def __init__(self, classes: int = 5, channels: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.weight = nn.Parameter(torch.randn(classes, channels, dtype=torch.float64).float())

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images).mean((2, 3)) @ self.weight.T


def case(**options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (loss, cross-entropy, student's logits, teacher's logits)."""
    teacher = Teacher(Answers(), PLAIN, PLAIN)
    images, logits = torch.randn(6, 3, 32, 32), torch.randn(6, 5, requires_grad=True)
    cross_entropy = F.cross_entropy(logits, torch.arange(6) % 5, label_smoothing=0.1)
    return Distillation(teacher, **options)(cross_entropy, logits, images), cross_entropy, logits, teacher(images)


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (4.0, 0.9), (0.5, 0.0), (2.0, 1.0)])
def test_soft_loss_is_hintons_in_a_loop(temperature: float, weight: float) -> None:
    loss, cross_entropy, logits, answers = case(temperature=temperature, weight=weight)
    total = 0.0
    for student, teacher in zip(logits.tolist(), answers.tolist(), strict=True):
        p = [math.exp(z / temperature) for z in teacher]
        q = [math.exp(z / temperature) for z in student]
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    expected = (1 - weight) * cross_entropy.item() + weight * temperature**2 * total / len(logits)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_hard_loss_is_the_cross_entropy_with_the_teachers_first_answer() -> None:
    loss, cross_entropy, logits, answers = case(hard=True, weight=0.5)
    taught = -torch.log_softmax(logits.double(), 1)[range(6), answers.argmax(1)].mean()
    assert loss.item() == pytest.approx(0.5 * cross_entropy.item() + 0.5 * taught.item(), rel=1e-5)


def test_a_student_that_agrees_has_no_soft_loss() -> None:
    teacher, images = Teacher(Answers(), PLAIN, PLAIN), torch.randn(4, 3, 32, 32)
    loss = Distillation(teacher, temperature=3.0, weight=1.0)(torch.tensor(9.0), teacher(images), images)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_temperature_does_not_change_the_size_of_small_gradients() -> None:
    # Hinton et al., section 2.1: for large T and centred logits the gradient of T^2 KL is (z - v) / N
    teacher = Teacher(Answers(), PLAIN, PLAIN)
    images = torch.randn(6, 3, 32, 32)
    answers = teacher(images).double()
    logits = torch.randn(6, 5, dtype=torch.float64)
    logits = (logits - logits.mean(1, keepdim=True) + answers.mean(1, keepdim=True)).requires_grad_()
    Distillation(teacher, temperature=1000.0, weight=1.0)(torch.zeros(()), logits, images).backward()
    assert logits.grad is not None
    torch.testing.assert_close(6 * logits.grad, (logits - answers).detach() / 5, rtol=2e-3, atol=1e-4)


def test_the_teacher_learns_nothing_and_is_no_part_of_the_student() -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 5)
            self.distillation = Distillation(Teacher(Answers(), PLAIN, PLAIN))

    student, images = Student(), torch.randn(4, 3, 32, 32)
    teacher = student.distillation.teacher
    before = copy.deepcopy(teacher.model.state_dict())
    student.train()
    student.distillation(torch.zeros(()), student.net(images.mean((2, 3))), images).backward()
    assert set(student.state_dict()) == {"net.weight", "net.bias"}
    assert len(list(student.parameters())) == 2
    assert all(torch.equal(before[name], value) for name, value in teacher.model.state_dict().items())
    assert all(p.grad is None for p in teacher.model.parameters())
    assert copy.deepcopy(student).distillation.teacher is teacher  # an average of the student has no second one


def test_the_teacher_follows_the_images_to_their_device() -> None:
    teacher = Teacher(Answers(), PLAIN, PLAIN)
    assert teacher(torch.zeros(2, 3, 32, 32, device="meta")).device.type == "meta"


def test_a_student_in_another_precision_has_the_same_teacher() -> None:
    teacher, images = Teacher(Answers(), PLAIN, PLAIN), torch.randn(2, 3, 32, 32)
    logits = torch.randn(2, 5, dtype=torch.float64)
    loss = Distillation(teacher)(torch.zeros((), dtype=torch.float64), logits, images.double())
    assert loss.dtype == torch.float64
    torch.testing.assert_close(teacher(images.bfloat16()), teacher(images), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("channels", [(3, 3), (1, 3), (3, 1), (1, 1)])
def test_the_teacher_sees_what_its_own_preprocessing_makes_of_the_picture(channels: tuple[int, int]) -> None:
    mine = Preprocess(48, 1.0, channels=channels[0])
    mean = (0.5, 0.4, 0.3)[: channels[1]]
    its = Preprocess(48, 1.0, mean, (0.5, 0.25, 0.2)[: channels[1]], channels=channels[1])
    picture = Image.effect_noise((48, 48), 80).convert("RGB")
    if channels != (1, 3):  # else the picture's colours are gone
        picture = Image.merge("RGB", [Image.effect_noise((48, 48), 80) for _ in range(3)])
    expected = eval_transform(its)(picture)
    adapted = Teacher(nn.Identity(), its, mine).adapt(eval_transform(mine)(picture)[None])
    torch.testing.assert_close(adapted[0], expected, rtol=0, atol=0.02)  # grey is rounded to 8 bits


def test_the_teacher_sees_its_own_size() -> None:
    mine, its = Preprocess(32, 1.0), Preprocess(48, 1.0)
    images = torch.randn(2, 3, 32, 32)
    adapted = Teacher(nn.Identity(), its, mine).adapt(images)
    expected = F.interpolate(images, size=(48, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(adapted, expected)
    same = Teacher(nn.Identity(), mine, mine).adapt(images)
    assert same is images


def test_a_run_teaches_in_the_students_order_of_classes(finished: Path) -> None:
    opened = open_model(finished, device="cpu")
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = opened.model(images)
    same = open_teacher(finished, classes=opened.classes, preprocess=opened.preprocess)
    assert same.columns is None
    torch.testing.assert_close(same(images), expected)
    order = (2, 0, 1)
    other = open_teacher(finished, classes=[opened.classes[i] for i in order], preprocess=opened.preprocess)
    torch.testing.assert_close(other(images), expected[:, list(order)])


def test_a_file_makes_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import timm, torch\n\n\ndef small():\n    torch.manual_seed(3)\n"
        "    return timm.create_model('resnet10t', num_classes=3)\n"
    )
    teacher = open_teacher(f"{tmp_path}/nets.py:small", classes=CLASSES, preprocess=replace(PLAIN, image_size=64))
    assert teacher(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    assert not teacher.model.training
    with pytest.raises(ConfigError, match=r"nets\.py:small knows 3 classes and the data has 2"):
        open_teacher(f"{tmp_path}/nets.py:small", classes=CLASSES[:2], preprocess=PLAIN)


def published(monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...], *, trained: bool = True) -> None:
    """Let every name stand for a net with published weights, without a network."""

    def opens(source: str, *, pretrained: bool, device: str) -> OpenedModel:
        assert pretrained
        model = Answers(len(classes)).eval()
        return OpenedModel(source, model, classes, PLAIN, trained=trained, source=source)

    monkeypatch.setattr(distill, "open_model", opens)


def test_imagenets_folders_match_a_published_teacher_by_their_wordnet_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    info = ImageNetInfo("imagenet-1k")
    published(monkeypatch, tuple(info.index_to_description(i) for i in range(1000)))
    folders = info.label_names()
    assert open_teacher("resnet50", classes=folders, preprocess=PLAIN).columns is None
    backwards = open_teacher("resnet50", classes=folders[::-1], preprocess=PLAIN)
    assert backwards.columns is not None
    assert backwards.columns.tolist() == list(range(999, -1, -1))
    with pytest.raises(ConfigError, match=r"trained on other classes: it does not know 'thing 0'"):
        open_teacher("resnet50", classes=[f"thing {i}" for i in range(1000)], preprocess=PLAIN)


def test_classes_without_names_are_taken_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, ("class 0", "class 1", "class 2"))
    assert open_teacher("some_net", classes=CLASSES, preprocess=PLAIN).columns is None


def test_a_teacher_that_can_not_teach_is_named(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not know 'cyan' but 'blue', 'green', 'red'"):
        open_teacher(finished, classes=("blue", "cyan", "red"), preprocess=PLAIN)
    with pytest.raises(ModelNotFoundError, match="resnet5O"):
        open_teacher("resnet5O", classes=CLASSES, preprocess=PLAIN)
    (tmp_path / "maps.py").write_text("import torch\n\nnet = torch.nn.Conv2d(3, 3, 1)\n")
    with pytest.raises(ConfigError, match=r"must give logits \(B, classes\), got \(1, 3, 224, 224\)"):
        open_teacher(f"{tmp_path}/maps.py:net", classes=CLASSES, preprocess=PLAIN)
    published(monkeypatch, CLASSES, trained=False)
    with pytest.raises(ConfigError, match="no trained weights"):
        open_teacher("random_net", classes=CLASSES, preprocess=PLAIN)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_impossible_temperatures_are_named(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature of distillation must be more than 0"):
        Distillation(Teacher(Answers(), PLAIN, PLAIN), temperature=temperature)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_impossible_weights_are_named(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight of distillation must lie between 0 and 1"):
        Distillation(Teacher(Answers(), PLAIN, PLAIN), weight=weight)


def test_a_student_learns_its_teachers_answers_without_labels(finished: Path) -> None:
    opened = open_model(finished, device="cpu")
    distillation = Distillation(
        open_teacher(finished, classes=opened.classes, preprocess=opened.preprocess), weight=1.0
    )
    student = fullfield.create_model("racnn_pico", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=3).train()
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    images = torch.randn(16, 3, 32, 32) + torch.randn(16, 3, 1, 1)
    losses = []
    for _ in range(20):
        loss = distillation(torch.zeros(()), student(images), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
