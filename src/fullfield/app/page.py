"""The page as a whole: inputs beside the tabs, for a server of one's own or for `fullfield app`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fullfield.errors import MissingExtraError

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported; nothing is reported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise MissingExtraError("the page needs gradio: pip install 'fullfield[app]'") from error

from fullfield.app import style
from fullfield.app.compare_tab import add_compare_tab
from fullfield.app.cost_tab import add_cost_tab
from fullfield.app.fields_tab import add_fields_tab
from fullfield.app.inputs import add_inputs
from fullfield.app.look_tab import add_look_tab
from fullfield.app.pieces import render
from fullfield.app.predict_tab import add_predict_tab
from fullfield.app.report_tab import add_report_tab
from fullfield.app.shelf import Shelf

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["MAX_BYTES", "build_page", "mount_page"]

MAX_BYTES = 48 * 2**20
"""The largest file that is taken."""
QUEUE = 32  # visitors that wait; one more is told so
KEPT = 3600  # seconds that uploads are kept


def build_page(
    sources: Sequence[str | Path],
    *,
    device: str = "auto",
    threads: int | None = None,
    pretrained: bool = False,
) -> gr.Blocks:
    """Build the page on models, which are opened at once.

    `mount_page` gives it its look too; a page that is launched by itself wants `theme=style.theme(), css=style.css()`.

    Args:
        sources: Run folders, weights files, exported files and registered names.
        device: Where PyTorch computes: "auto", "cpu", "cuda", ...
        threads: Of the CPU, for exported files; None leaves it to the library that runs them.
        pretrained: For registered names: fetch timm's weights.

    Raises:
        ConfigError: No model is named, or one twice.
        CheckpointError: A path holds no usable model.
        ModelNotFoundError: Neither a path nor a registered name.
        MissingExtraError: What runs a file is not installed.
    """
    shelf = Shelf(sources, device=device, threads=threads, pretrained=pretrained)
    page = gr.Blocks(title="Fullfield", analytics_enabled=False, fill_width=True, delete_cache=(KEPT, KEPT))
    with page:
        gr.HTML(render("head"))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                inputs = add_inputs(shelf)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                add_predict_tab(shelf, inputs)
                add_look_tab(shelf, inputs)
                add_fields_tab(shelf, inputs)
                add_compare_tab(shelf, inputs)
                add_cost_tab(shelf)
                add_report_tab(shelf, inputs)
    page.queue(max_size=QUEUE, default_concurrency_limit=1)
    return page


def mount_page(
    application: FastAPI,
    sources: Sequence[str | Path],
    path: str = "/page",
    *,
    device: str = "auto",
    threads: int | None = None,
    pretrained: bool = False,
) -> FastAPI:
    """Put the page into an application, and return the application.

    Args:
        application: Where requests come in; its start and end are extended by the page's.
        sources: As of `build_page`.
        path: Of the page; "/" for the whole application.
        device: As of `build_page`.
        threads: As of `build_page`.
        pretrained: As of `build_page`.

    Raises:
        FullfieldError: As `build_page` raises it.
    """
    page = build_page(sources, device=device, threads=threads, pretrained=pretrained)
    mounted: FastAPI = gr.mount_gradio_app(
        application,
        page,
        path=path,
        theme=style.theme(),
        css=style.css(),
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    return mounted
