"""Which models export to ONNX and OpenVINO, and how far the files differ from PyTorch.

    python studies/export/run.py --images IMAGES            -> results.csv beside this file (hours on two cores)
    python studies/export/run.py --images IMAGES --timm 20  also a sample of timm's nets, drawn with --seed
    python studies/export/run.py --images IMAGES --models runs/flowers --precisions fp32 int8
    python studies/export/run.py --images IMAGES --models efficientnetv2_s --fit-norms
    python studies/export/run.py --table                    fills README.md from the stored file

Each export runs in a process of its own, so that its peak memory is its own and a crash costs one row. A row is
written as soon as it is known, and rows that are there are not made again (--again makes them again). Nothing is
timed. Weights are random unless a model is a run folder or a weights file; the column `trained` says which. A run is
compared on its own held-out images, and its int8 fitted to its own training images. A deep random net may magnify
rounding until float32 says nothing; --fit-norms gives its BatchNorms the statistics of the photographs, as a trained
net has those of its images.
"""

import argparse
import csv
import fnmatch
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch

import fullfield
from fullfield.data.image import read_image
from fullfield.data.transforms import eval_transform
from fullfield.deploy.export import export
from fullfield.errors import FullfieldError
from fullfield.measure.environment import environment
from fullfield.tasks.answers import find_images
from fullfield.tasks.open import open_any
from fullfield.tasks.source import checkpoint_metadata, open_model

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
PAGE = HERE / "README.md"
OURS = ("racnn_*", "replknet_31b", "unireplknet_t", "moganet_small", "slak_tiny")
FORMATS = ("onnx", "openvino")
LARGEST = 100e6  # parameters of a net of timm: more take too long here
KEY = ("model", "format", "precision", "seed", "norms")
COLUMNS = [
    *KEY,
    "trained",
    "status",
    "difference",
    "agreement",
    "images",
    "distinct",
    "sizes",
    "any_size",
    "any_batch",
    "megabytes",
    "params",
    "seconds",
    "peak_memory_mb",
    "engine",
    "reason",
]

Row = dict[str, str]


def our_models() -> list[str]:
    """Return the names of Fullfield's nets that are looked at."""
    names = [info.name for info in fullfield.list_models() if info.source == "fullfield"]
    return [name for pattern in OURS for name in sorted(names) if fnmatch.fnmatch(name, pattern)]


def timm_models(count: int, seed: int) -> list[str]:
    """Draw nets of timm with at most `LARGEST` parameters, each of another family of names."""
    ours = {info.name for info in fullfield.list_models() if info.source == "fullfield"}
    names = sorted(set(timm.list_models()) - ours)
    random.Random(seed).shuffle(names)
    chosen: dict[str, str] = {}
    for name in names:
        if len(chosen) == count:
            break
        family = name.split("_")[0]
        if family in chosen or name.startswith("test_"):
            continue
        with torch.device("meta"):
            try:
                params = sum(p.numel() for p in timm.create_model(name).parameters())
            except RuntimeError:  # some can't be built without values
                continue
        if params <= LARGEST:
            chosen[family] = name
    return list(chosen.values())


def with_fitted_norms(model: str, images: list[Path], folder: Path) -> Path:
    """Write a registered net with random weights and the norms' statistics of at most 64 images; return the file."""
    opened = open_model(model, device="cpu")
    for module in opened.model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the mean over batches, not a moving one
    transform = eval_transform(opened.preprocess)
    chosen = images[:: max(1, len(images) // 64)][:64]
    with torch.no_grad():
        for start in range(0, len(chosen), 16):
            opened.model.train()(torch.stack([transform(read_image(path)) for path in chosen[start : start + 16]]))
    metadata = checkpoint_metadata(opened.classes, opened.preprocess)
    return fullfield.save(opened.model, folder / f"{model}.safetensors", metadata)


def one(model: str, to: str, precision: str, arguments: argparse.Namespace, images: list[Path]) -> Row:
    """Export one model and return its row; runs in the process of its own."""
    seed = arguments.seed
    calibrate = [arguments.calibrate] if arguments.calibrate else None
    torch.manual_seed(seed)
    params = sum(p.numel() for p in open_any(model, device="cpu").model.parameters())
    torch.manual_seed(seed)
    start = time.perf_counter()
    row: Row = key(model, to, precision, arguments) | {"params": str(params)}
    with tempfile.TemporaryDirectory() as folder:
        source = with_fitted_norms(model, images, Path(folder)) if arguments.fit_norms else model
        compared = None if Path(model).is_dir() else images
        try:
            done = export(
                source, to, folder, precision=precision, images=compared, calibration=calibrate, timing_seconds=0
            )
        except FullfieldError as error:
            return row | {"status": "refused", "reason": str(error)}
    found = done.verification
    if found is None:
        raise AssertionError("an export is verified unless told otherwise")
    agreed = found.agreement
    status = {True: "passed", False: "failed", None: "not run"}[found.passed]
    return row | {
        "trained": str(found.trained and not arguments.fit_norms),
        "status": status,
        "difference": "" if found.difference is None else f"{found.difference:.2e}",
        "agreement": "" if agreed is None else f"{agreed.share:.4f}",
        "images": "" if agreed is None else str(agreed.images),
        "distinct": "" if agreed is None else str(agreed.distinct),
        "sizes": " ".join(f"{c.batch}x{c.height}x{c.width}{'p' if c.padded else ''}" for c in found.checked),
        "any_size": str(found.height is None and found.width is None),
        "any_batch": str(found.batch is None),
        "megabytes": f"{found.megabytes:.2f}",
        "seconds": f"{time.perf_counter() - start:.0f}",
        "engine": found.engine or "",
        "reason": found.not_run or "; ".join(found.problems),
    }


def peak_memory_mb() -> str:
    """Return the peak resident memory of this process, MB; nothing where the system is not Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((f"{float(line.split()[1]) / 1e3 * 1.024:.0f}" for line in lines if line.startswith("VmHWM:")), "")


def in_a_process(arguments: argparse.Namespace, model: str, to: str, precision: str) -> Row:
    """Return the row of one export, whatever becomes of its process."""
    words = [sys.executable, __file__, "--one", model, to, precision, "--seed", str(arguments.seed)]
    words += ["--images", str(arguments.images), "--count", str(arguments.count), "--threads", str(arguments.threads)]
    if precision == "int8" and arguments.calibrate:
        words += ["--calibrate", str(arguments.calibrate)]
    if arguments.fit_norms:
        words += ["--fit-norms"]
    known = key(model, to, precision, arguments)
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=arguments.timeout)  # noqa: S603
    except subprocess.TimeoutExpired:
        return known | {"status": "stopped", "reason": f"not done after {arguments.timeout} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return known | {"status": "crashed", "reason": last[:300]}
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def stored() -> list[Row]:
    """Return the rows that are there."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def store(rows: list[Row]) -> None:
    """Write all rows, those of the environment too."""
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *environment(), "commit"], restval="")
        writer.writeheader()
        writer.writerows(rows)


