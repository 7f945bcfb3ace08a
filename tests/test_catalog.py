"Catalogs: broken files are found and named, places lie where GDAL says, fractions can be drawn again"
import json
import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS
from rasterio.transform import Affine
from rasterio.transform import xy as rasterio_xy
from rasterio.warp import transform_bounds

from geoseg_nb import catalog as cat
from geoseg_nb.catalog import CatalogSpec
from geoseg_nb.core import GeosegError, Refused, make_legend
from geoseg_nb.products import measured_catalog
from geoseg_nb.stages import Execution
from geoseg_nb.storage import sample_folder

SAMPLE = sample_folder()
LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])


def chips() -> pd.DataFrame:
    images = sorted((SAMPLE / "S1").glob("*.tif"))
    ids = [path.name.removesuffix("_S1Hand.tif") for path in images]
    return pd.DataFrame({"id": ids, "image": map(str, images),
                         "mask": [str(SAMPLE / "labels" / f"{id}_LabelHand.tif") for id in ids]})


def write(path, array, **changes) -> Path:
    profile = {"driver": "GTiff", "count": len(array), "height": array.shape[1], "width": array.shape[2],
               "dtype": array.dtype, "crs": "EPSG:32633", "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000)}
    with rasterio.open(path, "w", **profile | changes) as out:
        out.write(array)
    return path


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 4000, (2, 300, 200)).astype("uint16")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory, noise):
    "The same pixels with the directory first and last, striped, tiled and cloud-optimised"
    folder = tmp_path_factory.mktemp("layouts")
    write(folder / "deflate.tif", noise, compress="deflate", tiled=True, blockxsize=128, blockysize=128)
    write(folder / "raw.tif", noise)
    write(folder / "lzw.tif", noise, compress="lzw", interleave="pixel")
    write(folder / "cog.tif", noise, driver="COG", compress="deflate", blocksize=128)
    (folder / "directory_last.tif").write_bytes((SAMPLE / "S1" / "USA_905409_S1Hand.tif").read_bytes())
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


# fault 9: broken files

CUTS = {"half": 0.5, "95 %": 0.95, "a thousandth": 0.001, "nothing": 0}


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_file_is_listed_and_the_rest_goes_on(tmp_path, cut, column):
    table = chips()
    data = Path(table[column][3]).read_bytes()
    bad = tmp_path / "bad.tif"
    bad.write_bytes(data[:int(len(data) * CUTS[cut])])
    table.loc[3, column] = str(bad)
    scenes, failures = cat.scan(table)
    assert list(scenes["id"]) == [id for id in table["id"] if id != table["id"][3]]
    assert failures[["id", "path"]].values.tolist() == [[table["id"][3], str(bad)]]
    assert failures["reason"][0] and str(tmp_path) not in failures["reason"][0]


@pytest.mark.parametrize("text, reason", [("<!DOCTYPE html><p>404", "web page"), ("  <HTML><p>", "web page"),
                                          ("not a raster at all", "not recognized"), (None, "no such file")])
def test_what_is_no_raster_is_told_apart(tmp_path, text, reason):
    path = tmp_path / "x.tif"
    if text is not None:
        path.write_text(text)
    scenes, failures = cat.scan(pd.DataFrame({"id": ["x"], "image": [str(path)]}))
    assert scenes.empty and reason in failures["reason"][0]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_wherever_a_download_broke_off_it_is_noticed(tmp_path_factory, layouts, data):
    "Only the last 4 bytes of a COG can go: they repeat the end of its last block, and no pixel is missing"
    kind = data.draw(st.sampled_from(sorted(layouts)))
    whole = layouts[kind]
    kept = data.draw(st.one_of(st.integers(0, len(whole) - 1), st.integers(len(whole) - 64, len(whole) - 1)))
    path = tmp_path_factory.mktemp("cut") / "cut.tif"
    path.write_bytes(whole[:kept])
    if isinstance(cat.probe(cat.File(0, "x", "image", str(path))), dict):
        (path.parent / "whole.tif").write_bytes(whole)
        with rasterio.open(path) as torn, rasterio.open(path.parent / "whole.tif") as good:
            assert len(whole) - kept <= 4 and kind == "cog", f"{kind}: {kept} of {len(whole)} bytes pass"
            assert np.array_equal(torn.read(), good.read()) and torn.profile == good.profile


