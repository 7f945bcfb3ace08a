"Scores are those of scikit-learn on arrays read by plain rasterio; scenes without pixels are named, silence is an error"
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score, average_precision_score, brier_score_loss, cohen_kappa_score, confusion_matrix, f1_score, jaccard_score, roc_auc_score)
from torch import nn

from geoseg_nb import evaluate as module
from geoseg_nb.catalog import CatalogSpec, write_catalog
from geoseg_nb.checkpoint import ModelCard, load_model, save_model
from geoseg_nb.core import Band, GeosegError, Refused, Sensor, TooManyFailures, make_legend
from geoseg_nb.evaluate import EvaluateSpec, evaluate, majority, require_unseen
from geoseg_nb.jobs import parameters_cell, read_parameters
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.predict import PredictSpec, predict_scene, score_rows
from geoseg_nb.products import catalog as product_catalog
from geoseg_nb.products import hand_over, reader
from geoseg_nb.scenes import open_scene
from geoseg_nb.scoring import Scored, grouped, mean_row, score_table, summary_table
from geoseg_nb.spec import dumps_json
from geoseg_nb.split import SplitSpec, make_split, split_hash, write_split
from geoseg_nb.pools import local_cluster
from geoseg_nb.stages import Execution
from geoseg_nb.storage import sample_folder, write_atomic
from house import JOBS, ROOT

LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
OPTIONS = {"place": "{place}_{chip}"}
SPEC = EvaluateSpec(baseline="water: VH < -23", overlap=0, precision="fp32", device="cpu")
UNKNOWN = "the model's card names .* as the split of its training"
pytestmark = pytest.mark.filterwarnings(f"ignore:{UNKNOWN}")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def unet(tmp_path_factory):
    spec, sensor = ModelSpec(bands=2, classes=2), Sensor("s1", (Band("VV", "dB"), Band("VH", "dB")))
    card = ModelCard(model=spec, sensors=[sensor.as_dict()], normaliser={"kind": "none"}, legend=LEGEND.as_dict(), tile_size=64, overlap=32)
    return load_model(save_model(tmp_path_factory.mktemp("model") / "m", build_model(spec, seed=3), card))


def threshold(model, dB):
    network = nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        network.weight[:] = torch.tensor([[0.0, 0.0], [0.0, -1.0]])[..., None, None]
        network.bias[:] = torch.tensor([0.0, float(dB)])
    return replace(model, network=network.eval())


@pytest.fixture(scope="session")
def chips():
    return product_catalog(CatalogSpec(options=OPTIONS))


@pytest.fixture(scope="session")
def split(chips):
    return make_split(chips, SplitSpec(rule="position", areas={"train": {"cols": [0, 0.5]}, "test": {"cols": [0.5, 1]}}))


@pytest.fixture(scope="session")
def read():
    return reader("pairs", OPTIONS)


@pytest.fixture(scope="session")
def trained(unet, chips, split, read, tmp_path_factory):
    "An untrained U-Net is as good as a trained one where only the counting is tested"
    return evaluate(unet, chips, split, read, tmp_path_factory.mktemp("run"), SPEC.replace(without=["Sri-Lanka_534068"]))


def plain(chips, paths):
    "Labels, written classes and VH of the right halves, scene by scene, by rasterio alone"
    found = {}
    for row, path in zip(chips.itertuples(), paths, strict=True):
        with rasterio.open(row.image) as i, rasterio.open(row.mask) as m, rasterio.open(path) as p:
            image, label, classes = i.read()[:, :, 256:], m.read(1)[:, 256:], p.read(1)[:, 256:]
        counted = (label >= 0) & np.isfinite(image).all(0)
        found[row.id] = label[counted], classes[counted], image[1][counted]
    return found


def pooled(found, column):
    return np.concatenate([v[column] for v in found.values()])


