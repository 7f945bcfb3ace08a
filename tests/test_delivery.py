"What lies beside a class map says the same as the map, and is made once"
import copy
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from urllib.request import urlopen

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import rasterio.features
import rioxarray
import shapely
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from pydantic import ValidationError
from pyproj import Geod, Transformer
from torch import nn

from geoseg_nb import strips
from geoseg_nb.checkpoint import ModelCard, load_model, save_model
from geoseg_nb.core import Band, GeosegError, Grid, Refused, Sensor, make_legend
from geoseg_nb.deliver import DeliverSpec, deliver
from geoseg_nb.maps import map_kind
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.predict import ONE, PredictSpec, predict, predict_files, predict_scene, probabilities_of
from geoseg_nb.probabilities import read_probabilities
from geoseg_nb.scenes import Scene
from geoseg_nb.shapes import area_measure, write_shapes
from geoseg_nb.stac import map_item
from geoseg_nb.pools import local_cluster
from geoseg_nb.stages import Execution
from geoseg_nb.strips import scorer
from geoseg_nb.style import style_path
from geoseg_nb.swath import swath_of
from house import geoseg
from stac_schemas import KEPT

LEGEND = make_legend({"dry & bare": [0, "#d8c9a0"], "water": [1, "#2b6cb0"], "ice": [2, "#9fd3e6"]})
GRID = Grid("EPSG:32633", (10, 0, 500000, 0, -10, 5000000), 90, 70)
FP32 = PredictSpec(precision="fp32", device="cpu", overlap=8)
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    sensor = Sensor("s1", (Band("VV", "dB"), Band("VH", "dB")))
    card = ModelCard(model=ModelSpec(bands=2, classes=3), sensors=[sensor.as_dict()], legend=LEGEND.as_dict(), tile_size=64, overlap=32,
                     normaliser={"kind": "zscore", "mean": [0.5, -1.0], "std": [2.0, 3.0], "low": [-5.0], "high": [5.0]})
    return save_model(tmp_path_factory.mktemp("model") / "m", build_model(ModelSpec(bands=2, classes=3), seed=1), card)


@pytest.fixture(scope="session")
def pointwise(folder):
    torch.manual_seed(0)
    model = load_model(folder, device="cpu", precision="fp32")
    return replace(model, network=nn.Conv2d(2, 3, 1).eval(), card=model.card.replace(normaliser={"kind": "none"}))


def pixels(height, width, seed=0):
    image = np.random.default_rng(seed).normal(0, 1, (2, height, width)).astype("float32")
    image[:, :5, :7] = np.nan
    return image


def scene_of(image, grid):
    return Scene(grid, lambda w: image[:, *w.slices], shape=image.shape[1:])


def image_file(path, image, grid=GRID):
    with rasterio.open(path, "w", driver="GTiff", height=image.shape[1], width=image.shape[2], count=2, dtype="float32", crs=grid.crs,
                       transform=rasterio.Affine(*grid.transform)) as target:
        target.write(image)
        target.descriptions = ["VV", "VH"]
    return path


def softmax(model, image):
    "One forward pass over the whole scene, no windows"
    with torch.inference_mode():
        scores = model.network(torch.from_numpy(np.nan_to_num(image))[None]).softmax(1)[0].numpy()
    return np.where(np.isfinite(image).all(0), scores, np.nan)


# averaging

@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(quarters=st.integers(0, 3), mirrored=st.booleans(), seed=st.integers(0, 99))
def test_the_mean_over_d4_turns_with_the_image(pointwise, quarters, mirrored, seed):
    torch.manual_seed(seed)
    model = replace(pointwise, network=nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).eval())
    image = pixels(16, 16, seed)[None, :, :, :]
    turn = lambda a: np.rot90(a[..., ::-1] if mirrored else a, quarters, (-2, -1)).copy()  # noqa: E731
    mean, plain = (scorer(model, FP32.replace(averaging=name)) for name in ("d4", "none"))
    assert np.allclose(mean(turn(image)), turn(mean(image)), atol=1e-6)
    by_hand = np.mean([np.rot90(plain(np.rot90(image, k, (-2, -1)).copy()), -k, (-2, -1)) for k in range(4)]
                      + [np.rot90(plain(np.rot90(image[..., ::-1], k, (-2, -1)).copy()), -k, (-2, -1))[..., ::-1] for k in range(4)], axis=0)
    assert np.allclose(mean(image), by_hand, atol=1e-6) and not np.allclose(mean(image), plain(image), atol=1e-4)
    even = [scorer(pointwise, FP32.replace(averaging=name)) for name in ("d4", "none")]
    assert np.allclose(even[0](image), even[1](image), atol=1e-6)


def test_averaging_makes_other_maps_and_none_keeps_the_old_ones(folder, tmp_path):
    image, model = image_file(tmp_path / "a.tif", pixels(90, 70)), load_model(folder)
    plain = predict_files(model, [image], tmp_path / "maps", FP32)[0].read_bytes()
    note = json.loads((tmp_path / "maps/made_by.json").read_text())
    assert "averaging" not in note, "folders of maps that were made before there was a choice stay valid"
    assert predict_files(model, [image], tmp_path / "maps", FP32.replace(averaging="d4"))[0].read_bytes() != plain


