"A training survives kill -9, never sees NaN, and hides nothing in the Trainer"
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from geoseg_nb import products, segmenter, training
from geoseg_nb.catalog import CatalogSpec
from geoseg_nb.checkpoint import load_model
from geoseg_nb.core import GeosegError, Refused, make_legend
from geoseg_nb.loader import make_loader
from geoseg_nb.resuming import IDLE, Preempted, resumable
from geoseg_nb.spec import dumps_json, spec_hash
from geoseg_nb.split import SplitSpec, make_split, split_hash, write_split
from geoseg_nb.storage import sha256
from geoseg_nb.task import TrainSpec, begin_epoch, make_optimiser, make_task, rate_factor, set_rate, stalled, stalls, step_loss, validate
from geoseg_nb.tiling import Source, TileSpec, tile
from geoseg_nb.training import fit, train
from safetensors.torch import load_file

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
    assert not (folder / "model").exists() and resumable(folder / "checkpoints")
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
    with pytest.raises(OSError, match="killed here"):
        train(SPEC, store, split, tmp_path, progress=False)
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
    whole, epoch = segmenter.step_loss, []
    monkeypatch.setattr(segmenter, "begin_epoch", lambda task, k: epoch.append(k) or begin_epoch(task, k))
    monkeypatch.setattr(segmenter, "step_loss", lambda *a: whole(*a) * (float("nan") if epoch[-1] == 1 else 1))
    with pytest.raises(GeosegError, match="epoch 1: the training diverged.*not finite; the last good checkpoint is checkpoints/last.ckpt of epoch 0"):
        train(SPEC, store, split, tmp_path, progress=False)
    assert not (tmp_path / "model").exists() and len(pd.read_csv(tmp_path / "metrics.csv")) == 1
    monkeypatch.undo()
    again = train(SPEC, store, split, tmp_path, progress=False)
    assert sha256(again.model_folder / "model.safetensors") == sha256(undisturbed.model_folder / "model.safetensors")


