"""Every setting of a training run, in one dataclass that fills the command line, YAML files and Python alike.

`None` means "fitted to the data and the machine" (see `fitting.py`); the run's config.yaml holds what was used.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

import yaml

from fullfield.errors import ConfigError, nearest

__all__ = ["CLASSIFY_SETTINGS", "DENSE_SETTINGS", "Interval", "TrainSettings", "parse_interval", "parse_share"]

_Limit = tuple[str, Callable[[Any], bool]]


@dataclass(frozen=True)
class TrainSettings:
    """Train a classifier, a detector or a segmenter on images."""

    data: str
    """Image folder (root/class/*.jpg, with or without train/val/test), CSV list (path,label), tar shards, Parquet
    files, a saved Hugging Face data set; COCO, Pascal VOC or YOLO annotations; images/ with masks/, ADE20K or
    Cityscapes; or sample:NAME (blood_cells, blood_cells_boxes, nuclei)."""
    task: Literal["auto", "classify", "detect", "segment"] = "auto"
    """auto: what the data is annotated for."""
    model: str | None = None
    """A name of `fullfield models`, timm's included. Fitted: racnn_pico on a CPU, racnn_tiny on a GPU."""
    model_args: tuple[str, ...] = ()
    """More arguments of the model, as key=value (region_size=4 token_mixer=ffn)."""
    head: str | None = None
    """Detect: fcos, retinanet, faster_rcnn, mask_rcnn, cascade_rcnn, cascade_mask_rcnn. Segment: upernet, fpn, unet,
    segformer. Fitted: mask_rcnn where there are outlines, else fcos; upernet."""
    head_args: tuple[str, ...] = ()
    """More arguments of the head, as key=value (fpn_channels=64)."""
    out: str | None = None
    """The run folder. By default the next free runs/MODEL-N."""
    overwrite: bool = False
    """Replace the run that is in --out."""

    epochs: int | None = None
    """Passes over the training images. Fitted: about 2,000 steps, within 10 to 100 epochs."""
    image_size: int | None = None
    """Classify: side of the square image that the model sees, pixels. Detect: shorter side. Segment: side of the
    square that is cut out in training. Fitted to the images' own and the machine."""
    long_side: int | None = None
    """Detect, segment: limit of the longer side, pixels. Fitted: 5/3 of --image-size in detection, none else."""
    image_size_start: int | None = None
    """Progressive training: begin at this side and grow to --image-size; by default every epoch has the full size."""
    batch_size: int | None = None
    """Images an optimiser step, over all processes and accumulated batches together. Fitted."""
    accumulate: int = 1
    """Parts that a step's images come in, one after another, so that less memory is needed."""
    repeats: int = 1
    """Repeated augmentation: so many varied copies of an image in an epoch, of so many times fewer images."""

    weights: str | None = None
    """Start from this checkpoint or run."""
    reset_classifier: bool = False
    """With --weights: start a new classifier if the number of classes is another."""
    pretrained: bool = False
    """Start from timm's weights for this model (fetched from the network)."""

    freeze: tuple[str, ...] = ()
    """Parts that stay as they are: backbone (a linear probe), or beginnings of parameter names (stem stages.0)."""

    lr: float | None = None
    """Peak learning rate of AdamW. Fitted: 1e-3 by the rule below from a batch of 64, a fifth of it from weights."""
    lr_rule: Literal["sqrt", "linear"] = "sqrt"
    """How the fitted learning rate grows with the batch size: by its square root, or in proportion."""
    weight_decay: float = 0.05
    """Of AdamW; not on biases, norms and scales."""
    layer_decay: float | None = None
    """Factor of the learning rate from each layer group to the one before it (0.75, say); none by default."""
    warmup_epochs: float = 1.0
    """Linear warm-up, then a cosine to 1 % of the peak."""
    clip_grad: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    ema: float = 0.999
    """Decay of the weights' exponential moving average, with warm-up; 0 for none. Averaged weights are evaluated."""
    sparsity: float = 0.0
    """Share of the weights kept at zero while their places move (SLaK's dynamic sparsity; 0.4 there); 0 for none."""
    precision: Literal["auto", "64", "32", "bf16", "16"] = "auto"
    """Arithmetic: 32 on a CPU and bf16 mixed on a GPU by default; 64 is for checks."""
    channels_last: bool = True
    """Keep maps with the channels innermost, which most convolutions prefer."""
    grad_checkpointing: bool = False
    """Keep each block's input alone and compute the rest again in the backward pass: less memory, more time."""

    teacher: str | None = None
    """Distillation: learn from this net too; a run, a checkpoint or a name of `fullfield models` (timm's weights)."""
    distill_weight: float = 0.5
    """Share of the teacher in the loss."""
    distill_temperature: float = 1.0
    """Softens the teacher's and the student's shares."""
    distill_hard: bool = False
    """Learn the teacher's likeliest class and not its shares."""

    drop_path: float = 0.0
    """Stochastic depth at the last block."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    mixup: float = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 for none."""
    rand_augment: int = 0
    """Magnitude of RandAugment, 1 to 30 (9 is usual); 0 for none."""
    erasing: float = 0.0
    """Probability of random erasing."""
    scale_min: float = 0.35
    """Classify: smallest share of the image's area in a random crop."""
    scale_jitter: Literal["auto", "none", "multi", "standard", "large"] = "auto"
    """Detect, segment: random size in training. Detect: multi (auto) is a shorter side of 0.6 to 1 of --image-size,
    standard and large a factor of 0.8 to 1.25 or 0.1 to 2 in a square (LSJ). Segment: 0.5 to 2; large 0.25 to 4."""
    crop: float = 0.0
    """Detect: probability of a random crop that keeps objects."""
    photometric: float | None = None
    """Detect, segment: probability of random brightness, contrast, saturation and hue. Fitted: 0; 0.5 in segment."""
    copy_paste: float = 0.0
    """Detect: probability of pasting another image's outlined objects."""
    mosaic: float = 0.0
    """Detect: probability of putting four images together."""
    loss: str = "cross_entropy"
    """Segment: cross_entropy, dice, lovasz, focal, or a sum such as cross_entropy:1+lovasz:0.5."""
    hflip: bool = True
    """Flip left and right at random."""
    vflip: bool = False
    """Flip up and down at random."""

    val_share: float = 0.15
    """Share of the training images held out for validation, where the data has no val part."""
    patience: int | None = None
    """Stop after so many epochs without a better top-1."""
    max_bad: str = "1%"
    """Stop when more than this share of the training images can't be read."""
    workers: int | None = None
    """Processes that read images, for each process that trains. Fitted."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    devices: int = 1
    """Processes that train together on this machine, one a GPU; torchrun and SLURM set it themselves."""
    restarts: int = 0
    """Times to start again from the last checkpoint when one of several processes is lost."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What several processes share: ddp the gradients; fsdp divides weights, gradients and optimiser state, for nets
    that are too large to be held whole."""
    sync_bn: bool = True
    """BatchNorm over the images of all processes, not of each alone."""
    checkpoint_every: str = "10m"
    """Save the run's state this often within an epoch too: 90s, 10m, 2h, or 500 (steps). Each epoch ends with one."""
    logger: tuple[str, ...] = ("auto",)
    """Where figures go beside metrics.csv: auto (TensorBoard where installed), none, wandb, mlflow, or a class."""
    seed: int = 0
    """The same seed gives the same figures on the same machine."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), kind))
        for name, (allowed, holds) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ConfigError(f"{name} must be {allowed}, got {value}")
        if self.weights and self.pretrained:
            raise ConfigError("weights and pretrained are two places to start from; give one")
        for name, parse in (("max_bad", parse_share), ("checkpoint_every", parse_interval)):
            try:
                parse(getattr(self, name))
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
        self.model_arguments()
        self.head_arguments()

    def model_arguments(self) -> dict[str, Any]:
        """Return `model_args` as a dictionary; values are read as YAML (4, 0.1, true, [7, 7, 7, 1], text)."""
        return _arguments("model", self.model_args, "region_size=4")

    def head_arguments(self) -> dict[str, Any]:
        """Return `head_args` as a dictionary, in the same way."""
        return _arguments("head", self.head_args, "fpn_channels=64")

    def to_yaml(self, heading: str = "") -> str:
        """Return all settings as YAML, one a line, with comment lines before them."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        comment = "".join(f"# {line}\n" for line in heading.splitlines())
        return comment + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "settings") -> Self:
        """Make settings from a mapping.

        Raises:
            ConfigError: A key is unknown (the nearest is named), `data` is missing, or a value is impossible.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise ConfigError(f"{where}: unknown setting {key!r}{nearest(str(key), known)}")
        if "data" not in values:
            raise ConfigError(f"{where}: the setting 'data' is missing: which images to train on")
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path, *, fallback: Mapping[str, Any] | None = None, **changes: Any) -> Self:
        """Read settings from a YAML file; `changes` win over it, and `fallback` is for what it leaves out.

        Raises:
            ConfigError: The file can't be read, is not a mapping, or has an unknown key.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"the settings file {path} can't be read: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"the settings file {path} must be a mapping of setting: value")
        return cls.from_dict({**(fallback or {}), **values, **changes}, where=str(path))

    def command(self) -> str:
        """Return the shell command that repeats the run: every setting that is not the default."""
        words = ["fullfield", "train", self.data]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in {"data", "out", "overwrite"} or value == field.default:
                continue
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            elif isinstance(value, tuple):
                words += [f"--{flag}", *value]
            else:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)


CLASSIFY_SETTINGS = (
    *("image_size_start", "reset_classifier", "teacher", "distill_weight", "distill_temperature", "distill_hard"),
    *("drop_rate", "label_smoothing", "mixup", "cutmix", "rand_augment", "erasing", "scale_min", "sparsity"),
)
"""Settings of classification alone."""
DENSE_SETTINGS = (
    *("head", "head_args", "long_side", "scale_jitter", "crop", "photometric", "copy_paste", "mosaic", "loss"),
)
"""Settings of detection and segmentation."""
_AT_LEAST_1: _Limit = ("at least 1", lambda value: value >= 1)
_NOT_NEGATIVE: _Limit = ("at least 0 and finite", lambda value: 0 <= value < math.inf)
_BELOW_1: _Limit = ("at least 0 and less than 1", lambda value: 0 <= value < 1)
_PROBABILITY: _Limit = ("between 0 and 1", lambda value: 0 <= value <= 1)
_POSITIVE_SHARE: _Limit = ("more than 0 and at most 1", lambda value: 0 < value <= 1)
_LIMITS: dict[str, _Limit] = {
    **dict.fromkeys(("epochs", "image_size", "image_size_start", "long_side", "batch_size", "patience"), _AT_LEAST_1),
    **dict.fromkeys(("accumulate", "repeats", "devices"), _AT_LEAST_1),
    **dict.fromkeys(
        ("workers", "restarts", "weight_decay", "warmup_epochs", "clip_grad", "mixup", "cutmix"), _NOT_NEGATIVE
    ),
    **dict.fromkeys(("ema", "sparsity", "drop_path", "drop_rate", "label_smoothing", "erasing"), _BELOW_1),
    **dict.fromkeys(("layer_decay", "scale_min", "distill_weight"), _POSITIVE_SHARE),
    **dict.fromkeys(("lr", "distill_temperature"), ("more than 0 and finite", lambda value: 0 < value < math.inf)),
    **dict.fromkeys(("crop", "photometric", "copy_paste", "mosaic"), _PROBABILITY),
    "rand_augment": ("between 0 (off) and 30", lambda value: 0 <= value <= 30),
    "val_share": ("between 0 and 1, both excluded", lambda value: 0 < value < 1),
}
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _typed(name: str, value: Any, kind: Any) -> Any:
    """Return `value` as its field's type, or raise ConfigError; YAML and Python spell some types loosely."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    kind = kinds[0]
    if get_origin(kind) is Literal:
        if str(value) not in get_args(kind):  # 32 is a number in YAML
            raise ConfigError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")
        return str(value)
    if get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{name} must be a list of text, got {value!r}")
        return tuple(map(str, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str and (isinstance(value, str | Path) or is_number):
        return str(value)
    if kind is float and isinstance(value, str):  # YAML takes 1e-3, without a point, for text
        with suppress(ValueError):
            return float(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if kind is float and is_number:
        return float(value)
    raise ConfigError(f"{name} must be {_EXPECTED[kind]}, got {value!r}")


def _arguments(whose: str, items: Sequence[str], example: str) -> dict[str, Any]:
    arguments = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{whose} argument {item!r} must be key=value, such as {example}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{whose} argument {item!r} is not readable: write lists as [8,16]") from error
        arguments[key] = tuple(parsed) if isinstance(parsed, list) else parsed
    return arguments


def parse_share(text: str) -> float:
    """Return a share between 0 and 1 written as "1%" or "0.01".

    Raises:
        ConfigError: It is neither.
    """
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"a share must be written as 1% or 0.01, between 0 and 1; got {text!r}")
    return value


class Interval(NamedTuple):
    """How often something happens: one of the two is given."""

    seconds: float | None
    steps: int | None


def parse_interval(text: str) -> Interval:
    """Return an interval written as 90s, 10m, 2h or 500 (steps).

    Raises:
        ConfigError: It is none of these, or not above zero.
    """
    number, unit = text.strip(), ""
    if number.removesuffix("steps").strip().isdigit():
        number = number.removesuffix("steps").strip()
    elif number[-1:] in _SECONDS:
        number, unit = number[:-1], number[-1]
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf or (not unit and value != int(value)):
        raise ConfigError(f"an interval must be written as 90s, 10m, 2h or 500 (steps), above zero; got {text!r}")
    return Interval(value * _SECONDS[unit], None) if unit else Interval(None, int(value))
