"""Fullfield in two minutes: train RaCNN on the blood cells that come with it, evaluate, predict, report.

    python examples/demo.py --out demo

Everything here is also a command: fullfield train, eval, predict.
"""

import argparse
import time
from pathlib import Path

import fullfield
from fullfield.data import sample_path
from fullfield.tasks import save_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the run and the pictures")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", default="racnn_pico")
    parser.add_argument("--model-args", nargs="*", default=(), metavar="KEY=VALUE")
    arguments = parser.parse_args()

    start = time.perf_counter()
    result = fullfield.train(
        "sample:blood_cells",
        model=arguments.model,
        model_args=tuple(arguments.model_args),
        epochs=arguments.epochs,
        scale_min=0.6,  # a platelet is small: a harder crop cuts it away
        vflip=True,  # a cell has no top
        out=str(arguments.out / "run"),
        overwrite=True,
    )
    minutes = (time.perf_counter() - start) / 60

    test = sample_path("blood_cells") / "test"
    images = [sorted((test / name).glob("*.jpg"))[0] for name in ("Platelets", "RBC", "WBC")]
    predictions = fullfield.predict(result.run, images)
    pictures = save_predictions(predictions, arguments.out / "predictions")

    print(f"\nTrained and evaluated in {minutes:.1f} minutes.")
    for prediction in predictions:
        name, probability = prediction.labels[0]
        print(f"  {prediction.path.parent.name}/{prediction.path.name}  ->  {name} ({probability:.0%})")
    held_out = result.evaluation.result
    print(f"Held-out top-1 {held_out.top1:.1%}, majority class {held_out.majority:.1%}.")
    print(f"\nLook at  {result.report}  (open it in a browser)\nand at   {pictures}")


if __name__ == "__main__":
    main()
