"""Shuffled, normalised batches for training, against other stores and ways to read them (rows 4, 5 and 6)

    python tests/bench/bench_loading.py [--patches 2000] [--rounds 3] [--data FOLDER] [--out ROWS.json]

One epoch of batches of 16: each sample once, normalised float32 images, int64 labels, one process, warm page cache. Ours is `make_loader` as training calls it, a fresh loader each time (made before the clock runs), so that every shard is read,
decoded and normalised once. It mixes four shards and keeps one more, a fraction of the store as with a large data set, so that memory is used again and not for the first time: a process that grows pays the system for every new page. The last side of ours is a later epoch of a store that fits into the memory given to it."""
import statistics
import subprocess

import numpy as np
import pandas as pd
import peers
from geoseg_nb.bench import Side, cost_of, race, race_rows, value_row
from geoseg_nb.core import Refused
from geoseg_nb.layout import shard_count
from geoseg_nb.tilestore import read_shard
from sides import BANDS, BATCH, Truth, loader, measure, patches, store


def of_which(found, store, number):
    "Where our CPU time goes, measured here and now"
    reading = cost_of(lambda: [read_shard(store, k) for k in range(shard_count(store.manifest))]).cpu
    return f"of our {1e6 * found / number:.0f} µs a sample, {1e6 * reading / number:.0f} are reading and decoding shards"


def epoch(batches):
    for _ in batches: pass


def side(name, make, how, truth):
    "An epoch of a loader that is made anew each time"
    return Side(name, epoch, how, lambda: truth.loaded(make()), before=make)


def ours(asked, truth):
    stores = {codec: store(asked, codec) for codec in ("lz4", "none")}
    kept = loader(stores["lz4"], cache_mb=8000)
    epoch(kept)
    sides = {codec: side(f"geoseg_nb, {codec}", lambda s=s: loader(s, cache_mb=0, mix_shards=4), f"make_loader as training calls it, codec {codec}, four shards mixed and five in memory, first epoch", truth)
             for codec, s in stores.items()}
    return sides | {"kept": side("geoseg_nb, kept in memory", lambda: kept, "make_loader, a later epoch with cache_mb large enough for all tiles", truth)}


def good_peers(asked, truth):
    "Row 5"
    how = {"LMDB + safetensors": (peers.lmdb_safetensors, "a record of two tensors a sample (rico-hdl), no lock, no readahead, buffers"),
           "HDF5, a sample at a time": (peers.hdf5_samples, "h5py, contiguous, read_direct into one array"),
           "HDF5, blocks of 64 mixed": (peers.hdf5_blocks, "h5py, contiguous, 64 samples a read, 8 blocks shuffled together"),
           "memory map, a sample at a time": (peers.memory_map, ".npy memory-mapped, copied into the batch"),
           "memory map, numpy rows": (peers.memory_map_rows, ".npy memory-mapped, rows of the batch by numpy's indexing")}
    return [side(name, make(truth, asked.data / f"patches-{asked.patches}"), f"{text}; DataLoader in this process, __getitems__", truth)
            for name, (make, text) in how.items()]


def slow_peers(asked, truth):
    "Row 4, and the files themselves"
    root = patches(asked)
    table = pd.read_parquet(root / "metadata.parquet")
    zarrs = {"zarr-python, one chunk a sample, zstd 0": "zstd", "zarr-python, one chunk a sample, raw": ""}
    text = "Zarr v3 by zarr-python, a chunk a sample, z[i]; DataLoader in this process, __getitems__"
    return [*(side(name, peers.zarr_python(truth, root, codec), text, truth) for name, codec in zarrs.items()),
            side("rasterio, seven files a sample", peers.rasterio_samples(truth, root, table), "files opened for each sample (GDAL_DISABLE_READDIR_ON_OPEN), as torchgeo's NonGeoDataset does", truth)]


