"Diagrams of curves: the numbers of the table, the colours of the legend, names and units on every axis"
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as oracle
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from geoseg_nb import diagrams
from geoseg_nb.core import GeosegError
from geoseg_nb.curves import calibration, precision_recall, roc, score_counts
from geoseg_nb.metrics import border_counts, border_table, tile_table
from geoseg_nb.panels import SERIES
from test_plots import no_style_is_left_behind  # noqa: F401  for each test here too

NAMES, COLOURS = ["dry", "water", "ice"], ["#d8c9a0", "#2b6cb0", "#9fd3e6"]


@pytest.fixture(scope="module")
def case():
    "Labels of two classes, scores of three: ice is absent"
    rng = np.random.default_rng(0)
    target = (rng.random((4, 20, 20)) < 0.3).astype("uint8")
    water = np.clip(rng.normal(0.35 + 0.3 * target, 0.15), 0, 1)
    return target, np.stack([1 - water, water, 0 * water], 1)


@pytest.fixture
def drawn(case):
    target, scores = case
    counts, prediction = score_counts(target, scores, NAMES), scores.argmax(1)
    tiles = pd.DataFrame({"id": list("abcd"), "row": 0, "col": 0})
    axes = diagrams.plot_calibration(calibration(counts, 8, COLOURS))
    return {
        "roc": diagrams.plot_roc(roc(counts, COLOURS)), "pr": diagrams.plot_precision_recall(precision_recall(counts, COLOURS)),
        "reliability": axes[0], "counts": axes[1],
        "tiles": diagrams.plot_tile_scores(tile_table(tiles, target, prediction, NAMES), "iou_water", colour=COLOURS[1]),
        "border": diagrams.plot_border_errors(border_table(border_counts(target, prediction))),
    }


UNITS = {"roc": ("(0 to 1)", "(0 to 1)"), "pr": ("(0 to 1)", "(0 to 1)"), "counts": ("(0 to 1)", "pixels"), "tiles": ("(0 to 1)", "tiles"),
         "border": ("(px)", "(%)")}


def test_axes_carry_labels_and_units(drawn, tmp_path):
    for name, (x, y) in UNITS.items():
        assert drawn[name].get_xlabel().endswith(x) and drawn[name].get_ylabel().endswith(y), name
        drawn[name].figure.savefig(tmp_path / f"{name}.png")
    assert drawn["reliability"].get_ylabel() == "observed share (0 to 1)"


@pytest.mark.parametrize("name", ["roc", "pr", "reliability"])
def test_lines_have_the_colours_of_the_legend_and_absent_classes_a_place_in_the_key(drawn, name):
    handles, labels = drawn[name].get_legend_handles_labels()
    assert [to_hex(h.get_color()) for h in handles] == COLOURS
    assert labels[2].startswith("ice") and "absent" in labels[2] and not len(handles[2].get_xdata())


def test_the_key_gives_the_area_under_the_curve(drawn, case):
    target, scores = case
    exact = oracle.roc_auc_score(target.ravel() == 1, scores[:, 1].ravel())
    assert float(drawn["roc"].get_legend_handles_labels()[1][1].split()[1]) == pytest.approx(exact, abs=0.002)


def test_the_dot_stands_at_one_half(drawn, case):
    target, scores = case
    called = scores[:, 1].ravel() >= 0.5
    dots = [line for line in drawn["pr"].lines if line.get_marker() == "o"]
    assert dots[1].get_xdata()[0] == pytest.approx(oracle.recall_score(target.ravel(), called))
    assert dots[1].get_ydata()[0] == pytest.approx(oracle.precision_score(target.ravel(), called))


def test_the_base_line_of_precision_is_the_share_of_the_class(drawn, case):
    dotted = [line.get_ydata()[0] for line in drawn["pr"].lines if line.get_linestyle() == ":"]
    assert dotted[1] == pytest.approx((case[0] == 1).mean())


def test_lines_of_equal_f1_are_that():
    ax = diagrams.plot_precision_recall(pd.DataFrame({"name": [], "recall": [], "precision": []}))
    for line, f1 in zip(ax.lines, (0.3, 0.5, 0.7, 0.9)):
        r, p = line.get_data()
        np.testing.assert_allclose(2 * r * p / (r + p), f1)


def test_the_pixels_of_the_groups_are_the_pixels(drawn, case):
    steps = drawn["counts"].patches[1].get_data().values
    assert np.nansum(steps) == case[0].size


def test_the_histogram_counts_every_tile_with_a_score():
    table = pd.DataFrame({"iou": [0.0, 0.52, 0.53, 1.0, np.nan]})
    ax = diagrams.plot_tile_scores(table)
    assert sum(bar.get_height() for bar in ax.patches) == 4 and ax.get_title() == "4 tiles, 1 without a score"
    assert ax.get_legend_handles_labels()[1] == ["median 0.525"]
    assert diagrams.plot_tile_scores(table[4:]).get_title() == "0 tiles, 1 without a score"


def test_two_models_are_told_apart_and_the_mean_is_that_of_pixels():
    table = pd.DataFrame({"name": ["a", "a", "b", "b"], "distance": [0, 1] * 2, "pixels": [30, 10] * 2, "error": [0.4, 0.0, 0.2, 0.2]})
    ax = diagrams.plot_border_errors(table)
    assert [to_hex(line.get_color()) for line in ax.lines] == [SERIES[0]] * 2 + [SERIES[1]] * 2
    assert ax.lines[1].get_ydata()[0] == pytest.approx(0.3)


def test_given_axes_are_drawn_on(case):
    counts = score_counts(*case, NAMES)
    _, axes = plt.subplots(2, 2)
    assert diagrams.plot_roc(roc(counts), axes[0, 0]) is axes[0, 0]
    assert diagrams.plot_calibration(calibration(counts), axes[1])[1] is axes[1, 1]
    assert len(plt.get_fignums()) == 1


def test_another_table_is_refused_by_its_columns(case):
    with pytest.raises(GeosegError, match="no column fpr; it has name, threshold, recall, precision"):
        diagrams.plot_roc(precision_recall(score_counts(*case, NAMES)))


def test_the_base_line_is_the_end_of_the_curve_also_where_its_beginning_is_lower():
    ax = diagrams.plot_precision_recall(pd.DataFrame({"name": "water", "recall": [0.0, 0.1, 1.0, 1.0], "precision": [1.0, 0.05, 0.6, 0.4]}))
    assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [0.4]