def test_scores_are_those_of_scikit_learn_on_the_written_files(trained, chips):
    found, metrics = plain(chips, trained.classes), trained.metrics()
    label, classes, vh = (pooled(found, k) for k in range(3))
    assert metrics["pixels"] == len(label) == 882_680
    for mine, guess in ((metrics, classes), (metrics["baseline"], vh < -23)):
        assert mine["accuracy"] == pytest.approx(accuracy_score(label, guess))
        assert mine["kappa"] == pytest.approx(cohen_kappa_score(label, guess))
        assert mine["f1_macro"] == pytest.approx(f1_score(label, guess, average="macro"))
        assert mine["f1_weighted"] == pytest.approx(f1_score(label, guess, average="weighted"))
        assert mine["mean_iou"] == pytest.approx(jaccard_score(label, guess, average="macro"))
        assert mine["per_class"]["water"]["iou"] == pytest.approx(jaccard_score(label, guess))
        assert mine["per_class"]["water"]["support"] == label.sum()
    assert round(metrics["baseline"]["per_class"]["water"]["iou"], 2) == 0.78
    assert np.array_equal(trained.matrix, confusion_matrix(label, classes))
    assert metrics["confusion"] == confusion_matrix(label, classes).tolist()
    assert json.loads(dumps_json(metrics))["baseline"]["confusion"] == confusion_matrix(label, vh < -23).tolist()


def test_other_bands_are_neither_read_nor_hide_pixels(unet, chips, split, read, tmp_path):
    "A third band that is NaN everywhere changes nothing: the reader is asked for the model's bands and the baseline's"
    asked = []

    def wide(row, bands=None, window=None):
        asked.append(bands)
        dataset = read(row, window=window)
        return dataset if bands else dataset.assign(valid=dataset.valid & False)

    one = chips[chips.id == "Spain_7370579"]
    found = evaluate(unet, one, split[split.scene == "Spain_7370579"], wide, tmp_path, SPEC.replace(baseline="water: VV < -15"))
    found.examples(1)
    assert found.matrix.sum() > 0 and {tuple(a) for a in asked} == {("VV", "VH")}


def test_a_scene_without_the_class_has_no_number_above_it(unet, chips, split, read, tmp_path):
    never = threshold(unet, -500)
    dry = chips[chips.id == "Spain_7370579"]
    found = evaluate(never, dry, split[split.scene == "Spain_7370579"], read, tmp_path, SPEC)
    matrix = np.array([[int(found.matrix.sum()), 0], [0, 0]])
    assert found.example(found.scored[0]._replace(matrix=matrix))["note"] == "none, none mapped"


def test_scenes_and_regions_are_those_of_scikit_learn(trained, chips):
    found, metrics = plain(chips, trained.classes), trained.metrics()
    for id, (label, classes, _) in found.items():
        if len(label):
            assert metrics["scenes"][id]["accuracy"] == pytest.approx(accuracy_score(label, classes))
    for place, ids in chips.groupby("place")["id"]:
        label, classes = (np.concatenate([found[i][k] for i in ids]) for k in (0, 1))
        if len(label) and (label.any() or classes.any()):
            assert metrics["regions"][place]["per_class"]["water"]["iou"] == pytest.approx(jaccard_score(label, classes))


def test_the_summary_says_what_entered_its_means(trained, chips):
    found = plain(chips, trained.classes)
    rows = trained.summary.set_index("what")
    assert list(rows.index) == ["pooled", "mean over scenes", "mean over places", "without Sri-Lanka_534068"]
    ious = [jaccard_score(label, classes) for label, classes, _ in found.values() if label.any()]
    trivial = [jaccard_score(label, vh < -23) for label, _, vh in found.values() if label.any()]
    mean = rows.loc["mean over scenes"]
    assert mean.baseline_iou_water == pytest.approx(np.mean(trivial)) and mean.baseline_iou_water_n == len(trivial)
    assert mean.iou_water == pytest.approx(np.mean(ious)) and mean.iou_water_std == pytest.approx(np.std(ious, ddof=1)) and mean.iou_water_n == len(ious)
    rest = {k: v for k, v in found.items() if k != "Sri-Lanka_534068"}
    assert rows.loc["without Sri-Lanka_534068"].iou_water == pytest.approx(jaccard_score(pooled(rest, 0), pooled(rest, 1)))
    assert rows.scenes.tolist()[:2] == [8, 8] and rows.loc["without Sri-Lanka_534068"].scenes == 7


