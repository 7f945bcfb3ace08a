"Several processes train one model as one process with larger batches would"
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import pytest
from geoseg_nb import training
from geoseg_nb.checkpoint import read_card
from geoseg_nb.core import GeosegError
from geoseg_nb.loader import make_loader
from geoseg_nb.ranks import torchrun
from geoseg_nb.resuming import Preempted, resumable
from geoseg_nb.samplers import Share
from geoseg_nb.split import write_split
from geoseg_nb.storage import sha256
from geoseg_nb.task import effective, make_optimiser, make_task, set_rate
from geoseg_nb.training import fit, train
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from test_training import SPEC, house  # noqa: F401

STEADY = SPEC.replace(encoder="tu-convnext_atto", model_options={"encoder_depth": 4, "decoder_channels": [32, 16, 16, 8], "decoder_use_norm": False},
                      epochs=2, augment="none", lr=3e-4)
CHILD = """
import json, sys
from geoseg_nb.resuming import Preempted
from geoseg_nb.split import read_split
from geoseg_nb.spec import make
from geoseg_nb.tilestore import open_store
from geoseg_nb.training import TrainSpec, train
store, split, spec, folder = sys.argv[1:]
try: train(make(TrainSpec, json.loads(spec)), open_store(store), read_split(split), folder)
except Preempted: raise SystemExit(75)
"""


@given(st.integers(1, 200), st.integers(1, 5), st.integers(1, 9))
def test_each_sample_goes_once_to_one_rank_and_no_rank_is_idle(samples, ranks, batch):
    shares = [Share(rank, ranks, batch).of(list(range(samples))) for rank in range(ranks)]
    assert sorted(i for share in shares for i in share if i >= 0) == list(range(samples))
    assert [len(share) for share in shares] == [Share(rank, ranks, batch).count(samples) for rank in range(ranks)]
    steps = -(-samples // (batch * ranks))
    cut = [[share[k * batch:(k + 1) * batch] for k in range(steps)] for share in shares]
    assert all(len(share) <= steps * batch and all(share) for share in cut)
    for k in range(steps):
        together = [i for share in cut for i in share[k] if i >= 0]
        assert together == list(range(samples))[k * batch * ranks:(k + 1) * batch * ranks]


def test_a_covered_sample_has_no_label(house):  # noqa: F811
    _, store, split = house
    loader = make_loader(store, split, "train", 4)
    batch = loader.dataset.__getitems__([0, ~0, 1])
    assert (batch["label"][1] == 255).all() and (batch["label"][0] != 255).any()
    assert np.array_equal(batch["image"][0], batch["image"][1])
    ids = [i for rank in (0, 1) for b in make_loader(store, split, "val", 3, rank=rank, ranks=2) for i, label in zip(b["id"], b["label"])
           if (label != 255).any()]
    alone = [i for b in make_loader(store, split, "val", 3) for i in b["id"]]
    assert sorted(ids) == sorted(alone)


def listened(stop: threading.Event, found: set) -> None:
    "Notes every address that a process below this one listens on"
    while not stop.wait(0.1):
        for process in psutil.Process().children(recursive=True):
            try: found |= {(c.laddr.ip, c.laddr.port) for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
            except psutil.Error: continue


@contextmanager
def overheard():  # yields addresses
    "What is listened on while the block runs"
    found, stop = set(), threading.Event()
    watcher = threading.Thread(target=listened, args=(stop, found))
    watcher.start()
    try: yield found
    finally:
        stop.set()
        watcher.join()


DDP = """
import time, torch
import torch.distributed as dist
from geoseg_nb.ranks import gathered, join, leave, place, summed
{join}
torch.manual_seed(place().rank)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
optimiser = torch.optim.SGD(model.parameters(), 0.1)
for step in range(20):
    model(torch.randn(4, 3)).square().mean().backward()
    optimiser.step(); optimiser.zero_grad()
    assert summed(1) == 2
    time.sleep(0.05)
same = gathered([p.tolist() for p in model.parameters()])
assert same[0] == same[1]
leave()
"""


@pytest.mark.parametrize("how", ["join('gloo')", pytest.param("dist.init_process_group('gloo')", marks=pytest.mark.slow)], ids=["ours", "torch"])
def test_ranks_listen_to_nobody_outside_this_machine(tmp_path, monkeypatch, how):
    "The control is torch's own way to meet, which listens on every address"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "steps.py").write_text(DDP.format(join=how))
    with overheard() as found: assert torchrun(2, "steps", []) == 0
    addresses = {address for address, _ in found}
    assert addresses == {"127.0.0.1"} if how.startswith("join") else addresses - {"127.0.0.1"}


@pytest.mark.slow
def test_ranks_that_leave_end_well_each_time(tmp_path, monkeypatch):
    "A group that is held to the end of Python aborts one process in eight"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "brief.py").write_text("from geoseg_nb.ranks import gathered, join, leave\njoin('gloo')\nassert gathered(1) == [1, 1]\nleave()\n")
    assert [torchrun(2, "brief", []) for _ in range(10)] == [0] * 10


