"A run in a bucket of a real S3 server: worked on in a copy, killed, and finished on another machine"
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from geoseg_nb import dryrun, places
from geoseg_nb import objects as objects_module
from geoseg_nb.cli import main
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.jobs import job_notebooks
from geoseg_nb.places import RECORDS, claimed, kept, sending_order, worked_in
from geoseg_nb.requests import Request, prepare
from geoseg_nb.stages import earlier, open_job
from geoseg_nb.storage import files_below, folder_sha256, storage
from geoseg_nb.tiling import tile
from house import ROOT
from hypothesis import given
from hypothesis import strategies as st
from servers import KEY_ID, SECRET, objects
from test_tiling import SMALL as TILING
from test_tiling import SOURCE, catalog  # noqa: F401

COMMAND = [sys.executable, "-m", "geoseg_nb.cli", "run"]


def geoseg(*words, **environment):
    "Run the program; the finished process"
    return subprocess.run([*COMMAND, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, **environment})


def recipe(folder, cells, job="10_catalog"):
    "A recipe of one job with these cells"
    head = nbformat.v4.new_code_cell('run: str = ""  # run folder\nway: str = ""  # what it does', metadata={"tags": ["parameters"]})
    folder.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[head, *map(nbformat.v4.new_code_cell, cells)]), folder / f"{job}.ipynb")
    (folder / "recipe.yml").write_text(f"jobs: [{job}]\n")
    return folder


JOB = """
from geoseg_nb.stages import open_job, record
job = open_job("10_catalog", run, {})
(job.folder / "half").write_text("left by a run that failed")
if way: raise KeyError(way)
(job.folder / "half").unlink()
(job.folder / "whole").write_text("all of it")
record(job, {}, {"whole": job.folder / "whole"})
"""


def test_a_run_goes_up_after_its_job_and_on_from_another_machine(bucket, machine, tmp_path):
    "One small job: failed on one machine, finished on a second, skipped on the first"
    mine, url = recipe(tmp_path / "mine", [JOB]), f"s3://{bucket}/runs/mine"
    cache = machine("first")
    done = geoseg(mine, "--out", url, "-p", "way=fails")
    assert done.returncode == 1 and "KeyError" in done.stderr, done.stderr
    assert f"run folder {url}, worked on in {cache / 'runs'}" in done.stdout
    left = objects(url)
    assert {"10_catalog/10_catalog.ipynb", "10_catalog/half", "10_catalog/params.json"} <= set(left) and "10_catalog/result.json" not in left
    machine("second")
    done = geoseg(mine, "--out", url)
    assert done.returncode == 0, done.stderr
    whole = objects(url)
    assert {"10_catalog/whole", "10_catalog/result.json", "10_catalog/launch.json"} <= set(whole) and "10_catalog/half" not in whole
    assert json.loads(whole["10_catalog/result.json"])["outputs"] == {"whole": "10_catalog/whole"}
    assert not any(SECRET.encode() in data or KEY_ID.encode() in data for data in whole.values())
    assert SECRET not in done.stdout + done.stderr and not [key for key in whole if ".lock" in key]
    machine("first")
    done = geoseg(mine, "--out", url)
    assert done.returncode == 0 and "complete and unchanged, skipped" in done.stdout, done.stdout + done.stderr
    assert {key: data for key, data in objects(url).items() if key != places.WHO} == {key: data for key, data in whole.items() if key != places.WHO}