# probabilities

@pytest.mark.parametrize("height,width", [(90, 70), (30, 20), (700, 130)])
def test_probabilities_are_the_softmax_of_the_whole_image(pointwise, tmp_path, height, width):
    image, grid = pixels(height, width), replace(GRID, height=height, width=width)
    made = predict_scene(pointwise, scene_of(image, grid), tmp_path / "a.tif", FP32.replace(probabilities=True))
    expected = softmax(pointwise, image)
    with rasterio.open(probabilities_of(made)) as f, rasterio.open(made) as classes:
        stored, map_ = f.read(), classes.read(1)
        assert f.descriptions == tuple(LEGEND.names) and f.nodatavals == (255.0,) * 3 and f.scales == (0.01,) * 3 and f.offsets == (0.0,) * 3
        assert (f.crs, f.transform, f.shape) == (classes.crs, classes.transform, classes.shape)
    assert np.nanmax(np.abs(stored * 0.01 - expected)[:, stored[0] != 255]) < 0.005 + 1e-5
    assert np.array_equal(stored == 255, np.isnan(expected))
    second, first = np.sort(stored, axis=0)[-2:]
    told = (first > second) & (map_ != 255)
    assert told.mean() > 0.8 and np.array_equal(stored.argmax(0)[told], map_[told])
    with rioxarray.open_rasterio(probabilities_of(made), mask_and_scale=True) as read:
        assert np.allclose(read.values, expected, atol=0.0051, equal_nan=True)


def test_the_probability_file_is_a_cog_with_mean_overviews(pointwise, tmp_path):
    from rio_cogeo import cog_validate
    image, grid = pixels(1100, 900), replace(GRID, height=1100, width=900)
    path = probabilities_of(predict_scene(pointwise, scene_of(image, grid), tmp_path / "a.tif", FP32.replace(probabilities=True, overlap=0)))
    valid, errors, warned = cog_validate(path)
    assert valid and not errors and not warned
    with rasterio.open(path) as f, rasterio.open(path, overview_level=0) as half:
        full, coarse = f.read(2)[40:440, 40:440].astype(float), half.read(2)[20:220, 20:220]
    mean = full.reshape(200, 2, 200, 2).mean((1, 3))
    assert np.abs(coarse - mean).max() <= 0.5


def test_one_pass_makes_both_files(pointwise, tmp_path, monkeypatch):
    image, calls, real = pixels(90, 70), [], strips.scored_windows
    monkeypatch.setattr(strips, "scored_windows", lambda *args: calls.append(1) or real(*args))
    counts = []
    for name, wanted in (("one", False), ("two", True)):
        calls.clear()
        predict_scene(pointwise, scene_of(image, GRID), tmp_path / f"{name}.tif", FP32.replace(probabilities=wanted))
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()


def test_a_failure_leaves_neither_file(pointwise, tmp_path):
    def read(window):
        if window.row > 0: raise GeosegError("the disk is gone")
        return pixels(600, 70)[:, *window.slices]
    with pytest.raises(GeosegError, match="disk is gone"):
        predict_scene(pointwise, Scene(replace(GRID, height=600), read), tmp_path / "a.tif", FP32.replace(probabilities=True))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def swath(path, height=60, width=80):
    row, col = np.mgrid[:height, :width]
    data = xr.Dataset({"vh": (("y", "x"), np.zeros((height, width), "float32"), {"coordinates": "lat lon"}),
                       "lat": (("y", "x"), 60 - 9e-3 * row - 2e-3 * col + 1e-5 * col**2, {"units": "degrees_north"}),
                       "lon": (("y", "x"), 9e-3 * col - 2e-3 * row + 12.0, {"units": "degrees_east"})})
    data.to_netcdf(path, engine="h5netcdf")
    return swath_of(path, "vh")


def test_probabilities_of_a_swath_are_cf_netcdf(pointwise, tmp_path):
    netCDF4 = pytest.importorskip("netCDF4")
    image, grid = pixels(60, 80), swath(tmp_path / "scan.nc")
    made = predict_scene(pointwise, scene_of(image, grid), tmp_path / "maps/a.nc", FP32.replace(probabilities=True))
    with netCDF4.Dataset(probabilities_of(made)) as f:
        layers = f["probability"][:]
        assert np.allclose(layers.filled(np.nan), softmax(pointwise, image), atol=0.0051, equal_nan=True)
        assert list(f["class_name"][:]) == LEGEND.names and f["probability"].dimensions == ("class", "y", "x")
        assert f["lat"].units == "degrees_north" and f.Conventions.startswith("CF-")
    assert np.allclose(read_probabilities(probabilities_of(made)), softmax(pointwise, image), atol=0.0051, equal_nan=True)


