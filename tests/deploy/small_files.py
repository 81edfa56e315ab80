"""Exported files of tiny nets made by hand, so that what runs files is tested apart from what writes them.

Each net follows the contract of exported graphs: `images` (B, C, H, W) from 0 to 1 in, the outputs of its task out, its
normalisation inside. Its weights are random; the same seed gives the same net.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.data.dense import DensePreprocess
from fullfield.data.preprocess import Preprocess
from fullfield.deploy.description import KEY, Description, Selection

SIDE = 24
CLASSES = ("cat", "dog", "hen")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
STRIDES = (16, 32)
SELECTION = Selection(STRIDES, 1, score_threshold=0.05, candidates=50, nms_threshold=0.5, detections=20)
PREPROCESS = {
    "classify": Preprocess(image_size=SIDE, crop_share=0.9),
    "detect": DensePreprocess(short_side=96, long_side=160),
    "segment": DensePreprocess(short_side=48),
}


class SmallNet(nn.Module):
    """What the nets share: normalising and one convolution."""

    def __init__(self, task: str) -> None:
        super().__init__()
        preprocess = PREPROCESS[task]
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(-1, 1, 1))
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def look(self, images: Tensor) -> Tensor:
        return self.conv((images - self.mean) / self.std)


class SmallClassifier(SmallNet):
    def forward(self, images: Tensor) -> Tensor:
        return self.look(images).relu().mean((2, 3)) * 4


class SmallSegmenter(SmallNet):
    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)


class SmallDetector(SmallNet):
    """Each place of two maps has a box around its centre, as large as two strides, moved by what is seen there."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.look(images)
        boxes, scores = [], []
        for stride in STRIDES:
            seen = F.avg_pool2d(x, stride, stride)
            ones = torch.ones_like(seen[:, :1])
            centre_x, centre_y = (ones.cumsum(3) - 0.5) * stride, (ones.cumsum(2) - 0.5) * stride
            centre = torch.cat([centre_x, centre_y], 1) + stride * seen[:, :2]
            box = torch.cat([centre - stride, centre + stride * (1 + seen[:, 2:])], 1)
            boxes.append(box.flatten(2).transpose(1, 2))
            scores.append((4 * seen).sigmoid().flatten(2).transpose(1, 2))
        return torch.cat(boxes, 1), torch.cat(scores, 1)


NETS = {"classify": SmallClassifier, "detect": SmallDetector, "segment": SmallSegmenter}
OUTPUTS = {"classify": ["logits"], "segment": ["logits"], "detect": ["boxes", "scores"]}


@dataclass(frozen=True)
class Small:
    """A net and its files."""

    net: nn.Module
    description: Description
    onnx: Path


def small_net(task: str) -> nn.Module:
    torch.manual_seed(3)
    return NETS[task](task).eval().requires_grad_(False)


def describe(task: str, **more: Any) -> Description:
    return Description(
        task=task,
        name=f"small {task}",
        classes=CLASSES,
        preprocess=PREPROCESS[task].to_dict(),
        colours=COLOURS if task == "segment" else (),
        selection=SELECTION if task == "detect" else None,
        **more,
    )


def write_small(folder: Path, task: str) -> Small:
    """Write the small net of a task as ONNX, with any batch and, but for the classifier, any height and width."""
    net, description, path = small_net(task), describe(task), folder / f"{task}.onnx"
    if task == "classify":
        description = replace(description, height=SIDE, width=SIDE)
    export(net, description, path)
    return Small(net, description, path)


def export(net: nn.Module, description: Description, path: Path, *, text: str | None = None) -> Path:
    """Write a net as ONNX with a description, or with another text in its place."""
    import onnx

    sizes = (description.batch, description.height, description.width)
    free = {axis: name for axis, name, size in zip((0, 2, 3), "bhw", sizes, strict=True) if size is None}
    example = torch.rand(sizes[0] or 2, 3, sizes[1] or 64, sizes[2] or 96)
    outputs = OUTPUTS[description.task]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the quick exporter is deprecated, and fit for nets as small as these
        torch.onnx.export(
            net,
            (example,),
            path,
            dynamo=False,
            opset_version=18,
            input_names=["images"],
            output_names=outputs,
            dynamic_axes={"images": free, **{name: {0: "b"} for name in outputs if 0 in free}},
        )
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {KEY: description.to_json() if text is None else text})
    onnx.save(proto, path)
    return path


def write_openvino(small: Small, path: Path) -> Path:
    """Write the net of an ONNX file as OpenVINO's two files."""
    import openvino

    model = openvino.convert_model(small.onnx)
    model.set_rt_info(small.description.to_json(), KEY)
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def write_torch(small: Small, path: Path) -> Path:
    """Write the net by torch.export."""
    example = torch.rand(2, 3, SIDE, SIDE) if small.description.task == "classify" else torch.rand(2, 3, 64, 96)
    free = {0: torch.export.Dim.DYNAMIC}
    if small.description.task != "classify":
        free |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(small.net, (example,), dynamic_shapes=(free,), strict=False)
    torch.export.save(program, path, extra_files={"fullfield.json": small.description.to_json()})
    return path
