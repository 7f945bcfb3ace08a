"What an epoch draws: as often as the weights say, a few shards at a time, each draw once over all ranks"
import numpy as np
import pytest
from geoseg_nb import gather
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.loader import LoaderSpec, Recent, drawing_weights, make_loader, shards_kept
from geoseg_nb.samplers import ShardShuffle, Share, drawn, class_pixels, tile_weights
from geoseg_nb.spec import make
from hypothesis import given
from hypothesis import strategies as st
from test_loader import split_of, tidy, write_store

NAMES = ["water", "forest", "ice"]
EPOCHS = 400
WHOLE = [10, 7, 6, 3, 13, 8, 11, 4, 9, 2, 0, 12, 14, 5, 1]  # seed 4, epoch 2, all 5 shards mixed, as in the first release
FEW = [3, 4, 13, 5, 12, 14, 0, 2, 1, 11, 10, 7, 8, 9, 6]  # the same, 2 of 5 mixed, since shards join one at a time


@pytest.fixture(scope="module")
def counts():
    "300 tiles of 1000 pixels: mostly forest, some water, hardly any ice; 12 of them half labelled"
    rng = np.random.default_rng(3)
    found = np.array([rng.multinomial(1000, rng.dirichlet([0.3, 3, 0.03])) for _ in range(300)])
    found[:12] //= 2
    return found


def frequencies(sampler, epochs=EPOCHS):
    "Mean number of times that an epoch draws each sample"
    times = np.zeros(len(sampler.shards))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        np.add.at(times, list(sampler), 1)
    return times / epochs


def oracle(counts, balance, wanted, share):
    "The chance of each tile, tile by tile, told as the drawing that is promised"
    n, classes = counts.shape
    if balance == "foreground":
        having = [i for i in range(n) if any(counts[i, c] for c in wanted)]
        return np.array([share / len(having) if i in having else (1 - share) / (n - len(having)) for i in range(n)])
    inside = [[counts[i, c] / counts[i].sum() for i in range(n)] for c in range(classes)]
    return sum(np.array(one) / sum(one) for one in inside if sum(one)) / sum(sum(one) > 0 for one in inside)


@pytest.mark.parametrize("balance, foreground, share", [("classes", [], 0.5), ("foreground", ["ice"], 0.5), ("foreground", ["ice", "water"], 0.9)])
def test_classes_come_as_often_as_the_weights_promise(counts, balance, foreground, share):
    chance = oracle(counts, balance, [NAMES.index(name) for name in foreground], share)
    weights = tile_weights(counts, NAMES, balance, foreground, share)
    np.testing.assert_allclose(weights, chance, rtol=1e-12)
    times = frequencies(ShardShuffle(np.arange(300) // 7, 5, 11, weights=weights))
    assert times.sum() == pytest.approx(300)
    assert np.abs(times - 300 * chance).max() < 4 * 0.5 / np.sqrt(EPOCHS), "each tile, within four standard deviations of a rounding"
    np.testing.assert_allclose(times @ counts / (times @ counts).sum(), chance @ counts / (chance @ counts).sum(), rtol=0.02)


def test_rare_classes_gain_and_a_class_that_nobody_holds_breaks_nothing(counts):
    before = counts.sum(0) / counts.sum()
    after = tile_weights(counts, NAMES, "classes") @ counts
    after /= after.sum()
    assert after[2] > 3 * before[2] and after[1] < before[1]
    without = np.c_[counts, np.zeros(300, int)]
    np.testing.assert_allclose(tile_weights(without, [*NAMES, "lava"], "classes"), tile_weights(counts, NAMES, "classes"))


def test_unnamed_foreground_is_all_but_the_most_frequent_class(counts):
    assert (tile_weights(counts, NAMES, "foreground", [], 0.7) == tile_weights(counts, NAMES, "foreground", ["water", "ice"], 0.7)).all()
    only = tile_weights(counts, NAMES, "foreground", ["ice"], 1.0)
    assert ((only > 0) == (counts[:, 2] > 0)).all()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60).filter(any), st.integers(0, 2**32))
