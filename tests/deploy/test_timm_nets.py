"""timm's small nets, one for each kind of block, exported to ONNX and OpenVINO and compared with PyTorch there.

They have timm's blocks whole and few channels. Nets of usual size, drawn by a seed, are in studies/export.
"""

from pathlib import Path

import pytest
import timm
import torch

from fullfield.data.sample import sample_path
from fullfield.deploy.export import export
from fullfield.tasks.answers import find_images

NETS = timm.list_models("test_*")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("net", NETS)
def test_file_gives_pytorchs_answers(net: str, to: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = find_images([sample_path("blood_cells")])[::20]
    found = export(net, to, tmp_path, images=images, timing_seconds=0).verification
    assert found is not None
    assert (found.passed, found.problems) == (True, ())
    assert found.difference is not None
    assert found.difference < 1e-4
