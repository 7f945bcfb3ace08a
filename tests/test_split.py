"Splits: no tile, no pixel and no place leaks, whatever the rule, the buffer and the order of the catalog"
import hashlib
import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_cdt

from geoseg_nb.catalog import DRAW, fraction, located
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.plan import TileSpec, plan_tiles
from geoseg_nb.rules import drawn_within, growing_order
from geoseg_nb.spec import make
from geoseg_nb.split import (
    COLUMNS, HALVES, PARTS, Area, SplitSpec, area_mask, assign, check_split, divide, lay_out, make_split, near_between, part_table,
    pixels_of, read_split, separation, split_hash, step_back, whole_scenes, write_split)
from geoseg_nb.windows import WindowPlan, windows


def scenes(n, size=(64, 48), places=None) -> pd.DataFrame:
    ids = [f"s{i:03d}" for i in range(n)]
    return pd.DataFrame({"id": ids, "height": size[0], "width": size[1], "place": places or ids})


def placed(corners, size=10, crs="EPSG:32633", pixel=10.0) -> gpd.GeoDataFrame:
    "Square scenes of one CRS whose upper left corners are given in whole pixels"
    transforms = [[pixel, 0, 500_000 + pixel * col, 0, -pixel, 5_000_000 - pixel * row] for row, col in corners]
    ids = [f"s{i:03d}" for i in range(len(corners))]
    return located(pd.DataFrame({"id": ids, "height": size, "width": size, "crs": crs, "transform": transforms}))


def distance(a, b) -> float:
    "Pixels between two masks by SciPy's chessboard distance, infinite where one is empty"
    return int(distance_transform_cdt(~b, metric="chessboard")[a].min()) - 1 if a.any() and b.any() else np.inf


# areas of one scene

edges = st.tuples(st.integers(0, 8), st.integers(1, 8)).map(lambda t: [t[0] / 16, (t[0] + t[1]) / 16])
area = st.fixed_dictionaries({}, optional={"rows": edges, "cols": edges})
sizes = st.integers(16, 90)


