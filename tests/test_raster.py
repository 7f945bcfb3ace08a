"Reading on one grid, refusing what does not fit, writing maps: against plain rasterio, GDAL and rio-cogeo"
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.transform import Affine
from rio_cogeo import cog_validate

from geoseg_nb.core import Band, GeosegError, Grid, GridMismatch, Sensor, make_legend
from geoseg_nb.raster import (
    Pixels, grid_coords, grid_of, open_raster, read_bands, read_header, read_pixels, row_grid, tile_rows, to_dataset,
    valid_mask, write_cog,
)
from geoseg_nb.storage import sample_folder
from geoseg_nb.windows import Window

UTM33 = Grid("EPSG:32633", (10, 0, 500000, 0, -10, 5000000), 48, 64)
FLOODS = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
SPAIN = sample_folder() / "S1" / "Spain_7370579_S1Hand.tif"
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def data_folder(name):
    root = os.environ.get("GEOSEG_DATA")
    if not root:
        pytest.skip("GEOSEG_DATA is not set: no data beyond the sample")
    if not (Path(root) / name).is_dir():
        pytest.skip(f"no {name} in GEOSEG_DATA")
    return Path(root) / name


def write(path, values, grid=UTM33, **options):
    placed = {"crs": grid.crs, "transform": Affine(*grid.transform)} if grid else {}
    values = np.asarray(values)
    values = values if values.ndim == 3 else values[None]
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2],
               "dtype": values.dtype, **placed, **options}
    with rasterio.open(path, "w", **profile) as target:
        target.write(values)
    return path


def numbers(bands=1, dtype="uint16", seed=0, grid=UTM33):
    return np.random.default_rng(seed).integers(0, 250, (bands, grid.height, grid.width)).astype(dtype)


# Fault 9: missing, broken and empty files

