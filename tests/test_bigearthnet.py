"BigEarthNet against its official table, its real patches and the published numbers"
import json
import os
import re
import time
from pathlib import Path

import mgrs
import numpy as np
import pandas as pd
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg_nb import gather, tilestore
from geoseg_nb.bigearthnet import BANDS, CLASSES, CORINE, LEGENDS, Options, band_files, catalog, patch_folders, patch_grids, read, tile_corner
from geoseg_nb.core import GeosegError, GridMismatch, Refused, make_legend
from geoseg_nb.jobs import load_recipe, recipe_folders
from geoseg_nb.launch import named_files
from geoseg_nb.loader import make_loader
from geoseg_nb.plan import TileSpec
from geoseg_nb.products import SourceSpec, hand_over, measured_catalog, source_of
from geoseg_nb.spec import make
from geoseg_nb.split import SplitSpec, divide, make_split, parts_of_groups
from geoseg_nb.stages import Execution
from geoseg_nb.storage import storage
from geoseg_nb.synthetic import SyntheticSpec, synthetic_table, write_synthetic
from geoseg_nb.tiling import tile
from house import geoseg
from test_jobs import kill_when

DATA = Path(os.environ.get("GEOSEG_DATA", "")) / "bigearthnet_examples"
real = pytest.mark.skipif(not DATA.is_dir(), reason="needs $GEOSEG_DATA with bigearthnet_examples")
TABLE = str(DATA / "metadata_v2_official.parquet")
EXAMPLES = Options(metadata=TABLE, version="v1", s1=str(DATA / "BigEarthNet-S1-Example"), s2=str(DATA / "BigEarthNet-S2-Example"),
                   bands=[band for bands in BANDS.values() for band in bands])


@pytest.fixture(scope="module")
def official():
    return pd.read_parquet(TABLE)


@pytest.fixture(scope="module")
def listed():
    return catalog("s3://bigearthnet/v2", Options(metadata=TABLE))


@real
def test_the_official_table_becomes_a_catalog_without_a_file_opened(listed):
    assert len(listed) == 480_038 and listed["id"].is_unique and listed["place"].nunique() == 115
    assert listed["split"].value_counts().to_dict() == {"train": 237_871, "validation": 122_342, "test": 119_825}
    shared = listed.groupby("place")["split"].nunique()
    assert (shared == 3).sum() == 100, "scenes that lie in all three official parts"
    first = listed.set_index("id").loc["S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"]
    assert first["s1_path"] == "s3://bigearthnet/v2/BigEarthNet-S1/S1B_IW_GRDH_1SDV_20170612T165809/S1B_IW_GRDH_1SDV_20170612T165809_33UUP_26_57"
    scene = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    assert first["s2_path"] == f"s3://bigearthnet/v2/BigEarthNet-S2/{scene}/{scene}_26_57"
    assert first["reference_path"] == f"s3://bigearthnet/v2/Reference_Maps/{scene}/{scene}_26_57"


@real
def test_footprints_lie_in_their_countries(listed):
    "Boxes in degrees that hold each country, from any atlas"
    boxes = {"Finland": (19, 59, 32, 71), "Portugal": (-10, 36, -6, 43), "Ireland": (-11, 51, -5, 56), "Austria": (9, 46, 18, 50), "Kosovo": (19, 41, 22, 44),
             "Serbia": (18, 41, 24, 47), "Lithuania": (20, 53, 27, 57), "Belgium": (2, 49, 7, 52), "Switzerland": (5, 45, 11, 48), "Luxembourg": (5, 49, 7, 51)}
    found = listed.geometry.bounds.groupby(listed["country"]).agg({"minx": "min", "miny": "min", "maxx": "max", "maxy": "max"})
    for country, (west, south, east, north) in boxes.items():
        a, b, c, d = found.loc[country]
        assert west <= a and south <= b and c <= east and d <= north, country


@real
@pytest.mark.parametrize("share, counts", [(0.001, (238, 122, 120)), (0.01, (2379, 1223, 1198)), (0.03, (7136, 3670, 3595)),
                                           (0.05, (11894, 6117, 5991)), (0.1, (23787, 12234, 11982)), (0.2, (47574, 24468, 23965))])