def test_known_maps_do_not_keep_probabilities_from_being_made(folder, tmp_path):
    image, model = image_file(tmp_path / "a.tif", pixels(90, 70)), load_model(folder)
    known = predict_files(model, [image], tmp_path / "evaluated", FP32)[0]
    spec = FP32.replace(known=[known.parent], probabilities=True)
    made = predict_files(model, [image], tmp_path / "maps", spec)[0]
    assert made.read_bytes() == known.read_bytes() and probabilities_of(made).is_file()
    stamps = [p.stat().st_mtime_ns for p in (made, probabilities_of(made))]
    assert [p.stat().st_mtime_ns for p in (predict_files(model, [image], tmp_path / "maps", spec)[0], probabilities_of(made))] == stamps
    probabilities_of(made).unlink()
    predict_files(model, [image], tmp_path / "maps", spec)
    assert made.stat().st_mtime_ns == stamps[0] and probabilities_of(made).is_file(), "the map stays, what is missing is made"
    image_file(image, pixels(90, 70, 5))
    predict_files(model, [image], tmp_path / "maps", FP32)
    assert not probabilities_of(made).exists(), "probabilities of another image are not left beside the new map"


# polygons

GRIDS = [GRID, Grid("EPSG:4326", (9e-5, 0, 179.9, 0, -9e-5, 60), 90, 70), Grid("EPSG:3995", (300, 20, -9000, -20, -300, 9000), 90, 70),
         Grid("EPSG:2263", (30, 0, 980000, 0, -30, 200000), 90, 70)]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999), kinds=st.integers(1, 4), grid=st.sampled_from(GRIDS), height=st.integers(2, 40), width=st.integers(2, 40))
def test_burnt_again_the_polygons_are_the_map(tmp_path, seed, kinds, grid, height, width):
    grid = replace(grid, height=height, width=width)
    classes = np.random.default_rng(seed).choice(np.array([0, 255, 1, 2], "uint8")[:kinds], (height, width))
    made = map_kind(grid).write(tmp_path / "a.tif", classes, grid, LEGEND)
    table = gpd.read_file(write_shapes(tmp_path / "a.gpkg", made, LEGEND), layer="classes")
    assert len(table) == 0 or table.is_valid.all()
    burnt = np.full_like(classes, 255) if not len(table) else rasterio.features.rasterize(
        zip(table.geometry, table["class"]), classes.shape, fill=255, transform=rasterio.Affine(*grid.transform), dtype="uint8")
    assert np.array_equal(burnt, classes)
    assert table.pixels.sum() == (classes != 255).sum() and table["name"].tolist() == [LEGEND.names[i] for i in table["class"]]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.crs)
def test_areas_are_those_of_the_ellipsoid(tmp_path, grid):
    "PROJ's geodesics, along edges cut into pieces of a tenth of a pixel"
    classes = np.zeros((90, 70), "uint8")
    classes[20:60, 10:30] = 1
    made = map_kind(grid).write(tmp_path / "a.tif", classes, grid, LEGEND)
    table = gpd.read_file(write_shapes(tmp_path / "a.gpkg", made, LEGEND), layer="classes")
    move = Transformer.from_crs(grid.crs, Transformer.from_crs(grid.crs, 4326).source_crs.geodetic_crs, always_xy=True)
    geod = Transformer.from_crs(grid.crs, 4326).source_crs.get_geod()
    for row in table.itertuples():
        fine = shapely.segmentize(row.geometry, grid.resolution[0] / 10)
        there = shapely.transform(fine, lambda at: np.stack(move.transform(*at.T), axis=-1))
        assert abs(row.area_m2 / abs(geod.geometry_area_perimeter(there)[0]) - 1) < 1e-6


def test_a_wide_scene_in_utm_is_measured_as_well():
    grid = Grid("EPSG:32633", (10, 0, 166000, 0, -10, 7000000), 10980, 66800)
    square = shapely.box(166000, 6890200, 834000, 7000000)
    fine = shapely.segmentize(square, 200)
    there = shapely.transform(fine, lambda at: np.stack(Transformer.from_crs(32633, 4326, always_xy=True).transform(*at.T), axis=-1))
    true = abs(Geod(ellps="WGS84").geometry_area_perimeter(there)[0])
    assert abs(area_measure(grid, (500000, 6945100))(square) / true - 1) < 1e-7


def test_small_patches_are_left_out_and_counted(tmp_path):
    classes = np.zeros((30, 30), "uint8")
    classes[5, 5:8], classes[10:20, 10:20], classes[25, 25] = 1, 2, 255
    made = map_kind(GRID).write(tmp_path / "a.tif", classes, replace(GRID, height=30, width=30), LEGEND)
    table = gpd.read_file(write_shapes(tmp_path / "a.gpkg", made, LEGEND, min_pixels=4), layer="classes")
    assert sorted(table.pixels) == [100, 796]
    import sqlite3
    described = sqlite3.connect(tmp_path / "a.gpkg").execute("SELECT description FROM gpkg_contents WHERE table_name = 'classes'").fetchone()[0]
    assert "1 patches of fewer than 4 pixels (3 pixels)" in described


