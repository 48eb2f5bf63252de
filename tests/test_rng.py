import math
import os
import subprocess
import sys
import zlib

import pytest
import torch

from lightning_advdef.rng import SampleRNG

IMAGES = torch.arange(64)
DRAWS = {
    "words": lambda rng: rng.words(6),
    "uniform": lambda rng: rng.uniform(2, 3),
    "normal": lambda rng: rng.normal(5),
    "integers": lambda rng: rng.integers(4, high=10),
    "signs": lambda rng: rng.signs(40),
    "bits": lambda rng: rng.bits(3, 20),
    "chance": lambda rng: rng.chance(3, 7, probability=0.3),
}


@pytest.fixture(params=DRAWS.values(), ids=DRAWS.keys())
def draw(request):
    return request.param


def rng_of(*indices, **settings):
    return SampleRNG.for_images(torch.tensor(indices), **settings)


# known answers


def mix64(word):
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


def mix32(word):
    word = (word ^ (word >> 16)) * 0x7FEB352D % 2**32
    word = (word ^ (word >> 15)) * 0x846CA68B % 2**32
    return word ^ (word >> 16)


def words_in_plain_integers(index, seed, split, epoch, names, count):
    golden, key = 0x9E3779B97F4A7C15, index
    for word in (seed, zlib.crc32(repr(split).encode()), epoch):
        key = mix64((key + golden * (2 * word + 1)) % 2**64)
    for name in names:
        key = mix64(key ^ zlib.crc32(repr(name).encode()) * golden % 2**64)
    return [mix32((mix32(counter ^ key % 2**32) + (key >> 32)) % 2**32) for counter in range(count)]


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 1])
def test_words_are_the_hash_of_seed_split_index_epoch_and_stream(seed):
    rng = rng_of(0, 5, 49_999, seed=seed, split="train", epoch=3).stream("restart", 2)
    for index, words in zip((0, 5, 49_999), rng.words(50).tolist(), strict=True):
        expected = words_in_plain_integers(index, seed, "train", 3, ("restart", 2), 50)
        assert [word % 2**32 for word in words] == expected


def test_words_never_change_between_versions():
    # written down once: other numbers would break comparisons with stored results
    assert rng_of(0).words(4).tolist() == [[-541345383, -1226632282, 871462890, -1174517372]]
    rng = rng_of(0, 1, 12345, seed=7, split="train", epoch=3).stream("restart", 2)
    assert rng.keys.tolist() == [-195600704108498128, -5198486484656339584, -1734812368185660999]
    assert rng.integers(4, high=1000).tolist() == [[558, 411, 148, 385], [702, 495, 300, 494], [549, 345, 255, 448]]
    assert rng.bits(8).int().tolist()[0] == [0, 0, 1, 0, 1, 0, 1, 1]


def test_uniform_numbers_are_the_upper_24_bits_of_the_words():
    rng = rng_of(1, 2)
    assert torch.equal(rng.uniform(9).double(), (rng.words(9).long() % 2**32 >> 8).double() / 2**24)


def test_32_bits_come_from_one_word():
    rng = rng_of(1, 2)
    words = rng.words(2).long() % 2**32
    expected = [[word >> shift & 1 for word in row for shift in range(32)] for row in words.tolist()]
    assert rng.bits(64).int().tolist() == expected
    assert torch.equal(rng.bits(40), rng.bits(64)[:, :40])


def test_normal_numbers_are_those_of_box_and_muller():
    rng = rng_of(3, 4)
    first, second = rng.uniform(14).double().split(7, dim=1)
    radius, angle = (-2 * (1 - first).log()).sqrt(), 2 * math.pi * second
    expected = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :13]
    torch.testing.assert_close(rng.normal(13).double(), expected, atol=2e-6, rtol=1e-5)


