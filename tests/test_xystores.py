"The slump system's folders of x and y: written and read back, held against plain zarr, rasterio and tomllib"
import shutil
import tomllib

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import zarr
from geoseg_nb import xyexport
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.loader import make_loader
from geoseg_nb.plan import TileSpec
from geoseg_nb.products import SourceSpec, measured_catalog, source_of
from geoseg_nb.rules import SplitSpec
from geoseg_nb.slump_trials import SlumpSpec, write_s2
from geoseg_nb.split import make_split
from geoseg_nb.thawslumps import SlumpOptions
from geoseg_nb.tilestore import read_rows
from geoseg_nb.tiling import tile
from geoseg_nb.xyexport import XySpec, export_xy, scene_outlines
from geoseg_nb.xystores import Options, catalog, read

BANDS = ["blue", "green", "red", "nir"]
OPTIONS = Options(resolution=10, bands=BANDS)
GROUPS = {"train": "cross-val", "val": "val-test", "test": "test"}


@pytest.fixture(scope="module")
def slumps(tmp_path_factory):
    "A store of made slumps, its catalog and a split"
    root = tmp_path_factory.mktemp("slumps")
    write_s2(root / "s2", SlumpSpec(scenes=8, size=96, slumps=3))
    where = SourceSpec(product="thawslumps", root=str(root / "s2"), legend={}, on_error="skip", options={"mask_erosion_size": 4})
    scenes, _ = measured_catalog(where)
    store = tile(TileSpec(size=32, overlap=0), scenes, source_of(where), root / "slumps.zarr")
    return store, scenes, make_split(scenes, SplitSpec(rule="random", fractions={"train": 0.6, "val": 0.2, "test": 0.2}))


