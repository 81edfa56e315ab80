"""Pictures that visitors give: read as everywhere, and refused with a sentence that names what they gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gradio.data_classes import FileData
from PIL import Image

from fullfield.app.upload import MAX_PIXELS, Upload, picture_input, read_upload
from fullfield.errors import ImageError


def test_box_hands_on_the_file_as_it_came_with_the_visitors_name() -> None:
    box = picture_input("Picture")
    given = box.preprocess(FileData(path="/uploads/ab12/x.png", orig_name="my photo.png"))
    assert given == Upload("/uploads/ab12/x.png", "my photo.png")
    assert box.preprocess(None) is None


def test_picture_is_upright_and_rgb(tmp_path: Path) -> None:
    turned = Image.fromarray(np.zeros((20, 30), np.uint8))
    exif = turned.getexif()
    exif[274] = 6  # turned by a quarter
    turned.save(tmp_path / "a.jpg", exif=exif)
    found = read_upload(Upload(str(tmp_path / "a.jpg"), "a.jpg"))
    assert (found.mode, found.size) == ("RGB", (20, 30))


def test_broken_files_are_answered_with_the_readers_sentence(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "0f3a.jpg"
    photo.save(path)
    whole = path.read_bytes()
    for data, sentence in (
        (b"not an image", r"^holiday\.jpg: is not a JPEG"),
        (whole[: len(whole) // 2], r"^holiday\.jpg: is damaged or cut off"),
        (b"", r"^holiday\.jpg: is empty"),
    ):
        path.write_bytes(data)
        with pytest.raises(ImageError, match=sentence) as error:
            read_upload(Upload(str(path), "holiday.jpg"))
        assert str(tmp_path) not in str(error.value)


def test_picture_of_too_many_pixels_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    Image.new("1", (8000, MAX_PIXELS // 8000 + 1)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(ImageError, match=r"big\.png: has 8000 x 8001 pixels, more than the limit of 64,000,000"):
        read_upload(Upload(str(path), "big.png"))


def test_file_that_is_gone_or_never_came_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.png: is no longer here\. Choose the picture again"):
        read_upload(Upload(str(tmp_path / "gone.png"), "a.png"))
    with pytest.raises(ImageError, match=r"a\.png: is empty"):
        read_upload(Upload(None, "a.png"))
