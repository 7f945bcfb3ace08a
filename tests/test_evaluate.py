"Scores are those of scikit-learn on arrays read by plain rasterio; scenes without pixels are named, silence is an error"
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, f1_score, jaccard_score
from torch import nn

from geoseg_nb import evaluate as module
from geoseg_nb.catalog import CatalogSpec
from geoseg_nb.checkpoint import ModelCard, load_model, save_model
from geoseg_nb.core import Band, GeosegError, Refused, Sensor, make_legend
from geoseg_nb.evaluate import EvaluateSpec, evaluate
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.products import catalog as product_catalog
from geoseg_nb.products import reader
from geoseg_nb.scoring import Scored, grouped, mean_row, score_table, summary_table
from geoseg_nb.spec import dumps_json
from geoseg_nb.split import SplitSpec, make_split

LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
OPTIONS = {"place": "{place}_{chip}"}
SPEC = EvaluateSpec(baseline="water: VH < -23", overlap=0, precision="fp32", device="cpu")
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
    assert list(rows.index) == ["pooled", "mean over scenes", "mean over regions", "without Sri-Lanka_534068"]
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


def test_staying_silent_is_an_error(unet, chips, split, read, tmp_path, monkeypatch):
    def holey(model, catalog, reader, folder, spec):
        paths = predict_catalog(model, catalog, reader, folder, spec)
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
