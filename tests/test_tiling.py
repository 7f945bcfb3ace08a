"Tiling under faults: real chips, killed processes, strange scenes; every pixel against plain rasterio"
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from geoseg_nb import pairs
from geoseg_nb.catalog import CatalogSpec, write_catalog
from geoseg_nb.core import Band, GeosegError, Grid, Refused, Sensor, TooManyFailures, make_legend
from geoseg_nb.layout import valid_pixels
from geoseg_nb.products import hand_over
from geoseg_nb.raster import to_dataset
from geoseg_nb.stages import Execution, open_job, record
from geoseg_nb.storage import folder_sha256, sample_folder
from geoseg_nb.repair import verify
from geoseg_nb.tilestore import open_store, read_rows
from geoseg_nb.tiling import (
    Source, TileSpec, cut_from, plan_tiles, repair, repair_store, skipped_scenes, tile, tile_counts, tiles_area)
from hypothesis import given, settings
from hypothesis import strategies as st

LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
OPTIONS = pairs.Options()
SOURCE = Source(partial(pairs.read, options=OPTIONS), pairs.sensors(OPTIONS), LEGEND)
SMALL = TileSpec(size=128, overlap=0, shard_tiles=8)


@pytest.fixture(scope="module")
def catalog():
    return pairs.catalog(sample_folder(), OPTIONS)


@pytest.fixture(scope="module")
def undisturbed(catalog, tmp_path_factory):
    return tile(SMALL, catalog, SOURCE, tmp_path_factory.mktemp("whole") / "floods.zarr")


def around(path, fill, margin=256):
    "A whole file by rasterio, with room for windows that hang over"
    with rasterio.open(path) as source:
        return np.pad(source.read(), ((0, 0), (0, margin), (0, margin)), constant_values=fill)


@pytest.mark.parametrize("how", [
    dict(), dict(size=128, overlap=16, order="shuffled", seed=3, shard_tiles=10), dict(size=200, overlap=40, edge="pad", shard_tiles=7),
    dict(size=100, overlap=0, edge="drop", codec="zstd", shard_tiles=1000)], ids=lambda h: h.get("edge") or h.get("order") or "default")
def test_every_tile_equals_what_rasterio_reads(catalog, tmp_path, how):
    store = tile(TileSpec(**how), catalog, SOURCE, tmp_path / "floods.zarr")
    images = {row.id: around(row.image, np.nan) for row in catalog.itertuples()}
    masks = {row.id: around(row.mask, -1)[0] for row in catalog.itertuples()}
    held, index = read_rows(store, range(len(store))), store.index
    for i, row in enumerate(index.itertuples()):
        area = np.s_[row.row : row.row + row.height, row.col : row.col + row.width]
        image, mask = images[row.scene][:, *area], masks[row.scene][area]
        np.testing.assert_array_equal(held["s1"][i], image, err_msg=row.id)
        np.testing.assert_array_equal(held["label"][i], np.where(mask == -1, 255, mask).astype("uint8"), err_msg=row.id)
        seen = np.isfinite(image).all(axis=0)
        assert row.valid == seen.mean() and row.labelled == (seen & (mask >= 0)).mean()
        assert (row.count_dry, row.count_water) == ((seen & (mask == 0)).sum(), (seen & (mask == 1)).sum())
    assert skipped_scenes(store)["scene"].tolist() == sorted(["Ghana_83483", "Paraguay_34417"], key=index["scene"].tolist().index)


def test_without_overlap_the_counts_are_those_of_the_files(catalog, undisturbed):
    "The right halves hold 882,680 valid labelled pixels in 8 chips: a figure from outside"
    index = undisturbed.index
    assert index.query("col >= 256")[["count_dry", "count_water"]].to_numpy().sum() == 882_680
    assert tile_counts(undisturbed)["skipped_scenes"] == ["Ghana_83483", "Paraguay_34417"]
    with rasterio.open(catalog["image"].iloc[0]) as source:
        west, south, east, north = source.bounds
    tiles = index[index["scene"] == catalog["id"].iloc[0]].total_bounds
    np.testing.assert_allclose(tiles, (west, south, east, north), atol=1e-9)


