"""Write README.md from results.csv: `python studies/dense_heads/page.py`."""

from __future__ import annotations

import csv
from pathlib import Path

from fullfield.files import atomic_write

HERE = Path(__file__).resolve().parent
NAMES = {"ap50": "AP50", "mask_ap50": "mask AP50", "miou": "mIoU"}
DATA = {
    "bccd_coco": "blood cells, COCO",
    "voc": "blood cells, Pascal VOC",
    "yolo": "blood cells, YOLO",
    "nuclei": "nuclei (120 images), COCO",
    "camvid11": "CamVid, mask folder",
}
HEAD = """# Every head learns, from every form of annotation

All with `racnn_pico` from random weights on a CPU, one run each (`python studies/dense_heads/train.py`, seed 0); the
page is `python studies/dense_heads/page.py`. "First" is the validation part after the first epoch, "best" the best
of all; "held out" is the test part of the best weights, or the validation part where there is no test part. Runs of a
few minutes say that a head works, not how good it is; one seed says nothing of small differences between heads.
"""


def percent(share: str) -> str:
    """Return a share as text in percent, a dash where there is none."""
    return f"{100 * float(share):.1f} %" if share else "–"


def table(rows: list[dict[str, str]]) -> str:
    """Return the runs as a Markdown table."""
    heads = ("data", "head", "side", "epochs", "figure", "first", "best", "held out", "minutes", "CPU minutes")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        held_out = f"{percent(row['held_out_figure'])} ({row['held_out']})"
        if row["majority_miou"]:
            held_out += f", majority {percent(row['majority_miou'])}"
        cells = (
            *(DATA[row["data"]], row["head"], f"{row['image_size']} px", row["epochs"], NAMES[row["figure"]]),
            *(percent(row["first"]), percent(row["best"]), held_out, row["minutes"], row["cpu_minutes"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """Return the text of README.md."""
    with (HERE / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    long = [row for row in rows if row["run"].endswith("-long")]
    short = [row for row in rows if not row["run"].endswith("-long")]
    parts = [HEAD, "## Minutes of training\n", table(long), "", "## A short run of each\n", table(short), ""]
    devices = sorted({(row["device"], row["threads"], row["torch"], row["date"]) for row in rows})
    told = "; ".join(
        f"{device}, {threads} thread(s), torch {torch}, {date}" for device, threads, torch, date in devices
    )
    parts.append(f"Two runs at a time, on a machine that did other work as well: {told}.")
    return "\n".join(parts) + "\n"


def main() -> None:
    with atomic_write(HERE / "README.md") as partial:
        partial.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
