"""Files that are whole or not there."""

import numpy as np
import pytest
import torch

from lightning_advdef.files import whole_file, write_arrays


def test_a_file_is_there_when_all_is_written_and_not_before(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        assert not path.exists()
        unfinished.write_text("whole")
    assert path.read_text() == "whole"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


def test_what_was_there_stays_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def interrupted():
        with whole_file(path) as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_back(tmp_path, compressed):
    tensors = {"b/a": torch.arange(3), "a": torch.rand(2, 2)}
    write_arrays(tmp_path / "a.npz", tensors, compressed=compressed)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found.files == ["b/a", "a"]
        assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
