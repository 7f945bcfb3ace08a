"Plain TIFFs from their bytes: equal to GDAL in every value, or left to it"
import struct

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.io import MemoryFile

from geoseg_nb.tiff import AGREED, PlainReader, decode_tiff

TYPES = ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
PLACED = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 404400, 0, -10, 5342400)}


def written(values, **options):
    "A GeoTIFF of [band, row, column] as GDAL writes it"
    with MemoryFile() as file:
        with file.open(**{"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype, **PLACED,
                          **options}) as target: target.write(values)
        return file.read()


def by_rasterio(data):
    with MemoryFile(data) as file, file.open() as source: return source.read(), tuple(source.transform)[:6]


@given(dtype=st.sampled_from(TYPES), bands=st.integers(1, 3), height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 99),
       compress=st.sampled_from(["none", "deflate", "lzw", "zstd"]), predictor=st.sampled_from([1, 2, 3]), tiled=st.booleans(),
       interleave=st.sampled_from(["band", "pixel"]), rows=st.integers(1, 80), endianness=st.sampled_from(["LITTLE", "BIG"]))
@settings(max_examples=300, deadline=None)
def test_what_is_plain_is_equal_to_gdal(dtype, bands, height, width, seed, compress, predictor, tiled, interleave, rows, endianness):
    kind, random = np.dtype(dtype).kind, np.random.default_rng(seed)
    values = random.normal(0, 100, (bands, height, width)).astype(dtype) if kind != "u" else random.integers(0, 250, (bands, height, width)).astype(dtype)
    predictor = 1 if compress == "none" or kind != "f" and predictor == 3 else predictor
    packing = {"tiled": True, "blockxsize": 32, "blockysize": 16} if tiled else {"blockysize": rows}
    data = written(values, compress=compress, predictor=predictor, interleave=interleave, endianness=endianness, **packing)
    found = decode_tiff(data)
    plain = compress in ("none", "deflate") and not (kind == "f" and predictor > 1)
    assert (found is not None) == plain
    if plain:
        expected, transform = by_rasterio(data)
        assert np.array_equal(found.values, expected) and found.values.dtype == expected.dtype and found.transform == transform


ODD = {"nbits": {"nbits": 12}, "white is zero": {"photometric": "MINISWHITE"}, "alpha": {"alpha": "YES"}, "bigtiff": {"bigtiff": "YES"},
       "holes": {"sparse_ok": True}, "pixel is point": {}, "overviews": {}, "no place": {"crs": None, "transform": None}}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_not_plain_is_left_to_gdal(odd, tmp_path):
    values = np.zeros((2 if odd == "alpha" else 1, 64, 64), "uint16")
    (tmp_path / "a.tif").write_bytes(written(values, **ODD[odd]))
    with rasterio.open(tmp_path / "a.tif", "r+") as target:
        if odd == "pixel is point": target.update_tags(AREA_OR_POINT="Point")
        if odd == "overviews": target.build_overviews([2])
    assert decode_tiff((tmp_path / "a.tif").read_bytes()) is None


@given(at=st.integers(0, 2000), byte=st.integers(0, 255), cut=st.one_of(st.none(), st.integers(0, 2000)))
@settings(max_examples=400, deadline=None)
def test_damaged_bytes_raise_nothing(at, byte, cut):
    data = bytearray(written(np.arange(24 * 24, dtype="uint16").reshape(1, 24, 24), compress="deflate"))
    data[at % len(data)] = byte
    found = decode_tiff(bytes(data[:cut]))
    assert found is None or found.values.ndim == 3


def varied(seed=0, shape=(1, 20, 20)):
    return np.random.default_rng(seed).integers(0, 900, shape).astype("uint16")


def test_a_kind_is_trusted_once_gdal_has_agreed_and_never_where_it_did_not(monkeypatch):
    first, second = (written(varied(seed), compress="deflate") for seed in (1, 2))
    reader = PlainReader()
    for _ in range(AGREED + 2): assert np.array_equal(reader(first)[0].values, varied(1))
    assert reader.counts == {"plain": AGREED + 2, "compared": AGREED, "not plain": 0, "differs": 0}
    assert reader(second)[1].crs == "EPSG:32633" and reader.counts["compared"] == AGREED
    wrong = PlainReader()
    monkeypatch.setattr("geoseg_nb.tiff.by_gdal", lambda data: (np.zeros((1, 20, 20), "uint16"), (10.0, 0.0, 404400.0, 0.0, -10.0, 5342400.0), None))
    assert [wrong(first) for _ in range(5)] == [None] * 5 and wrong.counts["compared"] == 1 and wrong.counts["differs"] == 4


def test_images_of_one_value_earn_no_trust():
    reader, blank = PlainReader(), written(np.zeros((1, 20, 20), "uint16"), compress="deflate")
    for _ in range(3 * AGREED): assert reader(blank) is not None
    assert reader.counts["compared"] == 3 * AGREED


def test_each_zone_is_asked_of_gdal():
    reader = PlainReader()
    zones = [reader(written(varied(), crs=f"EPSG:326{zone}"))[1].crs for zone in (29, 33, 35) for _ in range(AGREED + 1)]
    assert zones == [f"EPSG:326{zone}" for zone in (29, 33, 35) for _ in range(AGREED + 1)] and reader.counts["compared"] == 3 * AGREED


def test_a_large_image_in_few_bytes_is_not_unpacked_for_a_window():
    assert decode_tiff(written(np.zeros((1, 4096, 4096), "uint8"), compress="deflate", tiled=True)) is None
    assert decode_tiff(written(np.zeros((1, 1024, 1024), "uint8"), compress="deflate", tiled=True)) is not None


def test_values_that_mask_all_bands_keep_their_validity(tmp_path):
    "GDAL's mask of a data set is told by a tag of its own"
    for name, tags in (("plain", {}), ("masked", {"NODATA_VALUES": "0 0 0"})):
        (tmp_path / f"{name}.tif").write_bytes(written(np.where(varied(shape=(3, 20, 20)) > 300, varied(shape=(3, 20, 20)), 0).astype("uint8")))
        with rasterio.open(tmp_path / f"{name}.tif", "r+") as target: target.update_tags(**tags)
    assert decode_tiff((tmp_path / "plain.tif").read_bytes()) is not None and decode_tiff((tmp_path / "masked.tif").read_bytes()) is None


@pytest.mark.parametrize("tag, was, becomes", [(33550, 10.0, -10.0), (33550, 10.0, float("nan"))])
def test_a_file_that_stands_on_its_head_is_left_to_gdal(tag, was, becomes):
    data = written(varied())
    sizes = struct.pack("<3d", was, was, 0.0)
    assert data.count(sizes) == 1 and decode_tiff(data) is not None
    assert decode_tiff(data.replace(sizes, struct.pack("<3d", was, becomes, 0.0))) is None


def test_differences_without_deflate_are_left_to_gdal():
    "There libtiff takes no notice of the tag"
    data = written(varied(), compress="deflate", predictor=2)
    entry = struct.pack("<HHII", 259, 3, 1, 8)
    assert data.count(entry) == 1 and decode_tiff(data) is not None and decode_tiff(data.replace(entry, struct.pack("<HHII", 259, 3, 1, 1))) is None


def test_nodata_comes_along():
    data = written(np.zeros((1, 8, 8), "int16") + 3, nodata=-1)
    assert PlainReader()(data)[1].nodata == -1
