"""`fullfield push RUN USER/NAME`: a trained model for others, on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from fullfield.cli.parse import parse
from fullfield.deploy.hub import push, save_pretrained
from fullfield.progress import console, output

__all__ = ["PushArguments", "run"]


@dataclass(frozen=True)
class PushArguments:
    """Share a trained model on the Hugging Face Hub: its weights, a model card and a config, and nothing else.

    Log in before with `hf auth login`, or set HF_TOKEN.
    """

    source: str
    """Run folder, or a weights file of Fullfield's."""
    repository: str
    """USER/NAME; made if there is none."""
    private: bool = False
    """For your own account only."""
    license: str | None = None
    """The Hub's identifier of the licence, such as apache-2.0 or cc-by-4.0. By default left to fill in."""
    data: str | None = None
    """What it was trained on, in your words. By default left to fill in."""
    replace_card: bool = False
    """Write the model card anew where the repository has one; otherwise it is kept."""
    dry_run: str | None = None
    """Write what would be uploaded into this folder, new or empty, and upload nothing."""


def run(argv: list[str]) -> int:
    """Upload, or write what would be uploaded, and say what it was."""
    arguments = parse(PushArguments, "push", argv)
    words = {"license": arguments.license, "data": arguments.data}
    screen = output()
    if arguments.dry_run is not None:
        folder = save_pretrained(arguments.source, arguments.dry_run, repository=arguments.repository, **words)
        for file in sorted(folder.iterdir()):
            screen.print(f"{_size(file):>10}  {escape(file.name)}", soft_wrap=True)
        screen.print(f"would go to {escape(arguments.repository)}; written to {escape(str(folder))}", soft_wrap=True)
    else:
        pushed = push(
            arguments.source,
            arguments.repository,
            private=arguments.private,
            replace_card=arguments.replace_card,
            **words,
        )
        screen.print(f"uploaded {', '.join(pushed.files)}: {escape(pushed.url)}", soft_wrap=True)
        if pushed.card_kept:
            console.print("its model card was kept; --replace-card writes it anew", style="yellow")
            return 0
    if arguments.license is None or arguments.data is None:
        console.print("the model card leaves to you what is marked in it: licence, data, purpose", style="yellow")
    return 0


def _size(file: Path) -> str:
    size = file.stat().st_size
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