def test_whole_files_of_every_layout_pass(tmp_path, layouts):
    for kind, data in layouts.items():
        (tmp_path / f"{kind}.tif").write_bytes(data)
        assert isinstance(cat.probe(cat.File(0, kind, "image", str(tmp_path / f"{kind}.tif"))), dict)


def test_reasons_stay_with_their_files_when_many_threads_read(tmp_path):
    "GDAL's log is one for the process; a remark about one file must not fall on another"
    good = (SAMPLE / "labels" / "USA_905409_LabelHand.tif").read_bytes()
    torn = (SAMPLE / "S1" / "USA_905409_S1Hand.tif").read_bytes()[:-16]
    for i in range(60):
        (tmp_path / f"{i:02d}.tif").write_bytes(torn if i % 3 == 0 else good)
    table = pd.DataFrame({"id": [f"{i:02d}" for i in range(60)]}).assign(image=lambda t: str(tmp_path) + "/" + t["id"] + ".tif")
    _, failures = cat.scan(table, ["image"], Execution(workers=8))
    assert list(failures["id"]) == [f"{i:02d}" for i in range(0, 60, 3)]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_file_without_a_place_is_named(tmp_path, noise):
    write(tmp_path / "no_crs.tif", noise, crs=None)
    write(tmp_path / "no_transform.tif", noise, transform=None)
    table = pd.DataFrame({"id": ["a", "b"], "image": [str(tmp_path / f"{n}.tif") for n in ("no_crs", "no_transform")]})
    scenes, failures = cat.scan(table)
    assert scenes.empty and [reason.split(":")[0] for reason in failures["reason"]] == ["no CRS", "no transform"]


def test_a_scene_needs_an_image_but_no_mask():
    table = chips().head(3)
    table.loc[0, "mask"], table.loc[1, "image"] = None, None
    scenes, failures = cat.scan(table)
    assert list(scenes["id"]) == [table["id"][0], table["id"][2]]
    assert failures["reason"].tolist() == ["no path given"]


def test_a_table_without_one_good_file_gives_an_empty_catalog(tmp_path):
    scenes, failures = cat.scan(pd.DataFrame({"id": ["a"], "image": ["nowhere.tif"], "place": ["p"]}))
    assert scenes.empty and len(failures) == 1 and set(cat.HEADER) <= set(scenes) and scenes.crs.to_epsg() == 4326
    cat.read_catalog(cat.write_catalog(scenes, tmp_path / "none.parquet"))


def test_dask_workers_scan_as_threads_do():
    threads, _ = cat.scan(chips().head(3))
    dask, _ = cat.scan(chips().head(3), execution=Execution(backend="dask", workers=1))
    pd.testing.assert_frame_equal(pd.DataFrame(threads), pd.DataFrame(dask))


def test_refusals_list_five_and_count_the_rest():
    problems = pd.DataFrame({"id": [f"s{i}" for i in range(8)], "reason": "broken"})
    with pytest.raises(GeosegError, match="broken files: 8; mend them") as error:
        cat.refuse(problems, "broken files", "mend them")
    assert str(error.value).splitlines()[1:] == [f"  s{i}: broken" for i in range(5)] + ["  and 3 more"]
    assert error.value.item == "s0"


# where scenes lie

numbers = st.floats(-1, 1).filter(lambda v: abs(v) > 1e-3)


@given(a=numbers, b=numbers, d=numbers, e=numbers, height=st.integers(1, 900), width=st.integers(1, 900))
@settings(max_examples=40, deadline=None)
def test_outlines_are_where_rasterio_puts_the_corners(a, b, d, e, height, width):
    transform = Affine(a, b, 300.0, d, e, -20.0)
    [polygon] = cat.outlines([list(transform)[:6]], [[0, height]], [[0, width]])
    x, y = rasterio_xy(transform, [0, 0, height, height], [0, width, width, 0], offset="ul")
    assert np.allclose(np.array(polygon.exterior.coords)[:4], np.column_stack([x, y]))