def test_numbers_do_not_depend_on_the_salt_of_the_process():
    code = (
        "import torch; from lightning_advdef.rng import SampleRNG;"
        "print(SampleRNG.for_images(torch.tensor([3]), split='val').stream('noise').words(2).tolist())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(rng_of(3, split="val").stream("noise").words(2).tolist())


# quality: thresholds are five standard errors, so that a good generator passes whatever its constants


def rng_by(varied):
    """4096 rows that differ in one part of the key only."""
    if varied == "image":
        return SampleRNG.for_images(torch.arange(4096))
    make = {
        "seed": lambda number: rng_of(0, seed=number),
        "epoch": lambda number: rng_of(0, epoch=number),
        "stream": lambda number: rng_of(0).stream("step", number),
    }[varied]
    return SampleRNG.cat([make(number) for number in range(4096)])


@pytest.fixture(scope="module", params=["image", "seed", "epoch", "stream"])
def many(request):
    return rng_by(request.param)


def chi_square_z(counts, freedom):
    """Distance of a chi-square statistic from its mean, in standard deviations."""
    expected = counts.double().mean()
    return ((counts - expected).square().sum() / expected - freedom) / math.sqrt(2 * freedom)


def test_every_byte_of_the_words_is_uniform(many):
    words = many.words(64)
    for shift in (0, 8, 16, 24):
        counts = torch.bincount(((words >> shift) & 0xFF).flatten().long(), minlength=256)
        assert abs(chi_square_z(counts, 255)) < 5


def test_neighbouring_words_are_uniform_as_pairs(many):
    words = many.words(64) & 0xFF
    for first, second in ((words[:, :-1], words[:, 1:]), (words[:-1], words[1:])):
        counts = torch.bincount((first * 256 + second).flatten().long(), minlength=65536)
        assert abs(chi_square_z(counts, 65535)) < 5


def test_uniform_numbers_have_mean_one_half_and_variance_one_twelfth(many):
    numbers = many.uniform(64).double()
    count = numbers.numel()
    assert abs(numbers.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / count)
    assert abs(numbers.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)


def test_images_are_not_correlated_with_each_other():
    numbers = SampleRNG.for_images(torch.arange(300)).uniform(4000).double()
    correlation = torch.corrcoef(numbers).triu(1)
    # largest of 44850 normal numbers with deviation 1/sqrt(4000)
    assert correlation.abs().max() < 6 / math.sqrt(4000)


def test_counters_are_not_correlated_with_each_other(many):
    correlation = torch.corrcoef(many.uniform(64).double().T).triu(1)
    assert correlation.abs().max() < 6 / math.sqrt(4096)


@pytest.mark.parametrize(
    "other",
    [
        SampleRNG.for_images(IMAGES, seed=1),
        SampleRNG.for_images(IMAGES, split="val"),
        SampleRNG.for_images(IMAGES, epoch=1),
        SampleRNG.for_images(IMAGES + 64),
        SampleRNG.for_images(IMAGES).stream("noise"),
        SampleRNG.for_images(IMAGES).stream(1),
    ],
    ids=["seed", "split", "epoch", "index", "stream", "number"],
)
def test_every_part_of_the_key_gives_independent_numbers(other):
    numbers = SampleRNG.for_images(IMAGES).uniform(1000).flatten()
    pair = torch.stack([numbers, other.uniform(1000).flatten()]).double()
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / math.sqrt(numbers.numel())


def test_keys_of_different_purposes_never_meet():
    indices = torch.arange(2000)
    keys = [
        SampleRNG.for_images(indices, seed, split, epoch).stream("restart", restart).keys
        for seed in range(3)
        for split in ("train", "val", "test")
        for epoch in range(3)
        for restart in range(3)
    ]
    assert len(torch.cat(keys).unique()) == 81 * 2000


def test_normal_numbers_have_the_moments_of_a_normal_distribution():
    numbers = SampleRNG.for_images(torch.arange(1000)).normal(999).double()
    error = 5 / math.sqrt(numbers.numel())
    assert abs(numbers.mean()) < error
    assert abs(numbers.square().mean() - 1) < error * math.sqrt(2)
    assert abs(numbers.pow(3).mean()) < error * math.sqrt(15)
    assert abs(numbers.pow(4).mean() - 3) < error * math.sqrt(96)
    assert abs((numbers.abs() > 3).double().mean() - 0.0026998) < 5 * math.sqrt(0.0027 / numbers.numel())


def test_normal_numbers_of_an_image_are_not_correlated():
    numbers = SampleRNG.for_images(torch.arange(4096)).normal(32).double()
    assert torch.corrcoef(numbers.T).triu(1).abs().max() < 6 / math.sqrt(4096)


def test_normal_numbers_are_finite():
    numbers = SampleRNG.for_images(torch.arange(100)).normal(100_000)
    assert numbers.isfinite().all()
    assert numbers.abs().max() > 4.5


def test_bits_are_balanced_at_every_position():
    share = SampleRNG.for_images(torch.arange(20_000)).bits(64).double().mean(dim=0)
    assert (share - 0.5).abs().max() < 5 / 2 / math.sqrt(20_000)


def test_bits_of_a_word_are_not_correlated():
    bits = SampleRNG.for_images(torch.arange(20_000)).bits(64).double()
    assert torch.corrcoef(bits.T).triu(1).abs().max() < 6 / math.sqrt(20_000)


def test_signs_are_plus_and_minus_one():
    rng = SampleRNG.for_images(IMAGES)
    signs = rng.signs(3, 5)
    assert torch.equal(signs, rng.bits(3, 5).float() * 2 - 1)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("probability", "below"),
    [(0.0, 0), (2**-16, 1), (0.1, 6554), (0.3, 19661), (0.9, 58982), (1 - 2**-16, 65535), (1.0, 65536)],
)
def test_a_chance_is_a_half_word_below_its_share_of_all_half_words(probability, below):
    rng = SampleRNG.for_images(IMAGES)
    words = rng.words(40).long() % 2**32
    # the half that lies first in memory, shifted by 2**15 as a signed number is
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=2).flatten(1)
    shifted = (halves + 2**15) % 2**16
    assert torch.equal(rng.chance(3, 25, probability=probability).flatten(1), (shifted < below)[:, :75])