def test_every_pixel_centre_of_a_swath_lies_in_the_polygon_of_its_class(tmp_path):
    grid, classes = swath(tmp_path / "scan.nc"), np.random.default_rng(0).choice(np.array([0, 1, 2, 255], "uint8"), (60, 80))
    classes[20:40, 20:60] = 1
    made = map_kind(grid).write(tmp_path / "a.nc", classes, grid, LEGEND)
    table = gpd.read_file(write_shapes(tmp_path / "a.gpkg", made, LEGEND), layer="classes")
    with xr.open_dataset(tmp_path / "scan.nc") as scan:
        centres = gpd.GeoDataFrame(geometry=shapely.points(scan.lon.values.ravel(), scan.lat.values.ravel()), crs=4326)
    within = centres.sjoin(table, predicate="within").sort_index()
    assert within.index.is_unique and np.array_equal(within["class"], classes[classes != 255])
    largest = table.loc[table.pixels.idxmax()]
    assert abs(largest.area_m2 / abs(Geod(ellps="WGS84").geometry_area_perimeter(largest.geometry)[0]) - 1) < 1e-5


# style

QGIS = """
    import json, os, sys
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    from qgis.core import QgsApplication, QgsRasterLayer, QgsVectorLayer
    app = QgsApplication([], False); app.initQgis()
    raster, vector = QgsRasterLayer(sys.argv[1] + ".tif", "r"), QgsVectorLayer(sys.argv[2] + "|layername=classes", "v")
    palette = [[c.value, c.label, c.color.name()] for c in raster.renderer().classes()]
    categories = [[int(c.value()), c.label(), c.symbol().color().name()] for c in vector.renderer().categories()]
    print(json.dumps([raster.renderer().type(), palette, vector.renderer().type(), categories, raster.dataProvider().sourceNoDataValue(1)]))
"""


@pytest.mark.slow
def test_qgis_opens_both_with_names_and_colours(folder, tmp_path):
    if subprocess.run(["/usr/bin/python3", "-c", "import qgis.core"], capture_output=True).returncode:
        pytest.skip("no QGIS: apt-get install python3-qgis")
    made = predict_files(load_model(folder), [image_file(tmp_path / "a.tif", pixels(90, 70))], tmp_path / "maps", FP32)
    polygons = deliver(folder, made, DeliverSpec(polygons=True))["polygons"][0]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PROJ_LIB", "PROJ_DATA", "GDAL_DATA")}
    told = subprocess.run(["/usr/bin/python3", "-c", textwrap.dedent(QGIS), made[0].with_suffix(""), polygons], capture_output=True, text=True,
                          env=clean, timeout=120)
    expected = [[i, c.name, c.colour] for i, c in enumerate(LEGEND.classes)]
    assert json.loads(told.stdout.splitlines()[-1]) == ["paletted", expected, "categorizedSymbol", expected, 255.0], told.stderr


RAMPS = """
    import json, os, sys
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    from qgis.core import QgsApplication, QgsRasterLayer
    app = QgsApplication([], False); app.initQgis()
    told = []
    for style in sys.argv[2:]:
        layer = QgsRasterLayer(sys.argv[1], "p")
        if style: assert layer.loadNamedStyle(style)[1]
        renderer = layer.renderer()
        items = [[c.value, c.label, c.color.name(), c.color.alpha()] for c in renderer.shader().rasterShaderFunction().colorRampItemList()]
        statistics = layer.dataProvider().bandStatistics(renderer.band())
        told.append([renderer.type(), renderer.band(), layer.bandName(renderer.band()), items, statistics.maximumValue <= 1])
    print(json.dumps(told))
"""


@pytest.mark.slow
def test_qgis_opens_the_probabilities_with_the_ramp_of_each_class(folder, tmp_path):
    if subprocess.run(["/usr/bin/python3", "-c", "import qgis.core"], capture_output=True).returncode:
        pytest.skip("no QGIS: apt-get install python3-qgis")
    made = predict_files(load_model(folder), [image_file(tmp_path / "a.tif", pixels(90, 70))], tmp_path / "maps", FP32.replace(probabilities=True))
    path = deliver(folder, made)["probabilities"][0]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PROJ_LIB", "PROJ_DATA", "GDAL_DATA")}
    told = subprocess.run(["/usr/bin/python3", "-c", textwrap.dedent(RAMPS), path, "", *(path.parent / f"styles/band{i}.qml" for i in (1, 2, 3))],
                          capture_output=True, text=True, env=clean, timeout=120)
    ramp = lambda c: [[v, f"{c.name} {v:.0%}", c.colour, round(255 * v)] for v in (0, 0.25, 0.5, 0.75, 1)]
    expected = [["singlebandpseudocolor", i, f"Band {i}: {c.name}", ramp(c), True] for i, c in enumerate(LEGEND.classes, 1)]
    assert json.loads(told.stdout.splitlines()[-1]) == [expected[-1], *expected], told.stderr