@pytest.fixture(scope="module")
def pair(house, tmp_path_factory):  # noqa: F811
    _, store, split = house
    folder = tmp_path_factory.mktemp("pair")
    began = time.monotonic()
    with overheard() as found: result = train(STEADY.replace(devices=2, batch_size=3), store, split, folder / "two", progress=False)
    assert {address for address, _ in found} == {"127.0.0.1"}
    assert result.seconds <= time.monotonic() - began + 0.1
    return result


@pytest.mark.slow
def test_two_ranks_are_one_process_with_twice_the_batch(house, pair, tmp_path):  # noqa: F811
    _, store, split = house
    one = train(STEADY.replace(batch_size=6), store, split, tmp_path, progress=False)
    for column in ("train/loss", "val/loss", "lr"):
        np.testing.assert_allclose(pair.metrics[column], one.metrics[column], rtol=1e-4)
    ours, theirs = (load_file(r.model_folder / "model.safetensors") for r in (pair, one))
    assert max(np.abs(ours[name] - theirs[name]).max() for name in theirs) < 1e-4
    other = train(STEADY.replace(batch_size=3), store, split, tmp_path / "other", progress=False)
    assert abs(other.metrics["train/loss"] - one.metrics["train/loss"]).max() > 1e-3


@pytest.mark.slow
def test_two_ranks_with_a_scaled_rate_are_one_process_with_twice_the_batch_and_the_rate(house, tmp_path):  # noqa: F811
    "And not one with the rate as it was; record and card say both"
    _, store, split = house
    spec = STEADY.replace(epochs=1)
    two = train(spec.replace(devices=2, batch_size=3, scale_lr=True), store, split, tmp_path / "two", progress=False)
    one = train(spec.replace(batch_size=6, lr=2 * spec.lr), store, split, tmp_path / "one", progress=False)
    still = train(spec.replace(batch_size=6), store, split, tmp_path / "still", progress=False)
    ours, theirs, other = (load_file(r.model_folder / "model.safetensors") for r in (two, one, still))
    np.testing.assert_allclose(two.metrics["lr"], one.metrics["lr"], rtol=1e-12)
    assert max(np.abs(ours[name] - theirs[name]).max() for name in theirs) < 1e-4 < max(np.abs(ours[name] - other[name]).max() for name in other)
    told = read_card(two.model_folder).provenance
    assert (told["effective_batch"], told["effective_lr"]) == (6, pytest.approx(6e-4)) and read_card(still.model_folder).provenance["effective_lr"] == 3e-4
    assert "| effective_batch | 6 |" in (two.model_folder / "README.md").read_text()


@pytest.mark.parametrize("devices, scale_lr, rate", [(1, False, 3e-4), (1, True, 3e-4), (4, False, 3e-4), (4, True, 12e-4)])
def test_the_rate_is_multiplied_only_when_asked_and_only_by_devices(house, devices, scale_lr, rate):  # noqa: F811
    _, store, split = house
    task = make_task(SPEC.replace(lr=3e-4, warmup=0, schedule="constant", accumulate=2), store, split)
    task = replace(task, spec=task.spec.replace(devices=devices, scale_lr=scale_lr))
    optimiser = make_optimiser(task)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(rate) == set_rate(optimiser, task, 3) == optimiser.param_groups[0]["lr"]
    assert effective(task.spec) == {"effective_batch": 8 * 2 * devices, "effective_lr": pytest.approx(rate)}


@pytest.mark.slow
def test_two_ranks_draw_and_begin_as_one(house, tmp_path):  # noqa: F811
    _, store, split = house
    spec = STEADY.replace(balance="classes", prior_bias=True, epochs=1)
    two = train(spec.replace(devices=2, batch_size=3), store, split, tmp_path / "two", progress=False)
    one = train(spec.replace(batch_size=6), store, split, tmp_path / "one", progress=False)
    for column in ("train/loss", "val/loss"):
        np.testing.assert_allclose(two.metrics[column], one.metrics[column], rtol=1e-4)


@pytest.mark.slow
def test_told_to_quit_two_ranks_leave_a_checkpoint_and_lose_no_bit(house, tmp_path):  # noqa: F811
    root, store, split = house
    spec = STEADY.replace(devices=2, batch_size=1, augment="d4_jitter", epochs=3)
    whole = train(spec, store, split, tmp_path / "whole", progress=False)
    write_split(split, root / "split.parquet")
    arguments = [str(store.url), str(root / "split.parquet"), json.dumps(spec.model_dump()), str(tmp_path / "cut")]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not (tmp_path / "cut" / "metrics.csv").exists() and child.poll() is None and time.monotonic() < deadline: time.sleep(0.01)
    child.send_signal(signal.SIGUSR1)
    said = child.communicate(timeout=100)[1].decode()
    assert child.returncode == 75, said[-3000:]
    assert len(pd.read_csv(tmp_path / "cut" / "metrics.csv")) < 3
    again = train(spec, store, split, tmp_path / "cut", progress=False)
    assert sha256(again.model_folder / "model.safetensors") == sha256(whole.model_folder / "model.safetensors")