RUN = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_tiling as t
from geoseg_nb import tilestore, tiling
url, after, workers = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
real, count = tilestore.record_shard, []
def record(root, spec, k):
    count.append(k)
    if len(count) > after: os.kill(os.getpid(), signal.SIGKILL)
    return real(root, spec, k)
tilestore.record_shard = record
t.tile(t.SMALL, t.pairs.catalog(t.sample_folder(), t.OPTIONS), t.SOURCE, url, t.Execution(workers=workers))
"""


@pytest.mark.parametrize("after, workers", [(0, 1), (7, 1), (13, 2), (19, 1)])
def test_killed_and_run_again_gives_the_same_bytes(catalog, undisturbed, tmp_path, after, workers):
    "Fault 1: SIGKILL in a real process; the second run writes what is missing and nothing else"
    url = tmp_path / "floods.zarr"
    dead = subprocess.run([sys.executable, "-c", RUN, str(Path(__file__).parent), str(url), str(after), str(workers)],
                          timeout=120, stderr=subprocess.DEVNULL)
    assert dead.returncode == -9
    with pytest.raises(Refused, match="is not finished"):
        open_store(url)
    done = sorted(int(p.stem) for p in (url / "progress").glob("[0-9]*.json"))
    assert after - workers < len(done) <= after, "another worker may have been about to write its record"
    times = {k: (url / f"label/c/{k}/0/0").stat().st_mtime_ns for k in done if (url / f"label/c/{k}/0/0").exists()}
    again = tile(SMALL, catalog, SOURCE, url)
    assert {k: (url / f"label/c/{k}/0/0").stat().st_mtime_ns for k in times} == times
    assert folder_sha256(url) == folder_sha256(undisturbed.url) and again.hash == undisturbed.hash


HOLD = """
import sys, time
from geoseg_nb.storage import run_lock
with run_lock(sys.argv[1]): print("held", flush=True); time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(catalog, tmp_path):
    "Fault 18"
    url = tmp_path / "floods.zarr"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(url / "progress")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Refused, match=f"held by process {holder.pid}"):
        tile(SMALL, catalog[:1], SOURCE, url)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert len(tile(SMALL, catalog[:1], SOURCE, url)) == 16


@pytest.mark.parametrize("execution", [Execution(workers=1), Execution(workers=4), Execution(backend="dask", workers=2)],
                         ids=["one thread", "four threads", "dask"])
def test_every_execution_writes_the_same_bytes(catalog, undisturbed, tmp_path, execution):
    store = tile(SMALL, catalog, SOURCE, tmp_path / "floods.zarr", execution)
    assert folder_sha256(store.url) == folder_sha256(undisturbed.url)


def scene(height=96, width=160, dtype="float32", bands=2, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(-15, 4, (bands, height, width)) if dtype == "float32" else rng.integers(1, 200, (bands, height, width))).astype(dtype)


def memory_source(scenes, sensor, labels=None, valid=None):
    "A product that lives in memory; counts the pixels that are read"
    read = []

    def reader(row, bands=None, window=None):
        image, area = scenes[row["id"]], window.slices
        read.append((row["id"], window))
        grid = Grid(row["crs"], row["transform"], row["height"], row["width"]).window(*window)
        seen = np.ones(image.shape[1:], bool) if valid is None else valid
        label = None if labels is None else labels[row["id"]][area]
        return to_dataset([(sensor, image[:, *area])], grid, seen[area], label)

    table = [(name, "EPSG:32633", [10.0, 0, 4e5, 0, -10.0, 5e6], *image.shape[1:]) for name, image in scenes.items()]
    return pd.DataFrame(table, columns=["id", "crs", "transform", "height", "width"]), Source(reader, [sensor], LEGEND), read


FLOAT = Sensor("s1", (Band("VV"), Band("VH")), "float32")
BYTE = Sensor("rgb", (Band("r"), Band("g"), Band("b")), "uint8")


