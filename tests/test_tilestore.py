"The tile store under faults: every shape, every killed writer, every damaged byte"
import multiprocessing
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas
import numpy as np
import pytest
import xarray as xr
import zarr
from geoseg_nb import tilestore
from geoseg_nb.core import Band, GeosegError, Refused, Sensor, make_legend
from geoseg_nb.layout import StoreSpec, array_plans, shard_count, shard_rows, valid_pixels
from geoseg_nb.repair import replace_shard, verify
from geoseg_nb.storage import folder_sha256
from geoseg_nb.tilestore import (
    cached, create_store, finish_store, open_store, read_rows, read_shard, shard_done, write_shard)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
S1 = Sensor("s1", (Band("VV", "dB"), Band("VH", "dB")), "float32")
S2 = Sensor("s2", (Band("B02"), Band("B03"), Band("B04")), "uint16", nodata=0)
RGB = Sensor("rgb", (Band("red"), Band("green"), Band("blue")), "uint8")


def make_spec(tiles=20, size=8, shard_tiles=6, sensors=(S1,), **more):
    return StoreSpec(name="t", size=size, tiles=tiles, shard_tiles=shard_tiles, sensors=[s.as_dict() for s in sensors],
                     legend=LEGEND.as_dict(), **more)


def content(spec, seed=0):
    "Random arrays with NaN, inf, nodata and whole tiles of fill; index rows"
    rng, arrays = np.random.default_rng(seed), {}
    for name, plan in array_plans(spec).items():
        noise = rng.normal(-15, 4, plan.shape) if np.dtype(plan.dtype).kind == "f" else rng.integers(0, 2, plan.shape)
        arrays[name] = noise.astype(plan.dtype)
        arrays[name][rng.random(plan.shape) < 0.05] = plan.fill
        arrays[name][rng.random(spec.tiles) < 0.2] = plan.fill
    if "s1" in arrays:
        arrays["s1"][rng.random(arrays["s1"].shape) < 0.01] = np.inf
    rows = geopandas.GeoDataFrame({"id": [f"scene_{i}" for i in range(spec.tiles)], "valid": rng.random(spec.tiles)},
                                  geometry=geopandas.points_from_xy(range(spec.tiles), [1] * spec.tiles), crs="EPSG:4326")
    return arrays, rows


def write(url, spec, shards=None, seed=0):
    arrays, rows = content(spec, seed)
    create_store(url, spec)
    for k in range(shard_count(spec)) if shards is None else shards:
        part = slice(*shard_rows(spec, k))
        write_shard(url, k, {name: a[part] for name, a in arrays.items()}, rows[part])
    return arrays, rows


def finished(url, spec, seed=0):
    arrays, rows = write(url, spec, seed=seed)
    finish_store(url)
    return arrays, rows


sensor_sets = st.lists(st.sampled_from([S1, S2, RGB]), min_size=1, max_size=3, unique_by=lambda s: s.name)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tiles=st.integers(1, 17), size=st.integers(1, 9), shard_tiles=st.integers(1, 20), sensors=sensor_sets,
       codec=st.sampled_from(["lz4", "zstd", "none"]), data=st.data())
def test_what_goes_in_comes_out(tmp_path_factory, tiles, size, shard_tiles, sensors, codec, data):
    "Any shape, any order of writing, read back by us, by plain zarr and by xarray"
    url = tmp_path_factory.mktemp("t") / "t.zarr"
    spec = make_spec(tiles, size, shard_tiles, sensors, codec=codec)
    order = data.draw(st.permutations(range(shard_count(spec))))
    arrays, rows = write(url, spec, order)
    finish_store(url)
    store = open_store(url)
    wanted = data.draw(st.lists(st.integers(0, tiles - 1), max_size=8))
    mine = read_rows(store, wanted)
    group, dataset = zarr.open_group(url, mode="r"), xr.open_zarr(url)
    for name, array in arrays.items():
        assert mine[name].dtype == array.dtype
        np.testing.assert_array_equal(mine[name], array[wanted])
        np.testing.assert_array_equal(group[name][:], array)
        np.testing.assert_array_equal(dataset[name].values, array)
    assert store.index["id"].tolist() == rows["id"].tolist() == dataset["tile"].values.tolist()
    np.testing.assert_array_equal(valid_pixels(spec, arrays), plain_validity(spec, arrays))


