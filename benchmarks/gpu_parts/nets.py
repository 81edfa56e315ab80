"""Every net forward and training step in bfloat16, each in several settings; the table keeps the best of each."""

from collections.abc import Callable

import timm
import torch
from torch import nn

import fullfield.models  # noqa: F401  (registers the nets)
from gpu_parts.campaign import Campaign, Row, digits
from gpu_parts.region_ops import forced

# fullfield's slak, replknet and moganet on PyTorch's own convolution, in NCHW, are the official form of each
NETS = [
    "racnn_tiny",
    "slak_tiny",
    "racnn_small",
    "replknet_31b",
    "moganet_small",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "inception_next_tiny",
    "inception_next_small",
]
DRY_NETS = ["racnn_pico", "convnext_atto"]
COMPILED = ["racnn_tiny", "racnn_small", "slak_tiny", "convnext_tiny"]  # in this order, while the time lasts
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def measure(campaign: Campaign) -> list[Row]:
    """Return one row a net, mode and setting."""
    rows = []
    names = DRY_NETS if campaign.dry else NETS
    for mode in ("forward", "training step"):
        for name in names:
            for layout in LAYOUTS:
                for path in ("triton", "sdpa") if name.startswith("racnn") else (None,):
                    # without a GPU a whole net in the interpreter would take minutes
                    path = None if campaign.dry else path
                    row = _attempt(campaign, name, mode, layout, path, "eager")
                    rows += [row] if row else []
    for name in names[:1] if campaign.dry else COMPILED:
        for mode in ("forward", "training step"):
            path = "triton" if name.startswith("racnn") and not campaign.dry else None
            row = _attempt(campaign, name, mode, "channels_last", path, "compiled")
            rows += [row] if row else []
    return rows


def _attempt(campaign: Campaign, name: str, mode: str, layout: str, path: str | None, form: str) -> Row | None:
    what = f"{name} {mode} {layout} {form} {path or ''}"
    forced(path)
    try:
        return campaign.attempt(what, lambda: _row(campaign, name, mode, layout, path, form))
    finally:
        forced(None)


def _row(campaign: Campaign, name: str, mode: str, layout: str, path: str | None, form: str) -> Row:
    torch.manual_seed(0)
    batch, side = (2, 32) if campaign.dry else (128, 224)
    model = timm.create_model(name).to(campaign.device, memory_format=LAYOUTS[layout])
    images = torch.randn(batch, 3, side, side, device=campaign.device).contiguous(memory_format=LAYOUTS[layout])
    make = _forward if mode == "forward" else _step
    run = make(campaign, model, images, form)
    run()
    peak = campaign.peak_mb(run)
    time_us = campaign.time_us(run, repetitions=8, flush=False)
    return {
        "model": name,
        "mode": mode,
        "layout": layout,
        "form": form,
        "path": path or "rule",
        "batch": batch,
        "images_per_s": digits(batch / (time_us * 1e-6)),
        "peak_mb": digits(peak, 0),
    }


def _compiled(campaign: Campaign, model: nn.Module, form: str) -> Callable[..., torch.Tensor]:
    if form != "compiled":
        return model
    return torch.compile(model, backend="eager" if campaign.dry else "inductor")  # type: ignore[no-any-return]


def _forward(campaign: Campaign, model: nn.Module, images: torch.Tensor, form: str) -> Callable[[], None]:
    """One forward pass of the net in bfloat16, replayed as a CUDA graph where there is CUDA."""
    model.eval().bfloat16()
    images = images.bfloat16()
    net = _compiled(campaign, model, form)

    def run() -> None:
        with torch.inference_mode():
            net(images)

    if campaign.device != "cuda":
        return run
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _step(campaign: Campaign, model: nn.Module, images: torch.Tensor, form: str) -> Callable[[], None]:
    """One training step under autocast."""
    model.train()
    net = _compiled(campaign, model, form)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    labels = torch.randint(1000, (len(images),), device=campaign.device)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(campaign.device, dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()

    return run
