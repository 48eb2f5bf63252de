"""Random numbers that belong to an image, not to its place in a batch.

Every number is a hash of ``(seed, split, image index, epoch, stream names, counter)``. A verdict therefore does not
depend on batch size, order, number of devices or resuming, and CPU and GPU see the same integers and uniforms.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def _signed(word: int, bits: int) -> int:
    """The two's complement value that torch stores for an unsigned word."""
    word &= (1 << bits) - 1
    return word - (1 << bits) if word >> (bits - 1) else word


_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = _signed(0xBF58476D1CE4E5B9, 64)
_MIX_2 = _signed(0x94D049BB133111EB, 64)
_LOW_1 = _signed(0x7FEB352D, 32)
_LOW_2 = _signed(0x846CA68B, 32)


def _mix64(word: Tensor) -> Tensor:
    """Finaliser of SplitMix64 (Steele et al., 2014) on int64; shifts are made logical by masking."""
    word = (word ^ ((word >> 30) & ((1 << 34) - 1))) * _MIX_1
    word = (word ^ ((word >> 27) & ((1 << 37) - 1))) * _MIX_2
    return word ^ ((word >> 31) & ((1 << 33) - 1))


def _mix32_(word: Tensor) -> Tensor:
    """32-bit bijection "lowbias32" (Wellons, 2018, https://nullprogram.com/blog/2018/07/31/), in place on int32."""
    word ^= (word >> 16) & 0xFFFF
    word *= _LOW_1
    word ^= (word >> 15) & 0x1FFFF
    word *= _LOW_2
    word ^= (word >> 16) & 0xFFFF
    return word


def _hash_name(name: str | int) -> int:
    """A fixed 32-bit number for a stream name (Python's own ``hash`` is salted per process)."""
    return zlib.crc32(repr(name).encode())


@dataclass(frozen=True)
class SampleRNG:
    """Counter-based random numbers for a batch of images.

    Drawing twice from the same object gives the same numbers: take a new ``stream`` for a new purpose.

    Attributes:
        keys: One 64-bit key per image, int64, shape ``(N,)``.
        rows: Position of each image in the batch the rng was made for, int64, shape ``(N,)``; selection and
            stacking keep it, so costs can be booked per image.
    """

    keys: Tensor
    rows: Tensor

    @classmethod
    def for_images(cls, indices: Tensor, seed: int = 0, split: str = "test", epoch: int = 0) -> SampleRNG:
        """Random numbers for the images at ``indices`` (int64, shape ``(N,)``) of a split."""
        keys = indices.to(torch.int64)
        for word in (seed, _hash_name(split), epoch):
            keys = _mix64(keys + _signed(_GOLDEN * (2 * word + 1), 64))
        return cls(keys, torch.arange(len(indices), device=indices.device))

    @classmethod
    def default(cls, images: Tensor) -> SampleRNG:
        """Seed 0 and indices 0..N-1: what a call without rng means."""
        return cls.for_images(torch.arange(len(images), device=images.device))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, selection: Tensor | slice) -> SampleRNG:
        """The random numbers of some of the images (mask, indices or slice)."""
        return SampleRNG(self.keys[selection], self.rows[selection])

    def numbered(self) -> SampleRNG:
        """The same random numbers as those of a batch of their own: rows count from 0 again."""
        return replace(self, rows=torch.arange(len(self), device=self.keys.device))

    @classmethod
    def cat(cls, parts: list[SampleRNG]) -> SampleRNG:
        """Stacks batches as ``torch.cat`` does their images."""
        return cls(torch.cat([part.keys for part in parts]), torch.cat([part.rows for part in parts]))

    def stream(self, *names: str | int) -> SampleRNG:
        """Independent random numbers for a purpose, e.g. ``rng.stream("restart", 2)``."""
        keys = self.keys
        for name in names:
            keys = _mix64(keys ^ _signed(_hash_name(name) * _GOLDEN, 64))
        return replace(self, keys=keys)

    def words(self, count: int) -> Tensor:
        """``count`` uniform 32-bit words per image, int32, shape ``(N, count)``."""
        low = (self.keys & 0xFFFFFFFF).to(torch.int32).unsqueeze(1)
        high = (self.keys >> 32).to(torch.int32).unsqueeze(1)
        counter = torch.arange(count, device=self.keys.device, dtype=torch.int32)
        # strides of its own, so that halves and bytes can be seen, of no images too
        words = _mix32_(torch.bitwise_xor(counter, low, out=low.new_empty(len(low), count)))
        words += high
        return _mix32_(words)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in ``[low, high)`` up to float32 rounding, with 24 random bits, shape ``(N, *shape)``."""
        words = self.words(math.prod(shape))
        unit = ((words >> 8) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)
        return unit.mul_(high - low).add_(low).view(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers by Box and Muller, float32, shape ``(N, *shape)``."""
        count = math.prod(shape)
        half = (count + 1) // 2
        unit = self.uniform(2 * half)
        # 1 - u lies in (0, 1], where the logarithm is finite
        radius = (1 - unit[:, :half]).log_().mul_(-2).sqrt_()
        angle = unit[:, half:].mul(2 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].reshape(-1, *shape)

    def integers(self, *shape: int, high: int) -> Tensor:
        """Integers in ``[0, high)``, int64, shape ``(N, *shape)``.

        Raises:
            ValueError: If high is not in 1..2**24: the numbers have 24 random bits.
        """
        if not 1 <= high <= 1 << 24:
            raise ValueError(f"high must lie in 1..{1 << 24}, got {high}")
        unit = (self.words(math.prod(shape)) >> 8) & 0xFFFFFF
        return (unit.to(torch.int64) * high >> 24).view(-1, *shape)

    def signs(self, *shape: int) -> Tensor:
        """-1 or +1 with equal chance, float32, shape ``(N, *shape)``; one hash word serves 32 numbers."""
        return self.bits(*shape).to(torch.float32).mul_(2).sub_(1)

    def bits(self, *shape: int) -> Tensor:
        """False or True with equal chance, shape ``(N, *shape)``; one hash word serves 32 numbers."""
        count = math.prod(shape)
        # the lowest byte of a word is its first, as on all little-endian machines
        bytes_ = self.words((count + 31) // 32).view(torch.uint8)
        single = 1 << torch.arange(8, device=bytes_.device, dtype=torch.uint8)
        return (bytes_.unsqueeze(2) & single).flatten(1)[:, :count].bool().reshape(-1, *shape)

    def chance(self, *shape: int, probability: float) -> Tensor:
        """True with a probability in [0, 1], to the nearest 2**-16, bool, shape ``(N, *shape)``.

        One hash word serves two numbers, or 32 if the probability is one half.

        Raises:
            ValueError: If the probability is not in [0, 1].
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in 0..1, got {probability}")
        if probability == 0.5:
            return self.bits(*shape)
        count = math.prod(shape)
        halves = self.words((count + 1) // 2).view(torch.int16)[:, :count].to(torch.int32)
        return (halves < round(probability * 65536) - 32768).view(-1, *shape)
