"""`fullfield[torch]`, without the extra `train`, builds, saves, loads and predicts; training says what is missing.

The extra's packages are hidden in a process of its own.
"""

import subprocess
import sys
from pathlib import Path

PREAMBLE = """
import sys
for name in ("pytorch_lightning", "torchmetrics", "matplotlib", "pyarrow"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import fullfield
from fullfield.data import Preprocess, sample_path
from fullfield.errors import MissingExtraError
from fullfield.tasks.source import checkpoint_metadata
"""
PREDICT = """
model = fullfield.create_model("racnn_pico", num_classes=3, dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
fullfield.save(model, sys.argv[1], checkpoint_metadata(("a", "b", "c"), Preprocess(image_size=32)))
images = sorted(sample_path("blood_cells").rglob("*.jpg"))[:2]
predictions = fullfield.predict(sys.argv[1], images)
assert len(predictions) == 2 and abs(sum(share for _, share in predictions[0].labels) - 1) < 1e-5
from fullfield.cli.main import main
assert main(["predict", sys.argv[1], str(images[0])]) == 0
assert main(["models", "racnn_pico"]) == 0
"""
TRAIN = """
model = fullfield.create_model("racnn_pico", num_classes=3, dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
classes = ("Platelets", "RBC", "WBC")
fullfield.save(model, sys.argv[1], checkpoint_metadata(classes, Preprocess(image_size=32)))
for call in (lambda: fullfield.train("sample:blood_cells"), lambda: fullfield.eval(sys.argv[1], "sample:blood_cells")):
    try:
        call()
    except MissingExtraError as error:
        assert "pip install 'fullfield[train]'" in str(error), error
    else:
        raise SystemExit("nothing was missing")
"""


def _run(code: str, *arguments: str) -> None:
    words = [sys.executable, "-c", PREAMBLE + code, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_prediction_needs_no_extra(tmp_path: Path) -> None:
    _run(PREDICT, str(tmp_path / "model.safetensors"))


def test_training_and_evaluating_without_the_extra_name_it(tmp_path: Path) -> None:
    _run(TRAIN, str(tmp_path / "model.safetensors"))
