"""The modules that formats are written from, against the models they come from and slow choices of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms
from torchvision.transforms.v2.functional import normalize

import fullfield
from fullfield.data import Preprocess
from fullfield.data.dense import DensePreprocess
from fullfield.deploy.description import Description, Selection
from fullfield.deploy.graph import ExportGraph, capture, export_module, in_half
from fullfield.errors import ConfigError
from fullfield.tasks.detection.detector import Detector
from fullfield.tasks.open import OpenedDense
from fullfield.tasks.segmentation.segmenter import Segmenter
from fullfield.tasks.source import OpenedModel

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
CLASSES = ("a", "b", "c")
COLOURS = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]


def classifier(net: str = "racnn_pico", preprocess: Preprocess | None = None, **arguments: Any) -> OpenedModel:
    torch.manual_seed(0)
    preprocess = preprocess or Preprocess()
    arguments = {"num_classes": 3, "in_chans": preprocess.channels} | arguments
    model = fullfield.create_model(net, **arguments).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr] - as after training: fusing must matter
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return OpenedModel(net, model, CLASSES, preprocess, trained=True, source=net)


def dense(model: Any, task: str) -> OpenedDense:
    name = f"{model.head_name} {model.backbone.name}"
    return OpenedDense(name, model.eval(), CLASSES, model.preprocess, True, name, task, {"colours": COLOURS})


def detector(head: str, net: str = "test_resnet", **arguments: Any) -> OpenedDense:
    torch.manual_seed(0)
    settings = {"fpn_channels": 16} | ({} if "rcnn" in head else {"convs": 1, "candidates": 20, "detections": 9})
    made = Detector(net, head, 3, preprocess=DensePreprocess(), head_arguments=settings, **arguments)
    for layer in (m for m in made.head.modules() if isinstance(m, nn.Conv2d) and m.out_channels in (3, 4, 27, 36)):
        nn.init.normal_(layer.weight, std=0.1)  # predictions that differ from place to place
        nn.init.normal_(layer.bias, std=0.5)  # type: ignore[arg-type]
    return dense(made, "detect")


def segmenter(net: str = "racnn_pico", head: str = "fpn") -> OpenedDense:
    torch.manual_seed(0)
    made = Segmenter(net, head, 3, preprocess=DensePreprocess(), head_arguments={"channels": 128}, **TINY)
    return dense(made, "segment")


def chosen(boxes_N4: Tensor, scores_NK: Tensor, size: tuple[int, int], how: Selection) -> list[tuple[Any, ...]]:
    """The objects of one image by loops over maps and classes: (score, class, box), the surest first."""
    places = [-(-size[0] // s) * -(-size[1] // s) * how.boxes_per_place for s in how.strides]
    assert sum(places) == len(boxes_N4)
    candidates: list[tuple[float, int, Tensor]] = []
    for boxes, scores in zip(boxes_N4.split(places), scores_NK.split(places), strict=True):
        of_map = [
            (float(scores[n, k]), k, boxes[n])
            for n in range(len(boxes))
            for k in range(scores.shape[1])
            if scores[n, k] > how.score_threshold
        ]
        candidates += sorted(of_map, key=lambda found: -found[0])[: how.candidates]
    kept = []
    for k in range(scores_NK.shape[1]):
        mine = [one for one in candidates if one[1] == k]
        if mine:
            inside = torch.stack([box for _, _, box in mine])
            inside[:, 0::2].clamp_(0, size[1])
            inside[:, 1::2].clamp_(0, size[0])
            for index in nms(inside, torch.tensor([score for score, _, _ in mine]), how.nms_threshold):
                kept.append((mine[index][0], k, inside[index]))
    return sorted(kept, key=lambda found: -found[0])[: how.detections]


@torch.no_grad()
@pytest.mark.parametrize("net", ["racnn_pico", "test_resnet"])
def test_a_classifiers_graph_gives_the_logits_of_normalised_images(net: str) -> None:
    opened = classifier(net, **(TINY if net == "racnn_pico" else {}))
    graph, described = export_module(opened)
    images = torch.rand(2, 3, 97, 66)
    expected = opened.model(normalize(images, list(opened.preprocess.mean), list(opened.preprocess.std)))
    torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-5)
    assert (described.task, described.classes, described.batch, described.height) == ("classify", CLASSES, None, None)
    assert Description.from_json(described.to_json(), "x") == replace(
        described, preprocess=Preprocess.from_dict(described.preprocess).to_dict()
    )


@torch.no_grad()
def test_branches_are_fused_in_the_copy_and_the_model_stays_as_it_is() -> None:
    opened = classifier(**TINY)
    before = deepcopy(opened.model.state_dict())
    graph, _ = export_module(opened)
    assert graph.net.fused  # type: ignore[truthy-function]
    assert not graph.training
    assert not opened.model.fused  # type: ignore[truthy-function]
    assert opened.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in opened.model.state_dict().items())


@torch.no_grad()
def test_timms_reparameterised_blocks_become_one_convolution_each() -> None:
    opened = classifier("mobileone_s0")
    graph, _ = export_module(opened)
    images = torch.rand(1, 3, 64, 64)
    expected = opened.model(normalize(images, list(opened.preprocess.mean), list(opened.preprocess.std)))
    torch.testing.assert_close(graph(images), expected, rtol=1e-3, atol=1e-5)
    count = [sum(isinstance(m, nn.Conv2d) for m in model.modules()) for model in (opened.model, graph.net)]
    assert count[1] < count[0] / 2


@torch.no_grad()
def test_a_grey_classifier_takes_one_channel() -> None:
    graph, described = export_module(classifier(preprocess=Preprocess(channels=1), **TINY))
    assert graph(torch.rand(1, 1, 64, 64)).shape == (1, 3)
    assert described.preprocess["channels"] == 1


def test_a_net_of_one_size_is_described_with_it() -> None:
    _, described = export_module(classifier("test_vit", Preprocess(160)))
    assert (described.batch, described.height, described.width) == (None, 160, 160)


@torch.no_grad()
@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_boxes_chosen_from_a_detectors_graph_are_what_the_detector_finds(head: str) -> None:
    opened = detector(head)
    graph, described = export_module(opened)
    assert described.selection is not None
    images = torch.rand(2, 3, 160, 96)
    boxes, scores = graph(images)
    for index, found in enumerate(opened.model(list(images))):
        expected = chosen(boxes[index], scores[index], (160, 96), described.selection)
        assert len(found.scores) == len(expected) > 0
        torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in expected]))
        torch.testing.assert_close(found.boxes, torch.stack([box for _, _, box in expected]), rtol=1e-4, atol=1e-3)
        assert found.labels.tolist() == [k for _, k, _ in expected]


@torch.no_grad()
def test_a_detectors_boxes_may_reach_beyond_the_image() -> None:
    graph, _ = export_module(detector("fcos"))
    boxes, _ = graph(torch.rand(1, 3, 64, 64))
    assert boxes.min() < 0
    assert boxes.max() > 64


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
def test_a_segmenters_graph_gives_the_segmenters_logits(size: tuple[int, int]) -> None:
    opened = segmenter()
    graph, described = export_module(opened)
    images = torch.rand(2, 3, *size)
    torch.testing.assert_close(graph(images), opened.model(images), rtol=1e-4, atol=1e-5)
    assert described.colours == tuple(map(tuple, COLOURS))
    assert opened.model.mean.flatten().tolist() == pytest.approx(described.preprocess["mean"])


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: classifier("test_resnet"), lambda: detector("retinanet"), segmenter])
def test_in_half_weights_are_float16_and_the_outputs_float32_near_those_in_full(make: Any) -> None:
    graph, _ = export_module(make())
    half = in_half(graph)
    assert {p.dtype for p in half.net.parameters()} == {torch.float16}
    assert {p.dtype for p in graph.parameters()} == {torch.float32}
    images = torch.rand(2, 3, 64, 64)
    full, near = (outputs if isinstance(outputs, tuple) else (outputs,) for outputs in (graph(images), half(images)))
    for a, b in zip(full, near, strict=True):
        assert b.dtype == torch.float32
        assert float((a - b).abs().max() / a.abs().max()) < 2e-2


def test_weights_beyond_float16_are_refused_by_name() -> None:
    graph, _ = export_module(classifier("test_resnet"))
    weight: Mapping[str, Tensor] = dict(graph.net.named_parameters())
    name = next(iter(weight))
    weight[name].view(-1)[0] = 1e5
    with pytest.raises(ConfigError, match=f"{name} has weights beyond float16"):
        in_half(graph)


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"])
def test_a_two_stage_head_is_refused_with_what_runs_and_what_exports(head: str) -> None:
    opened = detector(head)
    with pytest.raises(ConfigError, match=rf"{head}.*fullfield predict.*fcos or retinanet"):
        export_module(opened)


def test_a_model_without_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="racnn_pico has no classes"):
        export_module(replace(classifier(**TINY), classes=()))


class OneSize(nn.Module):
    """A net that takes 64 x 64 pixels and says so as timm's do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 64, "Input height doesn't match model"
        return (x * self.weight).mean((2, 3))


def test_a_net_that_fixes_its_size_is_refused_at_free_sizes_and_traced_at_its_own() -> None:
    _, described = export_module(classifier(**TINY))
    graph = ExportGraph(OneSize(), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ConfigError, match=r"any batch, height, width.*Input height doesn't match.*--size"):
        capture(graph, described)
    traced = capture(graph, replace(described, height=64, width=64)).module()
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(traced(images), graph(images))
    with pytest.raises(ConfigError, match="can't be traced for export: Input height doesn't match"):
        capture(graph, replace(described, batch=1, height=32, width=32))
