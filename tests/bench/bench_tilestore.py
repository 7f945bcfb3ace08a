"""Writing and reading tiles: this store against zarr-python with one chunk a tile

    python tests/bench/bench_tilestore.py [--tiles 1024] [--size 128] [--bands 6] [--rounds 5]

Both sides take turns on the same arrays, and what they give back is compared before a number is printed. CPU seconds of the
process are the measure: wall time depends on what else the machine does. The page cache is warm.
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

import geopandas
import numpy as np
import zarr
from geoseg_nb.core import Band, Sensor, make_legend
from geoseg_nb.layout import CODECS, StoreSpec, shard_count, shard_rows
from geoseg_nb.tilestore import create_store, finish_store, open_store, read_shard, write_shard

LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]})


def smooth_tiles(tiles, bands, size, seed=0):
    "Fields with the correlation of satellite bands, and a label"
    rng = np.random.default_rng(seed)
    walk = np.cumsum(np.cumsum(rng.normal(0, 3, (tiles, bands, size, size)), axis=-1), axis=-2) / size**0.5
    image = np.clip(2000 + walk + rng.normal(0, 20, walk.shape), 1, 10_000).astype("uint16")
    return {"s2": image, "label": (image[:, 0] > 2000).astype("uint8")}


def ours_write(folder, spec, arrays, rows):
    url = create_store(folder / "ours.zarr", spec)
    for k in range(shard_count(spec)):
        part = slice(*shard_rows(spec, k))
        write_shard(url, k, {name: a[part] for name, a in arrays.items()}, rows[part])
    finish_store(url)


def plain_write(folder, spec, arrays, rows):
    group = zarr.create_group(folder / "plain.zarr", overwrite=True)
    for name, a in arrays.items():
        array = group.create_array(name, shape=a.shape, dtype=a.dtype, chunks=(1, *a.shape[1:]), compressors=CODECS["lz4"]())
        for k in range(shard_count(spec)):
            part = slice(*shard_rows(spec, k))
            array[part] = a[part]


def ours_read(folder, spec):
    store = open_store(folder / "ours.zarr")
    return [read_shard(store, k) for k in range(shard_count(spec))]


def plain_read(folder, spec):
    group = zarr.open_group(folder / "plain.zarr", mode="r")
    parts = [slice(*shard_rows(spec, k)) for k in range(shard_count(spec))]
    return [{name: group[name][part] for name in ("s2", "label")} for part in parts]


def cpu_seconds(do, *args):
    wall, cpu = time.perf_counter(), time.process_time()
    result = do(*args)
    return result, time.process_time() - cpu, time.perf_counter() - wall


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"tiles": 1024, "size": 128, "bands": 6, "rounds": 5}.items():
        options.add_argument(f"--{name}", type=int, default=default)
    args = options.parse_args()
    arrays = smooth_tiles(args.tiles, args.bands, args.size)
    sensor = Sensor("s2", tuple(Band(f"B{i}") for i in range(args.bands)), "uint16", nodata=0)
    spec = StoreSpec(name="bench", size=args.size, tiles=args.tiles, sensors=[sensor.as_dict()], legend=LEGEND.as_dict())
    rows = geopandas.GeoDataFrame({"id": [str(i) for i in range(args.tiles)]}, geometry=[None] * args.tiles, crs="EPSG:4326")
    seconds, walls = {}, {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            outputs = {}
            for name, do, extra in (("write, ours", ours_write, (arrays, rows)), ("write, zarr-python", plain_write, (arrays, rows)),
                                    ("read, ours", ours_read, ()), ("read, zarr-python", plain_read, ())):
                outputs[name], cpu, wall = cpu_seconds(do, Path(folder), spec, *extra)
                seconds.setdefault(name, []).append(cpu), walls.setdefault(name, []).append(wall)
            for mine, theirs, k in zip(outputs["read, ours"], outputs["read, zarr-python"], range(shard_count(spec))):
                for key, a in arrays.items():
                    part = a[slice(*shard_rows(spec, k))]
                    assert np.array_equal(mine[key], part) and np.array_equal(theirs[key], part)
    megabytes = sum(a.nbytes for a in arrays.values()) / 1e6
    print(f"{args.tiles} tiles of {args.bands} x {args.size} x {args.size} uint16 and a label, {megabytes:.0f} MB, "
          f"median of {args.rounds} rounds, outputs equal\n")
    print(f"{'':22}{'CPU s':>8}{'wall s':>8}{'tiles / CPU s':>16}{'ratio':>8}")
    for verb in ("write", "read"):
        theirs = statistics.median(seconds[f"{verb}, zarr-python"])
        for name in (f"{verb}, zarr-python", f"{verb}, ours"):
            cpu = statistics.median(seconds[name])
            print(f"{name:22}{cpu:8.3f}{statistics.median(walls[name]):8.3f}{args.tiles / cpu:16.0f}{theirs / cpu:7.1f}x")


if __name__ == "__main__":
    main()
