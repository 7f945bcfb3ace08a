"Instances are matched one to one: equal to brute force, never below zero"
from itertools import permutations
from time import perf_counter

import numpy as np
import pytest
from geoseg_nb.core import Refused
from geoseg_nb.instances import (
    Pairs, boundary_counts, instance_counts, instance_scores, mask_instances, mask_pairs, matching, pooled_instances, scene_instances)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

masks = arrays(bool, (7, 7))


def every_iou(truth, predicted):
    "The full table of IoU, one pair after the other"
    a, b = truth.labels, predicted.labels
    return np.array([[((a == i) & (b == j)).sum() / ((a == i) | (b == j)).sum() for j in range(1, len(predicted.areas) + 1)]
                     for i in range(1, len(truth.areas) + 1)]).reshape(len(truth.areas), len(predicted.areas))


def best_by_permutations(iou, threshold):
    "Size and sum of IoU of the best matching, by trying all"
    if iou.shape[0] > iou.shape[1]: iou = iou.T
    tried = [iou[range(len(iou)), list(order)] for order in permutations(range(iou.shape[1]), len(iou))]
    return max(((v >= threshold).sum(), v[v >= threshold].sum()) for v in tried)


@given(masks, masks, masks, st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=150)
def test_pairs_equal_a_loop_over_all(a, b, ignored, connectivity):
    truth, predicted = (mask_instances(m, ignored, connectivity) for m in (a, b))
    table, pairs = every_iou(truth, predicted), mask_pairs(truth, predicted)
    dense = np.zeros_like(table)
    dense[pairs.truth, pairs.predicted] = pairs.iou
    assert np.allclose(dense, table, rtol=0, atol=1e-12)
    counts = instance_counts(pairs, [0.1, 0.3, 0.5, 0.9])
    assert (counts[["tp", "fp", "fn"]] >= 0).all(axis=None)


@given(arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 20).map(lambda v: v / 20)),
       st.sampled_from([0.05, 0.3, 0.5, 0.75]))
@settings(deadline=None, max_examples=200)
def test_a_matching_equals_brute_force(iou, threshold):
    t, p = np.nonzero(iou)
    pairs = Pairs(t, p, iou[t, p], *iou.shape)
    chosen = matching(pairs, threshold)
    size, total = best_by_permutations(iou, threshold)
    assert len(chosen) == size and np.isclose(pairs.iou[chosen].sum(), total)
    assert len(set(t[chosen])) == len(set(p[chosen])) == len(chosen)


def test_empty_sides_have_declared_values():
    none, some = np.zeros((4, 4), "uint8"), np.eye(4, dtype="uint8")
    scored = lambda a, b: instance_scores(scene_instances(a, b, thresholds=[0.5])).iloc[0]  # noqa: E731
    assert np.isnan(scored(none, none)[["precision", "recall", "f1"]].astype(float)).all()
    assert np.isnan(scored(some, none).precision) and scored(some, none).recall == scored(some, none).f1 == 0
    assert np.isnan(scored(none, some).recall) and scored(none, some).precision == scored(none, some).f1 == 0
    with pytest.raises(Refused, match="no table"): pooled_instances([])


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(Refused, match="one grid"): mask_pairs(mask_instances(np.eye(3) > 0), mask_instances(np.eye(4) > 0))


def test_a_boundary_is_what_lies_near_the_outline():
    from scipy.ndimage import distance_transform_cdt
    mask = np.zeros((100, 100), bool)
    mask[:40, 20:70] = True
    near = distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
    assert boundary_counts(mask, mask) == (((near > 0) & (near <= 3)).sum(),) * 2


def test_a_thousand_instances_take_less_than_a_few_seconds():
    truth, predicted = np.zeros((2, 1024, 1024), "uint8")
    for i in range(1024): truth[i // 32 * 32 + 4:, i % 32 * 32 + 4:][:20, :20] = predicted[i // 32 * 32 + 6:, i % 32 * 32 + 6:][:20, :20] = 1
    start = perf_counter()
    row = scene_instances(truth, predicted)
    assert perf_counter() - start < 5 and row.tp[0] == 1024
