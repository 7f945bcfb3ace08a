"Items are done once, failures are named, a job is on file only when it is complete"
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import geoseg_nb
from geoseg_nb.core import GeosegError, GridMismatch, Refused, TooManyFailures
from geoseg_nb.pools import dask_client, local_cluster
from geoseg_nb.stages import (
    Progress,
    Execution,
    Outcome,
    earlier,
    failures,
    git_commit,
    open_job,
    output,
    record,
    run_items,
    tally,
)

THREADS = Execution()
SKIP = Execution(on_error="skip", max_failures=1000)


@pytest.fixture(scope="module")
def on_dask():
    with local_cluster(Execution(backend="dask")) as cluster:
        yield Execution(backend="dask", address=cluster.scheduler_address)


@pytest.fixture(params=["threads", "dask"])
def execution(request):
    return THREADS if request.param == "threads" else request.getfixturevalue("on_dask")


def double_unless_bad(item):
    if "bad" in item:
        raise KeyError(item)
    return item * 2


# --- outcomes ---------------------------------------------------------------------------------------------------------


def test_threads_and_dask_give_the_same_outcomes(on_dask):
    items = ["a", "bad1", "b", "c", "bad2"]
    skip = {"on_error": "skip", "max_failures": 2}
    on_threads = run_items(double_unless_bad, items, THREADS.replace(**skip))
    assert on_threads == run_items(double_unless_bad, items, on_dask.replace(**skip))
    assert [o.id for o in on_threads] == items
    assert tally(on_threads) == {"done": 3, "skipped": 0, "failed": 2}
    assert failures(on_threads) == {"bad1": "KeyError: 'bad1'", "bad2": "KeyError: 'bad2'"}


@given(st.lists(st.sampled_from(["done", "fails", "new"]), max_size=30), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_item_ends_as_it_must(kinds, workers):
    begun = []

    def do(item):
        begun.append(item)
        if item[1] == "fails":
            raise GeosegError("no")
        return item[0]

    outcomes = run_items(do, enumerate(kinds), SKIP.replace(workers=workers), key=lambda item: f"i{item[0]}",
                         done=lambda item: "before" if item[1] == "done" else None)
    expected = {"done": ("skipped", "before", ""), "fails": ("failed", None, "no")}
    assert [(o.status, o.value, o.reason) for o in outcomes] == [
        expected.get(kind, ("done", i, "")) for i, kind in enumerate(kinds)]
    assert sorted(begun) == [(i, kind) for i, kind in enumerate(kinds) if kind != "done"], "each once, none done before"


def test_no_items_start_nothing():
    assert run_items(len, [], Execution(backend="dask", address="tcp://127.0.0.1:1")) == []


def test_no_more_threads_than_workers():
    now, most, lock = 0, 0, threading.Lock()

    def do(item):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with lock:
            now -= 1

    run_items(do, range(30), Execution(workers=3))
    assert most == 3


def test_equal_ids_are_refused_before_anything_runs():
    begun = []
    with pytest.raises(Refused, match="2 ids are given more than once: a, b"):
        run_items(begun.append, ["a", "b", "a", "b", "c"], THREADS)
    assert begun == []


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failing_item_is_named(execution):
    with pytest.raises(GeosegError, match="^bad: KeyError: 'bad'$") as caught:
        run_items(double_unless_bad, ["a", "bad", "b"], execution)
    assert caught.value.item == "bad"
    assert isinstance(caught.value.__cause__, KeyError)
    frames = []
    trace = caught.value.__cause__.__traceback__
    while trace:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "double_unless_bad" in frames, "the traceback leads to the line that failed"


def mismatch(item):
    raise GridMismatch(f"{item}: 10 m and 20 m", item=item)


def test_the_kind_of_our_errors_is_kept(execution):
    with pytest.raises(GridMismatch, match="^a: 10 m and 20 m$") as caught:
        run_items(mismatch, ["a"], execution)
    assert caught.value.item == "a"


@pytest.mark.parametrize("bad, allowed", [(0, 0), (1, 1), (7, 7), (7, 9)])
def test_as_many_failures_as_allowed(bad, allowed):
    items = [f"bad{i}" for i in range(bad)] + ["a", "b"]
    outcomes = run_items(double_unless_bad, items, Execution(on_error="skip", max_failures=allowed))
    assert tally(outcomes) == {"done": 2, "skipped": 0, "failed": bad}


def test_one_failure_too_many_ends_the_run(execution):
    items = [f"bad{i}" for i in range(7)] + ["a"]
    with pytest.raises(TooManyFailures) as caught:
        run_items(double_unless_bad, items, execution.replace(on_error="skip", max_failures=6))
    text = str(caught.value)
    assert text.startswith("7 of 8 items failed, max_failures=6: ") and text.endswith("; and 2 more")
    assert len(re.findall(r"bad\d: KeyError: 'bad\d'", text)) == 5


def test_stopping_early_begins_nothing_more():
    begun = []

    def do(item):
        begun.append(item)
        time.sleep(0.01)
        raise OSError("disk gone")

    with pytest.raises(TooManyFailures, match="OSError: disk gone"):
        run_items(do, range(1000), Execution(workers=2, on_error="skip", max_failures=3))
    assert len(begun) <= 6
    begun.clear()
    with pytest.raises(GeosegError, match="OSError: disk gone"):
        run_items(do, range(1000), Execution(workers=2))
    assert len(begun) <= 3


def test_an_exit_is_not_a_failure_of_an_item():
    def do(item):
        raise SystemExit(4)

    with pytest.raises(SystemExit):
        run_items(do, ["a"], SKIP)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")
        self.lock = threading.Lock()


def raise_unpicklable(item):
    if item == "error":
        raise Unpicklable("torn", "file")
    return threading.Lock() if item == "value" else item


def test_what_cannot_travel_is_a_failure_with_a_reason(on_dask):
    execution = on_dask.replace(on_error="skip", max_failures=2)
    outcomes = run_items(raise_unpicklable, ["a", "error", "value", "b"], execution)
    assert [o.status for o in outcomes] == ["done", "failed", "failed", "done"]
    assert "torn file" in outcomes[1].reason
    assert outcomes[2].reason and "\n" not in outcomes[2].reason


# --- resuming ---------------------------------------------------------------------------------------------------------


class Squares:
    "Writes one file an item and logs each call"

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, item):
        with open(self.folder / "calls", "a") as calls:
            calls.write(f"{item}\n")
        (self.folder / f"{item}.txt").write_text(str(item**2))
        return item**2

    def done(self, item):
        path = self.folder / f"{item}.txt"
        return int(path.read_text()) if path.exists() else None


