"""Every score against scikit-learn, on whatever hypothesis can think of."""

import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_cdt
from torchmetrics.functional.classification import multiclass_confusion_matrix

from geoseg_nb.core import GeosegError
from geoseg_nb.curves import curve_scores, score_counts
from geoseg_nb.metrics import (
    METRIC_ALIASES, border_counts, border_table, confusion, inner_confusion, log_row, metric_name, scores, tile_table)

NAMES = "abcdef"


@st.composite
def maps(draw, ignored=True):
    "Number of classes, target (255 = ignored) and prediction; few classes of the many that are named may occur"
    classes = draw(st.integers(2, 6))
    shape = draw(st.sampled_from([(1,), (40,), (3, 5, 7)]))
    used = st.sampled_from(draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes)))
    target = draw(arrays(np.uint8, shape, elements=used | st.just(255) if ignored else used))
    return classes, target, draw(arrays(np.uint8, shape, elements=used))


def counted(target, prediction, ignore_index=255):
    keep = target != ignore_index
    return target[keep], prediction[keep]


@settings(deadline=None, max_examples=150)
@given(maps(), st.sampled_from(["uint8", "int64", "torch"]))
def test_confusion_equals_scikit_learn(case, kind):
    classes, target, prediction = case
    convert = {"uint8": np.asarray, "int64": lambda a: a.astype(np.int64), "torch": lambda a: torch.tensor(a).long()}[kind]
    ours = confusion(convert(target), convert(prediction), classes)
    t, p = counted(target, prediction)
    expected = oracle.confusion_matrix(t, p, labels=range(classes)) if t.size else np.zeros((classes, classes))
    assert ours.dtype == np.int64 and (ours == expected).all()
    theirs = multiclass_confusion_matrix(torch.tensor(prediction).long(), torch.tensor(target).long(), classes, ignore_index=255)
    assert (ours == theirs.numpy()).all()


@settings(deadline=None, max_examples=150)
@given(maps())
def test_scores_equal_scikit_learn(case):
    classes, target, prediction = case
    t, p = counted(target, prediction)
    ours = scores(confusion(target, prediction, classes), NAMES[:classes])
    present = sorted(set(t.tolist()) | set(p.tolist()))
    assert ours["absent"] == [NAMES[i] for i in range(classes) if i not in present]
    if not t.size:
        assert all(np.isnan(v) for v in ours.values() if isinstance(v, float))
        return
    options = {"labels": present, "zero_division": 0}
    macro, weighted = {**options, "average": "macro"}, {**options, "average": "weighted"}
    specific = [oracle.recall_score(t == c, p == c, pos_label=False, zero_division=np.nan) for c in present]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": oracle.accuracy_score(t, p), "kappa": oracle.cohen_kappa_score(t, p),
            "mean_iou": oracle.jaccard_score(t, p, **macro), "f1_macro": oracle.f1_score(t, p, **macro),
            "f1_weighted": oracle.f1_score(t, p, **weighted), "precision_macro": oracle.precision_score(t, p, **macro),
            "recall_macro": oracle.recall_score(t, p, **macro), "specificity_macro": np.nanmean(specific),
        }
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), name


@settings(deadline=None, max_examples=100)
@given(maps())
def test_class_scores_equal_scikit_learn(case):
    classes, target, prediction = case
    t, p = counted(target, prediction)
    per_class = scores(confusion(target, prediction, classes), NAMES[:classes])["per_class"]
    for c in range(classes):
        ours = per_class[NAMES[c]]
        assert ours["support"] == (t == c).sum() and isinstance(ours["support"], int)
        if not ((t == c) | (p == c)).any():
            assert all(np.isnan(v) for k, v in ours.items() if k != "support")
            continue
        expected = oracle.precision_recall_fscore_support(t == c, p == c, average="binary", zero_division=0)[:3]
        assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx(expected)
        assert ours["iou"] == pytest.approx(oracle.jaccard_score(t == c, p == c))


@settings(deadline=None, max_examples=50)
@given(maps(), st.integers(1, 5))
def test_parts_add_up_and_order_is_nothing(case, parts):
    classes, target, prediction = case
    t, p = target.ravel(), prediction.ravel()
    order = np.random.default_rng(parts).permutation(t.size)
    pieces = np.array_split(order, parts)
    assert (sum(confusion(t[i], p[i], classes) for i in pieces) == confusion(target, prediction, classes)).all()


@pytest.mark.parametrize("ignore_index", [-1, -100, 0, 1, 254, 1000])
def test_any_ignore_index(ignore_index):
    rng = np.random.default_rng(0)
    target, prediction = rng.integers(0, 3, 500), rng.integers(0, 3, 500)
    target[::7] = ignore_index
    keep = target != ignore_index
    expected = oracle.confusion_matrix(target[keep], prediction[keep], labels=range(3))
    assert (confusion(target, prediction, 3, ignore_index) == expected).all()
    if 0 <= ignore_index <= 255:
        assert (confusion(np.uint8(target), np.uint8(prediction), 3, ignore_index) == expected).all()


@settings(deadline=None, max_examples=60)
@given(arrays(np.int64, 20, elements=st.integers(-3, 300)), st.booleans())
def test_values_that_are_no_class_are_refused(values, as_target):
    fine = np.zeros(20, np.int64)
    pair = (values, fine) if as_target else (fine, values)
    bad = ((values < 0) | (values >= 3)) & ~(as_target & (values == 255))
    if bad.any():
        with pytest.raises(GeosegError):
            confusion(*pair, classes=3)
    else:
        assert confusion(*pair, classes=3).sum() == (pair[0] != 255).sum()


