"""The Triton kernels against the definition in float64, on this card: what must hold before any timing counts."""

import numpy as np
import torch
from torch import Tensor

from fullfield.ops import region_pwconv
from gpu_parts.campaign import Campaign, Row

TOLERANCE = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (5e-3, 2e-2), torch.float16: (1e-3, 2e-3)}
# channels, (H, W), r, heads: the four stages of racnn_tiny, odd sizes, wide heads, single pixels, long walks
SHAPES = [
    (64, (56, 56), 7, 1),
    (128, (28, 28), 7, 2),
    (256, (14, 14), 7, 4),
    (512, (7, 7), 1, 8),
    (72, (57, 50), 7, 1),
    (96, (20, 33), 7, 2),
    (288, (14, 14), 7, 4),
    (320, (14, 14), 7, 1),
    (512, (7, 7), 7, 1),
    (24, (5, 6), 4, 1),
    (17, (3, 2), 7, 1),
    (64, (1, 13), 7, 4),
    (64, (200, 133), 7, 1),
]
DRY_SHAPES = [(24, (5, 6), 2, 2), (72, (3, 4), 1, 1), (20, (2, 2), 7, 1)]


def measure(campaign: Campaign) -> list[Row]:
    """Return one row a shape, dtype, layout and kind of input."""
    rows = []
    for channels, size, region_size, heads in DRY_SHAPES if campaign.dry else SHAPES:
        for dtype in (torch.float32, torch.float16) if campaign.dry else TOLERANCE:  # the interpreter lacks bfloat16
            for kind in ("normal", "dead and |s| = 60"):
                what = f"correctness of {channels} {size} r={region_size} {heads} heads {dtype} {kind}"
                last = len(rows) % 2 == 0
                arguments = (campaign, channels, size, region_size, heads, dtype, last, kind)
                row = campaign.attempt(what, lambda arguments=arguments: _compare(*arguments))
                if row:
                    rows.append(row)
                    if row["holds"] != "yes":
                        campaign.failures.append(f"{what}: {row}")
    for dtype in (torch.float16,) if campaign.dry else (torch.bfloat16, torch.float16):
        row = campaign.attempt(f"steps in {dtype}", lambda dtype=dtype: _train(campaign, dtype))
        rows += [row] if row else []
    return rows


def _compare(
    campaign: Campaign,
    channels: int,
    size: tuple[int, int],
    region_size: int,
    heads: int,
    dtype: torch.dtype,
    channels_last: bool,
    kind: str,
) -> Row:
    draw = np.random.default_rng(channels + size[0])
    shape = (campaign.batch(3), channels, *size)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def normal() -> Tensor:
        x = torch.from_numpy(draw.standard_normal(shape)).to(campaign.device)
        return x.to(dtype).contiguous(memory_format=layout)

    x, g = normal(), normal()
    scale = torch.linspace(3.0, -2.0, heads).to(campaign.device)
    if kind != "normal":
        x[:, ::3] = 0
        scale = torch.full_like(scale, 60.0)
        g = g / 1024  # a dead channel's gradient is 60 / sqrt(1e-6) times as large, beyond float16

    def run(path: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = x.to(dtype).requires_grad_(), scale.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        y = region_pwconv(*leaves, region_size=region_size, heads=heads, path=path)
        return (y.detach(), *torch.autograd.grad(y, leaves, g.to(dtype)))

    torch.use_deterministic_algorithms(True, warn_only=True)  # also fills what is empty with NaN
    try:
        got = run("triton", dtype)
        again = run("triton", dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    expected = run("bmm", torch.float64)
    y, dx, ds = (_error(a, b) for a, b in zip(got, expected, strict=True))
    same = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    y_tolerance, dx_tolerance = TOLERANCE[dtype]
    # at |s| = 60 an error of a cosine counts 60 times, and gradients are differences of nearly equal numbers
    finite = all(bool(a.isfinite().all()) for a in got)
    near = y <= y_tolerance and dx <= dx_tolerance if kind == "normal" else y <= 10 * y_tolerance
    return {
        "channels": channels,
        "height": size[0],
        "width": size[1],
        "region_size": region_size,
        "heads": heads,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "channels_last" if channels_last else "nchw",
        "input": kind,
        "error_y": f"{y:.1e}",
        "error_dx": f"{dx:.1e}",
        "error_ds": f"{ds:.1e}",
        "same_bits_twice": "yes" if same else "no",
        "holds": "yes" if near and same and finite else "no",
    }


def _error(actual: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-300))


def _train(campaign: Campaign, dtype: torch.dtype) -> Row:
    """Train a small net on noise and count steps before the first loss that is not finite."""
    import timm

    import fullfield.models  # noqa: F401

    torch.manual_seed(0)
    steps, side = (2, 32) if campaign.dry else (1000, 64)
    model = timm.create_model("racnn_pico", num_classes=10).to(campaign.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(campaign.device, enabled=dtype == torch.float16 and campaign.device == "cuda")
    images = torch.randn(campaign.batch(32), 3, side, side, device=campaign.device)
    labels = torch.randint(10, (len(images),), device=campaign.device)
    finite = torch.ones((), dtype=torch.bool, device=campaign.device)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(campaign.device, dtype=dtype if campaign.device == "cuda" else torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        finite &= loss.isfinite()
    return {
        "input": f"{steps} training steps of racnn_pico",
        "dtype": str(dtype).removeprefix("torch."),
        "holds": "yes" if bool(finite) else "no",
    }
