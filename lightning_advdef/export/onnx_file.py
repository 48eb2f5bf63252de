"""From a defense to a graph of ONNX operators."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_advdef.attacks.base import attack_mode
from lightning_advdef.attacks.surrogates import as_defense
from lightning_advdef.checkpoints import weights_hash
from lightning_advdef.rng import SampleRNG


class DeployedGraph(nn.Module):
    """A deterministic defense as a function of images alone.

    Args:
        defense: The defense, or any network.
    """

    def __init__(self, defense: nn.Module) -> None:
        super().__init__()
        self.defense = as_defense(defense)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)``."""
        # keys made from the number of images would fix that number in the graph; nobody draws from these
        keys = torch.zeros_like(images[:, 0, 0, 0], dtype=torch.int64)
        return self.defense(images, SampleRNG(keys, keys))


def require_traceable(defense: nn.Module) -> None:
    """Refuses what no graph can hold.

    Raises:
        ValueError: If the defense says so.
    """
    if reason := getattr(defense, "untraceable", None):
        raise ValueError(
            f"{type(defense).__name__} cannot be exported, since {reason}: --undefended writes its classifier alone"
        )


def write_onnx(defense: nn.Module, example: Tensor, path: Path) -> None:
    """Writes purifier and classifier as one graph, ``images`` to ``logits``, for any number of images.

    What the file expects and holds stands in its metadata: the range of pixels, the class of the defense and the
    SHA-256 of its weights.

    Args:
        defense: The defense, or any network.
        example: Two images or more, shape ``(N, C, H, W)``.
        path: File to write.

    Raises:
        ValueError: If the defense says that no graph can hold it, or the tracer finds so.
        ImportError: If the packages of the extra ``export`` are missing.
    """
    require_traceable(defense)
    program = _traced(defense, example)
    program.model.metadata_props.update(
        {
            "images": "pixels in [0, 1], float32, (N, C, H, W); normalised inside",
            "defense": type(defense).__name__,
            "weights": weights_hash(defense),
        }
    )
    program.save(path, external_data=False)


def _traced(defense: nn.Module, example: Tensor) -> torch.onnx.ONNXProgram:
    try:
        # the tracer warns of its own internals
        with attack_mode(defense), torch.no_grad(), warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                DeployedGraph(defense),
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: "batch"}},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().partition("\n\n")[0].replace("\n", " ")
        raise ValueError(f"{type(defense).__name__} cannot be exported, since it cannot be traced: {cause}") from error
    assert program is not None
    return program
