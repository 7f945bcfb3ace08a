"""Thaw slumps: folders written in the documented structure, labels against shapely, pyproj and SciPy, and the real scene of the Peel Plateau;
never our own reader twice"""
import json
import os
import re
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.experts import expert_masks, majority_mask
from geoseg_nb.loader import make_loader
from geoseg_nb.plan import TileSpec
from geoseg_nb.products import SourceSpec, measured_catalog, reader, source_of
from geoseg_nb.raster import grid_of, row_grid
from geoseg_nb.rules import SplitSpec
from geoseg_nb.slump_trials import SlumpSpec, made_scenes, planet_name, sentinel_name, write_planet, write_s2
from geoseg_nb.split import divide, make_split
from geoseg_nb.thawslumps import INVALID, Options, catalog, eroded, polygon_account, read, read_arrays
from geoseg_nb.tiling import tile
from geoseg_nb.windows import Window
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, uniform_filter

from house import geoseg

PLANET = Options(kind="planet", labels="../labels", on_missing="skip")
SMALL = SlumpSpec(scenes=3, size=64, slumps=2, faults=False)


def data(*parts):
    root = os.environ.get("GEOSEG_DATA")
    if not root: pytest.skip("GEOSEG_DATA is not set: no data beyond the sample")
    if not Path(root, parts[0]).is_dir(): pytest.skip(f"no {parts[0]} in GEOSEG_DATA")
    return Path(root).joinpath(*parts)


@pytest.fixture(scope="module")
def planet(tmp_path_factory):
    "A Planet data set with all its faults, and its catalog"
    root = tmp_path_factory.mktemp("planet")
    write_planet(root, SlumpSpec())
    return root, catalog(root / "data", PLANET)


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory):
    root = tmp_path_factory.mktemp("s2")
    write_s2(root, SlumpSpec())
    return root, catalog(root, Options(on_missing="skip"))


def disk(size):
    y, x = np.mgrid[-size : size + 1, -size : size + 1]
    return x**2 + y**2 <= size**2


def centres(grid):
    row, col = np.mgrid[: grid.height, : grid.width] + 0.5
    a, b, c, d, e, f = grid.transform
    return a * col + b * row + c, d * col + e * row + f


# the rim

@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 12), st.integers(0, 9), st.floats(0, 0.2))
def test_erosion_is_that_of_scipy_by_a_disk(height, width, size, seed, share):
    valid = np.random.default_rng(seed).random((height, width)) >= share
    assert np.array_equal(eroded(valid, size), binary_erosion(valid, disk(size), border_value=0))


def test_the_rim_is_really_taken_away(planet):
    "The first system computed the eroded mask and then overwrote it"
    _, scenes = planet
    row = scenes.set_index("id", drop=False).loc[planet_name(4)]
    with rasterio.open(row["image"]) as source: valid = (source.read() > 0).all(0)
    kept = {size: read_arrays(row, PLANET.replace(mask_erosion_size=size)).label != INVALID for size in (0, 3, 10)}
    assert np.array_equal(kept[0], valid) and kept[10].sum() < kept[3].sum() < kept[0].sum()
    assert np.array_equal(kept[10], binary_erosion(valid, disk(10), border_value=0))


# labels

