from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fullfield.data import IMAGENET_MEAN, IMAGENET_STD, Augment, Preprocess, eval_transform, train_transform
from fullfield.errors import ConfigError


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def plain_eval(image: Image.Image, side: int, resized: int, interpolation: str) -> torch.Tensor:
    """What torchvision's own steps give, resizing the whole image before the crop."""
    steps = [v2.Resize(resized, v2.InterpolationMode(interpolation), antialias=True), v2.CenterCrop(side)]
    return v2.functional.to_image(v2.Compose(steps)(image)).float() / 255


def unnormalised(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    "size", [(300, 200), (200, 300), (251, 377), (224, 224), (33, 47), (640, 480), (1, 1), (1, 40), (900, 37), (5, 203)]
)
def test_eval_equals_torchvision_resize_and_centre_crop(size: tuple[int, int], interpolation: str) -> None:
    image = noise(*size)
    p = Preprocess(image_size=64, crop_share=0.9, interpolation=interpolation)
    expected = plain_eval(image, 64, 71, interpolation)
    difference = (unnormalised(eval_transform(p)(image)) - expected).abs() * 255
    assert difference.max() <= 1.01  # one grey level, from rounding
    assert difference.mean() < 0.02


def test_eval_of_fitting_image_is_only_normalised() -> None:
    image = noise(32, 32)
    x = eval_transform(Preprocess(image_size=32, crop_share=1.0))(image)
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(
        IMAGENET_STD, (3, 1, 1)
    )
    assert np.abs(x.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (30_000, 10), (10, 30_000)])
@pytest.mark.parametrize("kind", ["eval", "train"])
def test_extreme_shapes_take_little_memory(size: tuple[int, int], kind: str) -> None:
    p = Preprocess(image_size=224)
    transform = eval_transform(p) if kind == "eval" else train_transform(p, Augment())
    image = Image.new("RGB", size, (255, 0, 0))
    sizes: list[int] = []
    resize = Image.Image.resize

    def recording_resize(self: Image.Image, size: tuple[int, int], *args: object, **kwargs: object) -> Image.Image:
        sizes.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", recording_resize)
        x = transform(image)
    assert x.shape == (3, 224, 224)
    assert max(sizes, default=0) <= 224 * 224
    assert torch.allclose(unnormalised(x)[:, 112, 112], torch.tensor([1.0, 0.0, 0.0]), atol=0.01)


@pytest.mark.parametrize("channels", [1, 3])
def test_both_transforms_give_plain_float32_tensors(channels: int) -> None:
    p = Preprocess(image_size=20, channels=channels)
    for transform in (eval_transform(p), train_transform(p, Augment(vflip=True, rand_augment=9, erasing=0.5))):
        x = transform(noise(50, 40))
        assert type(x) is torch.Tensor
        assert (x.shape, x.dtype) == ((channels, 20, 20), torch.float32)


def test_grey_is_the_luminance() -> None:
    image = noise(24, 24)
    p = Preprocess(image_size=24, crop_share=1.0, channels=1, mean=(0.0,), std=(1.0,))
    expected = np.asarray(image.convert("L")) / 255
    assert np.abs(eval_transform(p)(image)[0].numpy() - expected).max() <= 1.01 / 255


def test_grey_takes_the_luminance_of_imagenets_mean_and_std() -> None:
    p = Preprocess(channels=1)
    assert p.mean == (pytest.approx(0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406),)
    assert len(p.std) == 1
    assert Preprocess.from_dict(p.to_dict()) == p


