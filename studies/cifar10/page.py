"""The study's page and figure, made from results.csv and curves.csv, so that they can say nothing else.

python studies/cifar10/page.py               -> README.md filled, docs/images/cifar10.png drawn
"""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from nets import NETS

import train
from train import Row

PAGE = Path(__file__).parent / "README.md"
FIGURE = Path(__file__).parents[2] / "docs" / "images" / "cifar10.png"
COLOURS = dict(zip(NETS, ("#0b6e99", "#c8553d"), strict=True))


def of(net: str, rows: Iterable[Row]) -> list[Row]:
    """Return the rows of a net."""
    return [row for row in rows if row["model"] == net]


def percents(rows: Iterable[Row], column: str = "top1") -> list[float]:
    """Return shares as percentages."""
    return [100 * float(row[column]) for row in rows]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table whose first line is its heading."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def nets_table(rows: Sequence[Row]) -> str:
    """What is compared: parameters and MACs."""
    lines = [["net", "parameters (M)", "MACs (M)", "arguments"]]
    for net, (name, arguments) in NETS.items():
        row = of(net, rows)[0]
        counts = [f"{int(row['params']) / 1e6:.3f}", f"{int(row['macs']) / 1e6:.3f}"]
        lines.append([net, *counts, f"`{name} {' '.join(arguments)}`"])
    return markdown(lines)


def results_table(rows: Sequence[Row]) -> str:
    """Top-1 of every seed, their mean and sample standard deviation, and what a run took."""
    seeds = sorted({row["seed"] for row in rows}, key=int)
    times = ["longest run (min)", "processor time a run (min)"]
    lines = [["net", *(f"seed {seed} (%)" for seed in seeds), "mean ± deviation (%)", *times]]
    for net in NETS:
        top1 = percents(of(net, rows))
        minutes = statistics.mean(float(row["cpu_minutes"]) for row in of(net, rows))
        spread = f"{statistics.mean(top1):.1f} ± {statistics.stdev(top1):.1f}"
        longest = max(float(row["minutes"]) for row in of(net, rows))
        lines.append([net, *(f"{value:.1f}" for value in top1), spread, f"{longest:.1f}", f"{minutes:.1f}"])
    return markdown(lines)


def verdict(rows: Sequence[Row]) -> str:
    """Return the difference of the nets as sentences: of the means, and whether the seeds overlap."""
    racnn, convnext = (percents(of(net, rows)) for net in NETS)
    difference = statistics.mean(racnn) - statistics.mean(convnext)
    order = "above" if min(racnn) > max(convnext) else "below" if max(racnn) < min(convnext) else None
    seeds = f"Every seed of RaCNN is {order} every seed of the ConvNeXt-like net." if order else "Their seeds overlap."
    times = statistics.mean(float(row["cpu_minutes"]) for row in of("RaCNN", rows)) / statistics.mean(
        float(row["cpu_minutes"]) for row in of("ConvNeXt", rows)
    )
    return (
        f"RaCNN's mean is {abs(difference):.1f} points {'higher' if difference > 0 else 'lower'}. {seeds} It took"
        f" {times:.1f} times the processor time, at the same MACs and for the same images."
    )


def where(rows: Sequence[Row]) -> str:
    """Return the stored environment as a sentence."""
    row = rows[0]
    return (
        f"{row['device']}, {row['cores']} cores, threads of a run: {row['threads']}, torch"
        f" {row['torch']}, Python {row['python']}, {row['date']}, commit {row['commit']}. Each run:"
        f" {row['train_images']} training images, {row['epochs']} epochs, {row['test_images']} test images."
    )


def filled(page: str, rows: Sequence[Row]) -> str:
    """Return the page with what stands between `<!-- nets -->` and `<!-- end -->`, and so on, made from the rows.

    Raises:
        ValueError: A block has no place on the page, or several.
    """
    blocks = {
        "nets": nets_table(rows),
        "results": results_table(rows),
        "verdict": textwrap.fill(verdict(rows), 120),
        "environment": textwrap.fill(where(rows), 120),
    }
    for name, block in blocks.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(place.findall(page)) != 1:
            raise ValueError(f"{PAGE.name} has {len(place.findall(page))} places for {name}; it needs one")
        page = place.sub(lambda found, block=block: f"{found[1]}\n{block}\n\n{found[2]}", page)
    return page


def draw_curves(axes: Axes, curves: Sequence[Row]) -> None:
    """Draw validation top-1 by epoch: the mean over seeds, and a band from the lowest to the highest."""
    for net, colour in COLOURS.items():
        by_epoch: dict[int, list[float]] = {}
        for row in of(net, curves):
            by_epoch.setdefault(int(row["epoch"]), []).append(100 * float(row["val_top1"]))
        epochs, values = list(by_epoch), list(by_epoch.values())
        axes.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2, lw=0)
        axes.plot(epochs, list(map(statistics.mean, values)), color=colour, marker="o", ms=4, label=net)
    axes.set(xlabel="epoch", ylabel="top-1 on 1,000 validation images (%)", title="While training")
    axes.set_xticks(epochs)
    axes.legend(frameon=False)


def draw_finals(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw one dot a seed, and a line at the mean."""
    for place, (net, colour) in enumerate(COLOURS.items()):
        top1 = percents(of(net, rows))
        axes.hlines(statistics.mean(top1), place - 0.2, place + 0.2, color=colour, lw=2)
        axes.plot([place] * len(top1), top1, "o", color=colour, ms=7, alpha=0.7)
    axes.set(ylabel="top-1 on 10,000 test images (%)", title="At the end", xlim=(-0.6, len(COLOURS) - 0.4))
    axes.set_xticks(range(len(COLOURS)), list(COLOURS))


def draw(rows: Sequence[Row], curves: Sequence[Row]) -> None:
    """Draw both parts of the figure."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), width_ratios=(2, 1), layout="constrained")
    draw_curves(left, curves)
    draw_finals(right, rows)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    figure.savefig(FIGURE, dpi=110)
    plt.close(figure)


def main() -> None:
    rows = train.stored(train.RESULTS)
    if left := train.missing(rows):
        raise SystemExit(f"not all runs are done: {left}; run train.py first")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    draw(rows, train.stored(train.CURVES))
    print(f"{PAGE.name} and {FIGURE.name} show {train.RESULTS.name}")


if __name__ == "__main__":
    main()