def test_scenes_without_a_scored_pixel_are_listed(trained):
    assert trained.unscored == trained.metrics()["unscored"] == ["Ghana_83483", "Paraguay_34417"]
    table = trained.scenes_table.set_index("what")
    assert len(table) == 10 and table.loc["Paraguay_34417", "pixels"] == 0 and np.isnan(table.loc["Paraguay_34417", "accuracy"])
    assert len(trained.classes) == 10


def test_metrics_are_plain_values(trained):
    back = json.loads(dumps_json(trained.metrics()))
    assert {"accuracy", "mean_iou", "f1_macro", "f1_weighted", "kappa", "per_class", "baseline", "scenes", "regions", "summary"} <= set(back)
    assert set(back["per_class"]["water"]) >= {"iou", "f1", "precision", "recall", "support"}
    assert set(back["baseline"]["per_class"]) == set(back["scenes"]["Spain_7370579"]["per_class"]) == {"dry", "water"}


def test_tables_are_written_as_one_csv(trained, tmp_path):
    table = pd.read_csv(trained.write_scores(tmp_path))
    assert table.groupby("kind").size().to_dict() == {"summary": 4, "region": 7, "scene": 10}


def test_examples_show_what_was_judged(trained, split):
    worst, *_, best = trained.examples(4)
    assert float(worst["note"].split()[1]) <= float(best["note"].split()[1])
    assert worst["image"].shape == (2, 512, 256) and worst["label"].shape == worst["prediction"].shape == (512, 256)


def test_a_model_that_is_the_threshold_scores_as_the_threshold(unet, chips, split, read, tmp_path):
    found = evaluate(threshold(unet, -23), chips, split, read, tmp_path, SPEC.replace(window_sizes=[128, 64]))
    assert np.array_equal(found.matrix, found.baseline_matrix)
    assert found.window_table.window.tolist() == [64, 128] and found.window_table.trained.tolist() == [True, False]
    assert found.window_table.iou.tolist() == [found.metrics()["per_class"]["water"]["iou"]] * 2


def test_the_majority_is_learned_where_the_model_was(unet, chips, split, read, tmp_path):
    found = evaluate(threshold(unet, -23), chips, split, read, tmp_path, SPEC.replace(baseline="majority"))
    assert found.baseline_matrix[:, 1].sum() == 0 and found.baseline_matrix.sum() == found.matrix.sum()
    only = chips[chips.id == "Sri-Lanka_534068"]
    sea = evaluate(threshold(unet, -23), only, split[(split.scene == "Sri-Lanka_534068")], read, tmp_path / "sea", SPEC.replace(baseline="majority"))
    assert sea.baseline_matrix[:, 0].sum() == 0


def test_the_majority_never_sees_the_scored_areas(chips, read):
    "Training areas are the sea alone and the test is dry land: counted together or on the test, dry would win"
    areas = [("Sri-Lanka_534068", "train", 0, 512, 0, 40), ("Nigeria_812045", "test", 0, 512, 0, 512), ("Spain_7370579", "test", 0, 512, 0, 512)]
    split = pd.DataFrame([(*a, 512, 512) for a in areas], columns=["scene", "part", "row0", "row1", "col0", "col1", "height", "width"])
    labels = {a[0]: label_of(chips, a[0])[:, :a[5]] for a in areas}
    dry, water = (sum(int((v == k).sum()) for v in labels.values()) for k in (0, 1))
    assert dry > water and (labels["Sri-Lanka_534068"] == 1).sum() > (labels["Sri-Lanka_534068"] == 0).sum()
    assert majority(chips, split, read, LEGEND, "test") == 1
    assert majority(chips, split[split.part == "test"], read, LEGEND, "test") == 0


