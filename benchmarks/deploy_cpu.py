"""Latency of one image through PyTorch, ONNX Runtime and OpenVINO on this CPU, in one run.

    python benchmarks/deploy_cpu.py                     -> benchmarks/results/deploy_cpu.csv
    python benchmarks/deploy_cpu.py --nets racnn_pico --seconds 5 --out somewhere.csv

Per net: eager PyTorch as `create_model` gives it, in both memory layouts, the same compiled by torch.compile, and the
files that `fullfield export --size 224 --batch 1` writes in fp32 and int8 for both runtimes, and in fp32 for any size,
each through the engine that `predict` and `serve` use. Forms of one net take turns, round after round, and a ratio to
the faster eager layout is taken inside a round (see `fullfield.measure.timing`). All weights are random, which changes
no time; int8 is fitted to the embedded sample. Every file is compared with PyTorch before it is timed, and the
difference is in the table.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment

import fullfield
from fullfield.data.sample import sample_path
from fullfield.deploy.engine import open_engine
from fullfield.deploy.export import export
from fullfield.measure.runners import Setting, make_call
from fullfield.measure.tables import write_rows
from fullfield.measure.timing import Samples, ratio, time_interleaved

NETS = ("racnn_pico", "racnn_tiny", "convnext_tiny", "resnet50")
PYTORCH = {
    "eager": Setting(),
    "eager channels_last": Setting(layout="channels_last"),
    "eager fused": Setting(fused=True),
    "eager fused channels_last": Setting(fused=True, layout="channels_last"),
    "compile": Setting(backend="compile"),
    "compile channels_last": Setting(backend="compile", layout="channels_last"),
}
FILES = {  # format, precision, whether it takes any size
    "onnxruntime": ("onnx", "fp32", False),
    "onnxruntime any size": ("onnx", "fp32", True),
    "openvino": ("openvino", "fp32", False),
    "openvino any size": ("openvino", "fp32", True),
    "onnxruntime int8": ("onnx", "int8", False),
    "openvino int8": ("openvino", "int8", False),
}
EAGER = ("eager", "eager channels_last")
SIZE = 224
RESULTS = Path(__file__).parent / "results" / "deploy_cpu.csv"


def pytorch_calls(net: str) -> dict[str, Callable[[], Any]]:
    """Return the calls of PyTorch by the name of the form."""
    torch.manual_seed(0)
    model = fullfield.create_model(net).eval()
    fusable = callable(getattr(model, "fuse", None))
    return {form: make_call(model, setting) for form, setting in PYTORCH.items() if fusable or not setting.fused}


def file_calls(net: str, folder: Path, threads: int) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Export a net in all forms; return the calls and what the verifications found, by the name of the form."""
    pixels = np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)
    calls: dict[str, Callable[[], Any]] = {}
    verified = {}
    for form, (to, precision, any_size) in FILES.items():
        torch.manual_seed(0)
        options: dict[str, Any] = {"precision": precision, "timing_seconds": 0, "overwrite": True}
        options |= {} if any_size else {"size": (SIZE, SIZE), "batch": 1}
        options |= {"calibration": sample_path("blood_cells")} if precision == "int8" else {}
        done = export(net, to, folder, **options)
        engine = open_engine(done.path, threads=threads)
        calls[form] = lambda engine=engine: engine.run(pixels)
        verified[form] = done.verification
    return calls, verified


def rows_of(net: str, samples: dict[str, Samples], verified: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row a form, with its speed over the faster eager form."""
    eager = min(EAGER, key=lambda form: samples[form].median_s)
    rows = []
    for form, taken in samples.items():
        found, over = verified.get(form), ratio(taken, samples[eager])
        rows.append(
            {
                "model": net,
                "form": form,
                "batch": 1,
                "side": SIZE,
                "p50_ms": round(taken.percentile_ms(50), 3),
                "p90_ms": round(taken.percentile_ms(90), 3),
                "ratio_to_eager": round(over.median, 3),
                "ratio_p10": round(over.low, 3),
                "ratio_p90": round(over.high, 3),
                "rounds": over.rounds,
                "eager_layout": "channels_last" if "channels_last" in eager else "nchw",
                "megabytes": None if found is None else found.megabytes,
                "difference": None if found is None else f"{found.difference:.1e}",
                "engine": None if found is None else found.engine,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each net, all forms together")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = environment()
    rows: list[dict[str, Any]] = []
    for net in arguments.nets:
        with tempfile.TemporaryDirectory() as folder:
            files, verified = file_calls(net, Path(folder), arguments.threads)
            samples = time_interleaved(pytorch_calls(net) | files, seconds=arguments.seconds, min_rounds=7)
        rows += [row | about for row in rows_of(net, samples, verified)]
        write_rows(rows, arguments.out)
    print(f"{'model':15} {'form':26} {'ms':>8} {'speed to eager':>22} {'MB':>8} {'difference':>11}")
    for row in rows:
        spread = f"{row['ratio_to_eager']:.2f} ({row['ratio_p10']:.2f}-{row['ratio_p90']:.2f})"
        size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        print(
            f"{row['model']:15} {row['form']:26} {row['p50_ms']:8.1f} {spread:>22} {size:>8}"
            f" {row['difference'] or '':>11}"
        )
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
