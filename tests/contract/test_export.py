"""The contract under `torch.export`: one graph for any batch, at sizes that need padding and that do not.

Exporting is the slow part, so the model is exported once a question, in float64, where the graph and eager agree to
1e-10 whichever path each takes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import Dim, export

from .test_contract import EXACT
from .zoo import build, contract_params, declared, images, relative_error

BATCH = Dim("batch", min=1, max=64)


@pytest.mark.parametrize("name", contract_params())
class TestExport:
    """Exported graphs equal the model that they came from."""

    @pytest.fixture(autouse=True)
    def _skip_what_is_declared(self, request: pytest.FixtureRequest, name: str) -> None:
        reason = declared(name).skips.get(request.node.originalname)
        if reason:
            pytest.skip(f"{name} declares: {reason}")

    @torch.no_grad()
    def test_an_exported_graph_equals_the_model_at_a_size_that_needs_padding(self, name: str) -> None:
        model, x = build(name), images(2, 3, 50, 71)
        graph = export(model, (images(2, 3, 50, 71, seed=5),)).module()
        assert relative_error(graph(x), model(x)) < EXACT

    @torch.no_grad()
    def test_an_exported_graph_holds_for_any_batch(self, name: str) -> None:
        model = build(name)
        graph = export(model, (images(2, 3, 224, 224),), dynamic_shapes=({0: BATCH},)).module()
        for batch in (1, 2, 5):
            x = images(batch, 3, 224, 224)
            assert relative_error(graph(x), model(x)) < EXACT

    @torch.no_grad()
    def test_an_exported_graph_holds_for_any_size_of_two_pixels_or_more_on_the_last_map(self, name: str) -> None:
        model = build(name)
        reduction = model.feature_info[-1]["reduction"]
        least = 2 * reduction if declared(name).floor else reduction + 1
        sides: dict[int, Any] = {2: Dim("height", min=least, max=2048), 3: Dim("width", min=least, max=2048)}
        graph = export(model, (images(2, 3, 100, 70),), dynamic_shapes=({0: BATCH, **sides},)).module()
        for size in [(1, least, least), (2, 70, 66), (3, 64, 64), (1, 97, 130), (1, 224, 112)]:
            x = images(size[0], 3, *size[1:])
            assert relative_error(graph(x), model(x)) < EXACT, size
