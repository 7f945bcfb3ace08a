"Windows cover, stay inside and reassemble any scene; blending and streaming change no score"
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg_nb.core import GeosegError
from geoseg_nb.windows import (
    BLENDS,
    Stitcher,
    Window,
    WindowPlan,
    blend_weights,
    cut,
    origins,
    reassemble,
    stitch,
    visible,
    windows,
)

EDGES = ("shift", "pad", "drop")


@st.composite
def plans(draw, edges=EDGES, largest=24):
    size = draw(st.integers(1, largest))
    return WindowPlan(size=size, overlap=draw(st.integers(0, size - 1)), edge=draw(st.sampled_from(edges)))


@st.composite
def scenes(draw, edges=EDGES, largest=60):
    "A plan and a scene that it can cut: shift needs a scene of at least one window"
    plan = draw(plans(edges))
    least = plan.size if plan.edge == "shift" else 1
    height, width = draw(st.integers(least, largest)), draw(st.integers(least, largest))
    return plan, height, width


def seen(plan, height, width):
    "How often each pixel is seen, counted one pixel at a time"
    counts = {}
    for row, col, h, w in windows(height, width, plan):
        for pixel in ((y, x) for y in range(row, row + h) for x in range(col, col + w)):
            counts[pixel] = counts.get(pixel, 0) + 1
    return counts


@given(scenes(largest=40))
@settings(max_examples=100, deadline=None)
def test_windows_cover_and_stay_inside(case):
    plan, height, width = case
    scene = {(y, x) for y in range(height) for x in range(width)}
    pixels = set(seen(plan, height, width))
    if plan.edge in ("shift", "pad"):
        assert pixels >= scene
    if plan.edge in ("shift", "drop"):
        assert pixels <= scene


@given(plans(), st.integers(1, 400))
def test_origins_along_an_edge(plan, n):
    if plan.edge == "shift" and n < plan.size:
        with pytest.raises(GeosegError, match=f"{n} px and the window {plan.size} px: pass edge='pad'"):
            origins(n, plan)
        return
    starts = origins(n, plan)
    steps = np.diff(starts)
    assert starts == sorted(set(starts)) and (not starts or starts[0] == 0)
    assert (steps[:-1] == plan.stride).all() and (steps <= plan.stride).all()
    if plan.edge != "shift":
        assert (steps == plan.stride).all()
    if plan.edge == "pad":
        assert len(starts) == 1 or starts[-2] + plan.size < n, "the last window is needed"
    if plan.edge == "drop":
        assert n - (starts[-1] + plan.size if starts else 0) < (plan.stride if starts else plan.size)


def test_numbers_of_another_system():
    assert origins(1000, WindowPlan(size=256, overlap=16)) == [0, 240, 480, 720, 744]
    assert origins(1024, WindowPlan(size=256)) == [0, 256, 512, 768]
    assert origins(5000, WindowPlan(size=1024, overlap=256, edge="pad"))[-1] == 4608


@pytest.mark.parametrize("n", [0, -1])
def test_an_empty_edge_is_refused(n):
    for edge in EDGES:
        with pytest.raises(GeosegError, match="holds no window"):
            origins(n, WindowPlan(size=4, edge=edge))


@pytest.mark.parametrize("values", [{"size": 0}, {"overlap": -1}, {"size": 8, "overlap": 8}, {"edge": "mirror"}])
def test_a_plan_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError):
        WindowPlan(**values)


@given(scenes(edges=("shift", "pad")), st.sampled_from(["uint8", "int16", "float32", "bool"]),
       st.sampled_from([(), (3,), (2, 2)]))
@settings(max_examples=100, deadline=None)
def test_reassembling_is_exact(case, dtype, leading):
    plan, height, width = case
    rng = np.random.default_rng(height * 1000 + width)
    scene = rng.integers(0, 2**15, (*leading, height, width)).astype(dtype)
    if dtype == "float32":
        scene[..., rng.random((height, width)) < 0.1] = np.nan
    found = windows(height, width, plan)
    tiles = np.stack([cut(scene, w, fill=0) for w in found])
    again = reassemble(tiles, found, height, width)
    assert again.dtype == scene.dtype
    assert np.array_equal(again, scene, equal_nan=dtype == "float32")


@given(scenes(edges=("drop",)))
@settings(max_examples=60, deadline=None)
def test_dropped_pixels_are_refused_or_filled(case):
    plan, height, width = case
    scene = np.arange(1, height * width + 1).reshape(height, width)
    found = windows(height, width, plan)
    held = set(seen(plan, height, width))
    tiles = [cut(scene, w) for w in found]
    if len(held) < height * width:
        with pytest.raises(GeosegError, match="lie in no window|no tile"):
            reassemble(tiles, found, height, width)
    if tiles:
        again = reassemble(tiles, found, height, width, fill=-1)
        assert {(int(y), int(x)) for y, x in zip(*np.nonzero(again != -1))} == held
        assert np.array_equal(again[again != -1], scene[again != -1])


def test_tiles_and_windows_must_match():
    with pytest.raises(ValueError):
        reassemble([np.zeros((4, 4))], windows(8, 8, WindowPlan(size=4)), 8, 8)


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 12), st.integers(1, 12))
def test_cut_equals_a_padded_scene(row, col, height, width):
    scene = np.arange(8 * 9, dtype="int32").reshape(8, 9)
    window = Window(row, col, height, width)
    padded = np.pad(scene, 40, constant_values=-7)
    assert np.array_equal(cut(scene, window, -7), padded[row + 40 : row + 40 + height, col + 40 : col + 40 + width])
    part = visible(window, 8, 9)
    assert part.height * part.width == np.sum(cut(scene, window, -7) != -7)