@given(areas=st.dictionaries(st.sampled_from(PARTS), area, min_size=1), height=sizes, width=sizes, buffer=st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_areas_are_disjoint_inside_and_keep_the_buffer(areas, height, width, buffer):
    try:
        spec = make(SplitSpec, {"areas": areas, "buffer": buffer})
        split = make_split(scenes(1, (height, width)), spec)
    except GeosegError as error:
        assume("overlap" not in str(error) and "nothing is left" not in str(error))
        raise
    masks = {part: area_mask(split, "s000", part, height, width) for part in PARTS}
    assert sum(mask.astype(int) for mask in masks.values()).max() <= 1
    assert sum(mask.sum() for mask in masks.values()) == part_table(split)["pixels"].sum()
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert distance(masks[a], masks[b]) >= buffer
    if "test" in areas:
        alone = lay_out(height, width, {"test": areas["test"]})[0]
        assert masks["test"].sum() == pixels_of(alone), "the buffer was taken from the test side"


rectangles = st.tuples(*[st.integers(0, 30), st.integers(1, 20)] * 2).map(
    lambda t: Area("train", t[0], t[0] + t[1], t[2], t[2] + t[3]))


@given(a=rectangles, b=rectangles, buffer=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_separation_is_the_chessboard_distance_and_the_largest_cut_is_made(a, b, buffer):
    paint = np.zeros((2, 64, 64), bool)
    for layer, r in zip(paint, (a, b)):
        layer[r.row0:r.row1, r.col0:r.col1] = True
    assert max(separation(a, b), 0) == max(distance(*paint), 0) if separation(a, b) >= 0 else (paint[0] & paint[1]).any()
    less = step_back(a, b, buffer)
    cuts = [Area("train", r0, r1, c0, c1) for r0, r1, c0, c1 in [
        (a.row0, r, a.col0, a.col1) for r in range(a.row0, a.row1 + 1)] + [(r, a.row1, a.col0, a.col1) for r in range(a.row0, a.row1 + 1)]
        + [(a.row0, a.row1, a.col0, c) for c in range(a.col0, a.col1 + 1)] + [(a.row0, a.row1, c, a.col1) for c in range(a.col0, a.col1 + 1)]]
    allowed = [pixels_of(cut) for cut in cuts if not pixels_of(cut) or separation(cut, b) >= buffer]
    assert pixels_of(less) == max(allowed)


@given(height=sizes, width=sizes)
@settings(max_examples=40, deadline=None)
def test_the_default_halves_are_the_whole_scene(height, width):
    split = make_split(scenes(3, (height, width)), SplitSpec())
    assert part_table(split)["pixels"].sum() == 3 * height * width and part_table(split)["share"].sum() == pytest.approx(1, abs=2e-3)
    assert sum(area_mask(split, "s001", part, height, width).astype(int) for part in PARTS).min() == 1


def test_the_sample_rule_is_the_one_of_the_peers():
    [test, val, train] = lay_out(512, 512, HALVES, buffer=32)
    assert (test.col0, test.col1) == (256, 512) and (train.col1, val.col1) == (224, 224) and val.row0 - train.row1 == 32


@pytest.mark.parametrize("areas, told", [
    ({"train": {"cols": [0, 0.6]}, "test": {"cols": [0.5, 1]}}, "areas overlap: train .* and test"),
    ({"train": {"cols": [0.5, 0.5]}}, "areas of train"),
    ({"train": {"cols": [0, 1.2]}}, "areas of train"),
    ({"train": {"colums": [0, 1]}}, "areas of train"),
    ({"train": {"cols": [0]}}, "areas of train"),
    ({"train": {"cols": 5}}, "areas"),
    ({"trian": {"cols": [0, 1]}}, "did you mean 'train'"),
])
def test_wrong_areas_are_refused_by_name(areas, told):
    with pytest.raises(Refused, match=told):
        make(SplitSpec, {"areas": areas})


@pytest.mark.parametrize("values, told", [
    ({"fractions": {"train": 0.5, "test": 0.4}}, "sum to 0.9"), ({"fractions": {"train": 1.5, "test": -0.5}}, "shares of one whole"),
    ({"buffer": -1}, "buffer"), ({"fractions": {}}, "sum to 0"),
])
def test_wrong_numbers_are_refused_by_name(values, told):
    with pytest.raises(Refused, match=told):
        make(SplitSpec, values)
    with pytest.raises(Refused, match="no rule 'postion'.*did you mean 'position'"):
        make(SplitSpec, {"rule": "postion"})


def test_a_buffer_that_eats_an_area_names_it():
    with pytest.raises(GeosegError, match="nothing is left of val rows 56:64 columns 0:24 at a buffer of 30 px"):
        make_split(scenes(1), SplitSpec(buffer=30))


# whole scenes

draws = st.fixed_dictionaries({"n": st.integers(20, 60), "seed": st.integers(0, 50), "column": st.sampled_from(["", "place"])})


def draw(n, seed, column, shares=(0.6, 0.2, 0.2)):
    table = scenes(n, places=[f"p{i // 2}" for i in range(n)])
    spec = SplitSpec(rule="random", seed=seed, column=column, fractions=dict(zip(PARTS, shares)))
    return table, spec, make_split(table, spec)


@given(draws)
@settings(max_examples=40, deadline=None)
def test_a_random_split_is_total_disjoint_and_blind_to_the_row_order(case):
    table, spec, split = draw(**case)
    assert sorted(split["scene"]) == sorted(table["id"]) and part_table(split)["share"].sum() == pytest.approx(1, abs=2e-3)
    shuffled = make_split(table.sample(frac=1, random_state=case["seed"]), spec)
    pd.testing.assert_frame_equal(shuffled, split)
    place = split["scene"].map(table.set_index("id")["place"])
    if case["column"]:
        assert split.groupby(place)["part"].nunique().max() == 1
    else:
        counts = split["part"].value_counts()
        assert all(abs(counts[part] - share * case["n"]) <= 1 for part, share in spec.fractions.items())


@given(draws, st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_random_training_parts_are_nested(case, tenths):
    small, large = (draw(**case, shares=(t / 10, 0.9 - t / 10, 0.1))[2] for t in sorted((tenths, 8)))
    assert set(small["scene"][small["part"] == "train"]) <= set(large["scene"][large["part"] == "train"])
    assert set(small["scene"][small["part"] == "test"]) == set(large["scene"][large["part"] == "test"])


def test_seeds_differ_and_one_seed_is_for_ever():
    splits = [draw(20, seed, "")[2] for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(splits[0], splits[1])
    assert split_hash(splits[0]) != split_hash(splits[2])
    order = sorted(splits[0]["scene"], key=lambda id: hashlib.sha256(f"0:{id}".encode()).hexdigest())
    tested = splits[0]["scene"][splits[0]["part"] == "test"].tolist()
    assert tested == sorted(order[16:]) == ["s000", "s011", "s015", "s018"]


def test_a_new_scene_reshuffles_nobody():
    _, spec, before = draw(40, 3, "")
    after = make_split(scenes(41), spec)
    old = after[after["scene"].isin(before["scene"])].reset_index(drop=True)
    assert (old["part"] != before["part"]).sum() <= 2


def test_every_value_of_a_column_has_a_part_or_is_refused():
    table = scenes(6).assign(country=["at", "at", "be", "be", "fi", "fi"])
    rule = {"rule": "column", "column": "country", "values": {"train": ["at"], "test": ["be"]}}
    with pytest.raises(Refused, match="no part is named for country fi"):
        make_split(table, SplitSpec(**rule))
    split = make_split(table, SplitSpec(**rule, exclude=["fi"]))
    assert split["part"].tolist() == ["train", "train", "test", "test"]
    for values, told in (({"train": ["at", "ch"]}, "country holds no ch: known are at, be, fi"),
                         ({"train": ["at"], "test": ["at"]}, "one value is named twice")):
        with pytest.raises(Refused, match=told):
            make_split(table, SplitSpec(**{**rule, "values": values}))
    with pytest.raises(Refused, match="did you mean 'country'"):
        make_split(table, SplitSpec(rule="column", column="contry"))


def test_numbers_in_a_column_are_named_by_numbers():
    table = scenes(3).assign(year=[2018, 2019, 2020])
    split = make_split(table, SplitSpec(rule="column", column="year", values={"train": [2018, 2019], "test": [2020]}))
    assert split["part"].tolist() == ["train", "train", "test"]


def test_an_official_split_needs_no_values():
    table = scenes(3).assign(split=["train", "validation", "test"])
    assert make_split(table, SplitSpec(rule="column", column="split"))["part"].tolist() == list(PARTS)


# holding out

@given(held=st.sets(st.integers(0, 9), min_size=1, max_size=8), buffer=st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_held_out_places_are_the_only_test(held, buffer):
    table = scenes(10)
    ids = [f"s{i:03d}" for i in sorted(held)]
    split = make_split(table, SplitSpec(hold_out=ids, buffer=buffer))
    tested = split[split["part"] == "test"]
    assert list(tested["scene"]) == ids and not set(split["scene"][split["part"] != "test"]) & set(ids)
    assert (tested[["row0", "row1", "col0", "col1"]].to_numpy() == [0, 64, 0, 48]).all()


def test_a_place_is_held_out_with_all_its_scenes():
    table = scenes(4, places=["a", "a", "b", "b"])
    split = make_split(table, SplitSpec(hold_out=["a"], exclude=["s003"]))
    assert split.groupby("scene")["part"].agg(set).to_dict() == {"s000": {"test"}, "s001": {"test"}, "s002": {"train", "val"}}
    for wrong in ({"hold_out": ["c"]}, {"exclude": ["s00"]}):
        with pytest.raises(Refused, match="no scene or place"):
            make_split(table, SplitSpec(**wrong))
    with pytest.raises(Refused, match="s000 is both held out and excluded"):
        make_split(table, SplitSpec(hold_out=["a"], exclude=["s000"]))


# leaks

def test_leaks_within_a_scene_name_both_areas_and_the_fix():
    split = make_split(scenes(2), SplitSpec(buffer=4))
    check_split(split, 4)
    with pytest.raises(GeosegError, match="nearer to another part than the buffer of 5 px: 6") as error:
        check_split(split, 5)
    assert "s000: train rows 0:52 columns 0:20 is 4 px from val rows 56:64 columns 0:20; cut it back to train rows 0:51" in str(error.value)
    overlapping = split.assign(col1=split["col1"].where(split["part"] != "train", 30))
    with pytest.raises(GeosegError, match="overlaps test rows 0:64 columns 24:48 by 6 px"):
        check_split(overlapping)


def test_areas_of_one_part_may_overlap():
    table = whole_scenes(scenes(1), ["train"])
    assert len(check_split(pd.concat([table, table]), 10)) == 2


@given(corners=st.lists(st.tuples(st.integers(0, 45), st.integers(0, 45)), min_size=2, max_size=7),
       parts=st.lists(st.sampled_from(PARTS), min_size=7, max_size=7), buffer=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_leaks_between_scenes_are_those_of_the_ground_itself(corners, parts, buffer):
    catalog, parts = placed(corners), parts[:len(corners)]
    split = whole_scenes(catalog, parts)
    ground = [Area(part, row, row + 10, col, col + 10) for part, (row, col) in zip(parts, corners)]
    leaks = {(f"s{i:03d}", f"s{j:03d}") for i, a in enumerate(ground) for j, b in enumerate(ground)
             if i < j and a.part != b.part and separation(a, b) < buffer}
    found = near_between(split, catalog, buffer)
    assert {tuple(sorted(pair)) for pair in zip(found["scene_a"], found["scene_b"])} == leaks
    assert len(found) == len(leaks)


def test_neighbours_that_touch_are_no_leak_without_a_buffer():
    catalog = placed([(0, 0), (0, 10), (10, 0), (10, 10)])
    split = whole_scenes(catalog, ["train", "test", "val", "train"])
    assert check_split(split, 0, catalog) is split
    with pytest.raises(GeosegError, match="share ground with another part .buffer 1 px.: 5"):
        check_split(split, 1, catalog)


def test_one_place_in_two_coordinate_systems_is_found():
    utm = placed([(0, 0)], size=100)
    west, south, east, north = utm.total_bounds
    degrees = {"crs": "EPSG:4326", "transform": [[(east - west) / 100, 0, west, 0, -(north - south) / 100, north]]}
    both = pd.concat([utm, utm.assign(id="degrees", **degrees), utm.assign(id="next zone", crs="EPSG:32634")], ignore_index=True)
    found = near_between(whole_scenes(both, ["train", "test", "val"]), both, 0)
    assert found[["scene_a", "scene_b"]].values.tolist() == [["s000", "degrees"]]


def test_two_dates_of_one_grid_pass_by_position_and_fail_by_chance():
    catalog = placed([(0, 0), (0, 0)], size=64)
    assert len(make_split(catalog, SplitSpec(buffer=8))) == 6
    rule = {"rule": "random", "fractions": {"train": 0.5, "test": 0.5}}
    with pytest.raises(GeosegError, match="column='place'"):
        make_split(catalog, SplitSpec(**rule))
    assert len(make_split(catalog, SplitSpec(**rule), check=False)) == 2


def test_full_granules_split_by_position_do_not_leak_through_their_curved_edges():
    "Same grid, other dates, areas of other heights: in longitude and latitude their common edges are different curves"
    catalog = placed([(0, 0), (0, 0)], size=10_980)
    assert len(make_split(catalog, SplitSpec())) == 6


def test_duplicate_ids_are_refused_with_the_first_five():
    table = pd.concat([scenes(7), scenes(7)])
    with pytest.raises(GeosegError) as error:
        make_split(table, SplitSpec())
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [f"s00{i}: 2 rows" for i in range(5)] + ["and 2 more"]


# tiles

plans = st.tuples(st.integers(9, 40), st.integers(0, 5), st.sampled_from(["shift", "pad", "drop"])).map(
    lambda t: WindowPlan(size=t[0], overlap=t[1], edge=t[2]))


@given(plan=plans, height=st.integers(40, 90), width=st.integers(40, 90), buffer=st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_a_tile_has_the_part_of_all_its_pixels_or_none(plan, height, width, buffer):
    split = make_split(scenes(2, (height, width)), SplitSpec(buffer=buffer))
    tiles = pd.DataFrame([(f"s{i:03d}", *w) for i in range(2) for w in windows(height, width, plan)],
                         columns=["scene", "row", "col", "height", "width"])
    tiles.index = np.arange(len(tiles))[::-1] + 7
    parts = assign(tiles, split)
    masks = {part: area_mask(split, "s000", part, height, width) for part in PARTS}
    for tile, part in zip(tiles.itertuples(), parts):
        pixels = np.s_[tile.row:tile.row + tile.height, tile.col:tile.col + tile.width]
        assert part == next((name for name, mask in masks.items() if mask[pixels].all()), "")
    assert parts.index.equals(tiles.index)
    assert (assign(tiles.sample(frac=1, random_state=0), split.sample(frac=1, random_state=1)).sort_index() == parts.sort_index()).all()


def test_a_tile_of_an_unknown_or_excluded_scene_has_no_part():
    tiles = pd.DataFrame({"scene": ["s000", "s001", "other"], "row": 0, "col": 30, "height": 8, "width": 8})
    split = make_split(scenes(2), SplitSpec(exclude=["s001"]))
    assert assign(tiles, split).tolist() == ["test", "", ""] and assign(tiles.head(0), split).empty
    assert not area_mask(split, "s001", "test", 64, 48).any()


def test_a_tile_in_two_parts_is_an_error():
    table = scenes(1)
    split = pd.concat([whole_scenes(table, ["train"]), whole_scenes(table, ["test"])])
    with pytest.raises(GeosegError, match="tiles that lie in two parts"):
        assign(pd.DataFrame({"scene": ["s000"], "row": [0], "col": [0], "height": [8], "width": [8]}), split)


def test_a_split_without_scene_sizes_still_assigns():
    split = make_split(scenes(1), SplitSpec()).drop(columns=["height", "width"])
    assert assign(pd.DataFrame({"scene": ["s000"], "row": [0], "col": [30], "height": [8], "width": [8]}), split).tolist() == ["test"]


# on disk

@given(case=draws)
@settings(max_examples=10, deadline=None)
def test_a_split_comes_back_with_its_hash(tmp_path_factory, case):
    _, _, split = draw(**case)
    path = write_split(split, tmp_path_factory.mktemp("split") / "split.parquet")
    again = read_split(path)
    assert list(again) == list(COLUMNS) and split_hash(again) == split_hash(split.sample(frac=1, random_state=0)) == split_hash(split)
    moved = again.assign(row1=again["row1"] - 1)
    assert split_hash(moved) != split_hash(again) and os.listdir(Path(path).parent) == ["split.parquet"]


def test_a_missing_or_broken_split_names_the_job(tmp_path):
    with pytest.raises(GeosegError, match="run the split job first"):
        read_split(tmp_path / "split.parquet")
    (tmp_path / "split.parquet").write_text("half a split")
    with pytest.raises(GeosegError, match="run the split job again"):
        read_split(tmp_path / "split.parquet")


# fractions

parted = st.lists(st.sampled_from(["train", "validation", "test"]), min_size=3, max_size=150).map(
    lambda parts: scenes(len(parts)).assign(split=parts))
shares = st.one_of(st.sampled_from([0.01, 0.03, 0.05, 0.07, 0.1, 0.25, 0.5]), st.floats(0.01, 1))
OFFICIAL = {"rule": "column", "column": "split"}


def by_pandas(table, share, seed=42) -> set:
    return {id for _, rows in table.groupby("split") for id in rows.sort_values("id").sample(frac=share, random_state=seed)["id"]}


@given(table=parted, share=shares, held=shares, seed=st.integers(0, 99), data=st.randoms())
@settings(max_examples=80, deadline=None)
def test_a_fraction_of_a_drawn_catalog_is_the_draw_from_the_full_table(table, share, held, seed, data):
    "pandas is the oracle; the rows of the catalog may come in any order"
    share, held = sorted((share, held))
    drawn = fraction(table, held, seed, by="split").sample(frac=1, random_state=data.randint(0, 99))
    wanted = by_pandas(table, share, seed)
    assert set(drawn["id"][drawn_within(drawn, share)]) == wanted
    first = drawn["id"].to_numpy()[growing_order(drawn)]
    assert set(first[: len(wanted)]) == wanted, "a fraction is a beginning of the one order"


@given(sizes=st.tuples(*[st.integers(20, 60)] * 3), small=st.floats(0.03, 1), large=st.floats(0.03, 1), seed=st.integers(0, 9),
       whole=st.booleans(), position=st.booleans())
@settings(max_examples=60, deadline=None)
def test_fractions_are_nested_disjoint_total_and_blind_to_the_row_order(sizes, small, large, seed, whole, position):
    names = np.repeat(["train", "validation", "test"], sizes)
    case = scenes(len(names)).assign(split=np.random.default_rng(seed).permutation(names))
    table, rule = fraction(case, 1.0, by="split") if whole else case, {} if position else OFFICIAL
    small, large = (SplitSpec(**rule, fraction=share, seed=0 if whole or share == 1 else seed) for share in sorted((small, large)))
    a, b = (divide(table, spec) for spec in (small, large))
    rows = lambda split: set(split.itertuples(index=False, name=None))
    assert rows(a.split) <= rows(b.split)
    pd.testing.assert_frame_equal(divide(table.sample(frac=1, random_state=seed), small).split, a.split)
    full = make_split(table, small.replace(fraction=1, seed=0))
    assert rows(a.split) <= rows(full), "no scene changes its part"
    assert part_table(a.split)["pixels"].sum() + a.dropped["pixels"].sum() == len(table) * 64 * 48
    out = a.dropped[a.dropped["pixels"] == 64 * 48]
    assert set(out["scene"]) == set(table["id"]) - set(a.split["scene"]) and set(out["why"]) <= {f"outside of the fraction {small.fraction:g}"}
    if whole: assert set(a.split["scene"]) == by_pandas(case, small.fraction)
    elif not position: assert a.split["part"].value_counts().to_dict() == {
        part: round(small.fraction * n) for part, n in full["part"].value_counts().items()}


def test_held_out_scenes_are_drawn_from_by_themselves_and_each_scene_is_in_or_out():
    spec = SplitSpec(hold_out=[f"s{i:03d}" for i in range(10)], fraction=0.5, seed=4)
    split = make_split(scenes(30), spec)
    assert split["scene"][split["part"] == "test"].nunique() == 5
    assert split[split["part"] != "test"].groupby("scene")["part"].agg(set).tolist() == [{"train", "val"}] * 10


def test_what_lies_too_near_goes_before_a_fraction_is_taken():
    "Else a small fraction would train on ground that a larger one leaves out"
    catalog = placed([(0, 12 * i) for i in range(40)]).assign(split=(["train"] * 4 + ["test"]) * 8)
    rule = {**OFFICIAL, "near": "drop", "distance": 25}
    for table in (catalog, fraction(catalog, 1.0, by="split")):
        parts = [make_split(table, SplitSpec(**rule, fraction=f)) for f in (0.2, 0.3, 0.6, 1)]
        assert all(set(a["scene"]) < set(b["scene"]) for a, b in zip(parts, parts[1:])) and len(parts[-1]) == 40 - 15


def test_a_fraction_that_there_is_not_is_refused_with_both_numbers():
    table = scenes(40).assign(split=["train"] * 20 + ["val"] * 10 + ["test"] * 10)
    tenth = fraction(table, 0.25, by="split")
    with pytest.raises(Refused, match="fraction 0.3: the catalog holds 0.25 of its data set; make it with a fraction of 0.3 or ask for 0.25"):
        make_split(tenth, SplitSpec(**OFFICIAL, fraction=0.3))
    assert len(make_split(tenth, SplitSpec(**OFFICIAL))) == len(make_split(tenth, SplitSpec(**OFFICIAL, fraction=0.25))) == 9
    with pytest.raises(Refused, match="fraction 0.04 of the 10 scenes of test is none"): make_split(table, SplitSpec(**OFFICIAL, fraction=0.04))
    with pytest.raises(Refused, match="seed 3: the catalog was drawn with a seed of its own"): make_split(tenth, SplitSpec(**OFFICIAL, fraction=0.2, seed=3))
    for wrong in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(Refused, match="fraction"): make(SplitSpec, {"fraction": wrong})


def test_of_catalogs_put_together_of_which_one_comes_from_no_draw_none_counts():
    table = scenes(40).assign(split=["train", "test"] * 20)
    both = pd.concat([fraction(table[:20], 1.0, by="split"), table[20:]])
    assert len(make_split(both, SplitSpec(**OFFICIAL, fraction=0.5))) == 20


@given(table=parted, share=shares, seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_fraction_is_a_prefix_of_a_shuffled_store(table, share, seed):
    table = table.assign(crs="EPSG:32633", transform=[[10.0, 0, 4e5, 0, -10.0, 5e6]] * len(table), height=64)
    spec = TileSpec(size=16, overlap=0, order="shuffled", shard_tiles=4, seed=seed)
    index, _ = plan_tiles(spec, fraction(table, 1.0, by="split"))
    wanted = by_pandas(table, share)
    assert set(index["scene"][: 12 * len(wanted)]) == wanted and sorted(index["id"]) == sorted(plan_tiles(spec, table)[0]["id"])
    plain, _ = plan_tiles(spec.replace(order="scene"), table)
    shuffled = plain["id"].to_numpy()[np.random.default_rng(seed).permutation(len(plain))]
    assert plan_tiles(spec, table)[0]["id"].tolist() == shuffled.tolist(), "where there is no draw the order is that of every release"
    assert plan_tiles(spec.replace(order="scene"), table.assign(**dict.fromkeys(DRAW, 1)))[0]["id"].tolist() == plain["id"].tolist()


# BigEarthNet

@pytest.fixture(scope="module")
def bigearthnet():
    if "GEOSEG_DATA" not in os.environ:
        pytest.skip("set GEOSEG_DATA to the folder of bigearthnet_examples")
    path = Path(os.environ["GEOSEG_DATA"]) / "bigearthnet_examples" / "metadata_v2_official.parquet"
    table = pd.read_parquet(path, columns=["patch_id", "split", "country"]).rename(columns={"patch_id": "id"})
    return table.assign(height=120, width=120, place=table["id"].str.rsplit("_", n=2).str[0])


def test_the_official_split_of_bigearthnet_divides_patches_but_not_scenes(bigearthnet):
    split = make_split(bigearthnet, SplitSpec(rule="column", column="split"))
    assert dict(split["part"].value_counts()) == {"train": 237_871, "val": 122_342, "test": 119_825}
    parts = split.groupby(split["scene"].map(bigearthnet.set_index("id")["place"]))["part"].nunique()
    assert len(parts) == 115 and (parts == 3).sum() == 100


def test_scene_and_country_disjoint_splits_of_bigearthnet(bigearthnet):
    by_scene = make_split(bigearthnet, SplitSpec(rule="random", column="place"))
    assert len(by_scene) == 480_038
    assert by_scene.groupby(by_scene["scene"].map(bigearthnet.set_index("id")["place"]))["part"].nunique().max() == 1
    values = {"train": ["Finland", "Serbia", "Lithuania", "Austria"], "val": ["Belgium", "Switzerland", "Luxembourg"]}
    unseen = make_split(bigearthnet, SplitSpec(rule="column", column="country", values=values,
                                               hold_out=["Portugal", "Ireland"], exclude=["Kosovo"]))
    assert (unseen["part"] == "test").sum() == 89_792 + 48_326 and (unseen["part"] == "val").sum() == 11_196 + 4_874 + 3_460


@pytest.mark.parametrize("rule", [{"rule": "random", "fractions": {"train": 0.5, "test": 0.5}}, {}], ids=["drawn", "by position"])
def test_test_ground_that_held_out_scenes_take_the_place_of_is_named(rule):
    "It trains nobody, and the account says why; without `test` in the rule nothing is lost"
    table = scenes(8)
    ruled, split, dropped = make_split(table, SplitSpec(**rule)), *divide(table, SplitSpec(**rule, hold_out=["s000"]))
    lost = ruled[(ruled["part"] == "test") & (ruled["scene"] != "s000")]
    assert len(lost) and split["scene"][split["part"] == "test"].tolist() == ["s000"]
    why = dropped.set_index("scene")["why"]
    assert set(why[why.str.contains("held-out scenes are the only test")].index) == set(lost["scene"])
    pixels = ((lost["row1"] - lost["row0"]) * (lost["col1"] - lost["col0"])).groupby(lost["scene"]).sum()
    assert (dropped.set_index("scene")["pixels"][pixels.index] >= pixels).all()
    if rule: assert divide(table, SplitSpec(rule="random", fractions={"train": 1.0}, hold_out=["s000"])).dropped.empty


def test_a_part_has_one_colour_wherever_it_is_drawn():
    "On the scenes and in the bar of shares"
    from geoseg_nb import comparisons, split
    assert split.PART_COLOURS is comparisons.PART_COLOURS and set(comparisons.PART_COLOURS) >= {"train", "val", "test"}
