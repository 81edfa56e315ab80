"""The bar on a terminal, and its absence elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fullfield import progress
from fullfield.progress import image_progress, output


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with image_progress("training", 10) as advance:
        advance(5, "loss 1.0")
    assert capsys.readouterr() == ("", "")


def test_terminal_shows_the_label_the_count_and_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "console", Console(file=screen, force_terminal=True, width=120, force_interactive=True)
    )
    with image_progress("training", 30, seen=10) as advance:
        advance(5, "loss 1.0")
        advance(10, "loss 0.5")
    shown = screen.getvalue()
    assert "training" in shown
    assert "25/30" in shown
    assert "loss 0.5" in shown
    assert "images/s" in shown


def test_bar_is_taken_away_when_the_work_fails() -> None:
    with pytest.raises(ZeroDivisionError), image_progress("training", 10):
        raise ZeroDivisionError


def test_results_go_to_standard_output_and_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    output().print("x" * 150)
    assert capsys.readouterr() == ("x" * 150 + "\n", "")