def test_nan_and_inf_are_kept_and_counted(tmp_path):
    "Fault 15"
    image = scene()
    image[0, :32, :32], image[1, 32:64, :32], image[:, 64:, :32] = np.nan, np.inf, -np.inf
    catalog, source, _ = memory_source({"a": image}, FLOAT, {"a": np.ones((96, 160), "int16")})
    store = tile(TileSpec(size=32, overlap=0), catalog, source, tmp_path / "t.zarr")
    assert store.index["valid"].tolist() == ([0.0] + [1.0] * 4) * 3
    assert store.index["count_water"].tolist() == ([0] + [1024] * 4) * 3
    np.testing.assert_array_equal(read_rows(store, [5])["s1"][0], image[:, 32:64, :32])


def test_integer_sensor_without_nodata_keeps_its_validity(tmp_path):
    image, seen = scene(dtype="uint8", bands=3), np.random.default_rng(1).random((96, 160)) < 0.7
    catalog, source, _ = memory_source({"a": image}, BYTE, valid=seen)
    store = tile(TileSpec(size=64, overlap=0, edge="pad"), catalog, source, tmp_path / "t.zarr")
    held = read_rows(store, range(len(store)))
    for i, row in enumerate(store.index.itertuples()):
        part = seen[row.row : row.row + 64, row.col : row.col + 64]
        np.testing.assert_array_equal(held["valid"][i, : part.shape[0], : part.shape[1]], part)
        assert held["valid"][i].sum() == part.sum() and row.valid == part.sum() / 64**2
    assert skipped_scenes(store)["reason"].tolist() == ["no labelled pixel where the image is valid"]


@pytest.mark.parametrize("sensor", [FLOAT, Sensor("s2", (Band("B02"), Band("B03")), "uint16", nodata=0)], ids=["float", "nodata"])
def test_what_the_reader_calls_invalid_is_invalid_in_the_store(tmp_path, sensor):
    image, seen = scene(dtype=sensor.dtype), np.random.default_rng(2).random((96, 160)) < 0.5
    catalog, source, _ = memory_source({"a": image}, sensor, valid=seen)
    store = tile(TileSpec(size=32, overlap=0), catalog, source, tmp_path / "t.zarr")
    held = read_rows(store, [4])
    np.testing.assert_array_equal(valid_pixels(store.manifest, held)[0], seen[:32, 128:])
    np.testing.assert_array_equal(held[sensor.name][0][:, seen[:32, 128:]], image[:, :32, 128:][:, seen[:32, 128:]])


def test_a_label_outside_the_legend_names_scene_and_code(tmp_path):
    "Fault 16"
    catalog, source, _ = memory_source({"a": scene(), "b": scene()}, FLOAT, {"a": np.ones((96, 160), "int16"), "b": np.full((96, 160), 7, "int16")})
    with pytest.raises(GeosegError, match=r"b: codes 7 .* not in the legend"):
        tile(TileSpec(size=32, overlap=0), catalog, source, tmp_path / "t.zarr")
    assert not (tmp_path / "t.zarr" / "MANIFEST.json").exists()


def test_bad_scenes_are_skipped_only_if_allowed_and_named(catalog, tmp_path):
    "Fault 9 behind the catalog's back: a file that went bad after it was listed"
    broken = catalog.copy()
    broken.loc[3, "image"] = str(tmp_path / "gone.tif")
    with pytest.raises(GeosegError, match="Nigeria_812045.*gone.tif"):
        tile(SMALL, broken, SOURCE, tmp_path / "t.zarr")
    with pytest.raises(TooManyFailures, match="Nigeria_812045"):
        tile(SMALL, broken, SOURCE, tmp_path / "t.zarr", Execution(on_error="skip"))
    store = tile(SMALL, broken, SOURCE, tmp_path / "t.zarr", Execution(on_error="skip", max_failures=1))
    assert skipped_scenes(store).set_index("scene")["reason"]["Nigeria_812045"].endswith("no such file")
    assert np.isnan(read_rows(store, [48])["s1"]).all() and len(store) == 160


