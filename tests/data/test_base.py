import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_advdef.defenses import StandardModule
from lightning_advdef.models import MLP
from lightning_advdef.types import Batch


class Recorder(LightningModule):
    """Keeps what each step was given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 5)
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append((self.current_epoch, batch))
        return torch.nn.functional.cross_entropy(self.layer(batch.images.flatten(1)), batch.labels)

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def predict_step(self, batch, batch_idx):
        return batch.indices

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path):
    def make(epochs, **kwargs):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
        return Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=tmp_path, **quiet, **kwargs)

    return make


def fake_trainer(**values):
    progress = SimpleNamespace(is_last_batch=False, current=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(fit_loop=loop, **values)


def read(loader):
    batches = list(loader)
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def test_batches_are_float_pixels_with_int64_labels_and_indices(toy):
    data = toy(batch_size=7)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert isinstance(batch, Batch)
    assert [part.dtype for part in batch] == [torch.float32, torch.int64, torch.int64]
    assert batch.images.shape == (7, 1, 8, 8)
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert torch.equal(batch.images[:, 0, 0, 0], batch.indices / 255)
    assert read(data.test_dataloader()).indices.tolist() == list(range(30))


def test_workers_give_the_same_batches(toy):
    batches = []
    for workers in (0, 1):
        data = toy(num_workers=workers)
        data.setup("fit")
        batches.append(read(data.train_dataloader()))
    assert all(torch.equal(*pair) for pair in zip(*batches, strict=True))


def test_validation_is_carved_from_training_and_ignores_limits_and_seed(toy):
    plain, limited = toy(), toy(limit=3, limit_train=10, seed=5, batch_size=4)
    plain.setup("fit")
    limited.setup("fit")
    val = read(plain.val_dataloader()).indices
    train = read(plain.train_dataloader()).indices
    assert torch.equal(val, read(limited.val_dataloader()).indices)
    assert len(val) == 5
    assert sorted([*val.tolist(), *train.tolist()]) == list(range(50))
    chosen = read(limited.train_dataloader()).indices
    assert len(chosen) == 10
    assert set(chosen.tolist()) < set(train.tolist())


def test_limits_keep_positions_in_the_full_split(toy):
    data = toy(limit=6, limit_val=2)
    data.setup("test")
    data.setup("fit")
    assert len(read(data.val_dataloader()).indices) == 2
    data.setup("test")
    batch = read(data.test_dataloader())
    assert len(batch.indices) == 6
    assert batch.indices.max() >= 6
    assert torch.equal(batch.images[:, 0, 0, 0], batch.indices / 255)


def test_fit_cannot_reach_the_test_set(toy):
    data = toy()
    data.setup("test")
    data.setup("fit")
    with pytest.raises(RuntimeError, match=r"test images are not loaded: call setup\('test'\)"):
        data.test_dataloader()
    assert "test" not in data._sources


def test_loader_before_setup_is_an_error(toy):
    with pytest.raises(RuntimeError, match=r"train images are not loaded: call setup\('fit'\)"):
        toy().train_dataloader()


def test_order_depends_on_seed_and_epoch_only(toy):
    def order(seed, epoch):
        data = toy(seed=seed)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        torch.rand(1)
        return read(loader).indices.tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(
    ("count", "size", "processes", "expected"),
    [
        (9, 4, 1, [4, 4]),
        (10, 4, 1, [4, 4, 2]),
        (1, 4, 1, [1]),
        (3, 1, 1, [1, 1, 1]),
        (9, 8, 2, [4]),
        (11, 8, 2, [4, 2]),
    ],
)
def test_a_last_batch_of_one_image_is_left_out(toy, count, size, processes, expected):
    for rank in range(processes):
        data = toy(limit_train=count, batch_size=size, val_fraction=0)
        data.trainer = fake_trainer(world_size=processes, global_rank=rank)
        data.setup("fit")
        loader = data.train_dataloader()
        assert [len(batch.indices) for batch in loader] == expected
        assert len(loader) == len(expected)


def test_every_epoch_leaves_out_another_image(toy):
    data = toy(limit_train=9, batch_size=4, val_fraction=0)
    data.setup("fit")
    loader, seen = data.train_dataloader(), set()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        seen |= set(read(loader).indices.tolist())
    assert len(seen) == 9


def test_batch_normalisation_of_dense_layers_trains_whatever_remains(toy, trainer):
    model = StandardModule(partial(MLP, hidden=[4], batch_norm=True), spec="1x8x8x5")
    trainer(1).fit(model, toy(limit_train=9, batch_size=4))
    assert model.global_step == 2


def test_resumed_fit_sees_what_an_uninterrupted_one_sees(toy, trainer, tmp_path):
    def fit(epochs, path=None):
        model, data = Recorder(), toy(batch_size=16, augment="crop_flip")
        keep = ModelCheckpoint(tmp_path, save_last=True)
        trainer(epochs, callbacks=[keep]).fit(model, data, ckpt_path=path)
        return model.seen["train"]

    whole = fit(3)
    (tmp_path / "last.ckpt").unlink()
    parts = fit(1) + fit(3, tmp_path / "last.ckpt")
    assert [epoch for epoch, _ in whole] == [epoch for epoch, _ in parts] == [0] * 3 + [1] * 3 + [2] * 3
    for (_, one), (_, other) in zip(whole, parts, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)


def test_fit_resumed_within_an_epoch_sees_the_rest_of_it(toy, trainer, tmp_path):
    def fit(steps, path=None):
        model, data = Recorder(), toy(batch_size=10, augment="flip")
        keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, filename=f"{steps}")
        trainer(2, callbacks=[keep], max_steps=steps).fit(model, data, ckpt_path=path)
        return [(epoch, batch.indices.tolist()) for epoch, batch in model.seen["train"]]

    whole = fit(9)
    assert [epoch for epoch, _ in whole] == [0] * 5 + [1] * 4
    assert fit(2) + fit(9, tmp_path / "2.ckpt") == whole


def test_only_training_batches_are_augmented(toy, trainer):
    model, data = Recorder(), toy(augment="crop_flip", val_fraction=0.5)
    run = trainer(2)
    run.fit(model, data)
    run.test(model, data, verbose=False)
    first, second = (batch.images[batch.indices.argsort()] for _, batch in model.seen["train"])
    assert not torch.equal(first, second)
    for batch in (*model.seen["val"], *model.seen["test"]):
        assert torch.equal(batch.images[:, 0, 0, 0], batch.indices / 255)


def test_augmentation_of_an_image_does_not_depend_on_the_batch_size(toy, trainer):
    results = []
    for size in (7, 45):
        model = Recorder()
        trainer(1, limit_val_batches=0).fit(model, toy(augment="crop_flip", batch_size=size))
        batch = Batch(*(torch.cat(parts) for parts in zip(*(b for _, b in model.seen["train"]), strict=True)))
        results.append(batch.images[batch.indices.argsort()])
    assert torch.equal(*results)


def test_fit_without_validation_images(toy, trainer):
    model = Recorder()
    trainer(1).fit(model, toy(val_fraction=0))
    assert len(model.seen["train"][0][1].indices) == 50
    assert not model.seen["val"]


def test_predict_gives_the_test_set(toy, trainer):
    assert torch.cat(trainer(1).predict(Recorder(), toy())).tolist() == list(range(30))


def test_processes_share_an_epoch_and_the_batch(toy):
    shares = []
    for rank in range(2):
        data = toy(batch_size=10)
        data.trainer = fake_trainer(world_size=2, global_rank=rank)
        data.setup("fit")
        batches = list(data.train_dataloader())
        assert len(batches[0].indices) == 5
        shares.append(torch.cat([batch.indices for batch in batches]))
    assert len(shares[0]) == len(shares[1]) == 23
    assert len(set(torch.cat(shares).tolist())) == 45


def test_batch_size_must_divide_among_devices(toy):
    data = toy(batch_size=10)
    data.trainer = fake_trainer(world_size=4, global_rank=0)
    with pytest.raises(ValueError, match=r"multiple of their number 4, got 10.*--data.batch_size"):
        data.setup("fit")


def test_mean_image_is_over_training_images_without_validation(toy):
    data = toy(limit_train=5)
    mean = data.mean_image()
    whole = toy()
    whole.setup("fit")
    torch.testing.assert_close(mean, read(whole.train_dataloader()).images.mean(0))
    assert data.mean_image() is mean


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"limit": 0}, {"limit_val": -1}, {"num_workers": -1}, {"val_fraction": 1.0}, {"augment": "x"}],
)
def test_argument_out_of_range_is_named(toy, wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} must .*got {re.escape(repr(value))}"):
        toy(**wrong)
