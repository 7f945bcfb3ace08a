"Trackers mirror a training and cannot hurt it"
import json
import os
import warnings
from typing import get_args

import pytest
from geoseg_nb import trackers
from geoseg_nb.storage import sha256
from geoseg_nb.task import TrainSpec, make_task
from geoseg_nb.training import fit, train
from test_training import SPEC, house  # noqa: F401

FAST = SPEC.replace(epochs=2, batch_size=8)


def test_the_spec_names_the_trackers_that_exist():
    (inner,) = get_args(TrainSpec.model_fields["track"].annotation)
    assert sorted(get_args(inner)) == sorted(trackers.TRACKERS)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_each_tracker_gets_every_row(house, tmp_path, monkeypatch, name):  # noqa: F811
    pytest.importorskip(name)
    for key in ("WANDB_MODE", "MLFLOW_TRACKING_URI"): monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    _, store, split = house
    result = train(FAST.replace(track=[name]), store, split, tmp_path, progress=False)
    written = [p for p in (tmp_path / "trackers").rglob("*") if p.is_file()]
    assert written
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        events = EventAccumulator(str(next(p.parent for p in written if "tfevents" in p.name)))
        events.Reload()
        assert [e.value for e in events.Scalars("val/iou")] == pytest.approx(result.metrics["val/iou"].tolist())
    if name == "mlflow":
        import mlflow
        runs = mlflow.MlflowClient((tmp_path / "trackers" / "mlruns").as_uri())
        experiment = runs.get_experiment_by_name("geoseg_nb").experiment_id
        (run,) = runs.search_runs([experiment])
        assert [m.value for m in runs.get_metric_history(run.info.run_id, "val/iou")] == pytest.approx(result.metrics["val/iou"].tolist())
    if name == "wandb":
        assert any("offline-run" in str(p) for p in written)


def test_a_tracker_that_raises_changes_nothing(house, tmp_path, monkeypatch):  # noqa: F811
    _, store, split = house
    plain = train(FAST, store, split, tmp_path / "plain", progress=False)

    def dead(folder, name):
        raise ConnectionError("no route to https://ann:hunter2@host/api")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", dead)
    with pytest.warns(UserWarning, match="tracker wandb failed and is left out, the training goes on: ConnectionError: no route to https://host/api"):
        tracked = train(FAST.replace(track=["wandb"]), store, split, tmp_path / "tracked", progress=False)
    assert sha256(tracked.model_folder / "model.safetensors") == sha256(plain.model_folder / "model.safetensors")
    assert json.loads((tmp_path / "tracked" / "training.json").read_text())["result"]["best"]["val/iou"] == plain.best["val/iou"]
    assert os.listdir(tmp_path / "tracked").count("trackers") == 0


def test_another_tracker_is_no_other_training(house, tmp_path):  # noqa: F811
    _, store, split = house
    first = train(FAST, store, split, tmp_path, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(FAST.replace(track=["tensorboard"]), store, split, tmp_path, progress=False).best == first.best


def test_a_hanging_tracker_ends_with_the_training(house, tmp_path, monkeypatch):  # noqa: F811
    import threading

    _, store, split = house
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", lambda folder, name: threading.Event().wait())
    monkeypatch.setattr(trackers, "PATIENCE", 0.3)
    with pytest.warns(UserWarning, match="tracker mlflow did not answer in time"):
        keeper = fit(make_task(FAST.replace(track=["mlflow"]), store, split), tmp_path, progress=False)
    assert len(keeper.history) == 2
