import pytest
import torch
from torch import nn

from lightning_advdef.attacks import FGSM, PGD, FullGradient, Surrogate, Undefended
from lightning_advdef.attacks.surrogates import as_defense, as_surrogate
from lightning_advdef.rng import SampleRNG


class Defended(nn.Module):
    """A classifier behind a purifier that adds noise or a constant."""

    def __init__(self, network, stochastic):
        super().__init__()
        self.network, self.stochastic = network, stochastic

    @property
    def undefended(self):
        return self.network

    def adaptive_surrogates(self):
        return {}

    def forward(self, images, rng=None):
        noise = rng.uniform(*images.shape[1:]) if self.stochastic else 0.3
        return self.network(images + noise)


@pytest.fixture
def rng(images):
    return SampleRNG.default(images)


@pytest.fixture(params=[False, True], ids=["deterministic", "stochastic"])
def defended(request, network):
    return Defended(network, request.param).eval()


def test_full_gradient_sees_what_is_deployed(defended, images, rng):
    logits = FullGradient(defended)(images, rng)
    assert logits.shape == (1, 16, 4)
    torch.testing.assert_close(logits[0], defended(images, rng.stream("defense")))


def test_undefended_sees_the_bare_classifier(defended, network, images, rng):
    torch.testing.assert_close(Undefended(defended)(images, rng)[0], network(images))


def test_only_the_full_gradient_of_a_deterministic_defense_is_exact(defended):
    assert FullGradient(defended).exact is not defended.stochastic
    assert not Undefended(defended).exact


def test_images_leave_only_where_the_surrogate_is_exact_and_the_shape_free(defended):
    surrogate = FullGradient(defended)
    assert surrogate.may_compact is not defended.stochastic
    surrogate.fixed_shape = True
    assert not surrogate.may_compact
    assert not Undefended(defended).may_compact


def test_all_steps_run_on_a_stochastic_defense(network, images, labels):
    surrogate = FullGradient(Defended(network, stochastic=True).eval())
    passes = surrogate.start_counting(16, images.device)
    PGD(0.1, steps=5, restarts=2)(surrogate, images, labels)
    assert passes.forward.tolist() == [12] * 16
    assert passes.backward.tolist() == [10] * 16


def test_access_is_printed_beside_each_number():
    assert (FullGradient.access, Undefended.access) == ("white", "gray")


def test_a_plain_network_is_its_own_undefended_classifier(network, images, rng):
    defense = as_defense(network)
    assert defense.undefended is network
    assert not defense.stochastic
    assert defense.adaptive_surrogates() == {}
    torch.testing.assert_close(defense(images, rng), network(images))


def test_a_plain_network_runs_behind_any_purifier(network, images, rng):
    defense = as_defense(network)
    assert torch.equal(defense.purify(images, rng), images)
    torch.testing.assert_close(defense.deploy(images, rng, lambda pixels, _: pixels.round()), network(images.round()))


def test_a_surrogate_names_the_modules_that_are_left_alone(network, defended):
    assert FullGradient(defended).modules == (defended,)
    assert FullGradient(network).modules[0].network is network


def test_the_description_says_what_and_how_much_is_known(defended):
    assert Undefended(defended).describe() == {"surrogate": "Undefended", "access": "gray", "surrogate_settings": {}}


def test_what_is_no_part_of_the_defense_follows_the_images(defended, images):
    surrogate, companion = FullGradient(defended), nn.Linear(2, 2)
    surrogate.follow(images, companion)
    assert companion.weight.device.type == "cpu"
    surrogate.follow(images.to("meta"), companion)
    assert companion.weight.device.type == "meta"


def test_a_fixed_shape_is_cut_into_equal_parts(network):
    surrogate = FullGradient(network)
    surrogate.max_rows, surrogate.fixed_shape = 25, True
    for copies, size in ((1, 16), (2, 8), (3, 8), (5, 4), (100, 1)):
        parts = [range(64)[rows] for rows in surrogate.chunks(64, copies)]
        assert [len(part) for part in parts] == [size] * (64 // size)
        assert [row for part in parts for row in part] == list(range(64))
    assert len(surrogate.chunks(0, 3)) == 1


def test_a_forward_pass_is_cut_like_a_gradient(defended, images, rng):
    surrogate = FullGradient(defended)
    whole = surrogate(images, rng)
    surrogate.max_rows = 5
    passes = surrogate.start_counting(16, images.device)
    torch.testing.assert_close(surrogate(images, rng), whole)
    assert passes.forward.tolist() == [1] * 16


def test_a_defense_is_not_wrapped(defended):
    assert as_defense(defended) is defended


def test_a_surrogate_is_not_wrapped(network):
    surrogate = Undefended(network)
    assert as_surrogate(surrogate) is surrogate
    assert isinstance(as_surrogate(network), FullGradient)


def test_the_gray_box_attack_is_the_white_box_attack_on_the_bare_classifier(defended, network, images, labels):
    assert torch.equal(FGSM(0.05)(Undefended(defended), images, labels), FGSM(0.05)(network, images, labels))


def test_nothing_is_counted_until_asked(network, images, rng):
    surrogate = FullGradient(network)
    surrogate(images, rng)
    surrogate.count_backward(rng, 1, torch.ones(len(rng), 1))
    assert surrogate.passes is None


def test_counting_starts_anew(network, images, rng):
    surrogate = FullGradient(network)
    first = surrogate.start_counting(16, images.device)
    surrogate(images, rng)
    second = surrogate.start_counting(16, images.device)
    surrogate(images[3:5], rng[3:5])
    assert first.forward.tolist() == [1] * 16
    assert second.forward.nonzero().flatten().tolist() == [3, 4]


def test_rows_of_repeated_images_are_booked_on_the_image(network, images, rng):
    surrogate = FullGradient(network)
    passes = surrogate.start_counting(16, images.device)
    surrogate(images[:2].repeat(3, 1, 1, 1), SampleRNG.cat([rng[:2]] * 3))
    assert passes.forward.tolist() == [3, 3] + [0] * 14


def test_the_base_has_no_auxiliary_loss(network, images, labels, rng):
    assert FullGradient(network).auxiliary(images, labels, rng) is None


def test_the_base_cannot_be_made(network):
    with pytest.raises(TypeError, match="abstract"):
        Surrogate(network)
