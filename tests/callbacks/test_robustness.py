"""RobustnessEvaluation in every loop, on our modules and on somebody else's."""

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_advdef.attacks import FGSM, PGD, Cascade, DeepFool, Square
from lightning_advdef.callbacks import RobustnessEvaluation
from lightning_advdef.data import Digits
from lightning_advdef.defenses import StandardModule
from lightning_advdef.evaluation import Judge, Scenario
from lightning_advdef.models import MLP
from lightning_advdef.types import Batch
from tests.conftest import raised, result_of
from tests.toys import Foreign, foreign_loader

SCENARIOS = [Scenario("pgd", PGD(eps=0.1, steps=3)), Scenario("deepfool", DeepFool(steps=3))]


def trainer_of(folder, *callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        default_root_dir=folder,
        **(quiet | {"enable_checkpointing": False} | options),
    )


def small_digits(**options):
    return Digits(**({"batch_size": 8, "limit": 20, "limit_train": 32, "limit_val": 16} | options))


def small_defense():
    torch.manual_seed(0)
    return StandardModule(MLP, spec="digits")


def test_fit_attacks_every_n_epochs_and_carries_the_value_forward(tmp_path):
    evaluation = RobustnessEvaluation(SCENARIOS, every_n_epochs=2)
    seen = []

    class Epochs(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics["val/robust_accuracy/pgd"]))

    trainer = trainer_of(tmp_path, evaluation, Epochs(), max_epochs=5)
    trainer.fit(small_defense(), datamodule=small_digits())
    assert np.isnan(seen[0])
    assert 0 <= seen[1] <= 1
    assert seen[1] == seen[2]
    assert seen[3] == seen[4]


def test_a_checkpoint_may_monitor_a_value_that_not_every_epoch_has(tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="val/robust_accuracy/pgd", mode="max")
    trainer = trainer_of(
        tmp_path, RobustnessEvaluation(SCENARIOS, every_n_epochs=2), keep, max_epochs=2, enable_checkpointing=True
    )
    trainer.fit(small_defense(), datamodule=small_digits())
    assert keep.best_model_score == trainer.callback_metrics["val/robust_accuracy/pgd"]


