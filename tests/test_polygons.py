"Polygons to masks against GDAL's own program, shapely point by point, and masks that other people made"
import os
import shutil
import subprocess
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from geoseg_nb.core import GeosegError, Grid, Refused
from geoseg_nb.polygons import PolygonSpec, burn, mended, moved, placed, read_polygons
from geoseg_nb.raster import grid_of
from geoseg_nb.swath import pixel_corners, read_coordinates, swath_of

UTM = Grid("EPSG:32633", (10, 0, 500_000, 0, -10, 5_000_000), 40, 50)
TURNED = Grid("EPSG:32633", (8, 3, 500_000, 2, -9, 5_000_000), 40, 50)


def data(*parts):
    root = os.environ.get("GEOSEG_DATA")
    if not root: pytest.skip("GEOSEG_DATA is not set")
    return Path(root).joinpath(*parts)


def centres(grid):
    row, col = np.mgrid[:grid.height, :grid.width] + 0.5
    a, b, c, d, e, f = grid.transform
    return a * col + b * row + c, d * col + e * row + f


def star(x, y, radii):
    "A polygon around a point, its corners as far away as the radii say"
    angle = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return shapely.Polygon(np.stack([x + radii * np.cos(angle), y + radii * np.sin(angle)], axis=-1))


def table(shapes, crs="EPSG:32633", **columns):
    return gpd.GeoDataFrame(columns, geometry=list(shapes), crs=crs)


