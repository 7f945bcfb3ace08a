"Tile stores in a bucket of a real S3 server: same bytes as in a folder, killed, damaged, and read on another machine"
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from geoseg_nb.catalog import read_catalog, write_catalog
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.stages import Execution
from geoseg_nb.storage import files_below, storage
from geoseg_nb.repair import verify
from geoseg_nb.tilestore import create_store, open_store, read_rows, read_shard, shard_done
from geoseg_nb.tiling import repair, tile
from servers import objects
from test_tilestore import finished, make_spec, write
from test_tiling import SMALL, SOURCE, catalog, undisturbed  # noqa: F401  fixtures


def written(folder) -> dict[str, int]:
    "When the server last wrote each object: the clock of the file system, since one of whole seconds misses what is mended within one"
    return {path.relative_to(folder).as_posix(): path.stat().st_ctime_ns for path in folder.rglob("*") if path.is_file()}


def in_folder(root) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in files_below(root) if not name.startswith("cache/")}


def test_a_store_in_a_bucket_has_the_bytes_of_one_in_a_folder(catalog, undisturbed, bucket, machine):
    url = f"s3://{bucket}/runs/floods.zarr"
    store = tile(SMALL, catalog, SOURCE, url)
    assert objects(url) == in_folder(undisturbed.url) and store.hash == undisturbed.hash
    assert not [name for name in files_below(store.url) if "/c/0/0" in name], "what has gone up does not stay"
    there = machine("second")
    opened, rows = open_store(url), [159, 0, 77, 78, 0]
    for name, array in read_rows(opened, rows).items():
        np.testing.assert_array_equal(array, read_rows(undisturbed, rows)[name])
    pd.testing.assert_frame_equal(pd.DataFrame(opened.index), pd.DataFrame(undisturbed.index))
    fetched = [name for name in files_below(there) if "/c/" in name and "label/" in name]
    assert len(fetched) == 3, "one file a shard that was asked for"
    np.testing.assert_array_equal(opened.dataset["label"].values, undisturbed.dataset["label"].values)
    assert verify(url).empty and tile(SMALL, catalog, SOURCE, url).hash == store.hash


RUN = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_tiling as t
from geoseg_nb import tilestore
url, after = sys.argv[2], int(sys.argv[3])
real, count = tilestore.push, []
def push(root, names, keep=True):
    count.append(names)
    if len(count) > after: os.kill(os.getpid(), signal.SIGKILL)
    return real(root, names, keep)
