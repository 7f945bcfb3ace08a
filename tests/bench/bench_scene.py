"""Cutting a large cloud-optimised GeoTIFF into tiles, against one full read of it (row 9)

    python tests/bench/bench_scene.py [--rounds 3] [--data FOLDER] [--out ROWS.json]

`cut` reads the scene as the stage does, a strip of 512 rows at a time through the product's reader, and cuts its tiles; the peer reads the file at once with rasterio and cuts the same tiles. `tile` is the whole stage, with the
store written and checksummed, beside the full read and the same tiles written raw. The peak memory of the stage is that of a process of its own, for a scene of the same width and four times the height."""
import json
import shutil

import numpy as np
import rasterio
from geoseg_nb import pairs
from geoseg_nb.bench import Side, race, race_rows, value_row
from geoseg_nb.plan import TileSpec, plan_tiles
from geoseg_nb.products import SourceSpec, source_of
from geoseg_nb.tiling import tile
from geoseg_nb.tilestore import open_store, read_rows
from geoseg_nb.windows import Window
from geoseg_nb.windows import cut as cut_tile
from scipy.ndimage import gaussian_filter
from sides import ONE, alone, measure, peak_mb

EDGE, SIZE = 5120, 128
OPTIONS = {"images": "{id}.tif", "masks": "", "sensor": "s2", "bands": ["B2", "B3", "B4", "B8"], "unit": "1", "dtype": "uint16", "nodata": 0}


def scene(asked, height, width):
    "Folder with one scene of four bands: smooth fields and noise, deflated, blocks of 512"
    folder = asked.data / f"scene-{height}-{width}"
    path = folder / "scene.tif"
    if path.exists(): return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(1024, width)).astype("float32"), 12, mode="wrap")
    smooth *= 600 / smooth.std()
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000)
    with rasterio.open(folder / "plain.tif", "w", driver="GTiff", height=height, width=width, count=4, dtype="uint16", crs="EPSG:32633", transform=transform,
                       nodata=0, tiled=True, blockxsize=512, blockysize=512) as plain:
        for row in range(0, height, 512):
            rows = smooth[np.arange(row, min(row + 512, height)) % 1024]
            for band in range(1, 5):
                values = (2000 + 200 * band + rows + rng.normal(0, 20, rows.shape)).clip(1, 10_000).astype("uint16")
                plain.write(values, band, window=rasterio.windows.Window(0, row, width, len(rows)))
    rasterio.shutil.copy(folder / "plain.tif", path, driver="COG", compress="deflate", predictor=2, blocksize=512, overviews="none")
    (folder / "plain.tif").unlink()
    return folder


def made_source(folder):
    legend = {"none": [0, "#000000"], "some": [1, "#ffffff"]}
    return source_of(SourceSpec(product="pairs", root=str(folder), legend=legend, options=OPTIONS))


def stage(folder, url):
    "The stage on a scene"
    shutil.rmtree(url, ignore_errors=True)
    return tile(SPEC, pairs.catalog(folder, pairs.Options(**OPTIONS)), made_source(folder), url, ONE)


SPEC = TileSpec(size=SIZE, overlap=0, order="scene")


def rows(asked):
    if asked.one: return print(json.dumps([stage(asked.one, asked.data / "bench_scene.zarr") and 0, peak_mb()]))
    edge = 1024 if asked.tiny else EDGE
    folder, url = scene(asked, edge, edge), asked.data / "bench_scene.zarr"
    catalog, made = pairs.catalog(folder, pairs.Options(**OPTIONS)), made_source(folder)
    row, bands = catalog.iloc[0], OPTIONS["bands"]
    windows = [Window(r, c, SIZE, SIZE) for r in range(0, edge, SIZE) for c in range(0, edge, SIZE)]

    def full(): return np.stack([cut_tile(image, w) for image in [rasterio.open(row["image"]).read()] for w in windows])

    def strips():
        tiles = []
        for batch in plan_tiles(SPEC, catalog)[1]:
            top, bottom = int(batch.rows["row"].min()), int(batch.rows["row"].max()) + SIZE
            values = made.reader(row, bands=bands, window=Window(top, 0, bottom - top, edge))["s2"].values
            tiles += [cut_tile(values, Window(r.row - top, r.col, SIZE, SIZE)) for r in batch.rows.itertuples()]
        return np.stack(tiles)

    def writing():
        np.save(asked.data / "bench_scene.npy", full())

    stored = Side("geoseg_nb tile", lambda: stage(folder, url), "the stage, order scene, lz4 + bitshuffle, one thread",
                  lambda: read_rows(open_store(url), range(len(windows)))["s2"] if stage(folder, url) else None)
    sides = [Side("geoseg_nb, cut", strips, "strips of 512 rows through the product's reader, with validity"), stored,
             Side("one full read", full, "rasterio, the whole file at once, cut in memory"),
             Side("one full read, tiles written", writing, "the same, all tiles in one .npy file, neither compressed nor checksummed", full)]
    found = race(sides, asked.rounds)
    question = ("9", f"a COG of {edge} px and 4 bands to tiles of {SIZE}")
    rows = race_rows(question, found.iloc[[0, 2]], len(windows), {sides[2].name: 0.95})
    rows += race_rows(("9a", question[1] + ", stored"), found.iloc[[1, 3]], len(windows), {})
    heights = (512, 1024) if asked.tiny else (2560, 10_240)
    peaks = [alone(__file__, "--data", asked.data, "--one", scene(asked, height, edge))[1] for height in heights]
    note = f"{peaks[0]:,.0f} MB for {heights[0]:,} rows, {peaks[1]:,.0f} MB for {heights[1]:,}"
    return [*rows, value_row(("9b", "peak memory of tiling, four times as high"), "geoseg_nb tile", peaks[1] / peaks[0], "times the memory", ("at most", 1.1), note=note)]


if __name__ == "__main__":
    measure(rows, one="")