def test_duplicate_ids_and_an_empty_catalog_are_refused(catalog, tmp_path):
    with pytest.raises(GeosegError, match="lists 2 ids twice: Ghana_53713, Ghana_83483"):
        tile(SMALL, pd.concat([catalog, catalog[:2]]), SOURCE, tmp_path / "t.zarr")
    with pytest.raises(Refused, match="the catalog is empty"):
        tile(SMALL, catalog[:0], SOURCE, tmp_path / "t.zarr")
    assert not (tmp_path / "t.zarr").exists()


def test_bands_are_chosen_by_name(catalog, undisturbed, tmp_path):
    store = tile(SMALL.replace(bands=["VH"]), catalog[:1], SOURCE, tmp_path / "t.zarr")
    assert store.sensors[0].names == ["VH"]
    np.testing.assert_array_equal(read_rows(store, range(16))["s1"], read_rows(undisturbed, range(16))["s1"][:, 1:])


def test_other_spec_or_other_scenes_begin_anew(catalog, undisturbed, tmp_path):
    url = tmp_path / "floods.zarr"
    first = tile(SMALL, catalog[:2], SOURCE, url)
    assert tile(SMALL, catalog[:3], SOURCE, url).hash != first.hash
    assert folder_sha256(tile(SMALL, catalog, SOURCE, url).url) == folder_sha256(undisturbed.url)
    with pytest.raises(Refused, match="cut from other scenes, by another spec"):
        repair(SMALL.replace(size=64), catalog, SOURCE, url)


def test_a_label_corrected_in_place_gives_another_store(catalog, tmp_path):
    url, two, path = tmp_path / "floods.zarr", catalog[:2].copy(), tmp_path / "label.tif"
    with rasterio.open(two["mask"].iloc[0]) as source:
        codes, profile = source.read(1), source.profile | {"compress": None}
    two["mask"] = [str(path), two["mask"].iloc[1]]

    def label(values):
        with rasterio.open(path, "w", **profile) as target:
            target.write(values, 1)
        return path.stat().st_size

    size = label(codes)
    first = tile(SMALL, two, SOURCE, url)
    moved = two.assign(mask=[str(path.rename(tmp_path / "moved.tif")), two["mask"].iloc[1]])
    assert tile(SMALL, moved, SOURCE, url).hash == first.hash, "the same bytes at another place"
    water = tile_counts(first)["pixels"]["water"]
    assert label(1 - np.abs(codes)) == size
    second = tile(SMALL, two, SOURCE, url)
    assert second.hash != first.hash and tile_counts(second)["pixels"]["water"] != water


def watched_source(seen):
    return SOURCE._replace(reader=lambda row, **how: seen.append(row["id"]) or SOURCE.reader(row, **how))


