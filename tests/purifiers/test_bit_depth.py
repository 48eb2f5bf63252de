import pytest
import torch

from lightning_advdef.purifiers import BitDepth
from lightning_advdef.rng import SampleRNG


def purified(values, bits):
    images = torch.tensor(values).view(1, 1, 1, -1)
    return BitDepth(bits)(images, SampleRNG.default(images)).flatten().tolist()


def test_one_bit_leaves_black_and_white():
    assert purified([0.0, 0.3, 0.49, 0.51, 1.0], 1) == [0, 0, 0, 1, 1]


def test_two_bits_leave_thirds():
    assert purified([0.1, 0.2, 0.6, 0.9], 2) == pytest.approx([0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("bits", range(1, 9))
def test_there_are_as_many_levels_as_bits_say(bits):
    levels = purified(torch.linspace(0, 1, 2000).tolist(), bits)
    assert len(set(levels)) == 2**bits


def test_pixels_of_a_file_stay_as_they_are_with_eight_bits():
    pixels = (torch.arange(256) / 255).tolist()
    assert purified(pixels, 8) == pixels


@pytest.mark.parametrize("bits", [0, 9])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits from 1 to 8"):
        BitDepth(bits)