def plain_validity(spec, arrays):
    "The definition, pixel by pixel"
    n, size = spec.tiles, spec.size
    seen = arrays.get("valid", np.ones((n, size, size), bool)).copy()
    for i, y, x in np.ndindex(n, size, size):
        if "s1" in arrays:
            seen[i, y, x] &= bool(np.isfinite(arrays["s1"][i, :, y, x]).all())
        if "s2" in arrays:
            seen[i, y, x] &= 0 not in arrays["s2"][i, :, y, x].tolist()
    return seen


@pytest.mark.parametrize("consolidated", [None, True])
def test_xarray_opens_it_without_a_warning(tmp_path, consolidated):
    finished(tmp_path / "t.zarr", make_spec())
    with warnings.catch_warnings(action="error"):
        dataset = xr.open_zarr(tmp_path / "t.zarr", consolidated=consolidated)
    assert dataset["s1"].attrs["units"] == "dB" and dataset["s1_band"].values.tolist() == ["VV", "VH"]
    assert dataset["label"].dtype == "uint8" and dataset["label"].attrs["flag_meanings"] == "dry water"


def test_without_consolidated_metadata_only_the_side_files_are_remarked_on(tmp_path):
    finished(tmp_path / "t.zarr", make_spec())
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        plain = xr.open_zarr(tmp_path / "t.zarr", consolidated=False)
    assert {str(w.message).split()[2] for w in heard} <= {"index.parquet", "MANIFEST.json"}
    xr.testing.assert_identical(plain.compute(), xr.open_zarr(tmp_path / "t.zarr").compute())


def test_integer_sensor_without_nodata_brings_a_valid_array():
    assert list(array_plans(make_spec(sensors=[RGB]))) == ["rgb", "label", "valid"]
    assert list(array_plans(make_spec(sensors=[S1, S2]))) == ["s1", "s2", "label"]


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
def test_tiles_of_nothing_are_stored_and_invalid(tmp_path, fill):
    "Fault 15: a whole shard of fill has no file, and is as much there as any other"
    spec = make_spec(tiles=12)
    arrays, rows = content(spec)
    arrays["s1"][:6], arrays["label"][:6] = fill, 255
    create_store(tmp_path / "t.zarr", spec)
    for k in range(2):
        part = slice(*shard_rows(spec, k))
        write_shard(tmp_path / "t.zarr", k, {name: a[part] for name, a in arrays.items()}, rows[part])
    finish_store(tmp_path / "t.zarr")
    store = open_store(tmp_path / "t.zarr")
    np.testing.assert_array_equal(read_shard(store, 0)["s1"], arrays["s1"][:6])
    assert not valid_pixels(spec, read_shard(store, 0)).any() and verify(store.url).empty
    assert (store.manifest.shards[0].bytes["s1/c/0/0/0/0"] == 0) == bool(np.isnan(fill))


WRITER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_tilestore as t
from geoseg_nb import storage, tilestore
url, shard, step = sys.argv[2], int(sys.argv[3]), sys.argv[4]
def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
spec = t.make_spec()
if step == "before": arm = lambda: setattr(tilestore, "open_array", die)
if step == "torn":
    real = tilestore.open_array
    def torn(path, *a, **k):
        array, file = real(path, *a, **k), path / "c" / str(shard) / "0/0/0"
        class Half:
            def __setitem__(self, key, value):
                array[key] = value
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]); die()
        return Half()
    arm = lambda: setattr(tilestore, "open_array", torn)
if step == "record": arm = lambda: setattr(tilestore, "record_shard", die)
if step == "seal": arm = lambda: setattr(tilestore, "consolidate", die)
if step == "manifest":
    real_replace = os.replace
    arm = lambda: setattr(os, "replace", lambda a, b: die() if str(b).endswith("MANIFEST.json") else real_replace(a, b))
if step == "sweep": arm = lambda: setattr(tilestore, "sweep", die)
for k in range(t.shard_count(spec)):
    if k == shard: arm()
    if tilestore.shard_done(url, k) is None: t.write(url, spec, [k])
