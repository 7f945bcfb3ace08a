"""What the benchmarks of this folder share: their arguments, the made patches, and what every reader of them has to give back

A script calls `measure(rows)`, where `rows(asked)` gives its rows; `asked.left_out` takes what could not be done, with the reason."""
import argparse
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

if Path(sys.argv[0]).name.startswith("bench_"):  # a test that imports this keeps its environment
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR")  # a sixth less for whoever opens small files through GDAL

import numpy as np
import pandas as pd
import rasterio
from geoseg_nb.bench import number_text
from geoseg_nb.bigearthnet import LEGENDS, Options, band_files, catalog, reference_file
from geoseg_nb.core import make_legend
from geoseg_nb.loader import Stats, make_loader, make_normaliser
from geoseg_nb.plan import TileSpec
from geoseg_nb.profile import own_peak_kib
from geoseg_nb.products import SourceSpec, source_of
from geoseg_nb.spec import dumps_json
from geoseg_nb.stages import Execution
from geoseg_nb.storage import cache_folder
from geoseg_nb.synthetic import SyntheticSpec, write_synthetic
from geoseg_nb.tiling import tile
from geoseg_nb.tilestore import open_store

BANDS = ["B02", "B03", "B04", "B08", "B11", "B12"]  # four of 10 m, two of 20 m, all uint16
MEAN, STD = [1500.0, 1400.0, 1600.0, 1700.0, 1300.0, 1200.0], [600.0, 500.0, 700.0, 800.0, 500.0, 400.0]
ONE, BATCH = Execution(workers=1), 16


def arguments(title, **more):
    "What every script is asked for, and fields of its own"
    asked = argparse.ArgumentParser(description=title.splitlines()[0])
    asked.add_argument("--data", type=Path, default=cache_folder() / "bench", help="made data, kept between runs")
    asked.add_argument("--out", type=Path, help="file for the rows; without it they are printed")
    asked.add_argument("--patches", type=int, default=2000)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--size", choices=["full", "tiny"], default="full")
    for name, default in more.items(): asked.add_argument(f"--{name}", type=type(default), default=default)
    found = asked.parse_args()
    found.left_out, found.tiny = [], found.size == "tiny"
    return found


def measure(rows, **more):
    "The rows of a script, written or printed; None from a process that was only to do one thing"
    import torch
    torch.set_num_threads(1)
    asked = arguments(sys.modules["__main__"].__doc__, **more)
    asked.data.mkdir(parents=True, exist_ok=True)
    found = rows(asked)
    if found is None: return
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(dumps_json({"rows": found, "left_out": asked.left_out}))
    for r in found:
        goal = f"{r['bound']} {number_text(r['goal'])}: {'met' if r['met'] else 'MISSED'}" if r["bound"] else ""
        print(f"{r['row']:>4}  {r['what'][:48]:48}  {r['side'][:40]:40} {number_text(r['per_cpu_s']):>9}/CPU s {number_text(r['ratio']):>8} {r['unit']}  {goal}")
    for message in asked.left_out: print("left out:", message)


def patches(asked, number=None):
    "Folder of made patches in the layout of BigEarthNet v2"
    number = number or asked.patches
    root = asked.data / f"patches-{number}"
    if not (root / "metadata.parquet").exists(): write_synthetic(root, SyntheticSpec(patches=number, bands=BANDS))
    return root