def test_fractions_have_the_published_counts_and_rows(official, share, counts):
    found = catalog("/data", Options(metadata=TABLE, fraction=share))
    assert tuple(found["split"].value_counts()[["train", "validation", "test"]]) == counts
    drawn = pd.concat(official[official["split"] == part].sample(frac=share, random_state=42) for part in ("train", "validation", "test"))
    assert set(found["id"]) == set(drawn["patch_id"])


@given(small=st.floats(0.01, 1), large=st.floats(0.01, 1), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_smaller_fraction_lies_inside_a_larger_one(tmp_path_factory, small, large, seed):
    root = tmp_path_factory.getbasetemp() / "nested"
    if not root.exists():
        root.mkdir()
        synthetic_table(SyntheticSpec(patches=600)).to_parquet(root / "metadata.parquet")
    a, b = (set(catalog(root, Options(fraction=f, seed=seed))["id"]) for f in sorted((small, large)))
    assert a <= b


@real
def test_one_catalog_serves_every_published_fraction(official):
    "The split takes from the catalog of 10 % what the official table gives to 1, 3, 5 and 7 %"
    tenth = catalog("/data", Options(metadata=TABLE, fraction=0.1))
    for share, counts in {0.01: (2379, 1223, 1198), 0.03: (7136, 3670, 3595), 0.05: (11894, 6117, 5991), 0.07: (16651, 8564, 8388)}.items():
        division = divide(tenth, SplitSpec(rule="column", column="split", fraction=share))
        assert tuple(division.split["part"].value_counts()[["train", "val", "test"]]) == counts
        drawn = pd.concat(official[official["split"] == part].sample(frac=share, random_state=42) for part in ("train", "validation", "test"))
        assert set(division.split["scene"]) == set(drawn["patch_id"])
        assert len(division.split) + len(division.dropped) == 48_003 and set(division.dropped["why"]) == {f"outside of the fraction {share:g}"}
    with pytest.raises(Refused, match="fraction 0.2: the catalog holds 0.1"): divide(tenth, SplitSpec(rule="column", column="split", fraction=0.2))


def parts_of(rows, split, column):
    "In how many parts each value of a column lies, by pandas alone"
    return split["part"].groupby(split["scene"].map(rows.set_index("id")[column])).nunique()


@real
def test_every_official_test_patch_lies_in_a_scene_that_trains(listed):
    "What the lesson tells of the real table"
    split = make_split(listed, SplitSpec(rule="column", column="split"), check=False)
    table = parts_of_groups(split, listed)
    assert (table > 0).sum(axis=1).value_counts().to_dict() == {3: 100, 2: 11, 1: 4} and table["test"][table["train"] > 0].sum() == 119_825
    pd.testing.assert_series_equal((table > 0).sum(axis=1).sort_index(), parts_of(listed, split, "place"), check_names=False)


@real
@pytest.mark.slow
@pytest.mark.parametrize(("variant", "counts"), [("scene_disjoint", (347_042, 56_818, 59_186)), ("country_disjoint", (322_390, 19_530, 138_118))])
def test_variants_keep_scenes_and_countries_apart(listed, variant, counts):
    "No scene lies in two parts, no square or country, and no patch of a part shares ground with another part"
    spec = make(SplitSpec, load_recipe(recipe_folders()["bigearthnet"], variant).values["11_split"])
    began = time.monotonic()
    split, dropped = divide(listed, spec)
    assert time.monotonic() - began < 120, "half a million rows take seconds, on a busy machine too"
    assert tuple(split["part"].value_counts()[["train", "val", "test"]]) == counts and len(split) + len(dropped) == 480_038
    assert parts_of(listed, split, "place").max() == 1 and parts_of(listed, split, spec.column).max() == 1
    assert {why.partition(" S2")[0] for why in dropped["why"]} <= {"too near to test", "too near to val"}


@real
@pytest.mark.slow
def test_real_scenes_drawn_one_by_one_share_ground_and_are_refused(listed):
    with pytest.raises(GeosegError, match="share ground with another part .*: 298494"): divide(listed, SplitSpec(rule="random", column="place"))


@pytest.fixture(scope="module")
def drawn_store(tmp_path_factory):
    "Patches drawn and cut in the order of the draw: catalog, source, store"
    folder = tmp_path_factory.mktemp("drawn")
    write_synthetic(folder / "v2", SyntheticSpec(patches=240, bands=["VV", "B04"]))
    spec = SourceSpec(product="bigearthnet", root=str(folder / "v2"), legend={}, measure=False, checksums=False, options={"bands": ["VV", "B04"], "fraction": 0.9})
    rows, source = measured_catalog(spec)[0], source_of(spec)
    return rows, tile(TileSpec(size=120, overlap=0, order="shuffled", shard_tiles=8), rows, source, folder / "tiles.zarr")


@pytest.mark.parametrize(("share", "shards"), [(0.03, 1), (0.1, 3), (0.5, 15)])
def test_a_loader_of_a_fraction_reads_only_the_first_shards(drawn_store, monkeypatch, share, shards):
    "240 patches: 7, 24 and 120 of them in shards of 8; what is read is noted where it is read"
    rows, store = drawn_store
    split, read = make_split(rows, SplitSpec(rule="column", column="split", fraction=share)), set()
    monkeypatch.setattr(gather, "shard_chunks", lambda store, k, *more: read.add(k) or tilestore.shard_chunks(store, k, *more))
    ids = [id for part in ("train", "val", "test") for batch in make_loader(store, split, part, normaliser="none") for id in batch["id"]]
    assert len(ids) == len(set(ids)) == len(split) and read == set(range(shards))


@real
def test_the_real_patches_lie_where_their_names_say():
    there = {path.name for path in (DATA / "BigEarthNet-S2-Example").iterdir()}
    found = catalog("", EXAMPLES)
    rows = found[found["id"].isin(there)]
    assert there - set(rows["id"]) == {"S2B_MSIL2A_20180204T94161_57_38"}, "the snowy one is not in the table"
    for row in rows.to_dict("records"):
        pixels = read(row, EXAMPLES)
        for band, (path, _) in band_files(row, EXAMPLES.bands).items():
            sensor = next(name for name, bands in BANDS.items() if band in bands)
            with rasterio.open(path) as source:
                values = source.read(1)
                assert list(source.transform)[2::3][:2] == row["transform"][2::3] and source.crs.to_string() == row["crs"]
            assert np.array_equal(pixels[sensor].sel({f"{sensor}_band": band}).values, values.repeat(120 // len(values), 0).repeat(120 // len(values), 1))
    snowy = next(path.name for path in (DATA / "BigEarthNet-S1-Example").iterdir() if path.name.endswith("57_38"))
    with rasterio.open(DATA / "BigEarthNet-S1-Example" / snowy / f"{snowy}_VV.tif") as source: transform = list(source.transform)[:6]
    assert patch_grids(pd.Series([snowy]))["transform"][0] == transform


@given(zone=st.integers(1, 60), latitude=st.floats(-79, 83), east=st.floats(0.01, 5.99))
@settings(max_examples=300, deadline=None)
def test_squares_are_those_of_the_reference_system(zone, latitude, east):
    name = mgrs.MGRS().toMGRS(latitude, -186 + 6 * zone + east, MGRSPrecision=0)
    if not re.fullmatch(r"\d+[C-X][A-Z]{2}", name): return
    code, x, y = tile_corner(name)
    try: _, hemisphere, corner_x, corner_y = mgrs.MGRS().MGRSToUTM(f"{name}0000000000")
    except Exception: return  # a corner that lies in the band below
    assert code // 100 == (326 if hemisphere == "N" else 327) and code % 100 == int(name[:-3])
    assert (x, y) == (round(corner_x) // 60 * 60, -(-(round(corner_y) + 100_000) // 60) * 60)


@real
def test_class_names_are_those_of_the_table(official):
    assert set(CLASSES) == {name for labels in official["labels"] for name in labels}


def test_the_cast_to_a_byte_joins_pastures_and_unlabelled_and_nothing_else():
    classes, ignored = LEGENDS["codes_mod256"]
    assert not ignored and [codes for codes, _ in classes.values() if len(codes) > 1] == [[231, 999]]
    legend, codes = make_legend(classes), np.array([*CORINE, 999])
    index = legend.encode(codes)
    bytes_ = np.array([int(name.split()[1]) for name in legend.names])
    assert np.array_equal(bytes_[index], codes.astype("uint8")), "what the first system trained on, byte for byte"


@pytest.mark.parametrize("tile", ["61UUP", "00UUP", "33IUP", "33UIP", "33UAP", "33UUW"])
def test_a_square_that_there_is_not_is_refused(tile):
    with pytest.raises(Refused, match=f"{tile} is no square"): tile_corner(tile)


@pytest.mark.parametrize("options", [{"metadata": ""}, {"s1": ""}, {"s2": ""}, {"fraction": 0}, {"legend": "ben20"}, {"version": "v3"}])
def test_options_that_lead_nowhere_are_refused(options):
    with pytest.raises(Refused): make(Options, options)


def test_tables_that_are_not_whole_are_refused_and_missing_labels_are_none(tmp_path):
    table = synthetic_table(SyntheticSpec(patches=4))
    table.drop(columns="s2v1_name").to_parquet(tmp_path / "metadata.parquet")
    with pytest.raises(Refused, match="lacks s2v1_name"): catalog(tmp_path, Options(version="v1"))
    assert len(catalog(tmp_path)) == 4
    table.assign(labels=[None, ["Pastures"], None, []]).to_parquet(tmp_path / "metadata.parquet")
    assert sorted(catalog(tmp_path)["labels"]) == ["", "", "", "Pastures"]
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(Refused, match="metadata.parquet is no table"): catalog(tmp_path)


def test_made_patches_have_names_of_their_own():
    table = synthetic_table(SyntheticSpec(patches=60_000))
    assert table["patch_id"].is_unique and table["s1_name"].is_unique and table["s2v1_name"].is_unique


def test_the_table_is_watched_and_the_folder_is_not_walked(tmp_path):
    "Eight million files are not looked at to find that nothing changed"
    write_synthetic(tmp_path / "v2", SyntheticSpec(patches=2))
    spec = SourceSpec(product="bigearthnet", root=str(tmp_path / "v2"), legend={}, measure=False)
    assert hand_over(spec)["source"] == str(tmp_path / "v2/metadata.parquet") and hand_over(spec.replace(measure=True))["source"] == str(tmp_path / "v2")
    values = {"root": str(tmp_path / "v2"), "options": {"metadata": str(tmp_path / "v2/metadata.parquet"), "s1": "BigEarthNet-S1"}, "measure": False}
    assert list(named_files(values, tmp_path / "run")) == [str(tmp_path / "v2/metadata.parquet")]
    assert set(named_files(values | {"measure": True}, tmp_path / "run")) == {str(tmp_path / "v2"), str(tmp_path / "v2/metadata.parquet")}


def test_an_unknown_code_names_the_patch():
    with pytest.raises(GeosegError, match="P_1: codes 7 "): make_legend(*LEGENDS["ben19"]).encode(np.array([[7, 211]]), "P_1")


@pytest.mark.parametrize("name, kind", [("S2A_x", "s2"), ("", "s1"), ("S1B_IW_GRDH_1SDV", "s1")])
def test_names_of_another_form_are_refused(name, kind):
    with pytest.raises(Refused, match="1 names of"): patch_folders(pd.Series([name]), "/data", kind)


def test_a_patch_in_another_place_than_its_name_is_refused_when_it_is_read(tmp_path):
    write_synthetic(tmp_path, SyntheticSpec(patches=2))
    row = catalog(tmp_path).iloc[0].copy()
    row["transform"] = [10.0, 0.0, row["transform"][2] + 1200, 0.0, -10.0, row["transform"][5]]
    with pytest.raises(GridMismatch, match=row["id"]): read(row)


def test_the_generator_writes_the_documented_structure_and_the_same_bytes_again(tmp_path):
    spec = SyntheticSpec(patches=6, bands=EXAMPLES.bands)
    made = write_synthetic(tmp_path / "a", spec)
    write_synthetic(tmp_path / "b", spec)
    files = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.tif")}
    assert len(files) == made["files"] == 6 * 15 and made["bytes"] == sum(map(len, files.values()))
    assert all((tmp_path / "b" / path).read_bytes() == data for path, data in files.items())
    for path in files:
        with rasterio.open(tmp_path / "a" / path) as source:
            assert source.shape == {10: (120, 120), 20: (60, 60), 60: (20, 20)}[round(source.res[0])] and source.compression.name == "deflate"
            assert source.dtypes[0] == ("float32" if "1SDV" in path.name else "uint16") and source.block_shapes[0][1] == source.width
    rows = catalog(tmp_path / "a", Options(bands=spec.bands))
    codes = np.concatenate([read(row, Options(bands=["VV"])).label.values.ravel() for _, row in rows.iterrows()])
    assert {999, 332, 231} <= set(codes.tolist()) <= {*CORINE, 999}


def test_a_bucket_is_read_as_a_folder_is(bucket, tmp_path):
    "The same patches in both, through catalog and tiling"
    spec = SyntheticSpec(patches=12)
    roots = [str(tmp_path / "v2"), f"s3://{bucket}/v2"]
    for root in roots: write_synthetic(root, spec)
    stores = []
    for name, root in zip("ab", roots):
        scenes, problems = measured_catalog(SourceSpec(product="bigearthnet", root=root, legend={}, measure=False, checksums=False))
        assert len(scenes) == 12 and set(problems["kind"]) == {"mixed CRS"}
        source = source_of(SourceSpec(product="bigearthnet", root=root, legend={}))
        stores.append(tile(TileSpec(size=120, overlap=0, order="shuffled", shard_tiles=5), scenes, source, tmp_path / f"{name}.zarr"))
    for array in ("s1", "s2", "label"): assert np.array_equal(stores[0].dataset[array].values, stores[1].dataset[array].values)
    assert stores[0].index["id"].tolist() == stores[1].index["id"].tolist() and stores[0].legend.names == list(CLASSES)


def test_patches_of_a_bucket_are_fetched_many_at_a_time(bucket, proxy, tmp_path):
    "Each request takes 50 ms on its way; the first error calls the others off and names its patch"
    write_synthetic(str(tmp_path / "v2"), SyntheticSpec(patches=24))
    for path in (tmp_path / "v2").rglob("*.*"): storage(f"s3://{bucket}").write(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    spec = SourceSpec(product="bigearthnet", root=f"s3://{bucket}/v2", legend={}, measure=False, checksums=False)
    scenes, source, here = measured_catalog(spec)[0], source_of(spec), catalog(tmp_path / "v2").set_index("id")
    proxy.delay, proxy.busiest = 0.05, 0
    store = tile(TileSpec(size=120, overlap=0, order="shuffled"), scenes, source, tmp_path / "a.zarr", Execution(workers=1))
    assert proxy.busiest >= 16
    held = tilestore.read_rows(store, range(24))
    for i, name in enumerate(store.index["scene"]):
        assert np.array_equal(held["s2"][i], read({**here.loc[name], "id": name}).s2.values)
    first = store.index["scene"][0]
    proxy.keyed, proxy.seen = {f"{first}_B02": "403"}, []
    with pytest.raises(GeosegError, match=f"{first}: s3://.*B02.tif.*403"):
        tile(TileSpec(size=120, overlap=0, order="shuffled"), scenes, source, tmp_path / "b.zarr", Execution(workers=1))
    assert len([path for _, path in proxy.seen if ".tif" in path]) < 24 * 7


def test_an_object_that_is_missing_or_cut_names_its_patch(bucket, tmp_path):
    write_synthetic(f"s3://{bucket}/v2", SyntheticSpec(patches=2))
    rows, place = catalog(f"s3://{bucket}/v2"), storage(f"s3://{bucket}/v2")
    gone, cut = (row for _, row in rows.iterrows())
    place.remove(band_files(dict(gone), ["B04"])["B04"][0].removeprefix(f"s3://{bucket}/v2/"))
    key = band_files(dict(cut), ["VV"])["VV"][0].removeprefix(f"s3://{bucket}/v2/")
    place.write(key, place.read(key)[:500])
    with pytest.raises(GeosegError, match=f"{gone['id']}: s3://.*B04.tif: no such object"): read(gone)
    with pytest.raises(GeosegError, match=f"{cut['id']}: s3://.*VV.tif: cut off, damaged or no image"): read(cut)


@pytest.mark.slow
def test_fractions_share_one_store_stop_where_killed_and_go_on_with_what_is_missing(bucket, tmp_path):
    "Patches of a bucket; kill -9 in the training of the second member: nothing that was done is done again, and the report draws score and time"
    write_synthetic(f"s3://{bucket}/v2", SyntheticSpec(patches=240))
    run, words = tmp_path / "run", ("bigearthnet_fractions", "--variant", "small", "-p", f"catalog.root=s3://{bucket}/v2")
    kill_when(run, (run / "fraction-0.3" / "37_train" / "metrics.csv").exists, *words)
    done = sorted(path.parent for path in run.rglob("result.json") if json.loads(path.read_text())["status"] == "complete")
    assert [path.relative_to(run).as_posix() for path in done] == [
        "10_catalog", "22_tile", *(f"fraction-0.1/{job}" for job in ("11_split", "37_train", "43_evaluate")), "fraction-0.3/11_split"]
    before = {path: path.stat().st_mtime_ns for folder in done for path in folder.rglob("*") if path.is_file()}
    first = pd.read_csv(run / "fraction-0.3" / "37_train" / "metrics.csv")
    again = geoseg("run", *words, "--out", run)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("complete and unchanged, skipped") == len(done)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "no file of what was done was written again"
    curves = pd.read_csv(run / "fraction-0.3" / "37_train" / "metrics.csv")
    assert len(first) == 1 and len(curves) == 2
    pd.testing.assert_frame_equal(curves[:1], first)
    sizes = [pd.read_parquet(run / f"fraction-{share}" / "11_split" / "split.parquet")["part"].value_counts().to_dict() for share in (0.1, 0.3, 0.5)]
    table = synthetic_table(SyntheticSpec(patches=240))["split"].replace("validation", "val").value_counts()
    assert sizes == [{part: round(share * n) for part, n in table.items()} for share in (0.1, 0.3, 0.5)]
    told = geoseg("run", "report", "--out", run)
    page = (run / "62_report" / "report.html").read_text()
    assert told.returncode == 0 and "mean IoU against fraction" in page and "Time of training against fraction" in page
    assert "Published by others" in page and "not a comparison" in page and ">1555.5</td>" in page


@pytest.mark.slow
def test_the_first_member_that_fails_stops_the_matrix_and_the_others_are_kept(tmp_path):
    "A fraction that leaves a part nothing ends the run with 2; mended, the run does what is missing"
    recipe, run = tmp_path / "mine", tmp_path / "run"
    recipe.mkdir()
    write = lambda shares: (recipe / "recipe.yml").write_text(f"jobs: [10_catalog, 11_split]\nmatrix: {{11_split.fraction: {shares}}}\n")  # noqa: E731
    write([0.5, 0.01, 1.0])
    done = geoseg("run", recipe, "--out", run)
    assert done.returncode == 2 and "fraction 0.01 of the 10 scenes of" in done.stderr and "is none" in done.stderr
    assert (run / "fraction-0.5" / "11_split" / "split.parquet").exists() and not (run / "fraction-1.0").exists()
    write([0.5, 0.3, 1.0])
    again = geoseg("run", recipe, "--out", run)
    assert again.returncode == 0 and again.stdout.count("complete and unchanged, skipped") == 2, again.stderr[-2000:]
    counts = [pd.read_parquet(run / f"fraction-{share}" / "11_split" / "split.parquet")["scene"].nunique() for share in (0.5, 0.3, 1.0)]
    assert counts == [5, 3, 10]


@pytest.mark.slow
def test_the_recipe_runs_on_made_patches(tmp_path):
    write_synthetic(tmp_path / "v2", SyntheticSpec(patches=200))
    done = geoseg("run", "bigearthnet", "--variant", "small", "--out", tmp_path / "run", "-p", f"catalog.root={tmp_path / 'v2'}")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run" / "43_evaluate" / "result.json").read_text())["metrics"]
    assert set(found["per_class"]) == set(CLASSES) and found["mean_iou"] > found["baseline"]["mean_iou"]
