from __future__ import annotations

from pathlib import Path

import pytest

from fullfield.data.detection.read import read_detection_data
from fullfield.errors import DataError
from tests.data.detection.annotation_files import coco_content, write_coco


@pytest.mark.parametrize(
    ("json_files", "images"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), ("train2017", "val2017")),
        (
            ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
            ("images/train2017", "images/val2017"),
        ),
        (("instances_train.json", "instances_val.json"), ("images", "images")),
        (("annotations/train.json", "annotations/valid.json"), ("images/train", "images/val")),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train", "valid")),
        (("Annotations/instances_training.json", "Annotations/instances_validation.json"), ("training", "validation")),
        (("my-train.json", "my-val.json"), (".", ".")),
    ],
)
def test_usual_layouts_are_found(tmp_path: Path, json_files: tuple[str, str], images: tuple[str, str]) -> None:
    for number, (json_file, folder) in enumerate(zip(json_files, images, strict=True), start=1):
        content = coco_content([{"file_name": f"{number}.png"}], [{}])
        write_coco(tmp_path / json_file, content, images=tmp_path / folder)
    data = read_detection_data(tmp_path)
    paths = {split: [s.path.relative_to(tmp_path).as_posix() for s in part] for split, part in data.splits.items()}
    assert paths == {"train": [(Path(images[0]) / "1.png").as_posix()], "val": [(Path(images[1]) / "2.png").as_posix()]}
    assert data.notes == ()


@pytest.mark.parametrize(
    ("json_file", "images"),
    [
        *(
            ("some.json", "."),
            ("some.json", "images"),
            ("instances_val2017.json", "val2017"),
            ("my.train.json", "train"),
        ),
        *(("annotations/instances_train2017.json", "train2017"), ("annotations/some.json", "images")),
    ],
)
def test_one_file_is_cut_by_image(tmp_path: Path, json_file: str, images: str) -> None:
    content = coco_content([{}] * 10, [{"image_id": i} for i in range(1, 11)])
    data = read_detection_data(write_coco(tmp_path / json_file, content, images=tmp_path / images), val_share=0.3)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 7, "val": 3}
    assert "3 of 10 training images were set aside" in data.notes[0]


def test_files_of_captions_keypoints_and_predictions_are_passed_by(tmp_path: Path) -> None:
    write_coco(
        tmp_path / "annotations" / "instances_train.json", coco_content([{}, {}], [{}]), images=tmp_path / "train"
    )
    for name in ("captions_train.json", "person_keypoints_train.json", "image_info_test.json"):
        write_coco(tmp_path / "annotations" / name, coco_content([{}], [{}]))
    (tmp_path / "annotations" / "results.json").write_text('[{"image_id": 1, "bbox": [1, 2, 3, 4]}]')
    assert set(read_detection_data(tmp_path).splits) == {"train", "val"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("instances_train2014.json", "instances_train2017.json"), "are of the split 'train'"),
        (("one.json", "two.json"), "for training"),
        (("instances_val.json", "instances_test.json"), "for training"),
    ],
)
def test_files_of_unclear_splits_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        write_coco(tmp_path / name, coco_content([{}], [{}]), images=tmp_path)
    with pytest.raises(DataError, match=message):
        read_detection_data(tmp_path)