def petastorm(asked, truth, ours):
    "Row 4: petastorm in an environment of its own, after the others"
    name, question = "petastorm make_reader", ("4", "an epoch of training batches, ours lz4")
    try: turns = [peers.petastorm_epoch(peers.petastorm_python(asked.data), truth, asked.data) for _ in range(asked.rounds)]
    except (ImportError, OSError, subprocess.CalledProcessError) as error:
        return asked.left_out.append(f"row 4, {name}: {error}") or []
    if any(turn["right"] != list(range(len(truth))) for turn in turns): raise Refused(f"{name} does not give every sample once", item=name)
    cpu, wall = (statistics.median(turn[key] for turn in turns) for key in ("cpu_s", "wall_s"))
    how = "its own environment (petastorm 0.13.1, pyarrow 14.0.2, numpy 1), float32 in NdarrayCodec, snappy, row groups of 64, its reader in this thread (its pool of one thread at times ends an epoch before the first sample), its shuffling buffer; written by pyarrow"
    return [value_row(question, name, cpu / ours, goal=("at least", 20.0), how=how, items=len(truth), cpu_s=cpu, wall_s=wall)]


def torchgeo(asked, truth, ours):
    "Row 4: torchgeo's own class. It interpolates the bands of 20 m, so its 10 m bands and its labels are what is compared"
    name, root = "torchgeo BigEarthNetV2", patches(asked)
    try: kind = peers.torchgeo_class(asked.data)
    except (ImportError, OSError) as error: return asked.left_out.append(f"row 4, {name}: {error}") or []
    table = pd.read_parquet(root / "metadata.parquet")
    places = np.concatenate([np.flatnonzero(table["split"] == part) for part in ("train", "validation", "test")])
    order = np.random.default_rng(0).permutation(len(truth))
    make, wrong, fine = peers.torchgeo_loader(kind, root, order.tolist()), 0, [BANDS.index(b) for b in ("B02", "B03", "B04", "B08")]
    for start, batch in zip(range(0, len(order), BATCH), make()):
        for image, label, row in zip(batch["image"].numpy(), batch["label"].numpy(), places[order[start : start + BATCH]]):
            wanted, known = (truth.image[row] - peers.MEANS) / peers.STDS, truth.label[row] < 19
            wrong += not (np.allclose(image[fine], wanted[fine], 1e-5, 1e-5) and np.array_equal(label[known], truth.label[row][known]))
    if wrong: raise Refused(f"{name}: {wrong} samples differ where they should not", item=name)
    _, cpu, wall = cost_of(lambda: epoch(make()))
    how = "its own class, a sample at a time, default collation; 20 m bands interpolated, labels also given as a list, one epoch after the others"
    return [value_row(("4", "an epoch of training batches, ours lz4"), name, cpu / ours, goal=("at least", 20.0), how=how, items=len(truth), cpu_s=cpu, wall_s=wall)]


def rows(asked):
    truth = Truth(asked)
    mine, good, slow = ours(asked, truth), good_peers(asked, truth), slow_peers(asked, truth)
    limit = side("fused kernel, the limit", peers.kernel(truth, None), "numba, samples in memory, one loop, one buffer for all batches, no loader", truth)
    found = race([*mine.values(), *good, *slow, limit], asked.rounds, wanted=list(range(len(truth)))).set_index("side", drop=False)
    question, rows = "an epoch of training batches", []
    for number, names, goals in (("4", [s.name for s in slow], dict.fromkeys([s.name for s in slow], 20.0)),
                                 ("5", [s.name for s in good], dict.fromkeys([s.name for s in good], 1.0)), ("6", [limit.name], {limit.name: 0.3})):
        for codec in ("lz4", "none", "kept") if number != "4" else ("lz4", "kept"):
            mark, told = {"lz4": ("", "lz4"), "none": (" raw", "none"), "kept": (" kept", "kept in memory, as the page cache keeps each file here")}[codec]
            of = "" if codec == "kept" else of_which(found["cpu_s"][mine[codec].name], store(asked, codec), len(truth))
            rows += race_rows((number + mark, f"{question}, ours {told}"), found.loc[[mine[codec].name, *names]], len(truth), goals, dict.fromkeys(names, of))
    for more in (petastorm, torchgeo): rows += more(asked, truth, found["cpu_s"][mine["lz4"].name])
    return rows + race_rows(("4a", f"{question}, ours lz4"), found.loc[[mine["lz4"].name, mine["kept"].name]], len(truth), {})[1:]


if __name__ == "__main__":
    measure(rows)
