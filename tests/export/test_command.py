"""`advdef export` from the command line to a file that answers."""

import json
import sys

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from lightning_advdef.__main__ import run
from lightning_advdef.export import command
from lightning_advdef.export.parity import Parity
from tests.conftest import GOLDEN

NETWORK = ["--model.network", "MLP", "--model.network.hidden", "[32]"]
WEIGHTS = ["--model.weights", str(GOLDEN / "digits_mlp.safetensors")]


def export(folder, *arguments, model="StandardModule", weights=WEIGHTS):
    path = folder / "model.onnx"
    words = ["--model", model, *NETWORK, *weights, "--data", "Digits", "--images", "20", *arguments]
    run(["export", *map(str, words), "-o", str(path)])
    return path


def nothing_written(folder):
    return not list(folder.iterdir())


def test_the_file_takes_any_number_of_pixels_in_0_1_and_says_so(tmp_path, capsys):
    path = export(tmp_path, "--model.purifier", "BitDepth", "--model.purifier.bits=1", model="PurificationModule")
    printed = capsys.readouterr().out
    assert "compared on 20 test images" in printed
    assert "20 predictions are equal" in printed
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    (logits,) = session.run(["logits"], {"images": images})
    assert logits.shape == (3, 10)
    # the purifier is in the file: one bit is left of each pixel
    np.testing.assert_array_equal(session.run(None, {"images": images.round()})[0], logits)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["defense"] == "PurificationModule"
    assert "[0, 1]" in metadata["images"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_undefended_writes_the_classifier_of_what_cannot_be_traced(tmp_path):
    path = export(tmp_path, "--undefended", "--model.purifier", "JPEG", model="PurificationModule")
    assert path.is_file()


def test_what_no_graph_can_hold_is_refused_in_a_sentence(tmp_path):
    sentence = r"^PurificationModule cannot be exported, since its codec is no operation on tensors: --undefended .*$"
    with pytest.raises(ValueError, match=sentence):
        export(tmp_path, "--model.purifier=JPEG", model="PurificationModule")
    assert nothing_written(tmp_path)


def test_a_file_that_answers_differently_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "write_onnx", lambda network, example, path: path.write_bytes(b"half a file"))
    monkeypatch.setattr(command, "compare_with_file", lambda *_: Parity(20, 0.5, 20))
    (tmp_path / "model.onnx").write_bytes(b"earlier")
    with pytest.raises(RuntimeError, match=r"answers differently, and was not kept: .* 5\.00e-01 .*--tolerance"):
        export(tmp_path)
    # what was there before stays
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"earlier"]


def test_missing_packages_are_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"export needs onnxruntime: pip install 'lightning-advdef\[export\]'"):
        export(tmp_path)


def test_fewer_than_two_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 2 images, got 1: change --images"):
        export(tmp_path, "--images=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"class_path": "IDFRModule", "init_args": {"network": "LeNet", "stage": "restore"}},
        {"class_path": "StandardModule", "init_args": {"network": "LeNet"}},
        {"class_path": "PurificationModule", "init_args": {"network": "LeNet", "purifier": "GaussianBlur"}},
        {"class_path": "PurificationModule", "init_args": {"network": "LeNet", "purifier": "Median"}},
    ],
    ids=["idfr", "standard", "blur", "median"],
)
def test_deterministic_defenses_are_exported(tmp_path, model):
    (tmp_path / "config.yaml").write_text(json.dumps({"model": model}))
    toy = ["--data=tests.toys.Toy", "--data.toy_spec=mnist"]
    run(["export", "-c", str(tmp_path / "config.yaml"), *toy, "-o", str(tmp_path / "model.onnx")])
    assert (tmp_path / "model.onnx").is_file()