@given(zone=st.integers(1, 60), west=st.integers(250_000, 650_000), north=st.integers(200_000, 7_500_000))
@settings(max_examples=40, deadline=None)
def test_footprints_are_where_gdal_warps_the_scene(zone, west, north):
    side = 109_800
    crs, transform = f"EPSG:{32600 + zone}", [10.0, 0, west, 0, -10, north]
    [footprint] = cat.footprints(cat.outlines([transform], [[0, 10_980]], [[0, 10_980]]), [crs])
    left, bottom, right, top = transform_bounds(crs, "EPSG:4326", west, north - side, west + side, north)
    assert footprint.is_valid and footprint.area < 25
    if left < right:
        assert np.allclose(footprint.bounds, (left, bottom, right, top), atol=5e-4)
    else:
        east, far = sorted(footprint.geoms, key=lambda p: -p.bounds[0])
        assert np.allclose([east.bounds[0], far.bounds[2]], [left, right], atol=5e-4)


# checks

def test_duplicate_ids_are_an_error_that_lists_the_first_five():
    table = pd.DataFrame({"id": [f"s{i}" for i in range(7)] * 2})
    assert (cat.check(table)["kind"] == "duplicate id").sum() == 7
    with pytest.raises(GeosegError) as error:
        cat.require_sound(table)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines[1:6]] == [f"s{i}" for i in range(5)] and lines[6].strip() == "and 2 more"


def test_a_hundred_thousand_ids_are_checked_at_once():
    table = pd.DataFrame({"id": np.arange(100_000).astype(str)})
    assert cat.check(table).empty
    table.loc[99_999, "id"] = "17"
    assert cat.check(table)["id"].tolist() == ["17"]


def test_findings_are_the_planted_ones(tmp_path):
    scenes, _ = cat.scan(chips())
    assert cat.check(scenes).empty
    (tmp_path / "empty.tif").touch()
    scenes.loc[0, "image"], scenes.loc[1, "mask"] = str(tmp_path / "gone.tif"), str(tmp_path / "empty.tif")
    scenes.loc[3, "image"] = scenes.loc[2, "image"]
    scenes.loc[[4, 5], "crs"] = ["EPSG:32633", "EPSG:32634"]
    scenes.loc[6, "bands"], scenes.loc[7, "dtype"] = 3, "uint16"
    found = cat.check(scenes).groupby("kind")["id"].agg(list).to_dict()
    ids = list(scenes["id"])
    assert found == {"missing file": [ids[0]], "empty file": [ids[1]], "shared file": [ids[2]],
                     "mixed CRS": [ids[4], ids[5]], "mixed bands": [ids[6]], "mixed dtype": [ids[7]]}
    with pytest.raises(GeosegError, match="faults in the catalog: 2;"):
        cat.require_sound(scenes)


def test_mixed_crs_is_listed_but_no_fault():
    zones = pd.DataFrame({"id": ["a", "b", "c"], "crs": ["EPSG:32633", "EPSG:32633", "EPSG:32634"]})
    assert cat.check(zones).values.tolist() == [["mixed CRS", "c", "EPSG:32634 in 1 rows, EPSG:32633 in 2"]]
    assert cat.require_sound(zones) is zones


# pixels

def reader(row, bands=None, window=None):
    area = rasterio.windows.Window(window.col, window.row, window.width, window.height)
    with rasterio.open(row["image"]) as image, rasterio.open(row["mask"]) as mask:
        valid = np.isfinite(image.read(window=area)).all(0)
        return xr.Dataset({"label": (("y", "x"), mask.read(1, window=area)), "valid": (("y", "x"), valid)})


def test_counts_are_those_of_numpy_on_whole_chips():
    scenes, _ = cat.scan(chips())
    measured = cat.measure(scenes, reader, LEGEND)
    for row in measured.itertuples():
        with rasterio.open(row.image) as image, rasterio.open(row.mask) as mask:
            valid, label = np.isfinite(image.read()).all(0), mask.read(1)
        assert row.valid_fraction == valid.mean()
        assert row.count_dry == (valid & (label == 0)).sum() and row.count_water == (valid & (label == 1)).sum()
        assert row.count_dry + row.count_water + row.count_ignored == label.size
    assert isinstance(measured, gpd.GeoDataFrame) and list(measured["id"]) == list(scenes["id"])