def test_fit_logs_each_epochs_headline_numbers_and_no_figures(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    evaluation = RobustnessEvaluation(SCENARIOS, every_n_epochs=1)
    trainer = trainer_of(tmp_path, evaluation, logger=logger, max_epochs=2)
    trainer.fit(small_defense(), datamodule=small_digits())
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    named = {"clean_accuracy", "robust_accuracy/pgd", "rho/deepfool", "worst_case_accuracy/linf_0.1"}
    assert {f"val/{name}" for name in named} <= set(events.Tags()["scalars"])
    worst, single = (
        events.Scalars(f"val/{name}_accuracy/{of}") for name, of in (("worst_case", "linf_0.1"), ("robust", "pgd"))
    )
    assert len(worst) == 2
    assert all(0 <= one.value <= other.value for one, other in zip(worst, single, strict=True))
    assert events.Tags()["images"] == []


def test_fit_never_attacks_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(PGD, "perturb", lambda *_: pytest.fail("attacked"))
    trainer_of(tmp_path, RobustnessEvaluation(SCENARIOS), max_epochs=1).fit(small_defense(), datamodule=small_digits())


def test_sanity_check_is_not_attacked(tmp_path, monkeypatch):
    attacked = []
    perturb = PGD.perturb

    def noted(self, surrogate, images, labels, rng):
        attacked.append(len(images))
        return perturb(self, surrogate, images, labels, rng)

    monkeypatch.setattr(PGD, "perturb", noted)
    trainer = trainer_of(
        tmp_path, RobustnessEvaluation(SCENARIOS, every_n_epochs=1), max_epochs=1, num_sanity_val_steps=2
    )
    trainer.fit(small_defense(), datamodule=small_digits())
    assert sum(attacked) == 16


@pytest.mark.parametrize("function", ["validate", "test"])
def test_validate_and_test_give_the_same_kind_of_number(tmp_path, function):
    trainer = trainer_of(tmp_path, RobustnessEvaluation(SCENARIOS, folder=str(tmp_path)))
    found = getattr(trainer, function)(small_defense(), datamodule=small_digits(), verbose=False)
    if function == "validate":
        assert 0 <= found[0]["val/robust_accuracy/pgd"] <= 1
        assert not (tmp_path / "robustness.json").exists()
    else:
        assert result_of(tmp_path)[0]["clean_accuracy"]["images"] == 20


class CountingDefense(StandardModule):
    """Counts images that the deployed defense sees."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(MLP, spec="digits")
        self.seen = 0

    def forward(self, images, rng=None):
        self.seen += len(images)
        return super().forward(images, rng)


def test_clean_images_are_judged_once_and_not_at_all_where_that_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_advdef.callbacks.judging.estimate", lambda *_: None)  # which tries a few passes
    quiet = {"folder": str(tmp_path), "diagnostics": False, "progress": False}
    counts = []
    for _ in range(2):
        defense = CountingDefense()
        trainer = trainer_of(tmp_path, RobustnessEvaluation([Scenario("none", FGSM(eps=0.0))], **quiet))
        trainer.test(defense, datamodule=small_digits(), verbose=False)
        logged = float(trainer.callback_metrics["test/clean_accuracy"])
        assert logged == pytest.approx(result_of(tmp_path)[0]["clean_accuracy"]["value"])
        counts.append(defense.seen)
    judged = CountingDefense()
    Judge(judged, [Scenario("none", FGSM(eps=0.0))])(next(iter(all_digits(20))))
    # a test also looks twice at some images, here at all, before the first batch
    assert counts == [judged.seen + 2 * 20, 0]


def all_digits(count):
    data = small_digits(batch_size=count)
    data.setup("test")
    return data.test_dataloader()


def test_validate_after_test_with_one_callback_judges_all_images(tmp_path):
    evaluation = RobustnessEvaluation(SCENARIOS, folder=str(tmp_path))
    defense, data = small_defense(), small_digits()
    alone = trainer_of(tmp_path, RobustnessEvaluation(SCENARIOS)).validate(defense, datamodule=data, verbose=False)
    trainer = trainer_of(tmp_path, evaluation)
    trainer.test(defense, datamodule=data, verbose=False)
    again = trainer.validate(defense, datamodule=data, verbose=False)
    # a mean norm of no image is NaN
    assert again[0] == pytest.approx(alone[0], rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_foreign_module_works_with_plain_batches(tmp_path, inference_mode):
    trainer = trainer_of(tmp_path, RobustnessEvaluation(SCENARIOS, folder=str(tmp_path)), inference_mode=inference_mode)
    trainer.test(Foreign(), foreign_loader(), verbose=False)
    summary, rows = result_of(tmp_path)
    np.testing.assert_array_equal(rows["index"], np.arange(20))
    assert summary["stochastic"] is False
    assert "clean/centred_l2" not in rows


class SeveralLoaders(Foreign):
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    validation_step = test_step

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self(batch[0])


@pytest.mark.parametrize("function", ["test", "validate", "predict"])
def test_images_of_several_loaders_are_not_mixed_up(tmp_path, function):
    evaluation = RobustnessEvaluation(SCENARIOS, folder=str(tmp_path), write="pgd")
    run = getattr(trainer_of(tmp_path, evaluation), function)
    with pytest.raises(ValueError, match=r"takes one data loader, got 2: .* one after the other"):
        run(SeveralLoaders(), [foreign_loader(), foreign_loader()])


def test_training_with_several_loaders_is_refused_at_the_first_attack(tmp_path):
    evaluation = RobustnessEvaluation(SCENARIOS, every_n_epochs=1)
    loaders = [foreign_loader(), foreign_loader()]
    with pytest.raises(ValueError, match="takes one data loader, got 2"):
        trainer_of(tmp_path, evaluation, max_epochs=1).fit(SeveralLoaders(), foreign_loader(), loaders)


@pytest.mark.parametrize("diagnostics", [True, False])
def test_the_hook_of_a_foreign_module_sees_batches_of_its_loader_alone(tmp_path, diagnostics):
    class Halved(Foreign):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            images, labels = batch
            return images / 2, labels

    evaluation = RobustnessEvaluation(SCENARIOS, folder=str(tmp_path), diagnostics=diagnostics)
    trainer_of(tmp_path, evaluation).test(Halved(), foreign_loader(), verbose=False)
    statuses = {found["name"]: found["status"] for found in result_of(tmp_path)[0]["diagnostics"]}
    assert (statuses["gradient_not_finite"] == "unmeasured") is not diagnostics


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_diagnostics_that_a_finished_evaluation_was_spared_are_added(tmp_path, noise, capsys):
    def tested(folder, diagnostics):
        torch.manual_seed(0)  # for the noise that the module does not draw from its images
        evaluation = RobustnessEvaluation(SCENARIOS, folder=str(tmp_path / folder), diagnostics=diagnostics)
        trainer_of(tmp_path, evaluation).test(Foreign(noise), foreign_loader(), verbose=False)
        return result_of(tmp_path / folder)[0]

    spared = tested("twice", False)
    assert "diagnostics added" not in capsys.readouterr().out
    added, whole = tested("twice", True), tested("once", True)
    assert "diagnostics added: " in capsys.readouterr().out
    assert {name for name in spared if spared[name] != added[name]} == {"probed", "diagnostics"}
    statuses = [{found["name"]: found["status"] for found in told["diagnostics"]} for told in (added, whole)]
    assert statuses[0] == statuses[1]
    if not noise:
        assert added["diagnostics"] == whole["diagnostics"]
    assert tested("twice", True) == tested("twice", False) == added
    assert "diagnostics added" not in capsys.readouterr().out


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_foreign_module_can_be_attacked_by_a_cascade(tmp_path, noise):
    cascade = Cascade(attacks={"pgd": PGD("8/255", steps=3), "square": Square("8/255", queries=6)})
    scenarios = [Scenario("pgd", PGD(eps="8/255", steps=3)), Scenario("all", cascade, eps=["4/255", "8/255"])]
    evaluation = RobustnessEvaluation(scenarios, folder=str(tmp_path), draws=4)
    trainer_of(tmp_path, evaluation).test(Foreign(noise), foreign_loader(), verbose=False)
    summary, rows = result_of(tmp_path)
    assert [row["name"] for row in summary["scenarios"]] == ["pgd", "all/eps0.01569", "all/eps0.03137"]
    assert [part["name"] for part in summary["scenarios"][2]["parts"]] == ["pgd", "square"]
    assert (rows["all/eps0.03137/linf"] <= 8 / 255 + 1e-6).all()
    assert set(rows["all/eps0.01569/broken_by"]) <= {-2, -1, 0, 1}
    evaluation = RobustnessEvaluation([Scenario("all", cascade)], every_n_epochs=1)
    trainer = trainer_of(tmp_path, evaluation, max_epochs=1)
    trainer.fit(Foreign(noise), foreign_loader(), foreign_loader())
    assert 0 <= trainer.callback_metrics["val/robust_accuracy/all"] <= 1


def test_a_foreign_module_can_be_attacked_in_fit_and_validate(tmp_path):
    trainer = trainer_of(tmp_path, RobustnessEvaluation(SCENARIOS, every_n_epochs=1), max_epochs=1)
    trainer.fit(Foreign(), foreign_loader(), foreign_loader())
    assert "val/robust_accuracy/pgd" in trainer.callback_metrics
    assert "val/robust_accuracy/pgd" in trainer.validate(Foreign(), foreign_loader(), verbose=False)[0]


def test_noise_that_a_foreign_module_does_not_declare_is_detected(tmp_path):
    trainer = trainer_of(tmp_path, RobustnessEvaluation(SCENARIOS, folder=str(tmp_path), draws=5))
    trainer.test(Foreign(noise=0.5), foreign_loader(), verbose=False)
    summary, rows = result_of(tmp_path)
    assert summary["stochastic"] is True
    assert "EOT" in raised(summary)["random_without_eot"]["next"]
    assert set(np.round(5 * rows["pgd/correct"], 4)) <= {0, 1, 2, 3, 4, 5}
    # all steps are run, since one wrong answer of a random network decides nothing
    assert (rows["pgd/backward"] == 3).all()


def test_noise_on_images_of_later_batches_is_detected_before_the_first(tmp_path):
    class Late(Foreign):
        """Adds noise to the last image."""

        def forward(self, images):
            last = (images == foreign_loader().dataset[-1][0]).flatten(1).all(dim=1)[:, None, None, None]
            return super().forward(images + last * torch.randn_like(images))

    evaluation = RobustnessEvaluation(SCENARIOS, batch_size=4, folder=str(tmp_path), draws=5)
    trainer_of(tmp_path, evaluation).test(Late(), foreign_loader(), verbose=False)
    assert result_of(tmp_path)[1]["clean/stochastic"].all()


def state_of(module):
    state = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [child.training for child in module.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    return state, modes, gradients, [p.requires_grad for p in module.parameters()]


class Note(Callback):
    """Plants gradients (Lightning drops those of before the run) and looks at the module when the test is over."""

    def on_test_start(self, trainer, pl_module):
        for parameter in pl_module.parameters():
            parameter.grad = torch.full_like(parameter, 0.25)
        self.before = state_of(pl_module)

    def on_test_end(self, trainer, pl_module):
        self.after = state_of(pl_module)


def test_evaluation_leaves_modes_statistics_and_gradients_as_they_were(tmp_path):
    module = Foreign().train()
    module.net[1].weight.requires_grad_(False)
    modes = [child.training for child in module.modules()]
    note = Note()
    trainer = trainer_of(tmp_path, note, RobustnessEvaluation(SCENARIOS, folder=str(tmp_path)))
    trainer.test(module, foreign_loader(), verbose=False)
    for before, after in zip(note.before, note.after, strict=True):
        if isinstance(before, dict):
            assert all(torch.equal(after[name], value) for name, value in before.items())
        elif isinstance(before[0], torch.Tensor):
            assert all(map(torch.equal, before, after))
        else:
            assert before == after
    assert [child.training for child in module.modules()] == modes


@pytest.mark.parametrize("training", [True, False])
def test_judging_restores_the_mode_of_every_submodule(training):
    module = Foreign().train(training)
    module.net[2].train(not training)
    before = state_of(module)
    images, labels = next(iter(foreign_loader()))
    Judge(module, SCENARIOS)(Batch(images, labels, torch.arange(8)))
    after = state_of(module)
    assert after[1] == before[1]
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())


def test_training_is_the_same_with_and_without_attacks_between(tmp_path):
    weights = []
    for callbacks in ([], [RobustnessEvaluation(SCENARIOS, every_n_epochs=1)]):
        torch.manual_seed(0)
        module = Foreign()
        trainer_of(tmp_path, *callbacks, max_epochs=2).fit(module, foreign_loader(), foreign_loader())
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_is_for_training_alone_leaves_no_trace_in_validation(tmp_path):
    evaluation = RobustnessEvaluation(fit_scenarios=SCENARIOS, every_n_epochs=1)
    assert trainer_of(tmp_path, evaluation).validate(Foreign(), foreign_loader(), verbose=False) == [{}]


def test_without_scenarios_nothing_happens(tmp_path):
    trainer_of(tmp_path, RobustnessEvaluation(folder=str(tmp_path))).test(Foreign(), foreign_loader(), verbose=False)
    assert not list(tmp_path.glob("robustness.*"))


def test_two_scenarios_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two scenarios are named 'a'"):
        RobustnessEvaluation([Scenario("a", FGSM(eps=0.1)), Scenario("a", FGSM(eps=0.2))])


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"draws": 0}, {"every_n_epochs": -1}])
def test_numbers_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="evaluation needs batch_size >= 1"):
        RobustnessEvaluation([], **setting)


@pytest.mark.parametrize("name", ["", "a b", "a/b"])
def test_a_name_that_cannot_be_a_key_is_refused(name):
    with pytest.raises(ValueError, match="a scenario's name"):
        Scenario(name, FGSM(eps=0.1))


def fit_on_two(folder):
    """One epoch on two processes; weights of this one, and the robust accuracy it logged."""
    torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
    defense = StandardModule(MLP, spec="digits")
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        callbacks=[RobustnessEvaluation(SCENARIOS, every_n_epochs=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(defense, datamodule=small_digits(limit_val=15))
    state = {name: value.numpy() for name, value in defense.state_dict().items()}
    return state, float(trainer.callback_metrics["val/robust_accuracy/pgd"])


def test_training_on_two_processes_gives_both_the_same_weights_and_counts_each_image_once(tmp_path, ddp):
    (first, accuracy), (second, other) = ddp("tests.callbacks.test_robustness:fit_on_two", folder=tmp_path)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert accuracy == other
    # 15 images on two processes are 16 for the sampler
    assert 15 * accuracy == pytest.approx(round(15 * accuracy), abs=1e-4)
    defense = StandardModule(MLP, spec="digits")
    defense.load_state_dict({name: torch.from_numpy(value) for name, value in first.items()})
    trainer = trainer_of(tmp_path, RobustnessEvaluation(SCENARIOS))
    found = trainer.validate(defense, datamodule=small_digits(limit_val=15), verbose=False)[0]
    assert found["val/robust_accuracy/pgd"] == pytest.approx(accuracy)


def test_two_processes_need_numbered_images(ddp, tmp_path):
    answers = ddp("tests.callbacks.test_robustness:foreign_on_two", folder=tmp_path)
    assert all("(images, labels, indices)" in answer for answer in answers)


def foreign_on_two(folder):
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        callbacks=[RobustnessEvaluation(SCENARIOS, folder=str(folder))],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    try:
        trainer.test(Foreign(), foreign_loader(), verbose=False)
    except ValueError as error:
        return str(error)
    return "no error"


def test_an_interrupted_test_says_how_many_images_are_judged(tmp_path, capsys):
    class Interrupt(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *_):
            if batch_idx == 1:
                raise KeyboardInterrupt

    evaluation = RobustnessEvaluation(SCENARIOS, batch_size=8, folder=str(tmp_path))
    defense = small_defense()
    with pytest.raises(SystemExit):
        trainer_of(tmp_path, evaluation, Interrupt()).test(defense, datamodule=small_digits())
    assert "interrupted: 16 of 20 images are judged, the same command goes on" in capsys.readouterr().out
    trainer_of(tmp_path, evaluation).test(defense, datamodule=small_digits())
    assert len(result_of(tmp_path)[1]["index"]) == 20