@pytest.mark.parametrize("kind", ["planet", "s2"])
def test_labels_are_the_pixels_whose_centres_the_outlines_hold(kind, planet, sentinel):
    "shapely and pyproj on the files as they lie there, without our reader"
    (_, scenes), options = (planet, PLANET) if kind == "planet" else (sentinel, Options())
    for _, row in scenes.iterrows():
        grid, outlines = row_grid(row), gpd.read_file(row["labels_0"])
        if kind == "planet": outlines = outlines[outlines["image_id"] == row["id"]]
        shapes = shapely.make_valid(outlines.geometry.to_numpy())
        shapes = gpd.GeoSeries(shapely.segmentize(shapes, 0.00001 if outlines.crs.is_geographic else 1), crs=outlines.crs).to_crs(grid.crs).to_numpy()
        x, y = centres(grid)
        inside = np.logical_or.reduce([shapely.contains_xy(shape, x, y) for shape in shapes])
        near = np.logical_or.reduce([shapely.distance(shapely.boundary(shape), shapely.points(x, y)) < 0.05 for shape in shapes])
        with rasterio.open(row["image"]) as source: valid = (source.read() > 0).all(0)
        if kind == "s2":
            with rasterio.open(row["quality"]) as source: valid &= np.kron(source.read(1), np.ones((2, 2), int)) > 1
        wanted = np.where(binary_erosion(valid, disk(10), border_value=0), inside, INVALID)
        label = read_arrays(row, options).label
        assert np.array_equal(label[~near], wanted[~near]) and near.mean() < 0.02


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_window_has_the_labels_of_the_whole_scene(planet, sentinel, data):
    (_, scenes), options = data.draw(st.sampled_from([(planet, PLANET), (sentinel, Options())]))
    options = options.replace(clear=data.draw(st.booleans()), mask_erosion_size=data.draw(st.integers(0, 14)))
    row = scenes.iloc[data.draw(st.integers(0, len(scenes) - 1))]
    top, left = data.draw(st.integers(0, 150)), data.draw(st.integers(0, 150))
    window = Window(top, left, data.draw(st.integers(1, 160 - top)), data.draw(st.integers(1, 160 - left)))
    whole, part = read_arrays(row, options), read_arrays(row, options, ["nir", "blue"], window)
    assert np.array_equal(part.label, whole.label[window.slices]) and np.array_equal(part.valid, whole.valid[window.slices])
    assert np.array_equal(part.images[0][1], whole.images[0][1][[3, 0]][:, *window.slices])


def relabelled(root, name, **columns):
    "The labels of the first scene of a Sentinel-2 folder under another name or with further columns"
    home = root / planet_name(0)
    old = home / f"{sentinel_name(0)}.shp"
    outlines = gpd.read_file(old)
    for path in home.glob(f"{sentinel_name(0)}.*"): path.unlink()
    outlines.assign(**columns).to_file(home / f"{sentinel_name(0)}{name}")


@pytest.mark.parametrize("name", [".shp", ".gpkg", ".geojson"])
def test_shapefile_geopackage_and_geojson_give_the_same_label(tmp_path, name):
    write_s2(tmp_path, SMALL)
    options = Options(mask_erosion_size=2)
    before = read_arrays(catalog(tmp_path, options).iloc[0], options).label
    relabelled(tmp_path, name)
    row = catalog(tmp_path, options).set_index("id", drop=False).loc[planet_name(0)]
    assert row["labels_0"].endswith(name) and (read_arrays(row, options).label != before).mean() < 1e-3


def test_label_values_are_negative_positive_and_invalid(tmp_path):
    write_s2(tmp_path, SMALL)
    relabelled(tmp_path, ".gpkg", label=[1, 2])
    options = Options(mask_erosion_size=0, value="label", on_missing="skip")
    row = catalog(tmp_path, options).iloc[0]
    first, second = (read_arrays(row, Options(mask_erosion_size=0)).label, read_arrays(row, options).label)
    assert ((first == 1) == (second > 0)).all() and set(np.unique(second)) == {0, 1, 2}
    legend = source_of(SourceSpec(product="thawslumps", root=str(tmp_path), legend={})).legend
    assert np.unique(legend.encode(second)).tolist() == [0, 1, 255]
    relabelled_again = gpd.read_file(row["labels_0"]).assign(label=[1, 3])
    relabelled_again.to_file(row["labels_0"])
    with pytest.raises(GeosegError, match=r"label holds \[3\]; a label is 0 negative, 1 positive or 2 invalid"): catalog(tmp_path, options.replace(on_missing="raise"))


def test_where_values_overlap_invalid_wins_over_positive(tmp_path):
    write_s2(tmp_path, SMALL)
    grid = grid_of(next(tmp_path.glob(f"{planet_name(0)}/*_SR.tif")))
    west, south, east, north = grid.bounds
    pieces = [shapely.box(west, south, (west + east) / 2, north), shapely.box(west, (south + north) / 2, east, north)]
    for path in (tmp_path / planet_name(0)).glob(f"{sentinel_name(0)}.*"): path.unlink()
    gpd.GeoDataFrame({"label": [2, 1]}, geometry=pieces, crs=grid.crs).to_file(tmp_path / planet_name(0) / f"{sentinel_name(0)}.shp")
    options = Options(mask_erosion_size=0, value="label", on_missing="skip")
    label = read_arrays(catalog(tmp_path, options).iloc[0], options).label
    assert (label[:, :32] == 2).all() and (label[:32, 32:] == 1).all() and (label[32:, 32:] == 0).all()


