"Curves from counts against scikit-learn and torchmetrics: exact on binned scores, within a stated bound on raw ones"
import warnings

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from geoseg_nb.core import GeosegError
from geoseg_nb.curves import (
    BINS, ScoreCounts, auc, auc_error, average_precision, best_threshold, bin_edges, brier, calibration, confidence_counts, curve_scores,
    expected_calibration_error, precision_recall, roc, score_counts)

NAMES = "abcdef"


@st.composite
def batches(draw, classes=None):
    "Target (255 = ignored) and scores [n, classes, h, w] of networks from unsure to saturated"
    k, n, edge = classes or draw(st.integers(2, 5)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    target = rng.integers(0, k, (n, edge, edge))
    logits = rng.normal(size=(n, k, edge, edge)) + draw(st.sampled_from([0, 1, 3])) * (target[:, None] == np.arange(k)[:, None, None])
    scores = torch.softmax(torch.tensor(logits * draw(st.sampled_from([0.1, 1, 5, 30]))), 1).to(draw(st.sampled_from([torch.float32, torch.float64])))
    target[rng.random(target.shape) < draw(st.sampled_from([0, 0.5, 0.95]))] = 255
    return target.astype("uint8"), scores.numpy()


def labelled(target, scores, i):
    "Truth and score of class i where there is a label"
    return (target == i)[target != 255], scores[:, i][target != 255]


def binned(p, bins=BINS):
    "The lower edge of each score's bin, by NumPy's own histogram search"
    edges = bin_edges(bins).astype(float)
    return edges[np.clip(np.digitize(p.astype(float), edges) - 1, 0, len(edges) - 2)]


def both(y):
    return y.any() and not y.all()


@settings(deadline=None, max_examples=120)
@given(batches(), st.sampled_from([2, 64, 1024]))
def test_curves_equal_scikit_learn_on_binned_scores(batch, bins):
    target, scores = batch
    k = scores.shape[1]
    counts = score_counts(target, scores, NAMES[:k], bins=bins)
    receiver, precise = roc(counts), precision_recall(counts)
    for i in range(k):
        y, p = labelled(target, scores, i)
        if not both(y): continue
        p = binned(p, bins)
        fpr, tpr, at = oracle.roc_curve(y, p, drop_intermediate=False)
        ours = receiver[receiver.name == NAMES[i]].set_index("threshold").loc[at]
        np.testing.assert_allclose(ours[["fpr", "tpr"]], np.stack([fpr, tpr], 1), rtol=1e-12)
        precision, recall, at = oracle.precision_recall_curve(y, p)
        ours = precise[precise.name == NAMES[i]].set_index("threshold").loc[at]
        np.testing.assert_allclose(ours[["precision", "recall"]], np.stack([precision[:-1], recall[:-1]], 1), rtol=1e-12)
        assert auc(counts)[i] == pytest.approx(oracle.roc_auc_score(y, p), rel=1e-12)
        assert average_precision(counts)[i] == pytest.approx(oracle.average_precision_score(y, p), rel=1e-12)


@settings(deadline=None, max_examples=120)
@given(batches())
def test_the_error_of_the_bins_is_within_its_bound(batch):
    target, scores = batch
    counts = score_counts(target, scores, NAMES[:scores.shape[1]])
    for i in range(scores.shape[1]):
        y, p = labelled(target, scores, i)
        if not both(y): continue
        assert abs(auc(counts)[i] - oracle.roc_auc_score(y, p)) <= auc_error(counts)[i] + 1e-12
        assert brier(counts)[i] == pytest.approx(oracle.brier_score_loss(y, p.clip(0, 1)), abs=1 / BINS)


def test_a_saturated_network_is_still_ranked():
    "Most scores lie within a thousandth of 0 or 1, where equal bins would make one heap of them"
    rng = np.random.default_rng(0)
    y = rng.random(200_000) < 0.03
    p = 1 / (1 + np.exp(-(rng.normal(-11, 2, y.size) + 4 * y)))
    assert (p < 1 / BINS).mean() > 0.9
    counts = score_counts(y[None].astype(int), np.stack([1 - p, p])[None], "ab")
    exact = oracle.roc_auc_score(y, p)
    assert auc(counts)[1] == pytest.approx(exact, abs=0.01) and auc_error(counts)[1] < 0.02
    assert average_precision(counts)[1] == pytest.approx(oracle.average_precision_score(y, p), abs=0.01)
    heap = oracle.roc_auc_score(y, np.floor(p * BINS))
    assert abs(auc(counts)[1] - exact) < abs(heap - exact) / 10


@settings(deadline=None, max_examples=60)
@given(batches(), st.sampled_from([2, 8, 16]))
def test_calibration_equals_scikit_learn_and_torchmetrics(batch, groups):
    target, scores = batch
    k = scores.shape[1]
    counts = score_counts(target, scores, NAMES[:k])
    errors = expected_calibration_error(counts, groups)
    for i in range(k):
        y, p = labelled(target, scores, i)
        inside = ~np.isin(p * groups, np.arange(1, groups))  # the oracles count an inner edge to the lower group
        if not y.any() or not inside.all(): continue
        table = calibration(counts, groups)
        table = table[(table.name == NAMES[i]) & (table["count"] > 0)]
        observed, predicted = calibration_curve(y, p.clip(0, 1), n_bins=groups)
        np.testing.assert_allclose(table.observed, observed, rtol=1e-12)
        np.testing.assert_allclose(table.predicted, predicted, atol=0.5 / BINS)
        assert table["count"].sum() == len(y)
        if (p >= 1).any(): continue  # torchmetrics gives a score of 1 a bin of its own
        theirs = binary_calibration_error(torch.tensor(p), torch.tensor(y).int(), n_bins=groups).item()
        assert errors[i] == pytest.approx(theirs, abs=1 / BINS)


def test_confidence_equals_torchmetrics():
    rng = np.random.default_rng(1)
    target = rng.integers(0, 4, (2, 40, 40)).astype("uint8")
    scores = torch.softmax(torch.tensor(rng.normal(size=(2, 4, 40, 40)) + 1.5 * (target[:, None] == np.arange(4)[:, None, None])), 1)
    target[0, :9] = 255
    theirs = multiclass_calibration_error(scores, torch.tensor(target).long(), 4, n_bins=16, norm="l1", ignore_index=255)
    counts = confidence_counts(target, scores)
    assert expected_calibration_error(counts, 16)[0] == pytest.approx(theirs.item(), abs=1 / BINS)
    assert counts.support[0] == (scores.argmax(1).numpy() == target).sum()


@settings(deadline=None, max_examples=25)
@given(batches(classes=3), st.sampled_from(["f1", "iou"]))
def test_no_other_threshold_is_better(batch, by):
    target, scores = batch
    best = best_threshold(score_counts(target, scores, NAMES[:3], bins=4), by)
    score = {"f1": oracle.f1_score, "iou": oracle.jaccard_score}[by]
    for i in range(3):
        y, p = labelled(target, scores, i)
        if not y.any():
            assert np.isnan(best[by][i]) and np.isnan(best["threshold"][i])
            continue
        assert best[by][i] == pytest.approx(score(y, p >= best["threshold"][i]))
        tried = [score(y, p >= t, zero_division=0) for t in bin_edges(4)[:-1:9].astype(float)]
        assert best[by][i] >= max(tried) - 1e-12


@settings(deadline=None, max_examples=60)
@given(batches(), st.integers(1, 6))
def test_parts_add_up_in_any_order(batch, parts):
    target, scores = batch
    k, whole = scores.shape[1], score_counts(target, scores, NAMES[:scores.shape[1]])
    flat, rows = target.reshape(-1), np.moveaxis(scores, 1, -1).reshape(-1, k)
    order = np.random.default_rng(parts).permutation(flat.size)
    total = sum(score_counts(flat[at], rows[at], NAMES[:k]) for at in np.array_split(order, parts))
    assert (total.positives == whole.positives).all() and (total.negatives == whole.negatives).all()


def test_memory_does_not_grow_with_the_pixels():
    a = score_counts(np.zeros((1, 4, 4), "uint8"), np.full((1, 2, 4, 4), 0.5, "float32"), "ab")
    b = sum([a] * 1000)
    assert b.positives.nbytes == a.positives.nbytes < 2 * 11_000 and b.support[0] == 16000


def test_absent_classes_are_nan_and_named_without_a_warning():
    target, scores = np.uint8([[0, 1, 255, 0]]), np.zeros((1, 3, 4))
    scores[:, 0], scores[:, 1] = [0.9, 0.2, 0.5, 0.6], [0.1, 0.8, 0.5, 0.4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = score_counts(target, scores, NAMES[:3])
        found, two = curve_scores(counts), curve_scores(score_counts(target, scores[:, :2], NAMES[:2]))
        nothing = curve_scores(score_counts(np.full((1, 4), 255), scores, NAMES[:3]))
        for table in (roc(counts), precision_recall(counts), calibration(counts), best_threshold(counts)):
            assert table[table.name == "c"].isna().any(axis=None)
        assert calibration(counts).query("name == 'c'")["observed"].isna().all()
    assert found["absent"] == ["c"] and found["auc_macro"] == two["auc_macro"] == 1
    assert all(np.isnan(v) for k, v in found["per_class"]["c"].items() if k != "support")
    assert nothing["absent"] == list("abc") and all(np.isnan(v) for v in nothing.values() if isinstance(v, float))


def test_tensors_half_floats_and_any_ignore_index_count_alike():
    rng = np.random.default_rng(2)
    target, scores = rng.integers(0, 3, (2, 5, 5)), torch.softmax(torch.tensor(rng.normal(size=(2, 3, 5, 5))), 1).half()
    hidden = rng.random(target.shape) < 0.3
    counts = [score_counts(t, s, "abc", i) for t, s, i in [
        (np.where(hidden, 255, target).astype("uint8"), scores.numpy(), 255), (torch.tensor(np.where(hidden, -1, target)), scores.float(), -1)]]
    assert (counts[0].positives == counts[1].positives).all() and counts[0].support.sum() == (~hidden).sum()


@pytest.mark.parametrize("target, scores, said", [
    ([[0, 1]], [[[0.5, np.nan], [0.5, 0.5]]], "1 scores are not between 0 and 1, such as nan"),
    ([[0, 1]], [[[3.0, -4.0], [0.5, 0.5]]], "2 scores are not between"),
    ([[0, 2]], [[[0.5, 0.5], [0.5, 0.5]]], "target holds 2"),
    ([[0.0, 1.0]], [[[0.5, 0.5], [0.5, 0.5]]], "not class indices"),
    ([[0, 1, 1]], [[[0.5, 0.5], [0.5, 0.5]]], r"scores \(1, 2, 2\)"),
    ([[0, 1]], [[[0.5, 0.5]] * 3], r"expected \[n, 2, ...\]"),
])
def test_what_cannot_be_counted_is_refused(target, scores, said):
    with pytest.raises(GeosegError, match=said):
        score_counts(np.array(target), np.array(scores), "ab")


def test_scores_of_unlabelled_pixels_do_not_matter():
    counts = score_counts(np.array([[255, 1]]), np.array([[[np.nan, 0.25], [7.0, 0.75]]]), "ab")
    assert counts.support.tolist() == [0, 1] and counts.negatives.sum() == 1


def test_what_does_not_add_up_is_refused():
    def of(names, bins):
        return score_counts(np.array([[0]]), np.array([[[0.4], [0.6]]]), names, bins=bins)
    with pytest.raises(GeosegError, match="of a, b in 64 bins and of a, c in 64 bins"):
        of("ab", 64) + of("ac", 64)
    with pytest.raises(GeosegError, match="128 bins do not add up"):
        of("ab", 64) + of("ab", 128)
    with pytest.raises(TypeError):
        3 + of("ab", 64)
    with pytest.raises(GeosegError, match="power of two"):
        of("ab", 1000)
    with pytest.raises(GeosegError, match=r"10 groups; take one of \[1, 2, 4, 8"):
        calibration(of("ab", 64), 10)


def test_edges_belong_to_the_bin_above_them():
    edges = bin_edges(64)
    p = edges[:-1]
    counts = score_counts(np.ones((1, len(p)), int), np.stack([1 - p, p])[None], "ab", bins=64)
    assert (counts.positives[1] == 1).all()
    assert isinstance(counts, ScoreCounts) and counts.positives.shape == (2, len(edges) - 1)