def test_early_stopping_also_after_a_kill(house, tmp_path, monkeypatch):
    _, store, split = house
    told = iter([0.5, 0.6, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(segmenter, "validate", lambda task: {"val/loss": 1.0, "val/iou": next(told), "val/f1": 0.5, "val/accuracy": 0.5})
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
        optimiser = make_optimiser(task)
        generator, losses[precision] = begin_epoch(task, 0), []
        for step, batch in enumerate(task.train):
            set_rate(optimiser, task, step)
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


def checkpointed(house, folder, epochs=2):
    "A training that was stopped after some epochs"
    _, store, split = house
    identity = {"spec": SPEC.model_dump(exclude=set(IDLE)), "store": store.hash, "split": split_hash(split)}
    fit(make_task(SPEC.replace(epochs=epochs), store, split), folder, progress=False, owner=spec_hash(identity))
    return folder / "checkpoints" / "last.ckpt"


def test_a_cut_checkpoint_costs_an_epoch_and_not_the_training(house, undisturbed, tmp_path):
    _, store, split = house
    last = checkpointed(house, tmp_path)
    last.write_bytes(last.read_bytes()[:-5000])
    with pytest.warns(UserWarning, match="is damaged, trying the one before"):
        assert resumable(tmp_path / "checkpoints").name == "previous.ckpt"
    previous = tmp_path / "checkpoints" / "previous.ckpt"
    previous.write_bytes(previous.read_bytes()[:1000])
    with pytest.warns(UserWarning) as told:
        again = train(SPEC, store, split, tmp_path, progress=False)
    assert any("is damaged, training from the beginning" in str(t.message) for t in told)
    assert sha256(again.model_folder / "model.safetensors") == sha256(undisturbed.model_folder / "model.safetensors")


@pytest.mark.parametrize("rank", [0, 5, 40, "data.pkl"])
def test_a_flipped_byte_in_the_weights_is_noticed(house, tmp_path, rank):
    last = checkpointed(house, tmp_path, epochs=1)
    with zipfile.ZipFile(last) as parts:
        largest = sorted(parts.infolist(), key=lambda p: -p.file_size)
        part = largest[rank] if isinstance(rank, int) else next(p for p in largest if p.filename.endswith(rank))
    content = bytearray(last.read_bytes())
    content[content.index(b"PK\x03\x04", part.header_offset) + 64 + len(part.filename) + part.file_size // 2] ^= 0x10
    last.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged, training from the beginning: the checksum of .* fails"):
        assert resumable(tmp_path / "checkpoints") is None


def test_the_checkpoint_of_another_training_is_refused(house, undisturbed, tmp_path):
    _, store, split = house
    checkpointed(house, tmp_path, epochs=1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    stolen = tmp_path / "other" / "checkpoints" / "last.ckpt"
    stolen.parent.mkdir(parents=True)
    stolen.write_bytes(last.read_bytes())
    with pytest.raises(Refused, match="last.ckpt: belongs to training [0-9a-f]{12}, this is [0-9a-f]{12}; delete it"):
        train(SPEC.replace(lr=2e-3), store, split, tmp_path / "other", progress=False)
    whole = train(SPEC, store, split, tmp_path, progress=False)
    assert len(whole.metrics) == 3 and whole.metrics["train/loss"].iloc[0] == pytest.approx(undisturbed.metrics["train/loss"].iloc[0])


def test_patience_counts_validations():
    spec = SPEC.replace(patience=2, validate_every=5)
    rows = [{"epoch": e} | ({"val/iou": 0.5} if (e + 1) % 5 == 0 else {}) for e in range(15)]
    assert [stalled(rows[:n], spec) for n in (5, 9, 10, 14, 15)] == [False, False, False, False, True]


def test_a_lost_table_is_written_again(house, tmp_path):
    _, store, split = house
    first = train(SPEC.replace(epochs=1), store, split, tmp_path, progress=False)
    (tmp_path / "metrics.csv").unlink()
    again = train(SPEC.replace(epochs=1), store, split, tmp_path, progress=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "metrics.csv"), first.metrics)
    pd.testing.assert_frame_equal(again.metrics, first.metrics)


def test_the_average_is_the_exponential_one_and_is_what_is_judged_and_kept(house, tmp_path):
    _, store, split = house
    spec = SPEC.replace(epochs=2, ema=0.9, keep="last")
    result = train(spec, store, split, tmp_path, progress=False)
    task = make_task(spec.replace(ema=0.0), store, split)
    optimiser, step, mean = make_optimiser(task), 0, None
    for epoch in range(2):
        generator = begin_epoch(task, epoch)
        for batch in task.train:
            set_rate(optimiser, task, step)
            optimiser.zero_grad()
            step_loss(task, batch, generator).backward()
            torch.nn.utils.clip_grad_norm_(task.network.parameters(), spec.grad_clip)
            optimiser.step()
            step += 1
            now = {k: v.detach().double().numpy().copy() for k, v in task.network.named_parameters()}
            mean = now if mean is None else {k: 0.9 * mean[k] + 0.1 * now[k] for k in now}
    kept = load_file(result.model_folder / "model.safetensors")
    for name, value in mean.items():
        np.testing.assert_allclose(kept[name].numpy(), value, rtol=2e-4, atol=2e-6)
    assert not np.allclose(kept[name].numpy(), now[name], rtol=2e-4, atol=2e-6)
    found = validate(replace(make_task(spec.replace(ema=0.0), store, split), network=load_model(result.model_folder, "cpu").network))
    assert found["val/loss"] == pytest.approx(result.best["val/loss"], rel=1e-6)


@pytest.mark.parametrize("network", [{}, {"architecture": "SkiplessUnet", "encoder": "plain", "model_options": {"widths": [8, 16, 32]}}])
def test_an_averaged_training_resumes_to_the_same_bits(house, tmp_path, monkeypatch, network):
    _, store, split = house
    spec = SPEC.replace(epochs=2, ema=0.9, **network)
    whole = train(spec, store, split, tmp_path / "whole", progress=False)
    task = make_task(spec, store, split)
    task.train.sampler.set_epoch(0)
    whole_epoch = training.keep_epoch

    def stop(trainer, module, keeper):
        whole_epoch(trainer, module, keeper)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "keep_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(task, tmp_path / "cut", progress=False)
    monkeypatch.undo()
    again = train(spec, store, split, tmp_path / "cut", progress=False)
    assert sha256(again.model_folder / "model.safetensors") == sha256(whole.model_folder / "model.safetensors")


@pytest.mark.parametrize("mode, monitor", [("max", "val/iou"), ("min", "val/loss")])
def test_the_plateau_is_torchs_own(mode, monitor):
    scores = np.random.default_rng(5).random(200).cumsum() % 1 * 0.3 + 0.5
    spec = TrainSpec(schedule="plateau", monitor=monitor, gamma=0.5, stall=2, warmup=0, epochs=200)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, mode=mode, factor=0.5, patience=2, threshold=3e-3, threshold_mode="rel", eps=0)
    history, told = [], []
    for score in scores:
        history.append({monitor: float(score)})
        oracle.step(score)
        told.append(optimiser.param_groups[0]["lr"])
        assert 0.5 ** stalls(history, spec) == told[-1]
    assert len({*told}) > 5


def test_exponential_is_torchs_own():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.ExponentialLR(optimiser, gamma=0.9)
    spec = TrainSpec(schedule="exponential", epochs=10, warmup=0)
    for epoch in range(10):
        assert [rate_factor(epoch * 7 + step, 70, spec) for step in range(7)] == pytest.approx([optimiser.param_groups[0]["lr"]] * 7)
        optimiser.step()
        oracle.step()


def test_accumulated_batches_average_their_gradients(house, tmp_path):
    "Three batches of an epoch: one step of the mean of two gradients, one step of the last alone"
    _, store, split = house
    spec = SPEC.replace(epochs=1, batch_size=4, accumulate=2)
    task, by_hand = make_task(spec, store, split), make_task(spec, store, split)
    assert len(task.train) == 2 * task.steps - 1 if len(task.train) % 2 else len(task.train) == 2 * task.steps
    fit(task, tmp_path, progress=False)
    optimiser, generator = make_optimiser(by_hand), begin_epoch(by_hand, 0)
    batches = list(by_hand.train)
    for step in range(by_hand.steps):
        set_rate(optimiser, by_hand, step)
        optimiser.zero_grad()
        for batch in batches[2 * step:2 * step + 2]:
            (step_loss(by_hand, batch, generator) / 2).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.network.parameters(), spec.grad_clip)
        optimiser.step()
    for ours, theirs in zip(task.network.state_dict().values(), by_hand.network.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "accumulate": 2, "loss": "dice"}])
