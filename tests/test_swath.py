"Swaths: decoded as netCDF4 decodes them, mapped where they lie, from the catalog to the scores without a grid in between"
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import rasterio
import shapely
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from geoseg_nb import swaths
from geoseg_nb.catalog import read_catalog, write_catalog
from geoseg_nb.checkpoint import ModelCard, load_model, save_model
from geoseg_nb.catalog import CatalogSpec
from geoseg_nb.core import GeosegError, Grid, GridMismatch, Refused, make_legend
from geoseg_nb.evaluate import EvaluateSpec, evaluate
from geoseg_nb.maps import draw_swath, read_swath, write_swath
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.predict import PredictSpec, overview, predict_catalog
from geoseg_nb.products import Source, hand_over, received
from geoseg_nb.products import catalog as product_catalog
from geoseg_nb.scenes import scene_of_dataset
from geoseg_nb.split import SplitSpec, make_split, read_split, write_split
from geoseg_nb.swath import (
    Coordinates, Swath, coordinates_digest, ground_of, in_range, open_netcdf, physical, pixel_corners, read_coordinates,
    swath_of)
from geoseg_nb.swaths import LabelRule, SwathOptions, flag_set, label_codes
from geoseg_nb.tilestore import open_store, read_rows
from geoseg_nb.tiling import TileSpec, tile
from geoseg_nb.windows import Window

LEGEND = make_legend({"clear": [0, "#2e6f40"], "cloud": [1, "#d9dde3"]}, ignore=[255])
RULE = {"variable": "flags", "flags": [["BAD", 255], ["CLOUD", 1]]}
OPTIONS = SwathOptions(bands=["b_{1..2}"], sensor="rad", label=RULE)
READ = partial(swaths.read, options=OPTIONS)
FP32 = PredictSpec(precision="fp32", device="cpu", window=16, overlap=8)
torch.set_num_threads(1)


def bent(height=48, width=40, west=10.0, south=50.0, turn=2e-3):
    "Centres of a swath that is turned and curved"
    row, col = np.mgrid[:height, :width]
    lat = south + 8e-3 * (height - row) - turn * col + 2e-5 * (col - width / 2) ** 2
    return lat, (west + 1.2e-2 * col + turn * row + 180) % 360 - 180


def granule(path, seed=0, lat=None, lon=None, **place):
    "A granule written by netCDF4: two packed bands, flags in a signed byte, NaN nowhere"
    places = bent(**place)
    lat, lon = places[0] if lat is None else lat, places[1] if lon is None else lon
    rng = np.random.default_rng(seed)
    packed = {name: np.where(rng.random(lat.shape) < 0.05, -999, rng.integers(-100, 100, lat.shape)) for name in ("b_1", "b_2")}
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("y", lat.shape[0]), file.createDimension("x", lat.shape[1])
        for name, values in packed.items():
            band = file.createVariable(name, "i2", ("y", "x"), fill_value=-999)
            band.setncatts({"scale_factor": 0.01, "add_offset": 1.0, "units": "1", "coordinates": "lon lat"})
            band.set_auto_maskandscale(False)
            band[:] = values
        flags = file.createVariable("flags", "i1", ("y", "x"))
        flags.setncatts({"flag_masks": np.array([1, -128], "i1"), "flag_meanings": "BAD CLOUD"})
        flags[:] = ((packed["b_1"] > 0) * -128 + (rng.random(lat.shape) < 0.02)).astype("i1")
        for name, values, units in (("lat", lat, "degrees_north"), ("lon", lon, "degrees_east")):
            file.createVariable(name, "f8", ("y", "x"), fill_value=np.nan)[:] = values
            file[name].units = units
    return path


def plain(path):
    "What netCDF4 says: bands [2, y, x] with NaN where masked, raw flags, latitude, longitude"
    with netCDF4.Dataset(path) as file:
        bands = np.stack([np.ma.filled(file[name][:].astype("float64"), np.nan) for name in ("b_1", "b_2")])
        return bands, file["flags"][:].data.astype(int), file["lat"][:].data, file["lon"][:].data