def test_training_depends_on_torchs_global_generator_alone() -> None:
    image = noise(60, 50)
    transform = train_transform(Preprocess(image_size=32), Augment(vflip=True, rand_augment=15, erasing=0.9))
    torch.manual_seed(1)
    first = [transform(image) for _ in range(20)]
    np.random.seed(5)  # noqa: NPY002 - the global state that must not matter
    torch.manual_seed(1)
    second = [transform(image) for _ in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_random_crop_covers_at_least_the_share_asked_for() -> None:
    # One channel counts columns, another rows: the spread in the crop tells how much of the image it shows.
    y, x = np.mgrid[0:200, 0:200]
    image = Image.fromarray(np.stack([x, y, x], axis=-1).astype(np.uint8))
    p = Preprocess(image_size=64, mean=(0, 0, 0), std=(1 / 255,) * 3, interpolation="bilinear")
    transform = train_transform(p, Augment(scale_min=0.6, hflip=False))
    shares = []
    for _ in range(60):
        crop = transform(image)
        spans = [float(crop[channel].max() - crop[channel].min()) / 200 for channel in (0, 1)]
        shares.append(spans[0] * spans[1])
    assert 0.55 < min(shares) < 0.7
    assert max(shares) > 0.8


def test_flips_happen_only_when_asked_for() -> None:
    y, x = np.mgrid[0:64, 0:64]
    image = Image.fromarray(np.stack([x * 4, y * 4, x], axis=-1).astype(np.uint8))
    p = Preprocess(image_size=32)

    def directions(augment: Augment) -> set[tuple[bool, bool]]:
        transform = train_transform(p, augment)
        crops = [transform(image) for _ in range(40)]
        return {(bool(c[0, 16, 0] > c[0, 16, -1]), bool(c[1, 0, 16] > c[1, -1, 16])) for c in crops}

    assert directions(Augment(hflip=False)) == {(False, False)}
    assert directions(Augment()) == {(False, False), (True, False)}
    assert len(directions(Augment(vflip=True))) == 4


def test_erasing_leaves_the_mean() -> None:
    p = Preprocess(image_size=32)
    x = train_transform(p, Augment(erasing=1.0))(Image.new("RGB", (40, 40), (255, 255, 255)))
    erased = (x == 0).all(dim=0)
    assert 0.01 < erased.float().mean() < 0.5


def test_transforms_can_be_sent_to_another_process() -> None:
    p = Preprocess(image_size=16)
    for transform in (eval_transform(p), train_transform(p, Augment(rand_augment=3, erasing=0.1))):
        copy = pickle.loads(pickle.dumps(transform))  # noqa: S301
        assert copy(noise(20, 20)).shape == (3, 16, 16)


def test_dict_and_back_is_the_same() -> None:
    p = Preprocess(image_size=96, crop_share=1.0, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), interpolation="bilinear")
    values = p.to_dict()
    assert values["mean"] == [0.5, 0.5, 0.5]
    assert Preprocess.from_dict(values) == p
    assert Preprocess.from_dict({}) == Preprocess()


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown preprocessing key 'img_size'; did you mean 'image_size'"):
        Preprocess.from_dict({"img_size": 224})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 224.0}, r"image_size is 224\.0; it must be a whole number"),
        ({"image_size": True}, "image_size is True"),
        ({"crop_share": 0}, "crop_share is 0"),
        ({"crop_share": 1.2}, r"crop_share is 1\.2; it must lie above 0"),
        ({"crop_share": "0.9"}, "crop_share is '0.9'"),
        ({"interpolation": "bicubik"}, "interpolation is 'bicubik'; did you mean 'bicubic'"),
        ({"interpolation": "nearest"}, "Use one of bilinear, bicubic, lanczos"),
        ({"channels": 4}, "channels is 4"),
        ({"mean": (0.5,)}, "mean has 1 values for 3 channels"),
        ({"mean": 0.5}, r"mean is 0\.5; it must be a list of numbers"),
        ({"mean": ("a", "b", "c")}, "it must be a list of numbers"),
        ({"std": (0.2, 0.2, 0.0)}, "every value must be above 0"),
        ({"std": (0.2, 0.2, float("nan"))}, "it must be a list of numbers"),
    ],
)
def test_impossible_preprocessing_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocess.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale_min": 0}, "scale_min is 0"),
        ({"scale_min": 1.5}, r"scale_min is 1\.5"),
        ({"rand_augment": 31}, "rand_augment is 31; it must be a whole number from 0"),
        ({"rand_augment": 2.5}, r"rand_augment is 2\.5"),
        ({"erasing": -0.1}, "it is a probability"),
    ],
)
def test_impossible_augmentation_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augment(**values)