def commit() -> str:
    """Return the repository's commit, with "-dirty" if files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)  # noqa: S603
    return told.stdout.strip() or "unknown"


def key(model: str, to: str, precision: str, arguments: argparse.Namespace) -> Row:
    """Return what a row is known by."""
    norms = "fitted" if arguments.fit_norms else ""
    return {"model": model, "format": to, "precision": precision, "seed": str(arguments.seed), "norms": norms}


def key_of(row: Row) -> tuple[str, ...]:
    return tuple(row.get(name, "") for name in KEY)


def table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown, a model a line."""
    lines = ["| model | precision | format | sizes | difference | top-1 | answers | MB | |", "|" + "---|" * 9]
    for row in rows:
        share = f"{float(row['agreement']):.2%} of {row['images']}" if row["agreement"] else "–"
        sizes = "any" if row["any_size"] == "True" else row["sizes"].replace("p", "") or "–"
        weights = " (trained)" if row["trained"] == "True" else " (norms fitted)" if row.get("norms") else ""
        cells = [f"`{row['model']}`{weights}", row["precision"], row["format"], sizes, row["difference"] or "–", share]
        state = row["status"] + (f": {row['reason']}" if row["reason"] else "")
        lines.append("| " + " | ".join([*cells, row["distinct"] or "–", row["megabytes"] or "–", state]) + " |")
    return "\n".join(lines)


def filled(page: str, rows: list[Row]) -> str:
    """Return the page with the table of the rows between `<!-- results -->` and `<!-- end -->`."""
    head, _, rest = page.partition("<!-- results -->\n")
    return f"{head}<!-- results -->\n\n{table(rows)}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="photographs whose answers are compared")
    parser.add_argument("--count", type=int, default=200, help="how many of them, evenly spread")
    parser.add_argument("--models", nargs="*", help="names, run folders or weights files in place of our nets")
    parser.add_argument("--timm", type=int, default=0, help="so many nets of timm too")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--calibrate", type=Path, help="images that int8 is fitted to")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the sample of timm's nets")
    parser.add_argument("--fit-norms", action="store_true", help="random nets with BatchNorms fitted to the images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one export")
    parser.add_argument("--again", action="store_true", help="make rows again that are there")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), stored()), encoding="utf-8")
        return
    if arguments.images is None:
        parser.error("--images FOLDER: the photographs whose answers are compared")
    torch.set_num_threads(arguments.threads)
    files = find_images([arguments.images])
    files = (
        [files[n * len(files) // arguments.count] for n in range(arguments.count)]
        if arguments.count < len(files)
        else files
    )
    if arguments.one:
        model, to, precision = arguments.one
        row = one(model, to, precision, arguments, files)
        print(json.dumps(row | {"peak_memory_mb": peak_memory_mb()}))
        return
    models = arguments.models if arguments.models is not None else our_models()
    models += timm_models(arguments.timm, arguments.seed)
    rows = stored()
    for model in models:
        for precision in arguments.precisions:
            for to in arguments.formats:
                known = key_of(key(model, to, precision, arguments))
                if not arguments.again and any(key_of(row) == known for row in rows):
                    continue
                row = in_a_process(arguments, model, to, precision) | environment() | {"commit": commit()}
                rows = [*(old for old in rows if key_of(old) != known), row]
                store(rows)
                print(f"{model} {to} {precision}: {row['status']} {row.get('difference', '')} {row.get('reason', '')}")
    print(table([{name: row.get(name, "") for name in COLUMNS} for row in rows]))


if __name__ == "__main__":
    main()