def test_a_tall_scene_is_counted_in_strips():
    label, seen = np.random.default_rng(1).integers(-1, 2, (1700, 31)), []

    def read(row, window):
        seen.append(window)
        part = label[window.slices]
        return xr.Dataset({"label": (("y", "x"), part), "valid": (("y", "x"), np.ones(part.shape, bool))})

    counts = cat.measure_scene(read, LEGEND, {"id": "tall", "height": 1700, "width": 31})
    assert [counts["count_dry"], counts["count_water"], counts["count_ignored"]] == [(label == v).sum() for v in (0, 1, -1)]
    assert max(w.height for w in seen) == 512 and sum(w.height for w in seen) == 1700


def test_an_unknown_code_names_the_scene_and_skipping_leaves_nan():
    scenes, _ = cat.scan(chips().iloc[[6, 9]])
    dry_only = make_legend({"dry": [0, "#d8c9a0"]}, ignore=[-1])
    with pytest.raises(GeosegError, match="Spain_6860600|USA_905409"):
        cat.measure(scenes, reader, dry_only)
    skipped = cat.measure(scenes, reader, dry_only, Execution(on_error="skip", max_failures=2))
    assert skipped["count_dry"].isna().all() and len(skipped) == 2
    assert list(skipped.attrs["unread"]) == list(scenes["id"]) and all("codes 1 (" in r for r in skipped.attrs["unread"].values())


# fractions

tables = st.lists(st.sampled_from("abc"), min_size=1, max_size=120).map(
    lambda parts: pd.DataFrame({"id": [f"t{i:03d}" for i in range(len(parts))], "split": parts}))


@given(table=tables, small=st.floats(0.01, 1), large=st.floats(0.01, 1), seed=st.integers(0, 99), by=st.sampled_from([None, "split"]))
@settings(max_examples=40, deadline=None)
def test_fractions_are_nested_and_do_not_see_the_row_order(table, small, large, seed, by):
    small, large = sorted((small, large))
    drawn = [list(cat.fraction(table, f, seed, by)["id"]) for f in (small, large)]
    assert set(drawn[0]) <= set(drawn[1]) and len(drawn[1]) == len(set(drawn[1]))
    shuffled = table.sample(frac=1, random_state=seed + 1)
    assert list(cat.fraction(shuffled, large, seed, by)["id"]) == drawn[1]
    for part, rows in table.groupby("split") if by else [(None, table)]:
        assert sum(id in set(drawn[1]) for id in rows["id"]) == round(large * len(rows))


@given(table=tables, share=st.floats(0.01, 1), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_fraction_is_the_sample_of_pandas(table, share, seed):
    drawn = cat.fraction(table, share, seed, by="split")
    for part, rows in table.groupby("split"):
        assert list(drawn["id"][drawn["split"] == part]) == list(rows.sample(frac=share, random_state=seed)["id"])


def test_a_fraction_of_a_catalog_is_a_catalog():
    scenes, _ = cat.scan(chips())
    half = cat.fraction(scenes, 0.5)
    assert isinstance(half, gpd.GeoDataFrame) and half.crs == scenes.crs and len(half) == 5
    assert cat.fraction(scenes.assign(part=[None] * 4 + ["x"] * 6), 0.5, by="part")["part"].isna().sum() == 2


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan"), 10])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(Refused, match="0.1 for 10 %"):
        cat.fraction(pd.DataFrame({"id": ["a"]}), share)


def test_the_fractions_of_bigearthnet_are_the_published_ones():
    if "GEOSEG_DATA" not in os.environ:
        pytest.skip("set GEOSEG_DATA to the folder of bigearthnet_examples")
    path = Path(os.environ["GEOSEG_DATA"]) / "bigearthnet_examples" / "metadata_v2_official.parquet"
    table = pd.read_parquet(path)
    published = {0.01: (2379, 1223, 1198), 0.10: (23787, 12234, 11982)}
    for share, counts in published.items():
        drawn = cat.fraction(table, share, seed=42, by="split")
        assert tuple(drawn["split"].value_counts()[["train", "validation", "test"]]) == counts
    named = cat.fraction(table.rename(columns={"patch_id": "id"}).sample(frac=1, random_state=0), 0.10, by="split")
    assert list(named["id"]) == list(drawn["patch_id"])
    for part, rows in table.groupby("split"):
        assert list(drawn["patch_id"][drawn["split"] == part]) == list(rows.sample(frac=0.10, random_state=42)["patch_id"])


# on disk

def test_a_catalog_comes_back_as_it_was_and_opens_in_other_programs(tmp_path):
    scenes, _ = cat.scan(chips())
    scenes = cat.measure(scenes, reader, LEGEND)
    path = cat.write_catalog(scenes, tmp_path / "a folder" / "catalog.parquet")
    again = cat.read_catalog(path)
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(scenes), check_dtype=False)
    assert isinstance(again["transform"][0], list) and gpd.read_parquet(path).crs.to_epsg() == 4326
    assert os.listdir(path.parent) == ["catalog.parquet"]


