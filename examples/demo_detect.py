"""Detection in a few minutes: train FCOS on RaCNN to find the blood cells in smears, evaluate, predict, report.

    python examples/demo_detect.py --out demo-detect

Everything here is also a command: fullfield train, eval, predict.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

import fullfield
from fullfield.data import sample_path
from fullfield.tasks.open import open_any
from fullfield.tasks.save_any import save_any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-detect"), help="folder for the run and the pictures")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224, help="shorter side, pixels")
    parser.add_argument("--model", default="racnn_pico")
    parser.add_argument("--model-args", nargs="*", default=(), metavar="KEY=VALUE")
    arguments = parser.parse_args()

    start = time.perf_counter()
    result = fullfield.train(
        "sample:blood_cells_boxes",
        model=arguments.model,
        model_args=tuple(arguments.model_args),
        head="fcos",
        head_args=("fpn_channels=64", "convs=2"),  # a light head for a CPU
        epochs=arguments.epochs,
        image_size=arguments.image_size,
        batch_size=4,
        lr=1e-3,
        scale_jitter="none",  # all smears have one scale, which tells the cells apart
        vflip=True,  # a cell has no top
        out=str(arguments.out / "run"),
        overwrite=True,
    )
    minutes = (time.perf_counter() - start) / 60

    images = sorted((sample_path("blood_cells_boxes") / "images").glob("*.jpg"))
    test = {image.path.name for image in result.evaluation.images}
    chosen = [image for image in images if image.name in test][:6]
    opened = open_any(result.run)
    predictions = fullfield.predict(opened, chosen, threshold=0.5)
    pictures = save_any(opened, predictions, arguments.out / "predictions")

    print(f"\nTrained and evaluated in {minutes:.1f} minutes.")
    for prediction in predictions:
        counts = Counter(detection.name for detection in prediction.detections).most_common()
        found = ", ".join(f"{count} {name}" for name, count in counts) or "nothing"
        print(f"  {prediction.path.name}  ->  {found}")
    held_out = result.evaluation.result
    box = held_out.box
    print(f"Held-out AP50 {box.ap50:.1%}, AP {box.ap:.1%}, on {held_out.images} images.")
    for name, ap in zip(opened.classes, box.per_class, strict=True):
        print(f"  AP of {name}: {ap:.1%}")
    print(f"\nLook at  {result.report}  (open it in a browser)\nand at   {pictures}")


if __name__ == "__main__":
    main()
