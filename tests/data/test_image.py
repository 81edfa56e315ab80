from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from fullfield.data import IMAGE_EXTENSIONS, MAX_PIXELS, decode_image, read_image
from fullfield.errors import ImageError

ORIENTATION = 0x0112


def gradient(width: int = 40, height: int = 20) -> Image.Image:
    """A picture that differs from each of its rotations and mirror images."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1)
    return Image.fromarray(np.stack([red, green, np.full_like(x, 30)], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header_of(width: int, height: int) -> bytes:
    """The start of a PNG that claims a size, with next to no data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("extension", sorted(IMAGE_EXTENSIONS))
def test_every_promised_extension_is_read(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    gradient().convert("L" if extension == ".pgm" else "RGB").save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 20))


def test_bytes_and_file_give_the_same_picture(tmp_path: Path) -> None:
    data = encoded(gradient(), "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert read_image(str(path)).tobytes() == decode_image(data, "upload").tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(gradient(), kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    image = decode_image(data, "a")
    assert image.size == ((40, 20) if orientation < 5 else (20, 40))
    assert image.tobytes() == expected.tobytes()
    assert ImageOps.exif_transpose(image).tobytes() == image.tobytes()


def test_damaged_exif_block_does_not_cost_the_image() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010E] = "text"
    data = encoded(gradient(), "JPEG", exif=exif)
    # The description, text, becomes the width: ImageOps.exif_transpose stumbles over it.
    broken = data.replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02")
    assert broken != data
    assert decode_image(broken, "a").size == (20, 40)


def test_result_carries_no_metadata() -> None:
    data = encoded(gradient(), "JPEG", exif=Image.Exif(), comment=b"hello", dpi=(300, 300))
    assert decode_image(data, "a").info == {}


def test_cmyk_becomes_rgb() -> None:
    image = decode_image(encoded(gradient().convert("CMYK"), "JPEG", quality=95), "a")
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(gradient(), dtype=int)).mean() < 4


def test_palette_keeps_its_colours() -> None:
    source = gradient().quantize(64)
    assert decode_image(encoded(source, "PNG"), "a").tobytes() == source.convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_lies_on_white(kind: str) -> None:
    source = Image.new("P", (4, 4), 1)
    source.putpalette([0, 0, 0, 200, 10, 10])
    source.putpixel((0, 0), 0)
    image = decode_image(encoded(source, kind, transparency=0), "a")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((3, 3)) == (200, 10, 10)


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (90, 255), (90, 90, 90)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
    ],
)
def test_grey_and_alpha_become_rgb_on_white(mode: str, pixel: object, expected: tuple[int, ...]) -> None:
    assert decode_image(encoded(Image.new(mode, (3, 3), pixel), "PNG"), "a").getpixel((1, 1)) == expected


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 257, 4000], [32768, 40000, 65278, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(values), kind), "a")
    expected = np.round(values / 65535 * 255)
    assert np.array_equal(np.asarray(image)[..., 0], expected)
    assert np.array_equal(np.asarray(image)[..., 2], expected)


def test_big_endian_16_bit_tiff_is_scaled() -> None:
    source = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257, 65535))
    assert np.asarray(decode_image(encoded(source, "TIFF"), "a"))[0, :, 0].tolist() == [1, 255]


def test_32_bit_grey_beyond_16_bits_is_refused_with_its_range() -> None:
    source = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(ImageError, match=r"scan: has grey values from 0 to 70000.*8 or 16 bits"):
        decode_image(encoded(source, "TIFF"), "scan")


