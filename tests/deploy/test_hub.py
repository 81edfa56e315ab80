"""Sharing through huggingface_hub: what is uploaded, what is not, what is fetched, and what goes wrong.

huggingface_hub itself runs against a stand-in on this machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelHubMixin, constants, errors
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file

import fullfield
from fullfield.cli.push import run as push_command
from fullfield.data import Preprocess
from fullfield.data.dense import DensePreprocess
from fullfield.deploy.hub import from_pretrained, push, save_pretrained
from fullfield.deploy.shared_model import SharedModel
from fullfield.errors import CheckpointError, ConfigError, MissingExtraError, RunError
from fullfield.models.hub_file import fetch_weights, find_shared, hub_errors, hub_repository
from fullfield.tasks.dense_file import build_dense, dense_metadata, save_dense
from fullfield.tasks.open import open_any
from fullfield.tasks.source import checkpoint_metadata
from tests.deploy.hub_server import Hub, serving

FILES = ["README.md", "config.json", "model.safetensors"]
TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
HEADS = {"detect": ("fcos", {"fpn_channels": 16, "convs": 1}), "segment": ("unet", {})}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield running


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A classifier's weights file that lies in no run."""
    return write_classifier(tmp_path / "small.safetensors")


def write_classifier(path: Path, **more: Any) -> Path:
    model = fullfield.create_model("racnn_pico", num_classes=3, **TINY)
    metadata = checkpoint_metadata(("a", "b", "c"), Preprocess(image_size=32), **more)
    return fullfield.save(model, path, metadata)


def write_dense(path: Path, task: str) -> Path:
    head, arguments = HEADS[task]
    preprocess = DensePreprocess(short_side=64)
    told = {"head": head, "head_arguments": arguments, "classes": ["x", "y"], "preprocess": preprocess.to_dict()}
    model: Any = build_dense(task, "racnn_pico", TINY, told)
    colours = {"colours": [[1, 2, 3], [4, 5, 6]], "ignore_index": 255} if task == "segment" else {}
    return save_dense(model, path, dense_metadata(model, ("x", "y"), preprocess, task, **colours))


def test_a_run_comes_back_from_its_shared_folder_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    folder = save_pretrained(finished, tmp_path / "shared")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    ours, theirs = open_any(finished, device="cpu"), from_pretrained(folder, device="cpu")
    assert (theirs.classes, theirs.preprocess, theirs.task) == (ours.classes, ours.preprocess, "classify")
    assert theirs.source == str(folder)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs.model(images), ours.model(images))


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_dense_models_come_back_too(task: str, tmp_path: Path) -> None:
    file = write_dense(tmp_path / "dense.safetensors", task)
    opened: Any = from_pretrained(save_pretrained(file, tmp_path / "shared"), device="cpu")
    assert (opened.task, opened.classes) == (task, ("x", "y"))
    assert all(torch.equal(t, opened.model.state_dict()[name]) for name, t in load_file(file).items())
    if task == "segment":
        assert opened.colours == ((1, 2, 3), (4, 5, 6))


def test_nothing_of_this_machine_is_in_the_shared_files(finished: Path, photos: Path, tmp_path: Path) -> None:
    folder = save_pretrained(finished, tmp_path / "shared")
    settings = finished.joinpath("config.yaml").read_text()
    assert str(photos) in settings  # what must not get out is there
    assert str(finished) in settings
    shared = b"".join(path.read_bytes() for path in folder.iterdir())
    for secret in (str(photos), str(finished), photos.name, finished.name, str(tmp_path), str(Path.cwd()), "00.jpg"):
        assert secret.encode() not in shared, secret


def test_what_was_saved_beside_the_weights_by_hand_stays_here(tmp_path: Path) -> None:
    file = write_classifier(tmp_path / "own.safetensors", author="/home/anna", val_top1=0.5, val_note="/data", epoch=3)
    folder = save_pretrained(file, tmp_path / "shared")
    shared = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"/home/anna" not in shared
    assert b"/data" not in shared
    assert b'\\"val_top1\\": 0.5' in shared


def test_timm_makes_a_shared_classifier_from_the_same_folder(finished: Path, tmp_path: Path) -> None:
    folder = save_pretrained(finished, tmp_path / "shared")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), open_any(finished, device="cpu").model(images))
    assert tuple(timm.data.resolve_model_data_config(model)["input_size"]) == (3, 32, 32)


