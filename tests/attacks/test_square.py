from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lightning_advdef.attacks import Bisection, FullGradient, Square, Undefended, square_windows
from lightning_advdef.attacks.goal import Goal
from lightning_advdef.attacks.losses import cross_entropy, margin
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm
from lightning_advdef.attacks.square_windows import (
    L2Proposals,
    LinfProposals,
    odd_window_side,
    two_lobes,
    window_share,
    window_side,
)
from lightning_advdef.data import Digits, get_spec
from lightning_advdef.models import MLP
from lightning_advdef.rng import SampleRNG
from tests.attacks.helpers import (
    FooledInBfloat16,
    Linear,
    Recording,
    Strict,
    accuracy,
    middle_images,
    random_linear,
    right,
)
from tests.conftest import GOLDEN

STAGES = (0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)

# schedule and pattern


@pytest.mark.parametrize(
    ("length", "sides"),
    [
        (28, [25, 18, 13, 9, 6, 4, 3, 2]),
        (32, [29, 20, 14, 10, 7, 5, 4, 3]),
        (224, [200, 142, 100, 71, 50, 35, 25, 18]),
    ],
)
def test_windows_shrink_as_in_the_reference(length, sides):
    assert [window_side(length, window_share(query, 0.8)) for query in STAGES[:8]] == sides


def test_l2_windows_are_at_least_three_odd_and_inside_the_image():
    sides = [odd_window_side(28, window_share(query, 0.8)) for query in STAGES]
    assert sides == [25, 19, 13, 9, 7, 5, 3, 3, 3, 3]
    assert odd_window_side(2, 0.8) == 2
    assert odd_window_side(8, 1.0) == 8


def test_the_share_is_halved_after_the_authors_queries():
    shares = [window_share(query, 0.8) for query in range(10000)]
    changes = [query for query in range(1, 10000) if shares[query] != shares[query - 1]]
    assert changes == list(STAGES[1:])
    assert shares[-1] == 0.8 / 512


def test_the_l2_pattern_of_side_three_is_that_of_the_formula():
    lobes = torch.tensor([[0.25, 1.25, 0.25], [0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    upper, lower = lobes[:1] / lobes[:1].norm(), lobes[1:] / lobes[1:].norm()
    expected = torch.cat([upper, -lower]) / 2**0.5
    torch.testing.assert_close(two_lobes(3, 3), expected)


@pytest.mark.parametrize("side", [2, 3, 5, 6, 9, 25])
def test_the_l2_pattern_is_the_references_up_to_its_random_transposition(side):
    reference = pytest.importorskip("pyautoattack.square").SquareAttack(nn.Identity(), norm="L2", eps=1.0, device="cpu")
    pattern, expected = two_lobes(side, side), reference.eta(side)
    assert min((expected - pattern).abs().max(), (expected - pattern.t()).abs().max()) < 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 3), (5, 9)])
def test_l2_patterns_of_any_shape_have_norm_one(shape):
    torch.testing.assert_close(two_lobes(*shape).norm(), torch.tensor(1.0))


# what is asked


class Constant(nn.Module):
    """Class 0 whatever the image, so that no proposal is ever accepted."""

    def forward(self, images):
        return images.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0])


def asked(attack, images):
    """All images that a network which cannot be fooled is asked about, the start first, shape (Q+1, N, C, H, W)."""
    recording = Recording(Constant(), exact=False)
    attack(recording, images, torch.zeros(len(images), dtype=torch.int64))
    return torch.stack(recording.seen)


def grey(count=3, *shape):
    return torch.full((count, *(shape or (2, 9, 9))), 0.5)


def test_the_linf_start_is_vertical_stripes_of_full_size():
    start = asked(Square(0.125, queries=1), grey(20))[0] - 0.5
    assert (start.abs() == 0.125).all()
    assert (start == start[:, :, :1]).all()
    assert len(start[:, :, 0].unique(dim=0)) == 20
    assert abs(start[:, :, 0].sign().mean()) < 0.2


def test_linf_perturbations_are_plus_or_minus_eps_before_clipping():
    seen = asked(Square(0.125, queries=100), grey())
    assert ((seen - 0.5).abs() == 0.125).all()


