"Folders of images and masks: paired by name, every fault listed with its path before anything runs"
import os
import pickle
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from geoseg_nb import products
from geoseg_nb.catalog import CatalogSpec, read_catalog, write_catalog
from geoseg_nb.core import GeosegError, Grid, GridMismatch, Refused
from geoseg_nb.pairs import PairOptions, catalog, matching_files, pair_table, pattern_regex, read, sensors
from geoseg_nb.stages import Execution
from geoseg_nb.storage import sample_folder
from geoseg_nb.windows import Window

FLOODS = PairOptions(place="{place}_{chip}")
SMALL = PairOptions(images="images/{id}.tif", masks="masks/{id}.tif", sensor="cam", bands=["red"], unit="",
                    dtype="uint8")
UTM33 = Grid("EPSG:32633", (10, 0, 500000, 0, -10, 5000000), 8, 9)
quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, value, grid=UTM33, dtype="uint8", bands=1, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", count=bands, height=grid.height, width=grid.width, dtype=dtype,
                       crs=grid.crs, transform=Affine(*grid.transform), **options) as target:
        target.write(np.full((bands, grid.height, grid.width), value, dtype))
    return path


def write_pairs(folder, images, masks):
    "One image and mask an id, each filled with a number that only this id has"
    for kind, ids in (("images", images), ("masks", masks)):
        for id in ids:
            write(folder / kind / f"{id}.tif", sum(id.encode()) % 251)
    return folder


@pytest.fixture
def chips(tmp_path):
    return Path(copytree(sample_folder(), tmp_path / "chips"))


def image(folder, id):
    return folder / "S1" / f"{id}_S1Hand.tif"


def mask(folder, id):
    return folder / "labels" / f"{id}_LabelHand.tif"


def said(folder, options=FLOODS):
    "The lines of the one error about a folder"
    with pytest.raises(GeosegError) as caught:
        catalog(folder, options)
    return str(caught.value).splitlines()


# Pairing by name

def test_equal_counts_with_other_names_never_pair_by_position(tmp_path):
    write_pairs(tmp_path, ["a", "c", "d", "e"], ["a", "b", "c", "d"])
    names = [sorted(p.name for p in (tmp_path / kind).iterdir()) for kind in ("images", "masks")]
    assert len(names[0]) == len(names[1]) and sum(a != b for a, b in zip(*names)) == 3
    lines = said(tmp_path, SMALL)
    assert len(lines) == 3
    assert f"e: {tmp_path}/images/e.tif: image without mask: no {tmp_path}/masks/e.tif" in lines[1]
    assert f"b: {tmp_path}/masks/b.tif: mask without image: no {tmp_path}/images/b.tif" in lines[2]
    sound = catalog(tmp_path, SMALL.replace(on_missing="skip"))
    assert sound["id"].tolist() == ["a", "c", "d"]
    for _, row in sound.iterrows():
        data = read(row, SMALL)
        assert (data.cam.values == data.label.values).all() and int(data.label[0, 0]) == sum(row["id"].encode()) % 251


@quick
@given(images=st.sets(st.sampled_from("abcdefgh"), min_size=1), masks=st.sets(st.sampled_from("abcdefgh")))
def test_pairs_are_the_ids_on_both_sides_and_the_rest_is_named(images, masks):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for kind, ids in (("images", images), ("masks", masks)):
            (Path(folder) / kind).mkdir()
            [(Path(folder) / kind / f"{id}.tif").touch() for id in ids]
        table, alone = pair_table(Path(folder), SMALL)
    assert set(table["id"]) == images & masks and set(alone["id"]) == images ^ masks
    assert all(Path(row.image).stem == Path(row.mask).stem == row.id for row in table.itertuples())


def test_two_files_of_one_id_are_both_named(tmp_path):
    options = SMALL.replace(images="*/{id}.tif", masks="")
    write_pairs(tmp_path, ["a", "b"], ["a"])
    lines = said(tmp_path, options)
    assert len(lines) == 3 and "images/a.tif: one of 2 image files" in lines[1] and "masks/a.tif" in lines[2]
    assert catalog(tmp_path, options.replace(on_missing="skip"))["id"].tolist() == ["b"]