def dry(capsys, *words) -> list[str]:
    "The lines of a dry run"
    assert main(["run", *map(str, words), "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_looks_at_the_bucket_and_writes_nothing_anywhere(proxy, bucket, machine, tmp_path, capsys):
    "Told by the records of now, also where an older copy of the run is here; nothing but GET and HEAD is asked, no file comes or changes"
    mine, url = recipe(tmp_path / "mine", [JOB.replace("10_catalog", "50_mine")], "50_mine"), f"s3://{bucket}/runs/mine"
    assert "would run" in dry(capsys, mine, "--out", url)[1] and not list(tmp_path.glob("first/**/*"))
    done = geoseg(mine, "--out", url)
    assert done.returncode == 0, done.stderr
    storage(url).write("50_mine/large", bytes(5_000_000))
    there, cache, proxy.seen = objects(url), machine("second"), []
    lines = dry(capsys, mine, "--out", url)
    assert lines[0].endswith(f"would be worked on in {worked_in(url)} and sent to {url}, whose records are those of now")
    assert "50_mine" in lines[1] and lines[1].endswith("complete and unchanged, would be skipped")
    asked = [path for command, path in proxy.seen]
    assert {command for command, _ in proxy.seen} <= {"GET", "HEAD"} and not any(path.endswith("/50_mine/large") for path in asked)
    assert not cache.exists() and objects(url) == there
    storage(url).remove("50_mine/result.json")
    cache = machine("first")
    copy = {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in cache.rglob("*")}
    assert [path for path in copy if path.name == "result.json"], "the copy is of a complete run"
    assert "would run" in dry(capsys, mine, "--out", url)[1]
    assert copy == {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in cache.rglob("*")}


def test_a_dry_run_says_what_it_would_need_a_large_object_for(tmp_path, monkeypatch):
    "Only where the error misses a file that was left in the bucket; every other error is the one of a folder"
    step = SimpleNamespace(job="37_train", values={}, notebook=job_notebooks()["train"], run=tmp_path, folder=tmp_path / "37_train")
    model, shard = tmp_path / "37_train" / "model" / "model.safetensors", tmp_path / "22_tile" / "tiles.zarr" / "s1" / "0"
    model.parent.mkdir(parents=True)
    state = {"run": tmp_path / "fold=1", "coming": set(), "left": {path: path.relative_to(tmp_path).as_posix() for path in (model, shard)}}
    for error, left in ((GeosegError(f"{model}: missing; copy the whole model folder"), True), (FileNotFoundError(2, "No such file", str(shard)), True),
                        (ValueError(f"{shard.parent.parent} does not exist"), True), (GeosegError(f"{model.parent}: model.safetensors is short"), True),
                        (GeosegError("no folder /nonexistent"), False), (GeosegError(f"no complete catalog in {tmp_path}"), False),
                        (GeosegError(f"{model.parent}: model.json is damaged"), False), (FileNotFoundError(2, "No such file", "/data/scene.tif"), False)):
        monkeypatch.setattr(dryrun, "planner", lambda handle, error=error: lambda values, state: (_ for _ in ()).throw(error))
        if left: assert "large objects in the bucket" in dryrun.plan_of(step, state).facts["plan"]
        else:
            with pytest.raises(type(error)): dryrun.plan_of(step, state)
        with pytest.raises(type(error)): dryrun.plan_of(step, state | {"left": {}})


def test_a_dry_run_against_a_bucket_ends_as_one_against_a_folder(bucket, machine, tmp_path, capsys):
    for words, wrong in ((["catalog", "-p", "root=/nonexistent/data"], "no folder /nonexistent/data"), (["split"], "no complete catalog in {0}: run `geoseg run catalog --out {0}` first")):
        for out in (str(tmp_path / "run"), f"s3://{bucket}/runs/mine"):
            assert main(["run", *words, "--dry-run", "--out", out]) == 2, out
            assert wrong.format(out) in capsys.readouterr().err


def test_small_objects_come_several_at_a_time(bucket, machine, monkeypatch):
    "Every read waits for three others: one after another none would go on"
    url, meet, read = f"s3://{bucket}/runs/mine", threading.Barrier(4, timeout=10), places.S3Storage.read
    for n in range(8): storage(url).write(f"22_tile/{n}", str(n))
    with monkeypatch.context() as patch:
        patch.setattr(places.S3Storage, "read", lambda place, key: meet.wait() * 0 or read(place, key) if key.startswith("22_tile") else read(place, key))
        with places.looked_at(url) as (run, left): assert not left and [(run / "22_tile" / str(n)).read_text() for n in range(8)] == list("01234567")
        with kept(claimed(url)) as copy: assert [(copy.run / "22_tile" / str(n)).read_text() for n in range(8)] == list("01234567")


@pytest.mark.slow
def test_new_runs_appear_in_the_bucket_that_the_variable_names(bucket, machine, tmp_path):
    done = geoseg(recipe(tmp_path / "mine", [JOB]), GEOSEG_RUNS=f"s3://{bucket}/runs")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"run folder s3://{bucket}/runs/mine/\d{{8}}-\d{{6}}, worked on in ", done.stdout)
    assert [key for key in storage(f"s3://{bucket}/runs").keys("mine/") if key.endswith("/10_catalog/result.json")]


def test_wrong_credentials_are_one_error_before_the_first_job(proxy, bucket, machine, tmp_path):
    mine = recipe(tmp_path / "mine", [JOB])
    began = time.monotonic()
    done = geoseg(mine, "--out", f"s3://{bucket}/runs/mine", AWS_SECRET_ACCESS_KEY="wrong-" + SECRET)
    assert done.returncode == 2 and "AWS_SECRET_ACCESS_KEY" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and time.monotonic() - began < 20 and len(proxy.seen) <= 2
    assert SECRET not in done.stdout + done.stderr and KEY_ID not in done.stdout + done.stderr


def test_a_second_launcher_is_refused_by_the_lock_in_the_bucket(bucket, machine, tmp_path):
    mine, url = recipe(tmp_path / "mine", [JOB]), f"s3://{bucket}/runs/mine"
    with kept(claimed(url)):
        machine("second")
        done = geoseg(mine, "--out", url)
    assert done.returncode == 2 and f"{url}/.lock is held by process {os.getpid()}" in done.stderr


def test_jobs_themselves_refuse_a_bucket_and_name_the_launcher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for do in (lambda: open_job("22_tile", "s3://tiles/mine", {}), lambda: earlier("s3://tiles/mine", "tile"), lambda: earlier(Path("s3://tiles/mine"), "tile")):
        with pytest.raises(Refused, match=r"`geoseg run (22_)?tile --out s3:/?/tiles/mine` works on it"): do()
    assert not list(tmp_path.iterdir()), "no folder called s3:"


def test_source_scenes_in_a_bucket_are_refused_before_anything_began(tmp_path):
    with pytest.raises(Refused, match="10_catalog: s3://tiles/chips lies in a bucket, .* copy it first"):
        prepare(Request(name="catalog", out=str(tmp_path / "run"), assignments=["root=s3://tiles/chips"]))
    assert not (tmp_path / "run").exists()


def test_nothing_is_sent_where_the_server_fails_and_it_goes_up_the_next_time(proxy, bucket, machine, tmp_path, monkeypatch):
    monkeypatch.setenv("GEOSEG_S3_DEADLINE", "2")
    run = claimed(f"s3://{bucket}/runs/mine")
    with pytest.raises(places.GeosegError, match="GEOSEG_S3_DEADLINE"), kept(run):
        (run / "10_catalog").mkdir(parents=True)
        (run / "10_catalog" / "result.json").write_text("{}")
        proxy.always = "503"
    proxy.always = "pass"
    for key in storage(f"s3://{bucket}/runs/mine").keys(".lock/"): storage(f"s3://{bucket}/runs/mine").remove(key)
    with kept(run): pass
    assert "10_catalog/result.json" in objects(f"s3://{bucket}/runs/mine")


def test_a_large_object_goes_on_where_the_line_broke(proxy, bucket, machine, monkeypatch):
    "Fetched over a line that breaks twice: every part comes once, and the file is the object"
    monkeypatch.setenv("GEOSEG_S3_DEADLINE", "1")
    monkeypatch.setattr(objects_module, "PART", 1 << 20)
    monkeypatch.setattr(places, "PART", 1 << 20)
    url, data, proxy.mend = f"s3://{bucket}/runs/mine", os.urandom(12_000_000), True
    storage(url).write("37_train/model", data)
    run, ranges = claimed(url), lambda: [path for command, path in proxy.seen if command == "GET" and path.endswith("/37_train/model")]
    for good in (4, 6):
        with pytest.raises(places.GeosegError, match="GEOSEG_S3_DEADLINE"), kept(run) as copy:
            proxy.seen, proxy.faults = [], ["pass"] * (2 + good)
            proxy.always = "503"
            try: copy.fetch_waiting()
            finally: proxy.faults, proxy.always = [], "pass"
        assert not (run / "37_train" / "model").exists()
    there = len(list(run.parent.with_suffix(".parts").glob("*/*")))
    proxy.seen = []
    with kept(run) as copy: copy.fetch_waiting()
    assert (run / "37_train" / "model").read_bytes() == data and not run.parent.with_suffix(".parts").exists()
    assert there >= 6 and len(ranges()) == 12 - there
    proxy.seen = []
    with kept(run) as copy: copy.fetch_waiting()
    assert ranges() == [], "and it does not come again"


def files(run, names):
    "Write files of so many bytes"
    for name, size in names.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(bytes(size))


TILED = {"22_tile/result.json": 2, "22_tile/shard": 5_000_000, "22_tile/tiles": 3}


@pytest.mark.parametrize("purged", ["22_tile", "22_tile/result.json", "22_tile/shard", "."])
def test_a_purged_cache_empties_no_bucket_and_comes_again(bucket, machine, purged):
    "Whatever is missing when a run is opened was lost here, and the bucket is all there is"
    run, url = claimed(f"s3://{bucket}/runs/mine"), f"s3://{bucket}/runs/mine"
    with suppress(KeyError), kept(run):
        files(run, TILED)
        if purged == "22_tile/shard": raise KeyError("a failed job is sent as well")
    there = objects(url)
    (run / "22_tile" / "tiles").write_text("edited by somebody")
    shutil.rmtree(run / purged) if (run / purged).is_dir() else (run / purged).unlink()
    with kept(run) as copy:
        assert (run / "22_tile" / "result.json").is_file()
        copy.fetch_waiting()
        assert {name: (run / name).stat().st_size for name in TILED if name != "22_tile/tiles"} == {name: TILED[name] for name in TILED if name != "22_tile/tiles"}
    assert objects(url).keys() == there.keys() and all(objects(url)[name] == there[name] for name in TILED if name != "22_tile/tiles")
    with kept(run): (run / "22_tile" / "shard").unlink()
    assert "22_tile/shard" not in objects(url), "what a job deletes while the run is held does go"


def test_killed_while_a_purged_cache_is_filled_again_nothing_is_lost(bucket, machine, monkeypatch):
    run, url = claimed(f"s3://{bucket}/runs/mine"), f"s3://{bucket}/runs/mine"
    with kept(run): files(run, {f"22_tile/{n}": n for n in range(1, 7)})
    there = objects(url)
    shutil.rmtree(run)
    read = places.S3Storage.read
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(places.S3Storage, "read", lambda place, key: read(place, key) if key != "22_tile/4" else (_ for _ in ()).throw(KeyboardInterrupt))
        with kept(run): pass
    with kept(run): pass
    assert {name: objects(url)[name] for name in there if name != places.WHO} == {name: there[name] for name in there if name != places.WHO}


def test_a_job_killed_after_it_began_anew_is_not_mixed_with_what_it_deleted(bucket, machine):
    "It took its old record and shard away and left a new file; a purged catalog beside it comes again"
    run, url = claimed(f"s3://{bucket}/runs/mine"), f"s3://{bucket}/runs/mine"
    with kept(run): files(run, {**TILED, "10_catalog/result.json": 2})
    code = ("import os, pathlib, sys; from geoseg_nb.places import claimed, kept\n"
            "with kept(claimed(sys.argv[1])) as copy:\n"
            "    for name in ('result.json', 'shard'): (copy.run / '22_tile' / name).unlink()\n"
            "    (copy.run / '22_tile' / 'new').write_text('n'); os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", code, url], timeout=60).returncode == -signal.SIGKILL
    shutil.rmtree(run / "10_catalog")
    with kept(run): assert sorted(files_below(run)) == ["10_catalog/result.json", "22_tile/new", "22_tile/tiles"]
    assert objects(url).keys() - {places.WHO} == {"10_catalog/result.json", "22_tile/new", "22_tile/tiles"}


