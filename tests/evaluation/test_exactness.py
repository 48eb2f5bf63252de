"""A verdict belongs to its image: not to the batch, the order or the number of processes."""

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from lightning_advdef.attacks import FGSM, PGD, DeepFool
from lightning_advdef.callbacks import RobustnessEvaluation
from lightning_advdef.checkpoints import load_weights
from lightning_advdef.data import Digits, get_spec
from lightning_advdef.data.sources import as_is
from lightning_advdef.defenses import StandardModule
from lightning_advdef.evaluation import Scenario
from lightning_advdef.evaluation.store import GALLERY_FILE
from lightning_advdef.models import MLP
from tests.conftest import GOLDEN, result_of, scenario
from tests.toys import NoisyInput

IMAGES = 101
BATCH_SIZES = (1, 7, 64)


class ShuffledDigits(Digits):
    def test_dataloader(self):
        dataset = self._dataset("test")
        generator = torch.Generator().manual_seed(3)
        return DataLoader(dataset, self.batch_size, shuffle=True, collate_fn=as_is, generator=generator)


def evaluate(
    folder, batch_size=64, data_class=Digits, strict=False, devices=1, defense_class=StandardModule, limit=IMAGES
):
    """Result of one evaluation; also a task for two processes."""
    defense = defense_class(lambda spec: MLP(spec, hidden=[32]), spec="digits")
    load_weights(defense, GOLDEN / "digits_mlp.safetensors", complete=False)
    scenarios = [
        Scenario("fgsm", FGSM(eps=0.1)),
        Scenario("pgd", PGD(eps=0.1, steps=10)),
        Scenario("l2", PGD(eps=0.5, norm="l2", steps=5)),
        Scenario("deepfool", DeepFool(steps=10)),
    ]
    evaluation = RobustnessEvaluation(scenarios, batch_size=50, strict=strict, folder=str(folder), progress=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        callbacks=[evaluation],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.test(defense, datamodule=data_class(batch_size=batch_size, limit=limit), verbose=False)
    return trainer.global_rank, trainer.world_size


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folders = {strict: tmp_path_factory.mktemp("reference") for strict in (False, True)}
    for strict, folder in folders.items():
        evaluate(folder, strict=strict)
    return {strict: (*result_of(folder), gallery_of(folder)) for strict, folder in folders.items()}


def gallery_of(folder):
    with np.load(folder / GALLERY_FILE) as stored:
        return dict(stored)


# DeepFool stops when the last image of its batch is done, so what it spends depends on the neighbours
def assert_same(folder, reference, strict):
    rows = result_of(folder)[1]
    assert list(rows["index"]) == sorted(set(rows["index"]))
    assert rows.keys() == reference.keys()
    for name, column in reference.items():
        if strict or name.rpartition("/")[2] in ("index", "label", "prediction", "correct"):
            assert column.dtype == rows[name].dtype
            np.testing.assert_array_equal(rows[name], column, err_msg=name)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_loader_batch_size_changes_nothing(tmp_path, references, batch_size, strict):
    evaluate(tmp_path, batch_size, strict=strict)
    assert_same(tmp_path, references[strict][1], strict)


@pytest.mark.parametrize("strict", [False, True])
def test_order_of_images_changes_nothing(tmp_path, references, strict):
    evaluate(tmp_path, 7, ShuffledDigits, strict=strict)
    assert_same(tmp_path, references[strict][1], strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("batch_size", [14, 64])
def test_two_processes_change_nothing(tmp_path, references, ddp, batch_size, strict):
    arguments = {"folder": tmp_path, "batch_size": batch_size, "strict": strict, "devices": 2}
    assert ddp("tests.evaluation.test_exactness:evaluate", **arguments) == [(0, 2), (1, 2)]
    assert_same(tmp_path, references[strict][1], strict)
    summary, gallery = result_of(tmp_path)[0], gallery_of(tmp_path)
    assert summary["clean_accuracy"]["images"] == IMAGES
    expected, _, pictures = references[strict]
    # what is looked at again, and what is shown, depends on the evaluation alone
    assert len(summary["diagnostics"]) == len(expected["diagnostics"]) > 0
    for found, wanted in zip(summary["diagnostics"], expected["diagnostics"], strict=True):
        measured = wanted["measured"] if wanted["measured"] is None else pytest.approx(wanted["measured"], rel=1e-4)
        assert (found["name"], found["status"], found["measured"]) == (wanted["name"], wanted["status"], measured)
    assert gallery.keys() == pictures.keys()
    for name, kept in pictures.items():
        np.testing.assert_allclose(gallery[name], kept, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("strict", [False, True])
def test_noise_belongs_to_the_image_too(tmp_path, ddp, strict):
    options = {"strict": strict, "defense_class": NoisyInput, "limit": 21}
    evaluate(tmp_path / "one", batch_size=8, **options)
    ddp("tests.evaluation.test_exactness:evaluate", folder=tmp_path / "two", batch_size=6, devices=2, **options)
    reference = result_of(tmp_path / "one")[1]
    assert_same(tmp_path / "two", reference, strict)


def test_strict_and_fast_agree_on_every_verdict(references):
    fast, strict = references[False][1], references[True][1]
    for name in ("clean", "fgsm", "pgd", "l2", "deepfool"):
        np.testing.assert_array_equal(fast[f"{name}/correct"], strict[f"{name}/correct"], err_msg=name)


def test_both_modes_book_the_passes_that_an_image_needs(references):
    fast, strict = references[False][1], references[True][1]
    np.testing.assert_array_equal(fast["pgd/forward"], strict["pgd/forward"])
    assert strict["pgd/forward"].max() > strict["pgd/forward"].min()


def command_on_two(runs):
    """The command, as each process of a cluster would start it."""
    from tests.conftest import Command

    Command(runs).digits(
        "test",
        *("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=10"),
        scenarios=[scenario("pgd", "PGD", eps=0.1, steps=5)],
        limit=21,
    )


def test_command_gives_the_same_rows_on_two_processes(advdef, ddp):
    ddp("tests.evaluation.test_exactness:command_on_two", runs=advdef.runs)
    single = advdef.digits("test", scenarios=[scenario("pgd", "PGD", eps=0.1, steps=5)], limit=21, name="single")
    assert_same(advdef.runs / "run", result_of(single)[1], strict=False)


def test_same_settings_have_the_same_fingerprint_on_any_number_of_processes(advdef, ddp, capsys):
    ddp("tests.evaluation.test_exactness:command_on_two", runs=advdef.runs)
    before = (advdef.runs / "run" / "robustness.json").read_bytes()
    advdef.digits("test", scenarios=[scenario("pgd", "PGD", eps=0.1, steps=5)], limit=21)
    assert "already evaluated" in capsys.readouterr().out
    assert (advdef.runs / "run" / "robustness.json").read_bytes() == before


def test_spec_of_the_golden_network_is_the_digits():
    assert MLP(get_spec("digits"), hidden=[32])(torch.rand(2, 1, 8, 8)).shape == (2, 10)
