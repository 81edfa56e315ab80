"""Make the embedded sample `blood_cells_boxes` from the BCCD data set: whole images with boxes, half as wide and high.

Run from the repository root; it needs the BCCD boxes in COCO form and its images:

    python studies/embedded_sample/blood_cells_boxes.py --source ../shared/data/bccd_coco

Every image but one and every box is kept, with its number and in its split, so that figures can be set beside those on
BCCD. There is no chance in it. `SOURCE.md` and `LICENSE` beside the images are written by hand; the counts that this
script prints belong in the former.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

SPLITS = ("train", "val", "test")
SHRINK = 2  # divides the sides of images and boxes
QUALITY = 88
# In val, by image: the field of image 38, which is in train, photographed again. Found by correlating all images.
TWICE = {37}
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "src/fullfield/data/samples/blood_cells_boxes"


def shrunk(coco: dict[str, Any]) -> dict[str, Any]:
    """Return the annotations for images of 1 / SHRINK the size; lengths in pixels."""
    images = [
        {
            "id": image["id"],
            "file_name": image["file_name"],
            "width": image["width"] // SHRINK,
            "height": image["height"] // SHRINK,
        }
        for image in sorted(coco["images"], key=lambda entry: entry["id"])
        if image["id"] not in TWICE
    ]
    annotations = []
    for annotation in sorted(coco["annotations"], key=lambda entry: entry["id"]):
        if annotation["image_id"] in TWICE:
            continue
        left, top, width, height = (length / SHRINK for length in annotation["bbox"])
        annotations.append(
            {
                "id": annotation["id"],
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    return {"images": images, "annotations": annotations, "categories": coco["categories"]}


def main() -> None:
    """Write images and annotations, and print how many there are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", type=Path, default=Path("../shared/data/bccd_coco"))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out / "images", ignore_errors=True)
    (arguments.out / "images").mkdir(parents=True)
    total_bytes = 0
    for split in SPLITS:
        coco = shrunk(json.loads((arguments.source / f"instances_{split}.json").read_text(encoding="utf-8")))
        written = arguments.out / f"instances_{split}.json"
        written.write_text(json.dumps(coco, separators=(",", ":")) + "\n", encoding="utf-8")
        total_bytes += written.stat().st_size
        for entry in coco["images"]:
            with Image.open(arguments.source / "images" / entry["file_name"]) as image:
                small = image.convert("RGB").resize((entry["width"], entry["height"]), Image.Resampling.LANCZOS)
            path = arguments.out / "images" / entry["file_name"]
            small.save(path, quality=QUALITY, optimize=True)
            total_bytes += path.stat().st_size
        names = {category["id"]: category["name"] for category in coco["categories"]}
        counts = Counter(names[annotation["category_id"]] for annotation in coco["annotations"])
        print(f"{split}: {len(coco['images'])} images; {dict(counts)}")
    print(f"{total_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