def test_the_styles_of_probabilities_name_bands_that_the_file_has_in_their_colours(folder, tmp_path):
    from xml.etree.ElementTree import parse
    made = predict_files(load_model(folder), [image_file(tmp_path / "a.tif", pixels(90, 70))], tmp_path / "maps", FP32.replace(probabilities=True))
    path = deliver(folder, made)["probabilities"][0]
    with rasterio.open(path) as f: bands, scale = f.descriptions, f.scales[0]
    found = [parse(style).getroot().find("pipe/rasterrenderer") for style in sorted((path.parent / "styles").iterdir())]
    for i, (renderer, name, colour) in enumerate(zip(found, bands, ("#d8c9a0", "#2b6cb0", "#9fd3e6"), strict=True), 1):
        items = list(renderer.iter("item"))
        assert renderer.get("band") == str(i) and {item.get("color") for item in items} == {colour}
        assert items[-1].get("label") == f"{name} 100%" and float(items[-1].get("value")) == 100 * scale
    assert parse(style_path(path)).getroot().find("pipe/rasterrenderer").get("band") == "3"


def test_gdal_draws_the_map_in_the_colours_of_the_style(folder, tmp_path):
    from xml.etree.ElementTree import parse
    made = predict_files(load_model(folder), [image_file(tmp_path / "a.tif", pixels(90, 70))], tmp_path / "maps", FP32)
    deliver(folder, made)
    entries = parse(style_path(made[0])).getroot().iter("paletteEntry")
    with rasterio.open(made[0]) as f:
        drawn = f.colormap(1)
    assert {int(e.get("value")): e.get("color") for e in entries} == {i: "#" + bytes(drawn[i][:3]).hex() for i in range(3)} and drawn[255][3] == 0


# stac