def test_resuming_does_what_is_missing_and_nothing_else(execution, tmp_path):
    squares = Squares(tmp_path)
    first = run_items(squares, range(8), execution, done=squares.done)
    (tmp_path / "3.txt").unlink()
    (tmp_path / "calls").unlink()
    second = run_items(squares, range(8), execution, done=squares.done)
    assert [o.value for o in first] == [o.value for o in second] == [i**2 for i in range(8)]
    assert (tmp_path / "calls").read_text() == "3\n"
    assert tally(second) == {"done": 1, "skipped": 7, "failed": 0}


def test_a_value_that_is_false_counts_as_done():
    assert run_items(str, [0], THREADS, done=lambda item: 0) == [Outcome("0", "skipped", 0)]


# --- Dask -------------------------------------------------------------------------------------------------------------


def kills_its_worker(item):
    name, folder = item
    if name == "always" or name == "once" and not (folder / "once").exists():
        (folder / "once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def test_an_item_is_done_again_when_its_worker_died(tmp_path):
    items = [(name, tmp_path) for name in ("a", "once", "b", "c")]
    outcomes = run_items(kills_its_worker, items, Execution(backend="dask"), key=lambda item: item[0])
    assert [o.value for o in outcomes] == ["a", "once", "b", "c"]
    assert (tmp_path / "once").exists()


def test_an_item_that_always_kills_its_worker_is_reported_and_the_rest_done(tmp_path):
    items = [(name, tmp_path) for name in ("a", "always", "b", "c", "d", "e")]
    execution = Execution(backend="dask", on_error="skip", max_failures=1)
    outcomes = run_items(kills_its_worker, items, execution, key=lambda item: item[0])
    assert [o.value for o in outcomes] == ["a", None, "b", "c", "d", "e"]
    assert list(failures(outcomes)) == ["always"]
    assert failures(outcomes)["always"].startswith("its worker died every time: killed, out of memory")


def test_every_port_of_a_cluster_is_local():
    with dask_client(Execution(backend="dask", workers=1)):
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3 and set(listening) == {"127.0.0.1"}


def test_dask_leaves_its_own_account_of_the_work(tmp_path, capsys):
    report = tmp_path / "dask.html"
    outcomes = run_items(len, ["a", "bb"], Execution(backend="dask", workers=1, report=str(report)))
    page = report.read_text(encoding="utf-8")
    assert [o.value for o in outcomes] == [1, 2] and "Dask Performance Report" in page and "clocked" in page
    assert "Dask dashboard: http://127.0.0.1:" in capsys.readouterr().err


def test_an_account_that_cannot_be_kept_costs_no_work_and_hides_no_error(tmp_path):
    lost = str(tmp_path)  # a folder
    with pytest.warns(UserWarning, match="no Dask report .*directory"):
        assert [o.value for o in run_items(len, ["a"], Execution(backend="dask", workers=1, report=lost))] == [1]
    with pytest.raises(GeosegError, match="7: TypeError"):
        run_items(len, [7], Execution(backend="dask", workers=1, report=lost))


def test_a_scheduler_that_is_not_there_is_refused():
    with pytest.raises(Refused, match="no Dask scheduler answers at tcp://127.0.0.1:1"):
        run_items(len, ["a"], Execution(backend="dask", address="tcp://127.0.0.1:1"))


def test_dask_does_not_become_the_default_scheduler(on_dask):
    import distributed

    with dask_client(on_dask), pytest.raises(ValueError):
        distributed.default_client()


@pytest.mark.parametrize("values", [{"workers": 0}, {"backend": "ray"}, {"max_failures": -1}, {"memory": "4GB"}, {"report": "dask.html"},
                                    {"address": "tcp://127.0.0.1:1"}, {"backend": "dask", "memory": "lots"}])
def test_an_execution_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError):
        Execution(**values)