SENDING = """
import os, sys
from geoseg_nb.objects import S3Storage
from geoseg_nb.places import claimed, kept
write = S3Storage.write
def broken(place, key, data): os.kill(os.getpid(), 9) if key == "22_tile/b" else write(place, key, data)
with kept(claimed(sys.argv[1])) as copy:
    S3Storage.write = broken
    (copy.run / "22_tile").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "launch.json"): (copy.run / "22_tile" / name).write_text("new")
    (copy.run / "22_tile" / "result.json").write_text('{"status": "%s"}' % sys.argv[2])
"""


def killed_while_sending(url, status) -> Path:
    "A tile job of which `a` arrived and `b` did not, and no record of it"
    assert subprocess.run([sys.executable, "-c", SENDING, url, status], timeout=60).returncode == -signal.SIGKILL
    assert objects(url)["22_tile/a"] == b"new" and not {"22_tile/launch.json", "22_tile/result.json"} & set(objects(url))
    return claimed(url) / "22_tile"


@pytest.mark.parametrize("before", [False, True])
def test_files_that_were_neither_sent_nor_kept_are_named_and_their_job_begins_anew(bucket, machine, capsys, before):
    "Killed while it sent, and the cache was purged in part: the record that says complete is here, what it tells of is nowhere"
    url = f"s3://{bucket}/runs/mine"
    run = claimed(url)
    with kept(run): files(run, {"10_catalog/result.json": 2, **({f"22_tile/{name}": 2 for name in ("a", "b", "old", "result.json")} if before else {})})
    (killed_while_sending(url, "complete") / "b").unlink()
    with kept(run):
        assert files_below(run) == ["10_catalog/result.json"]
        assert capsys.readouterr().err.startswith(f"22_tile/b: neither sent to {url} nor in {run} any more; 22_tile runs again")
        files(run, {"22_tile/c": 3})
    assert objects(url).keys() - {places.WHO} == {"10_catalog/result.json", "22_tile/c"}


