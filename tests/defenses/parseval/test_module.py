"""Parseval training."""

import functools

import pytest
import torch
from pytorch_lightning import Trainer

from lightning_advdef.data import Digits
from lightning_advdef.defenses import ParsevalModule
from lightning_advdef.defenses.parseval.module import parseval_step
from lightning_advdef.models import MLP, ConvNet

NETWORK = functools.partial(MLP, hidden=[20])


def module_of(**options):
    torch.manual_seed(0)
    return ParsevalModule(NETWORK, spec="digits", **options)


def first_layer(module):
    return module.classifier.features.fc1.weight.detach().clone()


def test_the_step_is_the_formula():
    matrix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (1 + 0.1) * matrix - 0.1 * matrix @ matrix.T @ matrix
    torch.testing.assert_close(parseval_step(matrix, 0.1), expected)


def test_the_step_goes_down_the_gradient_of_the_distance_from_a_tight_frame():
    matrix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distance = (matrix @ matrix.T - torch.eye(4)).pow(2).sum() / 4
    (gradient,) = torch.autograd.grad(distance, matrix)
    torch.testing.assert_close(parseval_step(matrix, 0.1), matrix - 0.1 * gradient)


def test_repeated_on_all_rows_it_makes_them_orthonormal():
    module = module_of(beta=0.2, share=1.0)
    for step in range(100):
        module.tighten(step)
    weight = first_layer(module)
    torch.testing.assert_close(weight @ weight.T, torch.eye(20), atol=1e-4, rtol=0)


def test_a_kernel_becomes_orthonormal_after_scaling_by_its_size():
    torch.manual_seed(0)
    module = ParsevalModule(ConvNet, spec="cifar10", beta=0.2, share=1.0)
    for parameter in module.parameters():
        parameter.data *= 0.1  # singular values above sqrt(2 / beta) would diverge
    for step in range(100):
        module.tighten(step)
    matrix = module.classifier.features.conv1.weight.detach().flatten(1)
    torch.testing.assert_close(25 * matrix @ matrix.T, torch.eye(32), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("axis", "dim"), [("rows", 0), ("columns", 1)])
def test_only_the_share_that_was_drawn_moves_and_by_the_formula(axis, dim):
    module = module_of(beta=0.1, share=0.3, axis=axis)
    before = first_layer(module)
    module.tighten(7)
    after = first_layer(module)
    moved = (before != after).any(dim=1 - dim).nonzero().squeeze(1)
    assert len(moved) == round(0.3 * before.shape[dim])
    expected = parseval_step(before.index_select(dim, moved), 0.1)
    torch.testing.assert_close(after.index_select(dim, moved), expected)


def drawn(module, step):
    return set(module._draw(20, step, "features.fc1", torch.device("cpu")).tolist())


def test_every_step_and_layer_draws_anew_and_repeatably():
    module = module_of()
    assert drawn(module, 3) == drawn(module_of(), 3)
    assert drawn(module, 3) != drawn(module, 4)
    assert set().union(*(drawn(module, step) for step in range(60))) == set(range(20))
    assert set(module._draw(20, 3, "head", torch.device("cpu")).tolist()) != drawn(module, 3)


def trainer_of(folder, max_epochs=1, **options):
    return Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )


def small_digits():
    return Digits(batch_size=8, limit=8, limit_train=16, limit_val=8)


def test_each_optimizer_step_is_followed_by_one_parseval_step(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(ParsevalModule, "tighten", lambda self, step: steps.append((step, first_layer(self))))
    module = module_of()
    start = first_layer(module)
    trainer_of(tmp_path, devices=1).fit(module, datamodule=small_digits())
    assert [step for step, _ in steps] == [0, 1]
    assert not torch.equal(steps[0][1], start), "the optimizer moved first"


def test_a_resumed_run_draws_the_same_rows(tmp_path):
    whole, half, rest = (module_of(beta=0.1) for _ in range(3))
    trainer_of(tmp_path, max_epochs=2, devices=1).fit(whole, datamodule=small_digits())
    first = trainer_of(tmp_path, devices=1)
    first.fit(half, datamodule=small_digits())
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = trainer_of(tmp_path, max_epochs=2, devices=1)
    second.fit(rest, datamodule=small_digits(), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(first_layer(rest), first_layer(whole))
    assert not torch.equal(first_layer(half), first_layer(whole))


def fit_on_two(folder):
    module = module_of(beta=0.1)
    trainer_of(folder, devices=2, strategy="ddp").fit(module, datamodule=small_digits())
    return first_layer(module).numpy()


def test_two_processes_keep_equal_weights(tmp_path, ddp):
    first, second = ddp("tests.defenses.parseval.test_module:fit_on_two", folder=tmp_path)
    assert (first == second).all()
    assert (first != first_layer(module_of()).numpy()).any()


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"share": 0.0}, {"share": 1.5}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=r"needs beta > 0 and a share in \(0, 1\]"):
        module_of(**options)
