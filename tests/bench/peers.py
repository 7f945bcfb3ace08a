"""Other ways to keep training samples and to read them in random order: each peer writes the same patches and gives the same batches

A batch is image float32 [n, 6, 120, 120], normalised, label int64 [n, 120, 120] and id, the numbers of the samples. Every dataset has `__getitems__`, PyTorch's way to fetch a batch at once, and fills one array:
that is faster than the usual `__getitem__` with the default collation, so that a peer lags for its storage and not for our way of using it."""
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import lmdb
import numba
import numpy as np
import torch
import zarr
from safetensors.numpy import load, save
from sides import BATCH, MEAN, STD, by_rasterio, files_of
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

MEANS, STDS = (np.float32(v).reshape(-1, 1, 1) for v in (MEAN, STD))


def as_npy(array):
    "What petastorm's NdarrayCodec keeps"
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def from_npy(data): return np.load(io.BytesIO(data))


class Samples(Dataset):
    "Samples by number, a batch at a time; `read(i)` gives image and label of one"

    def __init__(self, number, read): self.number, self.read = number, read

    def __len__(self): return self.number

    def __getitems__(self, rows):
        image, label = np.empty((len(rows), 6, 120, 120), "float32"), np.empty((len(rows), 120, 120), "int64")
        for k, i in enumerate(rows): image[k], label[k] = self.read(i)
        image -= MEANS
        image /= STDS
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label), "id": rows}