@pytest.mark.parametrize(("purged", "status"), [("a", "complete"), ("b", "failed")])
def test_a_file_that_arrived_and_one_of_a_job_that_is_not_complete_are_no_loss(bucket, machine, capsys, purged, status):
    url = f"s3://{bucket}/runs/mine"
    (killed_while_sending(url, status) / purged).unlink()
    with kept(claimed(url)): assert (claimed(url) / "22_tile/result.json").is_file() and not capsys.readouterr().err
    lost = {"22_tile/b"} if status == "failed" else set()
    assert objects(url).keys() - {places.WHO} == {f"22_tile/{name}" for name in ("a", "b", "launch.json", "result.json")} - lost


def test_a_job_that_went_on_and_finished_after_a_killed_sending_is_kept(bucket, machine, capsys):
    "It dropped its notes of progress when it was done: they were due, and are gone for good reason"
    url = f"s3://{bucket}/runs/mine"
    job = killed_while_sending(url, "preempted")
    copy = places.recalled(claimed(url), storage(url), lambda: None)
    copy.due = ["22_tile/b", "22_tile/launch.json"]
    copy.remember()
    (job / "b").unlink()
    (job / "result.json").write_text('{"status": "complete"}')
    with kept(claimed(url)): assert (job / "result.json").is_file() and not capsys.readouterr().err
    assert json.loads(objects(url)["22_tile/result.json"])["status"] == "complete"