def label_of(chips, id):
    with rasterio.open(chips[chips.id == id].iloc[0]["mask"]) as f: return f.read(1)


# probabilities

def test_curves_are_those_of_scikit_learn_on_the_written_probabilities(unet, chips, split, read, tmp_path):
    "Whole percent in the files. Before they were rounded the untrained network's scores lie within a few percent, so only their size is compared and not their order"
    some = chips[chips.id.isin(["Nigeria_812045", "Spain_7370579"])]
    mine, spec = split[split.scene.isin(some.id)], SPEC.replace(curves=True, window_sizes=[128])
    found = evaluate(unet, some, mine, read, tmp_path, spec)
    label, guess, water, exact = [], [], [], []
    for row, path in zip(some.itertuples(), found.classes, strict=True):
        with rasterio.open(row.image) as i, rasterio.open(row.mask) as m, rasterio.open(path) as c, rasterio.open(path.parent / "probabilities" / path.name) as p:
            counted = (m.read(1) >= 0) & np.isfinite(i.read()).all(0)
            counted[:, :256] = False
            whole = xr.DataArray(i.read(), {"band": ["VV", "VH"]}, ("band", "y", "x"))
            exact.append(np.concatenate([rows for _, rows in score_rows(unet, open_scene(whole, unet.bands), spec.prediction)], axis=1)[1, counted])
            for kept, values in ((label, m.read(1)), (guess, c.read(1)), (water, p.read(2) * 0.01)):
                kept.append(values[counted])
    label, guess, water, exact = map(np.concatenate, (label, guess, water, exact))
    curves = found.metrics()["curves"]
    each = curves["per_class"]["water"]
    assert each["support"] == label.sum() and curves["per_class"]["dry"]["support"] == (label == 0).sum()
    assert each["auc"] == pytest.approx(roc_auc_score(label, water), abs=curves["auc_within"]["water"] + 1e-9)
    assert each["auc"] == pytest.approx(roc_auc_score(label, water), abs=1e-3)
    assert each["average_precision"] == pytest.approx(average_precision_score(label, water), abs=1e-3)
    for values, near in ((water, 1e-3), (exact, 5e-3)):
        assert each["brier"] == pytest.approx(brier_score_loss(label, values), abs=near)
    sure = np.maximum(water, 1 - water)
    group = np.minimum((sure * 16).astype(int), 15)
    apart = sum(abs(sure[group == g].mean() - ((water > 0.5) == label)[group == g].mean()) * (group == g).mean() for g in np.unique(group))
    assert curves["expected_calibration_error"] == pytest.approx(apart, abs=0.01)
    assert json.loads(dumps_json(found.metrics()))["curves"]["per_class"]["water"]["support"] == label.sum()
    assert not (tmp_path / "windows/128/probabilities").exists()


def test_a_scene_is_read_once_for_each_map_and_once_for_all_its_scores(unet, chips, split, read, tmp_path, monkeypatch):
    "With curves and two windows, one of them that of the training; no map is held against itself"
    readings, compared, compare = [], [], module.compare_maps
    monkeypatch.setattr(module, "compare_maps", lambda row, path, other, *rest: compared.append(path != other) or compare(row, path, other, *rest))

    def noted(row, **options):
        readings.append("map" if not row["mask"] else "scores")
        return read(row, **options)

    chips, split = (table[table[key] == "Nigeria_812045"] for table, key in ((chips, "id"), (split, "scene")))
    found = evaluate(unet, chips, split, noted, tmp_path, SPEC.replace(curves=True, window_sizes=[64, 128]))
    assert readings == ["map", "scores", "map", "scores"] and compared == [True]
    assert found.reliability.classes.support.tolist() == found.matrix.sum(1).tolist() and found.window_table.window.tolist() == [64, 128]