def test_an_even_chance_is_a_bit():
    rng = SampleRNG.for_images(IMAGES)
    assert torch.equal(rng.chance(3, 25, probability=0.5), rng.bits(3, 25))


def test_no_chance_never_happens_and_certainty_always():
    rng = SampleRNG.for_images(IMAGES)
    assert not rng.chance(1000, probability=0.0).any()
    assert rng.chance(1000, probability=1.0).all()


@pytest.mark.parametrize("probability", [-0.1, 1.001, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(probability):
    with pytest.raises(ValueError, match=r"probability must lie in 0\.\.1"):
        SampleRNG.for_images(IMAGES).chance(3, probability=probability)


@pytest.mark.parametrize("probability", [0.5, 0.1, 0.9, 0.001])
def test_chances_come_true_as_often_as_they_should(many, probability):
    numbers = many.chance(256, probability=probability)
    # to the nearest of 2**16 steps, and five standard errors
    error = 2**-17 + 5 * math.sqrt(probability * (1 - probability) / numbers.numel())
    assert abs(numbers.double().mean() - probability) < error


@pytest.mark.parametrize("high", [2, 10, 1000])
def test_integers_are_uniform(high):
    numbers = SampleRNG.for_images(torch.arange(1000)).integers(200, high=high)
    counts = torch.bincount(numbers.flatten(), minlength=high)
    assert len(counts) == high
    assert abs(chi_square_z(counts, high - 1)) < 5


@pytest.mark.parametrize("high", [1, 2**24 - 1, 2**24])
def test_integers_reach_up_to_the_largest_bound(high):
    numbers = SampleRNG.for_images(torch.arange(1000)).integers(1000, high=high)
    assert numbers.min() >= 0
    assert numbers.max() < high
    assert numbers.max() >= 0.9999 * (high - 1)
    assert abs(numbers.double().mean() / high - (0.5 if high > 1 else 0)) < 5 * math.sqrt(1 / 12 / 1e6)


@pytest.mark.parametrize("high", [0, -3, 2**24 + 1])
def test_integers_beyond_24_bits_are_refused(high):
    with pytest.raises(ValueError, match=f"high must lie in 1..16777216, got {high}"):
        SampleRNG.for_images(IMAGES).integers(1, high=high)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-8 / 255, 8 / 255), (2.0, 5.0)])
def test_uniform_numbers_fill_their_interval(low, high):
    numbers = SampleRNG.for_images(torch.arange(100)).uniform(10_000, low=low, high=high)
    assert numbers.min() >= low
    assert numbers.max() < high
    assert numbers.min() < low + 1e-4 * (high - low)
    assert numbers.max() > high - 1e-4 * (high - low)


# an image's numbers are its own


def test_drawing_twice_gives_the_same_numbers(draw):
    rng = SampleRNG.for_images(IMAGES)
    assert torch.equal(draw(rng), draw(rng))
    assert torch.equal(draw(SampleRNG.for_images(IMAGES)), draw(rng))


