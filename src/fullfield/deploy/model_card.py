"""The model card of a shared model: its README.md on the Hub, and config.json beside it.

The card is written from `SharedFacts` alone. What only the author can say (licence, data, purpose) is left to fill in
and marked so. https://huggingface.co/docs/hub/model-cards describes the YAML at its head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from fullfield.deploy.shared_facts import Evaluated, SharedFacts
from fullfield.version import __version__

__all__ = ["CARD", "CONFIG", "config_json", "model_card"]

CARD = "README.md"
CONFIG = "config.json"
UNKNOWN = "unknown"
"""The Hub's identifier of a licence that was not given."""

_PIPELINES = {"classify": "image-classification", "detect": "object-detection", "segment": "image-segmentation"}
_NOUNS = {"classify": "classifier", "detect": "detector", "segment": "segmenter"}
_EXTRAS = {"classify": "hub", "detect": "hub", "segment": "hub,segment"}
_ANSWERS = {
    "classify": ("labels", "the likeliest classes with their probabilities"),
    "detect": ("detections", "boxes in pixels with class and score"),
    "segment": ("shares", "how much of the image each class covers; `labels` is the class of each pixel"),
}
_FIGURES: Mapping[str, tuple[str, str]] = {
    "top1": ("top-1 accuracy", "accuracy"),
    "top5": ("top-5 accuracy", "accuracy"),
    "mean_recall": ("mean recall of the classes", "recall"),
    "majority": ("always naming the most frequent class", ""),
    "loss": ("loss", ""),
    "ap": ("AP", "mean_average_precision"),
    "ap50": ("AP50", "mean_average_precision"),
    "ap75": ("AP75", "mean_average_precision"),
    "ap_small": ("AP, small objects", ""),
    "ap_medium": ("AP, medium objects", ""),
    "ap_large": ("AP, large objects", ""),
    "ar100": ("AR, 100 objects an image", ""),
    "mask_ap": ("AP of masks", "mean_average_precision"),
    "mask_ap50": ("AP50 of masks", ""),
    "mask_ap75": ("AP75 of masks", ""),
    "miou": ("mean IoU", "mean_iou"),
    "macc": ("mean accuracy of the classes", "accuracy"),
    "pixel_accuracy": ("share of right pixels", "accuracy"),
    "majority_miou": ("mean IoU of naming the most frequent class everywhere", ""),
}
"""Figure -> how it is called, and the Hub's name of its kind if the card's head has it."""
_PER_CLASS = {"classify": "recall", "detect": "AP", "segment": "IoU"}
_SPLITS = {
    "test": "the test part, which training never saw",
    "val": "the held-out part by which the best weights were chosen",
    "train": "the training part",
    "all": "all images",
}
_LIMITS = {
    "classify": "It gives one of its classes to every image, also to one that shows none of them.",
    "detect": "It knows only what was annotated in its training images, and was not measured on any others.",
    "segment": "It gives one of its classes to every pixel, also where none of them is.",
}
_LISTED = 50  # classes that the card names; config.json has all


def model_card(facts: SharedFacts, repository: str, *, license: str | None = None, data: str | None = None) -> str:  # noqa: A002
    """Return the card: Markdown with YAML at its head.

    Args:
        facts: Of the model.
        repository: "USER/NAME", for the example.
        license: The Hub's identifier, such as "apache-2.0"; None leaves it to fill in.
        data: What it was trained on, in the author's words; None leaves it to fill in, unless it was a sample of
            Fullfield's.
    """
    data = data or (f"the sample {facts.data} that comes with Fullfield" if facts.data else None)
    head = yaml.safe_dump(_head(facts, repository, license, data), sort_keys=False, allow_unicode=True)
    title = _plain(repository.rpartition("/")[2])
    sections = [
        f"---\n{head}---\n\n# {title}",
        _what(facts),
        _usage(facts, repository),
        _classes(facts),
        _training(facts, data),
        _figures(facts),
        _size(facts),
        _limits(facts),
        _licence(license),
    ]
    return "\n\n".join(sections) + "\n"


def config_json(facts: SharedFacts) -> dict[str, Any]:
    """Return what config.json holds: the model in plain values, for readers and other tools.

    Fullfield does not read it, the weights file says the same. That of a classifier is timm's, too:
    `timm.create_model("hf-hub:USER/NAME", pretrained=True)` makes the model once fullfield is imported.
    """
    own = {
        "library_name": "fullfield",
        "fullfield_version": __version__,
        "task": facts.task,
        "form": facts.form,
        "preprocess": dict(facts.preprocess),
    }
    if facts.task != "classify" or facts.form != "training":
        head = {"head": facts.head, "head_arguments": dict(facts.head_arguments)} if facts.head else {}
        net = {"backbone": facts.architecture, "backbone_arguments": dict(facts.arguments)}
        return own | net | head | {"classes": list(facts.classes)}
    p = facts.preprocess
    side = p["image_size"]
    arguments = {key: value for key, value in facts.arguments.items() if key != "num_classes"}
    return own | {
        "architecture": facts.architecture,
        "num_classes": len(facts.classes),
        "label_names": list(facts.classes),
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [p["channels"], side, side],
            "crop_pct": p["crop_share"],
            "interpolation": p["interpolation"],
            "mean": list(p["mean"]),
            "std": list(p["std"]),
        },
    }


