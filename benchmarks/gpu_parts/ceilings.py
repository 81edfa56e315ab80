"""What this card reaches: copying, bfloat16 products, exponentials. The bounds of the other parts come from it."""

import torch

from gpu_parts.bounds import Ceilings
from gpu_parts.campaign import Campaign, Row

EXPS_A_THREAD = 256


def measure(campaign: Campaign) -> tuple[Ceilings, list[Row]]:
    """Return the ceilings, and them as rows; where one can't be measured, the stated figure of an H100."""
    stated = Ceilings()
    reached = {
        "bytes_per_s": campaign.attempt("copying", lambda: _copying(campaign)),
        "flops_per_s": campaign.attempt("products", lambda: _products(campaign)),
        "exps_per_s": campaign.attempt("exponentials", lambda: _exponentials(campaign)),
    }
    rows = [
        {"ceiling": name, "measured": f"{value:.4g}" if value else "", "stated_h100": f"{getattr(stated, name):.4g}"}
        for name, value in reached.items()
    ]
    return Ceilings(**{name: value or getattr(stated, name) for name, value in reached.items()}), rows


def _copying(campaign: Campaign) -> float:
    source = torch.zeros(2**12 if campaign.dry else 2**30, dtype=torch.int8, device=campaign.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (campaign.time_us(lambda: target.copy_(source), flush=False) * 1e-6)


def _products(campaign: Campaign) -> float:
    side = 32 if campaign.dry else 8192
    a = torch.randn(side, side, device=campaign.device, dtype=torch.bfloat16)
    return 2 * side**3 / (campaign.time_us(lambda: a @ a, flush=False) * 1e-6)


def _exponentials(campaign: Campaign) -> float:
    import triton
    import triton.language as tl

    @triton.jit
    def exponentials(out_ptr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        value = at.to(tl.float32) * -1e-9
        for _ in tl.static_range(COUNT):
            value = tl.exp2(value)
        tl.store(out_ptr + at, value)

    count, programs, block = (2, 1, 32) if campaign.dry else (EXPS_A_THREAD, 16_384, 1024)
    out = torch.empty(programs * block, device=campaign.device)
    call = lambda: exponentials[(programs,)](out, COUNT=count, BLOCK=block, num_warps=4)  # noqa: E731
    return count * programs * block / (campaign.time_us(call, flush=False) * 1e-6)
