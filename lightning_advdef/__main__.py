"""Entry point of ``advdef`` and ``python -m lightning_advdef``."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_STOPPED = "stopped by SIGTERM: the same command goes on with an evaluation, and with --ckpt_path last with a training"
_HINT = "(set ADVDEF_TRACEBACK=1 for the full traceback)"


def report(arguments: Sequence[str]) -> None:
    """``advdef report``: one or several runs side by side, in the terminal or in a file, or a figure of them."""
    from lightning_advdef.evaluation.report import main

    main(arguments)


def compare(arguments: Sequence[str]) -> None:
    """``advdef compare``: two runs on the same images, and who wins."""
    from lightning_advdef.evaluation.compare import main

    main(arguments)


def calibrate(arguments: Sequence[str]) -> None:
    """``advdef calibrate -c CONFIG [-o FILE]``: values of a defense that depend on its data and weights.

    They are printed; with ``-o`` a checkpoint that holds them, where the defense keeps them, is written as well.

    Raises:
        ValueError: If there are no weights to write, or the file's name asks for a format without settings.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-o", "--output", type=Path)
    own, others = parser.parse_known_args(arguments)
    from lightning_advdef.checkpoints import save_defense
    from lightning_advdef.cli import AdvDefCLI

    if own.output is not None and own.output.suffix == ".safetensors":
        raise ValueError(f"{own.output} would hold no settings: give a name that ends in .ckpt")
    cli = AdvDefCLI(args=others, run=False)
    if own.output is not None and cli.model.weights is None:
        raise ValueError("there are no trained weights to calibrate and write: give --model.weights FILE")
    cli.model.setup("calibrate")
    cli.model.to(cli.trainer.strategy.root_device)
    for name, value in cli.model.calibrate(cli.datamodule).items():
        print(f"{name}: {value:.6g}")
    if own.output is not None:
        save_defense(cli.model, own.output)
        print(f"calibrated weights: {own.output}")


def distill(arguments: Sequence[str]) -> None:
    """``advdef distill -c CONFIG -o FILE``: a network that stands in for the purifier of a defense in BPDA."""
    from lightning_advdef.distillation.command import main

    main(arguments)


def export(arguments: Sequence[str]) -> None:
    """``advdef export -c CONFIG -o FILE``: the deployed defense as an ONNX file."""
    from lightning_advdef.export.command import main

    main(arguments)


COMMANDS = {"report": report, "compare": compare, "calibrate": calibrate, "distill": distill, "export": export}


def run(arguments: Sequence[str]) -> None:
    """Runs one command; errors pass through.

    Raises:
        ValueError: If there is no such command.
    """
    if arguments and arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
    else:
        from lightning_advdef.cli import AdvDefCLI

        commands = [*AdvDefCLI.subcommands(), *COMMANDS]
        if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
            raise ValueError(f"there is no command {arguments[0]!r}: choose one of {', '.join(commands)}")
        # LightningCLI reads the command line itself, and warns if the same words are handed to it
        AdvDefCLI(args=None if list(arguments) == sys.argv[1:] else list(arguments))


def _quieten() -> None:
    """Drops Lightning's advertisements and warnings about its own internals; all else stays."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # calibrate and distill take some words of the command line for themselves
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "litmodels" not in record.msg)


def _see_own_modules() -> None:
    """Puts the current folder on the path, as ``python -m`` does, so that a configuration may name what lies there."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _fail(error: Exception) -> NoReturn:
    if os.environ.get("ADVDEF_TRACEBACK"):
        raise error
    from lightning_advdef.messages import shorten

    print(f"advdef: error: {shorten(str(error))} {_HINT}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Runs one command; an error is one sentence on stderr and exit status 2, a stop by SIGTERM one and 143."""
    _quieten()
    try:
        _see_own_modules()
        run(sys.argv[1:])
    except (ValueError, OSError, ArithmeticError, RuntimeError, ImportError, argparse.ArgumentError) as error:
        _fail(error)
    except SystemExit as stop:
        # Lightning's answer to the signal, by its name, since its import would slow down the other commands
        # the process that started others hears of it first, and kills them all if it sees one of them fail
        if type(stop).__name__ != "SIGTERMException" or os.environ.get("LOCAL_RANK", "0") != "0":
            raise
        print(f"advdef: {_STOPPED}", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except Exception as error:
        # Lightning's own complaint about the Trainer's settings; its import would slow down the other commands
        if type(error).__name__ != "MisconfigurationException":
            raise
        _fail(error)


if __name__ == "__main__":
    main()