@pytest.mark.parametrize("wrong, message", [
    (np.zeros((2, 2)), "argmax"), (np.zeros((2, 3), np.uint8), "pairs pixels"), (np.full((2, 2), 256), "from 256 to 256"),
    (np.full((2, 2), 2, np.uint8), r"prediction holds \{2: 4\}"),
])
def test_the_refusal_names_what_was_given(wrong, message):
    with pytest.raises(GeosegError, match=message):
        confusion(np.zeros((2, 2), np.uint8), wrong, classes=2)


def test_the_input_is_left_alone():
    target, prediction = np.uint8([0, 1, 255]), np.uint8([1, 1, 1])
    confusion(target, prediction, 2)
    assert target.tolist() == [0, 1, 255] and prediction.tolist() == [1, 1, 1]


def test_strided_and_transposed_inputs_count_alike():
    target, prediction = np.random.default_rng(0).integers(0, 4, (2, 30, 40), dtype=np.uint8)
    expected = oracle.confusion_matrix(target[::2].ravel(), prediction[::2].ravel(), labels=range(4))
    assert (confusion(target[::2], prediction[::2], 4) == expected).all()
    assert (confusion(target[::2].T, prediction[::2].T, 4) == expected).all()


def test_large_counts_do_not_overflow():
    matrix = np.array([[6 * 10**11, 10**11], [2 * 10**11, 10**11]])
    small = scores(matrix // 10**8, "ab")
    for name, value in scores(matrix, "ab").items():
        if isinstance(value, float):
            assert value == pytest.approx(small[name], rel=1e-12)


def test_names_of_other_projects_lead_to_ours():
    assert metric_name("val0/JaccardIndex") == "val/iou" and metric_name("val/f1w_parcel") == "val/f1_weighted"
    ours = {metric_name(name) for name in log_row(scores(np.eye(2, dtype=int), "ab"), "test")}
    assert ours == {f"test/{n}" for n in ("accuracy", "iou", "f1", "f1_weighted", "kappa", "precision", "recall", "specificity")}
    curves = {metric_name(name) for name in log_row(curve_scores(score_counts([[0, 1]], [[[0.9, 0.1], [0.1, 0.9]]], "ab")), "test")}
    assert curves == {f"test/{n}" for n in ("auc", "average_precision", "brier", "calibration_error")}
    assert {metric_name(alias) for alias in METRIC_ALIASES} <= {name.removeprefix("test/") for name in ours | curves}


@st.composite
def tile_maps(draw):
    "Tiles of two to three classes, also narrow ones, with ignored pixels"
    shape = draw(st.sampled_from([(1, 1, 1), (2, 1, 5), (3, 6, 6), (2, 7, 4)]))
    values = arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2]))
    target = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255])))
    return target, draw(values)


@settings(deadline=None, max_examples=80)
@given(tile_maps(), st.integers(0, 3))
def test_errors_by_distance_equal_scipys_distances(case, border):
    target, prediction = case
    counts, (h, w) = border_counts(target, prediction), target.shape[1:]
    distance = distance_transform_cdt(np.pad(np.ones((h, w), int), 1), "chessboard")[1:-1, 1:-1] - 1
    for d in range(len(counts)):
        here = np.broadcast_to(distance == d, target.shape) & (target != 255)
        assert counts[d].tolist() == [here.sum(), (target != prediction)[here].sum()]
    assert len(counts) == distance.max() + 1
    if 2 * border < min(h, w):
        inner = inner_confusion(target, prediction, 3, border)
        keep = np.broadcast_to(distance >= border, target.shape) & (target != 255)
        expected = oracle.confusion_matrix(target[keep], prediction[keep], labels=range(3)) if keep.any() else 0
        assert (inner == expected).all()
    else:
        with pytest.raises(GeosegError, match="leaves nothing"):
            inner_confusion(target, prediction, 3, border)


def test_the_border_table_pools_what_it_groups():
    counts = np.array([[10, 5], [8, 2], [6, 0], [0, 0], [0, 0]])
    table = border_table(counts, 2)
    assert table.values.tolist()[0] == [0, 18, 7, 7 / 18] and table.distance.tolist() == [0, 2, 4]
    assert np.isnan(table.error[2]) and table.error[1] == 0
    with pytest.raises(GeosegError, match="border of -1"):
        inner_confusion(np.zeros((1, 4, 4), int), np.zeros((1, 4, 4), int), 2, -1)


@settings(deadline=None, max_examples=40)
@given(tile_maps())
def test_rows_of_tiles_equal_scikit_learn(case):
    target, prediction = case
    tiles = pd.DataFrame({"id": [f"t{i}" for i in range(len(target))], "row": 0, "col": 7}, index=range(5, 5 + len(target)))
    table = tile_table(tiles, torch.tensor(target), prediction, "abc")
    assert table.id.tolist() == tiles.id.tolist() and (table.col == 7).all()
    for i, (t, p) in enumerate(counted(t, p) for t, p in zip(target, prediction)):
        assert table.support[i] == t.size
        present = sorted(set(t.tolist()) | set(p.tolist()))
        if not present:
            assert table.loc[i, ["iou", "accuracy", "f1", "iou_a", "f1_c"]].isna().all()
            continue
        assert table.accuracy[i] == pytest.approx(oracle.accuracy_score(t, p))
        each = oracle.jaccard_score(t, p, labels=range(3), average=None, zero_division=0)
        assert table.iou[i] == pytest.approx(each[present].mean())
        assert table.loc[i, [f"iou_{'abc'[c]}" for c in present]].tolist() == pytest.approx(each[present].tolist())
        assert table.f1[i] == pytest.approx(oracle.f1_score(t, p, labels=present, average="macro", zero_division=0))