def box_of(changed):
    """Height and width of the smallest box around the changed pixels (H, W)."""
    rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
    return (rows.max() - rows.min() + 1).item(), (columns.max() - columns.min() + 1).item()


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 12, 20)])
def test_a_query_changes_one_window_per_image_with_a_side_per_axis(shape):
    attack = Square(0.1, queries=60)
    seen = asked(attack, grey(4, *shape))
    for query, images in enumerate(seen[1:]):
        share = window_share(query, attack.p_init)
        height, width = (window_side(length, share) for length in shape[1:])
        for image, start in zip(images, seen[0], strict=True):
            changed = (image != start).any(dim=0)
            inside = box_of(changed) if changed.any() else (0, 0)
            assert inside[0] <= height
            assert inside[1] <= width


def test_within_a_window_each_channel_has_one_sign():
    seen = asked(Square(0.1, queries=60), grey(4, 3, 12, 12))
    for images in seen[1:]:
        for image, start in zip(images.flatten(0, 1), seen[0].flatten(0, 1), strict=True):
            assert len(image[image != start].unique()) <= 1


def test_windows_reach_all_pixels_and_all_places_alike():
    """With 400 images of single-pixel windows, each of 20 pixels is changed about 400 * 40 / 20 / 2 times."""
    seen = asked(Square(0.1, queries=40, p_init=0.01), grey(400, 1, 4, 5))
    counts = (seen[1:] != seen[0]).sum(dim=(0, 1, 2))
    assert counts.shape == (4, 5)
    assert ((counts - 400).abs() < 6 * 400**0.5).all()


def test_images_have_windows_and_signs_of_their_own_in_every_query():
    seen = asked(Square(0.1, queries=5, p_init=0.05), grey(64, 1, 16, 16))
    changes = (seen[1:] - seen[0]).flatten(2)
    assert all(len(change.unique(dim=0)) > 40 for change in changes)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_numbers_are_new_in_every_query_and_restart(norm):
    seen = asked(Square(0.1, norm, queries=150, restarts=2), grey(1, 2, 20, 20))
    # some windows already have the sign that is proposed
    assert len(seen.flatten(1).unique(dim=0)) > 260


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (2, 4, 3), (1, 2, 7)])
def test_l2_perturbations_have_norm_eps_where_the_box_allows(shape):
    seen = asked(Square(0.3, "l2", queries=100), grey(4, *shape))
    sizes = lp_norm((seen - 0.5).flatten(0, 1), "l2")
    torch.testing.assert_close(sizes, torch.full_like(sizes, 0.3))


def test_the_l2_start_covers_the_image_with_tiles_of_a_fifth():
    start = asked(Square(1.0, "l2", queries=1), grey(2, 1, 27, 30))[0] - 0.5
    covered = start[0, 0] != 0
    assert covered[1:26].all()
    assert not covered[[0, 26]].any()
    tile = start[0, 0, 1:6, :6].abs()
    options = [two_lobes(5, 6).abs(), two_lobes(6, 5).t().abs()]
    assert min((tile / tile.norm() - option).abs().max() for option in options) < 1e-5


def test_an_l2_query_follows_algorithm_3():
    """The mass of both windows and of the free budget goes to the first; the second is erased."""
    eps, side = 0.6, 5
    images = middle_images(40, 2, 9, 9, spread=0.1)
    start, new = asked(Square(eps, "l2", queries=1, p_init=(side / 9) ** 2), images)
    before, after = (start - images).double(), (new - images).double()
    kept = (before == 0) | ((after - before).abs() < 1e-6)
    assert (kept.flatten(1).sum(dim=1) >= 2 * (81 - 2 * side * side)).all()
    torch.testing.assert_close(after.flatten(1).norm(dim=1), torch.full((40,), eps).double(), rtol=1e-5, atol=0)
    for old, change in zip(before, after, strict=True):
        # each channel keeps its mass, because the start already spends the whole budget
        torch.testing.assert_close(change.flatten(1).norm(dim=1), old.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-6)


def test_l2_windows_that_fall_together_keep_the_budget():
    """On 3x3 pixels both windows are the whole image, and everything is written anew."""
    seen = asked(Square(0.3, "l2", queries=50), grey(8, 2, 3, 3))
    assert seen.isfinite().all()
    assert ((seen[1:] - seen[0]).abs().flatten(2).amax(dim=2) > 1e-3).float().mean() > 0.8