def copies(asked, number):
    "As many patches, being hard links to fewer under names of other years, so that their places stay"
    root, known = asked.data / f"copies-{asked.patches}-{number}", patches(asked)
    table, rows = pd.read_parquet(known / "metadata.parquet"), []
    if (root / "metadata.parquet").exists(): return root
    for year in range(2018, 2018 + -(-number // len(table))):
        names = table[["patch_id", "s1_name", "s2v1_name"]].apply(lambda column, year=year: column.str.replace("_2017", f"_{year}", n=1))
        rows.append(table.assign(**names)[: number - sum(map(len, rows))])
        for pair in zip(files_of(table, known), files_of(rows[-1], root)):
            for a, b in zip(*pair):
                Path(b).parent.mkdir(parents=True, exist_ok=True)
                if not Path(b).exists(): os.link(a, b)
    pd.concat(rows).sort_values("patch_id", ignore_index=True).to_parquet(root / "metadata.parquet", index=False)
    return root


def files_of(table, root):
    "The files of each patch of a table: the six bands, then the reference map"
    from geoseg_nb.bigearthnet import with_paths
    for row in with_paths(table, root, Options()).to_dict("records"):
        yield [path for path, _ in band_files(row, BANDS).values()] + [reference_file(row)]


def source(root):
    "The patches as a product: six bands, the 19 classes"
    return source_of(SourceSpec(product="bigearthnet", root=str(root), legend={}, measure=False, options={"bands": BANDS}))


def scenes(root):
    return catalog(root, Options(bands=BANDS))


@cache
def lookup():
    "CORINE code -> class, 255 without one: what a peer does in one line"
    legend, table = make_legend(*LEGENDS["ben19"]), np.full(1000, 255, "uint8")
    for index, kind in enumerate(legend.classes): table[list(kind.codes)] = index
    return table


def by_rasterio(files):
    "The usual loop: six bands on one grid of 10 m, uint16 [6, 120, 120], and classes uint8 [120, 120]"
    bands = []
    for path in files[:-1]:
        with rasterio.open(path) as band: values = band.read(1)
        bands.append(values if len(values) == 120 else values.repeat(2, 0).repeat(2, 1))
    with rasterio.open(files[-1]) as reference: codes = reference.read(1)
    return np.stack(bands), lookup()[codes]


class Truth:
    "All patches as GDAL reads them, in the order of the table: memory maps that are made once"

    def __init__(self, asked):
        root = patches(asked)
        self.ids = pd.read_parquet(root / "metadata.parquet")["patch_id"].tolist()
        self.number = {name: i for i, name in enumerate(self.ids)}
        self.paths = [root / "truth_image.npy", root / "truth_label.npy"]
        if not all(path.exists() for path in self.paths): self.make(root)
        self.image, self.label = (np.load(path, mmap_mode="r") for path in self.paths)

    def make(self, root):
        pairs = [by_rasterio(files) for files in files_of(pd.read_parquet(root / "metadata.parquet"), root)]
        for path, arrays in zip(self.paths, zip(*pairs)): np.save(path, np.stack(arrays))

    def __len__(self): return len(self.ids)

    def stored(self, names, image, label):
        "Samples that a store gave back, held against the files: their numbers"
        rows = [self.number[name] for name in names]
        return sorted(r for r, i, t in zip(rows, image, label) if np.array_equal(i, self.image[r]) and np.array_equal(t, self.label[r]))

    def loaded(self, batches):
        "Samples of an epoch that came out normalised and right, as their sorted numbers; each has to be there once"
        mean, std, right = np.float32(MEAN).reshape(-1, 1, 1), np.float32(STD).reshape(-1, 1, 1), []
        for batch in batches:
            for name, image, label in zip(batch["id"], batch["image"], batch["label"]):
                row = self.number[name.removesuffix("_0_0")] if isinstance(name, str) else int(name)
                wanted = (self.image[row] - mean) / std
                same = tuple(image.shape) == wanted.shape and image.numpy().dtype == np.float32 and np.allclose(image.numpy(), wanted, 1e-5, 1e-5)
                if same and label.numpy().dtype == np.int64 and np.array_equal(label.numpy(), self.label[row]): right.append(row)
        return sorted(right)


def store(asked, codec="lz4"):
    "Our store of the patches"
    url = asked.data / f"bench_loading_{asked.patches}_{codec}.zarr"
    try: return open_store(url)
    except (OSError, ValueError, RuntimeError): shutil.rmtree(url, ignore_errors=True)
    root = patches(asked)
    return tile(TileSpec(size=120, overlap=0, order="shuffled", codec=codec), scenes(root), source(root), url, ONE)


def loader(found, **options):
    "Training batches of a store, as the trainer makes them"
    split = pd.DataFrame({"scene": found.index["scene"], "part": "train", "row0": 0, "row1": 120, "col0": 0, "col1": 120})
    return make_loader(found, split, "train", BATCH, 0, make_normaliser("mean_std", Stats(MEAN, STD)), min_labelled=0.0, **options)


def alone(script, *words):
    "What a script prints as JSON in a process of its own; an error with its last words where it fails"
    done = subprocess.run([sys.executable, str(script), *map(str, words)], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f"{Path(script).name} {' '.join(map(str, words))}: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mb():
    "The most memory that this process has held; getrusage would tell that of its parent where that was more"
    return own_peak_kib() / 1024


