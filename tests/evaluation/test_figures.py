"""Figures show the points of their charts."""

import numpy as np
import pytest
import torch

from lightning_advdef.evaluation.chart import Chart, Curve, Point
from lightning_advdef.evaluation.examples import Examples
from lightning_advdef.evaluation.figures import draw, image_grid, save
from lightning_advdef.metrics import Interval

CURVES = (
    Curve("pgn", (Point(0.2, 0.9, "1", Interval(0.1, 0.3), Interval(0.8, 0.95)), Point(0.5, 0.8, "2"))),
    Curve("fgm", (Point(0.3, 0.7, "1", Interval(-torch.inf, torch.inf)),)),
    Curve("pgd", (Point(0.1, 0.85, "1"),)),
)


def chart(form, curves=CURVES):
    return Chart(curves, "the norm", "the accuracy", form, "the caption")


def coordinates(line):
    return list(map(tuple, line.get_xydata()))


@pytest.mark.parametrize("form", ["fronts", "steps", "lines", "paths"])
def test_every_curve_is_drawn_with_its_points_and_named(form):
    figure = draw(chart(form))
    lines = {line.get_label(): coordinates(line) for line in figure.axes[0].lines}
    for curve in CURVES:
        assert lines[curve.label] == [(point.x, point.y) for point in curve.points]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["pgn", "fgm", "pgd"]


@pytest.mark.parametrize("form", ["fronts", "steps", "lines", "paths"])
def test_a_name_with_an_underscore_stands_in_the_legend_beside_its_line(form):
    curves = tuple(Curve(f"_{curve.label}", curve.points) for curve in CURVES)
    (legend,) = draw(chart(form, curves)).legends
    assert [text.get_text() for text in legend.get_texts()] == ["_pgn", "_fgm", "_pgd"]
    colors = [line.get_color() for line in legend.get_lines()]
    assert len(set(colors)) == 3


def test_each_method_has_a_panel_with_the_others_behind_it():
    overview, *panels = draw(chart("fronts")).axes
    assert [panel.get_title() for panel in panels] == ["pgn", "fgm", "pgd"]
    for panel in panels:
        assert panel.get_xlim() == overview.get_xlim()
        drawn = [coordinates(line) for line in panel.lines]
        assert all([(point.x, point.y) for point in curve.points] in drawn for curve in CURVES)


def test_beaten_points_are_hollow():
    lines = draw(chart("fronts")).axes[0].lines
    hollow = [point for line in lines if line.get_markerfacecolor() == "white" for point in coordinates(line)]
    assert hollow == [(0.3, 0.7), (0.1, 0.85)]


def test_one_method_is_one_panel():
    assert len(draw(chart("fronts", CURVES[:1])).axes) == 1


def test_infinite_intervals_are_not_drawn():
    low, high = draw(chart("lines")).axes[0].get_xlim()
    assert 0 == low < high < 1


def test_first_and_last_epochs_of_a_path_bear_their_names():
    points = tuple(Point(number / 50, 0.5, str(number)) for number in range(1, 31))
    axis = draw(chart("paths", (Curve("run", points),))).axes[0]
    named = [text.get_text() for text in axis.texts]
    assert (named[0], named[-1]) == ("1", "30")
    assert len(named) == 6


def test_images_have_three_rows_and_their_classes_and_norms():
    clean = torch.full((2, 3, 4, 4), 0.5)
    adversarial = clean.clone()
    adversarial[1, 0, 0] = 1.0
    figure = image_grid([Examples("pgd", clean, adversarial, torch.tensor([[3, 3, 3], [4, 4, 8]]))] * 2)
    assert len(figure.axes) == 2 * 3
    assert [text.get_text() for text in figure.axes[1].texts] == ["adversarial", "3: 3 → 3\nl2 0", "4: 4 → 8\nl2 1"]
    first, second = np.split(figure.axes[1].images[0].get_array(), 2, axis=1)
    assert np.array_equal(first[:, 1:-1], clean[0].permute(1, 2, 0))
    assert np.array_equal(second[:, 1:-1], adversarial[1].permute(1, 2, 0))
    assert (first[:, [0, -1]] == 1).all()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_other_than_three_channels_are_grey_and_fewer_ones_leave_columns_white(channels):
    images, classes = torch.rand(2, channels, 4, 4), torch.tensor([[3, 3, 3], [4, 4, 8]])
    figure = image_grid(
        [Examples("two", images, images, classes), Examples("one", images[:1], images[:1], classes[:1])]
    )
    both, alone = (figure.axes[number].images[0].get_array() for number in (0, 3))
    assert both.shape == alone.shape == (4, 2 * 6)
    assert np.allclose(both[:, 7:-1], images[1].mean(dim=0))
    assert np.allclose(alone[:, 1:5], images[0].mean(dim=0))
    assert (alone[:, 6:] == 1).all()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "csv"])
def test_file_is_of_the_kind_that_its_name_says(tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    save(chart("lines"), path)
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "csv": b"curve,point"}
    assert path.read_bytes().startswith(start[suffix])


@pytest.mark.parametrize("suffix", ["png", "csv"])
def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"figure.{suffix}"
    save(chart("lines"), path)
    before = path.read_bytes()

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", broken)
    with pytest.raises(OSError, match="no space left"):
        save(chart("lines", CURVES[:1]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("shown", "name"), [(chart("lines"), "figure.txt"), ([], "images.csv")])
def test_other_names_are_refused(tmp_path, shown, name):
    with pytest.raises(ValueError, match=name):
        save(shown, tmp_path / name)