if shard >= t.shard_count(spec): arm()
tilestore.finish_store(url)
"""


@pytest.mark.parametrize("shard, step", [(0, "before"), (1, "record"), (2, "torn"), (3, "torn"), (9, "seal"), (9, "manifest"), (9, "sweep")])
def test_killed_and_run_again_gives_the_same_bytes(tmp_path, shard, step):
    "Faults 1 and 21: SIGKILL in a real process, at every kind of moment"
    spec, url = make_spec(), tmp_path / "killed.zarr"
    finished(tmp_path / "undisturbed.zarr", spec)
    here = str(Path(__file__).parent)
    dead = subprocess.run([sys.executable, "-c", WRITER, here, str(url), str(shard), step], timeout=120)
    assert dead.returncode == -9
    if step != "sweep":
        with pytest.raises(Refused, match="has no MANIFEST.json"):
            open_store(url)
    create_store(url, spec)
    kept = [k for k in range(shard_count(spec)) if shard_done(url, k)]
    assert kept == list(range(min(shard, shard_count(spec))))
    before = {k: (url / f"s1/c/{k}/0/0/0").stat().st_mtime_ns for k in kept}
    if not (url / "MANIFEST.json").exists():
        write(url, spec, [k for k in range(shard_count(spec)) if k not in kept])
    finish_store(url)
    assert {k: (url / f"s1/c/{k}/0/0/0").stat().st_mtime_ns for k in kept} == before
    assert folder_sha256(url) == folder_sha256(tmp_path / "undisturbed.zarr")
    assert not [p.name for p in url.rglob("*") if p.name.startswith(".tmp") or p.name == "progress"]


def test_less_than_a_shard_cannot_be_written(tmp_path):
    "Fault 19: the chunk of a Dask array that is smaller than a shard"
    import dask.array as da

    spec = make_spec()
    arrays, rows = content(spec)
    create_store(tmp_path / "t.zarr", spec)
    for block in da.from_array(arrays["s1"], chunks=(4, 2, 8, 8)).to_delayed().ravel()[:2]:
        with pytest.raises(GeosegError, match="a shard is written whole or not at all"):
            write_shard(tmp_path / "t.zarr", 0, {"s1": block.compute(), "label": arrays["label"][:4]}, rows[:4])
    assert not (tmp_path / "t.zarr/s1/c").exists() and shard_done(tmp_path / "t.zarr", 0) is None


@pytest.mark.parametrize("change, message", [
    (lambda a, r: ({**a, "s1": a["s1"].astype("float64")}, r), "s1 is float64"),
    (lambda a, r: ({"s1": a["s1"]}, r), "got arrays"),
    (lambda a, r: (a, r[:5]), "5 index rows; needs 6"),
    (lambda a, r: (a, r.assign(id="one")), "each with its own id"),
])
def test_a_wrong_shard_is_refused_before_a_byte_is_written(tmp_path, change, message):
    spec = make_spec()
    arrays, rows = content(spec)
    create_store(tmp_path / "t.zarr", spec)
    with pytest.raises(GeosegError, match=message):
        write_shard(tmp_path / "t.zarr", 0, *change({name: a[:6] for name, a in arrays.items()}, rows[:6]))
    assert not (tmp_path / "t.zarr/s1/c").exists()


def test_no_secret_goes_into_a_store(tmp_path, monkeypatch):
    "Neither by its spec nor by the rows of its index, which is compressed so that nobody finds it there later"
    monkeypatch.setenv("SCENES_PASSWORD", "canary-7f31")
    with pytest.raises(Refused, match="store t: source holds a credential") as caught:
        create_store(tmp_path / "t.zarr", make_spec(source={"from": "https://example.org/?key=canary-7f31"}))
    assert not (tmp_path / "t.zarr").exists() and "canary" not in str(caught.value)
    arrays, rows = content(make_spec())
    create_store(tmp_path / "t.zarr", make_spec())
    for column in ("id", "scene"):
        wrong = rows[:6].assign(**{column: [f"canary-7f31-{i}" for i in range(6)]})
        with pytest.raises(Refused, match=f"store t, shard 0: column {column} holds a credential") as caught:
            write_shard(tmp_path / "t.zarr", 0, {name: a[:6] for name, a in arrays.items()}, wrong)
        assert "canary" not in str(caught.value)
    assert not (tmp_path / "t.zarr/s1/c").exists() and [p.name for p in (tmp_path / "t.zarr/progress").iterdir()] == ["spec.json"]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"canary" in p.read_bytes()]


def test_unfinished_store_is_refused_and_says_which_shards_are_missing(tmp_path):
    write(tmp_path / "t.zarr", make_spec(), [0, 2])
    with pytest.raises(Refused, match=r"2 of 4 shards are not written \(1, 3\)"):
        finish_store(tmp_path / "t.zarr")
    with pytest.raises(Refused, match="has no MANIFEST.json"):
        open_store(tmp_path / "t.zarr")
    with pytest.raises(Refused, match="does not exist"):
        open_store(tmp_path / "nowhere.zarr")


def test_fifty_mutations_are_all_found_and_mended(tmp_path):
    "Faults 20, 21, 22: flipped, truncated, deleted, swapped"
    spec, url = make_spec(tiles=24), tmp_path / "t.zarr"
    arrays, rows = finished(url, spec)
    whole, rng = folder_sha256(url), np.random.default_rng(1)
    files = sorted(p for name in ("s1", "label") for p in (url / name / "c").rglob("*") if p.is_file())
    for i in range(50):
        file, other = (files[j] for j in rng.choice(len(files), 2, replace=False))
        data = file.read_bytes()
        at, kind = int(rng.integers(len(data))), ("flip", "cut", "delete", "swap", "add")[i % 5]
        if kind == "flip": file.write_bytes(data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :])
        if kind == "cut": file.write_bytes(data[:at])
        if kind == "delete": file.unlink()
        if kind == "swap": file.write_bytes(other.read_bytes()), other.write_bytes(data)
        if kind == "add": file.write_bytes(data + b"\0")
        found = verify(url)
        assert file.relative_to(url).as_posix() in set(found["file"]), (i, kind)
        for k in set(found["shard"]):
            part = slice(*shard_rows(spec, k))
            replace_shard(url, k, {name: a[part] for name, a in arrays.items()}, rows[part])
        assert folder_sha256(url) == whole, (i, kind)


@pytest.mark.parametrize("name", ["zarr.json", "s1/zarr.json", "index.parquet", "tile/c/0"])
def test_damaged_metadata_is_found(tmp_path, name):
    finished(tmp_path / "t.zarr", make_spec())
    file = tmp_path / "t.zarr" / name
    file.write_bytes(file.read_bytes().replace(file.read_bytes()[10:11], b"?", 1))
    assert verify(tmp_path / "t.zarr")[["shard", "file"]].values.tolist() == [[-1, name]]
    file.unlink()
    with pytest.raises(GeosegError, match=f"{name} missing"):
        open_store(tmp_path / "t.zarr")


@pytest.mark.parametrize("damage, message", [
    (lambda f: f.unlink(), "label/c/1/0/0 missing"),
    (lambda f: f.write_bytes(f.read_bytes()[:-3]), r"label/c/1/0/0 \d+ bytes, should be \d+"),
])
def test_missing_and_truncated_shards_are_named(tmp_path, damage, message):
    finished(tmp_path / "t.zarr", make_spec())
    reader = open_store(tmp_path / "t.zarr")
    damage(tmp_path / "t.zarr/label/c/1/0/0")
    with pytest.raises(GeosegError, match=message):
        open_store(tmp_path / "t.zarr")
    with pytest.raises(GeosegError, match=message):
        read_shard(reader, 1)
    read_shard(reader, 0)


def test_a_stray_file_of_a_shard_of_fill_is_taken_away(tmp_path):
    spec = make_spec()
    arrays, rows = content(spec)
    arrays["label"][6:12] = 255
    create_store(tmp_path / "t.zarr", spec)
    parts = [slice(*shard_rows(spec, k)) for k in range(shard_count(spec))]
    for k, part in enumerate(parts): write_shard(tmp_path / "t.zarr", k, {name: a[part] for name, a in arrays.items()}, rows[part])
    finish_store(tmp_path / "t.zarr")
    (tmp_path / "t.zarr/label/c/1/0").mkdir(parents=True)
    (tmp_path / "t.zarr/label/c/1/0/0").write_bytes(b"stray")
    assert verify(tmp_path / "t.zarr")["file"].tolist() == ["label/c/1/0/0"]
    replace_shard(tmp_path / "t.zarr", 1, {name: a[parts[1]] for name, a in arrays.items()}, rows[parts[1]])
    assert verify(tmp_path / "t.zarr").empty and not (tmp_path / "t.zarr/label/c/1/0/0").exists()


def test_a_file_that_vanishes_while_its_shard_is_read_is_no_fill(tmp_path, monkeypatch):
    finished(tmp_path / "t.zarr", make_spec())
    reader, real = open_store(tmp_path / "t.zarr"), tilestore._require_unchanged
    def then_lost(store, k):
        real(store, k)
        (tmp_path / "t.zarr/s1/c/1/0/0/0").unlink()
    monkeypatch.setattr(tilestore, "_require_unchanged", then_lost)
    with pytest.raises(GeosegError, match=r"s1/c/1/0/0/0 cannot be decoded \(0 bytes, should be \d+"): read_shard(reader, 1)


def test_a_flipped_byte_is_named_when_read(tmp_path):
    finished(tmp_path / "t.zarr", make_spec(codec="none"))
    file = tmp_path / "t.zarr/s1/c/2/0/0/0"
    data = file.read_bytes()
    file.write_bytes(data[:40] + bytes([data[40] ^ 4]) + data[41:])
    with pytest.raises(GeosegError, match="s1/c/2/0/0/0 cannot be decoded"):
        read_shard(open_store(tmp_path / "t.zarr"), 2)


def test_a_store_rewritten_under_its_reader_stops_it(tmp_path):
    "Fault 23"
    finished(tmp_path / "t.zarr", make_spec())
    reader = open_store(tmp_path / "t.zarr")
    finished(tmp_path / "t.zarr", make_spec(seed=1), seed=1)
    with pytest.raises(GeosegError, match="was changed after it was opened"):
        read_shard(reader, 0)
    assert open_store(tmp_path / "t.zarr").hash != reader.hash


def test_another_spec_starts_afresh_and_nothing_survives(tmp_path):
    spec, other = make_spec(), make_spec(sensors=[S2], codec="zstd")
    finished(tmp_path / "t.zarr", spec)
    cached(open_store(tmp_path / "t.zarr"), "mean", lambda: 1.0)
    finished(tmp_path / "t.zarr", other)
    finished(tmp_path / "fresh.zarr", other)
    assert folder_sha256(tmp_path / "t.zarr") == folder_sha256(tmp_path / "fresh.zarr")


@pytest.mark.parametrize("contents", [{"notes.txt": "mine"}, {"zarr.json": '{"zarr_format": 3, "node_type": "group", "attributes": {}}'}])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, contents):
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(Refused, match="is no tile store"):
        create_store(tmp_path, make_spec())
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == contents


@pytest.mark.parametrize("name", ["label", "valid", "tile", "y", "../s1", "a/b"])
def test_a_sensor_cannot_take_a_name_of_the_store(name):
    with pytest.raises(ValueError, match="sensor names|use 1 to 128"):
        make_spec(sensors=[Sensor(name, (Band("b"),))])


def test_ids_given_twice_are_refused(tmp_path):
    "Fault 17"
    spec = make_spec(tiles=12)
    arrays, rows = content(spec)
    create_store(tmp_path / "t.zarr", spec)
    for k in range(2):
        part = slice(*shard_rows(spec, k))
        write_shard(tmp_path / "t.zarr", k, {name: a[part] for name, a in arrays.items()}, rows[:6])
    with pytest.raises(GeosegError, match="6 ids occur twice: scene_0, scene_1"):
        finish_store(tmp_path / "t.zarr")


def test_threads_write_the_same_bytes_and_leave_zarr_as_it_was(tmp_path):
    spec, before = make_spec(tiles=60, size=16, shard_tiles=4), zarr.config.get("codec_pipeline.path")
    finished(tmp_path / "one.zarr", spec)
    create_store(tmp_path / "many.zarr", spec)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda k: write(tmp_path / "many.zarr", spec, [k]), reversed(range(shard_count(spec)))))
    finish_store(tmp_path / "many.zarr")
    assert folder_sha256(tmp_path / "one.zarr") == folder_sha256(tmp_path / "many.zarr")
    assert zarr.config.get("codec_pipeline.path") == before


def test_without_zarrs_the_bytes_are_the_same(tmp_path, monkeypatch):
    spec = make_spec()
    finished(tmp_path / "fast.zarr", spec)
    monkeypatch.setattr("geoseg_nb.layout.find_spec", lambda name: None)
    arrays, _ = finished(tmp_path / "plain.zarr", spec)
    assert folder_sha256(tmp_path / "fast.zarr") == folder_sha256(tmp_path / "plain.zarr")
    np.testing.assert_array_equal(read_shard(open_store(tmp_path / "plain.zarr"), 0)["s1"], arrays["s1"][:6])


FORK = """
import os, sys
sys.path.insert(0, sys.argv[1])
import test_tilestore as t
store = t.open_store(sys.argv[2])
first = t.read_shard(store, 0)["s1"].sum()
child = os.fork()
if not child:
    os._exit(0 if str(t.read_shard(store, 0)["s1"].sum()) == str(first) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_reads_without_hanging(tmp_path):
    "zarrs hangs there; the child falls back to zarr's own pipeline"
    finished(tmp_path / "t.zarr", make_spec())
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, str(Path(__file__).parent), str(tmp_path / "t.zarr")], timeout=60)
    assert done.returncode == 0