def test_what_arrived_after_all_is_due_no_longer(bucket, machine, capsys):
    "Else a cache that is purged much later would cost a whole job"
    url = f"s3://{bucket}/runs/mine"
    job = killed_while_sending(url, "complete")
    for _ in range(2):
        with kept(claimed(url)): pass
    (job / "b").unlink()
    with kept(claimed(url)): assert (job / "b").read_text() == "new" and not capsys.readouterr().err


@pytest.mark.parametrize("arrived", [1, 5, -1])
def test_a_store_that_went_up_in_part_is_cut_anew_on_another_machine(bucket, machine, catalog, tmp_path, arrived):  # noqa: F811
    "Whatever arrived of it: it is known as a store, and taken for no whole one"
    url, spec = f"s3://{bucket}/runs/mine", TILING.replace(shard_tiles=5)
    whole = tile(spec, catalog, SOURCE, tmp_path / "tiles.zarr")
    with kept(claimed(url)) as copy: shutil.copytree(tmp_path / "tiles.zarr", copy.run / "22_tile" / "tiles.zarr")
    sent = [name for verb, name in sending_order(sorted(set(objects(url)) - {places.WHO}), []) if verb == "write"]
    for name in sent[arrived:]: storage(url).remove(name)
    machine("second")
    with kept(claimed(url)) as copy:
        copy.fetch_waiting()
        assert tile(spec, catalog, SOURCE, copy.run / "22_tile" / "tiles.zarr").hash == whole.hash
        assert folder_sha256(copy.run / "22_tile" / "tiles.zarr") == folder_sha256(tmp_path / "tiles.zarr")


def test_a_run_may_be_called_parts_and_not_as_a_note_of_ours(bucket, machine):
    url = f"s3://{bucket}/runs/parts"
    with kept(claimed(url)) as copy: files(copy.run, {"37_train/small": 3, "37_train/model": 6 << 20})
    machine("second")
    with kept(claimed(url)) as copy:
        copy.fetch_waiting()
        assert {name: size for name, (size, _) in places.files_here(copy.run).items()} == {"37_train/small": 3, "37_train/model": 6 << 20}
    assert {name: len(data) for name, data in objects(url).items() if name != places.WHO} == {"37_train/small": 3, "37_train/model": 6 << 20}
    for name in ("copied.json", "memory.json"):
        with pytest.raises(Refused, match=f"{name}.*give another name"): claimed(f"s3://{bucket}/runs/{name}")