def test_outside_of_the_footprint_nothing_is_known_and_inside_without_a_polygon_all_is_negative(tmp_path):
    write_planet(tmp_path, SMALL)
    for path in tmp_path.rglob("ImageFootprints*.gpkg"):
        table = gpd.read_file(path).to_crs("EPSG:32608")
        table.assign(geometry=table.buffer(-30, join_style="mitre")).to_file(path)
    for path in tmp_path.rglob("TrainingLabel*.gpkg"):
        table = gpd.read_file(path)
        if (table["image_id"] == planet_name(0)).any(): table[table["image_id"] != planet_name(0)].to_file(path)
    options = PLANET.replace(mask_erosion_size=0)
    scenes = catalog(tmp_path / "data", options).set_index("id", drop=False)
    label = read_arrays(scenes.loc[planet_name(0)], options).label
    assert scenes["polygons"].to_dict()[planet_name(0)] == 0 and (label[10:-10, 10:-10] == 0).all()
    label[10:-10, 10:-10] = INVALID
    assert (label == INVALID).all()
    told = polygon_account(scenes.reset_index(drop=True)).set_index("what")
    assert told["count"]["scenes without a polygon"] == 1 and told["where"]["scenes without a polygon"] == planet_name(0)


# the provider's masks

def test_clouds_are_no_label_and_stay_in_the_image(sentinel):
    _, scenes = sentinel
    row, options = scenes.iloc[0], Options(clear=True)
    with rasterio.open(row["quality"]) as source: classes = np.kron(source.read(1), np.ones((2, 2), "uint8"))
    with rasterio.open(row["image"]) as source: values = source.read()
    found = read_arrays(row, options)
    assert np.array_equal(found.label != INVALID, binary_erosion(classes == 5, disk(10), border_value=0)) and found.valid.all()
    assert np.array_equal(found.images[0][1], values)


def test_a_quality_file_on_another_grid_is_refused(tmp_path):
    write_s2(tmp_path, SMALL)
    path = next(tmp_path.glob(f"{planet_name(0)}/*_SCL.tif"))
    with rasterio.open(path, "r+") as target: target.transform = rasterio.Affine(20, 0, 500_010, 0, -20, 7_500_000)
    with pytest.raises(GeosegError, match=f"{planet_name(0)}.*\n?.*at \\(500010, 7500000\\)"): catalog(tmp_path, Options())


def test_minus_infinity_is_no_data(tmp_path):
    "Landsat-8 of the Peel Plateau, which declares it, with a corner of one band lost"
    (tmp_path / "landsat").mkdir()
    image = tmp_path / "landsat" / "LC08_139232_20210721_SR.tif"
    with rasterio.open(data("rts_peel_s2_l8", "01_Setup/Peel/data/L8_LC08_139232_20210721.tif")) as source: profile, values = source.profile, source.read()
    values[3, :20, :30] = -np.inf
    with rasterio.open(image, "w", **profile) as target: target.write(values)
    bands = ["blue", "green", "red", "nir", "swir1", "swir2", "pan"]
    options = Options(bands=bands, dtype="float32", scale=1, unlabelled="keep")
    row = catalog(tmp_path, options).iloc[0]
    found = read(row, options)
    assert profile["nodata"] == -np.inf and not found["valid"][:20, :30].any() and np.array_equal(found["valid"], np.isfinite(values).all(0)) and "label" not in found


# problems

