"Rules: every way to divide a catalog is disjoint, total, blind to the order of the rows and nested over fractions"
import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyproj import Geod
from shapely.ops import nearest_points
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from geoseg_nb.areas import ground, metres_apart, near_on_ground, on_grids
from geoseg_nb.blocks import block_names, pieces, pixel_metres, region_parts
from geoseg_nb.catalog import located
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.jobs import load_recipe, plan_steps
from geoseg_nb.rules import dominant_class, fold_table, strata_of
from geoseg_nb.spec import make
from geoseg_nb.split import PARTS, SPLITTERS, SplitSpec, area_mask, check_split, divide, make_split, part_table, whole_scenes

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def field_of_chips(n, seed=0, crs="EPSG:32633", size=10, gap=5) -> gpd.GeoDataFrame:
    "Chips of 100 m scattered on a lattice of 150 m, with a place, a class and counts of two classes each"
    rng = np.random.default_rng(seed)
    cells = rng.permutation(400)[:n]
    pixel = 10.0 if crs != "EPSG:4326" else 1e-4
    x0, y0 = (500_000, 5_000_000) if crs != "EPSG:4326" else (15.0, 45.0)
    step = pixel * (size + gap)
    transforms = [[pixel, 0, x0 + step * (c % 20), 0, -pixel, y0 - step * (c // 20)] for c in cells]
    table = pd.DataFrame({"id": [f"s{c:03d}" for c in cells], "height": size, "width": size, "crs": crs, "transform": transforms})
    table["place"] = [f"p{c % 20 // 4}{c // 100}" for c in cells]
    table["soil"] = rng.choice(["clay", "sand", "peat"], n, p=[0.6, 0.3, 0.1])
    water = rng.integers(0, 101, n)
    return located(table.assign(count_dry=100 - water, count_water=water, count_ignored=0))


RULES = {
    "random": {"rule": "random", "fractions": SHARES},
    "by place": {"rule": "random", "fractions": SHARES, "column": "place"},
    "stratified": {"rule": "stratified", "fractions": SHARES, "stratify": "soil"},
    "dominant": {"rule": "stratified", "fractions": SHARES},
    "binned": {"rule": "stratified", "fractions": SHARES, "stratify": "count_water", "bins": 3},
    "stratified places": {"rule": "stratified", "fractions": SHARES, "stratify": "soil", "group": "place"},
    "folds": {"rule": "folds", "folds": 4},
    "stratified folds": {"rule": "folds", "folds": 4, "stratify": "soil"},
    "grouped folds": {"rule": "folds", "folds": 4, "group": "place"},
    "grouped stratified folds": {"rule": "folds", "folds": 4, "group": "place", "stratify": "soil"},
    "leave one out": {"rule": "leave_one_out", "fold": 1},
    "blocks": {"rule": "blocks", "block": 600, "fractions": SHARES},
    "blocks apart": {"rule": "blocks", "block": 600, "fractions": SHARES, "distance": 80},
    "region": {"rule": "region", "column": "soil", "values": {"test": ["peat"]}},
}


@given(rule=st.sampled_from(sorted(RULES)), n=st.integers(80, 140), seed=st.integers(0, 50),
       crs=st.sampled_from(["EPSG:32633", "EPSG:4326"]))
@settings(max_examples=40, deadline=None)
def test_every_rule_is_disjoint_total_and_blind_to_the_row_order(rule, n, seed, crs):
    catalog = field_of_chips(n, seed, crs)
    spec = SplitSpec(**{**RULES[rule], **({"seed": seed} if RULES[rule]["rule"] not in ("leave_one_out", "region") else {})})
    split, dropped = divide(catalog, spec)
    assert set(split["part"]) <= set(PARTS) and not split.duplicated(["scene", "part", "row0", "col0"]).any()
    pixels = (split["row1"] - split["row0"]) * (split["col1"] - split["col0"])
    assert pixels.sum() + dropped["pixels"].sum() == n * 100
    assert set(split["scene"]) | set(dropped["scene"]) == set(catalog["id"]) and split.groupby("scene")["part"].nunique().max() == 1
    assert dropped["why"].ne("").all()
    again, lost = divide(catalog.sample(frac=1, random_state=seed), spec)
    pd.testing.assert_frame_equal(again, split)
    pd.testing.assert_frame_equal(lost, dropped)
    key = {"by place": "place", "stratified places": "place", "grouped folds": "place", "grouped stratified folds": "place",
           "leave one out": "place"}.get(rule)
    if key:
        assert split.groupby(split["scene"].map(catalog.set_index("id")[key]))["part"].nunique().max() == 1


@given(rule=st.sampled_from(["random", "by place", "stratified", "binned", "stratified places", "blocks"]), seed=st.integers(0, 40),
       tenths=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_training_is_nested_over_fractions_and_the_test_stays(rule, seed, tenths):
    catalog = field_of_chips(120, seed)
    parts = []
    for share in sorted((tenths / 10, 0.8)):
        shares = {"train": share, "val": round(0.9 - share, 1), "test": 0.1}
        try:
            split = make_split(catalog, SplitSpec(**{**RULES[rule], "fractions": shares, "seed": seed}))
        except Refused as error:
            assert "too few" in str(error)
            assume(False)
        parts.append({part: set(split["scene"][split["part"] == part]) for part in PARTS})
    assert parts[0]["train"] <= parts[1]["train"] and parts[0]["test"] == parts[1]["test"]


# strata

@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), seed=st.integers(0, 30), train=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_each_part_is_within_one_scene_of_its_share_in_every_stratum(sizes, seed, train):
    soil = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    table = pd.DataFrame({"id": [f"t{i:03d}" for i in range(len(soil))], "soil": soil, "height": 8, "width": 8})
    shares = {"train": train / 10, "val": round(1 - train / 10, 1) / 2, "test": round(1 - train / 10, 1) / 2}
    try:
        split = make_split(table, SplitSpec(rule="stratified", stratify="soil", fractions=shares, seed=seed))
    except Refused as error:
        assert "too few" in str(error) and sum(sizes) < 60
        return
    counts = pd.crosstab(split["scene"].map(table.set_index("id")["soil"]), split["part"]).reindex(columns=PARTS, fill_value=0)
    for part, share in shares.items():
        assert (abs(counts[part] - share * counts.sum(axis=1)) < 1 + 1e-6).all(), counts


def test_many_strata_of_one_scene_do_not_all_go_to_training():
    table = pd.DataFrame({"id": [f"t{i:04d}" for i in range(1000)], "soil": [f"s{i}" for i in range(1000)], "height": 8, "width": 8})
    counts = make_split(table, SplitSpec(rule="stratified", stratify="soil"))["part"].value_counts()
    assert abs(counts["train"] - 700) < 60 and abs(counts["test"] - 150) < 45


def test_the_dominant_class_is_that_of_numpy_and_bins_are_those_of_numpy():
    catalog = field_of_chips(100, 3)
    catalog.loc[5, ["count_dry", "count_water"]] = 0
    wanted = np.where(catalog["count_water"] > catalog["count_dry"], "water", "dry")
    wanted[5] = "none"
    assert list(dominant_class(catalog)) == list(wanted)
    edges = np.quantile(catalog["count_water"], [1 / 3, 2 / 3])
    assert list(strata_of(catalog, "count_water", 3)) == [str(i) for i in np.searchsorted(edges, catalog["count_water"])]
    with pytest.raises(Refused, match="no label counts in the catalog to stratify by; run the catalog job"):
        make_split(catalog.drop(columns=["count_dry", "count_water"]), SplitSpec(rule="stratified"))
    with pytest.raises(Refused, match="bins of 'soil', which holds no numbers"):
        make_split(catalog, SplitSpec(rule="stratified", stratify="soil", bins=2))


# folds, beside those of scikit-learn

def fold_sizes(folds):
    return sorted(np.unique(folds, return_counts=True)[1])


@given(n=st.integers(10, 90), k=st.integers(2, 7), seed=st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_shuffled_and_stratified_folds_are_as_even_as_those_of_scikit_learn(n, k, seed):
    catalog = field_of_chips(n, seed)
    theirs = np.concatenate([np.full(len(test), i) for i, (_, test) in enumerate(KFold(k, shuffle=True, random_state=seed).split(catalog))])
    assert fold_sizes(fold_table(catalog, SplitSpec(rule="folds", folds=k, seed=seed))["fold"]) == fold_sizes(theirs)
    table = fold_table(catalog, SplitSpec(rule="folds", folds=k, seed=seed, stratify="soil")).set_index("scene")["fold"]
    soil = catalog.set_index("id")["soil"]
    counts = pd.crosstab(soil, table.reindex(soil.index)).reindex(columns=range(k), fill_value=0)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1 and np.ptp(counts.sum().to_numpy()) <= 1
    if soil.value_counts().min() >= k:
        folds = np.empty(n, int)
        for i, (_, test) in enumerate(StratifiedKFold(k, shuffle=True, random_state=seed).split(soil, soil)): folds[test] = i
        assert (np.sort(pd.crosstab(soil.to_numpy(), folds).to_numpy()) == np.sort(counts.to_numpy())).all()


@given(n=st.integers(40, 140), k=st.integers(2, 4), seed=st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_grouped_folds_are_as_even_as_those_of_scikit_learn(n, k, seed):
    catalog = field_of_chips(n, seed)
    place, soil = (catalog.set_index("id")[name] for name in ("place", "soil"))
    ours = fold_table(catalog, SplitSpec(rule="folds", folds=k, seed=seed, group="place")).set_index("scene")["fold"].reindex(place.index)
    theirs = np.empty(n, int)
    for i, (_, test) in enumerate(GroupKFold(k).split(place, groups=place)): theirs[test] = i
    assert pd.Series(ours.to_numpy()).groupby(place.to_numpy()).nunique().max() == 1
    assert fold_sizes(ours) == fold_sizes(theirs)
    both = fold_table(catalog, SplitSpec(rule="folds", folds=k, seed=seed, group="place", stratify="soil")).set_index("scene")["fold"]
    assert both.groupby(place.reindex(both.index)).nunique().max() == 1 and both.nunique() == k


def test_grouped_and_stratified_folds_are_about_as_even_as_those_of_scikit_learn():
    "Spread of the shares of each stratum over the folds, over twenty catalogs"
    spread = {"ours": [], "scikit-learn": [], "groups alone": []}
    for seed in range(20):
        catalog = field_of_chips(300, seed)
        place, soil = (catalog.set_index("id")[name] for name in ("place", "soil"))
        spec = SplitSpec(rule="folds", folds=4, seed=seed, group="place", stratify="soil")
        made = {"ours": fold_table(catalog, spec), "groups alone": fold_table(catalog, spec.replace(stratify=""))}
        folds = {name: table.set_index("scene")["fold"].reindex(place.index).to_numpy() for name, table in made.items()}
        folds["scikit-learn"] = np.empty(300, int)
        for i, (_, test) in enumerate(StratifiedGroupKFold(4).split(soil, soil, place)): folds["scikit-learn"][test] = i
        for name, fold in folds.items():
            counts = pd.crosstab(soil.to_numpy(), fold)
            spread[name].append(counts.div(counts.sum(axis=1), axis=0).std(axis=1).mean())
    mean = {name: np.mean(values) for name, values in spread.items()}
    assert mean["ours"] < 1.25 * mean["scikit-learn"] and mean["ours"] < 0.8 * mean["groups alone"], mean


@given(k=st.integers(3, 6), seed=st.integers(0, 20), rule=st.sampled_from(["folds", "stratified folds", "grouped folds"]))
@settings(max_examples=12, deadline=None)
def test_over_all_folds_every_scene_is_tested_once_and_validated_once(k, seed, rule):
    catalog = field_of_chips(90, seed)
    splits = [make_split(catalog, SplitSpec(**{**RULES[rule], "folds": k, "fold": i, "seed": seed})) for i in range(k)]
    for part in ("test", "val"):
        assert sorted(pd.concat([split["scene"][split["part"] == part] for split in splits])) == sorted(catalog["id"])
    alone = make_split(catalog, SplitSpec(**{**RULES[rule], "folds": k, "seed": seed, "fold_parts": ["val"]}))
    assert set(alone["part"]) == {"train", "val"}


@pytest.mark.parametrize("fields, told", [
    ({"folds": 4, "fold": 4}, "fold 4 of 4: folds count from 0 to 3"), ({"folds": 2}, "leave a fold for training"),
    ({"fold_parts": []}, "leave a fold for training"), ({"fold_parts": ["test", "train"]}, "name val, test or both"),
    ({"fold_parts": ["val", "val"]}, "name val, test or both"), ({"fold_parts": ["vall"]}, "did you mean 'val'"),
    ({"group": "place", "folds": 99}, "are too few for 99 folds"), ({"group": "plaec"}, "did you mean 'place'"),
    ({"hold_out": ["s001"]}, "no scene or place|pass fold_parts"),
])
def test_wrong_folds_are_refused_by_name(fields, told):
    with pytest.raises(Refused, match=told):
        make_split(field_of_chips(60), make(SplitSpec, {"rule": "folds", **fields}))


def test_held_out_scenes_stay_out_of_the_folds():
    catalog = field_of_chips(60)
    place = catalog["place"][0]
    split = make_split(catalog, SplitSpec(rule="folds", folds=3, fold_parts=["val"], hold_out=[place]))
    held = set(catalog["id"][catalog["place"] == place])
    assert set(split["scene"][split["part"] == "test"]) == held
    sizes = [(make_split(catalog, SplitSpec(rule="folds", folds=3, fold=i, fold_parts=["val"], hold_out=[place]))["part"] == "val").sum() for i in range(3)]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == 60 - len(held)


def test_one_group_is_left_out_by_number_or_by_name():
    catalog = field_of_chips(100)
    names = sorted(catalog["place"].unique())
    for i, name in enumerate(names):
        split = make_split(catalog, SplitSpec(rule="leave_one_out", fold=i))
        assert set(split["scene"][split["part"] == "test"]) == set(catalog["id"][catalog["place"] == name])
        pd.testing.assert_frame_equal(split, make_split(catalog, SplitSpec(rule="leave_one_out", left_out=name)))
    with pytest.raises(Refused, match="soil 'pea'.*did you mean 'peat'"):
        make_split(catalog, SplitSpec(rule="leave_one_out", group="soil", left_out="pea"))


def test_a_matrix_over_folds_is_planned_by_the_launcher(tmp_path):
    jobs = "jobs: [10_catalog, 11_split, 22_tile, 37_train, 43_evaluate]\n"
    (tmp_path / "recipe.yml").write_text("title: three folds\n" + jobs + "matrix:\n  11_split.fold: [0, 1, 2]\n")
    (tmp_path / "11_split.yml").write_text("rule: folds\nfolds: 3\ngroup: place\n")
    steps = [step for step in plan_steps(load_recipe(tmp_path), tmp_path / "run") if step.job == "11_split"]
    assert [step.run.name for step in steps] == ["fold-0", "fold-1", "fold-2"]
    catalog = field_of_chips(60)
    tested = [split["scene"][split["part"] == "test"] for split in (make_split(catalog, make(SplitSpec, step.values)) for step in steps)]
    assert sorted(pd.concat(tested)) == sorted(catalog["id"])


# blocks

def granules(n=3, size=3_000, overlap=400) -> gpd.GeoDataFrame:
    transforms = [[10, 0, 500_000 + 10 * (size - overlap) * i, 0, -10, 5_000_000 - 30 * i] for i in range(n)]
    return located(pd.DataFrame({"id": [f"g{i}" for i in range(n)], "height": size, "width": size, "crs": "EPSG:32633", "transform": transforms}))


@given(block=st.integers(3_000, 15_000), distance=st.sampled_from([0, 150, 900]), buffer=st.integers(0, 40), seed=st.integers(0, 30))
@settings(max_examples=15, deadline=None)
def test_blocks_cut_granules_and_keep_their_distance(block, distance, buffer, seed):
    catalog = granules()
    spec = SplitSpec(rule="blocks", block=block, distance=distance, buffer=buffer, seed=seed, fractions=SHARES)
    try:
        split, dropped = divide(catalog, spec)
    except Refused as error:
        assert "too few" in str(error)
        assume(False)
    boxes = ground(on_grids(split, catalog), 0)
    part = split["part"].to_numpy()
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        here, there = (shapely.union_all(boxes[part == name]) for name in (a, b))
        assert shapely.area(shapely.intersection(here, there)) < 1 and (here.is_empty or there.is_empty or here.distance(there) >= max(0.998 * distance, 10 * buffer) - 1e-6)
    for id in catalog["id"]:
        assert sum(area_mask(split, id, name, 3_000, 3_000).astype(int) for name in PARTS).max() <= 1
    held = sum(area_mask(split, id, name, 3_000, 3_000).sum() for id in catalog["id"] for name in PARTS)
    assert held + dropped["pixels"].sum() == 3 * 3_000**2
    if not distance and not buffer:
        assert held > 0.9 * 3 * 3_000**2


def test_the_strip_is_taken_from_the_training_side():
    catalog = granules(1)
    plain, apart = (make_split(catalog, SplitSpec(rule="blocks", block=5_000, distance=d, seed=1)) for d in (0, 500))
    pixels = {name: part_table(split).set_index("part")["pixels"] for name, split in (("plain", plain), ("apart", apart))}
    assert pixels["apart"]["test"] == pixels["plain"]["test"] and pixels["apart"]["train"] < pixels["plain"]["train"]


def test_a_new_scene_moves_no_block():
    catalog = field_of_chips(140, crs="EPSG:4326")
    some, every = (block_names(pieces(rows, 700), 700) for rows in (catalog.head(90), catalog))
    assert list(every.head(90)) == list(some) and 10 < every.nunique() < 60


@given(latitude=st.floats(-70, 70), size=st.sampled_from([2_000, 30_000]))
@settings(max_examples=40, deadline=None)
def test_blocks_on_the_globe_are_as_large_as_they_say(latitude, size):
    "Walk a parallel and a meridian by geodesics and count the blocks"
    geod, names = Geod(ellps="WGS84"), []
    for azimuth in (90, 180):
        points = [geod.fwd(20, latitude, azimuth, d)[:2] for d in np.linspace(0, 12 * size, 240)]
        transforms = [[1e-6, 0, x, 0, -1e-6, y] for x, y in points]
        table = pd.DataFrame({"scene": "s", "crs": "EPSG:4326", "transform": transforms, "row0": 0, "row1": 1, "col0": 0, "col1": 1})
        names.append(block_names(table, size))
    assert 12 <= names[1].nunique() <= 14 and names[0].nunique() >= 11


def test_pixels_are_measured_on_the_ground():
    table = pd.DataFrame({"crs": ["EPSG:4326", "EPSG:32633", "EPSG:2263"], "height": 100, "width": 100,
                          "transform": [[1e-4, 0, 15, 0, -1e-4, 60.005], [20, 0, 5e5, 0, -10, 5e6], [10, 0, 1e6, 0, -10, 2e5]]})
    geod = Geod(ellps="WGS84")
    degree = [geod.inv(15, 60, 15 + 1e-4, 60)[2], geod.inv(15, 60, 15, 60 + 1e-4)[2]]
    assert np.allclose(pixel_metres(table), [degree, [20, 10], [3.048006, 3.048006]], rtol=1e-4)


@pytest.mark.parametrize("fields, told", [
    ({}, "needs the side of a block"), ({"block": 1e9}, "too few"), ({"block": -5}, "block"), ({"block": 100, "unit": "km"}, "unit"),
    ({"block": 100, "folds": 3}, "rule 'blocks' does not read folds; it reads fractions, seed, block, unit and column"),
    ({"blok": 100}, "did you mean 'block'"),
])
def test_wrong_blocks_are_refused_by_name(fields, told):
    with pytest.raises(Refused, match=told):
        make_split(field_of_chips(60), make(SplitSpec, {"rule": "blocks", **fields}))
    with pytest.raises(Refused, match="catalog has no crs"):
        make_split(pd.DataFrame({"id": ["a"], "height": 8, "width": 8}), SplitSpec(rule="blocks", block=100))


def test_blocks_in_pixels_are_blocks_in_metres_where_pixels_are_of_one_size():
    catalog = field_of_chips(140)
    px, m = (make_split(catalog, SplitSpec(rule="blocks", seed=2, **size)) for size in ({"block": 60, "unit": "px"}, {"block": 600}))
    pd.testing.assert_frame_equal(px, m)
    coarse = catalog.assign(transform=[[t[0] * (1 + i % 2), *t[1:4], t[4] * (1 + i % 2), t[5]] for i, t in enumerate(catalog["transform"])])
    with pytest.raises(Refused, match="pixels are 10 m to 20 m high; give the block in metres"):
        make_split(coarse, SplitSpec(rule="blocks", block=60, unit="px"))


# metres

@given(lon=st.floats(-179, 179), lat=st.floats(-75, 75), dx=st.floats(-0.3, 0.3), dy=st.floats(-0.2, 0.2))
@settings(max_examples=100, deadline=None)
def test_distances_are_geodesics(lon, lat, dx, dy):
    a, b = shapely.box(lon, lat, lon + 0.01, lat + 0.01), shapely.box(lon + dx, lat + dy, lon + dx + 0.02, lat + dy + 0.005)
    [ours] = metres_apart(np.array([a]), np.array([b]))
    scale = np.cos(np.radians(lat))
    flat = [shapely.transform(p, lambda xy: xy * [scale, 1]) for p in (a, b)]
    p, q = (shapely.transform(point, lambda xy: xy / [scale, 1]) for point in nearest_points(*flat))
    assert ours == pytest.approx(Geod(ellps="WGS84").inv(p.x, p.y, q.x, q.y)[2], rel=5e-3, abs=0.01)


@given(n=st.integers(10, 60), seed=st.integers(0, 30), metres=st.sampled_from([30, 55, 120, 400]), crs=st.sampled_from(["EPSG:32633", "EPSG:4326"]))
@settings(max_examples=40, deadline=None)
def test_what_is_too_near_is_what_geos_measures_in_utm(n, seed, metres, crs):
    catalog = field_of_chips(n, seed, crs)
    split = whole_scenes(catalog, np.random.default_rng(seed).choice(PARTS, n))
    found = near_on_ground(split, catalog, metres)
    flat = catalog.to_crs("EPSG:32633").geometry.to_numpy()
    apart = shapely.distance(flat[:, None], flat[None])
    wrong = {frozenset((catalog["id"][i], catalog["id"][j])) for i in range(n) for j in range(i)
             if split["part"].iloc[i] != split["part"].iloc[j] and apart[i, j] < 0.997 * metres}
    ours = {frozenset(pair) for pair in zip(found["scene_a"], found["scene_b"])}
    assert wrong <= ours and all(apart[tuple(catalog.index[catalog["id"].isin(pair)])] < metres * 1.001 for pair in ours)


def test_scenes_on_both_sides_of_the_antimeridian_are_neighbours():
    transforms = [[1e-3, 0, west, 0, -1e-3, -16] for west in (179.985, -179.995)]
    fiji = located(pd.DataFrame({"id": ["east", "west"], "height": 10, "width": 10, "crs": "EPSG:4326", "transform": transforms}))
    split = whole_scenes(fiji, ["train", "test"])
    [apart] = near_on_ground(split, fiji, 3_000)["apart"]
    assert apart == pytest.approx(Geod(ellps="WGS84").inv(179.995, -16.01, -179.995, -16.01)[2], rel=1e-3)


@given(rule=st.sampled_from(["random", "stratified", "folds", "region"]), seed=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_every_rule_refuses_neighbours_or_drops_them(rule, seed):
    "Chips 50 m apart: at 60 m the draw leaks; dropping takes the lesser side and names the better one"
    catalog = field_of_chips(120, seed)
    with pytest.raises(GeosegError, match="nearer to another part than 60 m"):
        make_split(catalog, SplitSpec(**RULES[rule], distance=60))
    split, dropped = divide(catalog, SplitSpec(**RULES[rule], distance=60, near="drop"))
    plain = make_split(catalog, SplitSpec(**RULES[rule]))
    assert near_on_ground(split, catalog, 60).empty and len(dropped) and dropped["why"].str.startswith("too near to ").all()
    assert set(split["scene"][split["part"] == "test"]) == set(plain["scene"][plain["part"] == "test"])
    was = plain.set_index("scene")["part"]
    for row in dropped.itertuples():
        part, scene = row.why.split()[-2:]
        assert was[scene] == part and PARTS.index(part) > PARTS.index(was[row.scene]) and scene in set(split["scene"])
    with pytest.raises(Refused, match="a distance in metres needs the crs"):
        check_split(plain, distance=60)


def test_overlaps_are_found_whatever_the_rule():
    catalog = field_of_chips(60)
    again = catalog.assign(id=catalog["id"] + "_later", place="later")
    both = pd.concat([catalog, again], ignore_index=True)
    for rule in ("random", "stratified", "folds", "leave one out"):
        with pytest.raises(GeosegError, match="share ground with another part"):
            make_split(both, SplitSpec(**RULES[rule]))
    for rule in ("blocks", "region"):
        make_split(both, SplitSpec(**RULES[rule]))


# regions

@pytest.fixture
def provinces(tmp_path):
    "West and east of a border through the lattice of chips, and a region without a chip; in another CRS than the catalog"
    x, y = 500_000 + 150 * 9.3, 5_000_000
    shapes = {"west": shapely.box(499_000, y - 9_000, x, y + 900), "east": shapely.box(x, y - 9_000, 520_000, y + 900),
              "far": shapely.box(0, 0, 1, 1)}
    table = gpd.GeoDataFrame({"name": list(shapes), "code": [1, 2, 3]}, geometry=list(shapes.values()), crs="EPSG:32633")
    paths = {"gpkg": tmp_path / "regions.gpkg", "geojson": tmp_path / "regions.geojson"}
    table.to_file(paths["gpkg"])
    table.to_crs("EPSG:4326").to_file(paths["geojson"])
    return paths


@pytest.mark.parametrize("kind", ["gpkg", "geojson"])
def test_scenes_have_the_part_of_their_region_and_none_across_a_border(provinces, kind):
    catalog = field_of_chips(200)
    spec = SplitSpec(rule="region", regions=str(provinces[kind]), values={"test": ["east"]})
    split, dropped = divide(catalog, spec)
    edge = 500_000 + 150 * 9.3
    left = np.array([t[2] for t in catalog["transform"]])
    wanted = np.where(left >= edge, "test", np.where(left + 100 <= edge, "train", "none"))
    found = catalog["id"].map(split.set_index("scene")["part"]).fillna("none")
    assert list(found) == list(wanted) and set(dropped["why"]) == {"across the border of a test region"}
    assert set(dropped["scene"]) == set(catalog["id"][wanted == "none"]) and (wanted == "none").any()
    both = divide(catalog, spec.replace(values={"train": ["west"], "val": ["east"]}))
    assert set(both.dropped["scene"]) == set(dropped["scene"]) and set(both.split["part"]) == {"train", "val"}
    only = divide(catalog, spec.replace(values={"train": ["2"]}, column="code"))
    assert set(only.dropped["why"]) == {"across the border of a train region", "outside all regions"}


def test_a_scene_that_shares_only_a_line_with_a_region_is_outside_and_one_on_its_edge_inside():
    region = gpd.GeoDataFrame({"part": ["test"], "name": ["r"]}, geometry=[shapely.box(0, 0, 2, 2)], crs="EPSG:4326")
    beside, inside, across = shapely.box(2, 0, 3, 1), shapely.box(1, 1, 2, 2), shapely.box(1.5, 0, 2.5, 1)
    parts, why = region_parts(np.array([beside, inside, across]), region)
    assert list(parts) == ["train", "test", ""] and why[2] == "across the border of a test region"


@pytest.mark.parametrize("fields, told", [
    ({"values": {"test": ["eastt"]}}, "no region 'eastt'.*did you mean 'east'"), ({"values": {}}, "needs values"),
    ({"values": {"test": ["east"], "val": ["east"]}}, "one region is named twice"), ({"column": "nam", "values": {"test": ["east"]}}, "did you mean 'name'"),
    ({"regions": "nowhere.gpkg", "values": {"test": ["east"]}}, "regions nowhere.gpkg cannot be read as polygons"),
])
def test_wrong_regions_are_refused_by_name(provinces, fields, told):
    with pytest.raises(Refused, match=told):
        make_split(field_of_chips(60), SplitSpec(**{"rule": "region", "regions": str(provinces["gpkg"]), **fields}))


def test_regions_without_a_crs_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="crs"):
        gpd.GeoDataFrame({"name": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)]).to_file(tmp_path / "plain.gpkg")
    with pytest.raises(Refused, match="have no CRS"):
        make_split(field_of_chips(60), SplitSpec(rule="region", regions=str(tmp_path / "plain.gpkg"), values={"test": ["a"]}))


def test_countries_of_a_column_are_regions():
    catalog = field_of_chips(60)
    split, dropped = divide(catalog, SplitSpec(rule="region", column="soil", values={"train": ["clay"], "test": ["peat"]}))
    assert set(dropped["scene"]) == set(catalog["id"][catalog["soil"] == "sand"]) and set(dropped["why"]) == {"in no region"}


# the rule as parameters

def test_every_rule_tells_which_fields_it_reads():
    values = {"fractions": SHARES, "seed": 3, "values": {"test": ["a"]}, "areas": {"test": {"cols": [0, 1]}}, "stratify": "soil", "bins": 2,
              "group": "place", "folds": 7, "fold": 1, "fold_parts": ["val"], "left_out": "a", "block": 5.0, "unit": "px", "regions": "a"}
    for rule in SPLITTERS:
        for name, value in values.items():
            try:
                make(SplitSpec, {"rule": rule, name: value})
            except Refused as error:
                assert f"rule '{rule}' does not read {name}; it reads " in str(error)
    with pytest.raises(Refused, match="rule 'position' does not read seed"):
        make(SplitSpec, {"seed": 1})


def test_the_names_of_the_rules_are_those_of_the_job():
    notebook = json.loads((Path(__file__).parents[1] / "nbs" / "jobs" / "11_split.ipynb").read_text(encoding="utf-8"))
    [line] = [line for cell in notebook["cells"] for line in cell["source"] if line.startswith("rule: str")]
    assert all(rule in line for rule in SPLITTERS) and set(SPLITTERS) == set(SplitSpec.model_fields["rule"].annotation.__args__)