@pytest.mark.parametrize(
    "selection",
    [IMAGES % 3 == 0, torch.tensor([5, 1, 60]), slice(10, 20), torch.tensor([7, 7])],
    ids=["mask", "indices", "slice", "repeated"],
)
def test_a_selection_keeps_its_numbers(draw, selection):
    rng = SampleRNG.for_images(IMAGES)
    assert torch.equal(draw(rng[selection]), draw(rng)[selection])
    assert torch.equal(rng[selection].rows, torch.arange(64)[selection])


def test_numbers_do_not_depend_on_the_batch_around_an_image(draw):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    together = draw(SampleRNG.for_images(IMAGES))
    assert torch.equal(draw(SampleRNG.for_images(order)), together[order])
    assert torch.equal(draw(SampleRNG.for_images(IMAGES[30:31])), together[30:31])


def test_joined_batches_keep_their_numbers(draw):
    first, second = SampleRNG.for_images(IMAGES[:7]), SampleRNG.for_images(IMAGES[3:]).stream("draw", 1)
    assert torch.equal(draw(SampleRNG.cat([first, second])), torch.cat([draw(first), draw(second)]))


def test_selecting_and_streaming_commute(draw):
    rng = SampleRNG.for_images(IMAGES)
    mask = IMAGES > 50
    assert torch.equal(draw(rng[mask].stream("step", 3)), draw(rng.stream("step", 3)[mask]))


def test_streams_in_one_call_or_several_are_the_same(draw):
    rng = SampleRNG.for_images(IMAGES)
    assert torch.equal(draw(rng.stream("a", 1)), draw(rng.stream("a").stream(1)))


def test_order_and_kind_of_stream_names_matter():
    rng = SampleRNG.for_images(IMAGES)
    streams = [("a", "b"), ("b", "a"), ("a",), ("ab",), (1,), ("1",), (0,), (-1,), (1, 2), (12,)]
    assert len({tuple(rng.stream(*names).keys.tolist()) for names in streams}) == len(streams)


def test_default_is_seed_zero_and_the_position_in_the_test_batch(draw):
    images = torch.zeros(5, 3, 4, 4)
    assert torch.equal(draw(SampleRNG.default(images)), draw(rng_of(0, 1, 2, 3, 4, seed=0, split="test", epoch=0)))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63 - 1])
def test_every_integer_of_64_bits_is_a_seed_of_its_own(seed):
    assert not torch.equal(rng_of(0, seed=seed).words(2), rng_of(0).words(2))


def test_dtype_of_the_indices_does_not_matter():
    assert torch.equal(SampleRNG.for_images(IMAGES.to(torch.int32)).words(3), SampleRNG.for_images(IMAGES).words(3))


def test_drawing_leaves_torchs_own_generator_alone(draw):
    state = torch.get_rng_state()
    draw(SampleRNG.for_images(IMAGES))
    assert torch.equal(torch.get_rng_state(), state)


def test_shapes_and_dtypes_are_those_promised():
    rng = SampleRNG.for_images(IMAGES)
    assert len(rng) == 64
    assert rng.words(3).shape == (64, 3)
    assert rng.words(3).dtype == torch.int32
    for numbers, dtype in (
        (rng.uniform(2, 3), torch.float32),
        (rng.normal(2, 3), torch.float32),
        (rng.signs(2, 3), torch.float32),
        (rng.integers(2, 3, high=4), torch.int64),
        (rng.bits(2, 3), torch.bool),
        (rng.chance(2, 3, probability=0.1), torch.bool),
    ):
        assert numbers.shape == (64, 2, 3)
        assert numbers.dtype == dtype


def test_no_images_give_no_numbers(draw):
    assert len(draw(SampleRNG.for_images(IMAGES[:0]))) == 0


@pytest.mark.parametrize("count", [1, 2, 32, 33])
def test_no_images_give_no_part_of_a_word(count):
    rng = SampleRNG.for_images(IMAGES[:0])
    assert rng.bits(count).shape == rng.chance(count, probability=0.3).shape == (0, count)


@pytest.mark.gpu
def test_gpu_gives_the_same_bits(draw):
    rng = SampleRNG.for_images(IMAGES)
    numbers, on_gpu = draw(rng), draw(SampleRNG.for_images(IMAGES.cuda())).cpu()
    if numbers.dtype == torch.float32:
        torch.testing.assert_close(on_gpu, numbers, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(on_gpu, numbers)
