"""The loader on stores that are anything but tidy: every batch finite, every tile once, every number NumPy's."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from geoseg_nb import loader as module
from geoseg_nb.core import Band, GeosegError, Refused, Sensor, make_legend
from geoseg_nb.layout import StoreSpec, shard_count, shard_rows, valid_pixels
from geoseg_nb.loader import (
    LoaderSpec, Normaliser, Recent, Stats, fit_normaliser, make_loader, make_normaliser, merge, moments,
    normaliser_from_dict, shards_kept, shards_that_fit, statistics)
from geoseg_nb.losses import LOSSES
from geoseg_nb.samplers import ShardShuffle
from geoseg_nb.tilestore import create_store, finish_store, open_store, write_shard

LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
RADAR = Sensor("s1", (Band("VV", "dB"), Band("VH", "dB")))
OPTICAL = Sensor("s2", (Band("B02", scale=1e-4, offset=-0.1), Band("B03", scale=1e-4), Band("B04", scale=1e-4)), "uint16", 0)
COUNTS = Sensor("counts", (Band("n"),), "uint8")  # integers without a nodata value: the store gets an array `valid`
quick = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def write_store(folder, arrays, sensors=(RADAR,), shard_tiles=4):
    "A finished store of one-tile scenes t0, t1, ... from whole arrays"
    n, size = arrays["label"].shape[:2]
    spec = StoreSpec(name="any", size=size, tiles=n, shard_tiles=shard_tiles, legend=LEGEND.as_dict(),
                     sensors=[s.as_dict() for s in sensors])
    seen = valid_pixels(spec, arrays)
    labelled = (seen & (arrays["label"] != 255)).mean((1, 2))
    counts = {f"count_{name}": (seen & (arrays["label"] == i)).sum((1, 2)) for i, name in enumerate(LEGEND.names)}
    names = [f"t{i}" for i in range(n)]
    index = pd.DataFrame({"id": names, "scene": names, "row": 0, "col": 0, "height": size, "width": size, "labelled": labelled, **counts})
    root = create_store(f"{folder}/any.zarr", spec)
    for k in range(shard_count(spec)):
        part = slice(*shard_rows(spec, k))
        write_shard(root, k, {name: array[part] for name, array in arrays.items()}, index.iloc[part])
    finish_store(root)
    return open_store(root)


def split_of(parts, size=8):
    "Whole scenes t0, t1, ... to the parts given, one letter each: t(rain), v(al), e(test), - none"
    word = {"t": "train", "v": "val", "e": "test"}
    rows = [(f"t{i}", word[p], 0, size, 0, size) for i, p in enumerate(parts) if p != "-"]
    return pd.DataFrame(rows, columns=["scene", "part", "row0", "row1", "col0", "col1"])


def tidy(n=20, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {"s1": rng.normal(-15, 4, (n, 2, size, size)).astype(np.float32), "label": rng.integers(0, 2, (n, size, size), np.uint8)}


@st.composite
def faulty(draw):
    "Tiles with NaN, infinities, values at the end of float32, whole tiles of NaN, unlabelled ones"
    n = draw(st.integers(2, 9))
    arrays = tidy(n, seed=draw(st.integers(0, 99)))
    for i in range(n):
        bad = draw(st.sampled_from([None, np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, "unlabelled"]))
        share = draw(st.sampled_from([0.02, 0.5, 1]))
        where = np.random.default_rng(i).random((2, 8, 8)) < share
        if bad == "unlabelled":
            arrays["label"][i][where[0]] = 255
        elif bad is not None:
            arrays["s1"][i][where] = bad
    arrays["label"][0, 0, 0], arrays["s1"][0, :, 0, 0] = 1, -12
    return arrays


@quick
@given(faulty(), st.sampled_from([{}, {"normaliser": "none"}, {"normaliser": "scale"}, {"normaliser": "clip", "clip": [-30, 0]},
                                  {"clip": [[-30, 0], [-40, -5]]}, {"mean": [-15, -15], "std": [4, 4]}]))
def test_a_batch_is_finite_whatever_the_store_holds(tmp_path_factory, arrays, options):
    "Fault 15"
    folder = tmp_path_factory.mktemp("store")
    store, n = write_store(folder, arrays), len(arrays["label"])
    loader = make_loader(store, split_of("t" * n), "train", batch_size=3, **options)
    seen = np.isfinite(arrays["s1"]).all(1)
    expected = np.where(seen, arrays["label"], 255)
    usable = [f"t{i}" for i in range(n) if (expected[i] != 255).any()]
    ids = []
    for batch in loader:
        ids += batch["id"]
        rows = [int(id[1:]) for id in batch["id"]]
        assert batch["image"].dtype == torch.float32 and batch["label"].dtype == torch.int64
        assert torch.isfinite(batch["image"]).all()
        assert (batch["label"].numpy() == expected[rows]).all()
        assert (batch["image"].movedim(1, -1)[~torch.from_numpy(seen[rows])] == 0).all(), "invalid in one band, 0 in all"
        logits = batch["image"].clamp(-1e4, 1e4).requires_grad_()
        for loss in LOSSES.values():
            value = loss(logits, batch["label"], 255, torch.ones(2))
            assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, logits)[0]).all()
    assert sorted(ids) == sorted(usable) and loader.skipped == n - len(usable)


def several(n=11, seed=3):
    "Three sensors, each with its own way to say that a pixel was not seen"
    rng, arrays = np.random.default_rng(seed), tidy(n, seed=seed)
    arrays["s2"] = rng.integers(0, 9000, (n, 3, 8, 8)).astype(np.uint16)
    arrays["counts"] = rng.integers(0, 255, (n, 1, 8, 8)).astype(np.uint8)
    arrays["valid"] = rng.random((n, 8, 8)) > 0.1
    arrays["s1"][rng.random(arrays["s1"].shape) < 0.05] = np.nan
    arrays["s2"][rng.random(arrays["s2"].shape) < 0.05] = 0
    seen = np.isfinite(arrays["s1"]).all(1) & (arrays["s2"] != 0).all(1) & arrays["valid"]
    return arrays, np.concatenate([arrays[s].astype(np.float64) for s in ("s1", "s2", "counts")], 1), seen


def test_statistics_equal_numpy_on_the_concatenation(tmp_path):
    arrays, image, seen = several()
    arrays["label"][4] = 255
    store, split = write_store(tmp_path, arrays, (RADAR, OPTICAL, COUNTS)), split_of("tttttvvettt")
    rows = [0, 1, 2, 3, 8, 9, 10]  # training tiles with a label
    pixels = np.moveaxis(image, 1, -1)[rows][seen[rows]]
    stats = statistics(store, split)
    assert stats.count == len(pixels)
    assert stats.mean == pytest.approx(pixels.mean(0), rel=1e-12) and stats.std == pytest.approx(pixels.std(0), rel=1e-12)


def test_bands_of_several_sensors_stand_side_by_side(tmp_path):
    arrays, image, seen = several()
    store, split = write_store(tmp_path, arrays, (RADAR, OPTICAL, COUNTS)), split_of("t" * 11)
    batch = next(iter(make_loader(store, split, "train", batch_size=11, shuffle=False)))
    stats = statistics(store, split)
    expected = (image - np.reshape(stats.mean, (-1, 1, 1))) / np.reshape(stats.std, (-1, 1, 1))
    assert np.allclose(batch["image"], np.where(seen[:, None], expected, 0), atol=1e-4)
    assert (batch["label"].numpy() == np.where(seen, arrays["label"], 255)).all()
    physical = next(iter(make_loader(store, split, "train", batch_size=11, shuffle=False, normaliser="scale")))["image"][:, 2:5]
    assert np.allclose(physical, np.where(seen[:, None], arrays["s2"] * 1e-4 + np.reshape([-0.1, 0, 0], (3, 1, 1)), 0), atol=1e-6)


def test_statistics_are_measured_once_and_on_the_training_part_only(tmp_path, monkeypatch):
    arrays = tidy()
    arrays["s1"][10:] = 1000
    store, split = write_store(tmp_path, arrays), split_of("t" * 10 + "e" * 10)
    first = statistics(store, split)
    assert max(first.mean) < 0 and max(first.std) < 10
    monkeypatch.setattr(module, "read_rows", lambda *_: pytest.fail("read again"))
    assert statistics(store, split) == first
    assert fit_normaliser(store, split, LoaderSpec()).mean == first.mean
    with pytest.raises(pytest.fail.Exception, match="read again"):
        statistics(store, split_of("t" * 9 + "e" * 11))


@quick
@given(any_array(np.float32, (12, 2), elements=st.floats(-1e6, 1e6, width=32)), st.integers(0, 12), st.integers(0, 12))
def test_moments_merge_exactly(pixels, i, j):
    pieces = np.split(pixels, sorted((i, j)))
    count, mean, m2 = merge(merge(*map(moments, pieces[:2])), moments(pieces[2]))
    wide = pixels.astype(np.float64)
    assert count == 12 and np.allclose(mean, wide.mean(0), rtol=1e-9, atol=1e-9)
    assert np.allclose(m2 / 12, wide.var(0), rtol=1e-9, atol=1e-6)


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 14), st.integers(0, 2**32), st.integers(0, 50))
def test_a_shuffle_takes_each_sample_once_and_a_few_shards_at_a_time(sizes, mix, seed, epoch):
    shards = np.repeat(np.arange(len(sizes)) * 3, sizes)
    sampler = ShardShuffle(shards, mix, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(sampler) == len(order) and sorted(order) == list(range(len(shards))) and order == list(sampler)
    other = ShardShuffle(shards, mix, seed)
    other.set_epoch(epoch)
    assert order == list(other)
    reads = []
    recent = Recent(lambda k: reads.append(k), keep=mix)
    for i in order:
        recent(shards[i])
    assert sorted(reads) == sorted(set(shards.tolist())), "each shard is read once with memory for as many as are mixed"


def test_epochs_and_seeds_give_other_orders_and_every_place_in_time():
    shards = np.repeat(np.arange(10), 10)
    orders = []
    for seed in range(3):
        sampler = ShardShuffle(shards, 3, seed)
        for epoch in range(200):
            sampler.set_epoch(epoch)
            orders.append(tuple(sampler))
    assert len(set(orders)) == len(orders)
    place = np.argsort(orders, axis=1)  # when each sample comes
    assert np.abs(place.mean(0) - 49.5).max() < 6 * 28.9 / np.sqrt(len(orders)), "no sample is always early or late"


def test_a_small_store_is_shuffled_in_full_and_a_large_one_as_far_as_memory_goes():
    assert shards_that_fit([64 * 9216] * 50, 512) >= 50
    assert shards_that_fit([1, 64 * 120 * 120 * 25], 512) == 16  # of the 22 that fit, since a rank keeps 21 of them
    assert shards_that_fit([2**36], 512) == shards_that_fit([0], 0) == 4


@given(st.integers(1, 10**8), st.integers(0, 4000))
def test_what_is_kept_lies_within_the_budget(size, cache_mb):
    "Alone or as one of several, but for the few shards that are mixed at the least"
    mixed = shards_that_fit([size], cache_mb)
    for alone in (True, False): assert shards_kept(mixed, alone) * size <= max(cache_mb * 1_000_000, shards_kept(4, alone) * size)


def test_memory_holds_no_more_shards_than_it_may(tmp_path):
    store = write_store(tmp_path, tidy(40), shard_tiles=2)
    loader = make_loader(store, split_of("t" * 40), "train", cache_mb=0, mix_shards=5)
    for _ in loader:
        assert len(loader.dataset.shard.kept) <= 5
    assert loader.sampler.mix_shards == 5


def test_parts_share_no_tile_and_keep_their_order(tmp_path):
    arrays = tidy()
    arrays["label"][7, :, :4] = 255
    store, split = write_store(tmp_path, arrays), split_of("ttvtettt-veettttttve")
    ids = {part: [i for b in make_loader(store, split, part) for i in b["id"]] for part in ("train", "val", "test")}
    assert ids["val"] == ["t2", "t9", "t18"] and ids["test"] == ["t4", "t10", "t11", "t19"]
    assert sorted(sum(ids.values(), [])) == sorted(f"t{i}" for i in range(20) if i != 8)
    strict = make_loader(store, split, "train", min_labelled=0.5)
    assert strict.skipped == 1 and len(strict.dataset) == len(ids["train"]) - 1
    with pytest.raises(GeosegError, match="no tile of part 'fold7'.*'train': 12"):
        make_loader(store, split, "fold7")


def test_the_same_call_gives_the_same_batches_and_the_seed_others(tmp_path):
    store, split = write_store(tmp_path, tidy()), split_of("t" * 20)
    one, two = (list(make_loader(store, split, "train", 6, 1)) for _ in range(2))
    assert [len(b["id"]) for b in one] == [6, 6, 6, 2]
    assert all((a["image"] == b["image"]).all() and a["id"] == b["id"] for a, b in zip(one, two))
    assert [b["id"] for b in make_loader(store, split, "train", 6, 2)] != [b["id"] for b in one]


def test_a_batch_does_not_share_memory_with_the_shards(tmp_path):
    "An augmentation that works in place must not reach the next epoch"
    store, split = write_store(tmp_path, tidy()), split_of("t" * 20)
    loader = make_loader(store, split, "train")
    before = [b["image"].clone() for b in loader]
    for batch in loader:
        batch["image"].zero_(), batch["label"].zero_()
    assert all((a == b["image"]).all() for a, b in zip(before, loader))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.int16, np.uint8])
def test_a_normaliser_takes_any_type_and_leaves_its_input(dtype):
    image = np.random.default_rng(0).integers(0, 200, (3, 2, 5, 5)).astype(dtype)
    kept = image.copy()
    image.flags.writeable = False
    normaliser = make_normaliser("mean_std", Stats([50, 100], [7, 0]), clip=[[10, 90], [0, 150]])
    expected = (np.clip(image.astype(float), [[[10]], [[0]]], [[[90]], [[150]]]) - [[[50]], [[100]]]) / [[[7]], [[1]]]
    ours = normaliser(image)
    assert ours.dtype == np.float32 and np.allclose(ours, expected, atol=1e-5) and (image == kept).all()
    assert (normaliser(torch.from_numpy(kept)).numpy() == ours).all() and (normaliser(image[0]) == ours[0]).all()
    assert (normaliser(kept[..., ::2, 1:]) == ours[..., ::2, 1:]).all(), "a window of a scene, not contiguous"


@quick
@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4)), min_size=1, max_size=5), st.booleans())
def test_a_normaliser_survives_json_digit_for_digit(bands, clipped):
    normaliser = make_normaliser("mean_std", Stats(*zip(*bands)), clip=[-1.1, 1e300] if clipped else None)
    assert normaliser_from_dict(json.loads(json.dumps(normaliser.as_dict()))) == normaliser
    assert isinstance(normaliser, Normaliser)


@pytest.mark.parametrize("options, message", [
    ({"normaliser": "zscore"}, "known are none, scale, mean_std, clip"), ({"normaliser": "clip"}, r"clip=\[low, high\]"),
    ({"clip": [0, -30]}, "low < high"), ({"mean": [1], "std": []}, "one number for each"), ({"batchsize": 3}, "batch_size"),
    ({"batch_size": 0}, "batch_size"), ({"mean": [1, 2, 3], "std": [1, 2, 3]}, "one number for each"), ({"min_labelled": 1}, "min_labelled"),
])
def test_wrong_options_are_refused_before_anything_is_read(tmp_path, options, message):
    store = write_store(tmp_path, tidy(4))
    with pytest.raises((GeosegError, Refused), match=message):
        make_loader(store, split_of("tttt"), "train", **options)


def test_a_part_of_nothing_but_invalid_pixels_is_refused(tmp_path):
    arrays = tidy(4)
    arrays["s1"][:] = np.nan
    with pytest.raises(GeosegError, match="no tile of part 'train'"):
        make_loader(write_store(tmp_path, arrays), split_of("tttt"), "train")


WORKERS = """
    import hashlib, sys
    import pandas as pd
    from geoseg_nb.loader import make_loader
    from geoseg_nb.tilestore import open_store

    def digest(loader):
        found = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                pixels = hashlib.sha256(batch["image"].numpy().tobytes() + batch["label"].numpy().tobytes()).hexdigest()
                found.append((batch["id"], pixels))
        return found

    if __name__ == "__main__":
        store, split = open_store(sys.argv[1]), pd.read_parquet(sys.argv[2])
        alone = digest(make_loader(store, split, "train", 3))
        assert alone == digest(make_loader(store, split, "train", 3, workers=2)), "workers give other samples"
        print(len(alone), "batches")
