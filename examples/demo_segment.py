"""Segmentation in a few minutes: train U-Net on RaCNN to tell nuclei from background, evaluate, predict, report.

    python examples/demo_segment.py --out demo-segment

Everything here is also a command: fullfield train, eval, predict.
"""

import argparse
import time
from pathlib import Path

import fullfield
from fullfield.data import sample_path
from fullfield.tasks.open import open_any
from fullfield.tasks.save_any import save_any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-segment"), help="folder for the run and the pictures")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=128, help="side of the squares to train on, pixels")
    parser.add_argument("--model", default="racnn_pico")
    parser.add_argument("--model-args", nargs="*", default=(), metavar="KEY=VALUE")
    arguments = parser.parse_args()

    start = time.perf_counter()
    result = fullfield.train(
        "sample:nuclei",
        model=arguments.model,
        # Few images are coloured and bright, far from what BatchNorm has averaged: without LayerScale such an image
        # overflowed the net after two epochs.
        model_args=("layer_scale=0.1", *arguments.model_args),
        head="unet",
        head_args=("channels=64",),  # a light head for a CPU
        epochs=arguments.epochs,
        image_size=arguments.image_size,
        batch_size=8,
        lr=1e-3,
        scale_jitter="multi",  # the largest nuclei are much larger than the smallest already
        vflip=True,  # a nucleus has no top
        out=str(arguments.out / "run"),
        overwrite=True,
    )
    minutes = (time.perf_counter() - start) / 60

    images = sorted((sample_path("nuclei") / "test" / "images").glob("*.jpg"))
    opened = open_any(result.run)
    predictions = fullfield.predict(opened, images[:: len(images) // 8][:8])
    pictures = save_any(opened, predictions, arguments.out / "predictions")

    print(f"\nTrained and evaluated in {minutes:.1f} minutes.")
    held_out = result.evaluation.result
    print(f"Held-out mIoU {held_out.miou:.1%}; background alone would have {held_out.majority_miou:.1%}.")
    for name, iou in zip(opened.classes, held_out.iou, strict=True):
        print(f"  IoU of {name}: {iou:.1%}")
    print(f"\nLook at  {result.report}  (open it in a browser)\nand at   {pictures / 'drawn'}")


if __name__ == "__main__":
    main()
