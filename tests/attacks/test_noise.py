import pytest
import torch

from lightning_advdef.attacks import PGD, FullGradient, Noise
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import margin
from lightning_advdef.attacks.lp_ball import lp_norm
from tests.attacks.helpers import Linear, Recording, Strict, right

KINDS = ["uniform", "sign", "gaussian"]


def noise(attack, count=200):
    """What the attack adds to grey images of 192 pixels."""
    grey = torch.full((count, 3, 8, 8), 0.5)
    network = Linear(torch.zeros(2, 192), torch.zeros(2))
    return attack(network, grey, torch.zeros(count, dtype=torch.int64)) - grey


# size and distribution


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", ["sign", "gaussian"])
def test_noise_has_norm_eps_where_the_box_allows(norm, kind):
    size = lp_norm(noise(Noise(0.25, norm, kind)), norm)
    torch.testing.assert_close(size, torch.full_like(size, 0.25))


@pytest.mark.parametrize(("norm", "length"), [("linf", 0.25), ("l2", 0.25 / 192**0.5), ("l1", 0.25 / 192)])
def test_sign_noise_moves_every_pixel_equally_far(norm, length):
    found = noise(Noise(0.25, norm, "sign"))
    torch.testing.assert_close(found.abs(), torch.full_like(found, length), rtol=1e-4, atol=1e-7)
    assert abs(found.sign().mean()) < 0.02


def test_uniform_linf_noise_is_uniform_in_every_pixel():
    found = noise(Noise(0.25, kind="uniform")).flatten().sort().values
    expected = torch.linspace(-0.25, 0.25, len(found))
    assert (found - expected).abs().max() < 0.005


def test_uniform_l2_noise_is_uniform_in_the_ball():
    size = lp_norm(noise(Noise(0.25, "l2", "uniform")), "l2")
    share = (size / 0.25) ** 192
    assert (size <= 0.25 + 1e-6).all()
    assert abs(share.mean() - 0.5) < 0.08


def test_gaussian_linf_noise_is_cut_off_at_eps():
    found = noise(Noise(0.25, kind="gaussian"))
    assert abs((found.abs() == 0.25).float().mean() - 0.3173) < 0.01
    assert abs((found.abs() < 0.125).float().mean() - 0.3829) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_noise_differs_between_images_and_draws(kind):
    recording = Recording(Linear(torch.zeros(2, 18), torch.zeros(2)), exact=False)
    Noise(0.1, kind=kind, draws=5)(recording, torch.full((8, 2, 3, 3), 0.5), torch.zeros(8, dtype=torch.int64))
    assert len(torch.cat(recording.seen).flatten(1).unique(dim=0)) == 40


# what is found


@pytest.mark.parametrize("kind", KINDS)
def test_one_draw_asks_nothing_of_the_network(network, images, labels, kind):
    recording = Recording(network)
    attack = Noise(0.1, kind=kind)
    attack(recording, images, labels)
    assert recording.seen == []
    assert attack.cost(10) == (0, 0)
    assert attack.needs == "nothing"


def test_several_draws_need_scores():
    assert Noise(0.1, draws=2).needs == "scores"


def test_noise_is_no_match_for_an_attack_of_the_same_size(network, images, labels):
    control, attacked = (right(network, attack(network, images, labels), labels) for attack in (Noise(0.05), PGD(0.05)))
    assert control.sum() > attacked.sum() + 3


def test_of_several_draws_the_first_that_fools_an_exact_surrogate_is_returned(network, images, labels):
    recording = Recording(network)
    recording.fixed_shape = True
    found = Noise(0.4, kind="sign", draws=8)(recording, images, labels)
    fooled = torch.stack([~right(network, seen, labels) for seen in recording.seen])
    assert fooled.any(dim=0).sum() > 3
    for image in fooled.any(dim=0).nonzero().flatten():
        first = fooled[:, image].nonzero().min()
        assert torch.equal(found[image], recording.seen[first][image])


def test_of_other_surrogates_the_draw_of_highest_margin_is_returned(network, images, labels):
    recording = Recording(network, exact=False)
    found = Noise(0.4, draws=8)(recording, images, labels)
    with torch.no_grad():
        margins = torch.stack([margin(network(seen), Goal(labels)) for seen in recording.seen])
    assert torch.equal(found, torch.stack(recording.seen)[margins.argmax(dim=0), torch.arange(16)])


def test_more_draws_never_bring_an_image_back(network, images, labels):
    few, many = (right(network, Noise(0.4, draws=draws)(network, images, labels), labels) for draws in (2, 12))
    assert not (many & ~few).any()


@pytest.mark.parametrize("kind", [FullGradient, Strict])
def test_several_draws_cost_one_pass_each_until_an_image_is_fooled(network, images, labels, kind):
    surrogate = kind(network)
    passes = surrogate.start_counting(16, images.device)
    attack = Noise(0.02, draws=6)
    attack(surrogate, images, labels)
    assert attack.cost(4) == (6, 0)
    assert surrogate.working is None
    assert passes.forward.tolist()[-3:] == [1, 1, 1]
    assert passes.forward.max() == 6
    assert not passes.backward.any()


# settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "salt"}, "kind must be uniform or sign or gaussian, got 'salt'"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Noise(0.1, **settings)
