"A training survives kill -9, never sees NaN, and hides nothing in the Trainer"
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from geoseg_nb import products, training
from geoseg_nb.catalog import CatalogSpec
from geoseg_nb.checkpoint import load_model
from geoseg_nb.core import GeosegError, Refused, make_legend
from geoseg_nb.split import SplitSpec, make_split, write_split
from geoseg_nb.storage import sha256
from geoseg_nb.task import TrainSpec, begin_epoch, make_optimiser, make_task, rate_factor, step_loss, validate
from geoseg_nb.tiling import Source, TileSpec, tile
from geoseg_nb.training import fit, resumable, train

torch.set_num_threads(1)
SMALL = {"encoder": "tu-mobilenetv3_small_050", "model_options": {"decoder_channels": [32, 16, 16, 8, 8]}}
SPEC = TrainSpec(**SMALL, epochs=3, batch_size=8, precision="fp32", device="cpu", augment="d4_jitter")
CHILD = """
import sys, torch
from geoseg_nb.split import read_split
from geoseg_nb.spec import make, read_config
from geoseg_nb.tilestore import open_store
from geoseg_nb.training import TrainSpec, train
torch.set_num_threads(1)
store, split, spec, folder = sys.argv[1:]
train(make(TrainSpec, read_config(spec)), open_store(store), read_split(split), folder)
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "A store of two chips and a split with validation below"
    root = tmp_path_factory.mktemp("house")
    catalog = products.catalog(CatalogSpec())
    catalog = catalog[catalog.id.isin(["Spain_7370579", "USA_905409"])].reset_index(drop=True)
    areas = {"train": {"rows": [0, 0.5], "cols": [0, 0.25]}, "val": {"rows": [0.75, 1], "cols": [0, 0.25]}}
    split = make_split(catalog, SplitSpec(areas=areas, buffer=0))
    legend = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
    source = Source(products.reader("pairs", {}), products.sensors("pairs", {}), legend)
    store = tile(TileSpec(size=64, overlap=0), catalog, source, root / "floods.zarr")
    return root, store, split


@pytest.fixture(scope="module")
def undisturbed(house):
    root, store, split = house
    return train(SPEC, store, split, root / "undisturbed", progress=False)


def run_until(command, done):
    "Starts a training and kills it the hard way as soon as a condition holds"
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not done() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, child.stderr.read().decode()[-2000:]


def test_kill_9_in_the_middle_of_an_epoch_changes_nothing(house, undisturbed):
    root, store, split = house
    (root / "spec.json").write_text(SPEC.model_dump_json())
    write_split(split, root / "split.parquet")
    folder = root / "killed"
    command = [sys.executable, "-c", CHILD, str(store.url), str(root / "split.parquet"), str(root / "spec.json"), str(folder)]
    run_until(command, (folder / "metrics.csv").exists)
    assert not (folder / "model").exists() and resumable(folder / "checkpoints" / "last.ckpt")
    rows = len(pd.read_csv(folder / "metrics.csv"))
    assert rows < SPEC.epochs
    again = train(SPEC, store, split, folder, progress=False)
    pd.testing.assert_frame_equal(again.metrics.drop(columns="epoch_seconds"), undisturbed.metrics.drop(columns="epoch_seconds"), check_exact=True)
    assert sha256(again.model_folder / "model.safetensors") == sha256(undisturbed.model_folder / "model.safetensors")


@pytest.mark.parametrize("call", [0, 1, 3])
def test_dying_in_any_write_changes_nothing(house, undisturbed, monkeypatch, tmp_path, call):
    "Each epoch writes best.ckpt, last.ckpt, metrics.csv; the write number `call` dies half-way"
    _, store, split = house
    whole, seen = training.TensorFiles.save_checkpoint, []

    def dying(self, checkpoint, path, storage_options=None):
        seen.append(path)
        if len(seen) == call + 1:
            Path(path).with_suffix(".half").write_bytes(b"half")
            raise OSError("killed here")
        whole(self, checkpoint, path, storage_options)

    monkeypatch.setattr(training.TensorFiles, "save_checkpoint", dying)
    try:
        train(SPEC, store, split, tmp_path, progress=False)
    except OSError:
        monkeypatch.undo()
    again = train(SPEC, store, split, tmp_path, progress=False)
    assert sha256(again.model_folder / "model.safetensors") == sha256(undisturbed.model_folder / "model.safetensors")


def test_the_record_is_as_promised(undisturbed):
    table, folder = undisturbed.metrics, undisturbed.model_folder.parent
    assert table.columns.tolist() == ["epoch", "train/loss", "lr", "val/loss", "val/iou", "val/f1", "val/accuracy", "epoch_seconds"]
    assert np.isfinite(table.to_numpy()).all() and table["epoch"].tolist() == [0, 1, 2]
    assert undisturbed.best["val/iou"] == table["val/iou"].max() and undisturbed.cpu_seconds > 0 and not undisturbed.notes
    assert not list(folder.rglob("lightning_logs")) and not list(folder.rglob(".geoseg-tmp-*"))
    assert load_model(undisturbed.model_folder, "cpu").card.tile_size == 64


def test_a_finished_training_answers_at_once_and_touches_nothing(house, undisturbed, monkeypatch):
    root, store, split = house
    monkeypatch.setattr(training, "make_task", None)
    before = {p: p.stat().st_mtime_ns for p in undisturbed.model_folder.rglob("*")}
    again = train(SPEC, store, split, root / "undisturbed")
    assert again.best == undisturbed.best and {p: p.stat().st_mtime_ns for p in before} == before


def test_nothing_is_said_and_the_callers_chance_is_left_alone(house, tmp_path, capfd):
    _, store, split = house
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(make_task(SPEC.replace(epochs=1), store, split), tmp_path, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert not [w for w in told if "lightning" in str(w.filename)] and capfd.readouterr() == ("", "")


def test_another_spec_starts_afresh_and_says_so(house, tmp_path):
    _, store, split = house
    train(SPEC.replace(epochs=1), store, split, tmp_path, progress=False)
    with pytest.warns(UserWarning, match="lr 0.001 -> 0.002"):
        other = train(SPEC.replace(epochs=1, lr=2e-3), store, split, tmp_path, progress=False)
    assert len(other.metrics) == 1 and load_model(other.model_folder, "cpu").card.training["lr"] == 2e-3
    (aside,) = tmp_path.glob("replaced-*")
    assert load_model(aside, "cpu").card.training["lr"] == 1e-3


def test_the_device_and_the_workers_decide_nothing(house, undisturbed, monkeypatch):
    root, store, split = house
    monkeypatch.setattr(training, "make_task", None)
    assert train(SPEC.replace(workers=2, device="auto"), store, split, root / "undisturbed").best == undisturbed.best


def test_a_kill_while_a_folder_changes_hands_adopts_no_foreign_checkpoint(house, tmp_path, monkeypatch):
    _, store, split = house
    train(SPEC.replace(epochs=1), store, split, tmp_path, progress=False)
    whole, gone = Path.unlink, []

    def dying(self, missing_ok=False):
        if gone: raise KeyboardInterrupt
        gone.append(self.name)
        whole(self, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="starting afresh"):
        patch.setattr(Path, "unlink", dying)
        train(SPEC.replace(epochs=1, lr=2e-3), store, split, tmp_path, progress=False)
    assert (tmp_path / "training.json").is_file()
    with pytest.warns(UserWarning, match="lr 0.001 -> 0.002"):
        other = train(SPEC.replace(epochs=1, lr=2e-3), store, split, tmp_path, progress=False)
    fresh = train(SPEC.replace(epochs=1, lr=2e-3), store, split, tmp_path / "fresh", progress=False)
    assert sha256(other.model_folder / "model.safetensors") == sha256(fresh.model_folder / "model.safetensors")


def test_the_rate_is_that_of_the_last_step(house, undisturbed):
    _, store, split = house
    steps = make_task(SPEC, store, split).steps
    expected = [SPEC.lr * rate_factor(steps * (epoch + 1) // 3 - 1, steps, SPEC) for epoch in range(3)]
    assert undisturbed.metrics["lr"].tolist() == pytest.approx(expected) and expected[-1] > 0


def test_divergence_stops_the_training_and_keeps_the_last_good_epoch(house, undisturbed, tmp_path, monkeypatch):
    _, store, split = house
    whole, epoch = training.step_loss, []
    monkeypatch.setattr(training, "begin_epoch", lambda task, k: epoch.append(k) or begin_epoch(task, k))
    monkeypatch.setattr(training, "step_loss", lambda *a: whole(*a) * (float("nan") if epoch[-1] == 1 else 1))
    with pytest.raises(GeosegError, match="epoch 1: the training diverged.*not finite; the last good checkpoint is checkpoints/last.ckpt of epoch 0"):
        train(SPEC, store, split, tmp_path, progress=False)
    assert not (tmp_path / "model").exists() and len(pd.read_csv(tmp_path / "metrics.csv")) == 1
    monkeypatch.undo()
    again = train(SPEC, store, split, tmp_path, progress=False)
    assert sha256(again.model_folder / "model.safetensors") == sha256(undisturbed.model_folder / "model.safetensors")


def test_early_stopping_also_after_a_kill(house, tmp_path, monkeypatch):
    _, store, split = house
    told = iter([0.5, 0.6, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(training, "validate", lambda task: {"val/loss": 1.0, "val/iou": next(told), "val/f1": 0.5, "val/accuracy": 0.5})
    spec = SPEC.replace(epochs=6, patience=2)
    keeper = fit(make_task(spec, store, split), tmp_path, progress=False)
    assert [row["val/iou"] for row in keeper.history] == [0.5, 0.6, 0.4, 0.3]
    assert len(fit(make_task(spec, store, split), tmp_path, progress=False).history) == 4
    assert train(spec, store, split, tmp_path, progress=False).best["epoch"] == 1


def test_validation_may_be_rare_or_absent(house, tmp_path):
    _, store, split = house
    rare = train(SPEC.replace(validate_every=2), store, split, tmp_path / "rare", progress=False)
    assert rare.metrics["val/iou"].notna().tolist() == [False, True, True]
    none = train(SPEC.replace(epochs=1, patience=1), store, split[split.part == "train"], tmp_path / "none", progress=False)
    assert none.metrics["val/iou"].isna().all() and none.best["epoch"] == 0 and "no labelled val tile" in none.notes[0]


def test_the_loss_is_finite_without_a_label(house):
    _, store, split = house
    for loss in ("cross_entropy", "weighted_cross_entropy", "dice"):
        task = make_task(SPEC.replace(loss=loss), store, split)
        batch = next(iter(task.train))
        value = step_loss(task, {**batch, "label": torch.full_like(batch["label"], 255)}, begin_epoch(task, 0))
        value.backward()
        assert value.item() == 0 and all(torch.isfinite(p.grad).all() for p in task.network.parameters() if p.grad is not None)


def test_bf16_learns_what_fp32_learns(house):
    _, store, split = house
    losses = {}
    for precision in ("fp32", "bf16"):
        task = make_task(SPEC.replace(precision=precision, augment="none"), store, split)
        optimiser, _ = make_optimiser(task)
        generator, losses[precision] = begin_epoch(task, 0), []
        for batch in task.train:
            loss = step_loss(task, batch, generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[precision].append(loss.item())
    exact, brain = np.array(losses["fp32"]), np.array(losses["bf16"])
    assert abs(exact[0] - brain[0]) < 0.02 * exact[0] and abs(exact.mean() - brain.mean()) < 0.1 * exact.mean()


def test_scores_equal_those_of_scikit_learn(house):
    from sklearn.metrics import accuracy_score, f1_score, jaccard_score

    _, store, split = house
    task = make_task(SPEC, store, split)
    found = validate(task)
    target, answer = [], []
    with torch.inference_mode():
        for batch in task.val:
            seen = batch["label"] != 255
            target.append(batch["label"][seen])
            answer.append(task.network.eval()(batch["image"]).argmax(1)[seen])
    target, answer = torch.cat(target), torch.cat(answer)
    assert found["val/iou"] == pytest.approx(jaccard_score(target, answer, average="macro"), abs=1e-3)
    assert found["val/f1"] == pytest.approx(f1_score(target, answer, average="macro"), abs=1e-3)
    assert found["val/accuracy"] == pytest.approx(accuracy_score(target, answer), abs=1e-3)


def test_the_schedule_is_torchs_own():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=80)
    for step in range(80):
        assert rate_factor(20 + step, 100, TrainSpec(warmup=0.2)) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        oracle.step()


def test_what_cannot_work_is_refused_before_anything_is_written(house, tmp_path):
    _, store, split = house
    with pytest.raises(Refused, match="device on this machine 'cuda:7'"):
        train(SPEC.replace(device="cuda:7"), store, split, tmp_path / "device", progress=False)
    for field in ("architecture", "encoder", "loss", "augment", "normaliser", "precision", "monitor", "keep"):
        with pytest.raises(Refused, match="nonsense"):
            SPEC.replace(**{field: "nonsense"})


class Bomb:
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return (open, (self.mark, "w"))


def test_a_checkpoint_that_holds_code_is_refused_and_not_executed(house, tmp_path):
    _, store, split = house
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    torch.save({"epoch": 0, "optimizer_states": [Bomb(tmp_path / "executed")]}, last)
    with pytest.raises(Refused, match="nothing of it was executed"):
        train(SPEC, store, split, tmp_path, progress=False)
    assert not (tmp_path / "executed").exists()


def test_a_torn_checkpoint_is_passed_over(house, undisturbed, tmp_path):
    _, store, split = house
    fit(make_task(SPEC.replace(epochs=1), store, split), tmp_path, progress=False)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-5000])
    with pytest.warns(UserWarning, match="is torn, training from the beginning"):
        again = train(SPEC, store, split, tmp_path, progress=False)
    assert sha256(again.model_folder / "model.safetensors") == sha256(undisturbed.model_folder / "model.safetensors")
