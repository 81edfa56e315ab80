"""Turning a model and a setting into a call that can be timed: one forward pass or one training step.

Every backend is one function (model, images, setting) -> call. ONNX Runtime and OpenVINO come with the extra `export`;
without them their backends say so. What has to be compiled is compiled before the call is returned. A forward pass runs
in eval mode without autograd; a training step is forward, cross-entropy, backward and an SGD update, with all gradients
made anew.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.errors import ConfigError, MissingExtraError, nearest
from fullfield.measure.erf_model import open_measured
from fullfield.tasks.model_file import is_model_file, load_model_file

__all__ = [
    "BACKENDS",
    "LAYOUTS",
    "MODES",
    "PRECISIONS",
    "Setting",
    "fused_copy",
    "make_call",
    "open_named",
    "reason_of",
]

MODES = ("forward", "train")
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
BACKENDS = ("eager", "compile", "onnxruntime", "openvino")
RUNTIMES = ("onnxruntime", "openvino")
MANY_COMPILED = 256  # forms of one model, before PyTorch would run the next one eagerly without a word


@dataclass(frozen=True)
class Setting:
    """How a model is run when it is timed."""

    mode: str = "forward"
    """"forward" or "train" (forward, backward and update)."""
    batch: int = 1
    """Images a call."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width, pixels."""
    layout: str = "nchw"
    """Memory layout of weights and images: "nchw" or "channels_last"."""
    precision: str = "float32"
    """"float32", or autocast to "bf16" or "fp16"."""
    backend: str = "eager"
    """"eager", "compile" (torch.compile), "onnxruntime" or "openvino"."""
    fused: bool = False
    """Fold norms and merge branches first; forward only."""
    device: str = "cpu"
    """Where it runs."""

    def __post_init__(self) -> None:
        for name, known in (
            ("mode", MODES),
            ("layout", tuple(LAYOUTS)),
            ("precision", tuple(PRECISIONS)),
            ("backend", BACKENDS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"{name} must be one of {', '.join(known)}, got {value!r}{nearest(str(value), known)}"
                )
        if self.batch < 1:
            raise ConfigError(f"batch must be at least 1, got {self.batch}")
        if self.mode == "train" and (self.fused or self.backend in RUNTIMES):
            what = "a fused model" if self.fused else self.backend
            raise ConfigError(f"{what} can't be trained: use mode='forward'")
        if self.backend in RUNTIMES and (self.precision, self.layout) != ("float32", "nchw"):
            raise ConfigError(f"{self.backend} is timed in float32 and nchw only: it chooses its layouts by itself")
        if self.backend in RUNTIMES and self.device != "cpu":
            raise ConfigError(f"{self.backend} is timed on the CPU only, got device {self.device!r}")


def open_named(source: str, image_size: int | tuple[int, int] | None = None) -> nn.Module:
    """Open what a user calls a model, with its own or random weights: neither changes a time.

    Args:
        source: A registered name, a run folder, a weights file, or `path/to/file.py:factory`, which is run.
        image_size: Side, or (height, width), in pixels: attention nets of a fixed size are set to it.

    Raises:
        ModelNotFoundError: Neither a path nor a registered name.
        CheckpointError: The path holds no usable weights.
        ConfigError: The file makes no model, or it is a detector's or segmenter's run.
    """
    if is_model_file(source):
        model = load_model_file(source)
    else:
        measured = open_measured(source, device="cpu")
        if measured.is_backbone:
            raise ConfigError(f"{source} is a detector or segmenter; measure its net with `fullfield compare --task`")
        model = measured.model
    resize = getattr(model, "set_input_size", None)
    if image_size is not None and callable(resize):
        resize(img_size=(image_size, image_size) if isinstance(image_size, int) else image_size)
    return model


def make_call(model: nn.Module, setting: Setting, in_chans: int = 3) -> Callable[[], Any]:
    """Return a call that runs a copy of `model` once, as `setting` says, on random images.

    Args:
        model: (B, in_chans, H, W) -> a tensor, or anything that holds one; it is left as it was.
        setting: How to run it.
        in_chans: Channels of an image.

    Raises:
        ConfigError: The model can't be fused, compiled or exported.
        MissingExtraError: The backend's library is not installed.
    """
    model = (fused_copy(model) if setting.fused else copy.deepcopy(model)).to(setting.device)
    memory_format = LAYOUTS[setting.layout]
    model = model.to(memory_format=memory_format)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(setting.batch, in_chans, *setting.image_size, generator=generator)
    images = images.to(setting.device).contiguous(memory_format=memory_format)
    if setting.mode == "train":
        return _training_step(model, images, setting)
    return {"eager": _eager, "compile": _compiled, "onnxruntime": _onnxruntime, "openvino": _openvino}[setting.backend](
        model.eval(), images, setting
    )


def fused_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model in eval mode with folded norms and merged branches.

    Args:
        model: One with a method `fuse()`; it is left as it was.

    Raises:
        ConfigError: It has none.
    """
    fused = copy.deepcopy(model).eval()
    if not callable(getattr(fused, "fuse", None)):
        raise ConfigError(f"{type(model).__name__} has no fuse(): time it without fused")
    fused.fuse()  # type: ignore[operator]
    return fused


def reason_of(error: Exception) -> str:
    """Return the first line of what an error says, or its class where it says nothing.

    Args:
        error: Any; of what PyTorch's compiler wraps, the error inside.
    """
    cause = getattr(error, "inner_exception", None) or error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def _autocast(setting: Setting) -> AbstractContextManager[Any]:
    dtype = PRECISIONS[setting.precision]
    return nullcontext() if dtype is None else torch.autocast(torch.device(setting.device).type, dtype)


def _eager(model: nn.Module, images: Tensor, setting: Setting) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode(), _autocast(setting):
            return model(images)

    return call


def _compiled(model: nn.Module, images: Tensor, setting: Setting) -> Callable[[], Any]:
    # static shapes, or the second batch size would be compiled for any
    call = _eager(torch.compile(model, dynamic=False), images, setting)  # type: ignore[arg-type]
    _compile_now(call, type(model).__name__)
    return call


def _compile_now(call: Callable[[], Any], name: str) -> None:
    """Make the first call, which compiles, and say what is wrong where that fails.

    Raises:
        ConfigError: PyTorch can't compile the model here.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    try:
        with config.patch(recompile_limit=MANY_COMPILED, fail_on_recompile_limit_hit=True):
            call()
    except TorchDynamoException as error:
        raise ConfigError(
            f"torch.compile can't compile {name} here: {reason_of(error)}. On a CPU it needs a C++ compiler (g++ or"
            " clang); leave out the backend compile to time the rest"
        ) from error


def _training_step(model: nn.Module, images: Tensor, setting: Setting) -> Callable[[], Any]:
    forward: Any = model.train()
    if setting.backend == "compile":
        forward = torch.compile(forward, dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def call() -> None:
        with _autocast(setting):
            y = first_tensor(forward(images))
        logits = y.float().reshape(len(images), -1)
        F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64, device=images.device)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # last, so that the next call's peak memory counts the gradients

    if setting.backend == "compile":
        _compile_now(call, type(model).__name__)
    return call


def first_tensor(output: Any) -> Tensor:
    """Return the first tensor of a model's output, whatever holds it.

    Raises:
        ConfigError: There is none.
    """
    for leaf in torch.utils._pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            return leaf
    raise ConfigError(f"the model returned {type(output).__name__} without a tensor in it")


def _to_onnx(model: nn.Module, images: Tensor) -> bytes:
    for name in ("onnx", "onnxscript"):
        _library(name)
    try:
        program: Any = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    except RuntimeError as error:  # torch.onnx.OnnxExporterError is one
        raise ConfigError(
            f"{type(model).__name__} can't be written as ONNX: {reason_of(error)}. Time it with the backend eager"
        ) from error
    return program.model_proto.SerializeToString()  # type: ignore[no-any-return]


def _onnxruntime(model: nn.Module, images: Tensor, _: Setting) -> Callable[[], Any]:
    onnxruntime = _library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_to_onnx(model, images), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _openvino(model: nn.Module, images: Tensor, _: Setting) -> Callable[[], Any]:
    openvino = _library("openvino")
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    compiled = core.compile_model(core.read_model(io.BytesIO(_to_onnx(model, images))), "CPU")
    array = images.numpy()
    return lambda: compiled(array)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{name} is not installed; pip install 'fullfield[export]'") from error
