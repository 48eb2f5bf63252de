"""``advdef predict --evaluation.write``: the adversarial images of a scenario in a file that is a data set."""

from functools import partial

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

from lightning_advdef.attacks import PGD
from lightning_advdef.callbacks import RobustnessEvaluation
from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation import Scenario
from tests.conftest import GOLDEN, result_of, scenario
from tests.toys import Foreign, foreign_loader

PGD_TWICE = scenario("pgd", "PGD", steps=4, eps=0.1) | {"eps": [0.03, 0.06]}
SCENARIOS = [scenario("fgsm", "FGSM", eps=0.1), PGD_TWICE]
OPTIONS = ("--evaluation.batch_size=8", "--data.batch_size=6")


def written(folder, name):
    with np.load(folder / f"adversarial_{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def clean(advdef):
    from lightning_advdef.data import Digits

    data = Digits(limit=20, batch_size=20)
    data.setup("test")
    return next(iter(data.test_dataloader()))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("name", "file", "eps"), [("fgsm", "fgsm", 0.1), ("pgd/eps0.06", "pgd_eps0.06", 0.06)])
def test_written_images_are_those_of_the_test(advdef, clean, name, file, eps, strict):
    options = (*OPTIONS, f"--evaluation.strict={strict}")
    folder = advdef.digits("predict", *options, "--evaluation.write", name, scenarios=SCENARIOS)
    arrays = written(folder, file)
    order = clean.indices.argsort()
    np.testing.assert_array_equal(arrays["index"], clean.indices[order])
    np.testing.assert_array_equal(arrays["y_test"], clean.labels[order])
    assert arrays["x_test"].dtype == np.float32
    assert 0 <= arrays["x_test"].min() <= arrays["x_test"].max() <= 1
    np.testing.assert_array_equal(arrays["x_clean"], clean.images[order])
    distances = np.abs(arrays["x_test"] - clean.images[order].numpy()).max(axis=(1, 2, 3))
    assert 0 < distances.max() <= eps + 1e-6
    summary, rows = result_of(advdef.digits("test", *options, scenarios=SCENARIOS, name="test"))
    np.testing.assert_array_equal(arrays["prediction"], rows[f"{name}/prediction"])
    np.testing.assert_array_equal(arrays["clean_prediction"], rows["clean/prediction"])
    np.testing.assert_allclose(distances, rows[f"{name}/linf"], rtol=1e-6)
    right = (arrays["clean_prediction"] == arrays["y_test"]) & (arrays["prediction"] == arrays["y_test"])
    found = next(found for found in summary["scenarios"] if found["name"] == name)
    assert found["robust_accuracy"]["value"] == pytest.approx(right.mean())


def test_written_images_are_a_data_set(advdef):
    folder = advdef.digits("predict", *OPTIONS, "--evaluation.write=fgsm", scenarios=SCENARIOS)
    data = ("--data=NPZ", f"--data.root={folder / 'adversarial_fgsm.npz'}", "--data.spec=digits")
    network = ("--model=StandardModule", "--model.network=MLP", "--model.network.hidden=[32]")
    # DeepFool asks for the mean training image, which such a file does not have
    tested = advdef(
        "test",
        *(*data, *network, f"--model.weights={GOLDEN / 'digits_mlp.safetensors'}"),
        '--evaluation.scenarios=[{"name": "deepfool", "attack": "DeepFool"}]',
        name="again",
    )
    arrays, rows = written(folder, "fgsm"), result_of(tested)[1]
    np.testing.assert_array_equal(rows["clean/prediction"], arrays["prediction"])
    np.testing.assert_array_equal(rows["label"], arrays["y_test"])


def test_images_of_a_different_run_are_not_replaced_unasked(advdef):
    def predict(eps, *options):
        wanted = ("--evaluation.write=fgsm", *options)
        return advdef.digits("predict", *OPTIONS, *wanted, scenarios=[scenario("fgsm", "FGSM", eps=eps)])

    path = predict(0.1) / "adversarial_fgsm.npz"
    first = path.read_bytes()
    predict(0.1)
    with pytest.raises(ResultFolderError, match=r"fgsm.npz holds .* different run \(.*eps.*0.1 there.*--overwrite"):
        predict(0.2)
    with pytest.raises(ResultFolderError, match="limit"):
        predict(0.1, "--data.limit=10")
    with pytest.raises(ResultFolderError, match=r"data\.batches: 1\.0 there, 0\.5 now"):
        predict(0.1, "--trainer.limit_predict_batches=0.5")
    assert path.read_bytes() == first
    predict(0.2, "--overwrite")
    assert path.read_bytes() != first


@pytest.mark.parametrize(("content", "replaced"), [(b"PK", True), (None, False)])
def test_only_a_damaged_file_of_unknown_origin_is_replaced(advdef, content, replaced):
    path = advdef.runs / "run" / "adversarial_fgsm.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, x_test=np.zeros(1)) if content is None else path.write_bytes(content)
    predict = partial(advdef.digits, "predict", "--evaluation.write=fgsm", scenarios=SCENARIOS[:1])
    if replaced:
        assert len(written(predict(), "fgsm")["x_test"]) == 20
    else:
        with pytest.raises(ResultFolderError, match=r"adversarial images of an unknown run: .*--overwrite"):
            predict()


def test_predict_without_write_attacks_nothing(advdef, monkeypatch):
    monkeypatch.setattr(PGD, "perturb", lambda *_: pytest.fail("attacked"))
    folder = advdef.digits("predict", scenarios=SCENARIOS)
    assert not list(folder.glob("adversarial_*"))


@pytest.mark.parametrize(
    ("scenarios", "choices"), [(SCENARIOS, r"\(fgsm, pgd/eps0.03, pgd/eps0.06\)"), (None, r"\(none\)")]
)
def test_a_name_that_no_scenario_has_is_refused(advdef, scenarios, choices):
    with pytest.raises(ValueError, match=rf"^evaluation.write takes the name of a scenario {choices}[^\n]*'pgd'"):
        advdef.digits("predict", "--evaluation.write=pgd", scenarios=scenarios)


def test_a_foreign_module_writes_images_numbered_by_the_loader(tmp_path):
    evaluation = RobustnessEvaluation([Scenario("pgd", PGD(eps=0.1, steps=2))], write="pgd", folder=str(tmp_path))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    class Predicting(Foreign):
        def predict_step(self, batch, batch_idx):
            return self(batch[0])

    Trainer(accelerator="cpu", devices=1, callbacks=[evaluation], **quiet).predict(Predicting(), foreign_loader())
    arrays = written(tmp_path, "pgd")
    np.testing.assert_array_equal(arrays["index"], np.arange(20))
    images = torch.cat([images for images, _ in foreign_loader()]).numpy()
    assert np.abs(arrays["x_test"] - images).max() <= 0.1 + 1e-6