class Mixed(Sampler):
    "Blocks of 64 in random order, 8 of them shuffled together"

    def __init__(self, number, seed=0): self.number, self.seed = number, seed

    def __len__(self): return self.number

    def __iter__(self):
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(-(-self.number // 64))
        for start in range(0, len(order), 8):
            rows = np.concatenate([np.arange(64 * b, min(64 * b + 64, self.number)) for b in order[start : start + 8]])
            yield from rng.permutation(rows).tolist()


def as_it_is(batch): return batch


def in_loader(dataset, sampler=None):
    "PyTorch's loader in this process, as fast a way as it has for data that is near"
    torch.manual_seed(0)
    return DataLoader(dataset, BATCH, shuffle=sampler is None, sampler=sampler, collate_fn=as_it_is)


def zarr_python(truth, folder, compressor):
    "A chunk a sample"
    url = folder / f"peer_{compressor or 'raw'}.zarr"
    if not (url / "label" / "c").exists():
        shutil.rmtree(url, ignore_errors=True)
        group, how = zarr.create_group(url), {"compressors": zarr.codecs.ZstdCodec(level=0) if compressor else None}
        group.create_array("image", data=np.asarray(truth.image), chunks=(1, 6, 120, 120), **how)
        group.create_array("label", data=np.asarray(truth.label), chunks=(1, 120, 120), **how)
    group = zarr.open_group(url, mode="r")
    image, label = group["image"], group["label"]
    return lambda: in_loader(Samples(len(truth), lambda i: (image[i], label[i])))


def lmdb_safetensors(truth, folder):
    "A record of two tensors a sample, as rico-hdl writes"
    path = folder / "peer.lmdb"
    if not path.exists():
        with lmdb.open(str(path), map_size=4 * (truth.image.nbytes + truth.label.nbytes) + 2**26) as base:
            for start in range(0, len(truth), 64):
                with base.begin(write=True) as writing:
                    for i in range(start, min(start + 64, len(truth))):
                        writing.put(b"%08d" % i, save({"image": np.ascontiguousarray(truth.image[i]), "label": np.ascontiguousarray(truth.label[i])}))
    base = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
    reading = base.begin(buffers=True)

    def read(i):
        record = load(bytes(reading.get(b"%08d" % i)))
        return record["image"], record["label"]
    return lambda: in_loader(Samples(len(truth), read))


def hdf5(truth, folder, chunks):
    "Raw, a chunk a sample or in one piece; h5py's read_direct into an array that is there"
    path = folder / f"peer_{'chunks' if chunks else 'contiguous'}.h5"
    if not path.exists():
        with h5py.File(path, "w", libver="latest") as file:
            file.create_dataset("image", data=truth.image, chunks=(1, 6, 120, 120) if chunks else None)
            file.create_dataset("label", data=truth.label, chunks=(1, 120, 120) if chunks else None)
    file = h5py.File(path, "r", rdcc_nbytes=0)
    return file["image"], file["label"]


def hdf5_samples(truth, folder):
    image, label = hdf5(truth, folder, chunks=False)
    pixels, classes = np.empty((6, 120, 120), "uint16"), np.empty((120, 120), "uint8")

    def read(i):
        image.read_direct(pixels, np.s_[i])
        label.read_direct(classes, np.s_[i])
        return pixels, classes
    return lambda: in_loader(Samples(len(truth), read))


def hdf5_blocks(truth, folder):
    "Blocks of 64 samples are read in order and kept as long as they are drawn from"
    image, label = hdf5(truth, folder, chunks=False)

    def loader():
        kept = {}

        def read(i):
            block, at = divmod(i, 64)
            if block not in kept:
                if len(kept) == 16: kept.pop(next(iter(kept)))
                kept[block] = image[64 * block : 64 * block + 64], label[64 * block : 64 * block + 64]
            return kept[block][0][at], kept[block][1][at]
        return in_loader(Samples(len(truth), read), Mixed(len(truth)))
    return loader


def memory_map(truth, folder):
    "Two .npy files, memory-mapped"
    return lambda: in_loader(Samples(len(truth), lambda i: (truth.image[i], truth.label[i])))


def memory_map_rows(truth, folder):
    "Two .npy files, memory-mapped, the rows of a batch gathered by numpy"
    class Rows(Samples):
        def __getitems__(self, rows):
            image = truth.image[rows].astype("float32")
            image -= MEANS
            image /= STDS
            return {"image": torch.from_numpy(image), "label": torch.from_numpy(truth.label[rows].astype("int64")), "id": rows}
    return lambda: in_loader(Rows(len(truth), None))


def rasterio_samples(truth, root, table):
    "Seven files a sample, opened each time"
    files = list(files_of(table, root))
    return lambda: in_loader(Samples(len(truth), lambda i: by_rasterio(files[i])))


@numba.njit(fastmath=False, cache=False)
def gather(image, label, rows, mean, std, pixels, classes):
    "Copies and normalises the rows of a batch in one pass"
    for k in range(len(rows)):
        i = rows[k]
        for b in range(image.shape[1]):
            m, s = mean[b], np.float32(1) / std[b]
            for y in range(image.shape[2]):
                for x in range(image.shape[3]): pixels[k, b, y, x] = (np.float32(image[i, b, y, x]) - m) * s
        for y in range(label.shape[1]):
            for x in range(label.shape[2]): classes[k, y, x] = label[i, y, x]


def kernel(truth, folder):
    "The limit: samples in memory, one fused loop, one buffer for all batches, no loader"
    image, label = np.ascontiguousarray(truth.image), np.ascontiguousarray(truth.label)
    mean, std = np.float32(MEAN), np.float32(STD)
    pixels, classes = np.empty((BATCH, 6, 120, 120), "float32"), np.empty((BATCH, 120, 120), "int64")
    gather(image, label, np.zeros(1, int), mean, std, pixels, classes)

    def epoch():
        order = np.random.default_rng(0).permutation(len(truth))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            gather(image, label, rows, mean, std, pixels, classes)
            yield {"image": torch.from_numpy(pixels[: len(rows)]), "label": torch.from_numpy(classes[: len(rows)]), "id": rows}
    return epoch


PETASTORM, TORCHGEO = ("petastorm==0.13.1", "pyarrow==14.0.2", "numpy<2"), ("torchgeo==0.8.1", "einops", "kornia", "kornia_rs")


def installed(folder, *words):
    "Whether pip could install something beside everything else; what it said last where it could not"
    done = subprocess.run([*words[:1], "-m", "pip", "install", "--quiet", *words[1:]], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise ImportError(f"pip could not install it: {' '.join(done.stderr.split())[-200:]}")
    (folder / ".made").touch()


def petastorm_python(data):
    "The interpreter of petastorm's own environment, made once: its pins fit to nothing else"
    folder = data / "petastorm"
    python = folder / "bin" / "python"
    if not (folder / ".made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        installed(folder, str(python), *PETASTORM)
    return python


def petastorm_epoch(python, truth, data):
    "What petastorm_reader.py says of its epochs: cpu_s, wall_s, right"
    words = [python, Path(__file__).with_name("petastorm_reader.py"), data / f"peer_petastorm_{len(truth)}", *truth.paths, json.dumps(MEAN), json.dumps(STD)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=clean)
    if done.returncode: raise ImportError(f"it ended with {done.returncode}: {' '.join(done.stderr.split())[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def torchgeo_class(data):
    "torchgeo's BigEarthNetV2, from a folder of its own that is looked into last"
    folder = data / "torchgeo"
    if not (folder / ".made").exists(): installed(folder, sys.executable, "--no-deps", "--target", str(folder), *TORCHGEO)
    sys.path.append(str(folder))
    from torchgeo.datasets import BigEarthNetV2
    return BigEarthNetV2


def torchgeo_loader(kind, root, order):
    "Its three parts one after the other, in the order of the numbers given; collated by PyTorch, normalised by the batch"
    (root / "BigEarthNet-S1").mkdir(exist_ok=True)
    parts = ConcatDataset([kind(str(root), split, "s2") for split in ("train", "val", "test")])
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def collate(samples):
        return {"image": (torch.stack([s["image"] for s in samples]) - mean) / std, "label": torch.stack([s["mask"][0] for s in samples])}
    return lambda: DataLoader(parts, BATCH, sampler=order, collate_fn=collate)