def test_the_module_does_not_import_dask():
    heavy = {"dask", "distributed", "torch", "rasterio", "pandas"}
    code = f"import sys, geoseg_nb.stages; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_has_rate_and_remaining_time(capsys):
    run_items(time.sleep, [0.45 + i / 1000 for i in range(12)], Execution(workers=2), desc="tile")
    shown = capsys.readouterr().err
    assert re.search(r"tile:.*12/12 \[\d+:\d+<\d+:\d+, .*(it/s|s/it)", shown), shown


def test_progress_counts_what_the_items_hold_and_takes_earlier_ones_for_no_speed(capsys):
    run_items(time.sleep, [0.9, 0.9001, 0.9002, 0.9003], Execution(workers=1), done=lambda s: 1 if s == 0.9 else None, desc=Progress("tile", "tile", lambda s: 64))
    shown = capsys.readouterr().err
    rates = [float(rate) for rate in re.findall(r"256/256 .* (\d+\.\d+)tile/s", shown)]
    assert rates and 55 < rates[-1] < 75, shown


def test_short_work_is_silent(capsys):
    run_items(len, ["a", "b"], THREADS)
    assert capsys.readouterr() == ("", "")


# --- jobs -------------------------------------------------------------------------------------------------------------

KEYS = {"job", "status", "params", "metrics", "outputs", "seconds", "peak_rss_mb", "geoseg_nb", "git"}


def finish_job(run, name, **values):
    job = open_job(name, run, values)
    (job.folder / "store").mkdir(exist_ok=True)
    return record(job, {}, {"store": job.folder / "store", "classes": [job.folder / "store"], "plain": {"a": 1}})