def test_a_kept_part_that_is_short_makes_no_short_file(proxy, bucket, machine):
    "Told once with both sizes; the next run fetches anew"
    url, data, proxy.mend = f"s3://{bucket}/runs/mine", os.urandom(12_000_000), True
    storage(url).write("37_train/model", data)
    run = claimed(url)
    keep = places.kept_part
    with pytest.raises(GeosegError, match="has 12000000 bytes, its parts .* had 7757120; .*run again"), kept(run) as copy, pytest.MonkeyPatch.context() as patch:
        def broken(room, start, ask):
            if start == 0: places.write_atomic(room / "0", data[:1_000_000])
            return keep(room, start, ask)
        patch.setattr(places, "kept_part", broken)
        copy.fetch_waiting()
    assert not (run / "37_train" / "model").exists()
    with kept(run) as copy: copy.fetch_waiting()
    assert (run / "37_train" / "model").read_bytes() == data


@pytest.mark.parametrize("note", ["", "[]", '{"bucket": "tiles", "prefix": "x", "of": "another version"}', "{}"])
def test_a_note_that_cannot_be_read_is_written_anew(bucket, machine, note):
    url = f"s3://{bucket}/runs/mine"
    run = claimed(url)
    (run.parent / places.NOTE).write_text(note)
    assert places.bucket_of(run) is None
    assert places.bucket_of(claimed(url)) == storage(url)


NAMES = st.lists(st.sampled_from([f"{job}/{name}" for job in ("22_tile", "37_train") for name in ("a", "b/c", *RECORDS)]), unique=True)


@given(changed=NAMES, gone=NAMES, old=NAMES)
def test_killed_between_any_two_objects_a_job_is_whole_or_not_complete(changed, gone, old):
    "A reader at any moment: where there is a result.json, every file of the job is that of one run, the old or the new"
    gone = [name for name in gone if name not in changed and name in old]
    jobs = {name.partition("/")[0] for name in (*changed, *gone)}
    if any(f"{job}/result.json" in {*old} - {*changed, *gone} for job in jobs): return
    before, after = {n: "old" for n in old}, {**{n: "old" for n in old if n not in gone}, **{n: "new" for n in changed}}
    bucket = dict(before)
    for verb, name in sending_order(changed, gone):
        bucket.pop(name, None) if verb == "remove" else bucket.update({name: "new"})
        for job in jobs:
            of = lambda state, job=job: {n: v for n, v in state.items() if n.startswith(f"{job}/")}  # noqa: E731
            if f"{job}/result.json" in bucket: assert of(bucket) in (of(before), of(after))
    assert bucket == after


def killed(url, condition, *words):
    "Start a run in its own session, kill -9 the launcher once a condition holds; its kernel ends by itself"
    process = subprocess.Popen([*COMMAND, *map(str, words), "--out", url], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 240
    while not condition() and process.poll() is None and time.monotonic() < end: time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


SMALL = ["floods", "--variant", "small", "-p", "epochs=1", "-p", "window_sizes=[128]"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "floods"
    done = geoseg(*SMALL, "--out", run)
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.mark.slow
@pytest.mark.parametrize("job, mark, same_machine", [("22_tile", "tiles.zarr/progress/0.json", False), ("37_train", "checkpoints", True), ("37_train", "checkpoints", False)])
def test_killed_anywhere_and_finished_on_another_machine_it_is_the_run_of_a_folder(local, bucket, machine, job, mark, same_machine):
    url, cache = f"s3://{bucket}/runs/floods", machine("first")
    killed(url, lambda: list(cache.glob(f"runs/*/floods/{job}/{mark}")), *SMALL)
    there = objects(url)
    assert "10_catalog/result.json" in there and f"{job}/result.json" not in there
    if not same_machine: machine("second")
    done = geoseg(*SMALL, "--out", url)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "10_catalog complete and unchanged, skipped" in done.stdout
    assert done.stdout.count("skipped") == {"22_tile": 1, "37_train": 3}[job]
    got, want = objects(url), {name: local / name for name in files_below(local)}
    store = [name for name in want if name.startswith("22_tile/tiles.zarr/") and "/.lock" not in name]
    assert len(store) > 5 and all(got[name] == want[name].read_bytes() for name in store)
    assert got["37_train/model/model.safetensors"] == want["37_train/model/model.safetensors"].read_bytes()
    travelling = {name for name in want if places.travels(name) and not name.startswith("37_train/checkpoints/")}
    assert travelling <= set(got), sorted(travelling - set(got))
    assert SECRET.encode() not in b"".join(got.values())
