import math

import pytest
import torch

from lightning_advdef.attacks.base import BUDGET_TOLERANCE
from lightning_advdef.attacks.lp_ball import LpBall, lp_norm, per_image
from lightning_advdef.rng import SampleRNG

NORMS = ["linf", "l2", "l1"]
SHAPE = torch.Size([2, 3, 4])
DIMENSIONS = SHAPE.numel()


def points(count=200, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = scale * torch.rand(count, 1, 1, 1, generator=generator)
    return lengths * torch.randn(count, *SHAPE, generator=generator)


def ball(norm, count=200):
    """Balls of different radius, the first of them a point."""
    return LpBall(norm, torch.linspace(0, 2, count))


def shrink_by_bisection(point, radius):
    """Projection on the l1 ball: the soft threshold at which the norm is the radius, found by halving."""
    point = point.double()
    if point.abs().sum() <= radius:
        return point
    low, high = 0.0, point.abs().max().item()
    for _ in range(100):
        middle = (low + high) / 2
        if (point.abs() - middle).clamp_min(0).sum() > radius:
            low = middle
        else:
            high = middle
    return point.sign() * (point.abs() - high).clamp_min(0)


def test_norms_are_those_of_numpy():
    vectors = points().flatten(1)
    for norm, order in (("linf", float("inf")), ("l2", 2), ("l1", 1)):
        expected = torch.linalg.vector_norm(vectors.double(), ord=order, dim=1)
        torch.testing.assert_close(lp_norm(points(), norm).double(), expected, rtol=1e-6, atol=1e-6)


def test_projection_on_the_linf_ball_cuts_each_pixel():
    balls, cloud = ball("linf"), points()
    for radius, point, projected in zip(balls.eps, cloud, balls.project(cloud), strict=True):
        assert torch.equal(projected, point.clamp(-radius, radius))


def test_projection_on_the_l2_ball_keeps_the_direction():
    balls, cloud = ball("l2"), points()
    sizes = lp_norm(cloud, "l2")
    expected = cloud * per_image(torch.minimum(balls.eps, sizes) / sizes)
    torch.testing.assert_close(balls.project(cloud), expected)


def test_projection_on_the_l1_ball_is_the_soft_threshold_found_by_bisection():
    balls, cloud = ball("l1"), points()
    expected = torch.stack([shrink_by_bisection(*pair) for pair in zip(cloud, balls.eps.double(), strict=True)])
    torch.testing.assert_close(balls.project(cloud).double(), expected, rtol=1e-5, atol=1e-6)


def test_projection_on_the_l1_ball_handles_ties():
    cloud = torch.tensor([[3.0, -3.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).view(3, 1, 2, 2)
    projected = LpBall("l1", torch.tensor([3.0, 2.0, 1.0])).project(cloud).flatten(1)
    expected = torch.tensor([[1.0, -1.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(projected, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point(norm):
    """The gradient of the distance makes an obtuse angle with every direction into the ball."""
    balls, cloud = ball(norm), points()
    projected = balls.project(cloud)
    for seed in range(20):
        other = balls.random(SampleRNG.for_images(torch.arange(200), seed=seed), SHAPE)
        angle = ((cloud - projected) * (other - projected)).flatten(1).sum(dim=1)
        assert (angle < 1e-4).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.1, 2, 100])
def test_projections_lie_in_the_ball(norm, scale):
    balls, cloud = ball(norm), points(scale=scale)
    # float32 subtracts with an error that grows with the point, not with the ball
    tolerance = 1e-6 * (balls.eps + lp_norm(cloud, norm))
    assert (lp_norm(balls.project(cloud).double(), norm) <= balls.eps + tolerance).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 4 / 255), ("l2", 3.0), ("l1", 1000.0)])
def test_projections_of_large_images_keep_the_budget_that_attacks_verify(norm, eps):
    cloud = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    cloud *= 3 * eps / per_image(lp_norm(cloud, norm))
    size = lp_norm(LpBall(norm, torch.full((2,), eps)).project(cloud).double(), norm)
    assert (size <= eps * (1 + BUDGET_TOLERANCE)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_projecting_twice_is_projecting_once(norm):
    balls = ball(norm)
    once = balls.project(points())
    torch.testing.assert_close(balls.project(once), once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_points_of_the_ball_stay_where_they_are(norm):
    cloud = points()
    balls = LpBall(norm, lp_norm(cloud, norm) * 1.01)
    assert torch.equal(balls.project(cloud), cloud)


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_of_radius_zero_is_a_point(norm):
    balls = LpBall(norm, torch.zeros(200))
    assert not balls.project(points()).any()
    assert not balls.random(SampleRNG.for_images(torch.arange(200)), SHAPE).any()


@pytest.mark.parametrize("norm", NORMS)
def test_projection_leaves_its_argument_alone(norm):
    cloud = points()
    ball(norm).project(cloud)
    assert torch.equal(cloud, points())


@pytest.mark.parametrize("norm", NORMS)
def test_each_image_has_its_own_radius(norm):
    balls, cloud, rng = ball(norm), points(), SampleRNG.for_images(torch.arange(200))
    rows = torch.tensor([7, 150, 3])
    torch.testing.assert_close(balls[rows].project(cloud[rows]), balls.project(cloud)[rows])
    torch.testing.assert_close(balls[rows].random(rng[rows], SHAPE), balls.random(rng, SHAPE)[rows])


@pytest.fixture(params=NORMS)
def sample(request):
    """The norm, and many random points of a ball of radius 0.5."""
    balls = LpBall(request.param, torch.full((4000,), 0.5))
    return request.param, balls.random(SampleRNG.for_images(torch.arange(4000)), SHAPE)


def test_random_points_lie_in_the_ball(sample):
    norm, cloud = sample
    assert (lp_norm(cloud.double(), norm) <= 0.5 * (1 + 1e-6)).all()


def test_distance_of_random_points_has_the_law_of_a_uniform_ball(sample):
    """The share of points within radius r is r^d, so distance^d is uniform (Kolmogorov-Smirnov, p = 0.001)."""
    norm, cloud = sample
    levels = (lp_norm(cloud.double(), norm) / 0.5).pow(DIMENSIONS).sort().values
    gap = (levels - (torch.arange(4000) + 0.5) / 4000).abs().max()
    assert gap < 1.95 / math.sqrt(4000)


def test_random_points_favour_no_direction(sample):
    _, cloud = sample
    flat = cloud.flatten(1).double()
    deviation = flat.std(dim=0)
    assert (flat.mean(dim=0).abs() < 5 * deviation / math.sqrt(4000)).all()
    # the deviation of a standard deviation is at most that of a law with kurtosis 6
    assert (deviation / deviation.mean() - 1).abs().max() < 5 * math.sqrt(5 / 4 / 4000)
    assert torch.corrcoef(flat.T).triu(1).abs().max() < 6 / math.sqrt(4000)


def test_coordinates_of_random_points_have_the_law_of_a_uniform_ball(sample):
    """Mean absolute coordinate of the unit ball, by integrating its slices."""
    norm, cloud = sample
    dimensions = DIMENSIONS
    expected = {
        "linf": 1 / 2,
        "l2": math.exp(math.lgamma(dimensions / 2 + 1) - math.lgamma(dimensions / 2 + 1.5)) / math.sqrt(math.pi),
        "l1": 1 / (dimensions + 1),
    }[norm]
    values = cloud.abs().double() / 0.5
    assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(4000)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_distance_direction_and_signs_of_random_points_are_independent(norm):
    shape = torch.Size([4, 4, 4])
    cloud = LpBall(norm, torch.ones(4000)).random(SampleRNG.for_images(torch.arange(4000)), shape).flatten(1).double()
    distance = torch.linalg.vector_norm(cloud, ord=2 if norm == "l2" else 1, dim=1, keepdim=True)
    columns = torch.cat([distance**64, cloud.abs() / distance, cloud.sign()], dim=1)
    correlation = torch.corrcoef(columns.T)
    # magnitudes of one point share its norm, so they depend on each other a little
    correlation[1:65, 1:65] = 0
    assert correlation.triu(1).abs().max() < 6 / math.sqrt(4000)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_step_has_norm_one(norm):
    torch.testing.assert_close(lp_norm(ball(norm).steepest(points()), norm), torch.ones(200))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_steepest_step_does_not_depend_on_the_size_of_the_gradient(norm, scale):
    gradient = points() + 0.01
    torch.testing.assert_close(ball(norm).steepest(gradient * scale), ball(norm).steepest(gradient))


@pytest.mark.parametrize(("norm", "dual"), [("linf", "l1"), ("l2", "l2"), ("l1", "linf")])
def test_steepest_step_gains_the_dual_norm_of_the_gradient(norm, dual):
    """Hoelder: no step of norm 1 gains more."""
    gradient = points()
    gain = (gradient * ball(norm).steepest(gradient)).flatten(1).sum(dim=1)
    torch.testing.assert_close(gain, lp_norm(gradient, dual))


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_gives_no_step(norm):
    assert not ball(norm).steepest(torch.zeros(200, *SHAPE)).any()


@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_ascending_is_the_steepest_step_of_each_length_where_no_pixel_is_at_a_bound(norm, box):
    balls, gradient, grey = ball(norm), points(), torch.full((200, *SHAPE), 0.5)
    lengths = torch.linspace(0, 0.4, 200)
    expected = grey + per_image(lengths) * balls.steepest(gradient)
    torch.testing.assert_close(balls.ascend(grey, gradient, lengths, box), expected)


def test_ascending_in_l1_fills_the_steepest_pixels_to_their_bounds():
    image = torch.tensor([1.0, 0.75, 0.5, 0.5]).view(1, 1, 2, 2)
    gradient = torch.tensor([9.0, -3.0, 2.0, 0.0]).view(1, 1, 2, 2)
    moved = LpBall("l1", torch.ones(1)).ascend(image, gradient, torch.tensor([1.0]), box=True)
    assert moved.flatten().tolist() == [1.0, 0.0, 0.75, 0.5]
    spent = LpBall("l1", torch.ones(1)).ascend(image, gradient, torch.tensor([3.0]), box=True)
    assert spent.flatten().tolist() == [1.0, 0.0, 1.0, 0.5]


@pytest.mark.parametrize("norm", NORMS)
def test_empty_batches_pass_through(norm):
    empty, rng = torch.zeros(0, *SHAPE), SampleRNG.for_images(torch.arange(0))
    balls = LpBall(norm, torch.zeros(0))
    ascended = balls.ascend(empty, empty, balls.eps, box=True)
    for result in (balls.project(empty), balls.steepest(empty), ascended, balls.random(rng, SHAPE)):
        assert result.shape == empty.shape