def test_without_curves_nothing_is_written_and_nothing_said(trained):
    assert "curves" not in trained.metrics() and trained.reliability is None and not (trained.classes[0].parent / "probabilities").exists()


def test_averaged_orientations_are_what_is_scored(unet, chips, split, read, tmp_path):
    one = chips[chips.id == "Spain_7370579"]
    mine = split[split.scene == "Spain_7370579"]
    turned = evaluate(unet, one, mine, read, tmp_path, SPEC.replace(averaging="d4"))
    with rasterio.open(predict_scene(unet, one.image.iloc[0], tmp_path / "d4.tif", PredictSpec(averaging="d4", overlap=0, precision="fp32"))) as f:
        wanted = f.read(1)
    with rasterio.open(turned.classes[0]) as f: assert np.array_equal(f.read(1), wanted)


# ground that the model knows

def card_of(unet, split=None, areas=()):
    known = {"split": split_hash(split)} if split is not None else {}
    columns = ["scene", "row0", "row1", "col0", "col1"]
    rows = [] if split is None else split[split.part.isin(areas)][columns].to_dict("records")
    return replace(unet, card=unet.card.replace(provenance=known, training_areas=rows))


@pytest.fixture
def by_rows(chips):
    "Another split of the same chips: its test is the lower half of each, left of the middle too"
    return make_split(chips, SplitSpec(rule="position", areas={"train": {"rows": [0, 0.5]}, "test": {"rows": [0.5, 1]}}))


def test_ground_that_was_trained_on_is_no_test(unet, chips, split, by_rows, read, tmp_path):
    quick = card_of(threshold(unet, -23), split, ["train", "val"])
    with pytest.raises(Refused, match=r"Ghana_53713: test rows 256:512 columns 0:512 overlaps training rows 0:512 columns 0:256, "
                                      r"which the model knows, and 9 more such pairs; score with the split of the training"):
        evaluate(quick, chips, by_rows, read, tmp_path / "run", SPEC)
    assert not (tmp_path / "run").exists()
    beside = by_rows.assign(col0=256)
    found = evaluate(quick, chips, beside, read, tmp_path / "run", SPEC)
    assert found.note == found.metrics()["note"] == "" and found.matrix.sum() > 0


def test_edges_may_touch_and_one_pixel_may_not(unet, split):
    model, one = card_of(unet, split, ["train"]), split[split.scene == "Spain_7370579"]
    assert require_unseen(model, one.assign(row0=0, row1=512, col0=256), "test") == ""
    with pytest.raises(Refused, match="columns 255:512 overlaps"): require_unseen(model, one.assign(col0=255), "test")
    renamed = one.assign(scene="elsewhere", col0=0)
    assert require_unseen(model, renamed, "test") == ""


def test_the_split_of_the_training_is_taken_at_its_word(unet, split):
    "The hash of the card and of the split are one, whatever the order of the rows; the areas need not be compared"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = card_of(unet, split)
        assert require_unseen(model, split, "test") == require_unseen(model, split[::-1], "test") == ""
        assert require_unseen(model, split, "train") == "these pixels were trained on"
        assert require_unseen(model, split, "val") == "these pixels were used to choose the epoch"


def test_known_ground_may_be_scored_on_purpose_and_the_scores_say_so(unet, chips, split, by_rows, read, tmp_path):
    model, one = card_of(threshold(unet, -23), split, ["train"]), chips[chips.id == "Spain_7370579"]
    found = evaluate(model, one, split[split.scene == "Spain_7370579"], read, tmp_path, SPEC.replace(part="train"))
    assert found.metrics()["note"].startswith("some of these pixels were trained on")
    own = evaluate(model, chips, split, read, tmp_path, SPEC.replace(part="train"))
    assert own.metrics()["note"] == "these pixels were trained on"


