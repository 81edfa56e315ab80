"""LayerNorm over channels: timm's values in the memory format of the input."""

from __future__ import annotations

import pytest
import timm.layers
import torch

from fullfield.layers import LayerNorm2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_are_timm_s_and_the_memory_format_is_the_input_s(memory_format: torch.memory_format) -> None:
    ours, theirs = LayerNorm2d(6, eps=1e-5), timm.layers.LayerNorm2d(6, eps=1e-5)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=memory_format)
    y = ours(x)
    assert torch.equal(y, theirs(x))
    assert y.is_contiguous(memory_format=memory_format)
