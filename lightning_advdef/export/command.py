"""``advdef export``: an ONNX file of the deployed defense, if it answers as the defense does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from lightning_advdef.cli import AdvDefCLI
from lightning_advdef.data import DataModule
from lightning_advdef.export.onnx_file import require_traceable, write_onnx
from lightning_advdef.export.parity import Parity, compare_with_file
from lightning_advdef.files import whole_file
from lightning_advdef.types import Batch


def parser() -> argparse.ArgumentParser:
    """The command's own arguments; all others are those of ``advdef test``."""
    made = argparse.ArgumentParser(
        prog="advdef export",
        description="Write the deployed defense, purifier and classifier, as an ONNX file that maps images in [0, 1] "
        "to logits, and compare it with PyTorch on test images; a file that answers differently is not kept. Further "
        "arguments are those of advdef test: -c CONFIG, --model.weights FILE.",
        allow_abbrev=False,
    )
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where to, e.g. model.onnx")
    made.add_argument("--undefended", action="store_true", help="the classifier alone, without the test-time part")
    made.add_argument("--images", type=int, default=256, help="test images to compare on (default: %(default)s)")
    made.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest difference of a logit (default: %(default)s)"
    )
    return made


def main(arguments: Sequence[str]) -> None:
    """Traces, writes, compares; only then the file has its name.

    Raises:
        ValueError: If the defense cannot be traced.
        RuntimeError: If the file answers differently.
        ImportError: If ONNX is not installed.
    """
    own, others = parser().parse_known_args(arguments)
    if own.images < 2:
        raise ValueError(f"export compares on at least 2 images, got {own.images}: change --images")
    _require_onnx()
    cli = AdvDefCLI(args=others, run=False)
    cli.model.setup("export")
    network = cli.model.undefended if own.undefended else cli.model
    require_traceable(network)
    batches = _test_batches(cli.datamodule, own.images)
    first = next(batches)
    with whole_file(own.output) as unchecked:
        write_onnx(network, first.images[:2], unchecked)
        parity = compare_with_file(network, unchecked, chain([first], batches))
        _require(parity, own.tolerance)
    if cli.model.weights is None:
        print("no --model.weights were given: the network is exported as it starts")
    print(
        f"compared on {parity.images} test images: logits differ by at most {parity.difference:.1e}, "
        f"{parity.equal} predictions are equal"
    )
    print(f"ONNX file: {own.output} ({own.output.stat().st_size / 1e6:.1f} MB), images in [0, 1] to logits")


def _require_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export needs {error.name}: pip install 'lightning-advdef[export]'") from None


def _test_batches(data: DataModule, count: int) -> Iterator[Batch]:
    """The first so many test images."""
    data.setup("test")
    left = count
    for batch in data.test_dataloader():
        yield Batch(*(tensor[:left] for tensor in batch))
        left -= len(batch.images)
        if left <= 0:
            return


def _require(parity: Parity, tolerance: float) -> None:
    if not parity.holds(tolerance):
        raise RuntimeError(
            f"the ONNX file answers differently, and was not kept: logits by up to {parity.difference:.2e} (allowed "
            f"are {tolerance:g}, see --tolerance), {parity.equal} of {parity.images} predictions are equal"
        )