def test_on_notice_to_quit_a_checkpoint_is_left_and_no_bit_is_lost(house, tmp_path, number, options):
    _, store, split = house
    spec = SPEC.replace(epochs=2, batch_size=2, **options)
    whole = train(spec, store, split, tmp_path / "whole", progress=False)
    task = make_task(spec, store, split)
    batches, spoken = iter(range(10**6)), len(task.train) + 2

    class Warned(type(task.train)):
        def __iter__(self):
            for batch in super().__iter__():
                if next(batches) == spoken: os.kill(os.getpid(), number)
                yield batch

    task.train.__class__ = Warned
    with pytest.raises(Preempted, match=f"stopped by signal {number} in epoch 1 after [1-9]"):
        fit(task, tmp_path / "cut", progress=False)
    assert signal.getsignal(number) == signal.SIG_DFL
    assert len(pd.read_csv(tmp_path / "cut" / "metrics.csv")) == 1
    again = train(spec, store, split, tmp_path / "cut", progress=False)
    pd.testing.assert_frame_equal(again.metrics.drop(columns="epoch_seconds"), whole.metrics.drop(columns="epoch_seconds"), check_exact=True)
    assert sha256(again.model_folder / "model.safetensors") == sha256(whole.model_folder / "model.safetensors")


def test_notice_during_validation_ends_after_the_epoch(house, tmp_path, monkeypatch):
    _, store, split = house
    whole = train(SPEC, store, split, tmp_path / "whole", progress=False)
    checked = segmenter.validate

    def warned(task):
        os.kill(os.getpid(), signal.SIGTERM)
        return checked(task)

    monkeypatch.setattr(segmenter, "validate", warned)
    with pytest.raises(Preempted, match="after epoch 0"):
        train(SPEC, store, split, tmp_path / "cut", progress=False)
    monkeypatch.undo()
    again = train(SPEC, store, split, tmp_path / "cut", progress=False)
    assert sha256(again.model_folder / "model.safetensors") == sha256(whole.model_folder / "model.safetensors")