STARS = st.lists(st.tuples(st.floats(-100, 600), st.floats(-500, 100), st.lists(st.floats(0.5, 250), min_size=3, max_size=9)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=80)
@given(STARS, st.sampled_from([UTM, TURNED]))
def test_a_pixel_belongs_to_the_polygon_that_holds_its_centre(stars, grid):
    shapes = [star(500_000 + x + 0.123, 5_000_000 + y + 0.071, np.array(radii)) for x, y, radii in stars]
    found = burn(table(shapes), grid)
    x, y = centres(grid)
    inside = np.logical_or.reduce([shapely.contains_xy(shapely.make_valid(s), x, y) for s in shapes])
    near = np.logical_or.reduce([shapely.distance(shapely.boundary(s), shapely.points(x, y)) < 1e-6 for s in shapes])
    assert np.array_equal(found.codes[~near], inside[~near])
    extent = shapely.Polygon(corners(grid))
    assert found.outside == [str(i) for i, s in enumerate(shapes) if not s.intersects(extent)]
    assert sorted(found.marked + found.small + found.outside, key=int) == [str(i) for i in range(len(shapes))]


def corners(grid):
    a, b, c, d, e, f = grid.transform
    return [(a * col + b * row + c, d * col + e * row + f) for row, col in ((0, 0), (0, grid.width), (grid.height, grid.width), (grid.height, 0))]


@pytest.mark.skipif(not shutil.which("gdal_rasterize"), reason="no gdal_rasterize: apt install gdal-bin")
@settings(deadline=None, max_examples=15)
@given(STARS, st.booleans())
def test_gdal_rasterize_says_the_same(tmp_path_factory, stars, touched):
    folder = tmp_path_factory.mktemp("gdal")
    shapes = [star(500_000 + x + 0.123, 5_000_000 + y + 0.071, np.array(radii)) for x, y, radii in stars]
    assume(all(s.is_valid for s in shapes))
    drawn = table(shapes, code=[i % 3 + 1 for i in range(len(shapes))])
    drawn.to_file(folder / "drawn.gpkg", layer="drawn")
    west, north = UTM.transform[2], UTM.transform[5]
    subprocess.run(["gdal_rasterize", "-q", "-a", "code", *(["-at"] if touched else []), "-ot", "Byte", "-init", "0",
                    "-te", *map(str, (west, north - 400, west + 500, north)), "-tr", "10", "10",
                    folder / "drawn.gpkg", folder / "drawn.tif"], check=True)
    with rasterio.open(folder / "drawn.tif") as made: expected = made.read(1)
    order = drawn.sort_values("code", kind="stable")
    order.to_file(folder / "order.gpkg", layer="drawn")
    found = burn(folder / "drawn.gpkg", UTM, PolygonSpec(attribute="code", priority=[1, 2, 3], all_touched=touched)).codes
    flat = drawn.assign(code=1)
    assert np.array_equal(burn(flat, UTM, PolygonSpec(all_touched=touched)).codes > 0, expected > 0)
    subprocess.run(["gdal_rasterize", "-q", "-a", "code", *(["-at"] if touched else []), "-ot", "Byte", "-init", "0",
                    "-te", *map(str, (west, north - 400, west + 500, north)), "-tr", "10", "10",
                    folder / "order.gpkg", folder / "order.tif"], check=True)
    with rasterio.open(folder / "order.tif") as made: assert np.array_equal(found, made.read(1))


# Overlaps, codes, outlines


def test_a_pixel_claimed_by_two_codes_is_refused_or_decided():
    drawn = table([shapely.box(500_000, 4_999_800, 500_200, 5_000_000), shapely.box(500_100, 4_999_900, 500_300, 5_000_000)], kind=["a", "b"])
    spec = PolygonSpec(attribute="kind", codes={"a": 1, "b": 2})
    with pytest.raises(GeosegError, match=r"1 \(code 2\) and 0 \(code 1\) share 100 pixels"): burn(drawn, UTM, spec)
    for priority, counts in (([1, 2], (300, 200)), ([2, 1], (400, 100))):
        codes = burn(drawn, UTM, spec.replace(priority=priority)).codes
        assert tuple((codes == c).sum() for c in (1, 2)) == counts
        assert np.array_equal(codes, burn(drawn[::-1], UTM, spec.replace(priority=priority)).codes)
    assert (burn(drawn, UTM, spec.replace(codes={"a": 7, "b": 7})).codes == 7).sum() == 500
    with pytest.raises(Refused, match=r"lacks the codes \[2\]"): burn(drawn, UTM, spec.replace(priority=[1]))


def test_areas_that_nobody_could_judge_have_a_code_of_their_own():
    drawn = table([shapely.box(500_000, 4_999_800, 500_200, 5_000_000), shapely.box(500_100, 4_999_900, 500_300, 5_000_000)], kind=["slump", "shadow"])
    spec = PolygonSpec(attribute="kind", codes={"slump": 1, "shadow": 255}, priority=[1, 255])
    area = table([shapely.box(500_000, 4_999_700, 500_400, 5_000_000)])
    codes = burn(drawn, UTM, spec, area).codes
    assert {c: int((codes == c).sum()) for c in (0, 1, 255)} == {0: 1200 - 500, 1: 300, 255: 200 + 2000 - 1200}


@pytest.mark.parametrize("values, words", [(["a", "c"], "'c'"), (["a", None], "polygon 1"), ([1.5, 2], "1.5"), ([np.nan, 2], "nan")])
def test_a_value_without_a_code_is_refused(values, words):
    drawn = table([shapely.box(500_000, 4_999_900, 500_100, 5_000_000), shapely.box(500_200, 4_999_900, 500_300, 5_000_000)], kind=values)
    spec = PolygonSpec(attribute="kind", codes={} if isinstance(values[1], int) else {"a": 1})
    with pytest.raises(GeosegError, match=words): burn(drawn, UTM, spec)


def test_the_account_names_every_polygon():
    bow = shapely.Polygon([(500_010, 4_999_990), (500_110, 4_999_890), (500_110, 4_999_990), (500_010, 4_999_890)])
    shapes = [bow, shapely.box(500_201, 4_999_901, 500_203, 4_999_903), shapely.box(0, 0, 9, 9), None, shapely.Polygon()]
    drawn = table(shapes).set_index(pd.Index(["bow", "dot", "far", "none", "void"]))
    found = burn(drawn, UTM)
    assert (found.marked, found.small, found.outside, found.empty, found.mended) == (["bow"], ["dot"], ["far"], ["none", "void"], ["bow"])
    with pytest.raises(GeosegError, match="bow: Self-intersection"): burn(drawn, UTM, PolygonSpec(invalid="raise"))
    assert burn(drawn, UTM, PolygonSpec(all_touched=True)).small == []
    spike = table([shapely.Polygon([(500_000, 4_999_900), (500_100, 4_999_900), (500_100, 5_000_000), (500_100, 4_999_000)])])
    assert mended(spike, PolygonSpec())[0][0].geom_type in ("Polygon", "MultiPolygon")


def test_nothing_drawn_is_a_mask_of_background():
    none = table([])
    assert (burn(none, UTM, PolygonSpec(background=9)).codes == 9).all() and burn(none, UTM).marked == []


def test_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "page.geojson").write_text("<html>")
    (tmp_path / "cut.gpkg").write_bytes(b"SQLite format 3\0" + bytes(50))
    drawn = table([shapely.box(0, 0, 1, 1)])
    drawn.to_file(tmp_path / "x.shp")
    (tmp_path / "x.prj").unlink()
    for name, words in {"page.geojson": "a web page", "cut.gpkg": "cut off, damaged", "none.shp": "no such file", "x.shp": "no CRS"}.items():
        with pytest.raises(GeosegError, match=words): read_polygons(tmp_path / name)
    with pytest.raises(Refused, match="is a LineString"): read_polygons(table([shapely.LineString([(0, 0), (1, 1)])]))