@pytest.fixture(scope="session")
def delivered(folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("delivered")
    image = image_file(work / "a.tif", pixels(90, 70))
    maps = predict_files(load_model(folder), [image], work / "maps", FP32.replace(probabilities=True))
    return deliver(folder, maps, DeliverSpec(polygons=True, stac=True, time="2018-09-21T10:00:00Z"))


def test_the_stac_catalog_is_valid_and_leads_to_every_file(delivered):
    from pystac.stac_object import STACObjectType
    from pystac.validation.stac_validator import JsonSchemaSTACValidator
    path = delivered["stac"][0].parent
    catalog = pystac.Catalog.from_file(str(path / "catalog.json"))
    items = {item.id: item for item in catalog.get_items()}
    assert sorted(items) == ["a", "model"]
    for name, kind in (("catalog", STACObjectType.CATALOG), ("a.stac", STACObjectType.ITEM), ("model", STACObjectType.ITEM)):
        JsonSchemaSTACValidator().validate_core(json.loads((path / f"{name}.json").read_text()), kind, "1.1.0")
    for item in items.values():
        assert all(Path(asset.get_absolute_href()).is_file() for asset in item.assets.values())
    assert sorted(items["a"].assets) == ["classes", "polygons", "probabilities", "probability_style", "style"]
    of_classes, of_probabilities = (items["a"].assets[name] for name in ("style", "probability_style"))
    assert (of_probabilities.media_type, of_probabilities.roles) == (of_classes.media_type, of_classes.roles) == ("application/xml", ["metadata"])
    assert Path(of_probabilities.get_absolute_href()) == style_path(items["a"].assets["probabilities"].get_absolute_href())
    assert {"proj:code", "proj:shape"} <= set(items["a"].properties)
    values = json.loads(delivered["stac"][0].read_text())
    bands = values["assets"]["classes"]["bands"]
    assert [c["color_hint"] for c in bands[0]["classification:classes"]] == ["D8C9A0", "2B6CB0", "9FD3E6"]
    from pystac.extensions.projection import ProjectionExtension
    projection = ProjectionExtension.ext(items["a"])
    with rasterio.open(delivered["classes"][0]) as f:
        assert (projection.code, projection.shape, projection.transform) == (f.crs.to_string(), list(f.shape), list(f.transform)[:6])
        west, south, east, north = rasterio.warp.transform_bounds(f.crs, "EPSG:4326", *f.bounds)
    assert np.allclose(items["a"].bbox, [west, south, east, north], atol=1e-5)
    assert {link.rel for link in items["a"].links} >= {"derived_from", "root", "parent"}


def with_value(values, path, wrong):
    "The same with one value replaced, or gone where it is None"
    made = copy.deepcopy(values)
    *above, last = path
    place = reduce(getitem, above, made)
    place.pop(last) if wrong is None else place.__setitem__(last, wrong)
    return made


def complaints(item):
    "What the schemas of the extensions that an item declares find wrong with it"
    return [f"{url}: {e.json_path}: {e.message}" for url in item["stac_extensions"] for e in Draft7Validator(KEPT[url]).iter_errors(item)]


@pytest.mark.parametrize("path, wrong", [
    (["properties", "proj:code"], 32633), (["properties", "proj:shape"], [90.5, 70]), (["properties", "proj:transform"], [1, 0, 0, 0, 1]),
    (["properties", "proj:epsg"], 32633), (["assets", "classes", "bands", 0, "classification:classes"], []),
    (["assets", "classes", "bands", 0, "classification:classes", 0, "name"], None), (["assets", "classes", "bands", 0, "classification:classes", 0, "name"], "dry, bare"),
    (["assets", "classes", "bands", 0, "classification:classes", 0, "color_hint"], "#D8C9A0"), (["assets", "classes", "bands", 0, "classification:classes"], None),
    (["assets", "probabilities", "bands", 0, "raster:scale"], "0.01"), (["assets", "probabilities", "bands", 0, "raster:bands"], [{}]), (["assets", "probabilities"], None)])
def test_a_map_item_is_as_the_schemas_of_its_extensions_want_it_and_no_broken_one_is(delivered, path, wrong):
    item = json.loads(delivered["stac"][0].read_text())
    assert len(item["stac_extensions"]) == 3 and complaints(item) == []
    assert complaints(with_value(item, path, wrong))


@pytest.mark.parametrize("path, wrong", [
    (["properties", "mlm:name"], None), (["properties", "mlm:tasks"], ["water"]), (["properties", "mlm:input", 0, "input", "dim_order"], ["batch"]),
    (["properties", "mlm:input", 0, "value_scaling", 0], {"type": "z-score", "mean": 1}), (["properties", "mlm:artifact_type"], "torch.save"),
    (["properties", "mlm:input", 0, "bands"], None), (["properties", "mlm:output", 0, "classification:classes", 1, "value"], "1"),
    (["properties", "mlm:epochs"], 3), (["assets", "model", "mlm:artifact_type"], None), (["assets", "model", "roles"], ["data"]),
    (["assets", "model", "raster:bands", 0, "name"], None), (["assets", "model", "raster:bands"], []), (["assets", "card", "mlm:artifact_type"], "json")])
def test_a_model_item_is_as_the_schemas_of_its_extensions_want_it_and_no_broken_one_is(delivered, path, wrong):
    item = json.loads((delivered["stac"][0].parent / "model.json").read_text())
    assert len(item["stac_extensions"]) == 2 and complaints(item) == []
    assert complaints(with_value(item, path, wrong))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.stac.json", "model.json"])
def test_the_published_schemas_take_the_items_too(delivered, name):
    item = pystac.Item.from_file(str(delivered["stac"][0].parent / name))
    try:
        urlopen(item.stac_extensions[0], timeout=20).close()
    except OSError as e:
        pytest.skip(f"no network: {e}")
    assert set(item.stac_extensions) <= set(item.validate())


def test_the_model_is_described_as_the_mlm_extension_wants_it(delivered, folder):
    from pystac.extensions.mlm import MLMExtension
    item = pystac.Item.from_file(str(delivered["stac"][0].parent / "model.json"))
    mlm = MLMExtension.ext(item)
    assert mlm.input[0].bands == ["VV", "VH"] and mlm.input[0].input.shape == [-1, 2, 64, 64]
    assert [c.name for c in mlm.output[0].classes] == ["dry_bare", "water", "ice"] and "bands" in mlm.input[0].input.dim_order
    roles = [asset.roles for asset in item.assets.values() if "mlm:model" in asset.roles]
    assert len(roles) == 1 and item.assets["model"].extra_fields["raster:bands"] == [{"name": "VV", "unit": "dB"}, {"name": "VH", "unit": "dB"}]
    values = np.array([[[-9.0]], [[4.0]]], "float32")
    scaling = [re.fullmatch(r"\(numpy.clip\(A, (.+), (.+)\) - (.+)\) / (.+)", s["expression"]) for s in item.properties["mlm:input"][0]["value_scaling"]]
    numbers = [(np.clip(v, float(s[1]), float(s[2])) - float(s[3])) / float(s[4]) for s, v in zip(scaling, values)]
    assert np.allclose(np.ravel(numbers), load_model(folder).normaliser(values).ravel())


@pytest.mark.parametrize("path, wrong", [(["mlm:tasks"], ["water"]), (["mlm:input", 0, "input", "dim_order"], []), (["mlm:output", 0, "result"], None),
                                         (["mlm:name"], ""), (["mlm:input", 0, "value_scaling", 0, "type"], "clipped")])
def test_the_models_of_the_extensions_authors_take_the_model_item_and_no_broken_one(delivered, path, wrong):
    from stac_model.schema import MLModelProperties as checked
    properties = json.loads((delivered["stac"][0].parent / "model.json").read_text())["properties"]
    found = checked.model_validate(properties)
    assert found.input[0].bands == ["VV", "VH"] and [c.name for c in found.output[0].classes] == ["dry_bare", "water", "ice"]
    with pytest.raises(ValidationError): checked.model_validate(with_value(properties, path, wrong))


def prefixes(values):
    "What stands before the colon of every field of an item, however deep"
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else []
    return {p for key, value in inner for p in ({key.split(":")[0]} if ":" in str(key) else set()) | prefixes(value)}


@pytest.mark.parametrize("kinds", [["classes"], ["classes", "probabilities"], ["classes", "polygons"]])
def test_an_item_declares_the_extensions_whose_fields_it_has_and_no_other(delivered, kinds):
    "The schema of `raster` refuses an item without one of its fields"
    files, names = {kind: delivered[kind][0] for kind in kinds}, {"proj": "projection", "raster": "raster", "classification": "classification"}
    item = map_item("a", files, GRID, LEGEND, "2018-09-21", delivered["stac"][0].parent)
    assert {url.split("/")[-3] for url in item["stac_extensions"]} == {names[p] for p in prefixes(item)}
    assert ("raster" in prefixes(item)) == ("probabilities" in kinds)


# once

def test_what_is_there_is_kept_and_a_changed_option_makes_only_what_it_changes(folder, tmp_path):
    images = [image_file(tmp_path / f"{n}.tif", pixels(90, 70, i)) for i, n in enumerate("ab")]
    model = load_model(folder)
    maps = predict_files(model, images, tmp_path / "maps", FP32)
    spec = DeliverSpec(polygons=True, stac=True, time="2018-09-21")
    stamps = lambda: {p.relative_to(tmp_path).as_posix(): p.stat().st_mtime_ns for p in (tmp_path / "maps").rglob("*")  # noqa: E731
                      if p.is_file() and p.name not in (".lock", "made_by.json")}
    deliver(folder, maps, spec)
    first = stamps()
    deliver(folder, maps, spec)
    assert stamps() == first
    deliver(folder, maps, spec.replace(min_pixels=3))
    changed = {name for name, stamp in stamps().items() if first.get(name) != stamp}
    assert changed == {"maps/polygons/a.gpkg", "maps/polygons/b.gpkg"}
    (tmp_path / "maps/polygons/a.gpkg").unlink()
    second = stamps()
    deliver(folder, maps, spec.replace(min_pixels=3))
    assert {name for name, stamp in stamps().items() if second.get(name) != stamp} == {"maps/polygons/a.gpkg"}
    image_file(images[0], pixels(90, 70, 9))
    predict_files(model, images, tmp_path / "maps", FP32)
    assert not style_path(maps[0]).exists(), "the style goes with its map"
    deliver(folder, maps)
    assert not (tmp_path / "maps/polygons/a.gpkg").exists() and (tmp_path / "maps/polygons/b.gpkg").exists()


def test_a_stac_item_without_a_time_is_refused_with_the_fix(folder, tmp_path):
    maps = predict_files(load_model(folder), [image_file(tmp_path / "a.tif", pixels(90, 70))], tmp_path / "maps", FP32)
    with pytest.raises(Refused, match="a: nobody knows when it was taken.*pass time="): deliver(folder, maps, DeliverSpec(stac=True))
    assert not (tmp_path / "maps/stac").exists()


@pytest.mark.slow
def test_dask_workers_write_the_same_probabilities_and_polygons(folder, tmp_path):
    files = [image_file(tmp_path / f"{n}.tif", pixels(90, 70, i)) for i, n in enumerate("ab")]
    spec, wanted = FP32.replace(probabilities=True), DeliverSpec(polygons=True)
    alone = predict_files(folder, files, tmp_path / "alone", spec)
    with local_cluster(Execution(backend="dask", workers=1, threads=2)) as cluster:
        dask = ONE.replace(backend="dask", address=cluster.scheduler_address)
        made = predict_files(folder, files, tmp_path / "dask", spec, dask)
        drawn = deliver(folder, made, wanted, execution=dask)
    assert [p.read_bytes() for p in drawn["probabilities"]] == [probabilities_of(p).read_bytes() for p in alone]
    here = deliver(folder, alone, wanted)["polygons"]
    assert all(gpd.read_file(a, layer="classes").equals(gpd.read_file(b, layer="classes")) for a, b in zip(drawn["polygons"], here))


PEAK = """
    import resource, sys, numpy as np, torch
    from dataclasses import replace
    from pathlib import Path
    from torch import nn
    from geoseg_nb.checkpoint import load_model
    from geoseg_nb.core import Grid
    from geoseg_nb.predict import PredictSpec, predict_scene
    from geoseg_nb.scenes import Scene
    folder, out, height = *map(Path, sys.argv[1:3]), int(sys.argv[3])
    torch.set_num_threads(1)
    model = load_model(folder, device="cpu", precision="fp32")
    model = replace(model, network=nn.Conv2d(2, 3, 1).eval(), card=model.card.replace(tile_size=250))
    read = lambda w: np.full((2, w.height, w.width), w.row % 7 - 3, "float32")
    scene = Scene(Grid("EPSG:32633", (10, 0, 5e5, 0, -10, 5e6), height, 2000), read)
    predict_scene(model, scene, out / f"{height}.tif", PredictSpec(overlap=0, probabilities=True))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height_of_the_scene(folder, tmp_path):
    peak = lambda height: int(subprocess.run([sys.executable, "-c", textwrap.dedent(PEAK), folder, tmp_path, str(height)], check=True,  # noqa: E731
                                             capture_output=True, text=True, env={**os.environ, "GDAL_CACHEMAX": "32"}).stdout)
    low, high = peak(1024), peak(8192)
    print(low, high)
    assert high - low < 40, f"{low} MB for 1,024 rows, {high} MB for 8,192"


@pytest.mark.slow
def test_the_job_makes_what_it_is_asked_for_and_nothing_twice(tmp_path):
    "A model from nowhere in the place of a training; the catalog job is the real one"
    command = [sys.executable, "-m", "geoseg_nb.cli", "run"]
    run = lambda job, *given: subprocess.run([*command, job, "--out", tmp_path / "run", *given], capture_output=True, text=True, timeout=1200)  # noqa: E731
    assert run("catalog").returncode == 0
    legend = json.loads((tmp_path / "run/10_catalog/result.json").read_text())["outputs"]["legend"]
    sensor = Sensor("s1", (Band("VV", "dB"), Band("VH", "dB")))
    card = ModelCard(model=ModelSpec(bands=2, classes=len(legend["classes"])), sensors=[sensor.as_dict()], legend=legend, tile_size=256, overlap=0,
                     normaliser={"kind": "none"})
    save_model(tmp_path / "run/37_train/model", build_model(card.model, seed=1), card)
    (tmp_path / "run/37_train/result.json").write_text(json.dumps({"job": "37_train", "status": "complete", "outputs": {"model": "37_train/model"}}))
    given = [p for name in ("probabilities=true", "polygons=true", "min_pixels=4", "stac=true") for p in ("-p", name)]
    refused = run("predict", *given)
    assert refused.returncode == 2 and "nobody knows when" in refused.stdout + refused.stderr and not list((tmp_path / "run").rglob("42_predict/classes/*.tif"))
    assert (found := run("predict", *given, "-p", "time=2018-09-21")).returncode == 0, found.stderr
    outputs = json.loads((tmp_path / "run/42_predict/result.json").read_text())["outputs"]
    assert len({len(outputs[kind]) for kind in ("classes", "probabilities", "polygons", "stac")}) == 1 and len(outputs["classes"]) > 1
    assert all((tmp_path / "run" / file).is_file() for kind in ("classes", "probabilities", "polygons", "stac") for file in outputs[kind])
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/42_predict/classes").rglob("*.*") if p.suffix in (".tif", ".gpkg", ".qml", ".json") and p.name != "made_by.json"}
    assert run("predict", *given, "-p", "time=2018-09-21").returncode == 0
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_a_predicted_array_has_one_flag_a_class_and_the_legends_own_index_where_nothing_is_known(folder):
    image = xr.DataArray(pixels(70, 90), {"band": ["VV", "VH"]}, ("band", "y", "x"))
    classes = predict(folder, image, FP32)
    assert classes.attrs["flag_meanings"].split() == ["dry_bare", "water", "ice"] and len(classes.attrs["flag_values"]) == 3
    assert (classes.values[:5, :7] == LEGEND.ignore_index).all() and classes.attrs["_FillValue"] == LEGEND.ignore_index


# ---------------------------------------------------------------- files of one's own, in a run that has nothing else

@pytest.mark.slow
def test_own_files_are_mapped_in_an_empty_run_by_a_model_of_another(tmp_path, folder):
    "Neither a catalog nor a training; the plan of it needs neither as well"
    file = image_file(tmp_path / "mine.tif", pixels(70, 90))
    words = ["run", "predict", "--out", tmp_path / "new", "-p", f"model={folder}", "-p", f"scenes=['{file}']", "-p", "device=cpu", "-p", "precision=fp32"]
    planned = geoseg(*words, "--dry-run")
    assert planned.returncode == 0 and "1 scene" in planned.stdout, planned.stderr
    done = geoseg(*words)
    assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "new/42_predict/classes/mine.tif") as written: classes = written.read(1)
    [expected] = predict_files(folder, [file], tmp_path / "here", PredictSpec(precision="fp32", device="cpu"))
    with rasterio.open(expected) as direct: assert np.array_equal(classes, direct.read(1)) and len(np.unique(classes)) > 1


@pytest.mark.slow
def test_what_an_empty_run_lacks_is_told_with_what_may_be_named_instead(tmp_path, folder):
    trained = geoseg("run", "predict", "--out", tmp_path / "new")
    assert trained.returncode == 2 and "no complete train" in trained.stderr and "-p model=DIR" in trained.stderr
    mapped = geoseg("run", "predict", "--out", tmp_path / "new", "-p", f"model={folder}")
    assert mapped.returncode == 2 and "no complete catalog" in mapped.stderr and "-p 'scenes=[a.tif]'" in mapped.stderr