def test_all_that_is_wrong_with_a_folder_is_told_in_one_error(tmp_path):
    write_planet(tmp_path, SlumpSpec(scenes=6, size=64, slumps=1, faults=False))
    images = {p.parent.name: p for p in tmp_path.rglob("*_SR*.tif")}
    image = [images[planet_name(i)] for i in range(6)]
    image[0].unlink()
    image[1].write_bytes(image[1].read_bytes()[:3000])
    shutil.copy(image[2], image[2].with_name("copy_SR.tif"))
    shutil.copytree(image[3].parent, tmp_path / "data" / "iteration003" / planet_name(3))
    with rasterio.open(image[4]) as source: profile, values = source.profile, source.read()
    with rasterio.open(image[4], "w", **{**profile, "count": 3}) as target: target.write(values[:3])
    with pytest.raises(GeosegError) as refusal: catalog(tmp_path / "data", PLANET.replace(on_missing="raise"))
    assert "on_missing='skip'" in str(refusal.value) and "problems in" in str(refusal.value)
    scenes = catalog(tmp_path / "data", PLANET)
    told = {problem["id"]: problem["reason"] for problem in scenes.attrs["skipped"]}
    assert "no image *_SR.tif or *_SR_clip.tif" in [p["reason"] for p in scenes.attrs["skipped"]]
    assert "could both be meant" in " ".join(p["reason"] for p in scenes.attrs["skipped"])
    assert "the same id" in told[planet_name(3)] and "has 3 bands" in told[planet_name(4)] and planet_name(1) in told
    assert set(scenes["id"]) == {planet_name(3), planet_name(5)}


def test_invalid_outlines_are_refused_on_request(planet, tmp_path):
    root, scenes = planet
    assert scenes.set_index("id")["mended"].to_dict()[planet_name(0)] == 2
    strict = catalog(root / "data", PLANET.replace(invalid="raise"))
    reasons = {p["id"]: p["reason"] for p in strict.attrs["skipped"]}
    assert "polygons that are not valid: 2" in reasons[planet_name(0)] and planet_name(0) not in set(strict["id"])


def test_polygons_without_a_place_are_refused(tmp_path):
    write_s2(tmp_path, SMALL)
    next((tmp_path / planet_name(0)).glob("*.prj")).unlink()
    with pytest.raises(GeosegError, match="no CRS, so no place on Earth"): catalog(tmp_path, Options())


def test_labels_without_image_id_and_no_labels_are_refused(tmp_path):
    write_planet(tmp_path, SMALL)
    with pytest.raises(Refused, match="no TrainingLabel"): catalog(tmp_path / "data", PLANET.replace(labels="../nowhere"))
    path = next(tmp_path.rglob("TrainingLabel*.gpkg"))
    gpd.read_file(path).rename(columns={"image_id": "image"}).to_file(path)
    with pytest.raises(Refused, match="column of .*image_id"): catalog(tmp_path / "data", PLANET)
    with pytest.raises(Refused, match="no folder"): catalog(tmp_path / "gone", Options())
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="no folder of a scene"): catalog(tmp_path / "empty", Options())


def test_labels_of_one_image_may_lie_in_several_files(tmp_path):
    write_planet(tmp_path, SMALL)
    first = next(p for p in tmp_path.rglob("TrainingLabel*.gpkg") if planet_name(0) in set(gpd.read_file(p)["image_id"]))
    table = gpd.read_file(first)
    options = PLANET.replace(mask_erosion_size=0)
    before = read_arrays(catalog(tmp_path / "data", options).set_index("id", drop=False).loc[planet_name(0)], options).label
    (tmp_path / "labels" / "later").mkdir()
    table[1:].to_file(tmp_path / "labels" / "later" / "TrainingLabel_later.gpkg")
    table[:1].to_file(first)
    row = catalog(tmp_path / "data", options).set_index("id", drop=False).loc[planet_name(0)]
    assert row["polygons"] == 2 and row["labels_1"] and np.array_equal(read_arrays(row, options).label, before)


# the stages after it

