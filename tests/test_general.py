"""The house is general: other sensors, other formats, other labels, by parameter files alone. What reads pixels here is
rasterio, never our own reader; where data beyond the sample are needed, they lie below GEOSEG_DATA"""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
from rasterio.warp import Resampling, reproject
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geoseg_nb import products
from geoseg_nb.catalog import CatalogSpec
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.evaluate import EvaluateSpec, evaluate
from geoseg_nb.jobs import load_recipe
from geoseg_nb.loader import make_loader, stack_sensors, statistics
from geoseg_nb.spec import make
from geoseg_nb.split import SplitSpec, make_split
from geoseg_nb.storage import packaged, resolve
from geoseg_nb.task import TrainSpec
from geoseg_nb.tilestore import read_rows
from geoseg_nb.tiling import TileSpec, tile
from geoseg_nb.training import train
from geoseg_nb.windows import Window
from house import ROOT, cells

SPECS = {"10_catalog": CatalogSpec, "11_split": SplitSpec, "22_tile": TileSpec, "37_train": TrainSpec, "43_evaluate": EvaluateSpec}


@pytest.fixture(scope="session", autouse=True)
def data():
    root = os.environ.get("GEOSEG_DATA")
    if not root:
        pytest.skip("GEOSEG_DATA is not set: no data beyond the sample")
    return Path(root)


def spec_of(recipe, job, **changes):
    "The spec of a job as its recipe's parameter file states it"
    return make(SPECS[job], {**load_recipe(packaged("runs") / recipe).values.get(job, {}), **changes})


def begin(recipe, **changes):
    "Catalog, problems and source of a recipe"
    spec = spec_of(recipe, "10_catalog", **changes)
    return *products.measured_catalog(spec), products.source_of(spec)


def bands(path, row=0, col=0, height=None, width=None):
    "A part of a file by rasterio alone"
    with rasterio.open(path) as source:
        area = rasterio.windows.Window(col, row, width or source.width - col, height or source.height - row)
        return source.read(window=area)


# Three sensors, three types, nine classes

@pytest.fixture(scope="module")
def land(data, tmp_path_factory):
    scenes, problems, source = begin("land_cover")
    return scenes, problems, source, tile(spec_of("land_cover", "22_tile"), scenes, source, tmp_path_factory.mktemp("land") / "land.zarr")


def test_three_sensors_of_a_recipe_become_one_store_with_an_array_each(land, data):
    scenes, problems, source, store = land
    folder = data / "terramesh_s1s2_lulc"
    assert sorted(scenes["id"]) == sorted(p.stem for p in (folder / "LULC").glob("*.tif")) and set(problems["kind"]) == {"mixed CRS"}
    held = read_rows(store, range(len(store)))
    assert {name: (array.dtype.name, array.shape[1]) for name, array in held.items() if array.ndim == 4} == {
        "s1": ("float64", 2), "s2": ("int16", 12), "dem": ("int16", 1)}
    files = {"s1": "S1RTC", "s2": "S2L2A", "dem": "DEM"}
    whole = {(name, id): bands(folder / part / f"{id}.tif") for name, part in files.items() for id in scenes["id"]}
    codes = {id: bands(folder / "LULC" / f"{id}.tif")[0] for id in scenes["id"]}
    for i, row in enumerate(store.index.itertuples()):
        area = np.s_[..., row.row : row.row + 32, row.col : row.col + 32]
        assert all(np.array_equal(held[name][i], whole[name, row.scene][area]) for name in files), row.id
        assert np.array_equal(held["label"][i], codes[row.scene][area] - 1)
    with xr.open_zarr(store.url, consolidated=True) as plain:
        assert plain["s2"].dims == ("tile", "s2_band", "y", "x") and plain["s2"].dtype == "int16"
        assert plain["dem_band"].values.tolist() == ["elevation"] and plain["s1"].attrs["units"] == "dB"