@pytest.mark.parametrize("pattern, name, id", [
    ("{id}.tif", "a.tif", "a"), ("{id}.tif", "a/b.tif", None), ("{id}/{id}_S?.tif", "x/x_S2.tif", "x"),
    ("{id}/{id}_S?.tif", "x/y_S2.tif", None), ("S1/{id}_*.tif", "S1/a_b_c.tif", "a"), ("{id}.tif", ".hidden.tif", None),
    ("{id}+(1).tif", "a+(1).tif", "a"), ("{id}.tif", "axtif", None), ("{id}.tif", "ü 名.tif", "ü 名"),
])
def test_patterns(pattern, name, id):
    match = pattern_regex(pattern).fullmatch(name)
    assert (match and match["id"]) == id


def test_brackets_in_names_are_literal(tmp_path):
    write(tmp_path / "run[1]" / "a.tif", 1)
    assert list(matching_files(tmp_path, "run[1]/{id}.tif")) == ["a"]


def test_folders_and_patterns_that_lead_nowhere_are_refused(tmp_path):
    with pytest.raises(Refused, match="no folder .*gone"):
        catalog(tmp_path / "gone", FLOODS)
    (tmp_path / "S2").mkdir()
    with pytest.raises(Refused, match="no image in .* matches S1/{id}_S1Hand.tif; the folder holds S2"):
        catalog(tmp_path, FLOODS)
    with pytest.raises(ValueError, match="must hold {id}"):
        PairOptions(masks="labels/*.tif")
    with pytest.raises(Refused, match="does not fit place"):
        catalog(options=FLOODS.replace(place="{place}-{x}-{y}-{z}"))


# Fault 9: everything that is missing, broken or empty, in one error