def test_a_store_knows_its_labels_and_which_tiles_cannot_be_judged(tmp_path):
    write_planet(tmp_path, SlumpSpec(scenes=4, size=160, slumps=4))
    spec = SourceSpec(product="thawslumps", root=str(tmp_path / "data"), legend={}, on_error="skip", options={"kind": "planet", "labels": "../labels"})
    scenes, findings = measured_catalog(spec)
    assert (findings["kind"] == "skipped").sum() == 2 and findings["detail"].str.contains("EPSG:3413 to EPSG:32608").any()
    store = tile(TileSpec(size=32, overlap=0), scenes, source_of(spec), tmp_path / "slumps.zarr")
    take, index = reader("thawslumps", spec.options), store.index
    for i in (0, 7, 40):
        row, scene = index.iloc[i], scenes[scenes["id"] == index["scene"].iloc[i]].iloc[0]
        label = take(scene, None, Window(row["row"], row["col"], 32, 32))["label"].values
        assert np.array_equal(store.dataset["label"][i].values, np.where(label == 2, 255, label))
    split = make_split(scenes, SplitSpec(rule="random", fractions={"train": 0.7, "val": 0.3}))
    loader = make_loader(store, split, "train", batch_size=4, min_labelled=0.1)
    train = index["scene"].isin(split["scene"][split["part"] == "train"])
    assert loader.skipped == (train & (index["labelled"] <= 0.1)).sum() > 0
    path = scenes["labels_0"].iloc[0]
    gpd.read_file(path)[1:].to_file(path)
    with pytest.raises(GeosegError, match="changed since the catalog"): take(scenes.iloc[0])


def test_the_catalog_job_reads_it(tmp_path):
    write_s2(tmp_path / "s2", SlumpSpec(scenes=4, size=64, slumps=1, faults=False))
    done = geoseg("run", "catalog", "--out", tmp_path / "out", "-p", "product=thawslumps", "-p", f"root={tmp_path / 's2'}", "-p", "legend={}",
                  "-p", "options={mask_erosion_size: 4}")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_every_job_takes_it_and_a_network_learns_it(tmp_path):
    "Parameter files alone, from the folders to maps; two scenes that no training saw"
    write_planet(tmp_path / "made", SlumpSpec(scenes=10, size=128, slumps=4))
    files = {
        "recipe": {"title": "Made slumps", "jobs": ["10_catalog", "11_split", "22_tile", "37_train", "43_evaluate", "42_predict"]},
        "10_catalog": {"product": "thawslumps", "root": str(tmp_path / "made" / "data"), "legend": {}, "ignore": [], "on_error": "skip",
                       "options": {"kind": "planet", "labels": "../labels", "mask_erosion_size": 5}},
        "11_split": {"rule": "random", "fractions": {"train": 0.6, "val": 0.2, "test": 0.2}},
        "22_tile": {"size": 64, "overlap": 32},
        "37_train": {"model_options": {"encoder_depth": 3, "decoder_channels": [64, 32, 16]}, "epochs": 6, "min_labelled": 0.1}}
    (tmp_path / "recipe").mkdir()
    for name, values in files.items(): (tmp_path / "recipe" / f"{name}.yml").write_text(json.dumps(values))
    done = geoseg("run", tmp_path / "recipe", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    score = re.search(r"iou_positive +([0-9.]+) +\(([0-9.]+)\)", done.stdout)
    assert float(score[1]) > 0.5 > float(score[2]), done.stdout[-2000:]
    assert len(list((tmp_path / "out" / "42_predict" / "classes").glob("*.tif"))) == 9


def test_the_check_job_finds_a_damaged_image_and_no_fault_in_outlines(tmp_path):
    write_s2(tmp_path / "s2", SMALL)
    words = ("run", "check", "-p", "product=thawslumps", "-p", f"root={tmp_path / 's2'}", "-p", "depth=decodes")
    assert (done := geoseg(*words, "--out", tmp_path / "whole")).returncode == 0, done.stderr[-2000:]
    image = next((tmp_path / "s2" / planet_name(1)).glob("*_SR.tif"))
    data = bytearray(image.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    image.write_bytes(data)
    assert geoseg(*words, "--out", tmp_path / "torn").returncode == 3


def test_whole_scenes_go_to_the_test_by_named_polygons(tmp_path):
    write_s2(tmp_path / "s2", SlumpSpec(scenes=40, size=32, slumps=1, faults=False))
    scenes = catalog(tmp_path / "s2", Options(mask_erosion_size=2))
    west, south, east, north = scenes.total_bounds
    border = scenes.geometry.iloc[4].centroid.x
    shapes = [shapely.box(west - 1, south - 1, border, north + 1), shapely.box(border, south - 1, east + 1, north + 1)]
    gpd.GeoDataFrame({"shapeName": ["Inuvik", "Yukon"]}, geometry=shapes, crs="EPSG:4326").to_file(tmp_path / "regions.gpkg")
    held = divide(scenes, SplitSpec(rule="region", regions=str(tmp_path / "regions.gpkg"), column="shapeName", values={"test": ["Inuvik"]}))
    test = held.split["scene"][held.split["part"] == "test"].tolist()
    split = make_split(scenes, SplitSpec(rule="folds", folds=20, fold_parts=["val"], seed=42, hold_out=test, exclude=held.dropped["scene"].tolist()))
    touched = scenes["id"][scenes.intersects(shapes[0])]
    assert set(test) == set(scenes["id"][scenes.within(shapes[0])]) and set(touched) - set(test) == set(held.dropped["scene"])
    sizes = split["part"].value_counts().to_dict()
    assert sizes["test"] == 6 and sizes["val"] == 2 and split["scene"].is_unique and len(split) == 39


# made data

def test_made_slumps_can_be_learnt_and_one_pixel_does_not_tell():
    single, smooth = [], []
    for scene in made_scenes(SlumpSpec(faults=False), 3.0):
        _, _, red, nir = scene.values.astype(float)
        x, y = centres(scene.grid)
        truth = shapely.contains_xy(shapely.union_all(scene.slumps.geometry.to_numpy()), x, y)
        for scores, size in ((single, 1), (smooth, 5)):
            r, n = uniform_filter(red, size), uniform_filter(nir, size)
            low = (n - r) / (n + r) < 0.5
            scores.append((low & truth).sum() / (low | truth).sum())
    assert np.mean(smooth) > 0.75 > 0.6 > np.mean(single)


# experts

@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=9))
def test_a_majority_is_more_than_half_of_those_who_judged(votes):
    found, generous, doubtful = (majority_mask(np.array(votes)[:, None], *tie)[0] for tie in ((), (1,), (2,)))
    for i, pixel in enumerate(zip(*votes)):
        judged = [vote for vote in pixel if vote != 2]
        share = sum(judged) / len(judged) if judged else None
        assert found[i] == (2 if share is None else int(share > 0.5)) and generous[i] == (2 if share is None else int(share >= 0.5))
        assert doubtful[i] == (2 if share in (None, 0.5) else int(share > 0.5))


