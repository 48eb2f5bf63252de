"""Adversarial images kept between runs, under a hash of all that made them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_advdef.attacks import Attack, Surrogate
from lightning_advdef.checkpoints import tensor_bytes, weights_hash
from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.description import describe_network
from lightning_advdef.evaluation.rows import read_rows
from lightning_advdef.evaluation.scenario import Scenario
from lightning_advdef.files import write_arrays
from lightning_advdef.hashing import code_hash
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Batch

_MAKE_AGAIN = "remove this file and run the same command again, which makes its images anew"


class AdversarialCache:
    """A folder of adversarial sets, one file per batch.

    The name of a file is a hash of the attack and the surrogate with their settings, the networks that they use, the
    images, labels and random numbers, and the source of this package and of classes from elsewhere; so a changed
    experiment finds nothing, and transferred images are made once however many defenses they are tried on.

    Args:
        folder: Where the files lie; made when the first is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._networks: WeakKeyDictionary[Surrogate, str] = WeakKeyDictionary()

    def key(
        self, scenario: Scenario, surrogate: Surrogate, batch: Batch, rng: SampleRNG, ledger: dict[str, Tensor]
    ) -> str:
        """Name of the file of one batch."""
        description = scenario.describe(surrogate) | {"name": None}
        settings = [str(surrogate.search_dtype), surrogate.fixed_shape, surrogate.random]
        digest = hashlib.sha256(json.dumps([description, settings]).encode())
        digest.update(self._hash_of_networks_and_code(scenario, surrogate).encode())
        enlisted = [] if surrogate.enlisted is None else [surrogate.enlisted]
        for tensor in (batch.images, batch.labels, rng.keys, *enlisted, *(ledger[name] for name in sorted(ledger))):
            digest.update(tensor_bytes(tensor))
        return digest.hexdigest()

    def _hash_of_networks_and_code(self, scenario: Scenario, surrogate: Surrogate) -> str:
        """What is the same for all batches, read once per surrogate: it does not change during an evaluation."""
        if surrogate not in self._networks:
            networks = surrogate.modules
            if scenario.attack.parts():
                assert isinstance(surrogate.defense, nn.Module)
                networks = (*networks, surrogate.defense)  # which decides about the survivors
            code = code_hash(scenario.attack, *scenario.attack.parts().values(), surrogate, *networks)
            self._networks[surrogate] = code + "".join(map(network_key, networks))
        return self._networks[surrogate]

    def load(self, key: str, device: torch.device) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Images and columns of a batch; None if they were never made.

        Raises:
            ResultFolderError: If the file is damaged.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        tensors = {name: column.to(device) for name, column in read_rows(path, _MAKE_AGAIN).items()}
        if "images" not in tensors:
            raise ResultFolderError(f"{path} holds no images: {_MAKE_AGAIN}")
        return tensors.pop("images"), {name.removeprefix("column/"): column for name, column in tensors.items()}

    def load_adversarial(self, key: str, attack: Attack, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The same, checked as images that the attack has just made.

        Args:
            key: Name of the file.
            attack: What made the images.
            clean: What they were made of, shape ``(N, C, H, W)``.

        Raises:
            ResultFolderError: If the file is damaged, or holds anything that the attack would not return.
        """
        found = self.load(key, clean.device)
        if found is None:
            return None
        try:
            attack.verify(found[0], clean)
        except RuntimeError as error:
            raise ResultFolderError(f"{self._path(key)} holds other images than were made: {_MAKE_AGAIN}") from error
        if not torch.equal(attack.clip(found[0]), found[0]):
            raise ResultFolderError(f"{self._path(key)} holds images outside [0, 1]: {_MAKE_AGAIN}")
        return found

    def save(self, key: str, images: Tensor, columns: dict[str, Tensor]) -> None:
        """Keeps images and columns of a batch."""
        arrays = {"images": images} | {f"column/{name}": column for name, column in columns.items()}
        write_arrays(self._path(key), arrays)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


def network_key(network: nn.Module) -> str:
    """Class, settings, layers and weights: the test-time part of a defense may have settings alone."""
    return f"{type(network).__module__} {describe_network(network)} {weights_hash(network)}"