def water_share(store, split):
    "Share of water in the labelled pixels of the training tiles, counted from the pixels"
    labels = np.concatenate([batch["label"].numpy().ravel() for batch in make_loader(store, split, "train", shuffle=False)])
    return (labels == 1).sum() / (labels != 255).sum()


def first_answer(task):
    "Share of water that an untrained network sees in each pixel of a batch"
    return task.network.eval()(next(iter(task.train))["image"]).softmax(1)[:, 1].detach().numpy()


def test_the_first_answers_are_the_class_shares(house):
    _, store, split = house
    share = water_share(store, split)
    for prior in (True, False):
        assert np.allclose(first_answer(make_task(SPEC.replace(prior_bias=prior), store, split)), share, atol=1e-6) == prior


def test_where_tiles_are_drawn_the_prior_is_that_of_what_is_drawn(house):
    _, store, split = house
    task = make_task(SPEC.replace(prior_bias=True, balance="classes"), store, split)
    counts, pixels = store.index[["count_dry", "count_water"]].to_numpy()[task.train.dataset.rows], 0
    for epoch in range(100):
        task.train.sampler.set_epoch(epoch)
        pixels += counts[list(task.train.sampler)].sum(0)
    assert np.allclose(first_answer(task), pixels[1] / pixels.sum(), atol=0.005) and pixels[1] / pixels.sum() > 2 * water_share(store, split)


@pytest.mark.slow
def test_a_balanced_training_with_a_prior_loses_no_bit_on_notice(house, tmp_path):
    _, store, split = house
    spec = SPEC.replace(epochs=2, batch_size=2, prior_bias=True, balance="classes")
    whole = train(spec, store, split, tmp_path / "whole", progress=False)
    cut, batches = make_task(spec, store, split), iter(range(10**6))

    class Warned(type(cut.train)):
        def __iter__(self):
            for batch in super().__iter__():
                if next(batches) == len(cut.train) + 2: os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    cut.train.__class__ = Warned
    with pytest.raises(Preempted, match="in epoch 1 after [1-9]"):
        fit(cut, tmp_path / "cut", progress=False)
    again = train(spec, store, split, tmp_path / "cut", progress=False)
    assert sha256(again.model_folder / "model.safetensors") == sha256(whole.model_folder / "model.safetensors")


def test_running_ahead_changes_no_bit_and_leaves_no_thread(house, undisturbed, tmp_path):
    _, store, split = house
    assert SPEC.prefetch == 2
    alone = train(SPEC.replace(prefetch=0), store, split, tmp_path, progress=False)
    pd.testing.assert_frame_equal(alone.metrics.drop(columns="epoch_seconds"), undisturbed.metrics.drop(columns="epoch_seconds"), check_exact=True)
    assert sha256(alone.model_folder / "model.safetensors") == sha256(undisturbed.model_folder / "model.safetensors")
    task = make_task(SPEC, store, split)
    task.train.dataset.__class__ = type("Broken", (type(task.train.dataset),), {"__getitems__": lambda self, samples: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        fit(task, tmp_path / "broken", progress=False)
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "batches ahead"]


def test_a_training_of_a_release_that_knew_fewer_fields_goes_on(house, undisturbed, tmp_path):
    _, store, split = house
    spec = SPEC.model_dump(exclude={*IDLE, "prior_bias", "balance", "foreground", "foreground_share"})
    identity = {"spec": spec, "store": store.hash, "split": split_hash(split)}
    (tmp_path / "training.json").write_text(dumps_json(identity))
    fit(make_task(SPEC.replace(epochs=2), store, split), tmp_path, progress=False, owner=spec_hash(identity))
    before = pd.read_csv(tmp_path / "metrics.csv")
    again = train(SPEC, store, split, tmp_path, progress=False)
    assert len(again.metrics) == 3 and (again.metrics["epoch_seconds"][:2] == before["epoch_seconds"]).all(), "it went on, not from the beginning"
