from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fullfield.data.segmentation.label_image import LabelCode, read_label_map
from fullfield.data.segmentation.read import read_segmentation_data

# As SOURCE.md states them: images, coloured ones, share of nuclei.
STATED = {"train": (280, 47, 0.158), "val": (41, 7, 0.102), "test": (79, 13, 0.128)}


def test_nuclei_hold_what_is_stated() -> None:
    data = read_segmentation_data("sample:nuclei")
    code = LabelCode.of(data)
    assert data.classes == ("background", "nucleus")
    assert data.notes == ()
    assert list(data.splits) == list(STATED)
    for split, (count, coloured, share) in STATED.items():
        samples = data.splits[split]
        labels = [read_label_map(sample.mask, code) for sample in samples]
        modes = []
        for sample in samples:
            with Image.open(sample.path) as image:
                assert (image.size, image.format) == ((256, 256), "JPEG")
                modes.append(image.mode)
        assert {one.shape for one in labels} == {(256, 256)}
        assert set(np.unique(labels)) == {0, 1}
        assert (len(samples), modes.count("RGB"), modes.count("L")) == (count, coloured, count - coloured)
        assert np.mean(labels) == pytest.approx(share, abs=5e-4)


def test_no_source_image_of_nuclei_is_in_two_splits() -> None:
    splits = read_segmentation_data("sample:nuclei").splits
    names = [sample.path.stem for samples in splits.values() for sample in samples]
    assert len(names) == len(set(names)) == 400


def test_label_maps_cover_what_the_outlines_they_come_from_do(shared_data: Path) -> None:
    """For sources of 256 x 256 pixels, which are not cropped: areas of the outlines, which do not overlap, add up."""
    areas: dict[str, int] = {}
    for split in ("train", "val"):
        coco = json.loads((shared_data / "nuclei_coco" / f"instances_{split}.json").read_text())
        names = {i["id"]: Path(i["file_name"]).stem for i in coco["images"] if i["width"] == i["height"] == 256}
        for annotation in coco["annotations"]:
            if annotation["image_id"] in names:
                name = names[annotation["image_id"]]
                areas[name] = areas.get(name, 0) + annotation["area"]
    data = read_segmentation_data("sample:nuclei")
    samples = [sample for part in data.splits.values() for sample in part if sample.path.stem in areas]
    covered = np.array([read_label_map(sample.mask, LabelCode.of(data)).sum() for sample in samples])
    expected = np.array([areas[sample.path.stem] for sample in samples])
    assert len(samples) == 209
    assert (covered <= expected).all()
    assert covered.sum() == pytest.approx(expected.sum(), rel=0.01)