# Other CRSs


def test_moved_polygons_mark_the_same_pixels_but_for_the_rim():
    rng = np.random.default_rng(0)
    shapes = [star(500_000 + x, 5_000_000 - y, rng.uniform(20, 90, 7)) for x, y in rng.uniform(50, 350, (6, 2))]
    here = burn(table(shapes), UTM).codes
    for crs in ("EPSG:4326", "EPSG:3857", "EPSG:32632"):
        there = burn(table(shapes).to_crs(crs), UTM).codes
        assert (here != there).sum() <= 2, crs


def test_long_edges_follow_the_projection():
    box = table([shapely.box(10, 60, 20, 64)], "EPSG:4326")
    grid = Grid("EPSG:32633", (5000, 0, 200_000, 0, -5000, 7_150_000), 120, 120)
    found = burn(box, grid).codes
    x, y = centres(grid)
    places = gpd.GeoSeries(gpd.points_from_xy(x.ravel(), y.ravel()), crs=grid.crs).to_crs("EPSG:4326")
    exact = ((places.x > 10) & (places.x < 20) & (places.y > 60) & (places.y < 64)).to_numpy().reshape(x.shape)
    straight = burn(box.to_crs(grid.crs), grid).codes
    assert (found != exact).sum() <= 1 < 20 < (straight != exact).sum()


def test_latitude_first_is_told_from_elsewhere():
    grid = Grid("EPSG:4326", (0.01, 0, 10, 0, -0.01, 60), 100, 100)
    right = shapely.box(10.2, 59.2, 10.4, 59.6)
    assert burn(table([right], "EPSG:4326"), grid).codes.sum() == 20 * 40
    turned = shapely.transform(right, lambda xy: xy[:, ::-1])
    with pytest.raises(Refused, match="x and y exchanged"): burn(table([turned], "EPSG:4326"), grid)
    with pytest.raises(Refused, match="x and y exchanged"): burn(table([shapely.box(45.0, 14.99, 45.1, 15.01)], "EPSG:4326"), Grid("EPSG:32633", (10, 0, 500_000, 0, -10, 5_000_000), 2000, 2000))
    assert burn(table([shapely.box(100, 10, 101, 11)], "EPSG:4326"), grid).outside == ["0"]
    with pytest.raises(Refused, match="have no place"): moved(np.array([shapely.box(0, 95, 1, 96)]), "EPSG:4326", "EPSG:32633")
    assert placed(np.array([right]), "EPSG:4326", grid)[1].tolist() == [True]


# Swaths


def write_swath_file(path, lat, lon):
    xr.Dataset({"v": (("y", "x"), lat), "lat": (("y", "x"), lat, {"units": "degrees_north"}),
                "lon": (("y", "x"), lon, {"units": "degrees_east"})}).to_netcdf(path, engine="h5netcdf")
    return swath_of(path, "v")


@pytest.fixture(scope="module")
def bent(tmp_path_factory):
    row, col = np.mgrid[:30, :40]
    lat = -5 - 0.01 * row - 0.002 * col + 1e-4 * (col - 20) ** 2
    lon = (179.8 + 0.01 * col + 0.003 * row + 180) % 360 - 180
    lat[4, 7] = np.nan
    return write_swath_file(tmp_path_factory.mktemp("swath") / "bent.nc", lat, lon)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(179.7, 180.3), st.floats(-5.5, -4.9), st.lists(st.floats(0.002, 0.15), min_size=3, max_size=8)), min_size=1, max_size=4), st.booleans())