def test_twelve_experts_of_the_peel_plateau():
    peel = data("rts_peel_s2_l8")
    grid = grid_of(peel / "01_Setup/Peel/data/S2_20210821T210019_20210821T210020_T08WMA.tif")
    files = {path.parent.name: path for path in sorted(peel.glob("02_UserResults/*/Peel_digitized.shp"))}
    masks = expert_masks({**files, "nobody": peel / "01_Setup/Peel/Peel_digitized.shp"}, grid)
    assert (masks.pop("nobody") == INVALID).all() and len(masks) == 12
    agreed, half, (x, y) = majority_mask(list(masks.values())), majority_mask(list(masks.values()), 1), centres(grid)
    votes = sum(np.logical_or.reduce([shapely.contains_xy(s, x, y) for s in shapely.make_valid(gpd.read_file(f).to_crs(grid.crs).geometry.to_numpy())])
                for f in files.values())
    assert ((agreed == 1) != (votes > 6)).sum() <= 2 and ((half == 1) != (votes >= 6)).sum() <= 2
    assert (agreed == 1).sum() == 3268 and (half == 1).sum() == 3633, "the number that is told of these data counts half of the experts as enough"
    scores = [((m == 1) & (half == 1)).sum() / ((m == 1) | (half == 1)).sum() for m in masks.values()]
    assert round(min(scores), 2) == 0.56 and round(max(scores), 2) == 0.87


def test_the_outlines_of_six_regions():
    root = data("arts_thaw_slumps")
    tables = [gpd.read_file(path) for path in sorted(root.rglob("*.shp"))]
    assert sum(map(len, tables)) == 2641 and len({t.crs.to_string() for t in tables}) == 3
