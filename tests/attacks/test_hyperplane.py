import pytest
import torch

from lightning_advdef.attacks.hyperplane import move_to_hyperplane
from lightning_advdef.attacks.lp_ball import lp_norm

NORMS = ["linf", "l2"]


def problem(count=40, pixels=6, reach=0.5, seed=0, dtype=torch.float64):
    """Points, some of their pixels at a bound, normals, some of their entries zero, and gaps within reach."""
    generator = torch.Generator().manual_seed(seed)
    points = (1.6 * torch.rand(count, pixels, generator=generator, dtype=dtype) - 0.3).clamp(0, 1)
    normals = torch.randn(count, pixels, generator=generator, dtype=dtype)
    normals[torch.rand(count, pixels, generator=generator) < 0.1] = 0
    share = reach * (2 * torch.rand(count, generator=generator, dtype=dtype) - 1)
    up = (normals * (corner(points, normals) - points)).sum(dim=1)
    down = (normals * (corner(points, -normals) - points)).sum(dim=1)
    return points, normals, torch.where(share > 0, share * up, -share * down)


def corner(points, normals):
    """The point of the box farthest along the normal; pixels without a slope stay."""
    return torch.where(normals == 0, points, (normals > 0).to(points.dtype))


def height(normals, moves):
    return (normals * moves).sum(dim=-1)


@pytest.mark.parametrize("reach", [0.1, 0.5, 0.99])
def test_linf_moves_are_as_small_as_a_linear_programme_says(reach):
    optimize = pytest.importorskip("scipy.optimize")
    points, normals, gaps = problem(reach=reach)
    moves = move_to_hyperplane(points, normals, gaps, "linf")
    for point, normal, gap, move in zip(points, normals, gaps, moves, strict=True):
        # variables: the move and a bound on all its entries, which is minimised
        limits = torch.cat([torch.eye(6), -torch.eye(6)]).double()
        limits = torch.cat([limits, -torch.ones(12, 1).double()], dim=1)
        found = optimize.linprog(
            [0.0] * 6 + [1.0],
            A_ub=limits.numpy(),
            b_ub=[0.0] * 12,
            A_eq=[[*normal.tolist(), 0.0]],
            b_eq=[gap.item()],
            bounds=[(-value, 1 - value) for value in point.tolist()] + [(0, 1)],
        )
        assert move.abs().max().item() == pytest.approx(found.fun, abs=1e-8)


@pytest.mark.parametrize("reach", [0.1, 0.5, 0.99])
def test_l2_moves_are_as_small_as_a_quadratic_programme_says(reach):
    optimize = pytest.importorskip("scipy.optimize")
    points, normals, gaps = problem(count=12, reach=reach)
    moves = move_to_hyperplane(points, normals, gaps, "l2")
    for point, normal, gap, move in zip(points, normals, gaps, moves, strict=True):
        found = optimize.minimize(
            lambda free: (free**2).sum(),
            torch.zeros(6).numpy(),
            jac=lambda free: 2 * free,
            bounds=[(-value, 1 - value) for value in point.tolist()],
            constraints={
                "type": "eq",
                "fun": lambda free, normal=normal, gap=gap: normal.numpy() @ free - gap.item(),
                "jac": lambda free, normal=normal: normal.numpy(),
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert (move**2).sum().item() == pytest.approx(found.fun, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("norm", "peer"), [("linf", "projection_linf"), ("l2", "projection_l2")])
@pytest.mark.parametrize("reach", [1e-3, 0.3, 0.9, 3.0])
@pytest.mark.parametrize("pixels", [1, 7, 300])
def test_moves_are_those_of_the_authors_code(norm, peer, reach, pixels):
    projections = pytest.importorskip("pyautoattack.fab_projections")
    points, normals, gaps = problem(pixels=pixels, reach=reach)
    expected = getattr(projections, peer)(points, normals, gaps + height(normals, points))
    # at reach 3 many hyperplanes lie beyond the corner
    torch.testing.assert_close(move_to_hyperplane(points, normals, gaps, norm), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("reach", [1e-4, 0.1, 0.9])
def test_the_hyperplane_is_met_inside_the_box(norm, dtype, tolerance, reach):
    points, normals, gaps = problem(count=100, pixels=1000, reach=reach, dtype=dtype)
    normals = normals.sign() * normals.abs() ** 4
    moves = move_to_hyperplane(points, normals, gaps, norm)
    assert ((height(normals.double(), moves.double()) - gaps).abs() <= 2 * tolerance * gaps.abs()).all()
    assert (points + moves).min() >= -tolerance
    assert (points + moves).max() <= 1 + tolerance


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_the_closest_corner_is_taken(norm):
    points, normals, _ = problem()
    gaps = torch.tensor([100.0, -100.0]).double().repeat(20)
    moves = move_to_hyperplane(points, normals, gaps, norm)
    torch.testing.assert_close(points + moves, corner(points, normals * gaps.sign().unsqueeze(1)))


def test_without_a_box_moves_are_the_gap_over_the_dual_norm():
    points, normals, _ = problem()
    gaps = torch.linspace(-9, 9, 40).double()
    linf = move_to_hyperplane(points, normals, gaps, "linf", box=False)
    torch.testing.assert_close(linf, (gaps / normals.abs().sum(dim=1)).unsqueeze(1) * normals.sign())
    l2 = move_to_hyperplane(points, normals, gaps, "l2", box=False)
    torch.testing.assert_close(l2, (gaps / (normals**2).sum(dim=1)).unsqueeze(1) * normals)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [True, False])
def test_where_there_is_no_slope_nothing_moves(norm, box):
    moves = move_to_hyperplane(torch.rand(3, 5), torch.zeros(3, 5), torch.tensor([-1.0, 0.0, 1.0]), norm, box)
    assert torch.equal(moves, torch.zeros(3, 5))


@pytest.mark.parametrize("norm", NORMS)
def test_points_on_the_hyperplane_stay(norm):
    points, normals, gaps = problem()
    assert not move_to_hyperplane(points, normals, 0 * gaps, norm).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-36, 1e-12, 1e12, 1e30])
def test_only_the_direction_of_the_normal_counts(norm, scale):
    points, normals, gaps = (values.float() for values in problem())
    expected = move_to_hyperplane(points, normals, gaps, norm)
    torch.testing.assert_close(move_to_hyperplane(points, scale * normals, scale * gaps, norm), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_problems_do_not_influence_each_other(norm):
    points, normals, gaps = problem()
    together = move_to_hyperplane(points, normals, gaps, norm)
    for image in range(40):
        row = slice(image, image + 1)
        torch.testing.assert_close(move_to_hyperplane(points[row], normals[row], gaps[row], norm), together[row])


@pytest.mark.parametrize("norm", NORMS)
def test_several_points_may_share_the_normals(norm):
    points, normals, gaps = problem()
    both = move_to_hyperplane(torch.stack([points, 1 - points]), normals, torch.stack([gaps, -gaps]), norm)
    assert torch.equal(both[0], move_to_hyperplane(points, normals, gaps, norm))
    assert torch.equal(both[1], move_to_hyperplane(1 - points, normals, -gaps, norm))


def test_the_linf_move_is_shorter_in_linf_and_the_l2_move_in_l2():
    points, normals, gaps = problem(pixels=100)
    moves = {norm: move_to_hyperplane(points, normals, gaps, norm) for norm in NORMS}
    for norm, other in (NORMS, NORMS[::-1]):
        assert (lp_norm(moves[norm], norm) < lp_norm(moves[other], norm)).all()
