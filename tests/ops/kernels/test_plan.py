"""Which kernel runs, as numbers: every window from 1 to 10,000 pixels has a plan or is said to have none."""

from __future__ import annotations

import pytest

from fullfield.ops.kernels.plan import plan, power_of_two, worth_it

HEAD_WIDTHS = [1, 2, 16, 17, 32, 48, 64, 65, 72, 80, 96, 128, 130, 256, 320, 512, 768]
PIXELS = [1, 2, 4, 16, 17, 49, 64, 65, 128, 129, 1000, 10_000]


@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("head_width", HEAD_WIDTHS)
@pytest.mark.parametrize("cosine", [True, False])
def test_blocks_are_powers_of_two_that_cover_the_head_and_fit_a_program(cosine, head_width, pixels):
    chosen = plan(head_width, pixels, cosine=cosine)
    if chosen is None:
        assert head_width > 64
        assert pixels > 128
        return
    for block in (chosen.block_rows, chosen.block_columns):
        assert block == power_of_two(block)
    assert {chosen.forward_warps, chosen.backward_warps} <= {1, 2, 4, 8}
    if chosen.kernel == "tile":
        assert chosen.block_rows == chosen.block_columns >= head_width
        assert chosen.block_rows * chosen.block_columns <= 64 * 64
    if chosen.kernel == "rows":
        assert chosen.block_pixels >= pixels
    if chosen.kernel == "pixel":
        assert (pixels, cosine) == (1, True)


@pytest.mark.parametrize("head_width", [w for w in HEAD_WIDTHS if w > 64])
def test_rows_waste_at_most_a_quarter_where_smaller_blocks_can_avoid_it(head_width):
    rows = plan(head_width, 49).block_rows
    padded = -(-head_width // rows) * rows
    assert padded <= 1.25 * head_width or rows == 16


@pytest.mark.parametrize(
    ("head_width", "pixels", "kernel"),
    [(64, 64, "tile"), (64, 16, "tile"), (64, 4, "tile"), (64, 49, "tile"), (64, 1, "pixel"), (72, 64, "rows")],
    ids=["tiny 1", "tiny 2", "tiny 3", "tiny 4", "tiny 4 at r = 7", "small 1"],
)
def test_stages_of_racnn_at_224_have_the_kernel_meant_for_them(head_width, pixels, kernel):
    assert plan(head_width, pixels).kernel == kernel


def test_the_rule_leaves_long_walks_of_few_programs_to_matrix_products():
    assert worth_it(64, 64, windows=6272)
    assert worth_it(64, 10_000, windows=128)
    assert not worth_it(64, 10_000, windows=8)
    assert not worth_it(512, 10_000, windows=6272)
    assert worth_it(512, 1, windows=49)


def test_inner_products_of_single_pixels_are_not_sent_to_the_kernel_of_cosines():
    assert plan(64, 1, cosine=False).kernel == "tile"
    assert plan(512, 1, cosine=False).kernel == "rows"