@pytest.fixture(scope="module")
def frozen(slumps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen") / "data"
    store, scenes, split = slumps
    return folder, export_xy(store, split, folder, XySpec(), scene_outlines(scenes, SlumpOptions(mask_erosion_size=4)))


@pytest.mark.parametrize("options", [{}, {"exclude_nan": False}, {"exclude_nopositive": True}, {"min_labelled": 0.6, "exclude_nan": False}])
def test_the_samples_are_those_that_the_system_would_keep(slumps, tmp_path, options):
    "Tile by tile: no positive, a pixel without data, less than a share labelled"
    store, scenes, split = slumps
    written, spec = export_xy(store, split, tmp_path / "out", XySpec(**options)), XySpec(**options)
    images, part_of, wanted = scenes.set_index("id")["image"], split.set_index("scene")["part"], dict.fromkeys(GROUPS.values(), 0)
    for row, label in zip(store.index.itertuples(), store.dataset["label"].values):
        with rasterio.open(images[row.scene]) as source:
            values = source.read(window=rasterio.windows.Window(row.col, row.row, 32, 32))
        with rasterio.open(images[row.scene].replace("_SR", "_SCL")) as source: classes = np.kron(source.read(1), np.ones((2, 2), int))
        dark = (values == 0).any(0) | (classes[row.row : row.row + 32, row.col : row.col + 32] < 2)
        out = (label != 255).mean() < spec.min_labelled or dark.all() or spec.exclude_nan and dark.any() or spec.exclude_nopositive and not (label == 1).any()
        wanted[GROUPS[part_of[row.scene]]] += not out
    assert written == wanted and sum(written.values()) > 0


def test_arrays_are_as_documented(frozen, slumps):
    folder, written = frozen
    store, scenes, split = slumps
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml", "cross-val.zarr", "labels.geojson", "test.zarr", "val-test.zarr"]
    images = scenes.set_index("id")["image"]
    for part, name in GROUPS.items():
        group = zarr.open_group(folder / f"{name}.zarr", mode="r")
        x, y, rows = group["x"], group["y"], xyexport.chosen_tiles(store, split, part, XySpec())
        assert x.shape == (written[name], 4, 32, 32) and x.chunks == (1, 4, 32, 32) and x.dtype == "float32"
        assert y.shape == (written[name], 32, 32) and y.chunks == (1, 32, 32) and y.dtype == "uint8"
        assert (x.compressors[0].cname.value, x.compressors[0].clevel) == ("lz4", 9)
        for i, row in enumerate(store.index.iloc[rows].itertuples()):
            with rasterio.open(images[row.scene]) as source: values = source.read(window=rasterio.windows.Window(row.col, row.row, 32, 32))
            np.testing.assert_allclose(x[i], np.clip(values / 3000, 0, 1), rtol=1e-6)
        label = read_rows(store, rows, ["label"])["label"]
        assert np.array_equal(y[:], np.where(label == 255, 2, label))
    said = tomllib.loads((folder / "config.toml").read_text())["darts"]
    assert said["bands"] == BANDS and said["n_patches"] == sum(written.values()) and said["exclude_nan"] is True and said["patch_size"] == 32
    drawn = gpd.read_file(folder / "labels.geojson")
    assert drawn.crs == "EPSG:3413" and drawn["mode"].isin(GROUPS.values()).all() and len(drawn) == scenes["polygons"].sum()


def test_what_was_written_becomes_the_same_store_again(frozen, tmp_path):
    folder, written = frozen
    where = SourceSpec(product="xystores", root=str(folder), legend={}, options={"resolution": 10, "bands": BANDS, "norm_factors": dict.fromkeys(BANDS, 1 / 3000)})
    scenes, problems = measured_catalog(where)
    assert problems.empty and scenes["split"].value_counts().to_dict() == written and {"sha256_x_chunk", "sha256_y_chunk"} <= set(scenes)
    store = tile(TileSpec(size=32, overlap=0), scenes, source_of(where), tmp_path / "back.zarr")
    split = make_split(scenes, SplitSpec(rule="column", column="split", values={part: [name] for part, name in GROUPS.items()}))
    for name in GROUPS.values():
        rows = np.flatnonzero(store.index["scene"].str.startswith(f"{name}_"))
        group = zarr.open_group(folder / f"{name}.zarr", mode="r")
        held = read_rows(store, rows)
        assert np.array_equal(held["image"], group["x"][:]) and np.array_equal(np.where(held["label"] == 255, 2, held["label"]), group["y"][:])
    batch = next(iter(make_loader(store, split, "train", batch_size=4)))
    assert batch["image"].shape == (4, 4, 32, 32)


def test_a_group_of_the_older_format_is_read_as_well(tmp_path):
    x, y = np.random.default_rng(1).random((3, 4, 8, 8), "float32"), np.random.default_rng(2).integers(0, 3, (3, 8, 8)).astype("uint8")
    group = zarr.open_group(tmp_path / "test.zarr", mode="w", zarr_format=2)
    for name, values in (("x", x), ("y", y)): group.create_array(name, shape=values.shape, chunks=(1, *values.shape[1:]), dtype=values.dtype)[:] = values
    rows = catalog(tmp_path, OPTIONS.replace(groups=["test"]))
    found = read(rows.iloc[2], OPTIONS)
    assert np.array_equal(found["image"], x[2]) and np.array_equal(found["label"], y[2])


def test_an_export_is_there_whole_or_not_at_all(slumps, tmp_path, monkeypatch):
    store, _, split = slumps
    whole, done = xyexport.write_group, []

    def stops(path, *rest):
        if done: raise KeyboardInterrupt
        done.append(path)
        return whole(path, *rest)

    monkeypatch.setattr(xyexport, "write_group", stops)
    with pytest.raises(KeyboardInterrupt): export_xy(store, split, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert set(export_xy(store, split, tmp_path / "out")) == set(GROUPS.values())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(Refused, match="name a new folder"): export_xy(store, split, tmp_path / "out")


def test_lost_and_damaged_chunks_are_named(frozen, tmp_path):
    shutil.copytree(frozen[0], tmp_path / "data")
    rows = catalog(tmp_path / "data", OPTIONS).set_index("id", drop=False)
    chunk = tmp_path / "data" / "cross-val.zarr" / "x" / "c" / "2" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(GeosegError, match="cross-val_000002: .*sample 2 is damaged or gone"): read(rows.loc["cross-val_000002"], OPTIONS)
    chunk.unlink()
    with pytest.raises(GeosegError, match="1 of .* samples of x have no chunk, the first is 2"): catalog(tmp_path / "data", OPTIONS)
    shutil.rmtree(tmp_path / "data" / "test.zarr" / "y")
    with pytest.raises(GeosegError, match="test: has no array y"): catalog(tmp_path / "data", OPTIONS.replace(groups=["test"]))
    with pytest.raises(Refused, match="names the bands"): catalog(tmp_path / "data", OPTIONS.replace(bands=BANDS[::-1]))
    assert set(catalog(tmp_path / "data", OPTIONS.replace(on_missing="skip"))["split"]) == {"val-test"}