@pytest.mark.filterwarnings("default")
def test_a_card_that_does_not_tell_leaves_a_doubt(unet, split, by_rows):
    for model in (card_of(unet), card_of(unet, split)):
        with pytest.warns(UserWarning, match=UNKNOWN): assert require_unseen(model, by_rows, "test") == ""


# scenes that fail

@pytest.fixture
def torn(tmp_path):
    "Three chips of which one breaks after the catalog was made"
    names = ["Nigeria_812045", "Somalia_699062", "Spain_7370579"]
    for name in names:
        for kind in ("S1/{}_S1Hand.tif", "labels/{}_LabelHand.tif"):
            (tmp_path / "in" / kind).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sample_folder() / kind.format(name), tmp_path / "in" / kind.format(name))
    chips = product_catalog(CatalogSpec(root=str(tmp_path / "in"), options=OPTIONS))
    return chips, make_split(chips, SplitSpec(rule="position")), tmp_path


def tear(folder, kind, name="Somalia_699062"):
    path = folder / "in" / kind.format(name)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("kind", ["S1/{}_S1Hand.tif", "labels/{}_LabelHand.tif"])
@pytest.mark.parametrize("baseline", ["majority", "water: VH < -23"])
def test_a_scene_that_fails_is_named_and_in_no_score(unet, read, torn, kind, baseline):
    (chips, split, folder), unet = torn, threshold(unet, -23)
    spec = SPEC.replace(baseline=baseline, window_sizes=[128], on_error="skip", max_failures=1)
    tear(folder, kind)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = evaluate(unet, chips, split, read, folder / "run", spec)
    assert [str(w.message) for w in heard if "Somalia_699062 " in str(w.message)]
    metrics = found.metrics()
    assert list(metrics["failed"]) == ["Somalia_699062"] and Path(kind.format("Somalia_699062")).name in metrics["failed"]["Somalia_699062"]
    assert set(metrics["scenes"]) == {"Nigeria_812045", "Spain_7370579"} == {p.stem for p in found.classes}
    assert metrics["summary"][-1]["what"] == "failed, in no score: Somalia_699062" and metrics["summary"][0]["scenes"] == 2
    assert [e["id"] for e in found.examples(3)] and found.window_table.window.tolist() == [64, 128]
    whole = ["Nigeria_812045", "Spain_7370579"]
    rest = evaluate(unet, chips[chips.id.isin(whole)], split[split.scene.isin(whole)], read, folder / "rest", spec.replace(on_error="raise"))
    assert np.array_equal(rest.matrix, found.matrix)
    with pytest.raises(TooManyFailures, match="max_failures=0.*Somalia_699062"):
        evaluate(unet, chips, split, read, folder / "none", spec.replace(max_failures=0))
    with pytest.raises(GeosegError, match="Somalia_699062"):
        evaluate(unet, chips, split, read, folder / "raise", spec.replace(on_error="raise"))


def test_failures_of_both_steps_count_together(unet, read, torn):
    "An image that cannot be read and a label of an unknown code: two scenes failed, although neither step saw more than one"
    (chips, split, folder), unet = torn, threshold(unet, -23)
    tear(folder, "S1/{}_S1Hand.tif")
    with rasterio.open(folder / "in/labels/Spain_7370579_LabelHand.tif", "r+") as f: f.write(np.full((1, 512, 512), 9, "int16"))
    spec = SPEC.replace(on_error="skip", max_failures=1)
    with pytest.raises(TooManyFailures, match="2 of 3 items failed"): evaluate(unet, chips, split, read, folder / "run", spec)
    found = evaluate(unet, chips, split, read, folder / "run", spec.replace(max_failures=2))
    assert sorted(found.failed) == ["Somalia_699062", "Spain_7370579"]
    tear(folder, "S1/{}_S1Hand.tif", "Nigeria_812045")
    with pytest.raises(GeosegError, match="none of the 3 scenes"): evaluate(unet, chips, split, read, folder / "run", spec.replace(max_failures=3))


