"""Count the costs of the models that `fullfield models` lists and store them with the package.

    python benchmarks/listed_costs.py        -> src/fullfield/measure/listed_costs.csv (about a minute)

Counts are exact and the same on every machine: the models are built without memory for their weights.
"""

from pathlib import Path

from rich.progress import track

import fullfield
from fullfield.measure import cost
from fullfield.measure.tables import write_rows

STORED = Path(__file__).parents[1] / "src" / "fullfield" / "measure" / "listed_costs.csv"


def main() -> None:
    rows = []
    for info in track(fullfield.list_models(), "counting"):
        counted = cost(info.name)
        channels, height, width = counted.input_size
        rows.append(
            {
                "model": info.name,
                "params": counted.params,
                "macs": counted.macs,
                "flops": counted.flops,
                "channels": channels,
                "height": height,
                "width": width,
            }
        )
    print(f"written to {write_rows(rows, STORED)}")


if __name__ == "__main__":
    main()