def test_a_batch_holds_the_bands_of_all_sensors_normalised_each_for_itself(land):
    scenes, _, _, store = land
    split = make_split(scenes, spec_of("land_cover", "11_split"))
    loader = make_loader(store, split, "train", batch_size=64)
    rows = loader.dataset.rows
    held = read_rows(store, rows)
    stacked = np.concatenate([held["s1"], held["s2"], held["dem"]], axis=1).astype(float)
    measured = statistics(store, split)
    np.testing.assert_allclose(measured.mean, stacked.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(measured.std, stacked.std((0, 2, 3)), rtol=1e-9)
    images = np.concatenate([batch["image"].numpy() for batch in loader])
    assert images.dtype == np.float32 and images.shape[1] == 15
    np.testing.assert_allclose(images.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(images.std((0, 2, 3)), 1, atol=1e-3)
    tiles = store.index.iloc[rows]
    assert (tiles["row"] + 32 <= 224 // 2 - 8).all(), "the top half, less the buffer"


def discriminant(folder, id):
    "Accuracy of a quadratic discriminant of the twelve optical bands, top half on bottom half; NaN where the top half has one class"
    optical, label = bands(folder / "S2L2A" / f"{id}.tif").astype(float), bands(folder / "LULC" / f"{id}.tif")[0]
    pixels, codes = optical.reshape(12, -1).T, label.ravel()
    top, bottom = np.s_[:112 * 224], np.s_[112 * 224:]
    if len(set(codes[top])) == 1: return float("nan")
    model = make_pipeline(StandardScaler(), QuadraticDiscriminantAnalysis()).fit(pixels[top], codes[top])
    return model.score(pixels[bottom], codes[bottom])


@pytest.mark.slow
def test_the_top_halves_teach_the_bottom_halves(land, data, tmp_path):
    "Beside a quadratic discriminant for each chip and pixel by scikit-learn, learned and scored on the same halves"
    scenes, _, source, store = land
    split = make_split(scenes, spec_of("land_cover", "11_split"))
    trained = train(spec_of("land_cover", "37_train", epochs=5), store, split, tmp_path / "train", progress=False)
    found = evaluate(trained.model_folder, scenes, split, source.reader, tmp_path / "maps", spec_of("land_cover", "43_evaluate"))
    scores = found.metrics()
    each = {id[:4]: score["accuracy"] for id, score in scores["scenes"].items()}
    plain = {id[:4]: discriminant(data / "terramesh_s1s2_lulc", id) for id in scores["scenes"]}
    print({id: (round(each[id], 2), round(plain[id], 2)) for id in each})
    assert {id: plain[id] for id in ("282D", "38D_", "637U")} == pytest.approx({"282D": 0.79, "38D_": 0.61, "637U": 0.70}, abs=0.01)
    assert np.isnan(plain["609U"]), "snow in both halves and nothing to tell apart"
    assert scores["pixels"] == 4 * 112 * 224 and scores["accuracy"] > 0.65 > 2 * scores["baseline"]["accuracy"]
    assert each["609U"] > 0.99 and each["282D"] > 0.70 and each["637U"] > 0.60, each
    with rasterio.open(found.classes[0]) as written, rasterio.open(scenes["image"].iloc[0]) as image:
        assert written.transform.almost_equals(image.transform) and written.crs == image.crs
        assert written.tags(1)["CLASS_8"] == "rangeland"


@pytest.mark.slow
def test_the_recipe_runs_from_the_command_line(data, tmp_path):
    command = [sys.executable, "-m", "geoseg_nb.cli", "run", "land_cover", "--out", str(tmp_path / "run"), "--variant", "small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "run" / "42_predict" / "classes").glob("*.tif"))) == 4


# A sensor of three resolutions

def ben_options(**ratios):
    names = {1: ["B02", "B03", "B04", "B08"], 2: ["B05", "B06", "B07", "B8A", "B11", "B12"], 6: ["B01", "B09"]}
    pattern = "BigEarthNet-S2-Example/{id}/{id}_{band}.tif"
    return {"masks": "", "sensors": {f"s2_{10 * r}m": {"images": pattern, "bands": names[r], "dtype": "uint16", "ratio": ratios.get(f"r{r}", r)}
                                     for r in names}}


@pytest.fixture(scope="module")
def ben(data):
    options = ben_options()
    scenes = products.catalog(CatalogSpec(root=str(data / "bigearthnet_examples"), options=options))
    legend = products.make_legend({"any": [0, "#000000"]})
    return scenes, products.Source(products.reader("pairs", options), products.sensors("pairs", options), legend)


def test_three_resolutions_are_kept_in_one_store(ben, tmp_path):
    scenes, source = ben
    store = tile(TileSpec(size=60, overlap=24, shard_tiles=7), scenes, source, tmp_path / "ben.zarr")
    assert len(scenes) == 6 and store.dataset["s2_60m"].dims == ("tile", "s2_60m_band", "s2_60m_y", "s2_60m_x")
    assert store.dataset["s2_60m_y"].values[:2].tolist() == [2.5, 8.5]
    held, at = read_rows(store, range(len(store))), scenes.set_index("id")
    for i, row in enumerate(store.index.itertuples()):
        for name, ratio in (("s2_10m", 1), ("s2_20m", 2), ("s2_60m", 6)):
            area = np.s_[row.row // ratio : (row.row + 60) // ratio, row.col // ratio : (row.col + 60) // ratio]
            first = "image" if ratio == 1 else {2: "s2_20m_B05", 6: "s2_60m_B01"}[ratio]
            assert np.array_equal(held[name][i][0], bands(at.loc[row.scene, first])[0][area]), (row.id, name)
    stacked = stack_sensors(store, {name: array[:3] for name, array in held.items()})
    assert stacked.shape == (3, 12, 60, 60) and np.array_equal(stacked[:, 10, ::6, ::6], held["s2_60m"][:3, 0])
    assert np.array_equal(stacked[:, 10], np.kron(held["s2_60m"][:3, 0], np.ones((6, 6), "uint16")))
    assert store.index["valid"].eq(1).all()


@pytest.mark.parametrize("window", [Window(0, 0, 120, 120), Window(7, 31, 50, 41), Window(119, 119, 1, 1), Window(5, 0, 1, 13)])
def test_any_window_of_a_coarser_sensor_is_a_part_of_the_whole(ben, window):
    scenes, source = ben
    row = scenes.iloc[2]
    part, area = source.reader(row, window=window), (..., *window.slices)
    for name, column, ratio in (("s2_20m", "s2_20m_B12", 2), ("s2_60m", "s2_60m_B09", 6)):
        whole = np.kron(bands(row[column])[0], np.ones((ratio, ratio), "uint16"))
        assert np.array_equal(part[name].values[-1], whole[area])


@pytest.mark.parametrize("how, words", [
    (dict(size=60, overlap=25), ("cuts through a pixel of s2_20m", "2 divides")), (dict(size=60, overlap=10), ("pixel of s2_60m", "6 divides")),
    (dict(size=64, overlap=0), ("of 64 px", "pixel of s2_60m", "6 divides"))], ids=["20 m", "60 m", "size"])
def test_tiles_that_would_cut_a_pixel_are_refused(ben, tmp_path, how, words):
    with pytest.raises(Refused) as said:
        tile(TileSpec(**how), *ben, tmp_path / "cut.zarr")
    assert all(word in str(said.value) for word in words) and not (tmp_path / "cut.zarr").exists()


def test_a_resolution_that_was_not_declared_is_refused_with_the_fix(data):
    with pytest.raises(GeosegError) as said:
        products.catalog(CatalogSpec(root=str(data / "bigearthnet_examples"), options=ben_options(r6=1)))
    text = str(said.value)
    assert "10 m 120x120" in text and "60 m 20x20" in text and "declare ratio=6 of s2_60m" in text and "resample={'s2_60m': 'bilinear'}" in text
    with pytest.raises(GeosegError, match="ratio=7 of s2_60m leaves a part pixel"):
        products.catalog(CatalogSpec(root=str(data / "bigearthnet_examples"), options=ben_options(r6=7)))


# Labels of five pixels in a hundred

def test_sparse_labels_train_on_the_labelled_pixels_alone(data, tmp_path):
    scenes, problems, source = begin("sparse_labels")
    codes = bands(data / "landsat8_elkton" / "L8-Labels-Elkton-VA.tiff")[0]
    assert scenes["id"].tolist() == ["Elkton"] and (codes == 255).mean() > 0.94 and problems.empty
    assert scenes[["count_label_0", "count_label_1", "count_label_2"]].iloc[0].tolist() == np.bincount(codes.ravel())[:3].tolist()
    store = tile(spec_of("sparse_labels", "22_tile"), scenes, source, tmp_path / "sparse.zarr")
    split = make_split(scenes, spec_of("sparse_labels", "11_split"))
    loader = make_loader(store, split, "train", batch_size=8)
    labels = np.concatenate([batch["label"].numpy() for batch in loader])
    rows = store.index.iloc[loader.dataset.rows]
    here = [codes[r.row : r.row + 32, r.col : r.col + 32] for r in rows.itertuples()]
    assert len(loader.dataset.rows) < len(store) and all((tile != 255).any() for tile in here)
    assert np.bincount(labels.ravel(), minlength=256).tolist() == np.bincount(np.ravel(here), minlength=256).tolist()
    trained = train(spec_of("sparse_labels", "37_train", epochs=4), store, split, tmp_path / "train", progress=False)
    scored = evaluate(trained.model_folder, scenes, split, source.reader, tmp_path / "maps", spec_of("sparse_labels", "43_evaluate")).metrics()
    assert scored["pixels"] == (codes[114:] != 255).sum() and scored["accuracy"] > scored["baseline"]["accuracy"] > 0.8


# Grids that differ by metres

def test_years_whose_grids_differ_are_refused_with_both_grids_named(data):
    options = {**load_recipe(packaged("runs") / "naip_years").values["10_catalog"]["options"], "resample": {}}
    with pytest.raises(GeosegError) as said:
        products.catalog(spec_of("naip_years", "10_catalog", options=options))
    text = str(said.value)
    assert "y2009 is EPSG:26914 5 m 724x934 at (485900, 5209247)" in text and "(485900, 5209245)" in text
    assert "m_4709963_se_14_1_20120731.tif" in text and "resample={'y2012': 'bilinear'}" in text


def test_a_declared_resampling_equals_gdal_and_is_counted(data, tmp_path):
    scenes, problems, source = begin("naip_years")
    assert problems["kind"].tolist().count("resampled") == 1
    assert "y2012 bilinear, y2015 bilinear, y2018 bilinear, y2020 bilinear, in 1 of 1 scenes" in problems["detail"].tolist()
    row, years = scenes.iloc[0], {"y2012": "20120731", "y2018": "20180716"}
    read = source.reader(row)
    with rasterio.open(row["image"]) as main:
        assert np.array_equal(read["y2009"].values, main.read())
        for name, date in years.items():
            with rasterio.open(data / "naip_nd_timeseries" / f"m_4709963_se_14_1_{date}.tif") as other:
                wanted = np.zeros((4, main.height, main.width), "uint8")
                reproject(other.read(), wanted, src_transform=other.transform, src_crs=other.crs, src_nodata=0, dst_transform=main.transform,
                          dst_crs=main.crs, dst_nodata=0, resampling=Resampling.bilinear)
            assert np.abs(read[name].values.astype(int) - wanted)[:, 1:-1, 1:-1].max() <= 1
            assert (read[name].values == wanted).mean() > 0.99 and (read[name].values != read["y2009"].values).any()
    window = Window(300, 501, 211, 130)
    assert np.array_equal(source.reader(row, ["nir_2018"], window)["y2018"].values[0], read["y2018"].values[3][window.slices])
    store = tile(spec_of("naip_years", "22_tile"), scenes, source, tmp_path / "naip.zarr")
    options = products.product_options("pairs", load_recipe(packaged("runs") / "naip_years").values["10_catalog"]["options"])
    other = options.replace(resample={name: "nearest" for name in options.resample})
    again = products.catalog(spec_of("naip_years", "10_catalog", options=other.model_dump()))
    nearest = tile(spec_of("naip_years", "22_tile"), again, products.Source(products.reader("pairs", other), source.sensors, source.legend),
                   tmp_path / "again" / "naip.zarr")
    assert store.manifest.source["scenes"] != nearest.manifest.source["scenes"], "another resampling is another store"


# Series

def test_a_series_has_a_row_for_each_date(data, tmp_path):
    options = {"images": "{id}_timeseries/{date}.tif", "masks": "", "date_format": "%Y", "sensor": "landsat",
               "bands": ["swir1", "nir", "red", "green"], "unit": "", "dtype": "uint8", "nodata": 0}
    scenes = products.catalog(CatalogSpec(root=str(data), options=options))
    years = range(1985, 2021, 5)
    assert scenes["id"].tolist() == [f"landsat_pucallpa_{year}" for year in years] and scenes["place"].unique().tolist() == ["landsat_pucallpa"]
    assert [str(time) for time in scenes["time"]] == [f"{year}-01-01 00:00:00+00:00" for year in years]
    source = products.Source(products.reader("pairs", options), products.sensors("pairs", options), products.make_legend({"any": [0, "#000000"]}))
    store = tile(TileSpec(size=128, overlap=0), scenes, source, tmp_path / "pucallpa.zarr")
    at = store.index.query("scene == 'landsat_pucallpa_2005' and row == 128 and col == 256").index[0]
    assert np.array_equal(store.dataset["landsat"][at].values, bands(data / "landsat_pucallpa_timeseries" / "2005.tif", 128, 256, 128, 128))
    assert store.index["time"][at] == pd.Timestamp("2005-01-01", tz="UTC")
    split = make_split(scenes, make(SplitSpec, {"rule": "column", "column": "place", "values": {"train": ["landsat_pucallpa"]}}))
    assert set(split["part"]) == {"train"} and len(split) == 8


def test_each_date_of_a_series_keeps_its_own_grid(data):
    options = {"images": "m_{id}_14_1_{date}.tif", "masks": "", "sensor": "naip", "bands": list("rgbn"), "unit": "", "dtype": "uint8"}
    scenes = products.catalog(CatalogSpec(root=str(data / "naip_nd_timeseries"), options=options))
    assert len(scenes) == 5 and len({tuple(t) for t in scenes["transform"]}) == 4 and scenes["height"].tolist() == [724, 723, 723, 724, 723]
    assert scenes["time"].dt.strftime("%Y%m%d").tolist() == [id[-8:] for id in scenes["id"]]


# Memory

MEASURE = """
import sys
sys.path.insert(0, sys.argv[1])
import test_general as t
t.stages(sys.argv[2], sys.argv[3], int(sys.argv[4]))
"""
IMPORTS = "import sys; sys.path.insert(0, sys.argv[1]); import test_general"
BOUND = 600  # MB that catalog, tiling and prediction of a scene take beside the imported libraries
GROWTH = 100  # MB that ten more scenes may add, of 463, once each of the two workers holds one


def stages(recipe, folder, times):
    "Catalog, tile and predict a recipe's scene, listed a number of times"
    scenes, _, source = begin(recipe)
    many = pd.concat([scenes.assign(id=f"{scenes['id'][0]}_{i}") for i in range(times)], ignore_index=True)
    store = tile(spec_of(recipe, "22_tile"), many, source, f"{folder}/{times}/tiles.zarr")
    assert len(store) == times * (store.index["scene"] == many["id"][0]).sum()
    predict(source, many, Path(folder), times)


def predict(source, scenes, folder, times):
    "Maps of the scenes by a network drawn at random"
    from geoseg_nb.checkpoint import ModelCard, save_model
    from geoseg_nb.models import ModelSpec, build_model
    from geoseg_nb.predict import PredictSpec, predict_catalog

    names = [band for sensor in source.sensors for band in sensor.names]
    spec = ModelSpec(bands=len(names), classes=2, options={"encoder_depth": 3, "decoder_channels": [16, 8, 8]})
    card = ModelCard(model=spec, sensors=[s.as_dict() for s in source.sensors], normaliser={"kind": "none"},
                     legend=source.legend.as_dict(), tile_size=128, overlap=16)
    model = save_model(folder / "model", build_model(spec, seed=0), card)
    paths = predict_catalog(model, scenes[:1], source.reader, folder / f"maps{times}", PredictSpec(overlap=16, batch_size=4))
    with rasterio.open(paths[0]) as written:
        assert written.shape == (scenes["height"][0], scenes["width"][0])
        assert (written.read(1) == 255).mean() == pytest.approx(1 - scenes["valid_fraction"][0], abs=1e-9)


LAUNCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak(code, *arguments):
    "Largest resident memory of a process in MB; its parent is a small one, since a child begins with the peak of its parent"
    command = [sys.executable, "-c", LAUNCH, sys.executable, "-c", code, str(Path(__file__).parent), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1]) / 1024


@pytest.fixture(scope="module")
def libraries():
    return peak(IMPORTS)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["one_file_a_band", "full_tile"])
def test_memory_stays_within_its_bound_for_ten_scenes_more(data, libraries, tmp_path, recipe):
    "Ten of the larger scene are 10 * 2201 * 2629 * 8 bytes = 463 MB, and four times that as a network sees them"
    used = {times: peak(MEASURE, recipe, tmp_path, times) - libraries for times in (2, 12)}
    print({"libraries": round(libraries), **{f"{times} times": round(mb) for times, mb in used.items()}})
    assert max(used.values()) < BOUND, f"{used} MB above the {libraries:.0f} MB of the libraries"
    assert used[12] < used[2] + GROWTH, f"memory grows with the data: {used}"


# A scene without labels, mapped by a model of another run

WITHIN = {"one_file_a_band": 380, "full_tile": 190}  # MB beside the libraries for catalog, tiling and map: 289 and 139 measured, * 1.3


def labelled(recipe, data, folder):
    "The recipe's scene beside a label made of one band: dark or not"
    options = dict(load_recipe(packaged("runs") / recipe).values["10_catalog"]["options"])
    source = Path(str(spec_of(recipe, "10_catalog").root).replace("$GEOSEG_DATA", str(data)))
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    band, name = sorted(p for p in source.iterdir() if p.suffix in (".tiff", ".jp2"))[-1], {"full_tile": "B01 label.tif"}.get(recipe)
    with rasterio.open(band) as image:
        values, profile = image.read(1), {**image.profile, "driver": "GTiff", "dtype": "uint8", "nodata": 255, "compress": "deflate"}
    blank = {"one_file_a_band": 255, "full_tile": 0}[recipe]
    label = np.where(values == blank, 255, values < np.median(values[values != blank])).astype("uint8")
    profile = {k: v for k, v in profile.items() if k in ("driver", "dtype", "nodata", "compress", "crs", "transform", "width", "height", "count")}
    with rasterio.open(folder / (name or "2018-10-13, Sentinel-2B label.tif"), "w", **profile) as out:
        out.write(label, 1)
    masks = {"one_file_a_band": "{date}, {id} label.tif", "full_tile": "{id} label.tif"}[recipe]
    legend = {"bright": [0, "#d8c9a0"], "dark": [1, "#2b4a6f"]}
    return spec_of(recipe, "10_catalog", root=str(folder), options={**options, "masks": masks}, legend=legend, ignore=[255]), label


def trained_elsewhere(recipe, data, folder):
    "A model folder by the real training, of two short epochs on a strip of the scene, and the label"
    spec, label = labelled(recipe, data, folder / "in")
    scenes, source = products.catalog(spec), products.source_of(spec)
    store = tile(spec_of(recipe, "22_tile"), scenes, source, folder / "tiles.zarr")
    split = make_split(scenes, SplitSpec(areas={"train": {"cols": [0.3, 0.6]}, "test": {"cols": [0.6, 1]}}))
    spec = TrainSpec(model_options={"encoder_depth": 3, "decoder_channels": [16, 8, 8]}, epochs=2, batch_size=2, keep="last")
    return train(spec, store, split, folder / "train", progress=False).model_folder, label


CLI = "import runpy, sys; sys.argv[:] = ['geoseg', *sys.argv[2:]]; runpy.run_module('geoseg_nb.cli', run_name='__main__')"


@pytest.fixture(scope="module")
def kernel():
    "What the modules of the predict job hold, read from its own cell of imports"
    cell = next(c for c in cells(ROOT / "nbs/jobs/42_predict.ipynb") if "\nfrom geoseg_nb" in c["source"])
    return peak(f"{cell['source']}\nimport ipykernel.kernelapp")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["one_file_a_band", "full_tile"])
def test_a_scene_without_labels_is_mapped_by_a_model_trained_elsewhere(data, kernel, tmp_path, recipe):
    "From the command line; as the network sees it the larger scene alone has 2201 * 2629 * 8 bands * 4 bytes = 185 MB,"
    model, label = trained_elsewhere(recipe, data, tmp_path)
    used = peak(CLI, "run", recipe, "--variant", "map", "--out", tmp_path / "run", "-p", f"predict.model={model}") - kernel
    print({"recipe": recipe, "libraries": round(kernel), "used": round(used)})
    [path] = (tmp_path / "run/42_predict/classes").glob("*.tif")
    with rasterio.open(path) as written:
        classes = written.read(1)
    scenes, _, source = begin(recipe)
    known = np.logical_and.reduce([bands(file)[0] != {"one_file_a_band": 255, "full_tile": 0}[recipe]
                                   for file in (data / Path(scenes["image"][0]).parent).iterdir() if file.suffix in (".tiff", ".jp2")])
    assert classes.shape == known.shape and np.array_equal(classes == 255, ~known)
    test = np.s_[:, int(0.6 * classes.shape[1]) + 1:]
    right = (classes == label)[test][known[test]].mean()
    print({"right": round(float(right), 3)})
    assert right > 0.7, f"{right:.2f}; half of the pixels are dark"
    assert used < WITHIN[recipe], f"{used:.0f} MB above the {kernel:.0f} MB of the libraries"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["one_file_a_band", "full_tile"])
def test_a_pointwise_model_maps_a_large_scene_as_in_one_pass(data, tmp_path, recipe):
    from dataclasses import replace

    import torch

    from geoseg_nb.checkpoint import ModelCard, load_model, save_model
    from geoseg_nb.models import ModelSpec, build_model
    from geoseg_nb.predict import PredictSpec, predict_catalog

    scenes, _, source = begin(recipe)
    names = [band for sensor in source.sensors for band in sensor.names]
    legend = products.make_legend({"one": [0, "#000000"], "two": [1, "#ffffff"]})
    card = ModelCard(model=ModelSpec(bands=len(names), classes=2), sensors=[s.as_dict() for s in source.sensors], tile_size=128, overlap=16,
                     normaliser={"kind": "mean_std", "mean": [1e3 if recipe == "full_tile" else 90] * len(names), "std": [50.0] * len(names)}, legend=legend.as_dict())
    model = load_model(save_model(tmp_path / "m", build_model(card.model, seed=0), card), device="cpu", precision="fp32")
    torch.manual_seed(5)
    model = replace(model, network=torch.nn.Sequential(torch.nn.Conv2d(len(names), 4, 1), torch.nn.Tanh(), torch.nn.Conv2d(4, 2, 1)).eval())
    [path] = predict_catalog(model, scenes, source.reader, tmp_path / "maps", PredictSpec(batch_size=8))
    image = np.concatenate([bands(f) for f in sorted(Path(scenes["image"][0]).parent.iterdir()) if f.suffix in (".tiff", ".jp2")]).astype("float32")
    blank = (image == {"one_file_a_band": 255, "full_tile": 0}[recipe]).any(0)
    with torch.inference_mode():
        whole = model.network((torch.from_numpy(image)[None] - card.normaliser["mean"][0]) / 50)[0]
    with rasterio.open(path) as written:
        classes = written.read(1)
    clear = (whole[0] - whole[1]).abs().numpy() > 1e-3
    assert np.array_equal(classes == 255, blank) and clear.mean() > 0.9
    assert np.array_equal(classes[clear & ~blank], whole.argmax(0).numpy()[clear & ~blank]) and len(np.unique(classes[~blank])) == 2


def test_the_white_around_a_scene_is_no_data(data):
    scenes, _, source = begin("one_file_a_band")
    folder = data / "s2_l1c_hatteras_8bit"
    files = sorted(folder.glob("*.tiff"))
    seen = np.logical_and.reduce([bands(path)[0] != 255 for path in files])
    assert scenes["id"].tolist() == ["Sentinel-2B_2018-10-13"] and scenes["valid_fraction"][0] == pytest.approx(seen.mean(), abs=1e-12)
    part = source.reader(scenes.iloc[0], ["B08", "B02"], Window(1000, 1200, 64, 80))
    assert np.array_equal(part["s2"].values, np.stack([bands(files[i], 1000, 1200, 64, 80)[0] for i in (7, 1)]))


# Recipes name data by a variable

def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("GEOSEG_DATA")
    with pytest.raises(Refused, match="GEOSEG_DATA is not set; export GEOSEG_DATA="):
        products.catalog(spec_of("land_cover", "10_catalog"))


def test_a_variable_stands_for_its_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GEOSEG_DATA", str(tmp_path / "données 1"))
    assert resolve("$GEOSEG_DATA/a/b.tif") == tmp_path / "données 1" / "a" / "b.tif" and resolve("$GEOSEG_DATA") == tmp_path / "données 1"
    assert resolve("x/$GEOSEG_DATA/a").parts[-2:] == ("$GEOSEG_DATA", "a")
    monkeypatch.setenv("MY_ACCESS_KEY", "hush")
    with pytest.raises(Refused) as said:
        resolve("$MY_ACCESS_KEY/a")
    assert "hush" not in str(said.value)


@pytest.mark.parametrize("recipe", ["land_cover", "sparse_labels", "one_file_a_band", "full_tile", "naip_years"])
def test_recipes_pass_the_preflight_of_the_launcher(recipe):
    jobs = load_recipe(packaged("runs") / recipe).jobs
    specs = [spec_of(recipe, job) for job in jobs if job in SPECS]
    assert len(specs) >= 2 and products.sensors("pairs", specs[0].options)