HELD = """
import os, signal
if os.environ["RANK"] == "1":
    for number in (signal.SIGTERM, signal.SIGUSR1): os.kill(os.getpid(), number)
    os.kill(os.getppid(), signal.SIGUSR1)
from geoseg_nb.ranks import gathered, join, leave, place
noted = []
for number in (signal.SIGTERM, signal.SIGUSR1): signal.signal(number, lambda n, frame: noted.append(n))
join("gloo")
found = gathered(sorted(noted))
if place().rank == 0: print("heard", found, flush=True)
leave()
"""


def test_a_notice_to_one_rank_during_its_imports_waits_until_it_listens(tmp_path, monkeypatch, capsys):
    "And torchrun does not die of the notice that is meant for ranks"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "held.py").write_text(HELD)
    assert torchrun(2, "held", []) == 0
    assert "heard [[], [10, 15]]" in capsys.readouterr().err


STAYING = """
import pathlib, sys, time
from geoseg_nb.ranks import join, place
join("gloo")
pathlib.Path(sys.argv[1], str(place().rank)).touch()
time.sleep(300)
"""


def test_torchrun_hears_a_notice_and_ends_its_ranks(tmp_path, monkeypatch):
    "Although they were born with notices held back"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "staying.py").write_text(STAYING)
    noted, began = [], []

    def tell():
        while not all((tmp_path / rank).exists() for rank in "01"): time.sleep(0.05)
        began.append(time.monotonic())
        noted.append(signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    assert torchrun(2, "staying", [str(tmp_path)], noted) != 0
    assert time.monotonic() - began[0] < 20 and not [p for p in psutil.Process().children(recursive=True) if "staying" in " ".join(p.cmdline())]


EARLY = """
import os, signal, sys
{sooner}from geoseg_nb import training
meet = training.join
def join(backend):
    if os.environ["RANK"] == "1": {later}
    return meet(backend)
training.join = join
raise SystemExit(training.one_rank(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "when"), [("SIGTERM", "later"), ("SIGUSR1", "later"), ("SIGTERM", "sooner"), ("SIGUSR1", "sooner")])
def test_one_rank_told_to_quit_before_it_has_built_anything_stops_all_with_a_checkpoint(house, tmp_path, monkeypatch, name, when):  # noqa: F811
    "When it joins the others, or while it imports"
    _, store, split = house
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(training, "torchrun", lambda ranks, module, *rest: torchrun(ranks, "early", *rest))
    told = f"os.kill(os.getpid(), signal.{name})"
    at = {"later": told, "sooner": ""} if when == "later" else {"later": "pass", "sooner": f"if os.environ['RANK'] == '1': {told}\n"}
    (tmp_path / "early.py").write_text(EARLY.format(**at))
    with pytest.raises(Preempted, match="told to stop"):
        train(STEADY.replace(devices=2, batch_size=1), store, split, tmp_path / "cut", progress=False)
    assert resumable(tmp_path / "cut" / "checkpoints").name == "last.ckpt" and not (tmp_path / "cut" / "model").exists()


def test_a_signal_that_came_before_the_first_step_stops_after_it(house, tmp_path):  # noqa: F811
    _, store, split = house
    with pytest.raises(Preempted, match=f"stopped by signal {int(signal.SIGUSR1)} in epoch 0 after 1 batches"):
        fit(make_task(STEADY.replace(batch_size=1), store, split), tmp_path, progress=False, noted=[int(signal.SIGUSR1)])
    assert resumable(tmp_path / "checkpoints").name == "last.ckpt"


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_and_the_error_is_one_of_ours(house, tmp_path, capsys):  # noqa: F811
    _, store, split = house
    with pytest.raises(GeosegError, match="torchrun ended with"):
        train(STEADY.replace(devices=2, lr=1e30, grad_clip=0, warmup=0), store, split, tmp_path, progress=False)
    assert "the training diverged" in capsys.readouterr().err


def test_what_the_ranks_print_is_passed_on_and_a_failure_is_no_success(tmp_path, monkeypatch, capsys):
    (tmp_path / "ending.py").write_text("import os, sys\nprint('rank', os.environ['RANK'], 'ends')\nraise SystemExit(int(sys.argv[1]))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert torchrun(2, "ending", ["0"]) == 0
    said = capsys.readouterr().err
    assert "rank 0 ends" in said and "rank 1 ends" in said
    assert torchrun(2, "ending", ["3"]) != 0