def _head(facts: SharedFacts, repository: str, license: str | None, data: str | None) -> dict[str, Any]:  # noqa: A002
    """Return the YAML's values."""
    head: dict[str, Any] = {
        "library_name": "fullfield",
        "license": license or UNKNOWN,
        "pipeline_tag": _PIPELINES[facts.task],
        "tags": sorted({"fullfield", "model_hub_mixin", facts.architecture, *([facts.head] if facts.head else [])}),
    }
    found = facts.evaluated
    if found is None:
        return head
    metrics = [
        {"type": kind, "name": name, "value": round(value, 6)}
        for name, kind, value in ((*_FIGURES[key], value) for key, value in found.figures.items())
        if kind
    ]
    if metrics:
        dataset = {"name": data or "the author's images", "type": "imagefolder", "split": found.split}
        result = {"task": {"type": _PIPELINES[facts.task]}, "dataset": dataset, "metrics": metrics}
        head["metrics"] = sorted({metric["type"] for metric in metrics})
        head["model-index"] = [{"name": repository.rpartition("/")[2], "results": [result]}]
    return head


def _what(facts: SharedFacts) -> str:
    classes = _count(facts.classes, "class", "classes")
    return f"A {_NOUNS[facts.task]} of {classes}: {_plain(facts.name)}, shared with Fullfield {__version__}."


def _usage(facts: SharedFacts, repository: str) -> str:
    attribute, what = _ANSWERS[facts.task]
    return (
        "## Use\n\n"
        f"```console\n$ pip install 'fullfield[{_EXTRAS[facts.task]}]'\n```\n\n"
        "```python\nimport fullfield\n\n"
        f'model = fullfield.from_pretrained("{repository}")\n'
        'for prediction in fullfield.predict(model, ["photo.jpg"]):\n'
        f"    print(prediction.{attribute})\n```\n\n"
        f"`{attribute}` is {what}. `model.model` is the PyTorch module, `model.classes` and `model.preprocess` are what"
        " belongs to it.\n\n"
        "The weights are one safetensors file that also says how the model is built. Loading it executes nothing that"
        " was downloaded."
    )


def _classes(facts: SharedFacts) -> str:
    names = ", ".join(_plain(name) for name in facts.classes[:_LISTED])
    more = len(facts.classes) - _LISTED
    return f"## Classes\n\n{names}" + (f", and {more:,} more in {CONFIG}" if more > 0 else "") + "."


def _training(facts: SharedFacts, data: str | None) -> str:
    told = f"Trained on {_plain(data)}." if data else "Trained on: *to be filled in by the author*."
    started = f" It started from {facts.started_from}." if facts.started_from else ""
    used = ((name, value) for name, value in facts.settings.items() if value not in (0, False, "auto"))
    rows = [(f"`{name}`", _value(value)) for name, value in used if (name, value) != ("repeats", 1)]
    rows += [(f"`{key}` of the net", _value(value)) for key, value in facts.arguments.items() if value is not None]
    rows += [(f"`{key}` of the head", _value(value)) for key, value in facts.head_arguments.items()]
    if not rows:
        return f"## Training\n\n{told}{started}"
    settings = "Settings as `fullfield train` takes them; what is not named was off."
    return f"## Training\n\n{told}{started} {settings}\n\n{_table(('setting', 'value'), rows)}"


def _figures(facts: SharedFacts) -> str:
    found = facts.evaluated
    if found is None:
        return "## Figures\n\nNone were measured."
    rows = [(_FIGURES[key][0], _figure(key, value)) for key, value in found.figures.items()]
    of = "" if found.images is None else f" ({_count(range(found.images), 'image', 'images')})"
    text = f"## Figures\n\nOn {_SPLITS[found.split]}{of}, by `fullfield eval`.\n\n{_table(('figure', 'value'), rows)}"
    return text + _worst(facts, found)


def _worst(facts: SharedFacts, found: Evaluated) -> str:
    """Return the figures of single classes, the lowest first, where that is what their mean hides."""
    if not found.per_class:
        return ""
    order = sorted(found.per_class.items(), key=lambda pair: pair[1])
    rows = [(_plain(name), f"{value:.1%}") for name, value in order[:_LISTED]]
    return f"\n\n{_table(('class', _PER_CLASS[facts.task] + ', lowest first'), rows)}"


def _size(facts: SharedFacts) -> str:
    channels, height, width = facts.macs_size
    of = " of the backbone" if facts.task == "detect" else ""
    return (
        f"## Size\n\n{facts.params / 1e6:.2f} M parameters, {facts.macs / 1e9:.3f} G MACs{of} for an image of"
        f" {channels}×{height}×{width} (channels, height, width)."
    )


def _limits(facts: SharedFacts) -> str:
    return (
        f"## Limits\n\n- {_LIMITS[facts.task]}\n"
        "- The figures are of images like those it was trained on. Measure it on yours: `fullfield eval` takes it.\n"
        "- What it is for, and what not: *to be filled in by the author*."
    )


def _licence(license: str | None) -> str:  # noqa: A002
    told = f"`{_plain(license)}`" if license else "*To be filled in by the author, here and in the head of this file.*"
    return f"## Licence\n\n{told}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _figure(key: str, value: float) -> str:
    return f"{value:.3f}" if key == "loss" else f"{value:.1%}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else _plain(str(value))


def _count(of: Sequence[Any], one: str, many: str) -> str:
    return f"{len(of):,} {one if len(of) == 1 else many}"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, in one line: names of classes are anyone's words."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>|#~&$!])", r"\\\1", line)