def _sum(store):
    return float(np.nansum(np.where(np.isfinite(read_shard(store, 1)["s1"]), read_shard(store, 1)["s1"], 0)))


def test_a_store_travels_to_another_process(tmp_path):
    finished(tmp_path / "t.zarr", make_spec())
    store = open_store(tmp_path / "t.zarr")
    here = _sum(store)
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(_sum, (store,)) == here


def test_cached_values_belong_to_one_store(tmp_path):
    spec, calls = make_spec(), []
    finished(tmp_path / "t.zarr", spec)
    store, count = open_store(tmp_path / "t.zarr"), lambda: calls.append(1) or len(calls)
    assert [cached(store, "n", count), cached(store, "n", count)] == [1, 1]
    finished(tmp_path / "t.zarr", make_spec(seed=2), seed=2)
    assert cached(open_store(tmp_path / "t.zarr"), "n", count) == 2
    with pytest.raises(Refused, match="name '../n'"):
        cached(store, "../n", count)


READ_ONLY = """
import sys
from geoseg_nb.tilestore import cached, open_store, read_rows
store = open_store(sys.argv[1])
try: open(sys.argv[1] + "/new", "w")
except OSError as error: print(error.errno)
print(cached(store, "n", lambda: 7), len(read_rows(store, [0])["s1"]))
"""


def test_a_store_on_a_read_only_mount_computes_what_it_cannot_keep(tmp_path):
    "A mount of its own name space; its error is EROFS, 30, and no PermissionError"
    finished(tmp_path / "t.zarr", make_spec())
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path / "t.zarr"), sys.executable, READ_ONLY], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr: pytest.skip(f"no mounts here: {done.stderr.strip()[:80]}")
    assert done.stdout.split() == ["30", "7", "1"], done.stderr
    assert not (tmp_path / "t.zarr/cache").exists()


def test_a_store_has_one_flag_a_class_however_classes_are_called():
    "CF splits flag_meanings at blanks; one word a value is what it asks for"
    from geoseg_nb.layout import label_attributes
    attributes = label_attributes(make_legend({"dry land": [0, "#d8c9a0"], "ice, snow & firn": [1, "#9fd3e6"], "eau_où": [2, "#2b6cb0"]}))
    assert attributes["flag_meanings"].split() == ["dry_land", "ice_snow_firn", "eau_où"] and attributes["flag_values"] == [0, 1, 2]