def test_a_sample_comes_its_weight_rounded_up_or_down(weights, seed):
    weights = np.array(weights)
    times = np.bincount(drawn(weights, np.random.default_rng(seed)), minlength=len(weights))
    exact = weights / weights.sum() * len(weights)
    assert times.sum() == len(weights) and (np.abs(times - exact) < 1 + 1e-6).all() and not times[weights == 0].any()
    assert (drawn(np.full(len(weights), 0.1), np.random.default_rng(seed)) == np.arange(len(weights))).all(), "equal weights are none"


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(1, 14), st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 6))
def test_a_draw_reads_a_shard_once_and_is_shared_out_whole(sizes, mix, seed, ranks, batch):
    shards = np.repeat(np.arange(len(sizes)) * 3, sizes)
    weights = np.random.default_rng(seed).exponential(size=len(shards)) ** 3
    sampler = ShardShuffle(shards, mix, seed, weights=weights)
    order = list(sampler)
    assert len(order) == len(sampler) == len(shards) and order == list(ShardShuffle(shards, mix, seed, weights=weights))
    reads = []
    recent = Recent(lambda k: reads.append(k), keep=mix)
    for i in order: recent(shards[i])
    assert sorted(reads) == sorted(set(shards[order].tolist())), "with memory for as many as are mixed"
    mine = [list(ShardShuffle(shards, mix, seed, Share(rank, ranks, batch), weights)) for rank in range(ranks)]
    assert sorted(i for one in mine for i in one if i >= 0) == sorted(order), "repetitions included"
    sampler.seen = len(order) // 2
    assert list(sampler) == order[len(order) // 2:]
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(order)


def test_another_epoch_draws_other_samples(counts):
    sampler = ShardShuffle(np.arange(300) // 7, 5, weights=tile_weights(counts, NAMES, "classes"))
    draws = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        draws.append(tuple(sorted(sampler)))
    assert len(set(draws)) == 3


@pytest.mark.parametrize(("mix", "order"), [(5, WHOLE), (9, WHOLE), (2, FEW)])
def test_orders_of_earlier_releases_are_kept(mix, order):
    "Written down: a resumed training and a recipe count on them"
    sampler = ShardShuffle(np.repeat(np.arange(5), 3), mix, seed=4)
    sampler.set_epoch(2)
    assert list(sampler) == order


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("mix", [20, 72])
def test_each_rank_reads_a_shard_once_in_what_a_loader_keeps(mix, ranks):
    "One reader of all exactly once; a rank, which meets shards out of their order, hardly ever one again"
    shards = np.arange(200 * 64) // 64
    for rank in range(ranks):
        reads = []
        recent = Recent(lambda k: reads.append(k), keep=shards_kept(mix, ranks == 1))  # noqa: B023  used within the turn
        for i in ShardShuffle(shards, mix, 3, Share(rank, ranks, 64)): recent(shards[max(i, ~i)])
        assert len(set(reads)) == 200 and len(reads) <= (200 if ranks == 1 else 202), (rank, len(reads))


@given(st.lists(st.integers(1, 40), min_size=6, max_size=30), st.integers(1, 5), st.integers(0, 2**32))
def test_shards_join_one_at_a_time_and_stay_as_long_as_they_are_mixed(sizes, mix, seed):
    shards = np.repeat(np.arange(len(sizes)), sizes)
    order = shards[list(ShardShuffle(shards, mix, seed))]
    first = [order.tolist().index(k) for k in range(len(sizes))]
    last = [len(order) - 1 - order[::-1].tolist().index(k) for k in range(len(sizes))]
    joined = np.argsort(first)
    for place, k in enumerate(joined[:-mix]): assert last[k] < first[joined[place + mix]], "it has left when another takes its place"


def test_weights_come_from_the_index_and_no_pixel_is_read(tmp_path, monkeypatch):
    arrays = tidy(20)
    arrays["label"][:] = 0
    arrays["label"][[3, 8]] = 1
    store = write_store(tmp_path, arrays)
    monkeypatch.setattr(gather, "load_tiles", None)
    options = {"normaliser": "none", "balance": "foreground", "foreground": ["water"], "foreground_share": 0.8}
    loader = make_loader(store, split_of("t" * 20), "train", **options)
    order = list(loader.sampler)
    assert len(order) == 20 and sum(i in (3, 8) for i in order) == 16
    ids = [loader.dataset.ids[i] for i in order]
    assert ids.count("t3") == ids.count("t8") == 8


def test_ranks_see_one_draw_batch_by_batch(tmp_path):
    arrays = tidy(20)
    arrays["label"][:15] = 0
    store, split = write_store(tmp_path, arrays), split_of("t" * 20)
    whole = [batch["id"] for batch in make_loader(store, split, "train", 6, balance="classes")]
    halves = [[batch["id"] for batch in make_loader(store, split, "train", 3, balance="classes", rank=rank, ranks=2)] for rank in (0, 1)]
    assert whole == [a + b for a, b in zip(*halves, strict=True)]


@pytest.mark.parametrize("options, message", [
    ({"balance": "class"}, "known are none, classes, foreground"), ({"balance": "foreground", "foreground": ["ice"]}, "no class of the legend 'ice'"),
    ({"balance": "foreground", "foreground": ["dry"]}, "all of the 4 training tiles hold a wanted class"),
    ({"balance": "foreground", "foreground_share": 0}, "foreground_share"), ({"balance": "classes", "shuffle": False}, "pass balance='none'"),
])
def test_what_cannot_be_balanced_is_refused(tmp_path, options, message):
    store = write_store(tmp_path, tidy(4))
    with pytest.raises((GeosegError, Refused), match=message):
        make_loader(store, split_of("tttt"), "train", normaliser="none", **options)


def test_a_part_that_is_judged_is_never_drawn_from(tmp_path):
    store = write_store(tmp_path, tidy(4))
    with pytest.raises(Refused, match="this part is read in order"):
        make_loader(store, split_of("ttvv"), "val", balance="classes")


def test_an_index_without_counts_is_named(tmp_path):
    store = write_store(tmp_path, tidy(4))
    with pytest.raises(GeosegError, match="no column count_dry, count_water; tile it again"):
        class_pixels(store.index.drop(columns=["count_dry", "count_water"]), store.legend.names, [0])
    assert drawing_weights(store, [0], make(LoaderSpec, {})) is None