def test_cut_is_a_copy():
    scene = np.zeros((8, 8))
    cut(scene, Window(0, 0, 8, 8))[:] = 1
    assert scene.sum() == 0


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from(sorted(BLENDS)))
@settings(deadline=None)
def test_weights_are_positive_and_symmetric(size, overlap, kind):
    weights = blend_weights(size, overlap, kind)
    assert weights.dtype == np.float32 and weights.shape == (size, size)
    assert weights.min() > 0 and weights.max() <= 1
    assert np.array_equal(weights, weights.T) and np.allclose(weights, weights[::-1], rtol=1e-6, atol=0)


@given(st.integers(2, 64), st.data())
@settings(deadline=None)
def test_neighbours_sum_to_one(size, data):
    overlap = data.draw(st.integers(1, size // 2))
    for kind in ("linear", "cosine"):
        profile = np.sqrt(np.diag(blend_weights(size, overlap, kind)).astype("float64"))
        assert np.allclose(profile[:overlap] + profile[size - overlap :], 1, atol=1e-5)


def accumulate(scored, classes, height, width, weights):
    "The plain way: sums over the whole scene, one division at the end"
    sums, norm = np.zeros((classes, height, width), "float32"), np.zeros((height, width), "float32")
    for window, scores in scored:
        part = visible(window, height, width)
        rows = slice(part.row - window.row, part.row - window.row + part.height)
        cols = slice(part.col - window.col, part.col - window.col + part.width)
        sums[:, *part.slices] += scores[:, rows, cols] * weights[rows, cols]
        norm[part.slices] += weights[rows, cols]
    with np.errstate(invalid="ignore"):
        return sums / norm


@given(scenes(), st.sampled_from(sorted(BLENDS)), st.integers(1, 3))
@settings(max_examples=120, deadline=None)
def test_streaming_equals_the_whole_scene(case, kind, classes):
    plan, height, width = case
    weights, found = blend_weights(plan.size, plan.overlap, kind), windows(height, width, plan)
    rng = np.random.default_rng(len(found))
    scores = rng.normal(size=(len(found), classes, plan.size, plan.size)).astype("float32")
    parts = list(stitch(zip(found, scores), classes, height, width, weights))
    assert [first for first, _ in parts] == np.cumsum([0, *(rows.shape[1] for _, rows in parts[:-1])]).tolist()
    assert max(rows.shape[1] for _, rows in parts) <= plan.size
    streamed = np.concatenate([rows for _, rows in parts], axis=1)
    assert streamed.dtype == np.float32
    assert np.array_equal(streamed, accumulate(zip(found, scores), classes, height, width, weights), equal_nan=True)


@given(scenes(edges=("shift", "pad")), st.sampled_from(sorted(BLENDS)))
@settings(max_examples=80, deadline=None)
def test_a_pointwise_function_blends_to_itself(case, kind):
    plan, height, width = case
    scene = np.random.default_rng(height).normal(size=(2, height, width))
    scored = ((w, np.tanh(cut(scene, w))) for w in windows(height, width, plan))
    parts = stitch(scored, 2, height, width, blend_weights(plan.size, plan.overlap, kind))
    blended = np.concatenate([rows for _, rows in parts], axis=1)
    assert np.allclose(blended, np.tanh(scene), rtol=1e-5, atol=1e-6)


def test_skipped_windows_leave_nan_and_nothing_else():
    plan = WindowPlan(size=4)
    found = [w for w in windows(20, 8, plan) if w.row in (4, 16)]
    parts = stitch(((w, np.ones((1, 4, 4))) for w in found), 1, 20, 8, blend_weights(4, 0))
    blended = np.concatenate([rows for _, rows in parts], axis=1)[0]
    assert np.isnan(blended).all(axis=1).nonzero()[0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]
    assert (blended[4:8] == 1).all() and (blended[16:] == 1).all()


def test_the_stitcher_refuses_windows_out_of_order():
    stitcher = Stitcher(1, 64, 8, blend_weights(8, 0))
    scores = np.ones((1, 8, 8))
    with pytest.raises(GeosegError, match="rows 0 to 7; add windows in row order"):
        stitcher.add(Window(8, 0, 8, 8), scores)
    stitcher.add(Window(0, 0, 8, 8), scores)
    first, rows = stitcher.flush(8)
    assert (first, rows.shape) == (0, (1, 8, 8))
    with pytest.raises(GeosegError, match="rows 8 to 15"):
        stitcher.add(Window(0, 0, 8, 8), scores)
    assert stitcher.flush(4)[1].shape == (1, 0, 8), "nothing is given away twice"


def test_memory_is_a_strip_whatever_the_height():
    import tracemalloc

    def peak(height):
        plan, weights = WindowPlan(size=32, overlap=16), blend_weights(32, 16)
        scored = ((w, np.ones((2, 32, 32), "float32")) for w in windows(height, 256, plan))
        tracemalloc.start()
        for _ in stitch(scored, 2, height, 256, weights):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    list_of_windows = len(windows(4096, 256, WindowPlan(size=32, overlap=16))) * 300
    assert peak(4096) < peak(256) + list_of_windows
    assert 4096 * 256 * 2 * 4 > 2 * peak(4096), "the whole scene would not have fitted"
