import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fullfield.data import Preprocess, eval_transform, read_image
from fullfield.data.dense import DensePreprocess
from fullfield.data.sample import sample_path
from fullfield.deploy.prepare import classifier_input, dense_input, raw_input
from fullfield.tasks.detection.resize import batch_images

SIZES = [(224, 224), (640, 427), (31, 500), (500, 31), (5, 7), (1, 1), (225, 223)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def torch_values(image: Image.Image, channels: int) -> torch.Tensor:
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"), np.float32).reshape(*image.size[::-1], channels)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [3, 1])
def test_a_classifiers_pixels_are_those_of_eval_transform_to_the_last_bit(
    size: tuple[int, int], interpolation: str, channels: int
) -> None:
    p = Preprocess(64, 0.9, (0.0,) * channels, (1.0,) * channels, interpolation, channels)
    image = picture(*size)
    expected = eval_transform(p)(image).numpy()  # mean 0 and deviation 1: normalising changes nothing
    found = classifier_input(image, p)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [3, 1])
def test_a_detectors_pixels_are_those_of_its_own_resizing(size: tuple[int, int], channels: int) -> None:
    p = DensePreprocess(short_side=60, long_side=150, channels=channels)
    image = picture(*size)
    batch = batch_images([torch_values(image, channels)], p, resize=True)
    found = dense_input(image, p)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (p.mean, p.std))
    assert found.seen == batch.image_sizes[0]
    assert found.original == image.size[::-1]
    assert found.pixels.shape == batch.tensors.shape[1:]
    normalised = (found.pixels - mean) / std
    assert np.abs(normalised - batch.tensors[0].numpy()).max() < 1e-4  # 2e-5 before it is divided by std
    rows, columns = found.seen
    assert not normalised[:, rows:].any()
    assert not normalised[:, :, columns:].any()


@pytest.mark.parametrize(("short", "long"), [(224, None), (97, 300), (700, None)])
def test_resizing_a_photograph_agrees_with_torch_to_a_hundred_thousandth(short: int, long: int | None) -> None:
    image = read_image(sorted(sample_path("blood_cells").rglob("*.jpg"))[0])
    p = DensePreprocess(short_side=short, long_side=long)
    found = dense_input(image, p)
    rows, columns = found.seen
    values = torch_values(image, 3)[None]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        expected = F.interpolate(values.to(dtype), (rows, columns), mode="bilinear", antialias=True)[0].numpy()
        assert np.abs(found.pixels[:, :rows, :columns] - expected).max() < tolerance


def test_an_image_that_keeps_its_size_is_not_touched() -> None:
    image = picture(96, 64)
    found = dense_input(image, DensePreprocess())
    assert found.pixels.shape == (3, 64, 96)
    assert np.array_equal(found.pixels, np.asarray(image, np.float32).transpose(2, 0, 1) * np.float32(1 / 255))


@pytest.mark.parametrize(
    ("size", "fixed", "seen"),
    [
        ((200, 100), (96, 128), (64, 128)),  # width and height of the picture; then height before width
        ((100, 200), (96, 128), (96, 48)),
        ((50, 40), (96, 128), (40, 50)),  # smaller than the file's size: only padded
        ((1000, 1), (32, 32), (1, 32)),
        ((200, 100), (None, 128), (64, 128)),
        ((200, 100), (50, None), (50, 100)),
    ],
)
def test_a_fixed_size_is_filled_by_shrinking_in_proportion_and_padding(
    size: tuple[int, int], fixed: tuple[int | None, int | None], seen: tuple[int, int]
) -> None:
    found = dense_input(picture(*size), DensePreprocess(), height=fixed[0], width=fixed[1])
    assert found.seen == seen
    padded = tuple(-(-side // 32) * 32 if want is None else want for side, want in zip(seen, fixed, strict=True))
    assert found.pixels.shape == (3, *padded)
    outside = np.ones(padded, bool)
    outside[: seen[0], : seen[1]] = False
    expected = np.array(DensePreprocess().mean, np.float32)[:, None]
    assert (found.pixels[:, outside] == expected).all()


@pytest.mark.parametrize("channels", [3, 1])
def test_a_graph_with_the_preprocessing_inside_gets_the_whole_picture(channels: int) -> None:
    image = picture(7, 5)
    found = raw_input(image, channels)
    assert found.shape == (5, 7, channels)
    assert np.array_equal(found.squeeze(), np.asarray(image if channels == 3 else image.convert("L")))


def test_values_stay_between_0_and_1() -> None:
    for image in (Image.new("RGB", (50, 40), "white"), Image.new("RGB", (50, 40), "black"), picture(333, 222)):
        for pixels in (
            dense_input(image, DensePreprocess(short_side=33)).pixels,
            classifier_input(image, Preprocess(32)),
        ):
            assert pixels.min() >= 0
            assert pixels.max() <= 1