@pytest.mark.parametrize("order", ["scene", "shuffled"])
def test_repair_of_a_store_with_skipped_scenes_keeps_what_was_recorded(catalog, tmp_path, order):
    "Also where the scene could be read by now: its tiles were stored without pixels, with the reason"
    url, spec, seen = tmp_path / "t.zarr", SMALL.replace(order=order, shard_tiles=5), []

    def failing(row, **how):
        if row["id"] == "Nigeria_812045": raise GeosegError("Nigeria_812045: disk gone")
        return SOURCE.reader(row, **how)

    store = tile(spec, catalog, SOURCE._replace(reader=failing), url, Execution(on_error="skip", max_failures=1))
    before, index = folder_sha256(url), store.index
    touched = sorted({k // 5 for k in index.index[index["scene"] == "Nigeria_812045"]})
    files = [file for k in touched for file in store.manifest.shards[k].files if (url / file).is_file()]
    assert len(touched) > 3 and files
    for file in files: (url / file).write_bytes(b"?")
    assert sorted(repair(spec, catalog, watched_source(seen), url)["file"]) == sorted(files)
    assert folder_sha256(url) == before and "Nigeria_812045" not in seen and seen
    assert set(open_store(url).index.query("problem != ''")["problem"]) == {"Nigeria_812045: disk gone"}


@pytest.mark.parametrize("error", [OSError(5, "disk gone"), GeosegError("cut off")])
def test_a_scene_whose_file_cannot_be_read_is_skipped_by_name(catalog, tmp_path, error):
    def failing(row, **how):
        if row["id"] == "Nigeria_812045": raise error
        return SOURCE.reader(row, **how)

    store = tile(SMALL, catalog, SOURCE._replace(reader=failing), tmp_path / "t.zarr", Execution(on_error="skip", max_failures=1))
    [told] = set(store.index["problem"]) - {""}
    assert str(error) in told


@pytest.mark.parametrize("error", [TypeError("unexpected argument"), KeyError("no such band"), RuntimeError("codec")])
def test_a_fault_of_the_reader_itself_stops_the_tiling_with_its_own_words(catalog, tmp_path, error):
    "Skipped, it would leave a store without its scenes for good"
    def faulty(row, **how): raise error
    with pytest.raises(GeosegError, match=rf"shard \d+: {type(error).__name__}: {error}"):
        tile(SMALL, catalog, SOURCE._replace(reader=faulty), tmp_path / "t.zarr", Execution(on_error="skip", max_failures=9))


def test_the_reason_of_a_skipped_scene_holds_no_secret(catalog, tmp_path, monkeypatch):
    "It goes into the index of the store, and with it into a bucket"
    monkeypatch.setenv("SCENES_TOKEN", "canary-7f31")

    def failing(row, **how):
        if row["id"] == "Nigeria_812045": raise GeosegError("https://me:pw@example.org/scene.tif?key=canary-7f31 answers 403")
        return SOURCE.reader(row, **how)

    store = tile(SMALL, catalog, SOURCE._replace(reader=failing), tmp_path / "t.zarr", Execution(on_error="skip", max_failures=1))
    [told] = set(store.index["problem"]) - {""}
    assert told == "https://***@example.org/scene.tif?key=*** answers 403"


@pytest.fixture
def run(catalog, tmp_path):
    "A run of which the catalog and the tile job are done"
    folder, spec = tmp_path / "run", CatalogSpec()
    job = open_job("10_catalog", folder, spec)
    record(job, {}, {"catalog": write_catalog(catalog, job.folder / "catalog.parquet"), **hand_over(spec)})
    job = open_job("22_tile", folder, SMALL)
    tile(*cut_from(job.folder / "tiles.zarr"), job.folder / "tiles.zarr")
    return folder


def test_a_store_of_a_run_is_repaired_by_its_path_alone(run):
    url = run / "22_tile" / "tiles.zarr"
    whole = folder_sha256(url)
    (url / "s1/c/4/0/0/0").unlink()
    (url / "label/c/15/0/0").write_bytes(b"?")
    mended = repair_store(str(url))
    assert mended[["shard", "file"]].values.tolist() == [[4, "s1/c/4/0/0/0"], [15, "label/c/15/0/0"]]
    assert folder_sha256(url) == whole and repair_store(url).empty and list(mended) == ["shard", "file", "problem"]


def test_a_store_whose_run_does_not_tell_is_refused_with_the_fix(run, undisturbed, tmp_path):
    url = run / "22_tile" / "tiles.zarr"
    for stray in (undisturbed.url, "s3://bucket/runs/22_tile/tiles.zarr"):
        with pytest.raises(Refused, match="lies in no run.*repair.spec, catalog, source, url."): repair_store(stray)
    with pytest.raises(Refused, match="does not exist"): verify(tmp_path / "nowhere.zarr")
    open_job("22_tile", run, SMALL.replace(size=64))
    with pytest.raises(Refused, match="by another spec"): repair_store(url)
    (run / "10_catalog" / "result.json").unlink()
    with pytest.raises(Refused, match="no complete 10_catalog in .*: run `geoseg run catalog"): repair_store(url)


def test_a_killed_repair_leaves_a_store_that_opens(run):
    "What is left of a repair is a lock, and a lock is no progress"
    url = run / "22_tile" / "tiles.zarr"
    (url / "progress").mkdir()
    (url / "progress" / ".lock").touch()
    before = (url / "MANIFEST.json").stat().st_mtime_ns
    seen = []
    assert len(tile(SMALL, cut_from(url)[1], watched_source(seen)._replace(made=cut_from(url)[2].made), url)) == 160
    assert not seen and (url / "MANIFEST.json").stat().st_mtime_ns == before


def test_options_of_the_product_are_part_of_the_store_s_identity(catalog, tmp_path):
    from geoseg_nb.products import bound_source
    from geoseg_nb.tiling import store_spec

    identity = lambda source: store_spec(SMALL, catalog, source, tmp_path / "a.zarr", 160).source  # noqa: E731
    first = identity(bound_source("pairs", {}, LEGEND))
    assert identity(bound_source("pairs", OPTIONS, LEGEND)) == first == identity(bound_source("pairs", {"on_missing": "skip"}, LEGEND))
    changed = [{"place": "{place}_{chip}"}, {"unit": "1"}, {"nodata": -9999}, {"masks": ""}]
    others = [identity(bound_source("pairs", options, LEGEND)) for options in changed]
    assert len({str(found) for found in [first, *others]}) == 5
    (table := tmp_path / "codes.csv").write_text("1,water")
    asked = lambda path: identity(SOURCE._replace(made={"product": "mine", "options": {"codes": str(path)}}))  # noqa: E731
    second = asked(table)
    assert asked(table.rename(tmp_path / "moved.csv")) == second
    (tmp_path / "moved.csv").write_text("2,water")
    assert asked(tmp_path / "moved.csv") != second


def test_repair_reads_only_the_scenes_it_needs(catalog, undisturbed, tmp_path):
    url, seen = tmp_path / "floods.zarr", []
    tile(SMALL, catalog, SOURCE, url)
    for name in ("s1/c/4/0/0/0", "label/c/15/0/0"):
        (url / name).unlink()
    assert repair(SMALL, catalog, watched_source(seen), url)["shard"].tolist() == [4, 15]
    assert folder_sha256(url) == folder_sha256(undisturbed.url) and seen == [catalog["id"].iloc[2], catalog["id"].iloc[7]]


def test_a_large_scene_is_read_about_once(tmp_path):
    "Overlap excepted, strips share nothing; a shard of 64 tiles is less than two rows of this scene"
    wide = scene(height=1536, width=1280)
    catalog, source, read = memory_source({"wide": wide}, FLOAT)
    tile(TileSpec(size=64, overlap=0, shard_tiles=8), catalog, source, tmp_path / "t.zarr", Execution(workers=1))
    assert sum(w.height * w.width for _, w in read) == wide[0].size and max(w.height for _, w in read) <= 512
    read.clear()
    tile(TileSpec(size=64, overlap=32, shard_tiles=64), catalog, source, tmp_path / "o.zarr", Execution(workers=1))
    assert sum(w.height * w.width for _, w in read) < 1.35 * wide[0].size


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5), size=st.integers(1, 40),
       overlap=st.integers(0, 39), edge=st.sampled_from(["shift", "pad", "drop"]), order=st.sampled_from(["scene", "shuffled"]),
       shard_tiles=st.integers(1, 50), seed=st.integers(0, 9))
