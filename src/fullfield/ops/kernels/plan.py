"""Which kernel runs region_pwconv, and with which blocks: a rule of plain numbers that needs neither Triton nor a GPU.

Three kernels share the work. n is the number of pixels of a window, d the number of channels of a head.

- "tile": d <= 64, any n. One program holds a head's whole (d, d) map in registers and walks over the pixels.
- "rows": d > 64, n <= 128. One program holds a block of rows and walks over the columns, as FlashAttention does.
- "pixel": n = 1, cosine. Every cosine is a product of two numbers, so there is no matrix product at all.

What is left, d > 64 with n > 128, has maps that are small beside x: plain matrix products serve it well, and there
is no plan. The figures below follow from registers: a map of 64 x 64 float32 numbers takes 32 of the 255 registers
of each of 128 threads, and the backward pass holds four to six of them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Plan", "plan"]

MIN_BLOCK = 16  # the least extent of a tensor-core product
TILE_CHANNELS = 64
ROWS_PIXELS = 128
PIXEL_STEP = 16
FEWEST_PROGRAMS = 128  # about one for each multiprocessor of an H100


@dataclass(frozen=True)
class Plan:
    """A kernel and its blocks.

    Args:
        kernel: "tile", "rows" or "pixel".
        block_rows: Channels whose outputs one program computes; all of a head's for "tile".
        block_columns: Channels it reads at a time; all of a head's for "tile".
        block_pixels: Pixels it reads at a time; 1 for "pixel".
        forward_warps: Groups of 32 threads a program of the forward pass.
        backward_warps: The same of the backward pass.
    """

    kernel: str
    block_rows: int
    block_columns: int
    block_pixels: int
    forward_warps: int
    backward_warps: int


def plan(head_width: int, pixels: int, *, cosine: bool = True) -> Plan | None:
    """Return how to run one window of one head, or None where no kernel fits.

    Args:
        head_width: d, channels of a head.
        pixels: n, of the largest window.
        cosine: Whether similarities are cosines.
    """
    if pixels == 1 and cosine:
        rows = min(128, power_of_two(head_width))
        return Plan("pixel", rows, min(PIXEL_STEP, rows), 1, _warps(rows), _warps(rows))
    if head_width <= TILE_CHANNELS:
        block = power_of_two(head_width)
        step = min(64, power_of_two(pixels))
        # a walk over the pixels keeps three maps in registers at once where a single step keeps fewer
        return Plan("tile", block, block, step, _warps(block), _warps(block) * (1 if pixels <= step else 2))
    if pixels <= ROWS_PIXELS:
        # blocks of 64 rows feed the tensor cores best; smaller ones where more than a quarter would be padding, or
        # where the pixels of so many rows would not fit the registers
        candidates = (64, 32) if pixels <= 32 else (32,)
        rows = next((block for block in candidates if _padded(head_width, block) <= 1.25 * head_width), MIN_BLOCK)
        columns = 32 if rows == 64 else MIN_BLOCK
        warps = _warps(rows) * (1 if pixels <= 32 else 2)
        return Plan("rows", rows, columns, power_of_two(pixels), warps, warps * (1 if pixels <= 64 else 2))
    return None


def worth_it(head_width: int, pixels: int, windows: int, *, cosine: bool = True) -> bool:
    """Whether the rule may prefer the kernels to plain matrix products: there is a plan, and it fills the GPU.

    Args:
        head_width: d.
        pixels: n.
        windows: Windows times heads times images, the number of programs of "tile".
        cosine: Whether similarities are cosines.
    """
    chosen = plan(head_width, pixels, cosine=cosine)
    if chosen is None:
        return False
    # a program that walks over many pixels, while most of the GPU idles, loses to a product that is split
    return pixels <= ROWS_PIXELS or windows >= FEWEST_PROGRAMS


def power_of_two(size: int) -> int:
    """Return the least power of two that holds `size`, at least 16."""
    return max(MIN_BLOCK, 1 << (size - 1).bit_length())


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block


def _warps(rows: int) -> int:
    return 4 if rows >= 64 else 2 if rows == 32 else 1
