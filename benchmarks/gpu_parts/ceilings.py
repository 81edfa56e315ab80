"""What this card reaches: copying, bfloat16 products, exponentials. The bounds of the other parts come from it."""

import torch

from gpu_parts.bounds import Ceilings
from gpu_parts.session import Row, Session

EXPS_A_THREAD = 256


def measure(session: Session) -> tuple[Ceilings, list[Row]]:
    """Return the ceilings, and them as rows; where one can't be measured, the stated figure of an H100."""
    stated = Ceilings()
    reached = {
        "bytes_per_s": session.attempt("copying", lambda: _copying(session)),
        "flops_per_s": session.attempt("products", lambda: _products(session)),
        "exps_per_s": session.attempt("exponentials", lambda: _exponentials(session)),
    }
    rows = [
        {"ceiling": name, "measured": f"{value:.4g}" if value else "", "stated_h100": f"{getattr(stated, name):.4g}"}
        for name, value in reached.items()
    ]
    return Ceilings(**{name: value or getattr(stated, name) for name, value in reached.items()}), rows


def _copying(session: Session) -> float:
    source = torch.zeros(2**12 if session.dry else 2**30, dtype=torch.int8, device=session.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (session.time_us(lambda: target.copy_(source), flush=False) * 1e-6)


def _products(session: Session) -> float:
    side = 32 if session.dry else 8192
    a = torch.randn(side, side, device=session.device, dtype=torch.bfloat16)
    return 2 * side**3 / (session.time_us(lambda: a @ a, flush=False) * 1e-6)


def _exponentials(session: Session) -> float:
    import triton
    import triton.language as tl

    @triton.jit
    def exponentials(out_ptr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        value = at.to(tl.float32) * -1e-9
        for _ in tl.static_range(COUNT):
            value = tl.exp2(value)
        tl.store(out_ptr + at, value)

    count, programs, block = (2, 1, 32) if session.dry else (EXPS_A_THREAD, 16_384, 1024)
    out = torch.empty(programs * block, device=session.device)
    call = lambda: exponentials[(programs,)](out, COUNT=count, BLOCK=block, num_warps=4)  # noqa: E731
    return count * programs * block / (session.time_us(call, flush=False) * 1e-6)