def test_a_downloaded_config_decides_nothing(small: Path, tmp_path: Path) -> None:
    folder = save_pretrained(small, tmp_path / "shared")
    (folder / "config.json").write_text('{"source": "/etc/passwd", "device": "nowhere", "architecture": "x"}')
    assert from_pretrained(folder).classes == ("a", "b", "c")
    (folder / "config.json").write_text("no JSON")
    assert from_pretrained(folder).classes == ("a", "b", "c")


def test_a_folder_with_something_in_it_is_left_alone(small: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    with pytest.raises(RunError, match="not empty; nothing was written"):
        save_pretrained(small, tmp_path / "full")
    assert (tmp_path / "full" / "config.json").read_text() == "mine"


def test_a_push_uploads_the_three_files_in_one_commit_and_nothing_else(
    finished: Path,
    hub: Hub,
    tmp_path: Path,
) -> None:
    pushed = push(finished, "anna/cells", private=True, license="mit", data="photos of mine")
    (commit,) = hub.commits
    assert sorted(commit) == sorted(pushed.files) == FILES
    assert pushed.url.startswith(f"{hub.url}/anna/cells/commit/")
    assert hub.private == {"anna/cells": True}
    assert hub.tokens <= {"hf_of_a_test", None}  # the check of the YAML asks for none
    words = {"license": "mit", "data": "photos of mine"}
    dry = save_pretrained(finished, tmp_path / "dry", repository="anna/cells", **words)
    for name in ("README.md", "config.json"):
        assert (dry / name).read_bytes() == commit[name]
    ours, theirs = (
        load_file(dry / "model.safetensors"),
        load_bytes(commit["model.safetensors"]),
    )  # headers are unordered
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert from_pretrained("anna/cells", device="cpu").classes == open_any(finished).classes


def test_a_card_that_is_there_is_kept_unless_it_is_to_be_replaced(small: Path, hub: Hub) -> None:
    hub.files["anna/cells"] = {"README.md": b"my words"}
    assert push(small, "anna/cells").card_kept
    assert hub.files["anna/cells"]["README.md"] == b"my words"
    assert not push(small, "anna/cells", replace_card=True).card_kept
    assert b"library_name: fullfield" in hub.files["anna/cells"]["README.md"]


def test_a_private_push_into_a_public_repository_uploads_nothing(small: Path, hub: Hub) -> None:
    hub.files["anna/cells"] = {}
    with pytest.raises(RunError, match="is public, so nothing was uploaded"):
        push(small, "anna/cells", private=True)
    assert not hub.commits


def test_the_mixins_own_methods_work_and_keep_the_path(small: Path, hub: Hub, tmp_path: Path) -> None:
    assert issubclass(SharedModel, ModelHubMixin)
    model = SharedModel(small)
    model.save_pretrained(tmp_path / "here", push_to_hub=True, repo_id="anna/mixin")
    (commit,) = hub.commits
    assert sorted(commit) == FILES
    assert str(tmp_path).encode() not in b"".join(commit.values())
    assert SharedModel.from_pretrained("anna/mixin", device="cpu").opened.classes == ("a", "b", "c")


def test_fetching_asks_for_the_weights_alone_and_once(small: Path, hub: Hub) -> None:
    hub.files["anna/cells"] = {"model.safetensors": small.read_bytes(), "evil.py": b"", "pytorch_model.bin": b""}
    for source in ("anna/cells", "hf-hub:anna/cells@main"):
        assert from_pretrained(source).classes == ("a", "b", "c")
    assert hub.asked("GET", "/resolve/") == hub.asked("GET", "model.safetensors") == 1
    assert from_pretrained("anna/cells", local_files_only=True).source == "anna/cells"


def test_a_repository_with_pickles_only_is_refused_and_not_fetched(hub: Hub) -> None:
    hub.files["anna/old"] = {"pytorch_model.bin": b"pickle", "config.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"pickles \(pytorch_model.bin\).*fullfield convert"):
        from_pretrained("anna/old")
    assert not hub.asked("GET", "/resolve/")


def test_a_folder_with_pickles_only_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"pickles \(weights.pt\)"):
        from_pretrained(tmp_path)
    (tmp_path / "weights.pt").rename(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        from_pretrained(tmp_path)


def test_weights_that_are_not_fullfields_or_damaged_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not written by Fullfield"):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (404, "RepoNotFound", "has no repository anna/cells"),
        (403, "GatedRepo", "ask on https://huggingface.co/anna/cells"),
        (404, "RevisionNotFound", "has no such revision"),
        (401, "", "hf auth login"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(status: int, code: str, told: str, hub: Hub) -> None:
    hub.refusals["anna/cells"] = status, code
    with pytest.raises(CheckpointError, match=told):
        fetch_weights("anna/cells")


def test_a_token_that_may_not_write_is_told(small: Path, hub: Hub) -> None:
    hub.refusals["anna/cells"] = 403, ""
    with pytest.raises(RunError, match="may not do this with anna/cells"):
        push(small, "anna/cells")


@pytest.mark.parametrize(("status", "told"), [(429, "fewer requests"), (503, "out of order"), (400, "refused this")])
def test_other_answers_of_the_hub_are_sentences(status: int, told: str) -> None:
    answer: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    with pytest.raises(RunError, match=told), hub_errors("anna/cells", RunError):
        raise errors.HfHubHTTPError("Bad request", response=answer)


def test_no_network_is_one_sentence(small: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port of `discard`: nobody listens
    with pytest.raises(RunError, match=r"can't be reached for anna/cells .*check the network"):
        push(small, "anna/cells")
    with pytest.raises(CheckpointError, match="not in the cache of this machine"):
        from_pretrained("anna/cells", local_files_only=True)
    for error, told in (
        (errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE"),
        (errors.LocalTokenNotFoundError("x"), "HF_TOKEN"),
    ):
        with pytest.raises(RunError, match=told), hub_errors("anna/cells", RunError):
            raise error


def test_a_full_disk_while_fetching_is_told() -> None:
    with pytest.raises(RunError, match="the disk is full"), hub_errors("anna/cells", CheckpointError):
        raise OSError(28, "No space left on device", "/cache/blob")


@pytest.mark.parametrize("name", ["cells", "anna/cells/more", "/somewhere", "anna/ cells", "anna/..", ""])
def test_what_is_no_name_of_a_repository_is_refused(name: str, small: Path) -> None:
    with pytest.raises(ConfigError, match="USER/NAME"):
        push(small, name)


def test_a_folder_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    with pytest.raises(CheckpointError, match="did you mean 'shared'"):
        from_pretrained(tmp_path / "sharde")


def test_the_prefix_of_a_source_is_read_as_timm_does() -> None:
    assert hub_repository("hf-hub:anna/cells") == hub_repository("hf_hub:anna/cells") == ("anna/cells", None)
    assert hub_repository("hf-hub:anna/cells@v1") == ("anna/cells", "v1")
    assert hub_repository("anna/cells") is None
    with pytest.raises(ConfigError, match="USER/NAME"):
        find_shared("hf-hub:cells")


def test_only_a_trained_models_weights_can_be_shared(small: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without weights of your own"):
        save_pretrained("racnn_pico", tmp_path / "shared")
    with pytest.raises(CheckpointError, match="is an exported file"):
        save_pretrained(tmp_path / "model.onnx", tmp_path / "shared")
    with pytest.raises(ConfigError, match=r"apache-2\.0"):
        save_pretrained(small, tmp_path / "shared", license="My licence: yes")
    assert not (tmp_path / "shared").exists()


def test_without_huggingface_hub_the_extra_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "fullfield.deploy.shared_model")
    for call in (lambda: push(small, "anna/cells"), lambda: from_pretrained("anna/cells")):
        with pytest.raises(MissingExtraError, match=r"fullfield\[hub\]"):
            call()


def test_the_command_writes_what_it_would_upload(
    small: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push_command([str(small), "anna/cells", "--dry-run", str(tmp_path / "dry")]) == 0
    told = capsys.readouterr()
    assert all(name in told.out for name in FILES)
    assert "would go to anna/cells" in told.out
    assert not hub.requests
    assert push_command([str(small), "anna/cells", "--license", "mit", "--data", "x"]) == 0
    assert f"{hub.url}/anna/cells/commit/" in capsys.readouterr().out
    assert json.loads(hub.files["anna/cells"]["config.json"])["architecture"] == "racnn_pico"
    assert push_command([str(small), "anna/cells"]) == 0
    assert "--replace-card" in capsys.readouterr().err


def test_what_opens_runs_opens_a_repository_by_its_prefix(finished: Path, hub: Hub) -> None:
    push(finished, "anna/cells")
    opened = open_any("hf-hub:anna/cells", device="cpu")
    assert opened.classes == open_any(finished, device="cpu").classes
    assert opened.trained
