"""Points of charts: which are beaten, and what the file says."""

import csv

from lightning_advdef.evaluation.chart import Chart, Curve, Point, front, write_csv
from lightning_advdef.metrics import Interval


def test_front_leaves_out_what_another_point_beats_on_both_axes():
    kept, also, beaten, equal_x = Point(0.3, 0.9), Point(0.5, 0.8), Point(0.2, 0.85), Point(0.5, 0.7)
    assert front([beaten, kept, equal_x, also]) == [also, kept]


def test_file_has_a_row_per_point_with_its_intervals(tmp_path):
    points = (Point(0.5, 0.75, "c50", Interval(0.25, 1.0), Interval(0.5, 0.875)), Point(0.0, 1.0))
    write_csv(Chart((Curve("pgn", points),), "norm", "accuracy", "lines"), tmp_path / "points.csv")
    rows = list(csv.DictReader((tmp_path / "points.csv").open()))
    assert rows[0] == {
        **{"curve": "pgn", "point": "c50", "x": "0.5", "x_low": "0.25", "x_high": "1.0"},
        **{"y": "0.75", "y_low": "0.5", "y_high": "0.875"},
    }
    assert rows[1]["x_low"] == rows[1]["y_high"] == ""