# what is found


@pytest.mark.parametrize("eps", [0.005, 0.01, 0.02, 0.04])
def test_two_linear_classes_resist_linf_where_the_margin_exceeds_eps_times_the_l1_norm(eps):
    network, images, labels = random_linear(2, 16, seed=1), middle_images(200, 1, 4, 4), torch.arange(200) % 2
    slope = (network.weight[0] - network.weight[1]).detach()
    with torch.no_grad():
        difference = network(images) @ torch.tensor([1.0, -1.0])
    margins = torch.where(labels == 0, difference, -difference)
    robust = right(network, Square(eps, queries=400, p_init=1 / 16)(network, images, labels), labels)
    assert torch.equal(robust, margins > eps * slope.abs().sum())
    assert 0 < robust.sum() < 100


class Script:
    """The random numbers of one image, in the order in which the reference asks for them."""

    def __init__(self, proposals, queries):
        rng, (channels, _, width) = proposals.rng.stream("start"), proposals.images.shape[1:]
        self.places, self.turns, self.signs = [], [], [rng.signs(channels, 1, width)]
        if proposals.windows == 2:
            self.turns = rng.stream("turned").bits(25).flatten().tolist()
            self.signs = list(rng.signs(channels, 25).movedim(2, 0)[..., None, None])
        blocks = [proposals._draw(first) for first in range(0, queries, 64)]
        for query in range(queries):
            corners, signs, turned = (numbers[query % 64] for numbers in blocks[query // 64])
            self.places += [place for corner in corners.flatten().tolist() for place in divmod(corner, width)]
            self.signs.append(signs.view(channels, 1, 1))
            self.turns.append(turned.item())


def scripted(reference, script, **settings):
    """The reference with its random numbers replaced."""
    attack = reference(device="cpu", resc_schedule=False, **settings)
    places, turns, signs = iter(script.places), iter(script.turns), iter(script.signs)
    attack.random_int = lambda low, high: next(places)
    attack.random_choice = lambda shape: next(signs)
    attack.eta = lambda side: two_lobes(side, side).t() if next(turns) else two_lobes(side, side)
    return attack


@pytest.mark.parametrize(("norm", "proposals", "eps"), [("linf", LinfProposals, 0.04), ("l2", L2Proposals, 0.25)])
def test_with_its_random_numbers_the_reference_finds_the_same_images(norm, proposals, eps):
    """Image by image, because the reference shares its windows in a batch."""
    reference = pytest.importorskip("pyautoattack.square").SquareAttack
    network = random_linear(3, 200, seed=2)
    images = middle_images(8, 2, 10, 10, spread=0.45)
    labels = network(images).argmax(dim=1)
    attack, rng = Square(eps, norm, queries=100), SampleRNG.default(images)
    found = attack(network, images, labels, rng)
    for image in range(8):
        row = slice(image, image + 1)
        numbers = rng[row].stream("attack").stream("restart", 0)
        script = Script(proposals(images[row], LpBall(norm, torch.tensor([eps])), numbers, 0.8, attack.clip), 100)
        settings = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": eps, "n_queries": 100}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            expected = scripted(reference, script, predict=network, **settings).perturb(images[row], labels[row])
        fooled = not right(network, found[row], labels[row])
        # where it fails the reference returns the clean image, ours the best iterate
        assert fooled == (not right(network, expected, labels[row]))
        if fooled:
            torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)
    assert 1 < right(network, found, labels).sum() < 7


@pytest.fixture(scope="module")
def digits():
    network = MLP(get_spec("digits"), hidden=[32])
    network.load_state_dict(load_file(GOLDEN / "digits_mlp.safetensors"))
    data = Digits(batch_size=150)
    data.setup("test")
    images, labels, _ = next(iter(data.test_dataloader()))
    return network.eval(), images, labels


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 0.6)])
def test_robust_accuracy_is_that_of_the_reference_where_its_windows_reach(digits, norm, eps, monkeypatch):
    reference = pytest.importorskip("pyautoattack.square").SquareAttack
    monkeypatch.setattr(square_windows, "_LAST_PLACE", 0)
    network, images, labels = digits
    settings = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": eps, "n_queries": 300, "resc_schedule": False}
    ours, theirs = [], []
    for seed in range(3):
        rng = SampleRNG.for_images(torch.arange(len(images)), seed=seed)
        ours.append(accuracy(network, Square(eps, norm, queries=300)(network, images, labels, rng), labels))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = reference(network, seed=seed, device="cpu", **settings).perturb(images, labels)
        theirs.append(accuracy(network, found, labels))
    assert abs(sum(ours) - sum(theirs)) / 3 < 0.04
    assert 0.2 < sum(ours) / 3 < 0.8


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
def test_where_the_surrogate_is_not_exact_the_highest_loss_is_returned(network, images, labels, norm, loss):
    recording = Recording(network, exact=False)
    found = Square(0.1, norm, queries=80, restarts=2, loss=loss)(recording, images, labels)
    losses = {"margin": margin, "cross_entropy": cross_entropy}[loss]
    with torch.no_grad():
        seen = torch.stack([losses(network(step), Goal(labels)) for step in recording.seen])
    best = seen.argmax(dim=0)
    assert len(seen) == 2 * 81
    assert torch.equal(found, torch.stack(recording.seen)[best, torch.arange(16)])
    assert len(best.unique()) > 8


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_never_lower_the_loss(network, images, labels, norm):
    losses = []
    for queries in (1, 5, 20, 60, 130):
        with torch.no_grad():
            found = Square(0.05, norm, queries=queries)(Undefended(network), images, labels)
            losses.append(margin(network(found), Goal(labels)))
    assert all((later >= earlier - 1e-6).all() for earlier, later in pairwise(losses))
    assert (losses[-1] > losses[0]).sum() > 8


