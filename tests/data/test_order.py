from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfield.data import epoch_order
from fullfield.errors import ConfigError


def ranges(sizes: list[int]) -> list[range]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def test_without_blocks_the_order_is_torch_s_permutation_of_the_mixed_seed() -> None:
    digest = hashlib.blake2b(b"5/order/3", digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    assert epoch_order(50, seed=5, epoch=3) == torch.randperm(50, generator=generator).tolist()


def test_order_without_blocks_is_the_one_of_earlier_versions() -> None:
    assert epoch_order(10, seed=0, epoch=0) == [4, 5, 2, 9, 0, 7, 8, 1, 6, 3]


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_every_position_comes_once_and_windows_hold_whole_blocks(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    blocks = ranges(sizes)
    order = epoch_order(sum(sizes), seed=seed, epoch=epoch, blocks=blocks, window=window)
    assert sorted(order) == list(range(sum(sizes)))
    assert order == epoch_order(sum(sizes), seed=seed, epoch=epoch, blocks=blocks, window=window)
    block_of = [number for number, block in enumerate(blocks) for _ in block]
    seen: list[int] = []
    while order:
        chosen: list[int] = []
        while len(chosen) < window and sum(len(blocks[b]) for b in chosen) < len(order):
            taken = sum(len(blocks[b]) for b in chosen)
            chosen = list(dict.fromkeys(block_of[position] for position in order[: taken + 1]))
            if sum(len(blocks[b]) for b in chosen) == taken:
                break
        count = sum(len(blocks[b]) for b in chosen)
        assert sorted(order[:count]) == sorted(p for b in chosen for p in blocks[b])
        seen += chosen
        order = order[count:]
    assert sorted(seen) == list(range(len(sizes)))


def test_no_more_blocks_than_the_window_are_open_at_a_time() -> None:
    blocks = ranges([10] * 30)
    order = epoch_order(300, seed=1, epoch=2, blocks=blocks, window=4)
    for start in range(0, 300, 40):
        assert len({position // 10 for position in order[start : start + 40]}) == (4 if start < 280 else 2)


def test_images_within_a_window_are_mixed_and_epochs_differ() -> None:
    blocks = ranges([50] * 8)
    first, second = (epoch_order(400, seed=0, epoch=epoch, blocks=blocks, window=8) for epoch in (0, 1))
    assert first != second
    assert len({position // 50 for position in first[:40]}) == 8
    assert epoch_order(400, seed=1, epoch=0, blocks=blocks, window=8) != first


def test_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    epoch_order(20, seed=0, epoch=0, blocks=[range(20)])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ([range(5), range(6, 10)], r"block range\(6, 10\) does not start at 5"),
        ([range(5), range(4, 10)], "does not start at 5"),
        ([range(0, 10, 2)], r"block range\(0, 10, 2\)"),
        ([range(5)], "blocks end at 5; they must cover all 10 images"),
        ([], "blocks end at 0"),
    ],
)
def test_blocks_that_do_not_cover_the_images_are_refused(blocks: list[range], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        epoch_order(10, seed=0, epoch=0, blocks=blocks)


def test_impossible_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="window is 0"):
        epoch_order(10, seed=0, epoch=0, blocks=[range(10)], window=0)
