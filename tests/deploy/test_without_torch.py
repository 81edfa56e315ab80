"""An exported ONNX file is run, its answers saved and drawn, and the command used, where PyTorch is not installed."""

import subprocess
import sys

import pytest

from fullfield.data.sample import sample_path
from tests.deploy.small_files import write_small

PREAMBLE = """
import sys

REFUSED = {
    "torch", "torchvision", "timm", "safetensors", "matplotlib", "lightning", "pytorch_lightning", "torchmetrics",
    "onnx", "openvino", "cv2", "pandas",
}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from pathlib import Path
folder, images = Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]]
"""
PREDICT = """
from fullfield.deploy.predictor import Predictor
from fullfield.errors import MissingExtraError
from fullfield.tasks.answers import save_predictions
from fullfield.tasks.detection.answers import save_detection_predictions
from fullfield.tasks.segmentation.answers import save_segmentation

with Predictor(folder / "classify.onnx") as model:
    found = model.predict(images)
    assert [one.path for one in found] == images
    assert abs(sum(share for _, share in found[0].labels) - 1) < 1e-5
    save_predictions(found, folder / "labels")
with Predictor(folder / "detect.onnx") as model:
    found = model.predict(images, threshold=0)
    assert all(one.detections for one in found)
    save_detection_predictions(found, folder / "objects", classes=model.classes)
with Predictor(folder / "segment.onnx") as model:
    found = model.predict(images)
    save_segmentation(found, folder / "pixels", classes=model.classes, colours=model.colours)
for written in ("labels/predictions.csv", "objects/predictions.csv", "pixels/predictions.json"):
    assert (folder / written).stat().st_size, written
for pictures in ("labels", "objects", "pixels/drawn", "pixels/masks"):
    assert len(list((folder / pictures).glob("*.png"))) == len(images), pictures
try:
    Predictor("racnn_pico")
except MissingExtraError as error:
    assert "pip install 'fullfield[torch]'" in str(error), error
else:
    raise SystemExit("racnn_pico needs PyTorch")
assert not REFUSED & {name.split(".")[0] for name in sys.modules}
"""
COMMAND = """
from fullfield.cli.main import main

for task in ("classify", "detect", "segment"):
    words = ["predict", str(folder / f"{task}.onnx"), *map(str, images)]
    out = folder / f"{task}-out"
    assert main([*words, "--out", str(out), "--json", str(folder / f"{task}.json"), "--threshold", "0"]) == 0
    assert (out / "predictions.json").is_file() and (folder / f"{task}.json").is_file()
    assert len(list((out / "drawn" if task == "segment" else out).glob("*.png"))) == len(images)
assert main(["predict", "racnn_pico", str(images[0])]) == 1
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("files")
    for task in ("classify", "detect", "segment"):
        write_small(folder, task)
    images = sorted(sample_path("blood_cells").rglob("*.jpg"))[:3]
    return [str(folder), *map(str, images)]


def _run(code: str, words: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code, *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_every_task_is_predicted_saved_and_drawn_without_pytorch(words: list[str]) -> None:
    _run(PREDICT, words)


def test_the_command_predicts_without_pytorch_and_names_what_a_run_would_need(words: list[str]) -> None:
    assert "pip install 'fullfield[torch]'" in _run(
        COMMAND.replace('assert main(["predict", "--help"]) == 0\n', ""), words
    )