def test_a_swath_asks_every_pixel_by_itself(bent, stars, touched):
    shapes = [shapely.make_valid(star(x + 1e-5, y + 1e-5, np.array(radii))) for x, y, radii in stars]
    drawn = table([shapely.transform(s, lambda xy: xy - [360, 0]) if s.bounds[0] > 180 else s for s in shapes], "EPSG:4326")
    found = burn(drawn, bent, PolygonSpec(all_touched=touched))
    lat, lon = read_coordinates(bent)
    lon, known = np.where(lon < 0, lon + 360, lon), np.isfinite(lat)
    cells = shapely.points(lon, np.nan_to_num(lat))
    if touched:
        la, lo = pixel_corners(read_coordinates(bent))
        lo = np.where(lo < 0, lo + 360, lo)
        rim = np.stack([np.stack([v[:-1, :-1], v[:-1, 1:], v[1:, 1:], v[1:, :-1]], -1) for v in (lo, np.nan_to_num(la))], -1)
        known = np.isfinite(la[:-1, :-1] + la[:-1, 1:] + la[1:, 1:] + la[1:, :-1])
        cells = shapely.polygons(rim)
    inside = np.logical_or.reduce([shapely.intersects(s, cells) for s in shapes]) & known
    assert np.array_equal(found.codes > 0, inside)


def test_a_straight_swath_and_its_affine_twin_have_one_mask(tmp_path):
    grid = Grid("EPSG:4326", (0.01, 0, 10, 0, -0.01, 60), 60, 80)
    lon, lat = centres(grid)
    twin = write_swath_file(tmp_path / "twin.nc", lat, lon)
    rng = np.random.default_rng(3)
    drawn = table([star(x, y, rng.uniform(0.02, 0.2, 9)) for x, y in rng.uniform([10, 59.4], [10.8, 60], (12, 2))], "EPSG:4326", kind=[1, 2, 3] * 4)
    spec = PolygonSpec(attribute="kind", priority=[3, 1, 2])
    flat, seen = burn(drawn.to_crs("EPSG:32632"), grid, spec), burn(drawn.to_crs("EPSG:32632"), twin, spec)
    assert np.array_equal(flat.codes, seen.codes) and flat[1:] == seen[1:]


# What other people drew


def test_the_training_polygons_of_a_landsat_scene():
    folder = data("landsat7_chiapas_fmask")
    drawn = gpd.read_file(folder / "training_data.shp")
    with rasterio.open(folder / "training_data.gtif") as made: expected = made.read(1)
    found = burn(folder / "training_data.shp", grid_of(folder / "training_data.gtif"), PolygonSpec(attribute="id"))
    assert np.array_equal(found.codes, expected) and len(found.marked) == len(drawn) == 30


def test_the_majority_of_twelve_experts():
    folder = data("rts_peel_s2_l8")
    grid = grid_of(next((folder / "01_Setup/Peel/data").glob("S2_*.tif")))
    masks = [burn(path, grid).codes for path in sorted((folder / "02_UserResults").glob("*/Peel_digitized.shp"))]
    votes = np.sum(masks, axis=0)
    assert len(masks) == 12 and (votes >= 6).sum() == 3633 and (votes > 0).sum() == 7290
    assert (min(m.sum() for m in masks), max(m.sum() for m in masks)) == (2225, 6134)


def test_thaw_slumps_of_the_arctic():
    folder = data("arts_thaw_slumps", "raw_data")
    nitze = next(folder.glob("Nitze*/*TrainingSet_RTS.shp"))
    drawn = read_polygons(nitze)
    assert len(mended(drawn, PolygonSpec())[1]) == 4 == (~drawn.is_valid).sum()
    with pytest.raises(GeosegError, match="not valid: 4"): mended(drawn, PolygonSpec(invalid="raise"))
    site = drawn[drawn["image_id"] == drawn["image_id"].iloc[0]]
    west, south, east, north = site.total_bounds
    grid = Grid("EPSG:4326", (1e-4, 0, west, 0, -5e-5, north), int((north - south) / 5e-5) + 1, int((east - west) / 1e-4) + 1)
    found = burn(drawn, grid)
    x, y = centres(grid)
    expected = np.zeros(x.shape, bool)
    for shape in shapely.make_valid(drawn.geometry.to_numpy()[[drawn.index.get_loc(int(i)) for i in found.marked]]):
        expected |= shapely.contains_xy(shape, x, y)
    assert (found.codes.astype(bool) != expected).sum() == 0 and set(site.index.astype(str)) <= set(found.marked + found.small)
    peel = grid_of(next(data("rts_peel_s2_l8", "01_Setup/Peel/data").glob("S2_*.tif")))
    willow = burn(next(folder.glob("ground*/Willow*.shp")), peel)
    assert len(willow.marked) == 10 and len(willow.outside) == 187
