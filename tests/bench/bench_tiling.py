"""Patches to a tile store, against the usual loop into other stores (rows 2 and 3)

    python tests/bench/bench_tiling.py [--patches 2000] [--rounds 3] [--data FOLDER] [--out ROWS.json]

Every side begins with the files of the patches and ends with a store from which each patch can be read back equal. Ours is the whole stage: plan, room, reading, counting of classes, checksums, index, manifest.
"""
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from geoseg_nb.bench import Side, cost_of, race, race_rows
from geoseg_nb.plan import TileSpec
from geoseg_nb.tiling import tile
from geoseg_nb.tilestore import open_store, read_shard
from geoseg_nb.layout import shard_count
from peers import as_npy, from_npy
from sides import BANDS, ONE, Truth, by_rasterio, files_of, measure, patches, scenes, source

EACH = 64  # patches written together by every side


def blocks(table, root):
    "Patches by the usual loop, some at a time"
    files = list(files_of(table, root))
    for start in range(0, len(files), EACH):
        image, label = zip(*map(by_rasterio, files[start : start + EACH]))
        yield start, np.stack(image), np.stack(label)


def ours(asked, truth, root):
    "The stage, and a reader of what it wrote"
    catalog, made, url = scenes(root), source(root), asked.data / "bench_tiling.zarr"

    def run():
        shutil.rmtree(url, ignore_errors=True)
        tile(TileSpec(size=120, overlap=0, order="shuffled"), catalog, made, url, ONE)

    def prove():
        run()
        store, right = open_store(url), []
        for k in range(shard_count(store.manifest)):
            arrays = read_shard(store, k)
            image = np.concatenate([arrays[s.name].repeat(s.ratio, 2).repeat(s.ratio, 3) for s in store.sensors], 1)
            names = store.index["scene"].iloc[EACH * k : EACH * (k + 1)]
            right += truth.stored(names, image[:, [[b.name for s in store.sensors for b in s.bands].index(b) for b in BANDS]], arrays["label"])
        return sorted(right)

    return Side("geoseg_nb tile", run, "the stage as `geoseg run tile` calls it: order shuffled, shards of 64, lz4 + bitshuffle, one thread", prove)


def one_chunk(asked, truth, root):
    "The layout of darts-nextgen"
    table, url = pd.read_parquet(root / "metadata.parquet"), asked.data / "bench_chunks.zarr"

    def run():
        shutil.rmtree(url, ignore_errors=True)
        group = zarr.create_group(url)
        zstd = zarr.codecs.ZstdCodec(level=0)
        image = group.create_array("image", shape=(len(table), 6, 120, 120), chunks=(1, 6, 120, 120), dtype="uint16", compressors=zstd)
        label = group.create_array("label", shape=(len(table), 120, 120), chunks=(1, 120, 120), dtype="uint8", compressors=zstd)
        for start, pixels, classes in blocks(table, root): image[start : start + EACH], label[start : start + EACH] = pixels, classes

    def prove():
        run()
        group = zarr.open_group(url, mode="r")
        return truth.stored(table["patch_id"], group["image"][:], group["label"][:])

    return Side("rasterio + zarr-python, one chunk a sample", run, "rasterio loop (GDAL_DISABLE_READDIR_ON_OPEN), 20 m bands repeated, Zarr v3 with a chunk a sample and zstd 0 (as darts-nextgen), "
                "64 samples a call so that zarr writes chunks at the same time", prove)


def parquet(asked, truth, root):
    "The layout of petastorm, written by pyarrow instead of Spark"
    table, path = pd.read_parquet(root / "metadata.parquet"), asked.data / "bench_petastorm.parquet"
    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("label", pa.binary())])

    def run():
        with pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=False) as writer:
            for start, pixels, classes in blocks(table, root):
                images, labels = [as_npy(a.astype("float32")) for a in pixels], [as_npy(a) for a in classes]
                writer.write_table(pa.table([table["patch_id"].iloc[start : start + EACH].tolist(), images, labels], schema), row_group_size=EACH)

    def prove():
        run()
        read = pq.read_table(path)
        image, label = ([from_npy(value.as_py()) for value in read[name]] for name in ("image", "label"))
        return truth.stored(read["id"].to_pylist(), image, label)

    return Side("rasterio + petastorm-like Parquet", run, "rasterio loop (GDAL_DISABLE_READDIR_ON_OPEN), float32 .npy bytes as petastorm's NdarrayCodec, snappy, row groups of 64, "
                "pyarrow in place of Spark", prove)


def rows(asked):
    root, truth = patches(asked), Truth(asked)
    sides = [make(asked, truth, root) for make in (ours, one_chunk, parquet)]
    found = race(sides, asked.rounds, wanted=list(range(len(truth))))
    catalog, made, some = scenes(root), source(root), list(files_of(pd.read_parquet(root / "metadata.parquet"), root))[:200]
    reading = cost_of(lambda: [made.reader.arrays(row, bands=BANDS) for row in catalog[:200].to_dict("records")]).cpu / len(some)
    loop, each = cost_of(lambda: [by_rasterio(files) for files in some]).cpu / len(some), found["cpu_s"] / len(truth)
    note = f"of our {1e3 * each[0]:.2f} ms a patch, {1e3 * reading:.2f} are the product's reader; of theirs, {1e3 * loop:.2f} the rasterio loop"
    parts = {"2": found.iloc[[0, 1]], "3": found.iloc[[0, 2]]}
    goals = {sides[1].name: 10.0, sides[2].name: 7.0}
    return [row for number, part in parts.items() for row in race_rows((number, "patches to a store"), part, len(truth), goals, dict.fromkeys(goals, note))]


if __name__ == "__main__":
    measure(rows)