def test_an_exact_surrogate_gives_the_first_image_that_fools_it(network, images, labels):
    recording = Recording(network)
    found = Square(0.03, queries=60)(Strictly(recording), images, labels)
    fooled = torch.stack([~right(network, seen, labels) for seen in recording.seen])
    assert 3 < fooled.any(dim=0).sum() < 16
    for image in fooled.any(dim=0).nonzero().flatten():
        first = fooled[:, image].nonzero().min()
        assert torch.equal(found[image], recording.seen[first][image])


def Strictly(recording):  # noqa: N802
    """The same surrogate in strict mode, so that all of its records have one shape."""
    recording.fixed_shape = True
    return recording


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targets_are_reached_by_cross_entropy(network, images, labels, norm):
    targets = (labels + 1) % 4
    attack = Square({"linf": 0.3, "l2": 1.5}[norm], norm, queries=200)
    found = attack(network, images, labels, target_labels=targets)
    before, after = (right(network, pixels, targets).sum() for pixels in (images, found))
    assert after > before + 5
    recording = Recording(network, exact=False)
    strongest = attack(recording, images, labels, target_labels=targets)
    with torch.no_grad():
        losses = torch.stack([cross_entropy(network(seen), Goal(labels, targets)) for seen in recording.seen])
    assert torch.equal(strongest, torch.stack(recording.seen)[losses.argmax(dim=0), torch.arange(16)])