def test_missing_broken_and_empty_files_are_listed_in_one_error_before_anything_runs(chips):
    whole = image(chips, "Nigeria_812045").read_bytes()
    wounds = {
        image(chips, "Nigeria_812045"): whole[: len(whole) // 2],
        image(chips, "Spain_7370579"): image(chips, "Spain_7370579").read_bytes()[:-80_000],
        image(chips, "Ghana_97059"): whole[: len(whole) // 1000],
        mask(chips, "Somalia_699062"): b"", mask(chips, "Spain_6860600"): b"<!DOCTYPE html><title>404</title>",
    }
    for path, data in wounds.items():
        path.write_bytes(data)
    image(chips, "Ghana_53713").unlink()
    mask(chips, "USA_905409").unlink()
    lines = said(chips)
    text = "\n".join(lines)
    assert len(lines) == 1 + 7 and "7 problems" in lines[0] and "3 sound pairs" in lines[0]
    assert all(text.count(f"{path}: ") == 1 for path in wounds)
    assert "0 bytes" in next(line for line in lines if "Somalia_699062_LabelHand" in line)
    assert "web page" in next(line for line in lines if "Spain_6860600_LabelHand" in line)
    assert f"image without mask: no {mask(chips, 'USA_905409')}" in text
    assert f"mask without image: no {image(chips, 'Ghana_53713')}" in text
    sound = catalog(chips, FLOODS.replace(on_missing="skip"))
    assert sorted(sound["id"]) == ["Ghana_83483", "Paraguay_34417", "Sri-Lanka_534068"]
    assert len(sound.attrs["skipped"]) == 7 and {s["path"] for s in sound.attrs["skipped"]} >= {str(p) for p in wounds}


def test_nothing_left_is_an_error_even_when_faults_may_be_skipped(tmp_path):
    write_pairs(tmp_path, ["a", "b"], [])
    (tmp_path / "masks").mkdir()
    lines = said(tmp_path, SMALL.replace(on_missing="skip"))
    assert "0 sound pairs" in lines[0] and len(lines) == 3
    write(tmp_path / "masks" / "a.tif", 1).write_bytes(b"")
    assert "0 sound pairs" in said(tmp_path, SMALL.replace(on_missing="skip"))[0]


def test_a_thousand_faults_stay_readable(tmp_path):
    (tmp_path / "images").mkdir()
    [(tmp_path / "images" / f"{i:04}.tif").touch() for i in range(1000)]
    lines = said(tmp_path, SMALL)
    assert len(lines) == 202 and lines[-1].strip() == "and 800 more"


# Faults 11 to 14: no CRS, other grid, other bands

@pytest.mark.parametrize("grid, words", [
    (Grid("EPSG:32634", UTM33.transform, 8, 9), ("EPSG:32633 10 m", "EPSG:32634 10 m", "CRS")),
    (Grid("EPSG:32633", (20, 0, 500000, 0, -20, 5000000), 8, 9), ("EPSG:32633 10 m", "EPSG:32633 20 m", "pixel size")),
    (Grid("EPSG:32633", (10, 0, 500010, 0, -10, 5000000), 8, 9), ("(500000, 5000000)", "(500010, 5000000)", "origin")),
    (Grid("EPSG:32633", UTM33.transform, 9, 8), ("8x9", "9x8")),
], ids=["zone", "resolution", "origin", "shape"])
def test_a_mask_on_another_grid_is_refused_with_both_sides(tmp_path, grid, words):
    write_pairs(tmp_path, ["a", "b"], ["a"])
    write(tmp_path / "masks" / "b.tif", 1, grid)
    lines = said(tmp_path, SMALL)
    assert len(lines) == 2 and lines[1].strip().startswith(f"b: {tmp_path}/images/b.tif: ")
    assert all(word in lines[1] for word in (*words, "masks/b.tif", "gdalwarp"))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_files_that_lie_nowhere_are_listed(tmp_path):
    write_pairs(tmp_path, ["a", "b"], ["a", "b"])
    for path in (tmp_path / "images" / "a.tif", tmp_path / "masks" / "b.tif"):
        with rasterio.open(path, "w", driver="GTiff", count=1, height=8, width=9, dtype="uint8") as target:
            target.write(np.ones((1, 8, 9), "uint8"))
    lines = said(tmp_path, SMALL)
    assert len(lines) == 3 and all("no CRS" in line for line in lines[1:])


def test_bands_and_types_that_were_not_declared_are_listed(tmp_path):
    write_pairs(tmp_path, ["a"], ["a", "b", "c"])
    write(tmp_path / "images" / "b.tif", 1, bands=3)
    write(tmp_path / "images" / "c.tif", 1, dtype="uint16")
    lines = said(tmp_path, SMALL)
    assert "b.tif: has 3 bands" in lines[1] and "c.tif: is uint16" in lines[2] and "dtype='uint16'" in lines[2]


# Reading

@quick
@given(data=st.data())
def test_any_window_equals_plain_rasterio(data):
    row = catalog_of_sample().iloc[data.draw(st.integers(0, 9))]
    top, left = data.draw(st.integers(0, 511)), data.draw(st.integers(0, 511))
    window = Window(top, left, data.draw(st.integers(1, 512 - top)), data.draw(st.integers(1, 512 - left)))
    scene = read(row, FLOODS, window=window)
    area = rasterio.windows.Window(left, top, window.width, window.height)
    with rasterio.open(row["image"]) as source, rasterio.open(row["mask"]) as labels:
        pixels, codes = source.read(window=area), labels.read(1, window=area)
    assert np.array_equal(scene.s1.values, pixels, equal_nan=True) and np.array_equal(scene.label.values, codes)
    assert np.array_equal(scene.valid.values, np.isfinite(pixels).all(axis=0)) and scene.label.dtype == codes.dtype
    assert Grid.from_dict(scene.attrs["grid"]).bounds == pytest.approx(rasterio.windows.bounds(area, source.transform))


def catalog_of_sample(memory=[]):  # noqa: B006  scanned once for all examples
    memory or memory.append(catalog(options=FLOODS))
    return memory[0]


def test_the_sample_is_sound_and_its_two_hard_chips_pass_through():
    chips = catalog_of_sample()
    assert len(chips) == 10 and chips["place"].nunique() == 7 and chips.attrs["skipped"] == []
    by_id = chips.set_index("id", drop=False)
    assert not read(by_id.loc["Paraguay_34417"], FLOODS).valid.any()
    assert (read(by_id.loc["Ghana_83483"], FLOODS).label == -1).all()


def test_right_halves_hold_the_known_number_of_valid_labelled_pixels():
    right = [read(row, FLOODS, window=Window(0, 256, 512, 256)) for _, row in catalog_of_sample().iterrows()]
    usable = [int(((data.label != -1) & data.valid).sum()) for data in right]
    assert sum(usable) == 882_680 and sum(n > 0 for n in usable) == 8


def test_a_file_that_changed_since_the_catalog_is_refused(tmp_path):
    write_pairs(tmp_path, ["a"], ["a"])
    row = catalog(tmp_path, SMALL).iloc[0]
    moved = Grid("EPSG:32633", (10, 0, 600000, 0, -10, 5000000), 8, 9)
    write(tmp_path / "masks" / "a.tif", 1, moved)
    with pytest.raises(GridMismatch, match="a: the declared grid is .*500000.*label is .*600000"):
        read(row, SMALL)
    (tmp_path / "images" / "a.tif").unlink()
    with pytest.raises(GeosegError, match="a: .*images/a.tif: no such file"):
        read(row, SMALL)


def test_rows_survive_parquet_and_every_way_of_taking_them_out(tmp_path):
    chips = read_catalog(write_catalog(catalog_of_sample(), tmp_path / "catalog.parquet"))
    rows = [chips.iloc[3], list(chips.itertuples())[3], chips.drop(columns="geometry").to_dict("records")[3]]
    first, *others = [read(row, FLOODS, ["VH"], Window(0, 0, 9, 9)) for row in rows]
    assert all(first.identical(other) for other in others)


def test_declared_nodata_counts_beside_the_files_own(tmp_path):
    write_pairs(tmp_path, ["a"], ["a"])
    row = catalog(tmp_path, SMALL).iloc[0]
    value = sum(b"a") % 251
    assert read(row, SMALL).valid.all() and not read(row, SMALL.replace(nodata=value)).valid.any()
    assert sensors(SMALL.replace(nodata=value))[0].nodata == value


def test_images_without_masks(tmp_path):
    write_pairs(tmp_path, ["a", "b"], [])
    options = SMALL.replace(masks="")
    table = catalog(tmp_path, options)
    assert table["mask"].tolist() == ["", ""] and list(read(table.iloc[0], options).data_vars) == ["cam", "valid"]


def test_links_spaces_and_other_alphabets(tmp_path):
    write_pairs(tmp_path / "zona húmeda", ["río 1", "地図"], ["río 1", "地図"])
    (tmp_path / "link").symlink_to(tmp_path / "zona húmeda")
    assert sorted(catalog(tmp_path / "link", SMALL)["id"]) == ["río 1", "地図"]


# The table of products

def test_readers_travel_and_products_are_checked(tmp_path):
    reader = products.reader("pairs", {"place": "{place}_{chip}"})
    row = catalog_of_sample().iloc[0]
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301  our own bytes
    assert again(row, ["VV"], Window(0, 0, 4, 4)).identical(read(row, FLOODS, ["VV"], Window(0, 0, 4, 4)))
    with pytest.raises(Refused, match="no product 'pair'.*did you mean 'pairs'"):
        products.product("pair")
    with pytest.raises(Refused, match="image"):
        products.reader("pairs", {"image": "x"})


def test_the_catalog_of_a_spec_skips_or_raises_as_the_spec_says(chips):
    mask(chips, "USA_905409").unlink()
    with pytest.raises(GeosegError, match="USA_905409"):
        products.catalog(CatalogSpec(root=str(chips)))
    kept = products.catalog(CatalogSpec(root=str(chips), on_error="skip"), Execution(workers=1))
    assert len(kept) == 9 and [s["id"] for s in kept.attrs["skipped"]] == ["USA_905409"]


def test_a_measured_catalog_counts_what_plain_numpy_counts_and_names_what_it_left_out(chips, tmp_path):
    mask(chips, "USA_905409").write_bytes(b"")
    spec = CatalogSpec(root=str(chips), on_error="skip", options={"place": "{place}_{chip}"})
    scenes, problems = products.measured_catalog(spec)
    assert dict(problems[["id", "kind"]].itertuples(index=False)) == {
        "USA_905409": "skipped", "Paraguay_34417": "no valid pixel", "Ghana_83483": "no labelled pixel"}
    assert "0 bytes" in problems.set_index("id")["detail"]["USA_905409"]
    labels, seen = [], []
    for path in sorted((chips / "labels").glob("*.tif")):
        if "USA" not in path.name:
            with rasterio.open(path) as codes, rasterio.open(image(chips, path.name[:-14])) as source:
                labels.append(codes.read(1))
                seen.append(np.isfinite(source.read()).all(axis=0))
    labels, seen = np.stack(labels), np.stack(seen)
    counts = read_catalog(write_catalog(scenes, tmp_path / "c.parquet")).attrs["counts"]
    assert counts["count_dry"] == ((labels == 0) & seen).sum() and counts["count_water"] == ((labels == 1) & seen).sum()
    assert counts["count_dry"] + counts["count_water"] + counts["count_ignored"] == labels.size == counts["pixels"]
    table = products.class_counts(scenes, spec, shown=2)
    assert table["count"].sum() == counts["count_dry"] + counts["count_water"] and table["part"].nunique() == 3


def damaged(chips) -> list[str]:
    "Two chips whose pixels, not their headers, are at fault: an image broken before its middle and a label with a code of its own"
    whole = image(chips, "USA_905409")
    with rasterio.open(whole) as source:
        profile, values = source.profile | {"compress": "deflate", "tiled": False, "blockysize": 16}, source.read()
    with rasterio.open(whole, "w", **profile) as target:
        target.write(values)
    data = bytearray(whole.read_bytes())
    data[len(data) // 4 : len(data) // 4 + 4000] = b"\xff" * 4000
    whole.write_bytes(data)
    with rasterio.open(mask(chips, "Spain_7370579"), "r+") as labels:
        codes = labels.read(1)
        codes[300, :2] = 7
        labels.write(codes, 1)
    return ["Spain_7370579", "USA_905409"]


@pytest.mark.parametrize("execution", [None, Execution(workers=1)], ids=["default", "given"])
def test_scenes_damaged_in_their_pixels_are_all_listed_or_left_out(chips, execution):
    ids = damaged(chips)
    with pytest.raises(GeosegError) as caught:
        products.measured_catalog(CatalogSpec(root=str(chips)), execution)
    text = str(caught.value)
    assert "scenes that cannot be measured: 2" in text and all(f"\n  {id}: " in text for id in ids)
    assert "codes 7 (2 pixels)" in text and text.count("Spain_7370579: ") == 1
    scenes, problems = products.measured_catalog(CatalogSpec(root=str(chips), on_error="skip"), execution)
    skipped = problems[problems["kind"] == "skipped"]
    assert sorted(skipped["id"]) == ids and "codes 7 (2 pixels)" in " ".join(skipped["detail"])
    assert len(scenes) == 8 and not set(ids) & set(scenes["id"]) and sorted(scenes.attrs["unread"]) == ids
    assert scenes["count_water"].dtype == "int64" and scenes.attrs["counts"]["pixels"] == 8 * 512 * 512


def test_a_catalog_of_which_nothing_can_be_measured_is_refused(chips):
    with pytest.raises(GeosegError, match="cannot be measured: 10"):
        products.measured_catalog(CatalogSpec(root=str(chips), on_error="skip", legend={"land": [5, "#d8c9a0"]}, ignore=[]))


def test_a_source_survives_its_record():
    import json

    spec = CatalogSpec(options={"nodata": -30.0})
    again = products.received(json.loads(json.dumps({"job": "10_catalog", "outputs": products.hand_over(spec)})))
    source, row = products.source_of(spec), catalog_of_sample().iloc[7]
    assert again.sensors == source.sensors and again.legend == source.legend
    assert again.reader(row, ["VV"], Window(0, 0, 9, 9)).identical(source.reader(row, ["VV"], Window(0, 0, 9, 9)))


# Fault 14: every file is held against the schema, whatever is wrong with it

TWO = {"images": "images/{id}.tif", "bands": ["red", "nir"], "dtype": "uint8", "unit": ""}


def noisy(path, seed, shape=(2, 8, 9), dtype="uint8", names=None, grid=UTM33, same=()):
    "A file of random pixels; the bands in `same` are copies of the first"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(1, 200, shape).astype(dtype)
    for band in same:
        values[band] = values[0]
    with rasterio.open(path, "w", driver="GTiff", count=shape[0], height=shape[1], width=shape[2], dtype=dtype, crs=grid.crs,
                       transform=Affine(*grid.transform)) as target:
        target.write(values)
        target.descriptions = names or [None] * shape[0]


FAULTS = {
    "sound": ({}, ""), "sound and named": ({"names": ["red", "nir"]}, ""), "names of no meaning": ({"names": ["bands", "bands"]}, ""),
    "one band more": ({"shape": (3, 8, 9)}, "has 3 bands"), "one band less": ({"shape": (1, 8, 9)}, "has 1 bands"),
    "another type": ({"dtype": "int16"}, "is int16"), "another height": ({"shape": (2, 7, 9)}, "7x9"),
    "another width": ({"shape": (2, 8, 11)}, "8x11"), "turned": ({"names": ["nir", "red"]}, "names its bands nir, red"),
    "named twice": ({"names": ["red", "red"]}, "names its bands red, red"), "a band twice": ({"same": [1]}, "bands red and nir hold the same pixels"),
}


@quick
@given(kinds=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=6))
def test_every_item_that_breaks_the_schema_is_named_and_no_other(kinds):
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder, options = Path(name), PairOptions(**TWO, masks="masks/{id}.tif")
        for i, kind in enumerate(kinds):
            noisy(folder / "images" / f"i{i}.tif", i, **FAULTS[kind][0])
            write(folder / "masks" / f"i{i}.tif", 1)
        wrong = {f"i{i}": FAULTS[kind][1] for i, kind in enumerate(kinds) if FAULTS[kind][1]}
        if not wrong:
            assert len(catalog(folder, options)) == len(kinds)
            return
        lines = said(folder, options)
        assert len(lines) == 1 + len(wrong)
        for line in lines[1:]:
            assert wrong[line.split(":")[0].strip()] in line, line


def test_one_file_under_two_names_is_found(tmp_path):
    options = PairOptions(masks="", sensors=[{"name": "s2", "images": "{id}_{band}.tif", "bands": ["B02", "B03", "B04"], "dtype": "uint8"}])
    for seed, band in enumerate(("B02", "B03", "B04")):
        noisy(tmp_path / f"a_{band}.tif", seed, (1, 8, 9))
        noisy(tmp_path / f"b_{band}.tif", 0 if band == "B04" else seed, (1, 8, 9))
    lines = said(tmp_path, options)
    assert len(lines) == 2 and "b: " in lines[1] and "bands B02 and B04 hold the same pixels" in lines[1]


def test_bands_that_agree_in_the_middle_alone_are_two_bands(tmp_path):
    options = PairOptions(**TWO, masks="")
    noisy(tmp_path / "images" / "a.tif", 0, (2, 64, 64), same=[1], grid=Grid("EPSG:32633", UTM33.transform, 64, 64))
    with rasterio.open(tmp_path / "images" / "a.tif", "r+") as target:
        values = target.read()
        values[1, 0, 0] += 1
        target.write(values)
    assert len(catalog(tmp_path, options)) == 1
    for value in (0, 255):
        write(tmp_path / "images" / "a.tif", value, bands=2)
        assert len(catalog(tmp_path, options)) == 1, "two empty bands are no copies"


def test_a_mask_of_several_bands_is_refused(tmp_path):
    write_pairs(tmp_path, ["a"], [])
    write(tmp_path / "masks" / "a.tif", 1, bands=3)
    assert "has 3 bands; a mask is one band of codes" in said(tmp_path, SMALL)[1]


# Several sensors and dates

COARSE = Grid("EPSG:32633", (20, 0, 500000, 0, -20, 5000000), 4, 4)
FINE = Grid("EPSG:32633", UTM33.transform, 8, 8)


def two_sensors(**changes):
    sensors = {"a": {"images": "a/{id}.tif", "bands": ["red"], "dtype": "uint8"},
               "b": {"images": "b/{id}_{band}.tif", "bands": ["x", "y"], "dtype": "int16", "ratio": 2, **changes}}
    return products.make(PairOptions, {"masks": "", "sensors": sensors})


def test_a_scene_that_lacks_a_band_of_a_sensor_is_named(tmp_path):
    for id in ("p", "q"):
        write(tmp_path / "a" / f"{id}.tif", 3, FINE)
        write(tmp_path / "b" / f"{id}_x.tif", 5, COARSE, "int16")
    write(tmp_path / "b" / "p_y.tif", 7, COARSE, "int16")
    write(tmp_path / "b" / "r_y.tif", 7, COARSE, "int16")
    lines = said(tmp_path, two_sensors())
    assert f"q: {tmp_path}/a/q.tif: a without b y: no {tmp_path}/b/q_y.tif" in "\n".join(lines)
    assert "r: " in "\n".join(lines) and "b y without a: no" in "\n".join(lines)
    both = catalog(tmp_path, two_sensors().replace(on_missing="skip"))
    assert both["id"].tolist() == ["p"] and [str(s) for s in both.loc[0, ["b_x", "b_y"]]] == [f"{tmp_path}/b/p_{n}.tif" for n in "xy"]
    data = read(both.iloc[0], two_sensors())
    assert data["a"].shape == (1, 8, 8) and data["b"].dtype == "int16" and data["b"].values[:, 0, 0].tolist() == [5, 7]
    assert sensors(two_sensors())[1].ratio == 2


def test_only_the_sensors_asked_for_are_read_and_hide_pixels(tmp_path):
    write(tmp_path / "a" / "p.tif", 3, FINE)
    for band in "xy":
        write(tmp_path / "b" / f"p_{band}.tif", -1, COARSE, "int16")
    options = two_sensors(nodata=-1)
    row = catalog(tmp_path, options).iloc[0]
    assert not read(row, options).valid.any() and read(row, options, ["red"]).valid.all()
    (tmp_path / "b" / "p_x.tif").unlink()
    assert read(row, options, ["red"]).valid.all()
    with pytest.raises(GeosegError, match="p_x.tif: no such file"):
        read(row, options)


def test_options_of_several_sensors_keep_their_order_through_json():
    import json

    options = products.make(PairOptions, {"masks": "", "sensors": {n: {"images": f"{n}/{{id}}.tif", "bands": [n.upper()]} for n in ("s2", "dem", "aux")}})
    again = products.make(PairOptions, json.loads(json.dumps(options.model_dump(), sort_keys=True)))
    assert again == options and [s.name for s in sensors(again)] == ["s2", "dem", "aux"]


@pytest.mark.parametrize("change, words", [
    ({"grid": "c"}, "no sensor for the grid 'c': known are a, b"), ({"resample": {"b": "bilinear"}}, "b: ratio 2 keeps its own pixels"),
    ({"resample": {"a": "bilinear"}}, "a is the grid"), ({"bands": ["u"]}, "bands stands beside sensors"), ({"grid": "b"}, "b has ratio 2"),
    ({"resample": {"mask": "cubic"}}, "would mix class codes")], ids=lambda v: "" if isinstance(v, str) else str(v))
def test_options_that_contradict_each_other_are_refused(change, words):
    with pytest.raises(Refused) as caught:
        two_sensors().replace(**change)
    assert words in str(caught.value)


def test_a_lasting_mask_serves_every_date_and_a_date_without_mask_is_named(tmp_path):
    for date in ("2020_1231", "2021_0101"):
        write(tmp_path / "images" / f"a_{date}.tif", 9)
    write(tmp_path / "masks" / "a.tif", 1)
    series = SMALL.replace(images="images/{id}_{date}.tif", date_format="%Y_%m%d")
    rows = catalog(tmp_path, series)
    assert rows["id"].tolist() == ["a_2020_1231", "a_2021_0101"] and rows["mask"].nunique() == 1 and rows["place"].tolist() == ["a", "a"]
    assert [t.isoformat() for t in rows["time"]] == ["2020-12-31T00:00:00+00:00", "2021-01-01T00:00:00+00:00"]
    dated = series.replace(masks="masks/{id}_{date}.tif")
    write(tmp_path / "masks" / "a_2021_0101.tif", 1)
    lines = said(tmp_path, dated)
    assert len(lines) == 2 and f"a_2020_1231: {tmp_path}/images/a_2020_1231.tif: image without mask: no {tmp_path}/masks/a_2020_1231.tif" in lines[1]
    write(tmp_path / "images" / "a_2021_9901.tif", 9)
    assert "date 2021_9901 is none in the form %Y_%m%d" in "\n".join(said(tmp_path, series))


def test_a_resampled_mask_hides_what_it_does_not_cover(tmp_path):
    write_pairs(tmp_path, ["a"], [])
    half = Grid("EPSG:32633", (10, 0, 500020, 0, -10, 5000000), 8, 9)
    write(tmp_path / "masks" / "a.tif", 1, half)
    options = SMALL.replace(resample={"mask": "nearest"})
    rows = catalog(tmp_path, options)
    data = read(rows.iloc[0], options)
    assert rows["resampled"].tolist() == ["mask nearest"] and not data.valid[:, :2].any() and data.valid[:, 2:].all()
    assert (data.label[:, 2:] == 1).all()
    write(tmp_path / "masks" / "a.tif", 1, half, nodata=255)
    data = read(rows.iloc[0], options)
    assert data.valid.all() and (data.label[:, :2] == 255).all()


# Fault 47: folders as people have them

@pytest.mark.parametrize("where", ["plain", "zona húmeda 地図", "linked"])
def test_data_in_odd_folders_under_a_strict_umask_reach_the_store(tmp_path, where):
    from geoseg_nb.tiling import TileSpec, tile
    from geoseg_nb.tilestore import open_store

    home = tmp_path / ("real" if where == "linked" else where)
    write_pairs(home, ["a", "b"], ["a", "b"])
    if where == "linked":
        (tmp_path / where).symlink_to(home)
    for path in home.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = os.umask(0o077)
    try:
        source = products.Source(products.reader("pairs", SMALL), sensors(SMALL), products.make_legend({"all": [list(range(251)), "#336699"]}))
        store = tile(TileSpec(size=8, overlap=0), catalog(tmp_path / where, SMALL), source, tmp_path / "out 1" / "ß.zarr")
    finally:
        os.umask(before)
        [path.chmod(0o700) for path in home.rglob("*") if path.is_dir()]
    assert len(open_store(store.url)) == 4 and not (store.url / "MANIFEST.json").stat().st_mode & 0o077
    assert sorted(p.name for p in home.rglob("*.tif*")) == ["a.tif", "a.tif", "b.tif", "b.tif"], "nothing was written beside the data"


# Real data beyond the sample

def test_the_chips_as_published_pair_by_name():
    root = os.environ.get("GEOSEG_DATA")
    if not root:
        pytest.skip("GEOSEG_DATA is not set: no data beyond the sample")
    folder = Path(root) / "sen1floods11_spain_s1s2"
    names = [f"B{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8)] + ["B8A", "B9", "B10", "B11", "B12"]
    options = PairOptions(images="S2/{id}_S2Hand.tif", masks="Labels/{id}_LabelHand.tif", sensor="s2", bands=names,
                          unit="", dtype="int16")
    scene = read(catalog(folder, options).iloc[0], options, bands=["B8", "B3"], window=Window(0, 0, 32, 32))
    with rasterio.open(next((folder / "S2").glob("*.tif"))) as source:
        assert np.array_equal(scene.s2.values, source.read([8, 3])[:, :32, :32])
    with pytest.raises(GeosegError, match="has 13 bands"):
        catalog(folder, options.replace(bands=names[:4]))


def test_sparse_labels_of_a_landsat_scene():
    root = os.environ.get("GEOSEG_DATA")
    if not root:
        pytest.skip("GEOSEG_DATA is not set: no data beyond the sample")
    options = PairOptions(images="L8-B5-{id}.tiff", masks="L8-Labels-{id}.tiff", sensor="l8", bands=["B5"], unit="",
                          dtype="uint16")
    table = catalog(Path(root) / "landsat8_elkton", options)
    assert table["id"].tolist() == ["Elkton-VA"]
    assert set(np.unique(read(table.iloc[0], options).label)) == {0, 1, 2, 255}