"""


def test_two_workers_give_the_same_samples(tmp_path):
    "The parent has read the store before its workers start, as every notebook has: a fork would hang here"
    store, split = write_store(tmp_path, tidy()), split_of("t" * 20)
    split.to_parquet(tmp_path / "split.parquet")
    (tmp_path / "script.py").write_text(textwrap.dedent(WORKERS), encoding="utf-8")
    command = [sys.executable, tmp_path / "script.py", store.url, tmp_path / "split.parquet"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0 and run.stdout == "14 batches\n", run.stderr[-2000:]


BUCKET = """
    import sys, time
    import pandas as pd
    from geoseg_nb.core import GeosegError
    from geoseg_nb.loader import TileDataset, make_loader
    from geoseg_nb.tilestore import open_store, read_shard

    class Hanging(TileDataset):
        def __getitems__(self, samples): time.sleep(600)

    if __name__ == "__main__":
        store, split = open_store(sys.argv[1]), pd.read_parquet(sys.argv[2])
        read_shard(store, 0)  # the parent has talked to the bucket: a forked copy of it would hang
        loader = make_loader(store, split, "train", 3, workers=2, prefetch=4)
        for epoch in range(2): print(sorted(id for batch in loader for id in batch["id"]))
        hanging = make_loader(store, split, "train", 3, normaliser="none", workers=1, timeout=1)
        hanging.dataset.__class__ = Hanging
        try: next(iter(hanging))
        except GeosegError as error: print(error)
