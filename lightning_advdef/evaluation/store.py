"""The result folder: shards while it runs, ``robustness.json`` and ``robustness.npz`` when it is done."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation.rows import TEST_AGAIN, Rows, read_rows
from lightning_advdef.files import whole_file, write_arrays
from lightning_advdef.waiting import wait_until

SCHEMA_VERSION = 1
GALLERY_FILE = "examples.npz"
_HOLDS_OTHER = "holds the result of a different run"
_JUDGE_AGAIN = "remove this file and run the same command again, which judges its images anew"


def first_difference(ours: Any, theirs: Any, where: str = "") -> str | None:
    """Where two plain descriptions first differ, as ``key: theirs -> ours``; None if they are equal."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            found = first_difference(ours.get(key), theirs.get(key), f"{where}.{key}" if where else str(key))
            if found:
                return found
        return None
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return next((d for i, (a, b) in pairs if (d := first_difference(a, b, f"{where}[{i}]"))), None)
    return None if ours == theirs else f"{where}: {theirs} there, {ours} now"


def extends(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether an evaluation does all that a finished one did, in the same way, and then more.

    More are scenarios at the end of the list, or parts at the end of a cascade.
    """
    mine, other = (copy.deepcopy(dict(fingerprint)) for fingerprint in (ours, theirs))
    try:
        rows, before = mine["evaluation"].pop("scenarios"), other["evaluation"].pop("scenarios")
    except (KeyError, TypeError):
        return False
    if not other.get("data", {}).get("mean_image"):
        # asked for by minimal-norm attacks alone, which may be what is new
        for fingerprint in (mine, other):
            fingerprint.get("data", {}).pop("mean_image", None)
    same = mine == other and len(rows) >= len(before)
    return same and all(_extends_scenario(a, b) for a, b in zip(rows, before, strict=False))


def _extends_scenario(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    mine, other = (copy.deepcopy(dict(scenario)) for scenario in (ours, theirs))
    attacks, before = (s.get("attack", {}).get("init_args", {}).pop("attacks", {}) for s in (mine, other))
    order, order_before = mine.pop("parts", []), other.pop("parts", [])
    same = mine == other and all(attacks.get(name) == attack for name, attack in before.items())
    return same and order[: len(order_before)] == order_before


def write_json(path: Path, content: Any) -> None:
    """Writes plain values, infinity and NaN as null."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, required: Sequence[str] = ()) -> dict[str, Any]:
    """Plain values of a ``.json`` of a result folder.

    Args:
        path: The file.
        required: Keys without which it is no result.

    Raises:
        ResultFolderError: If it cannot be read or lacks one of these.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ResultFolderError(f"{path} cannot be read ({error}): {TEST_AGAIN}") from error
    lacking = [key for key in required if found.get(key) is None] if isinstance(found, dict) else ["a JSON object"]
    if lacking:
        raise ResultFolderError(f"{path} is no result (it lacks {', '.join(lacking)}): {TEST_AGAIN}")
    content: dict[str, Any] = found
    return content


def write_rows(path: Path, rows: Mapping[str, torch.Tensor]) -> None:
    """Writes columns as an uncompressed ``.npz``, with the same bytes for the same columns."""
    write_arrays(path, {name: rows[name] for name in sorted(rows)})


def join_rows(parts: Sequence[Rows]) -> Rows:
    """All rows sorted by image index, each image once.

    Raises:
        RuntimeError: If there are none, or some were judged on one draw and others on several.
    """
    if not parts:
        raise RuntimeError("no image was judged: is the data empty?")
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = rows.get("clean/stochastic", rows["index"][:0])
    if (found != found[:1]).any():
        raise RuntimeError(
            "the defense was found to be random on some images and not on others, so that these were judged on a "
            "single draw: write stochastic = True into its class and evaluate all images again, in a run folder with "
            "--overwrite"
        )
    _, order = np.unique(rows["index"].numpy(), return_index=True)
    return {name: column[torch.from_numpy(order)] for name, column in rows.items()}


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN; both become null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ResultStore:
    """Rows of one evaluation in one folder.

    Args:
        folder: Result folder, ``runs/<name>``.
        fingerprint: What makes the result what it is: configuration, weights, data, version.
        overwrite: Delete the result of a different run that lies in the folder.
        remedy: What to do about such a result.

    Raises:
        ResultFolderError: If the folder holds the result of a different run, or one that cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        overwrite: bool = False,
        remedy: str = "choose another --name, or replace it with --overwrite",
    ) -> None:
        self.folder = folder
        self.remedy = remedy
        self.shards = folder / "shards"
        # a round trip through JSON, so that tuples and lists compare equal
        self.fingerprint = json.loads(json.dumps(_finite(fingerprint)))
        if overwrite:
            self.clear()
        self._refuse_other_run()
        finished = self.json_path.is_file() and self.npz_path.is_file()
        # read in any case, so that a damaged result is not called finished
        rows = read_rows(self.npz_path) if finished else None
        self._extended = None if self.complete else rows

    @property
    def json_path(self) -> Path:
        """Summary, settings, versions."""
        return self.folder / "robustness.json"

    @property
    def npz_path(self) -> Path:
        """A row per image."""
        return self.folder / "robustness.npz"

    @property
    def complete(self) -> bool:
        """Whether this very evaluation is already finished."""
        return self.npz_path.is_file() and self._stored(self.json_path) == self.fingerprint

    def result(self) -> dict[str, Any]:
        """What ``robustness.json`` holds; the evaluation must be complete."""
        return read_json(self.json_path)

    def known(self, indices: torch.Tensor) -> Rows | None:
        """Rows of some images from a finished evaluation that this one extends; None if there is none."""
        if self._extended is None:
            return None
        positions = torch.searchsorted(self._extended["index"], indices.cpu()).clamp_max(
            len(self._extended["index"]) - 1
        )
        if not torch.equal(self._extended["index"][positions], indices.cpu()):
            return None  # that evaluation saw fewer images
        return {name: column[positions] for name, column in self._extended.items()}

    def _stored(self, path: Path) -> Any:
        return read_json(path, ["fingerprint"])["fingerprint"] if path.is_file() else None

    def clear(self) -> None:
        """Removes an earlier result."""
        shutil.rmtree(self.shards, ignore_errors=True)
        for path in (self.json_path, self.npz_path, self.folder / GALLERY_FILE):
            path.unlink(missing_ok=True)

    def _refuse_other_run(self) -> None:
        for path in (self.json_path, self.shards / "fingerprint.json"):
            other = self._stored(path)
            if other is None or (path == self.json_path and extends(self.fingerprint, other)):
                continue
            found = first_difference(self.fingerprint, other)
            empty = path != self.json_path and not any(self.shards.glob("*.npz"))
            # without a verdict there is nothing to lose, but perhaps a process that still works on its first
            if found and not (empty and any(self.shards.glob("failed_*.json"))):
                state = "was begun by a different run, which may not have ended" if empty else _HOLDS_OTHER
                raise ResultFolderError(f"{self.folder} {state} ({found}): {self.remedy}")

    @property
    def _begun_by_us(self) -> bool:
        return bool(self._stored(self.shards / "fingerprint.json") == self.fingerprint)

    def open(self) -> None:
        """Makes the folder ready for shards, unless the evaluation is already finished."""
        if self.complete:
            return
        if not self._begun_by_us:
            shutil.rmtree(self.shards, ignore_errors=True)
        self.shards.mkdir(parents=True, exist_ok=True)
        # the interrupted run may have had more processes than this one
        for marker in [*self.shards.glob("done_*.json"), *self.shards.glob("failed_*.json")]:
            marker.unlink()
        write_json(self.shards / "fingerprint.json", {"fingerprint": self.fingerprint})

    def judged(self) -> set[int]:
        """Indices of the images that some shard already holds."""
        return {int(index) for rows in self._shard_rows() for index in rows["index"]}

    def add(self, rows: Rows) -> None:
        """Writes one judged batch; its name follows from its images, so a repetition replaces itself.

        Raises:
            ResultFolderError: If another evaluation has begun there, after a process of this one failed.
        """
        if not self._begun_by_us:
            raise ResultFolderError(f"another run has begun in {self.folder} meanwhile: choose another --name")
        name = hashlib.sha256(rows["index"].numpy().tobytes()).hexdigest()[:20]
        write_rows(self.shards / f"{name}.npz", rows)

    def gallery_of(self, rank: int) -> Path:
        """Where a rank keeps images until all are judged."""
        return self.shards / "examples" / f"{rank}.npz"

    def galleries(self) -> list[Path]:
        """What the ranks have kept, those of an interrupted run, too."""
        return sorted((self.shards / "examples").glob("*.npz"))

    def _shard_rows(self) -> Iterator[Rows]:
        return (read_rows(path, _JUDGE_AGAIN) for path in sorted(self.shards.glob("*.npz")))

    def mark_done(self, rank: int, share: Mapping[str, float]) -> None:
        """Says that a rank has judged its share, and what that was."""
        write_json(self._done(rank), share)

    def _done(self, rank: int) -> Path:
        return self.shards / f"done_{rank}.json"

    def mark_failed(self, rank: int) -> None:
        """Says that a rank cannot go on, so that the others do not wait for it."""
        if self._begun_by_us:
            write_json(self.shards / f"failed_{rank}.json", {})

    def wait_for(self, ranks: Sequence[int]) -> list[dict[str, float]]:
        """Waits until all ranks are done; files carry the news, so no collective can time out meanwhile.

        On several machines the result folder must be on a shared file system.

        Returns:
            The share of each.

        Raises:
            RuntimeError: If another rank failed.
        """
        wait_until(lambda: all(self._done(rank).is_file() for rank in ranks), self._failed)
        return [read_json(self._done(rank)) for rank in ranks]

    def wait_until_complete(self) -> None:
        """Waits for the rank that writes the result.

        Raises:
            RuntimeError: If another rank failed.
        """
        wait_until(lambda: self.complete, self._failed)

    def _failed(self) -> bool:
        return any(self.shards.glob("failed_*.json"))

    def gather(self) -> Rows:
        """All rows sorted by image index, each image once.

        Raises:
            RuntimeError: If there are none.
        """
        return join_rows([*self._shard_rows()])

    def finish(self, rows: Rows, result: Mapping[str, Any]) -> None:
        """Writes both result files and removes the shards; the summary comes last and makes it complete."""
        write_rows(self.npz_path, rows)
        write_json(self.json_path, {"schema": SCHEMA_VERSION, "fingerprint": self.fingerprint, **result})
        shutil.rmtree(self.shards, ignore_errors=True)
