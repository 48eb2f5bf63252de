"""What a description says of the files that it names."""

import hashlib
import os

from lightning_advdef.evaluation.hashing import file_hashes


def attack_with(checkpoint):
    return {"class_path": "PGD", "init_args": {"start": {"class_path": "G", "init_args": {"checkpoint": checkpoint}}}}


def test_named_checkpoints_are_hashed_however_deep(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"weights")
    expected = {str(path): hashlib.sha256(b"weights").hexdigest()}
    assert file_hashes([attack_with(str(path)), {"eps": 0.1}]) == expected


def test_a_changed_file_has_another_hash(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"one")
    before = file_hashes(attack_with(str(path)))
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert file_hashes(attack_with(str(path))) != before


def test_nothing_is_said_of_files_that_are_not_there(tmp_path):
    assert file_hashes([attack_with(str(tmp_path / "a.ckpt")), attack_with(None), 3, "checkpoint"]) == {}