def test_a_catalog_that_cannot_be_written_leaves_the_old_one(tmp_path):
    scenes, _ = cat.scan(chips().head(1))
    path = cat.write_catalog(scenes, tmp_path / "catalog.parquet")
    before = path.read_bytes()
    with pytest.raises(Exception):
        cat.write_catalog(scenes.assign(strange=[object()]), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["catalog.parquet"]


@pytest.mark.parametrize("text", ["", "PAR1 but not really"])
def test_a_broken_catalog_names_the_job_to_run(tmp_path, text):
    (tmp_path / "catalog.parquet").write_text(text)
    with pytest.raises(GeosegError, match="run the catalog job again"):
        cat.read_catalog(tmp_path / "catalog.parquet")


# GeoParquet

def test_a_catalog_is_geoparquet_as_its_specification_demands(tmp_path):
    "https://geoparquet.org/releases/v1.1.0: read with pyarrow alone, as GDAL and QGIS do"
    scenes, problems = measured_catalog(CatalogSpec())
    path = cat.write_catalog(scenes.assign(mask=None, time=pd.NaT), tmp_path / "catalog.parquet")
    file = pq.ParquetFile(path)
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    assert geo["version"].startswith("1.") and set(geo) >= {"version", "primary_column", "columns"}
    [(name, column)] = geo["columns"].items()
    assert name == geo["primary_column"] == "geometry" and column["encoding"] == "WKB"
    assert set(column["geometry_types"]) <= {"Polygon", "MultiPolygon"} and CRS.from_json_dict(column["crs"]).to_epsg() == 4326
    assert np.allclose(column["bbox"], scenes.total_bounds)
    table = file.read()
    assert [shapely.from_wkb(wkb).equals(p) for wkb, p in zip(table["geometry"].to_pylist(), scenes.geometry)] == [True] * len(scenes)
    assert str(file.schema.column(table.column_names.index("geometry")).physical_type) == "BYTE_ARRAY"


def test_the_columns_of_a_catalog_are_plain(tmp_path):
    "No nulls-only, struct, dictionary or mixed column, which GDAL leaves out or shows as text"
    scenes, _ = measured_catalog(CatalogSpec())
    path = cat.write_catalog(scenes.assign(mask=None, note=[None] * len(scenes)), tmp_path / "catalog.parquet")
    schema = pq.read_schema(path)
    plain = lambda kind: (pa.types.is_large_string(kind) or pa.types.is_string(kind) or pa.types.is_integer(kind)  # noqa: E731
                          or pa.types.is_floating(kind) or pa.types.is_timestamp(kind) or pa.types.is_binary(kind))
    strange = [f"{field.name} {field.type}" for field in schema
               if not plain(field.type) and not (pa.types.is_list(field.type) and pa.types.is_float64(field.type.value_type))]
    assert not strange, strange
    assert cat.read_catalog(path)["mask"].isna().all()


def test_label_counts_and_ignored_pixels_are_in_every_catalog(tmp_path):
    "Summed over the classes and the ignored, they are the pixels of rasterio's own read; without labels all pixels are ignored"
    scenes, _ = measured_catalog(CatalogSpec())
    again = cat.read_catalog(cat.write_catalog(scenes, tmp_path / "catalog.parquet"))
    for row in again.itertuples():
        with rasterio.open(row.image) as image, rasterio.open(row.mask) as mask:
            seen, label = np.isfinite(image.read()).all(0), mask.read(1)
        counts = [int((seen & (label == code)).sum()) for code in (0, 1)]
        assert [row.count_dry, row.count_water, row.count_ignored] == [*counts, label.size - sum(counts)]
    assert all(again[name].dtype == "int64" for name in ("count_dry", "count_water", "count_ignored"))
    bare, _ = measured_catalog(CatalogSpec(options={"masks": ""}))
    assert (bare["count_ignored"] == 512**2).all() and not bare[["count_dry", "count_water"]].to_numpy().any()