def codes_of(flags):
    return np.where(flags & 1, 255, np.where(flags & 128, 1, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("granules")
    granule(folder / "a.nc", 1)
    granule(folder / "b.nc", 2, west=179.8, south=-10)
    return folder


@pytest.fixture(scope="module")
def scenes(folder):
    return swaths.catalog(folder, OPTIONS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "Cloud where the first band is above 1: a network of one weight a class"
    spec = ModelSpec(bands=2, classes=2)
    card = ModelCard(model=spec, sensors=[s.as_dict() for s in swaths.sensors(OPTIONS)], normaliser={"kind": "none"},
                     legend=LEGEND.as_dict(), tile_size=16, overlap=8)
    made = load_model(save_model(tmp_path_factory.mktemp("model") / "m", build_model(spec, seed=1), card))
    network = nn.Conv2d(2, 2, 1).eval()
    with torch.no_grad():
        network.weight.zero_(), network.bias.copy_(torch.tensor([0.0, -1.005]))
        network.weight[1, 0] = 1
    return replace(made, network=network)


# Decoding


@settings(deadline=None, max_examples=60)
@given(arrays("int16", (3, 4), elements=st.integers(-300, 300)), st.sampled_from([None, -300, 0, 7]),
       st.sampled_from([None, 0.5, 0.01]), st.sampled_from([None, 2.0]), st.sampled_from([{}, {"valid_min": np.int16(-100)},
       {"valid_max": np.int16(90)}, {"valid_range": np.array([-50, 50], "int16")}]))
def test_packed_values_mean_what_netcdf4_says_they_mean(tmp_path_factory, values, fill, scale, offset, valid):
    path = tmp_path_factory.mktemp("packed") / "x.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("y", 3), file.createDimension("x", 4)
        variable = file.createVariable("v", "i2", ("y", "x"), fill_value=fill)
        variable.setncatts({k: v for k, v in {"scale_factor": scale, "add_offset": offset, **valid}.items() if v is not None})
        variable.set_auto_maskandscale(False)
        variable[:] = values
    with netCDF4.Dataset(path) as file:
        expected = np.ma.filled(file["v"][:].astype("float64"), np.nan)
    if fill is None:
        expected = np.where(values == netCDF4.default_fillvals["i2"], values, expected)
    with open_netcdf(path) as source:
        array = source["v"].load()
    found = np.where(in_range(array) & np.isfinite(physical(array)), physical(array), np.nan)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_range_in_physical_units_and_unsigned_integers():
    array = xr.DataArray(np.array([[-1, 1, 2]], "int8"), dims=("y", "x"), attrs={"_Unsigned": "true", "scale_factor": 2.0})
    assert physical(array).tolist() == [[510, 2, 4]]
    assert in_range(array.assign_attrs(valid_range=np.array([3.0, 600.0]))).tolist() == [[True, False, True]]


@given(arrays("int32", (4, 5), elements=st.integers(-2**31, 2**31 - 1)), st.permutations(range(32)))
def test_the_first_flag_that_is_set_gives_the_code(values, order):
    masks = np.array([1 << bit for bit in range(32)], "uint32").view("int32")
    array = xr.DataArray(values, dims=("y", "x"), name="f", attrs={
        "flag_masks": masks, "flag_meanings": " ".join(f"F{bit}" for bit in range(32))})
    rule = LabelRule(variable="f", flags=[(f"F{bit}", bit + 1) for bit in order[:9]], other=0)
    expected = [next((bit + 1 for bit in order[:9] if (int(v) % 2**32) >> bit & 1), 0) for v in values.ravel()]
    assert label_codes(array, rule).ravel().tolist() == expected


@given(arrays("uint8", 16), st.integers(0, 255), st.integers(0, 255))
def test_a_value_within_some_bits(values, mask, value):
    assert flag_set(values, mask, value).tolist() == [(int(v) & mask) == (value & mask) for v in values]


def test_the_highest_bit_of_the_widest_integers_is_a_flag_too():
    for kind in ("int64", "uint64"):
        values = np.array([0, 1, 2**63, 2**63 + 1], "uint64").view(kind)
        for mask in (2**63, -2**63):
            assert flag_set(values, mask, None).tolist() == flag_set(values, mask, mask).tolist() == [False, False, True, True]


def test_flags_that_contradict_themselves_are_refused():
    array = xr.DataArray(np.zeros((2, 2), "int8"), dims=("y", "x"), name="f", attrs={"flag_meanings": "A B", "flag_masks": np.int8(1)})
    with pytest.raises(GeosegError, match="names 2 flags, flag_masks has 1"): label_codes(array, LabelRule(flags=[("A", 1)]))
    with pytest.raises(GeosegError, match="classes are integers"): label_codes(array.astype("f4"), LabelRule())


def test_the_order_of_flags_survives_the_record_of_a_job():
    from geoseg_nb.spec import dumps_json, loads_json, make
    options = SwathOptions(bands=["a"], label={"variable": "f", "flags": [["Z", 3], ["A", 1], ["M", 2]]})
    assert make(SwathOptions, loads_json(dumps_json(options.model_dump()))) == options
    assert [flag for flag, _ in options.label.flags] == ["Z", "A", "M"]


# The product


def test_a_scene_reads_as_netcdf4_reads_it(scenes):
    for row in scenes.itertuples():
        bands, flags, lat, lon = plain(row.image)
        whole, part = READ(row), READ(row, window=Window(5, 7, 20, 11))
        np.testing.assert_allclose(whole.rad, bands, rtol=1e-6)
        assert np.array_equal(whole.valid, np.isfinite(bands).all(0)) and np.array_equal(whole.label, codes_of(flags))
        assert np.array_equal(whole.lat, lat) and np.array_equal(whole.lon, lon)
        assert part.drop_attrs().identical(whole.isel(y=slice(5, 25), x=slice(7, 18)).drop_attrs())
        assert np.array_equal(READ(row, bands=["b_2"]).rad[0], whole.rad[1], equal_nan=True)
    stored = swaths.read(scenes.iloc[0], OPTIONS.replace(values="stored", dtype="int16", nodata=-999))
    assert stored.rad.dtype == "int16" and (stored.rad == -999).any() and np.array_equal(stored.valid, READ(scenes.iloc[0]).valid)


def test_a_swath_of_many_strips(tmp_path):
    granule(tmp_path / "tall.nc", height=1200, width=5, south=0)
    row = swaths.catalog(tmp_path, OPTIONS).iloc[0]
    assert np.array_equal(READ(row, window=Window(1000, 0, 200, 5)).lat, plain(row["image"])[2][1000:])
    classes = np.random.default_rng(5).choice([0, 1, 255], (1200, 5)).astype("uint8")
    grid = swath_of(row["image"], "b_1")
    path = write_swath(tmp_path / "map" / "tall.nc", ((r, classes[r:r + 70]) for r in range(0, 1200, 70)), grid, LEGEND)
    with netCDF4.Dataset(path) as file: assert np.array_equal(file["classes"][:].filled(255), classes)
    assert np.array_equal(read_swath(path, grid, Window(500, 1, 600, 3)), classes[500:1100, 1:4])


@pytest.mark.parametrize("window", [(-1, 0, 4, 4), (0, 30, 4, 16), (47, 0, 4, 4)])
def test_a_window_that_leaves_the_scene_is_refused(scenes, window):
    with pytest.raises(GeosegError, match="leaves the scene of 48x40"): READ(scenes.iloc[0], window=Window(*window))


def test_pixels_without_a_place_are_not_valid(tmp_path):
    lat, lon = bent()
    lat[:2] = lon[:2] = lat[30, 5] = np.nan
    granule(tmp_path / "holes.nc", lat=lat, lon=lon)
    row = swaths.catalog(tmp_path, OPTIONS).iloc[0]
    valid = READ(row).valid.values
    assert not valid[:2].any() and not valid[30, 5] and valid[2:].mean() > 0.8
    known = np.isfinite(lat + lon)
    assert shapely.contains_xy(row["geometry"].buffer(1e-9), lon[known][40:], lat[known][40:]).all()


def test_a_rim_without_coordinates_does_not_hide_the_scene():
    lat, lon = bent()
    for rim in (np.s_[:2], np.s_[-1:], np.s_[:, :3], np.s_[:, -2:]): lat[rim] = np.nan
    ground, known = ground_of(pixel_corners(Coordinates(lat, lon))), np.isfinite(lat)
    assert shapely.contains_xy(ground.buffer(1e-9), lon[known][40:-40], lat[known][40:-40]).mean() > 0.85
    inner = ground_of(pixel_corners(Coordinates(lat[2:-1, 3:-2], lon[2:-1, 3:-2])))
    assert ground.area / inner.area > 0.85 and inner.buffer(1e-6).contains(ground)


def test_all_that_is_wrong_with_a_folder_is_said_at_once(tmp_path, folder):
    (tmp_path / "good.nc").write_bytes((folder / "a.nc").read_bytes())
    (tmp_path / "cut.nc").write_bytes((folder / "a.nc").read_bytes()[:9000])
    (tmp_path / "page.nc").write_text("<!doctype html>")
    (tmp_path / "empty.nc").touch()
    lat, lon = bent()
    granule(tmp_path / "far.nc", lat=lat + 60, lon=lon)
    with netCDF4.Dataset(granule(tmp_path / "other.nc"), "a") as file: file.renameVariable("b_2", "b2")
    with pytest.raises(GeosegError) as found: swaths.catalog(tmp_path, OPTIONS)
    for words in ("no scenes: 5", "cut off, damaged", "a web page", "0 bytes", "no degrees", "has no variable b_2"):
        assert words in str(found.value)
    kept = swaths.catalog(tmp_path, OPTIONS.replace(on_missing="skip"))
    assert list(kept["id"]) == ["good"] and {s["id"] for s in kept.attrs["skipped"]} == {"cut", "page", "empty", "far", "other"}
    with pytest.raises(Refused, match="did you mean 'CLOUD'"):
        label_codes(xr.open_dataset(folder / "a.nc", decode_cf=False)["flags"], LabelRule(flags=[("CLOUDS", 1)]))
    with pytest.raises(GeosegError, match="no flag of flags 'CLOUDS'"):
        swaths.catalog(folder, OPTIONS.replace(label={"variable": "flags", "flags": [["CLOUDS", 1]]}))


def test_a_catalog_comes_back_from_its_file(scenes, tmp_path):
    back = read_catalog(write_catalog(scenes, tmp_path / "catalog.parquet"))
    assert back["transform"].tolist() == [None, None] and set(back["grid"]) == {"swath"}
    assert READ(back.iloc[1]).identical(READ(scenes.iloc[1])) and back.crs.to_epsg() == 4326


# Where a swath lies


def test_coordinates_by_their_hash(folder, tmp_path):
    here, there = swath_of(folder / "a.nc", "b_1"), swath_of(folder / "b.nc", "b_1")
    lat, lon = bent()
    packed = tmp_path / "packed.nc"
    xr.Dataset({"v": (("r", "c"), lat), "la": (("r", "c"), lat, {"units": "degreeN"}), "lo": (("r", "c"), lon, {"units": "degree_E"})}).to_netcdf(packed)
    assert here == swath_of(packed, "v") != there and hash(here) == hash(swath_of(packed, "v"))
    assert here != here.window(0, 0, 48, 39) and here.window(3, 4, 9, 9) == here.window(1, 1, 20, 20).window(2, 3, 9, 9)
    lat[17, 3] = np.nextafter(lat[17, 3], 90)
    assert coordinates_digest([Coordinates(lat, lon)]) != here.digest
    with pytest.raises(GeosegError, match="no image of 2 rows"): swath_of(_line(tmp_path), "v")


def _line(folder):
    one = xr.Dataset({"v": ("x", [1.0]), "lat": ("x", [1.0], {"units": "degrees_north"}), "lon": ("x", [1.0], {"units": "degrees_east"})})
    one.to_netcdf(folder / "line.nc")
    return folder / "line.nc"


def test_a_file_that_moved_its_pixels_is_noticed(tmp_path):
    granule(tmp_path / "a.nc")
    row = swaths.catalog(tmp_path, OPTIONS).iloc[0]
    granule(tmp_path / "a.nc", south=50.01)
    with pytest.raises(GridMismatch, match="run the catalog job again"): READ(row)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(2, 30), st.floats(-180, 180), st.floats(-70, 70), st.floats(0, 4e-3))
def test_a_footprint_holds_every_centre_and_stays_within_half_a_pixel(height, width, west, south, turn):
    lat, lon = bent(height, width, west, south, turn)
    ground = ground_of(pixel_corners(Coordinates(lat, lon)))
    assert ground.is_valid and -180 <= ground.bounds[0] and ground.bounds[2] <= 180
    inside = shapely.contains_xy(ground.buffer(1e-6), lon, lat)
    assert inside.all()
    pixel = 8e-3 * 1.2e-2 - turn * turn
    assert 0.85 < ground.area / (height * width * pixel) < 1.15


def test_tiles_and_windows_share_the_scene_among_them(scenes):
    for row in scenes.itertuples():
        corners = pixel_corners(Coordinates(*plain(row.image)[2:]))
        parts = [ground_of(corners, Window(r, c, 16, 8)) for r in (0, 16, 32) for c in range(0, 40, 8)]
        assert abs(sum(p.area for p in parts) / row.geometry.area - 1) < 2e-3
        assert row.geometry.symmetric_difference(shapely.union_all(parts)).area < 4e-3 * row.geometry.area


def test_a_pole_and_half_a_globe_are_refused():
    angle = np.radians(np.linspace(0, 360, 20, endpoint=False))
    cap = Coordinates(np.tile([[88.0], [89.0]], (1, 20)), np.tile(np.degrees(angle) - 180, (2, 1)))
    with pytest.raises(GeosegError, match="holds a pole"): pixel_corners(cap, "polar")
    with pytest.raises(GeosegError, match="no coordinates"): pixel_corners(Coordinates(*np.full((2, 3, 3), np.nan)))


# Maps


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_a_map_reads_back_by_readers_that_are_not_ours(folder, tmp_path):
    grid, classes = swath_of(folder / "a.nc", "b_1"), np.random.default_rng(0).choice([0, 1, 255], (48, 40)).astype("uint8")
    path = write_swath(tmp_path / "map.nc", ((row, classes[row:row + 7]) for row in range(0, 48, 7)), grid, LEGEND)
    lat, lon = bent()
    with netCDF4.Dataset(path) as file:
        assert np.array_equal(file["classes"][:].filled(255), classes) and file["classes"].coordinates == "lat lon"
        assert file["classes"].flag_values.tolist() == [0, 1] and file["classes"].flag_values.dtype == "uint8"
        assert np.array_equal(file["lat"][:], lat) and np.array_equal(file["lon"][:], lon)
    back = xr.open_dataset(path, engine="h5netcdf", mask_and_scale=False)
    assert np.array_equal(back.classes, classes) and set(back.classes.coords) == {"lat", "lon"}
    with rasterio.Env(GDAL_NETCDF_BOTTOMUP="NO"), rasterio.open(f'NETCDF:"{path}":classes') as gdal:
        assert np.array_equal(gdal.read(1), classes) and gdal.nodata == 255
    assert np.array_equal(read_swath(path, grid, Window(3, 4, 20, 9)), classes[3:23, 4:13])
    assert path.stat().st_size < classes.nbytes * 17


def test_a_map_keeps_the_conventions(folder, tmp_path):
    runner = pytest.importorskip("compliance_checker.runner")
    path = write_swath(tmp_path / "map.nc", np.zeros((48, 40), "uint8"), swath_of(folder / "a.nc", "b_1"), LEGEND)
    runner.CheckSuite.load_all_available_checkers()
    report = tmp_path / "report.txt"
    passed, crashed = runner.ComplianceChecker.run_checker(str(path), ["cf:1.10"], 0, "strict", output_filename=str(report), output_format="text")
    assert passed and not crashed, report.read_text()
    assert "Corrective Actions" not in report.read_text() or "has 0 potential issues" in report.read_text(), report.read_text()


def test_a_map_that_fails_leaves_what_was_there(folder, tmp_path):
    grid, old = swath_of(folder / "a.nc", "b_1"), np.zeros((48, 40), "uint8")
    path = write_swath(tmp_path / "map.nc", old, grid, LEGEND)

    def broken():
        yield 0, old[:20]
        raise RuntimeError("the network died")

    with pytest.raises(RuntimeError): write_swath(path, broken(), grid, LEGEND)
    with pytest.raises(GeosegError, match="are no class"): write_swath(path, old + 7, grid, LEGEND)
    assert np.array_equal(read_swath(path, grid), old) and [p.name for p in tmp_path.iterdir()] == ["map.nc"]
    with pytest.raises(GridMismatch, match="predict the scene again"): read_swath(path, swath_of(folder / "b.nc", "b_1"))


def test_a_swath_with_holes_in_its_coordinates_can_be_drawn():
    import matplotlib.pyplot as plt
    lat, lon = bent()
    lat[:3, :3] = np.nan
    ax = draw_swath(np.zeros(lat.shape), Coordinates(lat, lon), LEGEND, plt.figure().gca(), "holes")
    assert ax.collections[0].get_array().mask.sum() == 16
    plt.close("all")


# Through the stages


@pytest.fixture(scope="module")
def store(scenes, tmp_path_factory):
    source = Source(READ, swaths.sensors(OPTIONS), LEGEND)
    return tile(TileSpec(size=16, overlap=4, edge="pad", shard_tiles=8), scenes, source, tmp_path_factory.mktemp("store") / "s.zarr")


def test_tiles_are_slices_of_the_file(scenes, store):
    index, tiles = store.index, read_rows(store, range(len(store.index)))
    assert set(index["scene"]) == {"a", "b"} and index["transform"].isna().all() and set(index["crs"]) == {"EPSG:4326"}
    files = {row.id: plain(row.image) for row in scenes.itertuples()}
    for i, row in enumerate(index.itertuples()):
        bands, flags, lat, lon = files[row.scene]
        area = np.s_[row.row:row.row + 16, row.col:row.col + 16]
        known = np.isfinite(bands).all(0)[area]
        h, w = known.shape
        np.testing.assert_allclose(tiles["rad"][i, :, :h, :w][:, known], bands[:, *area][:, known], rtol=1e-6)
        assert np.isnan(tiles["rad"][i, :, h:]).all() and np.isnan(tiles["rad"][i, 0, :h, :w][~np.isfinite(bands[0][area])]).all()
        assert np.array_equal(tiles["label"][i, :h, :w], codes_of(flags)[area])
        assert shapely.contains_xy(row.geometry.buffer(1e-6), lon[area], lat[area]).all()
    assert open_store(store.url).index["transform"].isna().all()


def test_other_flags_make_another_store_and_equal_ones_do_not(tmp_path):
    "The files are the same; what was cloud is clear"
    granule(tmp_path / "a.nc")
    spec, url = CatalogSpec(product="swaths", root=str(tmp_path), options=OPTIONS.model_dump(), legend={"clear": [0, "#2e6f40"], "cloud": [1, "#d9dde3"]}, ignore=[255]), tmp_path / "s.zarr"
    handed = lambda spec: received(json.loads(json.dumps({"outputs": hand_over(spec)})))  # noqa: E731
    cut = lambda spec: tile(TileSpec(size=16, overlap=0, edge="pad"), product_catalog(spec), handed(spec), url)  # noqa: E731
    first, unread = cut(spec), handed(spec)._replace(reader=None)
    again = tile(TileSpec(size=16, overlap=0, edge="pad"), product_catalog(spec), unread, url)
    clouds = first.index["count_cloud"].sum()
    assert clouds and again.hash == first.hash and read_rows(first, range(len(first)))["label"].max() == 255
    flags = [["BAD", 255], ["CLOUD", 0]]
    other = cut(spec.replace(options={**spec.options, "label": {**RULE, "flags": flags}}))
    assert other.hash != first.hash and not other.index["count_cloud"].sum()


def test_swaths_that_show_the_same_ground_belong_to_one_part(tmp_path, scenes):
    for name, south in {"a": 50.0, "a2": 50.1, "far": 20.0}.items(): granule(tmp_path / f"{name}.nc", south=south)
    catalog = swaths.catalog(tmp_path, OPTIONS)
    spec = SplitSpec(rule="column", column="id", values={"train": ["a"], "test": ["a2", "far"]})
    with pytest.raises(GeosegError, match="a train rows 0:48 columns 0:40 and a2 test"): make_split(catalog, spec)
    apart = make_split(catalog, spec.replace(values={"train": ["a", "a2"], "test": ["far"]}))
    assert read_split(write_split(apart, tmp_path / "split.parquet")).equals(apart)
    assert set(make_split(scenes, SplitSpec(buffer=4))["part"]) == {"train", "val", "test"}


def test_predicted_maps_are_netcdf_on_the_same_swath_and_are_kept(scenes, model, tmp_path):
    paths = predict_catalog(model, scenes, READ, tmp_path / "maps", FP32)
    assert [p.name for p in paths] == ["a.nc", "b.nc"]
    for row, path in zip(scenes.itertuples(), paths):
        bands = plain(row.image)[0]
        with netCDF4.Dataset(path) as file: found = file["classes"][:].filled(255)
        assert np.array_equal(found, np.where(np.isfinite(bands).all(0), bands[0] > 1.005, 255))
    assert overview(paths[0], 20)["step"] == 3 and overview(paths[0])["classes"].shape == (48, 40)
    before = [p.stat().st_mtime_ns for p in paths]
    assert before == [p.stat().st_mtime_ns for p in predict_catalog(model, scenes, READ, tmp_path / "maps", FP32)]
    assert before != [p.stat().st_mtime_ns for p in predict_catalog(model, scenes, READ, tmp_path / "maps", FP32.replace(overlap=4))]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.nc").touch()
    with pytest.raises(Refused, match="mine.nc"): predict_catalog(model, scenes, READ, tmp_path / "own", FP32)


def test_scores_are_counted_from_the_written_maps(scenes, model, tmp_path):
    split = make_split(scenes, SplitSpec(areas={"train": {"cols": [0, 0.5]}, "test": {"cols": [0.5, 1]}}))
    spec = EvaluateSpec(precision="fp32", device="cpu", baseline="cloud: b_2 > 1")
    found = evaluate(model, scenes, split, READ, tmp_path, spec)
    confusion = np.zeros((2, 2, 2), int)
    for row in scenes.itertuples():
        bands, flags, *_ = (values[..., 20:] for values in plain(row.image))
        counts = np.isfinite(bands).all(0) & (codes_of(flags) != 255)
        for k, guess in enumerate((bands[0] > 1.005, bands[1] > 1)):
            np.add.at(confusion[k], (codes_of(flags)[counts], guess[counts].astype(int)), 1)
    assert np.array_equal(found.matrix, confusion[0]) and np.array_equal(found.baseline_matrix, confusion[1])
    assert found.examples(1)[0]["prediction"].shape == (48, 20)


def test_a_dataset_in_memory_keeps_its_swath(scenes):
    scene = scene_of_dataset(READ(scenes.iloc[0]), ["b_1", "b_2"])
    assert isinstance(scene.grid, Swath) and read_coordinates(scene.grid).latitude.shape == (48, 40)
    assert Grid.from_dict(Grid("EPSG:4326", (1, 0, 0, 0, -1, 0), 2, 2).as_dict())


# Sentinel-3


@pytest.fixture(scope="module")
def olci():
    root = os.environ.get("GEOSEG_DATA")
    if not root: pytest.skip("GEOSEG_DATA is not set")
    return Path(root) / "olci_s3a_idepix"


CLOUDS = {"variable": "pixel_classif_flags", "flags": [["IDEPIX_INVALID", 255], ["IDEPIX_CLOUD", 1], ["IDEPIX_CLOUD_BUFFER", 255]]}


def test_the_olci_granule(olci):
    options = SwathOptions(bands=["rtoa_{1..21}"], unit="1", time="start_date", sensor="olci", label=CLOUDS)
    row = swaths.catalog(olci, options).iloc[0]
    assert str(row["time"])[:19] == "2017-04-14 10:27:29" and row["latitude"] == "lat"
    with netCDF4.Dataset(next(olci.glob("*.nc"))) as file:
        flags, lat, lon = (file[name][:].data for name in ("pixel_classif_flags", "lat", "lon"))
        land = file["quality_flags"][:].data.astype("int64") % 2**32 >= 2**31
        bands = np.stack([file[f"rtoa_{i}"][:].filled(np.nan) for i in range(1, 22)])
    data = swaths.read(row, options)
    assert np.array_equal(data.olci, bands) and data.valid.all()
    label = data.label.values
    assert [(label == code).sum() for code in (0, 1, 255)] == [1139, 8195, 666]
    assert np.array_equal(label == 1, ((flags & 2) > 0) & ((flags & 1) == 0))
    assert shapely.contains_xy(row["geometry"], lon, lat).all() and np.allclose(row["geometry"].bounds, (1.15, 52.327, 1.641, 52.644), atol=3e-3)
    quality = swaths.read(row, options.replace(label={"variable": "quality_flags", "flags": [["land", 1]]})).label
    assert np.array_equal(quality == 1, land) and land.any()


@pytest.mark.slow
def test_the_olci_recipe_and_its_scores(olci, tmp_path):
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-m", "geoseg_nb.cli", "run", "olci_clouds", "--out", str(run), "-p", f"catalog.root={olci}"],
                          capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((run / "43_evaluate" / "result.json").read_text())["metrics"]
    written, delivered = (next((run / job / "classes").glob("*.nc")) for job in ("43_evaluate", "42_predict"))
    with netCDF4.Dataset(next(olci.glob("*.nc"))) as file, netCDF4.Dataset(written) as ours, netCDF4.Dataset(delivered) as last:
        flags, blue = file["pixel_classif_flags"][:].data, file["rtoa_2"][:].data
        found = ours["classes"][:].filled(255)
        assert np.array_equal(found, last["classes"][:].filled(255)) and np.array_equal(ours["lat"][:], file["lat"][:])
    test = np.s_[:, :38]
    cloud, counts = ((flags & 2) > 0)[test], ((flags & 1) == 0)[test] & (((flags & 16) == 0) | ((flags & 2) > 0))[test]
    for scores, guess in ((metrics, found[test] == 1), (metrics["baseline"], blue[test] > 0.26)):
        for name, truth, said in (("cloud", cloud, guess), ("clear", ~cloud, ~guess)):
            iou = (truth & said & counts).sum() / ((truth | said) & counts).sum()
            assert abs(scores["per_class"][name]["iou"] - iou) < 1e-9
    assert metrics["pixels"] == counts.sum() == 3602 and metrics["per_class"]["clear"]["iou"] > 0.9