def test_float_within_one_is_scaled_to_255() -> None:
    source = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert np.asarray(decode_image(encoded(source, "TIFF"), "a"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf")])
def test_float_outside_of_zero_to_one_is_refused(value: float) -> None:
    source = Image.fromarray(np.array([[0.2, value]], dtype=np.float32))
    with pytest.raises(ImageError, match=r"map: has float values .* expected 0 to 1. Scale"):
        decode_image(encoded(source, "TIFF"), "map")


def test_lab_becomes_rgb() -> None:
    source = Image.new("RGB", (4, 4), (200, 80, 40))
    lab = ImageCms.profileToProfile(
        source, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    pixel = decode_image(encoded(lab, "TIFF"), "a").getpixel((1, 1))
    assert pixel == pytest.approx((200, 80, 40), abs=3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data, "a").getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
def test_extreme_shapes_are_read(size: tuple[int, int]) -> None:
    assert decode_image(encoded(Image.new("RGB", size), "PNG"), "a").size == size


@pytest.mark.parametrize("name", ["снег 雪 ☃.png", "x" * 250 + ".png", "a b'\"%s{}.png"])
def test_unusual_names_are_read(tmp_path: Path, name: str) -> None:
    gradient().save(tmp_path / name)
    assert read_image(tmp_path / name).size == (40, 20)


@pytest.mark.parametrize("min_side", [1, 31, 64, 100, 125, 126, 250, 500, 501, 4000])
@pytest.mark.parametrize("size", [(1000, 1003), (1507, 1000), (999, 1601)])
def test_reduced_decoding_never_falls_below_min_side(size: tuple[int, int], min_side: int) -> None:
    data = encoded(Image.new("RGB", size), "JPEG")
    side = min(decode_image(data, "a", min_side=min_side).size)
    assert side >= min(min_side, *size)
    # Not larger than it need be: half of it would fall below, unless it is an eighth already.
    assert side // 2 <= min_side or side == -(-min(size) // 8)


def test_reduced_decoding_shows_the_same_picture() -> None:
    source = gradient(800, 480)
    image = decode_image(encoded(source, "JPEG", quality=95), "a", min_side=60)
    assert image.size == (100, 60)
    expected = source.resize((100, 60), Image.Resampling.BOX)
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)).max() <= 6


def test_png_ignores_min_side() -> None:
    assert decode_image(encoded(gradient(400, 300), "PNG"), "a", min_side=10).size == (400, 300)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: does not exist. Check the path"):
        read_image(tmp_path / "gone.jpg")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "pipe.jpg")


def test_zero_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageError, match=r"a\.jpg: is empty \(0 bytes\). Copy it again"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="upload: is empty"):
        decode_image(b"", "upload")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_file_is_refused(kind: str, share: float) -> None:
    noise = Image.effect_noise((64, 48), 80).convert("RGB")
    data = encoded(noise, kind)
    with pytest.raises(ImageError, match=r"^half: is "):
        decode_image(data[: int(len(data) * share)], "half")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_text_named_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("this is not an image\n" * 40)
    with pytest.raises(ImageError, match=r"a\.png: is not a JPEG, PNG.*Save it again .*or remove it"):
        read_image(tmp_path / "a.png")


def test_postscript_named_jpg_is_refused_and_not_run() -> None:
    data = encoded(gradient(), "EPS")
    with pytest.raises(ImageError, match="is not a JPEG"):
        decode_image(data, "a.jpg")


@pytest.mark.parametrize("side", [14_000, 30_000, 2**31 - 1])
def test_bomb_is_refused_from_its_header(side: int) -> None:
    with pytest.raises(ImageError, match=r"bomb: has .*more than the limit of 178,956,970 pixels"):
        decode_image(png_header_of(side, side), "bomb")


def test_own_pixel_limit_is_exact() -> None:
    data = encoded(gradient(40, 20), "PNG")
    assert decode_image(data, "a", max_pixels=800).size == (40, 20)
    with pytest.raises(ImageError, match=r"has 40 x 20 pixels, more than the limit of 799 pixels\. Make it smaller"):
        decode_image(data, "a", max_pixels=799)


def test_pillow_warning_turned_into_an_error_is_an_image_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match="bomb: has more than the limit"):
            decode_image(png_header_of(10_000, 10_000), "bomb")


def test_limit_is_the_one_of_pillow() -> None:
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_file_without_read_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    gradient().save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything: let opening fail as it does for others

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png: this user may not read it. Change its permissions"):
        read_image(path)


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "null\0byte.png"])
def test_impossible_name_is_an_image_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_gives_an_image_or_an_image_error(kind: str) -> None:
    rng = np.random.default_rng(0)
    data = np.frombuffer(encoded(gradient(24, 16), kind), dtype=np.uint8)
    for _ in range(200):
        broken = data.copy()
        broken[rng.integers(0, min(len(data), 300), size=4)] = rng.integers(0, 256, size=4)
        with contextlib.suppress(ImageError):
            assert decode_image(broken.tobytes(), "a", max_pixels=1_000_000).mode == "RGB"