def test_the_blend_is_that_of_the_scored_maps(unet, torn, read):
    chips, split, folder = torn
    chips, split = (table[table[key] == "Spain_7370579"] for table, key in ((chips, "id"), (split, "scene")))
    maps = [evaluate(unet, chips, split, read, folder / b, SPEC.replace(blend=b, overlap=32)).classes for b in ("flat", "cosine")]
    assert json.loads((folder / "flat/classes/made_by.json").read_text())["blend"] == "flat"
    assert any(a.read_bytes() != b.read_bytes() for a, b in zip(*maps))


@pytest.mark.slow
def test_dask_gives_the_same_maps_and_the_same_counts(unet, read, torn):
    chips, split, folder = torn
    model = save_model(folder / "m", unet.network, unet.card.replace(weights={}))
    spec = SPEC.replace(baseline="majority")
    alone = evaluate(model, chips, split, read, folder / "alone", spec)
    with local_cluster(Execution(backend="dask", workers=1, threads=2)) as cluster:
        shared = evaluate(model, chips, split, read, folder / "dask", spec.replace(address=cluster.scheduler_address))
    assert [p.read_bytes() for p in shared.classes] == [p.read_bytes() for p in alone.classes]
    assert dumps_json(shared.metrics()) == dumps_json(alone.metrics()) and shared.matrix.sum() > 0


@pytest.mark.parametrize("job", ["22_tile", "42_predict", "43_evaluate"])
def test_jobs_of_items_say_where_they_run_and_what_may_fail(job):
    notebook = next(p for p in JOBS if p.stem == job)
    declared = read_parameters(parameters_cell(notebook), job)
    for name in ("on_error", "max_failures", "address"):
        assert declared[name].default == Execution.model_fields[name].default, name


@pytest.mark.parametrize("job", ["tile", *(pytest.param(job, marks=pytest.mark.slow) for job in ("predict", "evaluate"))])
def test_a_job_with_a_broken_scene_ends_with_3_or_names_it(unet, torn, job):
    "Under the launcher; catalog, split and model are those of earlier jobs"
    chips, split, folder = torn
    run, spec = folder / "out", CatalogSpec(root=str(folder / "in"), options=OPTIONS)
    save_model(run / "37_train/model", unet.network, unet.card.replace(weights={}))
    made = {"10_catalog": {"catalog": write_catalog(chips, run / "10_catalog/catalog.parquet"), **hand_over(spec)},
            "11_split": {"split": write_split(split, run / "11_split/split.parquet")}, "37_train": {"model": run / "37_train/model"}}
    for name, outputs in made.items():
        write_atomic(run / name / "result.json", dumps_json({"job": name, "status": "complete", "outputs": outputs}))
    tear(folder, "S1/{}_S1Hand.tif")

    def geoseg(*values):
        words = [word for value in values for word in ("-p", value)]
        return subprocess.run([sys.executable, "-m", "geoseg_nb.cli", "run", job, "--out", str(run), *words], cwd=ROOT, capture_output=True,
                              text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})

    refused = geoseg("on_error=skip", "max_failures=0")
    assert refused.returncode == 3 and "Somalia_699062" in refused.stderr and "max_failures=0" in refused.stderr, refused.stderr[-900:]
    done = geoseg("on_error=skip", "max_failures=1", *(["curves=true"] if job == "evaluate" else []))
    assert done.returncode == 0, done.stderr[-900:]
    result = json.loads(next(run.glob(f"[0-9]*_{job}/result.json")).read_text())
    assert list(result["metrics"]["failed"]) == ["Somalia_699062"] and "Somalia_699062_S1Hand.tif" in result["metrics"]["failed"]["Somalia_699062"]
    if job == "tile": return
    assert sum("Somalia_699062 has no map" in line for line in done.stderr.splitlines()) == 1
    assert sorted(Path(p).stem for p in result["outputs"]["classes"]) == ["Nigeria_812045", "Spain_7370579"]
    if job == "evaluate":
        assert 0 <= result["metrics"]["curves"]["auc_macro"] <= 1 and result["metrics"]["seams"]["border_pixels"] > 0
        assert {"curves.png", "seams.png"} <= {p.name for p in (run / "43_evaluate/figures").iterdir()}