WHOLE = SPAIN.read_bytes()
BROKEN = {
    "cut at 50 %": (WHOLE[: len(WHOLE) // 2], "cut off"), "cut at 95 %": (WHOLE[: len(WHOLE) * 95 // 100], "cut off"),
    "cut at 0.1 %": (WHOLE[: len(WHOLE) // 1000], "cut off"), "nothing": (b"", "0 bytes"),
    "page": (b"\n<!DOCTYPE html><html>404</html>", "web page"), "noise": (b"II*\0" + bytes(range(256)), "cut off"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("do", [grid_of, read_header, lambda path, item: read_bands({"VV": (path, 1)}, item=item)])
def test_broken_files_are_named_with_item_path_and_reason(tmp_path, kind, do):
    data, reason = BROKEN[kind]
    path = tmp_path / "chip.tif"
    path.write_bytes(data)
    with pytest.raises(GeosegError) as caught:
        do(path, "Spain_1")
    assert str(caught.value).startswith(f"Spain_1: {path}: ")
    assert reason in str(caught.value)
    assert caught.value.item == "Spain_1" and caught.value.__cause__ is None


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(GeosegError, match="gone.tif: no such file"):
        grid_of(tmp_path / "gone.tif")
    with pytest.raises(GeosegError, match="folder"):
        grid_of(tmp_path)


@pytest.mark.parametrize("options", [
    {"compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16},
    {"compress": "deflate", "blockysize": 8},
    {"compress": "deflate", "blockysize": 8, "interleave": "pixel"}, {"blockysize": 8},
    {"driver": "COG", "compress": "lzw"},
], ids=["tiles", "strips", "pixels", "uncompressed", "cog"])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.999])
def test_a_cut_body_under_a_whole_header_is_found(tmp_path, options, share):
    values = np.random.default_rng(1).integers(0, 65000, (3, 48, 64)).astype("uint16")
    source = write(tmp_path / "whole.tif", values, **(options if options.get("driver") != "COG" else {}))
    if options.get("driver") == "COG":
        rasterio.shutil.copy(source, tmp_path / "cog.tif", **options)
        source = tmp_path / "cog.tif"
    assert read_header(source)["bands"] == 3
    data = source.read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(GeosegError, match="chip 5: .*cut.tif"):
        read_header(cut, "chip 5")


# Fault 11: no CRS, no transform

@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_file_that_lies_nowhere_is_refused(tmp_path):
    nowhere = write(tmp_path / "nogeo.tif", numbers(), grid=None)
    no_crs = write(tmp_path / "nocrs.tif", numbers(), grid=None, transform=Affine(*UTM33.transform))
    no_transform = write(tmp_path / "notransform.tif", numbers(), grid=None, crs="EPSG:32633")
    for path, lack in ((nowhere, "no CRS"), (no_crs, "no CRS"), (no_transform, "no transform")):
        for do in (grid_of, read_header):
            with pytest.raises(GeosegError, match=f"chip 1: .*{path.name}: {lack}.*gdal_translate"):
                do(path, "chip 1")
        with pytest.raises(GeosegError, match=lack):
            read_bands({"B02": (path, 1)}, grid=UTM33)


# Faults 12 and 13: other pixel size, other CRS under the same numbers

def test_other_pixel_size_is_refused_where_xarray_would_fill_with_nan(tmp_path):
    fine = write(tmp_path / "a.tif", numbers())
    coarse = write(tmp_path / "b20.tif", numbers(), Grid("EPSG:32633", (20, 0, 500000, 0, -20, 5000000), 48, 64))
    with pytest.raises(GridMismatch) as caught:
        read_bands({"B02": (fine, 1), "B11": (coarse, 1)}, item="T33UVP")
    text = str(caught.value)
    assert all(part in text for part in ("T33UVP", "B02", "B11", "EPSG:32633 10 m", "EPSG:32633 20 m", "gdalwarp"))
    a, b = (to_dataset([(Sensor("s2", (Band("B"),), "uint16"), p.values)], p.grid, p.valid)
            for p in (read_pixels({"B": (path, 1)}) for path in (fine, coarse)))
    with pytest.raises(ValueError):
        xr.align(a, b, join="exact")


def test_another_zone_with_the_same_coordinates_is_refused_where_numpy_would_add(tmp_path):
    utm33 = write(tmp_path / "utm33.tif", numbers(seed=1))
    utm34 = write(tmp_path / "utm34.tif", numbers(seed=2), Grid("EPSG:32634", UTM33.transform, 48, 64))
    with rasterio.open(utm33) as a, rasterio.open(utm34) as b:
        assert a.transform == b.transform and (a.read() + b.read()).shape == (1, 48, 64)
    with pytest.raises(GridMismatch, match=r"T33: VV is EPSG:32633 10 m.*VH is EPSG:32634 10 m.*CRS"):
        read_bands({"VV": (utm33, 1), "VH": (utm34, 1)}, item="T33")
    with pytest.raises(GridMismatch, match="the declared grid is EPSG:32634"):
        read_bands({"VV": (utm33, 1)}, grid=grid_of(utm34))


@quick
@given(shift=st.sampled_from([(1, 0), (0, -1), (0.5, 0.5), (0.01, 0)]),
       size=st.sampled_from([(48, 64), (48, 63), (47, 64)]))
def test_any_shift_or_size_is_refused(tmp_path, shift, size):
    a, b, c, d, e, f = UTM33.transform
    moved = Grid(UTM33.crs, (a, b, c + shift[0] * a, d, e, f + shift[1] * e), *size)
    first = write(tmp_path / "first.tif", numbers())
    second = write(tmp_path / "second.tif", numbers(grid=moved), moved)
    with pytest.raises(GridMismatch):
        read_bands({"B02": (first, 1), "B03": (second, 1)})


def test_a_rounding_error_of_the_origin_is_no_other_grid(tmp_path):
    a, b, c, d, e, f = UTM33.transform
    near = Grid(UTM33.crs, (a, b, c + 1e-5, d, e, f - 1e-5), 48, 64)
    first, second = write(tmp_path / "a.tif", numbers(seed=1)), write(tmp_path / "b.tif", numbers(seed=2), near)
    assert read_bands({"B02": (first, 1), "B03": (second, 1)}).shape == (2, 48, 64)


# Reading equals plain rasterio

@quick
@given(data=st.data())
def test_any_window_and_band_order_equals_plain_rasterio(data):
    row, col = data.draw(st.integers(0, 511)), data.draw(st.integers(0, 511))
    window = Window(row, col, data.draw(st.integers(1, 512 - row)), data.draw(st.integers(1, 512 - col)))
    order = data.draw(st.sampled_from([["VV", "VH"], ["VH", "VV"], ["VH"]]))
    found = read_pixels({name: (SPAIN, {"VV": 1, "VH": 2}[name]) for name in order}, window=window)
    with rasterio.open(SPAIN) as source:
        area = rasterio.windows.Window(col, row, window.width, window.height)
        plain = source.read([{"VV": 1, "VH": 2}[name] for name in order], window=area)
        transform = source.window_transform(area)
    assert np.array_equal(found.values, plain, equal_nan=True) and found.values.dtype == plain.dtype
    assert np.allclose(found.grid.transform, tuple(transform)[:6], rtol=0, atol=1e-12)
    assert (found.grid.height, found.grid.width) == plain.shape[1:]


@quick
@given(order=st.permutations(["A1", "A2", "B1", "C1", "C2"]))
def test_bands_of_several_files_come_in_the_order_asked(tmp_path, order):
    values = {name: numbers(2, seed=seed) for seed, name in enumerate("ABC")}
    paths = {name: write(tmp_path / f"{name}.tif", v) for name, v in values.items()}
    found = read_bands({band: (paths[band[0]], int(band[1])) for band in order})
    assert np.array_equal(found, np.stack([values[band[0]][int(band[1]) - 1] for band in order]))


def test_each_file_is_opened_once(tmp_path, monkeypatch):
    path, opened, plain = write(tmp_path / "five.tif", numbers(5)), [], rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda *args, **kwargs: opened.append(args) or plain(*args, **kwargs))
    bands, window = {f"B{i}": (path, i) for i in range(1, 6)}, Window(3, 4, 5, 6)
    small = read_pixels(bands, window=window)
    assert not opened
    monkeypatch.setattr("geoseg_nb.raster.plain_file", lambda path, data: None)
    large = read_pixels(bands, window=window)
    assert len(opened) == 1 and all(np.array_equal(a, b) for a, b in zip(small[:2], large[:2])) and small.grid == large.grid


@pytest.mark.parametrize("window", [(-1, 0, 8, 8), (0, -1, 8, 8), (41, 0, 8, 8), (0, 57, 8, 8), (48, 0, 1, 1)])
def test_a_window_that_leaves_the_image_is_refused_where_rasterio_clips(tmp_path, window):
    path = write(tmp_path / "a.tif", numbers())
    with pytest.raises(GeosegError, match="chip 3: .*leave the image of 48x64"):
        read_bands({"B02": (path, 1)}, window=Window(*window), item="chip 3")


def test_other_types_and_bands_that_are_not_there(tmp_path):
    a, b = write(tmp_path / "a.tif", numbers(dtype="uint8")), write(tmp_path / "b.tif", numbers(dtype="int16"))
    with pytest.raises(GeosegError, match="B02: uint8; B03: int16"):
        read_bands({"B02": (a, 1), "B03": (b, 1)})
    for index in (0, 2, -1):
        with pytest.raises(GeosegError, match="has bands 1-1"):
            read_bands({"B02": (a, index)})


def test_threads_read_side_by_side(tmp_path):
    expected, wrong = read_bands({"VV": (SPAIN, 1)}), []

    def work(seed):
        for row, col in np.random.default_rng(seed).integers(0, 448, (20, 2)):
            found = read_bands({"VV": (SPAIN, 1)}, window=Window(row, col, 64, 64))[0]
            if not np.array_equal(found, expected[0, row : row + 64, col : col + 64], equal_nan=True):
                wrong.append((row, col))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


# Validity

@quick
@given(values=arrays("float32", (2, 3, 4), elements=st.sampled_from([0, 1.5, np.nan, np.inf, -np.inf, -9999.9])),
       nodata=st.sampled_from([None, float("nan"), -9999.9, 0]))
def test_a_pixel_is_valid_where_every_band_is_finite_and_not_nodata(values, nodata):
    fill = None if nodata is None else np.float32(nodata)
    usable = lambda v: np.isfinite(v) and (fill is None or v != fill)
    expected = [[all(usable(v) for v in values[:, r, c]) for c in range(4)] for r in range(3)]
    assert valid_mask(values, nodata).tolist() == expected


@quick
@given(values=arrays("uint8", (2, 3, 4)),
       nodata=st.sampled_from([None, 0, 255, -1, 300, 0.0, float("nan"), (0, None), (7, 9)]))
def test_validity_of_integers(values, nodata):
    fills = nodata if isinstance(nodata, tuple) else (nodata, nodata)
    bad = [v == f for v, f in zip(values.astype(float), fills) if f is not None]
    assert np.array_equal(valid_mask(values, nodata), ~np.logical_or.reduce(bad) if bad else np.ones((3, 4), bool))


def test_the_files_own_nodata_and_masks_count(tmp_path):
    values = numbers(2, "uint8")
    nodata = read_pixels({"A": (write(tmp_path / "n.tif", values, nodata=7), 1), "B": (tmp_path / "n.tif", 2)})
    assert 0 < (~nodata.valid).sum() == (values == 7).any(axis=0).sum()
    lowest = np.finfo("float32").min
    floats = np.array([[[1, lowest], [np.nan, 2]]], "float32")
    grid = UTM33.window(0, 0, 2, 2)
    path = write(tmp_path / "f.tif", floats, grid, nodata=lowest)
    assert read_pixels({"A": (path, 1)}).valid.tolist() == [[True, False], [False, True]]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(write(tmp_path / "m.tif", values), "r+") as target:
        target.write_mask(np.broadcast_to(np.arange(64) % 3 > 0, (48, 64)))
    masked = read_pixels({"A": (tmp_path / "m.tif", 1)}, window=Window(5, 1, 4, 6)).valid
    assert np.array_equal(masked, np.broadcast_to(np.arange(1, 7) % 3 > 0, (4, 6)))


def test_validity_of_the_sample_is_its_finite_pixels():
    for path in sorted((sample_folder() / "S1").glob("*.tif")):
        with rasterio.open(path) as source:
            expected = np.isfinite(source.read()).all(axis=0)
        assert np.array_equal(read_pixels({"VV": (path, 1), "VH": (path, 2)}).valid, expected)
    assert not read_pixels({"VV": (sample_folder() / "S1" / "Paraguay_34417_S1Hand.tif", 1)}).valid.any()


# Datasets

def test_a_dataset_says_where_it_lies(tmp_path):
    import rioxarray

    p = read_pixels({"VV": (SPAIN, 1)}, window=Window(10, 20, 30, 40))
    data = to_dataset([(Sensor("s1", (Band("VV", "dB"),)), p.values)], p.grid, p.valid)
    plain = rioxarray.open_rasterio(SPAIN).isel(y=slice(10, 40), x=slice(20, 60))
    assert data.rio.crs == plain.rio.crs and np.allclose(data.rio.bounds(), plain.rio.bounds(), rtol=0, atol=1e-12)
    assert data.s1.rio.crs == plain.rio.crs and np.allclose(data.y, plain.y, rtol=0, atol=1e-12)
    assert list(data.data_vars) == ["s1", "valid"] and data.s1.attrs["units"] == "dB"


def test_a_rotated_grid_has_no_straight_coordinates():
    turned = Grid("EPSG:32633", (8, 6, 500000, 6, -8, 5000000), 3, 4)
    assert set(grid_coords(turned)) == {"spatial_ref"} and set(grid_coords(UTM33)) == {"y", "x", "spatial_ref"}


def test_a_row_of_a_table_gives_its_grid():
    import pandas as pd

    table = pd.DataFrame([{"id": "a", **UTM33.as_dict()}])
    assert all(row_grid(row) == UTM33 for row in (table.iloc[0], next(table.itertuples()), table.to_dict("records")[0]))


# Class maps

@pytest.mark.parametrize("height, width, block", [
    (1, 1, 1), (512, 512, 512), (513, 700, 64), (1300, 1025, 100), (100, 2000, 7), (600, 512, 99), (4100, 1024, 512),
    (4100, 513, 512),
])
def test_a_class_map_is_a_valid_cog_equal_to_what_was_written(tmp_path, height, width, block):
    grid = Grid("EPSG:32633", UTM33.transform, height, width)
    values = np.random.default_rng(0).choice(np.array([0, 1, 255], "uint8"), (height, width))
    path = write_cog(tmp_path / "map.tif", ((r, values[r : r + block]) for r in range(0, height, block)), grid, FLOODS)
    valid, errors, warnings = cog_validate(path, strict=True)
    assert valid and not errors and not warnings
    with rasterio.open(path) as source:
        assert np.array_equal(source.read(1), values) and source.nodata == 255 and source.crs.to_epsg() == 32633
        assert tuple(source.transform)[:6] == grid.transform and source.dtypes == ("uint8",)
        assert source.colormap(1)[0] == (216, 201, 160, 255) and source.colormap(1)[1] == (43, 108, 176, 255)
        assert source.colormap(1)[255][3] == 0 and source.tags(1)["CLASS_1"] == "water"
        assert bool(source.overviews(1)) == (max(height, width) > 512)
    rasterio.shutil.copy(path, tmp_path / "map.vrt", driver="VRT")
    assert "<Category>water</Category>" in (tmp_path / "map.vrt").read_text()


def test_overviews_hold_classes_only(tmp_path):
    grid = Grid("EPSG:32633", UTM33.transform, 1200, 1200)
    three = make_legend({name: [i, "#00000" + name] for i, name in enumerate("012")})
    values = (np.indices((1200, 1200)).sum(axis=0) % 2 * 2).astype("uint8")
    with rasterio.open(write_cog(tmp_path / "map.tif", values, grid, three), overview_level=0) as source:
        assert set(np.unique(source.read(1))) <= {0, 2}


def test_equal_maps_are_equal_bytes_and_the_input_form_does_not_matter(tmp_path):
    grid = Grid("EPSG:32633", UTM33.transform, 700, 600)
    values = np.random.default_rng(3).integers(0, 2, (700, 600)).astype("uint8")
    a = write_cog(tmp_path / "a.tif", values, grid, FLOODS)
    b = write_cog(tmp_path / "b.tif", [(0, values[:33]), (33, values[33:34]), (34, values[34:])], grid, FLOODS)
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("source, reason", [
    ([], "rows 0-0 came of 48"), ([(0, np.zeros((10, 64), "uint8"))], "rows 0-10 came of 48"),
    ([(5, np.zeros((43, 64), "uint8"))], "from row 0"), ([(0, np.zeros((48, 63), "uint8"))], "expected 64 columns"),
    ([(0, np.zeros((49, 64), "uint8"))], "48 rows in all"),
    (np.full((48, 64), 2, "uint8"), r"\[2\] are no class of 0-1"),
    (np.zeros((48, 64), "float32"), "float32, the file uint8"), (np.zeros((1, 48, 64), "uint8"), "expected 64 columns"),
])
def test_a_refused_map_leaves_nothing_behind_and_the_old_one_whole(tmp_path, source, reason):
    old = write_cog(tmp_path / "map.tif", np.ones((48, 64), "uint8"), UTM33, FLOODS).read_bytes()
    names = sorted(os.listdir(tmp_path))
    with pytest.raises(GeosegError, match=reason):
        write_cog(tmp_path / "map.tif", source, UTM33, FLOODS)
    assert sorted(os.listdir(tmp_path)) == names and (tmp_path / "map.tif").read_bytes() == old


def test_a_source_that_dies_half_way_leaves_nothing_behind(tmp_path):
    def dying():
        yield 0, np.zeros((10, 64), "uint8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cog(tmp_path / "map.tif", dying(), UTM33, FLOODS)
    assert os.listdir(tmp_path) == []


def test_rows_stream_through_in_the_memory_of_a_strip(tmp_path):
    height, width = 16384, 1024
    rows = ((r, np.full((64, width), r // 64 % 2, "uint8")) for r in range(0, height, 64))
    tracemalloc.start()
    write_cog(tmp_path / "tall.tif", rows, Grid("EPSG:32633", UTM33.transform, height, width), FLOODS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < height * width / 4, f"{peak:,} bytes for a map of {height * width:,}"


@quick
@given(heights=st.lists(st.integers(1, 700), min_size=1, max_size=6))
def test_strips_hold_all_rows_in_order(heights):
    ends = np.cumsum([0, *heights])
    whole = np.arange(ends[-1], dtype="int32")[:, None]
    grid = Grid("EPSG:32633", UTM33.transform, int(ends[-1]), 1)
    found = list(tile_rows(((int(a), whole[a:b]) for a, b in zip(ends, ends[1:])), grid, "map"))
    assert np.array_equal(np.concatenate([block for _, block in found]), whole)
    assert [row for row, _ in found] == list(range(0, int(ends[-1]), 512))


def test_a_map_without_a_legend_drops_the_names_of_an_older_one(tmp_path):
    path = write_cog(tmp_path / "map.tif", np.ones((48, 64), "uint8"), UTM33, FLOODS)
    assert Path(f"{path}.aux.xml").exists()
    write_cog(path, np.ones((48, 64), "float32"), UTM33, nodata=float("nan"), dtype="float32")
    assert os.listdir(tmp_path) == ["map.tif"]


def test_paths_with_spaces_and_other_alphabets(tmp_path):
    path = tmp_path / "zona húmeda & río" / "地図.tif"
    legend = make_legend({"río & <mar>": [0, "#000000"], "b": [1, "#ffffff"]})
    write_cog(path, np.ones((48, 64), "uint8"), UTM33, legend)
    assert isinstance(read_pixels({"c": (path, 1)}), Pixels) and grid_of(path) == UTM33
    rasterio.shutil.copy(path, tmp_path / "map.vrt", driver="VRT")
    assert "río &amp; &lt;mar" in (tmp_path / "map.vrt").read_text(encoding="utf-8")


# Real data beyond the sample

def test_aerial_images_of_five_years_lie_on_other_grids():
    years = sorted(data_folder("naip_nd_timeseries").glob("*.tif"))
    files = {path.stem[-8:-4]: (path, 1) for path in years[:2]}
    with pytest.raises(GridMismatch) as caught:
        read_bands(files, item="m_4709963")
    text = str(caught.value)
    assert "m_4709963: 2009 is EPSG:26914 5 m 724x934" in text and "2012 is EPSG:26914 5 m 723x934" in text
    with pytest.raises(GridMismatch, match="2015 is .*2018 is"):
        read_bands({path.stem[-8:-4]: (path, 4) for path in years[2:4]}, item="m_4709963")


def test_eight_files_of_one_scene_read_as_one_array():
    paths = sorted(data_folder("s2_l1c_hatteras_8bit").glob("*.tiff"))
    files = {path.stem[-3:]: (path, 1) for path in paths}
    found = read_pixels(files, window=Window(1000, 1200, 100, 300), item="hatteras")
    assert list(files) == [f"B0{i}" for i in range(1, 9)] and found.values.dtype == "uint8"
    for i, path in enumerate(paths):
        with rasterio.open(path) as source:
            assert np.array_equal(found.values[i], source.read(1)[1000:1100, 1200:1500])


def test_landsat_bands_share_a_grid_and_the_others_are_refused():
    folder = data_folder("landsat8_elkton")
    files = {f"B{i}": (folder / f"L8-B{i}-Elkton-VA.tiff", 1) for i in (2, 3, 4, 5)}
    assert read_bands(files, item="elkton").shape == (4, 169, 186)
    label = read_bands({"label": (folder / "L8-Labels-Elkton-VA.tiff", 1)}, grid=grid_of(files["B2"][0]))
    assert set(np.unique(label)) == {0, 1, 2, 255}
    with pytest.raises(GridMismatch, match="B2 is EPSG:32617.*B8 is EPSG:32617"):
        read_bands({"B2": files["B2"], "B8": (folder / "L8-B8-Elkton-VA.tiff", 1)}, item="elkton")
    with pytest.raises(GridMismatch, match="B4 is EPSG:32617.*lonlat is EPSG:4326"):
        read_bands({"B4": files["B4"], "lonlat": (folder / "L8-B4-Elkton-VA-4326.tiff", 1)}, item="elkton")


def test_every_geotiff_at_hand_opens_or_says_why():
    root = data_folder(".")
    said = {}
    for path in sorted([*root.rglob("*.tif"), *root.rglob("*.tiff")]):
        try:
            with open_raster(path) as source:
                said[path] = source.count
            read_header(path)
        except GeosegError as error:
            said[path] = str(error)
            assert str(path) in said[path]
    assert said


# A declared resampling

@pytest.mark.parametrize("method", ["nearest", "bilinear", "cubic", "average"])
@pytest.mark.parametrize("dtype, nodata", [("uint8", None), ("int16", None), ("uint16", 0), ("float32", None), ("float64", -9999)])
def test_a_declared_resampling_equals_gdals_own(tmp_path, method, dtype, nodata):
    from rasterio.warp import Resampling, reproject

    values = np.random.default_rng(1).integers(1, 250, (2, 40, 50)).astype(dtype)
    here = Grid("EPSG:32633", (27, 0, 500100, 0, -27, 4999800), 40, 50)
    there = Grid("EPSG:32634", (30, 0, 28000, 0, -30, 5017500), 70, 80)
    path = write(tmp_path / "a.tif", values, here, **({} if nodata is None else {"nodata": nodata}))
    read = read_pixels({"b": (path, 2), "a": (path, 1)}, there, None, "a", method)
    fill = {"f": np.nan, "u": 0, "i": 0}[np.dtype(dtype).kind] if nodata is None else nodata
    wanted, ones = np.full((2, 70, 80), fill, dtype), np.zeros((70, 80), "uint8")
    common = dict(src_transform=Affine(*here.transform), src_crs=here.crs, dst_transform=Affine(*there.transform), dst_crs=there.crs)
    known = {} if nodata is None and np.dtype(dtype).kind != "f" else {"src_nodata": fill, "dst_nodata": fill}
    reproject(values[::-1], wanted, resampling=Resampling[method], **common, **known)
    reproject(np.ones((40, 50), "uint8"), ones, resampling=Resampling.nearest, src_nodata=0, dst_nodata=0, **common)
    assert 0.1 < read.valid.mean() < 0.9 and (read.valid != (ones > 0)).mean() < 0.03
    both = read.valid & (ones > 0) & valid_mask(wanted, nodata)
    assert np.abs(read.values[:, both].astype(float) - wanted[:, both]).max() <= (1 if np.dtype(dtype).kind != "f" else 1e-3)
    part = read_pixels({"b": (path, 2), "a": (path, 1)}, there, Window(13, 21, 40, 33), "a", method)
    assert np.array_equal(part.values, read.values[:, 13:53, 21:54], equal_nan=True) and np.array_equal(part.valid, read.valid[13:53, 21:54])


def test_nodata_takes_no_part_in_a_resampling(tmp_path):
    values = np.full((1, 20, 20), 100, "uint8")
    values[0, 8:12, 8:12] = 255
    here, there = Grid("EPSG:32633", UTM33.transform, 20, 20), Grid("EPSG:32633", (10, 0, 500005, 0, -10, 4999995), 19, 19)
    path = write(tmp_path / "a.tif", values, here)
    blended = read_pixels({"a": (path, 1)}, there, None, "a", "bilinear")
    apart = read_pixels({"a": (path, 1)}, there, None, "a", "bilinear", 255)
    assert len(np.unique(blended.values)) > 2 and set(np.unique(apart.values[0][apart.valid])) == {100} and not apart.valid.all()


def test_without_a_declaration_nothing_moves(tmp_path):
    shifted = Grid("EPSG:32633", (10, 0, 500001, 0, -10, 5000000), 48, 64)
    path = write(tmp_path / "a.tif", np.ones((48, 64), "uint8"), shifted)
    with pytest.raises(GridMismatch, match="500001"):
        read_pixels({"a": (path, 1)}, UTM33, None, "a")
    same = write(tmp_path / "b.tif", np.arange(48 * 64).reshape(48, 64).astype("int16"))
    assert np.array_equal(read_pixels({"a": (same, 1)}, UTM33, None, "a", "cubic").values[0].ravel(), np.arange(48 * 64))
