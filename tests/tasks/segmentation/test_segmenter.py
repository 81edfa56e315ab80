"""The segmenter against segmentation-models-pytorch's own models, on images of any size, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError, ModelNotFoundError
from fullfield.models.registry import create_model
from fullfield.tasks.segmentation.heads import HEADS, PooledBatchNorm2d, read_head_arguments
from fullfield.tasks.segmentation.segmenter import Segmenter

smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra fullfield[segment]")

THEIRS = {"upernet": smp.UPerNet, "fpn": smp.FPN, "unet": smp.Unet, "segformer": smp.Segformer}
SMALL: dict[str, dict[str, Any]] = {
    "upernet": {"channels": 16, "auxiliary_channels": 8},
    "fpn": {"channels": 128},
    "unet": {"channels": 32},
    "segformer": {"channels": 16},
}
TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
PLAIN = DensePreprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def tiny(head: str, num_classes: int = 3, preprocess: DensePreprocess = PLAIN, **more: Any) -> Segmenter:
    arguments = SMALL[head] | more
    return Segmenter("racnn_pico", head, num_classes, preprocess=preprocess, head_arguments=arguments, **TINY)


def copy_by_order(target: nn.Module, source: nn.Module) -> None:
    """Copy the tensors of nets whose names differ by prefixes and separators, and whose orders agree."""
    values = [value for name, value in source.state_dict().items() if ".head." not in name]
    names = list(target.state_dict())
    assert [v.shape for v in values] == [v.shape for v in target.state_dict().values()]
    target.load_state_dict(dict(zip(names, values, strict=True)))


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("net", ["resnet18", "racnn_pico"])
def test_logits_are_those_of_the_librarys_own_model(net: str, head: str) -> None:
    ours = Segmenter(net, head, 5, preprocess=DensePreprocess(), head_arguments={"auxiliary": 0.0}).eval()
    theirs = THEIRS[head](f"tu-{net}", encoder_weights=None, classes=5).eval()
    copy_by_order(theirs.encoder, ours.backbone)
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    theirs.segmentation_head[0].load_state_dict(ours.classifier[1].state_dict())
    images = torch.rand(2, 3, 64, 96)
    mean, std = torch.tensor(DensePreprocess().mean), torch.tensor(DensePreprocess().std)
    with torch.inference_mode():
        features = theirs.encoder((images - mean[:, None, None]) / std[:, None, None])
        expected = theirs.segmentation_head[0](theirs.decoder(features))
        if head != "unet":  # the library upsamples with aligned corners
            expected = F.interpolate(expected, scale_factor=4, mode="bilinear", align_corners=False)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)


def test_a_net_with_a_map_at_stride_2_gives_it_to_the_heads_that_make_use_of_it() -> None:
    for head, strides in (("unet", (2, 4, 8, 16, 32)), ("upernet", (4, 8, 16, 32))):
        model = Segmenter("resnet18", head, 2, preprocess=PLAIN, head_arguments=SMALL[head])
        assert model.backbone.strides == strides


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("size", [(1, 1), (33, 50), (64, 32)], ids=str)
def test_every_head_answers_for_every_pixel_of_any_size(head: str, size: tuple[int, int]) -> None:
    model = tiny(head).eval()
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


def test_padding_is_the_mean_colour_on_the_right_and_below() -> None:
    preprocess = DensePreprocess(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    model = tiny("unet", preprocess=preprocess).eval()
    images = torch.rand(1, 3, 40, 70)
    padded = torch.tensor(preprocess.mean).view(1, 3, 1, 1).expand(1, 3, 64, 96).clone()
    padded[..., :40, :70] = images
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model(padded)[..., :40, :70], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", list(HEADS))
def test_weights_of_a_classification_run_fit_under_their_own_names(head: str) -> None:
    classifier = create_model("racnn_pico", num_classes=4, **TINY)
    model = tiny(head)
    ours = {name.removeprefix("backbone.model.") for name in model.state_dict() if name.startswith("backbone.")}
    assert ours == {name for name in classifier.state_dict() if not name.startswith("head.fc")}


def test_grey_images_are_normalised_by_one_mean() -> None:
    model = tiny("fpn", preprocess=DensePreprocess(channels=1)).eval()
    assert model.in_chans == 1
    assert model(torch.rand(1, 1, 32, 32)).shape == (1, 3, 32, 32)


def test_the_auxiliary_head_is_left_out_of_an_answer_and_trained_beside_it() -> None:
    model = tiny("upernet")
    assert model.auxiliary_weight == 0.4
    model.eval()
    images = torch.rand(1, 3, 40, 33)
    logits, auxiliary = model.forward_auxiliary(images)
    assert auxiliary is not None
    assert auxiliary.shape == logits.shape == (1, 3, 40, 33)
    torch.testing.assert_close(model(images), logits)
    assert model.auxiliary is not None
    with torch.no_grad():
        for parameter in model.auxiliary.parameters():
            parameter.fill_(7.0)
    torch.testing.assert_close(model(images), logits)


def test_without_an_auxiliary_head_there_are_no_auxiliary_logits() -> None:
    model = tiny("fpn").eval()
    assert model.auxiliary is None
    assert model.forward_auxiliary(torch.rand(1, 3, 32, 32))[1] is None


@pytest.mark.parametrize("head", list(HEADS))
def test_a_loss_reaches_every_parameter(head: str) -> None:
    model = tiny(head, auxiliary=0.4)
    logits, auxiliary = model.forward_auxiliary(torch.rand(2, 3, 64, 64))
    assert auxiliary is not None
    (logits.square().mean() + auxiliary.square().mean()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # the norm of the classifier's head belongs to the net, and its weights to those of a classification run
    assert all(name.startswith("backbone.model.head.") for name in without)


def test_a_batch_of_one_image_trains_upernet_whose_pool_has_one_value() -> None:
    model = tiny("upernet").train()
    model.forward_auxiliary(torch.rand(1, 3, 64, 64))[0].sum().backward()


def test_pooled_batch_norm_is_batch_norm_where_there_are_several_values() -> None:
    torch.manual_seed(0)
    pooled, plain = PooledBatchNorm2d(4), nn.BatchNorm2d(4)
    for x in (torch.randn(2, 4, 1, 1), torch.randn(1, 4, 2, 1)):
        torch.testing.assert_close(pooled(x), plain(x))
    assert all(
        torch.equal(a, b) for a, b in zip(pooled.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    one: Tensor = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(pooled(one), plain.eval()(one))


def test_head_arguments_are_kept_in_full_and_build_the_same_head() -> None:
    model = tiny("unet", dropout=0.25)
    assert model.head_arguments == {"channels": 32, "dropout": 0.25, "auxiliary": 0.0, "auxiliary_channels": 256}
    assert read_head_arguments("unet", model.head_arguments).to_dict() == model.head_arguments


@pytest.mark.parametrize(
    ("head", "arguments", "message"),
    [
        ("uper", {}, "did you mean 'upernet'"),
        ("upernet", {"chanels": 8}, "no argument 'chanels'.*did you mean 'channels'"),
        ("upernet", {"channels": 0}, "channels is 0"),
        ("upernet", {"channels": True}, "channels is True"),
        ("fpn", {"channels": 100}, "multiple of 128"),
        ("unet", {"channels": 24}, "multiple of 16"),
        ("unet", {"dropout": 1.0}, "dropout is 1.0.*less than 1"),
        ("unet", {"dropout": float("nan")}, "dropout is nan"),
        ("segformer", {"auxiliary": -1}, "auxiliary is -1"),
    ],
)
def test_impossible_heads_are_refused(head: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_head_arguments(head, arguments)


def test_impossible_nets_are_refused() -> None:
    with pytest.raises(ConfigError, match="strides 16, and 4, 8, 32"):
        Segmenter("vit_tiny_patch16_224", "unet", 2, preprocess=PLAIN)
    with pytest.raises(ModelNotFoundError, match="racnn_pico"):
        Segmenter("racnn_picco", "fpn", 2, preprocess=PLAIN)
    with pytest.raises(ConfigError, match="num_classes is 1"):
        Segmenter("racnn_pico", "fpn", 1, preprocess=PLAIN)
    with pytest.raises(ConfigError, match="in_chans is 1"):
        Segmenter("racnn_pico", "fpn", 2, preprocess=PLAIN, in_chans=1)