def test_staying_silent_is_an_error(unet, chips, split, read, tmp_path, monkeypatch):
    def holey(*args, **options):
        paths = predict_catalog(*args, **options)
        with rasterio.open(paths[0], "r+", IGNORE_COG_LAYOUT_BREAK="YES") as f:
            classes = f.read(1)
            classes[5, 300] = 255
            f.write(classes, 1)
        return paths
    predict_catalog = module.predict_catalog
    monkeypatch.setattr(module, "predict_catalog", holey)
    one = chips[chips.id == "Ghana_53713"]
    with pytest.raises(GeosegError, match="Ghana_53713: 1 labelled pixels"):
        evaluate(threshold(unet, -23), one, split[split.scene == "Ghana_53713"], read, tmp_path, SPEC)


@pytest.mark.parametrize("change,match", [
    ({"part": "val"}, "no area of part val; it has test, train"),
    ({"without": ["Sri_Lanka_534068"]}, "did you mean 'Sri-Lanka_534068'"),
    ({"baseline": "water: VH below 3"}, "as in 'water: VH < -23'"),
    ({"baseline": "ice: VH < -23"}, "known are dry, water"),
    ({"legend": make_legend({"dry": [1, "#d8c9a0"], "water": [0, "#2b6cb0"]}, ignore=[-1]).as_dict()}, "is not that of the labels"),
])
def test_refusals_come_before_any_prediction(unet, chips, split, read, tmp_path, change, match):
    with pytest.raises(Refused, match=match): evaluate(unet, chips, split, read, tmp_path, SPEC.replace(**change))
    assert not list(tmp_path.iterdir())


def test_an_unknown_code_names_the_scene(unet, chips, split, read, tmp_path):
    narrow = replace(unet, card=unet.card.replace(legend=make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}).as_dict()))
    some = chips[chips.id == "Spain_7370579"]
    with pytest.raises(GeosegError, match="Spain_7370579: codes -1"):
        evaluate(narrow, some, split[split.scene == "Spain_7370579"], read, tmp_path, SPEC)


matrices = st.lists(st.lists(st.integers(0, 50), min_size=9, max_size=9), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(counts=matrices, places=st.lists(st.sampled_from("nsew"), min_size=8, max_size=8))
def test_pooling_and_means_hold_for_any_counts(counts, places):
    names = ["a", "b", "c"]
    scored = [Scored(f"s{i}", p, np.array(c).reshape(3, 3), np.array(c).reshape(3, 3).T) for i, (c, p) in enumerate(zip(counts, places))]
    table = score_table(grouped(scored, "id"), names)
    total = sum(s.matrix for s in scored)
    assert table.pixels.sum() == total.sum() == score_table(grouped(scored, "place"), names).pixels.sum()
    union = total.sum(0) + total.sum(1) - total.diagonal()
    expected = np.divide(total.diagonal(), union, out=np.full(3, np.nan), where=union > 0)
    assert np.allclose(summary_table(scored, names).loc[0, [f"iou_{n}" for n in names]].astype(float), expected, equal_nan=True)
    means = mean_row(grouped(scored, "id"), names, "mean over scenes")
    absent = [sum(s.matrix[i].sum() == 0 for s in scored) for i in range(3)]
    for score in ("iou", "f1", "baseline_iou"):
        assert [means[f"{score}_{n}_n"] for n in names] == [len(scored) - a for a in absent]
    assert [np.isnan(means[f"iou_{n}"]) for n in names] == [a == len(scored) for a in absent]
