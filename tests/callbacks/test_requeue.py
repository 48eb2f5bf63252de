import os
import signal

from pytorch_lightning import Callback, Trainer

from lightning_advdef.callbacks import RequeueBetweenSteps
from tests.callbacks.test_robustness import small_defense, small_digits, trainer_of

ASKED_AT = 2


class AskLast(Callback):
    """Sends the signal to one process alone, in the middle of a step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == ASKED_AT and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def answered_at(folder, devices=1):
    """Steps after which this process let Lightning's handler do its work."""
    steps = []
    before = signal.signal(signal.SIGUSR1, lambda *_: steps.append(trainer.global_step))
    try:
        trainer = Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=1,
            callbacks=[AskLast(), RequeueBetweenSteps()],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(small_defense(), datamodule=small_digits())
    finally:
        signal.signal(signal.SIGUSR1, before)
    return steps


def test_the_step_is_finished_first(tmp_path):
    assert answered_at(tmp_path) == [ASKED_AT + 1]


def test_all_processes_answer_after_the_same_step_though_one_was_asked(tmp_path, ddp):
    found = ddp("tests.callbacks.test_requeue:answered_at", folder=tmp_path, devices=2)
    assert found == [[ASKED_AT + 1]] * 2


def test_without_a_handler_of_lightning_there_is_nothing_to_answer(tmp_path):
    trainer = trainer_of(tmp_path, RequeueBetweenSteps(), max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(small_defense(), datamodule=small_digits())
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
