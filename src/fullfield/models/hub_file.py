"""Fetching a model's weights from the Hugging Face Hub: one safetensors file, and nothing that could be executed.

huggingface_hub is imported when something is fetched. What can go wrong on the way (no network, no such repository,
no permission) becomes one sentence with the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fullfield.errors import CheckpointError, ConfigError, FullfieldError, MissingExtraError, nearest
from fullfield.files import DENIED, FULL, write_error

__all__ = ["WEIGHTS", "fetch_weights", "find_shared", "hub_errors", "hub_repository"]

WEIGHTS = "model.safetensors"
"""The one file of a shared model that is loaded; it says by itself how its model is built."""

_PREFIX = re.compile(r"hf[-_]hub:")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


def hub_repository(source: str | Path) -> tuple[str, str | None] | None:
    """Return the repository and the revision that "hf-hub:USER/NAME@REVISION" means; None for any other source.

    The revision is None where there is none. timm writes its sources the same way.
    """
    text = str(source)
    if _PREFIX.match(text) is None:
        return None
    name, _, revision = _PREFIX.sub("", text, count=1).partition("@")
    return name, revision or None


def find_shared(source: str | Path, *, revision: str | None = None, **download: str | bool | Path | None) -> Path:
    """Return the weights file of a shared model: of a folder here, or of a repository, which is fetched.

    Args:
        source: A folder with `WEIGHTS`, "USER/NAME", or "hf-hub:USER/NAME@REVISION".
        revision: Branch, tag or commit; None for the newest.
        download: See `fetch_weights`.

    Raises:
        CheckpointError: There is no such folder or repository, it can't be fetched, or it has no `WEIGHTS`.
        ConfigError: It is no name of a repository.
        MissingExtraError: huggingface_hub is not installed.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(_without_weights(str(folder), (path.name for path in folder.iterdir())))
        return folder / WEIGHTS
    named = hub_repository(source)
    repository, own = (str(source), None) if named is None else named
    if named is None and _NAME.fullmatch(repository) is None:
        there = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise CheckpointError(
            f"there is no folder {folder}, and it is no repository either (USER/NAME){nearest(folder.name, there)}"
        )
    return fetch_weights(repository, revision=revision or own, **download)  # type: ignore[arg-type]


def fetch_weights(
    repository: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Fetch the weights of a repository into huggingface_hub's cache; what is there already is not fetched again.

    Args:
        repository: "USER/NAME".
        revision: Branch, tag or commit; None for the newest.
        token: Of an account; None for the one that `hf auth login` stored, False for none.
        cache_dir: None for huggingface_hub's own.
        force_download: Fetch it again.
        local_files_only: Take it from the cache, and ask nobody.

    Returns:
        The file in the cache.

    Raises:
        CheckpointError: It can't be had, or the repository has no `WEIGHTS`, such as one that has pickles only.
        ConfigError: `repository` is no name of one.
        MissingExtraError: huggingface_hub is not installed.
    """
    with hub_errors(repository, CheckpointError):
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            fetched = hf_hub_download(
                repository,
                WEIGHTS,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                library_name="fullfield",
            )
        except LocalEntryNotFoundError:  # an EntryNotFoundError too, but of the cache
            raise
        except EntryNotFoundError as error:
            there = HfApi(token=token).list_repo_files(repository, revision=revision)
            raise CheckpointError(_without_weights(repository, there)) from error
        return Path(fetched)


def _without_weights(where: str, there: Iterable[str]) -> str:
    """Return the message for a folder or repository without `WEIGHTS`."""
    names = sorted(there)
    pickles = [name for name in names if PurePosixPath(name).suffix.lower() in _PICKLES]
    if pickles:
        return (
            f"{where} is refused: its weights are pickles ({', '.join(pickles[:3])}), which can run code when they are"
            f" opened, and it has no {WEIGHTS}. Ask its author to share that file, or fetch the pickle yourself and"
            " give it to `fullfield convert`, which reads its tensors alone"
        )
    other = [name for name in names if name.endswith(".safetensors")]
    if other:
        return f"{where} has no {WEIGHTS}, only {', '.join(other[:3])}; fetch the file and open it by its path"
    return f"{where} has no {WEIGHTS}; give what `fullfield push` or save_pretrained made"


@contextmanager
def hub_errors(repository: str, kind: type[FullfieldError]) -> Iterator[None]:
    """Turn what huggingface_hub raises within the block into errors that say what to do.

    Args:
        repository: "USER/NAME", for the messages.
        kind: What is raised: `CheckpointError` for reading, `RunError` for writing.

    Raises:
        ConfigError: `repository` is no name of one.
        MissingExtraError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import errors as hub
    except ImportError as error:
        raise MissingExtraError("the Hugging Face Hub needs huggingface_hub: pip install 'fullfield[hub]'") from error
    if _NAME.fullmatch(repository) is None:
        raise ConfigError(_misnamed(repository))
    # the base of all errors of the HTTP library, which differs between versions: requests, httpx, httpx2
    no_answer: tuple[type[Exception], ...] = hub.HfHubHTTPError.__bases__
    page = f"https://huggingface.co/{repository}"
    try:
        yield
    except FullfieldError:
        raise
    except hub.HFValidationError as error:
        raise ConfigError(_misnamed(repository)) from error
    except hub.GatedRepoError as error:
        raise kind(
            f"{repository} is given only to those who asked for it: ask on {page}, then log in with `hf auth login`"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise kind(
            f"the Hub has no repository {repository}, or it is private and you are not logged in to an account that"
            " may see it; check the name, or log in with `hf auth login`"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise kind(f"{repository} has no such revision; {page}/commits/main lists them") from error
    except hub.LocalTokenNotFoundError as error:
        raise kind(_login(repository)) from error
    except hub.OfflineModeIsEnabled as error:
        raise kind(f"{repository} can't be reached: HF_HUB_OFFLINE is set; unset it") from error
    except hub.LocalEntryNotFoundError as error:
        raise kind(
            f"{repository} is not in the cache of this machine, and was not fetched: there is no network, or it was"
            f" told not to use it. Check the network, or fetch {page} elsewhere and give the folder"
        ) from error
    except hub.HfHubHTTPError as error:
        raise kind(_refused(repository, getattr(error.response, "status_code", None), error)) from error
    except no_answer as error:
        if isinstance(error, OSError) and error.errno in (*FULL, *DENIED):
            raise write_error(Path(error.filename or "the cache of huggingface_hub"), error) from error
        raise kind(f"the Hub can't be reached for {repository} ({_first_line(error)}); check the network") from error


def _refused(repository: str, status: int | None, error: Exception) -> str:
    if status == 401:
        return _login(repository)
    if status == 403:
        return (
            f"your account or its token may not do this with {repository}: use a token with write access, or a"
            " repository of your own"
        )
    if status == 429:
        return f"the Hub asks for fewer requests ({repository}); try again in a few minutes"
    if status is not None and status >= 500:
        return f"the Hub is out of order (status {status}, {repository}); try again later"
    return f"the Hub refused this for {repository}: {_first_line(error)}"


def _misnamed(repository: str) -> str:
    return f"{repository!r} is no name of a repository on the Hub; give it as USER/NAME"


def _login(repository: str) -> str:
    return f"the Hub wants to know who asks for {repository}: log in with `hf auth login`, or set HF_TOKEN"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