def test_a_plan_holds_every_tile_once(shapes, size, overlap, edge, order, shard_tiles, seed):
    "Batches partition the shards, shards the tiles; each area holds its tiles and stays in the scene"
    if overlap >= size or edge == "shift" and min(min(s) for s in shapes) < size or edge == "drop" and max(min(s) for s in shapes) < size:
        return
    catalog = pd.DataFrame([(f"s{i}", "EPSG:32633", [10.0, 0, 4e5, 0, -10.0, 5e6], h, w) for i, (h, w) in enumerate(shapes)],
                           columns=["id", "crs", "transform", "height", "width"])
    spec = TileSpec(size=size, overlap=overlap, edge=edge, order=order, shard_tiles=shard_tiles, seed=seed)
    index, batches = plan_tiles(spec, catalog)
    assert index["id"].is_unique and [k for b in batches for k in b.shards] == list(range(-(-len(index) // shard_tiles)))
    assert pd.concat([b.rows for b in batches])["id"].tolist() == index["id"].tolist()
    for batch in batches:
        assert set(batch.scenes["id"]) == set(batch.rows["scene"])
        for name, rows in batch.rows.groupby("scene"):
            height, width = catalog.set_index("id").loc[name, ["height", "width"]]
            area = tiles_area(rows, height, width)
            assert 0 <= area.row and area.row + area.height <= height and area.col + area.width <= width
            assert area.row <= rows["row"].min() and area.row + area.height >= min((rows["row"] + size).max(), height)


def test_a_prefix_of_a_shuffled_store_is_a_sample_of_all_scenes(catalog):
    index, _ = plan_tiles(SMALL.replace(order="shuffled"), catalog)
    assert index["scene"][:80].nunique() == 10
    again, _ = plan_tiles(SMALL.replace(order="shuffled"), catalog)
    other, _ = plan_tiles(SMALL.replace(order="shuffled", seed=1), catalog)
    assert index["id"].tolist() == again["id"].tolist() != other["id"].tolist()


def test_a_coarser_sensor_is_stored_in_its_own_pixels_and_its_nodata_reaches_all_it_spans(tmp_path):
    "Three sizes of pixel, one invalid pixel of each, one pixel that only the reader calls invalid"
    rng = np.random.default_rng(5)
    grid = Grid("EPSG:32633", (10, 0, 500000, 0, -10, 5000000), 48, 96)
    fine, coarse = rng.normal(size=(2, 48, 96)).astype("float32"), rng.integers(1, 99, (1, 16, 32)).astype("int16")
    fine[1, 5, 7], coarse[0, 10, 20] = np.nan, -1
    sensors = [Sensor("fine", (Band("a"), Band("b"))), Sensor("coarse", (Band("c"),), "int16", -1, ratio=3)]
    scenes = pd.DataFrame([{"id": "s", **grid.as_dict()}])
    seen = np.ones((48, 96), bool)
    seen[40, 90] = False

    def reader(row, bands=None, window=None):
        images = [(sensors[0], fine[:, *window.slices]), (sensors[1], coarse.repeat(3, 1).repeat(3, 2)[:, *window.slices])]
        return to_dataset(images, grid.window(*window), seen[window.slices], np.zeros((window.height, window.width), "int16"))

    store = tile(TileSpec(size=24, overlap=12, shard_tiles=5), scenes, Source(reader, sensors, LEGEND), tmp_path / "two.zarr")
    held = read_rows(store, range(len(store)))
    wanted = np.isfinite(fine).all(0) & (coarse[0] != -1).repeat(3, 0).repeat(3, 1) & seen
    assert "valid" not in held and held["coarse"].shape == (len(store), 1, 8, 8)
    for i, row in enumerate(store.index.itertuples()):
        area = np.s_[row.row : row.row + 24, row.col : row.col + 24]
        assert np.array_equal(held["coarse"][i, 0], coarse[0, row.row // 3 : row.row // 3 + 8, row.col // 3 : row.col // 3 + 8])
        assert np.array_equal(valid_pixels(store.manifest, {n: a[i : i + 1] for n, a in held.items()})[0], wanted[area])
        assert row.valid == wanted[area].mean()
    assert open_store(store.url).sensors[1].ratio == 3


def test_every_file_of_a_scene_is_part_of_the_store_s_identity(catalog, tmp_path):
    from geoseg_nb.tiling import file_columns, store_spec

    extra = tmp_path / "dem.tif"
    extra.write_bytes(b"1")
    with_dem = catalog.assign(dem=str(extra), resampled="dem bilinear", note="S1")
    assert set(file_columns(with_dem)) == {"image", "mask", "dem"}
    identity = lambda table: store_spec(SMALL, table, SOURCE, tmp_path / "a.zarr", 160).source  # noqa: E731
    first = identity(with_dem)
    extra.write_bytes(b"2")
    assert identity(with_dem)["files"] != first["files"] and identity(with_dem)["scenes"] == first["scenes"]
    assert identity(with_dem.assign(resampled="dem cubic"))["scenes"] != first["scenes"]