"""


def test_workers_read_a_bucket_and_one_that_hangs_is_told_of(tmp_path, bucket, monkeypatch):
    "Fault 42"
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "first"))
    store, split = write_store(f"s3://{bucket}", tidy()), split_of("t" * 20)
    split.to_parquet(tmp_path / "split.parquet")
    (tmp_path / "script.py").write_text(textwrap.dedent(BUCKET), encoding="utf-8")
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "second"))
    command = [sys.executable, tmp_path / "script.py", str(store.url), tmp_path / "split.parquet"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    every = str(sorted(f"t{i}" for i in range(20)))
    assert run.returncode == 0 and run.stdout.splitlines()[:2] == [every, every], run.stderr[-2000:]
    assert "gave no batch within 1 s" in run.stdout and "Pass workers=0, or a longer timeout" in run.stdout


def test_workers_come_from_a_fork_server_with_a_deadline(tmp_path):
    store = write_store(tmp_path, tidy(4))
    loader = make_loader(store, split_of("tttt"), "train", workers=1, timeout=7)
    context = loader.multiprocessing_context
    assert context.get_start_method() == "forkserver" and loader.timeout == 7 and loader.persistent_workers
    assert make_loader(store, split_of("tttt"), "train").num_workers == LoaderSpec().workers == 0


def test_lightning_names_the_epoch_to_the_sampler(tmp_path):
    lightning = pytest.importorskip("lightning")
    seen = []

    class Watcher(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(2, 2, 1)

        def training_step(self, batch, _):
            seen.append((self.current_epoch, batch["id"]))
            return LOSSES["cross_entropy"](self.layer(batch["image"]), batch["label"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = make_loader(write_store(tmp_path, tidy()), split_of("t" * 20), "train", 8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(max_epochs=3, accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet).fit(Watcher(), loader)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        assert [ids for e, ids in seen if e == epoch] == [b["id"] for b in loader]


def test_the_loader_says_that_epochs_must_be_named():
    from geoseg_nb.loader import make_loader
    assert "loader.sampler.set_epoch(epoch)" in make_loader.__doc__ and "same order" in make_loader.__doc__


def test_a_thin_part_that_fits_ready_is_read_once_and_never_again(tmp_path, monkeypatch):
    "One tile in ten of each shard: as bytes the shards would not fit, as tiles they do"
    from geoseg_nb import gather
    store, read = write_store(tmp_path, tidy(400), shard_tiles=10), []
    real = gather.shard_chunks
    monkeypatch.setattr(gather, "shard_chunks", lambda store, k, *more: read.append(k) or real(store, k, *more))
    split = split_of("".join("t" if i % 10 == 3 else "e" for i in range(400)))
    loader = make_loader(store, split, "train", cache_mb=1)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        assert sum(len(b["id"]) for b in loader) == 40
    assert loader.dataset.all_ready and loader.dataset.fits == 40 and sorted(read) == list(range(40))
