"""Every backbone of Fullfield on this CPU at 224x224, beside the same net in its official form, in one run.

    python benchmarks/backbones_cpu.py              -> benchmarks/results/backbones_cpu.csv (more than an hour)
    python benchmarks/backbones_cpu.py --nets 'replknet_31b' 'slak*' --out somewhere.csv
    python benchmarks/backbones_cpu.py --table      prints the table of docs/speed.md from the stored file

The official form is the net as its authors' code runs it where their compiled operator is not to be had: every
depthwise convolution is plain `nn.Conv2d`, in NCHW, nothing merged, and layer norms hand on NCHW maps. Ours are timed
in both layouts, as trained and fused. All forms of one net and batch size run in turn, round after round, and ratios
are taken inside a round (see `fullfield.measure.timing`). Rows are written after every net; a run that was stopped
goes on with `--resume`. All weights are random.
"""

import argparse
import copy
import csv
import fnmatch
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment
from timm.layers import LayerNorm2d
from torch import Tensor, nn

import fullfield
from fullfield.measure import cost
from fullfield.measure.memory import peak_memory_mb
from fullfield.measure.runners import Setting, make_call
from fullfield.measure.tables import write_rows
from fullfield.measure.timing import Samples, ratio, time_interleaved

OFFICIAL = "official"
FORWARD = {
    OFFICIAL: Setting(),
    "nchw": Setting(),
    "channels_last": Setting(layout="channels_last"),
    "nchw fused": Setting(fused=True),
    "channels_last fused": Setting(layout="channels_last", fused=True),
}
TRAIN = {
    OFFICIAL: Setting(mode="train"),
    "nchw": Setting(mode="train"),
    "channels_last": Setting(mode="train", layout="channels_last"),
}
VARIABLE = "FULLFIELD_PATH_DEPTHWISE_CONV2D"
SIZE = 224
OTHER_SIZE = "_384"  # such variants are nets that are here already, for larger images
LARGE = 100e6  # parameters; larger nets are timed forward, one image a call
RESULTS = Path(__file__).parent / "results" / "backbones_cpu.csv"


def in_official_layout(model: nn.Module) -> nn.Module:
    """Return a copy whose 2-D layer norms give NCHW maps, as those of the authors do; timm's give channels_last."""

    def contiguous(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.contiguous()

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, LayerNorm2d):
            module.register_forward_hook(contiguous)
    return model


def with_plain_convolutions(call: Callable[[], object]) -> Callable[[], object]:
    """Return a call that runs with every depthwise convolution on PyTorch's own path."""

    def plain() -> None:
        os.environ[VARIABLE] = "native"
        try:
            call()
        finally:
            del os.environ[VARIABLE]

    return plain


def time_net(name: str, mode: str, batch: int, seconds: float, rounds: int) -> list[dict[str, object]]:
    """Time all forms of a net and return one row a form."""
    torch.manual_seed(0)
    model = fullfield.create_model(name)
    counted = cost(name, image_size=SIZE)
    forms = {
        form: Setting(mode, batch, (SIZE, SIZE), setting.layout, fused=setting.fused)
        for form, setting in (FORWARD if mode == "forward" else TRAIN).items()
    }
    calls = {form: make_call(model, setting) for form, setting in forms.items()}
    calls[OFFICIAL] = with_plain_convolutions(make_call(in_official_layout(model), forms[OFFICIAL]))
    del model
    peaks = {}
    for form, call in calls.items():
        call()
        peaks[form] = peak_memory_mb(call)
    samples = time_interleaved(calls, seconds=seconds, min_rounds=rounds, warm_up=0)
    ours = {form: taken for form, taken in samples.items() if form != OFFICIAL}
    fastest = min(ours, key=lambda form: ours[form].median_s)
    return [
        row(name, mode, batch, form, taken, samples[OFFICIAL], peaks[form])
        | {"fastest": form == fastest, "params": counted.params, "macs": counted.macs}
        for form, taken in samples.items()
    ]


def row(
    name: str, mode: str, batch: int, form: str, taken: Samples, official: Samples, peak: float | None
) -> dict[str, object]:
    """Return the figures of one form."""
    speed = ratio(taken, official)
    return {
        "model": name,
        "mode": mode,
        "batch": batch,
        "form": form,
        "images_per_s": f"{batch / taken.median_s:.3f}",
        "ms": f"{taken.median_s * 1e3:.2f}",
        "peak_memory_mb": "" if peak is None else f"{peak:.0f}",
        "ratio_to_official": f"{speed.median:.3f}",
        "ratio_p10": f"{speed.low:.3f}",
        "ratio_p90": f"{speed.high:.3f}",
        "rounds": speed.rounds,
    }


def table(rows: list[dict[str, str]]) -> list[str]:
    """Return the lines of the Markdown table: the fastest of our forms beside the official one."""
    lines = [
        "| model | images/s, batch 1 | images/s, batch 8 | MB, batch 8 | forward | training step |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["model"] for r in rows):
        found = {(r["mode"], int(r["batch"])): r for r in rows if r["model"] == name and r["fastest"] == "True"}
        one, eight = found.get(("forward", 1)), found.get(("forward", 8))
        train = next((r for (mode, _), r in found.items() if mode == "train"), None)
        best = eight or one
        cells = [
            f"`{name}`",
            _number(one, "images_per_s"),
            _number(eight, "images_per_s"),
            _number(eight, "peak_memory_mb", "{:.0f}"),
            _number(best, "ratio_to_official", "{:.2f} ×"),
            _number(train, "ratio_to_official", "{:.2f} ×"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(found: dict[str, str] | None, column: str, style: str = "{:.2f}") -> str:
    return "–" if found is None or not found[column] else style.format(float(found[column]))


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a stored file, all text."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=["*"], help="shell patterns of our models' names")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each net, mode and batch size")
    parser.add_argument("--rounds", type=int, default=3, help="at least so many rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="keep the nets that the file has")
    parser.add_argument("--table", action="store_true", help="print the table of the stored file and stop")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n".join(table(read(arguments.out))))
        return
    torch.set_num_threads(arguments.threads)
    about = environment()
    listed = [info.name for info in fullfield.list_models() if info.source == "fullfield"]
    ours = [name for name in listed if not name.endswith(OTHER_SIZE)]
    names = [name for name in ours if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.nets)]
    rows: list[dict[str, object]] = [*read(arguments.out)] if arguments.resume and arguments.out.exists() else []
    done = {str(r["model"]) for r in rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        if name in done:
            continue
        large = cost(name).params > LARGE
        groups = [("forward", 1)] if large else [("forward", 1), ("forward", 8), ("train", 4)]
        for mode, batch in groups:
            print(f"[{number + 1}/{len(names)}] {name}: {mode}, batch {batch}", file=sys.stderr)
            found = time_net(name, mode, batch, arguments.seconds, arguments.rounds)
            rows += [r | about for r in found]
        write_rows(rows, arguments.out)
    print("\n".join(table(read(arguments.out))))


if __name__ == "__main__":
    main()