tilestore.push = push
t.tile(t.SMALL, t.pairs.catalog(t.sample_folder(), t.OPTIONS), t.SOURCE, url, t.Execution(workers=1))
"""


@pytest.mark.parametrize("after, same_machine", [(1, True), (12, False), (21, True), (41, False)])
def test_killed_and_run_again_gives_the_same_bytes(catalog, undisturbed, bucket, machine, after, same_machine):
    "Fault 1 on S3: SIGKILL between two uploads; the second run may be that of another machine"
    url = f"s3://{bucket}/floods.zarr"
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent), url, str(after)]
    dead = subprocess.run(command, timeout=120, stderr=subprocess.PIPE)
    assert dead.returncode == -9, dead.stderr
    with pytest.raises(Refused, match="is not finished"):
        open_store(url)
    if not same_machine:
        machine("second")
    done = [key for key in storage(url).keys("progress/") if key.endswith(".json") and key[9].isdigit()]
    shards = [key for key in storage(url).keys() if "/c/" in key and f"progress/{key.split('/')[2]}.json" in done and key.count("/") > 2]
    stamps = {key: storage(url).stamp(key) for key in shards}
    assert len(done) == min((after - 1) // 2, 20)
    again = tile(SMALL, catalog, SOURCE, url, Execution(workers=2))
    assert objects(url) == in_folder(undisturbed.url) and again.hash == undisturbed.hash
    assert {key: storage(url).stamp(key) for key in shards} == stamps and len(shards) >= len(done)


def test_without_its_manifest_it_does_not_open(bucket, machine):
    url = f"s3://{bucket}/t.zarr"
    with pytest.raises(Refused, match=rf"tile store s3://{bucket}/t.zarr does not exist|is not finished"):
        open_store(url)
    write(url, make_spec())
    for name in ("first", "second"):
        machine(name)
        with pytest.raises(Refused, match="is not finished"):
            open_store(url)
        assert shard_done(create_store(url, make_spec()), 1)


def test_deleted_truncated_swapped_and_flipped_shards_are_named(bucket, machine):
    url = f"s3://{bucket}/t.zarr"
    finished(url, make_spec())
    place, name, other = storage(url), "s1/c/1/0/0/0", "s1/c/2/0/0/0"
    data = place.read(name)
    for broken, words in {None: "missing", data[:-5]: "bytes, should be", data[:50] + b"?" + data[51:]: "other bytes"}.items():
        place.remove(name) if broken is None else place.write(name, broken)
        machine(words)
        assert verify(url)[["shard", "file"]].values.tolist() == [[1, name]]
        if words == "other bytes":
            with pytest.raises(GeosegError, match=f"{name} holds other bytes"):
                read_shard(open_store(url), 1)
            assert len(read_shard(open_store(url), 0)["s1"]) == 6
        else:
            with pytest.raises(GeosegError, match=f"{name} .*{words}"):
                open_store(url)
    place.write(name, place.read(other))
    machine("swapped")
    assert name in verify(url)["file"].tolist()


def test_a_shard_lost_under_its_reader_is_named(bucket, machine):
    url = f"s3://{bucket}/t.zarr"
    finished(url, make_spec())
    machine("second")
    store = open_store(url)
    storage(url).remove("s1/c/1/0/0/0")
    with pytest.raises(GeosegError, match="no object 's1/c/1/0/0/0'"):
        read_shard(store, 1)


def test_a_store_rewritten_under_its_reader_stops_it(bucket, machine):
    url = f"s3://{bucket}/t.zarr"
    finished(url, make_spec())
    machine("second")
    store = open_store(url)
    read_shard(store, 0)
    machine("first")
    finished(url, make_spec(seed=1, order="shuffled"), seed=1)
    with pytest.raises(GeosegError, match="was changed after it was opened"):
        read_shard(store, 0)


def test_repair_writes_only_what_is_damaged(catalog, undisturbed, bucket, s3_folder, machine):
    url = f"s3://{bucket}/floods.zarr"
    tile(SMALL, catalog, SOURCE, url)
    place, name = storage(url), "s1/c/3/0/0/0"
    before = written(s3_folder / bucket / "floods.zarr")
    place.write(name, place.read(name)[:-1] + b"?")
    machine("second")
    assert repair(SMALL, catalog, SOURCE, url)["file"].tolist() == [name]
    assert objects(url) == in_folder(undisturbed.url)
    after = written(s3_folder / bucket / "floods.zarr")
    assert {key.split("/c/")[1][0] for key, when in before.items() if after[key] != when} == {"3"}


def test_another_spec_begins_anew_and_strangers_are_left_alone(bucket, machine):
    url = f"s3://{bucket}/t.zarr"
    finished(url, make_spec())
    create_store(url, make_spec(tiles=3))
    assert not [key for key in storage(url).keys() if "/c/0/" in key or key == "MANIFEST.json"]
    storage(f"s3://{bucket}/papers").write("thesis.txt", "three years of work")
    with pytest.raises(Refused, match="holds thesis.txt and is no tile store"):
        create_store(f"s3://{bucket}/papers", make_spec())
    assert storage(f"s3://{bucket}/papers").keys() == ["thesis.txt"]


def test_wrong_credentials_are_one_error_at_once(catalog, bucket, machine, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for do in (lambda url: tile(SMALL, catalog, SOURCE, url), open_store, lambda url: write_catalog(catalog, url + "/c.parquet")):
        began = time.monotonic()
        with pytest.raises(Refused, match="AWS_SECRET_ACCESS_KEY"):
            do(f"s3://{bucket}/floods.zarr")
        assert time.monotonic() - began < 3


HOLD = """
import sys, time
from geoseg_nb.locks import store_lock
with store_lock(sys.argv[1], "progress"): print("held", flush=True); time.sleep(60)
"""


def test_a_second_writer_is_refused_and_a_dead_one_holds_nothing(catalog, bucket, machine):
    "Faults 8 and 18 on a server that ignores conditional writes"
    url = f"s3://{bucket}/floods.zarr"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Refused, match=f"held by process {holder.pid}"):
        tile(SMALL, catalog[:1], SOURCE, url)
    holder.kill()
    holder.wait()
    assert len(tile(SMALL, catalog[:1], SOURCE, url)) == 16
    assert not [key for key in storage(url).keys() if "lock" in key]


def test_who_does_not_hold_the_lock_touches_nothing_of_a_writer_on_the_same_machine(catalog, bucket, machine):
    "Files in the mirror are on their way into the bucket; a second run and a reader leave them alone"
    url = f"s3://{bucket}/floods.zarr"
    root = create_store(url, make_spec())
    under_way = [root / "s1/c/0/0/0/0", root / "progress/0.parquet"]
    for path in under_way:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not yet sent")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Refused, match=f"held by process {holder.pid}"):
        tile(SMALL, catalog[:1], SOURCE, url)
    for read in (open_store, verify):
        with pytest.raises(Refused, match="is not finished"): read(url)
    assert [path.read_bytes() for path in under_way] == [b"not yet sent"] * 2
    holder.kill()
    holder.wait()


def test_a_foreign_prefix_gets_no_lock(catalog, bucket, machine):
    place = storage(f"s3://{bucket}/papers")
    for name, data in {"thesis.txt": "three years of work", "zarr.json": "{}"}.items():
        place.write(name, data)
        with pytest.raises(Refused, match="holds thesis.txt and is no tile store"): tile(SMALL, catalog[:1], SOURCE, place.url())
        assert "thesis.txt" in place.keys() and not [key for key in place.keys() if "progress" in key]


@pytest.mark.slow
def test_a_busy_server_only_costs_time(catalog, proxy, bucket, undisturbed, machine):
    proxy.faults = ["503", "pass", "500", "pass", "pass", "503"] * 40
    store = tile(SMALL, catalog, SOURCE, f"s3://{bucket}/floods.zarr")
    assert store.hash == undisturbed.hash and not proxy.faults


def test_loader_workers_read_it(catalog, bucket, machine, undisturbed):
    "Worker processes fetch shards themselves"
    url = f"s3://{bucket}/floods.zarr"
    tile(SMALL, catalog, SOURCE, url)
    machine("second")
    store = open_store(url)
    code = ("import pickle, sys, multiprocessing as m; from geoseg_nb.tilestore import open_store, read_shard\n"
            "if __name__ == '__main__':\n s = open_store(sys.argv[1])\n"
            " with m.get_context('forkserver').Pool(2) as p: print(sum(len(a['label']) for a in p.starmap(read_shard, [(s, k) for k in range(20)])))")
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(len(store)) == "160", done.stderr


def test_a_catalog_in_a_bucket(catalog, bucket):
    url = f"s3://{bucket}/tables/catalog.parquet"
    assert write_catalog(catalog, url) == url
    pd.testing.assert_frame_equal(pd.DataFrame(read_catalog(url)), pd.DataFrame(catalog), check_dtype=False)
    with pytest.raises(GeosegError, match="no catalog at s3://"):
        read_catalog(f"s3://{bucket}/tables/none.parquet")
    storage(f"s3://{bucket}/tables").write("bad.parquet", "<html>")
    with pytest.raises(GeosegError, match="is no catalog"):
        read_catalog(f"s3://{bucket}/tables/bad.parquet")
