"""The nets of timm that Fullfield's are compared with: used as timm has them, never rewritten.

One size of each family that the RaCNN and large-kernel papers name, the one nearest to 4.5 GMACs where there is a
choice. `fullfield models` lists them beside our own; all of timm's other models are there too (`fullfield models '*'`).
"""

__all__ = ["PEERS"]

PEERS = (
    "convnext_tiny",
    "inception_next_tiny",
    "swin_tiny_patch4_window7_224",
    "focalnet_tiny_srf",
    "convformer_s18",
    "caformer_s18",
    "maxvit_tiny_tf_224",
    "davit_tiny",
    "gcvit_tiny",
    "convit_small",
    "halonet50ts",
    "tnt_s_patch16_224",
    "xcit_small_12_p16_224",
    "pvt_v2_b2",
    "mvitv2_tiny",
    "vit_small_patch16_224",
    "resnet50",
    "resnext50_32x4d",
    "repvgg_b1g4",
    "fasternet_s",
    "ghostnetv2_100",
    "lowformer_b1",
    "mobilenetv2_100",
    "mobileone_s1",
    "mobilevit_s",
)
"""timm's names."""