def test_more_restarts_never_bring_an_image_back(network, images, labels):
    first, more = (Square(0.05, queries=3, restarts=restarts)(network, images, labels) for restarts in (1, 4))
    fooled = ~right(network, first, labels)
    assert torch.equal(more[fooled], first[fooled])
    assert (~right(network, more, labels)).sum() > fooled.sum() > 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_hundred_classes_and_single_pixels_are_attacked_too(norm):
    images, labels = torch.rand(6, 1, 1, 1, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    network = Linear(torch.linspace(-9, 9, 100).unsqueeze(1), torch.zeros(100))
    assert Square(0.2, norm, queries=5)(network, images, labels).isfinite().all()


def test_bisection_gives_each_image_a_radius_of_its_own(network, images, labels):
    found = Bisection(Square(0.2, queries=40), rounds=4)(network, images, labels)
    sizes = lp_norm(found - images, "linf")[~right(network, found, labels)]
    assert len(sizes.unique()) > 3


def test_a_search_in_bfloat16_leaves_about_as_many_images(network, images, labels):
    surrogate = FullGradient(network)
    surrogate.search_dtype = torch.bfloat16
    found = Square(0.05, queries=60)(surrogate, images, labels)
    assert (
        abs(
            accuracy(network, found, labels)
            - accuracy(network, Square(0.05, queries=60)(network, images, labels), labels)
        )
        < 0.2
    )
    assert found.dtype == torch.float32


def test_what_fools_in_bfloat16_alone_is_asked_on(images):
    surrogate = FullGradient(FooledInBfloat16())
    surrogate.search_dtype = torch.bfloat16
    passes = surrogate.start_counting(16, images.device)
    attack = Square(0.05, queries=10)
    attack(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert (passes.forward > attack.queries).all()


# what it costs


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_images_cost_one_pass_per_query_that_changes_them_and_one_for_the_start(images, norm, strict):
    surrogate = (Strict if strict else FullGradient)(Constant())
    passes = surrogate.start_counting(16, images.device)
    attack = Square(0.1, norm, queries=70, restarts=2)
    attack(surrogate, images, torch.zeros(16, dtype=torch.int64))
    assert attack.cost(2) == (142, 0)
    # a window in linf may have the proposed sign already; one in l2 never comes back with the same values
    assert passes.forward.max() <= 142
    assert passes.forward.min() >= (100 if norm == "linf" else 142)
    assert passes.backward.tolist() == [0] * 16


def test_proposals_that_change_nothing_are_not_asked_about_and_change_no_result(network, images, labels):
    """Pixels at the bounds: many proposals are clipped to what the image is already."""
    images = images.round()
    spared, all_asked = FullGradient(network), Recording(network, exact=False)
    passes = spared.start_counting(16, images.device)
    found = [Square(0.02, queries=60, p_init=0.1)(surrogate, images, labels) for surrogate in (spared, all_asked)]
    robust = right(network, found[0], labels)
    torch.testing.assert_close(found[0][robust], found[1][robust], rtol=0, atol=0)
    assert torch.equal(robust, right(network, found[1], labels))
    assert passes.forward[robust].max() < 61


def test_images_that_are_fooled_cost_no_further_pass(network, images, labels):
    books = []
    for surrogate in (FullGradient(network), Strict(network)):
        books.append(surrogate.start_counting(16, images.device).forward)
        Square(0.03, queries=60, restarts=2)(surrogate, images, labels)
        assert surrogate.working is None
    assert torch.equal(*books)
    assert books[0].min() == 1
    assert 100 < books[0].max() <= 122
    assert len(books[0].unique()) > 3


def test_a_strict_search_ends_when_all_images_are_fooled(images):
    recording = Strictly(Recording(Constant()))
    Square(0.1, queries=50)(recording, images, torch.ones(16, dtype=torch.int64))
    assert len(recording.seen) == 1


# random numbers of the defense


class Keys(Undefended):
    """Notes the random numbers that each pass is given."""

    def __init__(self, defense):
        super().__init__(defense)
        self.keys = []

    def logits(self, images, rng):
        self.keys.append(rng.keys.clone())
        return super().logits(images, rng)


def test_a_stochastic_surrogate_compares_queries_of_a_restart_under_the_same_numbers(network, images, labels):
    surrogate = Keys(network)
    Square(0.1, queries=30, restarts=2)(surrogate, images, labels)
    assert len(surrogate.keys) == 62
    assert len(torch.cat(surrogate.keys).unique()) == 2 * 16


# settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 0}, "queries and restarts must be at least 1, got 0 and 1"),
        ({"restarts": 0}, "queries and restarts must be at least 1, got 5000 and 0"),
        ({"p_init": 0.0}, "p_init is a share of the pixels, above 0 and at most 1, got 0.0"),
        ({"p_init": 1.5}, "p_init is a share"),
        ({"loss": "dlr"}, "loss must be margin or cross_entropy, got 'dlr'"),
        ({"norm": "l1"}, "Square knows the norms linf, l2, got 'l1'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Square(0.1, **settings)


def test_the_defaults_are_those_of_autoattack():
    assert Square(8 / 255) == Square("8/255", "linf", queries=5000, p_init=0.8, restarts=1, loss="margin")
