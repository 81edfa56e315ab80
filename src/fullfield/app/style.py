"""How the page looks: a plain gradio theme without fonts of its own, and the rules of `style.css`."""

from __future__ import annotations

from importlib.resources import files

import gradio as gr

__all__ = ["css", "theme"]


def theme() -> gr.themes.Base:
    """Return the theme: blue on white or near black, small radii, no shadows, the system's fonts."""
    made = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="sm",
        font=_system(),
        font_mono=_system(),
    )
    return made.set(
        button_primary_background_fill="#1f5fbf",
        button_primary_background_fill_hover="#184c9a",
        button_primary_text_color="#ffffff",
        body_text_color_subdued="*neutral_600",  # the theme's own grey is too pale to read on white
        body_text_color_subdued_dark="*neutral_400",
        block_shadow="none",
        block_border_width="1px",
        block_label_text_weight="500",
    )


def css() -> str:
    """Return our own rules."""
    return files("fullfield.app").joinpath("style.css").read_text(encoding="utf-8")


def _system() -> tuple[gr.themes.utils.fonts.Font, ...]:
    """Return a font that is nowhere loaded from; gradio's default, and any plain name, would be fetched."""
    return (gr.themes.utils.fonts.Font("sans-serif"),)
