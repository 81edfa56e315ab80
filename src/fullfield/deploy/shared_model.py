"""A trained model as users of the Hugging Face Hub expect one: save_pretrained, push_to_hub, from_pretrained.

The mixin is huggingface_hub's. It makes the repository, uploads in one commit and asks this class for the files:
the weights with all that builds their model, config.json for readers, and the card. Loading reads the weights file
alone: the mixin would pass what a downloaded config.json says to the constructor, and nobody needs that here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin

from fullfield.deploy.engine import is_exported
from fullfield.deploy.model_card import CONFIG, config_json, model_card
from fullfield.deploy.shared_facts import SharedFacts, read_facts, shared_weights
from fullfield.errors import CheckpointError
from fullfield.files import write_json
from fullfield.models.hub_file import WEIGHTS, find_shared
from fullfield.models.weights import write_weights
from fullfield.tasks.open import open_any

__all__ = ["SharedModel"]


class SharedModel(ModelHubMixin, library_name="fullfield", tags=["fullfield"]):
    """A trained model that can be shared.

    Attributes:
        opened: The model in eval mode, with its classes and preprocessing: an `OpenedModel` or `OpenedDense`.
        source: Where its weights lie here.

    Args:
        source: A run folder, or a weights file of Fullfield's.
        device: "auto", "cpu", "cuda", ...

    Raises:
        CheckpointError: The source holds no usable weights.
    """

    def __init__(self, source: str | Path, *, device: str = "auto") -> None:
        if is_exported(source):
            raise CheckpointError(
                f"{source} is an exported file, and what is shared here are runs and their weights; give the run, or"
                " upload the file with `hf upload`"
            )
        self._hub_mixin_config = None  # the mixin takes the arguments for a config; they are paths of this machine
        self.source = Path(source)
        self._facts: SharedFacts | None = None
        self.opened = open_any(source, device=device)

    @property
    def facts(self) -> SharedFacts:
        """What may be told of the model.

        Raises:
            CheckpointError: It is a registered model without weights of its own.
        """
        if self._facts is None:
            self._facts = read_facts(self.source, self.opened)
        return self._facts

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights and config.json; the mixin writes the card."""
        facts = self.facts
        write_weights(save_directory / WEIGHTS, *shared_weights(self.source))
        write_json(save_directory / CONFIG, config_json(facts))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        device: str = "auto",
    ) -> SharedModel:
        """Load a shared model; see `fullfield.deploy.hub.from_pretrained`."""
        file = find_shared(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return cls(file, device=device)

    def generate_model_card(self, *_: Any, **words: Any) -> ModelCard:
        """Return the card.

        Args:
            words: `repository`, and what only the author knows: see `model_card`.
        """
        return ModelCard(model_card(self.facts, words.pop("repository", "USER/NAME"), **words))
