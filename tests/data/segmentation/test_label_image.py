from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fullfield.data.segmentation.label_image import LabelCode, colour_number, read_label_map, read_raw_label_map
from fullfield.errors import ImageError

ORIENTATION = 0x0112
PALETTE = [(10, 20, 30), (200, 0, 0), (0, 0, 250), (1, 2, 3)]


def labels(height: int = 5, width: int = 7, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, classes, (height, width))


def palette_image(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8), "L").convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([part for colour in PALETTE for part in colour])
    return image


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of any depth, written by hand: Pillow writes 8 bits and more."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b""
    for row in values.tolist():
        text = "".join(format(value, f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_of_every_depth_gives_the_stored_numbers(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (6, 11))
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(values, bits))
    assert np.array_equal(read_raw_label_map(path), values)


@pytest.mark.parametrize("extension", [".png", ".bmp", ".gif", ".tif"])
def test_palette_image_gives_its_indices_not_its_colours(tmp_path: Path, extension: str) -> None:
    values = labels()
    path = tmp_path / f"a{extension}"
    palette_image(values).save(path)
    assert np.array_equal(read_label_map(path, LabelCode(4)), values)


def test_palette_image_gives_its_colours_where_classes_are_told_by_colour(tmp_path: Path) -> None:
    values = labels()
    palette_image(values).save(tmp_path / "a.png")
    code = LabelCode(4, values={colour_number(*c): 3 - i for i, c in enumerate(PALETTE)}, by_colour=True)
    assert np.array_equal(read_label_map(tmp_path / "a.png", code), 3 - values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_equal_a_loop_over_pixels(tmp_path: Path, mode: str) -> None:
    values = labels()
    pixels = np.array(PALETTE, dtype=np.uint8)[values]
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    code = LabelCode(
        3, values={colour_number(*PALETTE[3]): 255} | {colour_number(*PALETTE[i]): i for i in range(3)}, by_colour=True
    )
    found = read_label_map(tmp_path / "a.png", code)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            position = PALETTE.index(tuple(pixels[y, x].tolist()))
            assert found[y, x] == (255 if position == 3 else position)


def test_colour_of_no_class_is_named_with_file_and_place(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[2, 5] = pixels[3, 1] = (7, 8, 9)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    code = LabelCode(1, values={0: 0}, by_colour=True)
    with pytest.raises(
        ImageError, match=r"a\.png: the colour \(7, 8, 9\) at x=5, y=2 is of no class \(2 such pixels\)"
    ):
        read_label_map(tmp_path / "a.png", code)


def test_value_of_no_class_is_named_with_file_and_place(tmp_path: Path) -> None:
    values = np.zeros((4, 6), np.uint8)
    values[1, 2] = 9
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: the value 9 at x=2, y=1 is of no class \(1 such .* 0 to 2, or 255"):
        read_label_map(tmp_path / "a.png", LabelCode(3))


@pytest.mark.parametrize("kind", ["uint16", "int32"])
def test_raw_values_equal_a_loop_over_pixels(tmp_path: Path, kind: str) -> None:
    meanings = {0: 255, 7: 0, 300: 1, 65535: 2} | ({2_000_000: 3} if kind == "int32" else {})
    raw = np.random.default_rng(0).choice(list(meanings), (8, 9)).astype(kind)
    path = tmp_path / ("a.tif" if kind == "int32" else "a.png")
    Image.fromarray(raw).save(path)
    found = read_label_map(path, LabelCode(4, values=meanings))
    assert found.dtype == np.int64
    assert found.tolist() == [[meanings[value] for value in row] for row in raw.tolist()]
    broken = raw.copy()
    broken[3, 4] = 299
    Image.fromarray(broken).save(path)
    with pytest.raises(ImageError, match="the value 299 at x=4, y=3"):
        read_label_map(path, LabelCode(4, values=meanings))


def test_grey_saved_as_rgb_is_read_as_numbers_and_colours_are_refused(tmp_path: Path) -> None:
    values = labels().astype(np.uint8)
    Image.fromarray(values).convert("RGB").save(tmp_path / "grey.png")
    assert np.array_equal(read_label_map(tmp_path / "grey.png", LabelCode(4)), values)
    Image.new("RGB", (7, 5), "teal").save(tmp_path / "teal.png")
    with pytest.raises(ImageError, match=r"teal\.png: is an RGB picture, but .* class file"):
        read_label_map(tmp_path / "teal.png", LabelCode(4))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(labels().astype(np.uint8)).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(read_raw_label_map(path), expected)


def test_other_size_than_the_picture_names_both(tmp_path: Path) -> None:
    Image.new("L", (7, 5)).save(tmp_path / "a.png")
    assert read_label_map(tmp_path / "a.png", LabelCode(2), size=(7, 5)).shape == (5, 7)
    with pytest.raises(ImageError, match="has 7 x 5 pixels, but its picture has 8 x 5"):
        read_label_map(tmp_path / "a.png", LabelCode(2), size=(8, 5))
    with pytest.raises(ImageError, match="turned by its EXIF orientation"):
        read_label_map(tmp_path / "a.png", LabelCode(2), size=(5, 7))


@pytest.mark.parametrize(
    ("name", "mode", "options", "reason"),
    [
        ("a.jpg", "L", {}, "JPEG image, whose lossy compression"),
        ("a.webp", "RGB", {}, "WEBP image, whose lossy compression"),
        ("a.tif", "RGB", {"compression": "jpeg"}, "TIFF image, whose lossy compression"),
        ("a.ppm", "RGB", {}, "PPM image, whose values are rescaled"),
        ("a.tif", "F", {}, "mode 'F'"),
        ("a.tif", "CMYK", {}, "mode 'CMYK'"),
    ],
)
def test_what_is_not_exact_is_refused_with_the_reason(
    tmp_path: Path, name: str, mode: str, options: dict[str, str], reason: str
) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / name, **options)
    with pytest.raises(ImageError, match=reason):
        read_raw_label_map(tmp_path / name)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_read_over_if_opaque_and_refused_if_not(tmp_path: Path, mode: str) -> None:
    image = Image.new("L", (4, 3), 2).convert(mode)
    image.save(tmp_path / "a.png")
    assert (read_label_map(tmp_path / "a.png", LabelCode(3)) == 2).all()
    image.putalpha(200)
    image.save(tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"b\.png: has transparent pixels \(alpha down to 200\)"):
        read_label_map(tmp_path / "b.png", LabelCode(3))


def test_missing_empty_cut_and_foreign_files_name_the_file_and_the_reason(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:700])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    for name, reason in (
        ("cut", "damaged or cut off"),
        ("empty", r"is empty \(0 bytes\)"),
        ("text", "is not a PNG, BMP, GIF or TIFF image"),
        ("missing", "no such file"),
    ):
        with pytest.raises(ImageError, match=rf"{name}\.png: .*{reason}"):
            read_raw_label_map(tmp_path / f"{name}.png")


def test_camvid_label_maps_are_as_pillow_shows_them(shared_data: Path) -> None:
    for path in sorted((shared_data / "camvid11" / "test" / "masks").iterdir())[::60]:
        assert np.array_equal(read_label_map(path, LabelCode(11), size=(480, 360)), np.asarray(Image.open(path)))