def test_a_result_reads_back_as_it_was_recorded(tmp_path):
    job = open_job("22_tile", tmp_path / "run", Execution(workers=3))
    assert not (job.folder / "result.json").exists(), "a job under way has no result"
    (job.folder / "store").mkdir()
    with job.profile.step("tile"):
        pass
    metrics = {"tiles": 7, "per_class": {"water": {"iou": float("nan")}}}
    written = record(job, metrics, {"store": str(job.folder / "store")})
    result = json.loads((tmp_path / "run/22_tile/result.json").read_text())
    assert result == written and set(result) == KEYS
    assert result["params"] == json.loads((job.folder / "params.json").read_text()) == Execution(workers=3).model_dump()
    assert result["metrics"] == {"tiles": 7, "per_class": {"water": {"iou": None}}}
    assert (result["job"], result["status"], result["outputs"]) == ("22_tile", "complete", {"store": "22_tile/store"})
    assert result["geoseg_nb"] == geoseg_nb.__version__ and result["seconds"] >= 0 and result["peak_rss_mb"] > 1
    assert json.loads((job.folder / "profile.json").read_text())["steps"][0]["name"] == "tile"
    assert str(tmp_path) not in (job.folder / "result.json").read_text()
    assert sorted(path.name for path in job.folder.iterdir()) == [
        "params.json", "profile.json", "profile.log", "result.json", "store"]


def test_a_run_folder_can_be_moved(tmp_path):
    finish_job(tmp_path / "here", "22_tile")
    shutil.move(tmp_path / "here", tmp_path / "there")
    result = earlier(tmp_path / "there", "tile")
    assert output(result, "store") == tmp_path / "there/22_tile/store"
    assert output(result, "classes") == [tmp_path / "there/22_tile/store"]


def test_a_run_reached_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    job = open_job("22_tile", tmp_path / "link", {})
    store = tmp_path / "real/22_tile/store"
    store.mkdir()
    assert record(job, {}, {"store": store})["outputs"] == {"store": "22_tile/store"}


def test_earlier_finds_a_shared_job_one_level_up(tmp_path):
    finish_job(tmp_path / "run", "22_tile", size=64)
    finish_job(tmp_path / "run/seed-1", "37_train", seed=1)
    member = tmp_path / "run/seed-1"
    (tmp_path / "run/members.json").write_text('["seed-0", "seed-1"]')
    assert earlier(member, "tile")["params"] == {"size": 64}
    assert output(earlier(member, "tile"), "store") == tmp_path / "run/22_tile/store"
    assert earlier(member, "37_train")["params"] == {"seed": 1}
    with pytest.raises(Refused, match="no complete train"):
        earlier(tmp_path / "run", "train")
    with pytest.raises(Refused, match="no complete tile"):
        earlier(tmp_path / "run/seed-1/deeper", "tile")


@pytest.mark.parametrize("members", [None, "[]", '["seed-0", "seed-11"]', '"seed-1"', '{"seed-1": 1}'])
def test_a_run_that_is_no_member_takes_nothing_from_above(tmp_path, members):
    finish_job(tmp_path / "run", "22_tile")
    if members is not None:
        (tmp_path / "run/members.json").write_text(members)
    with pytest.raises(Refused, match="no complete tile"):
        earlier(tmp_path / "run/seed-1", "tile")


def test_a_broken_list_of_members_is_refused_by_name(tmp_path):
    (tmp_path / "members.json").write_text('["seed-1"')
    with pytest.raises(Refused, match=r"members\.json: "):
        earlier(tmp_path / "seed-1", "tile")


def test_the_nearest_job_counts_even_when_it_is_not_complete(tmp_path):
    finish_job(tmp_path / "run", "22_tile")
    (tmp_path / "run/members.json").write_text('["seed-1"]')
    open_job("22_tile", tmp_path / "run/seed-1", {})
    with pytest.raises(Refused, match="no complete 22_tile .*: run `geoseg run tile --out .*seed-1` first"):
        earlier(tmp_path / "run/seed-1", "tile")


@pytest.mark.parametrize("status", ["failed", "preempted"])
def test_a_job_that_did_not_complete_is_no_predecessor(tmp_path, status):
    record(open_job("22_tile", tmp_path, {}), {}, {}, status=status)
    with pytest.raises(Refused, match="no complete 22_tile"):
        earlier(tmp_path, "tile")
    with pytest.raises(Refused, match="known are complete, failed, preempted"):
        record(open_job("22_tile", tmp_path, {}), {}, {}, status="done")


