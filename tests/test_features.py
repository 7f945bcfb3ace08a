"Features equal SciPy and gdaldem, and a window equals the whole scene"
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from scipy import ndimage

from geoseg_nb.features import aspect, hillshade, margin_pixels, read_elevation, relative_elevation, slope
from geoseg_nb.raster import grid_of
from geoseg_nb.windows import Window


def surface(seed=0, shape=(50, 64)):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2).astype("float32") * 300


@pytest.mark.skipif(not shutil.which("gdaldem"), reason="gdaldem is not installed")
@pytest.mark.parametrize("name", ["slope", "aspect", "hillshade"])
def test_terrain_equals_gdaldem(tmp_path, name):
    dem, ours = surface(), {"slope": slope, "aspect": aspect, "hillshade": hillshade}[name]
    form = {"driver": "GTiff", "height": 50, "width": 64, "count": 1, "dtype": "float32"}
    with rasterio.open(tmp_path / "dem.tif", "w", crs="EPSG:32608", transform=from_origin(5e5, 7e6, 10, 10), **form) as f: f.write(dem, 1)
    subprocess.run(["gdaldem", name, tmp_path / "dem.tif", tmp_path / "out.tif", "-q"], check=True)
    with rasterio.open(tmp_path / "out.tif") as f: theirs = f.read(1).astype("float64")[1:-1, 1:-1]
    mine = ours(dem, 10)[1:-1, 1:-1].astype("float64")
    if name == "hillshade": assert np.abs(1 + 254 * mine - theirs).max() <= 1
    else: np.testing.assert_allclose(mine, theirs, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
def test_a_buffered_window_equals_the_whole(seed, top, left, height, width):
    dem = surface(seed, (60, 60))
    dem[20, 25] = np.nan
    edge = 5
    inside = (slice(top, top + height), slice(left, left + width))
    lo = max(0, top - edge), max(0, left - edge)
    part = dem[lo[0]:top + height + edge, lo[1]:left + width + edge]
    back = (slice(top - lo[0], top - lo[0] + height), slice(left - lo[1], left - lo[1] + width))
    for call in (slope, aspect, hillshade, lambda d, r: relative_elevation(d, r, 50, 20)):
        np.testing.assert_array_equal(call(part, 10)[back], call(dem, 10)[inside])


def test_a_hole_makes_its_neighbourhood_unknown():
    dem = np.zeros((40, 40))
    dem[20, 20] = np.nan
    assert np.isnan(slope(dem, 10)[1:-1, 1:-1]).sum() == 9
    dy, dx = np.mgrid[-3:4, -3:4]
    assert np.isnan(relative_elevation(dem, 10, 30)[3:-3, 3:-3]).sum() == (np.hypot(dx, dy) <= 3).sum()


def test_windows_of_a_real_dem_equal_the_whole():
    folder = Path(os.environ.get("GEOSEG_DATA", "")) / "terramesh_s1s2_lulc" / "DEM"
    if not folder.is_dir(): pytest.skip("set GEOSEG_DATA to the folder with terramesh_s1s2_lulc")
    path, margin = next(iter(sorted(folder.glob("282D*.tif")))), margin_pixels(100, 10)
    grid = grid_of(path)
    whole = read_elevation(path, grid, Window(0, 0, 224, 224), margin, "bilinear")
    part = read_elevation(path, grid, Window(100, 60, 40, 50), margin, "bilinear")
    inside, shift = slice(margin, -margin), (slice(100, 140), slice(60, 110))
    for call in (slope, hillshade, relative_elevation):
        np.testing.assert_array_equal(call(part, 10)[inside, inside], call(whole, 10)[inside, inside][shift])
