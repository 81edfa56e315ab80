"""Sharing a trained model through the Hugging Face Hub, and opening one that others shared.

A shared model is a repository with three files: model.safetensors, which says by itself how its model is built,
config.json for readers, and README.md, the card. Opening it reads the first alone, and executes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullfield.deploy.model_card import CARD, CONFIG
from fullfield.errors import ConfigError, MissingExtraError, RunError
from fullfield.files import write_error
from fullfield.models.hub_file import WEIGHTS, hub_errors
from fullfield.tasks.open import OpenedDense
from fullfield.tasks.source import OpenedModel

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

    from fullfield.deploy.shared_model import SharedModel

__all__ = ["Pushed", "from_pretrained", "push", "save_pretrained"]

FILES = (WEIGHTS, CONFIG, CARD)


@dataclass(frozen=True)
class Pushed:
    """What `push` did.

    Attributes:
        url: Of the commit.
        files: Names of the files that were uploaded.
        card_kept: The repository had a card, and it was left as it was.
    """

    url: str
    files: tuple[str, ...]
    card_kept: bool


def save_pretrained(
    source: str | Path,
    folder: str | Path,
    *,
    repository: str = "USER/NAME",
    license: str | None = None,  # noqa: A002
    data: str | None = None,
) -> Path:
    """Write what `push` would upload into a folder, and upload nothing.

    Args:
        source: A run folder, or a weights file of Fullfield's, of any task.
        folder: New or empty; parents are made too.
        repository: "USER/NAME", as the card's example names it.
        license: The Hub's identifier of the licence, such as "apache-2.0"; None leaves it to fill in.
        data: What it was trained on, in your words; None leaves it to fill in.

    Returns:
        The folder.

    Raises:
        CheckpointError: The source holds no usable weights.
        RunError: The folder is not empty, or can't be written.
        ConfigError: The licence is no identifier.
        MissingExtraError: huggingface_hub is not installed.
    """
    words = _words(repository, license, data)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not empty; nothing was written. Choose another folder")
    model = _shared_model()(source, device="cpu")
    _ = model.facts  # what can't be shared is refused before anything is written
    try:
        model.save_pretrained(folder, model_card_kwargs=words)
    except OSError as error:
        raise error if isinstance(error, RunError) else write_error(folder, error) from error
    return folder


def push(
    source: str | Path,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    license: str | None = None,  # noqa: A002
    data: str | None = None,
    replace_card: bool = False,
) -> Pushed:
    """Upload a trained model to the Hugging Face Hub, in one commit; the repository is made if there is none.

    Uploaded are `FILES` and nothing else: no image, no path and no name of a folder of this machine (see
    `shared_facts`). What the repository held before stays in its history.

    Args:
        source: A run folder, or a weights file of Fullfield's, of any task.
        repository: "USER/NAME".
        private: Make it for your own account only; a public repository that is there already is refused.
        token: Of an account that may write there; None for the one that `hf auth login` stored, or HF_TOKEN.
        license: The Hub's identifier of the licence, such as "apache-2.0"; None leaves it to fill in.
        data: What it was trained on, in your words; None leaves it to fill in.
        replace_card: Write the card anew where the repository has one, which is kept otherwise.

    Raises:
        CheckpointError: The source holds no usable weights.
        RunError: The Hub can't be reached or refuses, or the repository is public and was to be private.
        ConfigError: The name or the licence is none.
        MissingExtraError: huggingface_hub is not installed.
    """
    words = _words(repository, license, data)
    with hub_errors(repository, RunError):
        from huggingface_hub import HfApi

        model = _shared_model()(source, device="cpu")
        _ = model.facts  # likewise, before a repository is made
        before = _existing(HfApi(token=token), repository)
        if private and before is not None and not before.private:
            raise RunError(
                f"{repository} is there already and is public, so nothing was uploaded; make it private on the Hub, or"
                " choose another name"
            )
        has_card = before is not None and any(file.rfilename == CARD for file in before.siblings or ())
        kept = has_card and not replace_card
        url = model.push_to_hub(
            repository,
            commit_message="Share a model with Fullfield",
            private=True if private else None,  # None: what the account or organisation has as its own default
            token=token,
            ignore_patterns=[CARD] if kept else None,
            model_card_kwargs=words,
        )
    return Pushed(str(url), tuple(file for file in FILES if not (kept and file == CARD)), kept)


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    device: str = "auto",
) -> OpenedModel | OpenedDense:
    """Open a shared model. Its weights file is fetched unless it is here already, and nothing in it is executed.

    Args:
        source: "USER/NAME" on the Hub, also "hf-hub:USER/NAME@REVISION", or a folder that `save_pretrained` made.
        revision: Branch, tag or commit; None for the newest.
        token: Of an account, for private and gated repositories; None for the one that `hf auth login` stored.
        cache_dir: Where fetched files are kept; None for huggingface_hub's own place.
        force_download: Fetch it again.
        local_files_only: Take it from the cache, and ask nobody.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...

    Returns:
        The model in eval mode with its classes and preprocessing, as `fullfield.predict` takes it.

    Raises:
        CheckpointError: It can't be had, has pickles only, or is not Fullfield's.
        ConfigError: The name is none, or the device is not to be had here.
        MissingExtraError: huggingface_hub is not installed.
    """
    model = _shared_model().from_pretrained(
        source,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        force_download=force_download,
        local_files_only=local_files_only,
        device=device,
    )
    return replace(model.opened, source=str(source))


def _shared_model() -> type[SharedModel]:
    try:
        from fullfield.deploy.shared_model import SharedModel
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise MissingExtraError("sharing models needs huggingface_hub: pip install 'fullfield[hub]'") from error
    return SharedModel


def _existing(api: Any, repository: str) -> ModelInfo | None:
    """Return what the Hub says of a repository; None if there is none, or none that this account may see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info: ModelInfo = api.model_info(repository)
    except RepositoryNotFoundError:
        return None
    return info


def _words(repository: str, license: str | None, data: str | None) -> dict[str, Any]:  # noqa: A002
    """Return what the card needs of the author."""
    if license is not None and re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", license) is None:
        raise ConfigError(
            f"license is {license!r}; give the Hub's identifier, such as apache-2.0, mit, cc-by-4.0 or other"
        )
    return {"repository": repository, "license": license, "data": data}