def test_opening_again_takes_the_stale_result_away(tmp_path):
    finish_job(tmp_path, "22_tile")
    open_job("22_tile", tmp_path, {})
    with pytest.raises(Refused, match="no complete 22_tile"):
        earlier(tmp_path, "tile")
    assert (tmp_path / "22_tile/store").exists(), "what the items finished stays"


def test_a_killed_job_is_never_taken_for_complete(tmp_path):
    finish_job(tmp_path, "22_tile")
    code = ("import os, signal, sys; from geoseg_nb.stages import open_job; "
            "open_job('22_tile', sys.argv[1], {'size': 64}); os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "22_tile/params.json").read_text()) == {"size": 64}
    with pytest.raises(Refused, match="no complete 22_tile"):
        earlier(tmp_path, "tile")


@pytest.mark.parametrize("call", range(3))
def test_a_record_that_dies_half_way_leaves_no_result(tmp_path, monkeypatch, call):
    job, calls, replace = open_job("22_tile", tmp_path, {}), [], os.replace

    def dying(*paths):
        calls.append(paths)
        if len(calls) > call:
            raise OSError("no space left")
        replace(*paths)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(OSError, match="no space left"):
        record(job, {}, {})
    assert not (job.folder / "result.json").exists()
    assert not [path for path in job.folder.iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1, "a": 2}'])
def test_a_broken_result_is_refused_by_name(tmp_path, text):
    (tmp_path / "22_tile").mkdir()
    (tmp_path / "22_tile/result.json").write_text(text)
    with pytest.raises(Refused, match=r"22_tile.result\.json: "):
        earlier(tmp_path, "tile")


def test_outputs_that_are_gone_or_unknown_are_refused(tmp_path):
    finish_job(tmp_path, "22_tile")
    result = earlier(tmp_path, "tile")
    with pytest.raises(Refused, match="known are classes, plain, store"):
        output(result, "stores")
    (tmp_path / "22_tile/store").rmdir()
    with pytest.raises(Refused, match="store of 22_tile, is gone: run `geoseg run tile --out .*` again"):
        output(result, "store")


@pytest.mark.parametrize("name", ["../22_tile", "/22_tile", "22 tile", "", ".tile"])
def test_a_job_name_stays_a_name(tmp_path, name):
    with pytest.raises(Refused):
        open_job(name, tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
    git, checkout, other = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"], tmp_path / "outer/checkout", tmp_path / "other"
    for folder in (checkout / "nbs", checkout / "geoseg_nb", other):
        folder.mkdir(parents=True)
    (checkout / "settings.ini").write_text("[DEFAULT]\nlib_name = geoseg_nb\n")

    def commit(folder):
        subprocess.run([*git, "init", "-q"], check=True, cwd=folder)
        subprocess.run([*git, "add", "."], check=True, cwd=folder)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True, cwd=folder)
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=folder).stdout

    monkeypatch.setattr(geoseg_nb, "__file__", str(checkout / "geoseg_nb/__init__.py"))
    commit(other)
    monkeypatch.chdir(other)
    assert git_commit() == "", "the repository of the working folder is another's"
    commit(tmp_path / "outer")
    assert git_commit() == "", "an unpacked archive inside another repository"
    subprocess.run([*git, "init", "-q"], check=True, cwd=checkout)
    assert git_commit() == "", "no commit yet"
    whole = commit(checkout)
    subprocess.run([*git, "tag", "-a", "v1", "-m", "one"], check=True, cwd=checkout)
    assert len(git_commit()) >= 4 and whole.startswith(git_commit())
    (checkout / "notes.txt").write_text("not tracked")
    assert whole.startswith(git_commit())
    clean = git_commit()
    with open(checkout / "settings.ini", "a") as file:
        file.write("# changed\n")
    assert git_commit() == clean + "+"
    monkeypatch.setenv("PATH", "")
    assert git_commit() == "", "no git"


def test_an_installed_package_has_no_commit(tmp_path, monkeypatch):
    (tmp_path / "site-packages/geoseg_nb").mkdir(parents=True)
    subprocess.run(["git", "init", "-q"], check=True, cwd=tmp_path / "site-packages")
    monkeypatch.setattr(geoseg_nb, "__file__", str(tmp_path / "site-packages/geoseg_nb/__init__.py"))
    assert git_commit() == ""
