"The launcher and the jobs, end to end on the bundled sample"
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.jobs import Published, Step, bind, check_values, parameters_cell, plan_steps, read_parameters
from geoseg_nb.launch import JobFailed, execute
from geoseg_nb.requests import Request, prepare
from geoseg_nb.runs import read_job
from geoseg_nb.spec import make
from geoseg_nb.stages import earlier
from geoseg_nb.storage import folder_sha256, run_lock, sha256, storage
from house import JOBS, ROOT, geoseg

ORDER = ["10_catalog", "22_tile", "11_split", "37_train", "43_evaluate", "42_predict"]


def result(run, job):
    return json.loads((run / job / "result.json").read_text())


def test_the_recipe_runs_and_every_job_records(floods):
    run, said = floods
    for job in ORDER:
        found = result(run, job)
        assert {"job", "status", "params", "metrics", "outputs", "seconds", "peak_rss_mb", "geoseg_nb", "git"} <= set(found)
        assert found["job"] == job and found["status"] == "complete"
        assert (run / job / f"{job}.ipynb").exists() and (run / job / "profile.json").exists()
        assert list((run / job / "figures").glob("*.png"))
    assert "water" in said and str(run) in said


def test_the_names_that_programs_rely_on(floods):
    run, _ = floods
    assert (run / result(run, "22_tile")["outputs"]["store"]).exists()
    assert (run / result(run, "37_train")["outputs"]["model"] / "model.safetensors").exists()
    classes = result(run, "42_predict")["outputs"]["classes"]
    assert len(classes) == 10 and all((run / path).exists() for path in classes)
    metrics = result(run, "43_evaluate")["metrics"]
    for found in (metrics, metrics["baseline"], *metrics["scenes"].values()):
        assert {"accuracy", "mean_iou", "f1_macro", "f1_weighted", "kappa", "per_class"} <= set(found)
        assert {"iou", "f1", "precision", "recall", "support"} <= set(found["per_class"]["water"])


def test_the_baseline_is_the_published_threshold(floods):
    run, _ = floods
    baseline = result(run, "43_evaluate")["metrics"]["baseline"]
    assert abs(baseline["per_class"]["water"]["iou"] - 0.78) < 0.005
    assert sum(c["support"] for c in baseline["per_class"].values()) == 882_680


def children_seconds():
    "CPU seconds of the processes that this one has waited for"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_same_command_again_skips_everything(floods):
    run, _ = floods
    before = {job: sha256(run / job / "result.json") for job in ORDER}
    spent = children_seconds()
    again = geoseg("run", "floods", "--variant", "small", "--out", run)
    assert again.returncode == 0 and again.stdout.count("complete and unchanged, skipped") == len(ORDER)
    assert before == {job: sha256(run / job / "result.json") for job in ORDER} and children_seconds() - spent < 20


@pytest.mark.slow
def test_a_changed_parameter_runs_again_and_says_why(floods, tmp_path):
    run = shutil.copytree(floods[0], tmp_path / "floods")
    again = geoseg("run", "floods", "--variant", "small", "--out", run, "-p", "baseline=majority")
    assert again.returncode == 0, again.stderr
    assert "43_evaluate values changed, runs again" in again.stdout and again.stdout.count("skipped") == 5


def test_no_run_file_names_the_machine_secrets(floods, tmp_path):
    done = geoseg("run", "catalog", "--out", tmp_path / "run", AWS_SECRET_ACCESS_KEY="canary-5c1f")
    assert done.returncode == 0, done.stderr
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file() and b"canary-5c1f" in p.read_bytes()]


@pytest.mark.parametrize(("words", "says"), [
    (["run", "train", "-p", "epoch=3"], "epochs"),
    (["run", "floods", "-p", "train.epoch=3"], "epochs"),
    (["run", "floods", "-p", "epochs=many"], "37_train.epochs"),
    (["run", "floods", "-p", "loss=nonsense"], "cross_entropy"),
    (["run", "floods", "-p", "train.clip=[1"], "37_train.clip"),
    (["run", "flods"], "floods"),
    (["run", "floods", "--variant", "tiny"], "small"),
    (["run", "floods", "-p", "seed=1"], "11_split"),
    (["run", "train", "-p", "my_api_key=x"], "credential"),
    (["run", "train", "-p", "__import__('os').system('touch owned')=1"], "name=value"),
    (["run", "train", "-f", "nowhere.yml"], "nowhere.yml"),
])
def test_refused_before_anything_began(words, says, tmp_path):
    run = tmp_path / "run"
    done = geoseg(*words, "--out", run, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert not run.exists() and not (tmp_path / "owned").exists()


def test_a_missing_predecessor_is_refused_with_the_fix(tmp_path):
    done = geoseg("run", "split", "--out", tmp_path / "run")
    assert done.returncode == 2 and "geoseg run catalog" in done.stderr


def test_a_failing_cell_stops_the_run_and_shows_its_error(tmp_path):
    (tmp_path / "empty").mkdir()
    done = geoseg("run", "floods", "--out", tmp_path / "run", "-p", f"root={tmp_path / 'empty'}")
    assert done.returncode in (1, 2) and "empty" in done.stderr
    assert not (tmp_path / "run" / "22_tile").exists()


def test_a_notebook_without_its_tag_does_not_start(tmp_path):
    "Fault 49: papermill alone runs it on its defaults and exits 0"
    nb = nbformat.read(ROOT / "nbs" / "jobs" / "37_train.ipynb", 4)
    for cell in nb.cells: cell.metadata.pop("tags", None)
    nbformat.write(nb, tmp_path / "37_train.ipynb")
    with pytest.raises(Refused, match="tagged"): parameters_cell(tmp_path / "37_train.ipynb")


def test_parameter_names_are_never_executed():
    "Fault 33"
    declared = read_parameters("epochs: int = 3  # passes", "37_train")
    with pytest.raises(Refused): check_values({"epochs=1; import os": 1}, declared, "37_train")


def test_a_parameter_cell_is_not_executed_by_reading_it():
    with pytest.raises((Refused, ValueError)): read_parameters("epochs: int = __import__('os').getpid()  # x", "37_train")


@pytest.mark.slow
def test_a_job_run_alone_sees_that_its_input_changed(tmp_path):
    run = tmp_path / "run"
    for words in (["catalog"], ["split"], ["catalog", "-p", "options={place: '{place}_{chip}'}"]):
        assert geoseg("run", *words, "--out", run).returncode == 0
    assert "earlier changed, runs again" in geoseg("run", "split", "--out", run).stdout


@pytest.mark.slow
def test_a_result_of_another_hand_is_not_taken_for_ones_own(tmp_path):
    run = tmp_path / "run"
    for words in (["catalog"], ["split", "-p", "buffer=8"]): assert geoseg("run", *words, "--out", run).returncode == 0
    path = run / "11_split" / "result.json"
    path.write_text(path.read_text().replace('"buffer": 8', '"buffer": 64'))
    assert "result changed, runs again" in geoseg("run", "split", "--out", run, "-p", "buffer=8").stdout


@pytest.mark.slow
def test_members_of_a_matrix_share_what_comes_before_and_are_compared(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yml").write_text("jobs: [10_catalog, 11_split]\nmatrix: {11_split.buffer: [4, 8]}\n")
    done = geoseg("run", tmp_path / "mine", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "members.json").read_text()) == ["buffer-4", "buffer-8"]
    assert (tmp_path / "run" / "10_catalog" / "result.json").exists() and not (tmp_path / "run" / "buffer-4" / "10_catalog").exists()


def test_the_scores_of_members_add_up(floods):
    from geoseg_nb.launch import gather
    one = result(floods[0], "43_evaluate")
    both = gather([one, one])
    water = one["metrics"]["per_class"]["water"]["iou"]
    assert both["pooled"]["water"] == pytest.approx(water) and both["std"]["water"] == 0


def test_two_launchers_do_not_share_a_run(tmp_path):
    with run_lock(tmp_path / "run"): done = geoseg("run", "catalog", "--out", tmp_path / "run")
    assert done.returncode == 2 and "held by" in done.stderr


def test_a_recipe_folder_with_a_stray_file_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yml").write_text("jobs: [10_catalog]\n")
    (tmp_path / "mine" / "37_train.yml").write_text("epochs: 3\n")
    done = geoseg("run", tmp_path / "mine", "--out", tmp_path / "run")
    assert done.returncode == 2 and "37_train" in done.stderr


def test_a_hostile_kernel_of_the_same_name_is_not_started(tmp_path):
    "The first python3 on JUPYTER_PATH wins, with papermill alone"
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(json.dumps({"argv": ["/bin/sh", "-c", f"touch {tmp_path / 'owned'}"], "display_name": "x", "language": "python"}))
    where = {"JUPYTER_PATH": str(tmp_path / "jupyter")}
    code = "from jupyter_client.kernelspec import KernelSpecManager as K; print(K().get_kernel_spec('python3').argv[0])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **where}).stdout == "/bin/sh\n"
    done = geoseg("run", "catalog", "--out", tmp_path / "run", **where)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "owned").exists() and (tmp_path / "run" / "10_catalog" / "result.json").exists()


def test_the_kernel_is_this_python(tmp_path):
    (tmp_path / "mine").mkdir()
    nb = nbformat.read(ROOT / "nbs" / "jobs" / "10_catalog.ipynb", 4)
    nb.cells.append(nbformat.v4.new_code_cell("import sys; print('executable', sys.executable)"))
    nbformat.write(nb, tmp_path / "mine" / "10_catalog.ipynb")
    (tmp_path / "mine" / "recipe.yml").write_text("jobs: [10_catalog]\n")
    done = geoseg("run", tmp_path / "mine", "--out", tmp_path / "run")
    assert f"executable {sys.executable}" in done.stdout, done.stderr


@pytest.mark.parametrize("cwd", ["", "nbs/jobs"])
def test_a_relative_run_folder_is_one_folder_wherever_it_is_typed(cwd, tmp_path):
    "Inside the project from its root, outside from the working folder; said in the help and before the first step"
    house = tmp_path / "house"
    (house / "nbs" / "jobs").mkdir(parents=True)
    (house / "settings.ini").write_text("[DEFAULT]\nlib_name = geoseg_nb\n")
    (house / "mine").mkdir()
    (house / "mine" / "recipe.yml").write_text("title: Lakes\njobs: [11_split]\n")
    assert geoseg("jobs", "mine", cwd=house / cwd).stdout.startswith("mine: Lakes\n")
    with run_lock(house / "out" / "mine"): done = geoseg("run", "split", "--out", "out/mine", cwd=house / cwd)
    assert done.stdout.splitlines() == [f"run folder {house / 'out' / 'mine'}"] and "held by" in done.stderr
    said = " ".join(geoseg("run", "--help", cwd=house / cwd, COLUMNS="1000", GEOSEG_RUNS="").stdout.split())
    assert f"here from {house}." in said and f"appear under {house / 'out'}." in said
    assert f"under {tmp_path}." in " ".join(geoseg("run", "--help", cwd=house / cwd, COLUMNS="1000", GEOSEG_RUNS=str(tmp_path)).stdout.split())


def test_outside_of_a_project_paths_count_from_the_working_folder(tmp_path):
    (tmp_path / "a" / "mine").mkdir(parents=True)
    (tmp_path / "a" / "mine" / "recipe.yml").write_text("jobs: [11_split]\n")
    with run_lock(tmp_path / "a" / "out"): done = geoseg("run", "mine", "--out", "out", cwd=tmp_path / "a")
    assert done.stdout == f"run folder {tmp_path / 'a' / 'out'}\n" and "held by" in done.stderr
    done = geoseg("run", "a/yours", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2 and f"no recipe.yml in {tmp_path / 'a' / 'yours'}; relative paths count from {tmp_path}" in done.stderr
    done = geoseg("run", "split", "-f", "a/none.yml", cwd=tmp_path)
    assert done.returncode == 2 and str(tmp_path / "a" / "none.yml") in done.stderr


def test_a_recipe_lists_what_it_sets_and_no_default(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yml").write_text("title: Lakes\njobs: [10_catalog, 11_split]\nmatrix: {11_split.seed: [0, 1]}\nvariants: {tiny: {11_split: {buffer: 1}}}\n")
    (tmp_path / "mine" / "11_split.yml").write_text("buffer: '8'\nrule: position\n")
    lines = geoseg("jobs", tmp_path / "mine").stdout.splitlines()
    assert lines[0] == "mine: Lakes" and lines[1].startswith("10_catalog: ") and lines[2].startswith("11_split: ")
    assert lines[3].split() == ["buffer", "8,", "default", "0"] and lines[4:] == ["matrix: 11_split.seed", "variants: tiny"]
    (tmp_path / "mine" / "11_split.yml").write_text("bufer: 8\n")
    done = geoseg("jobs", tmp_path / "mine")
    assert done.returncode == 2 and "did you mean 'buffer'" in done.stderr
    said = geoseg("jobs", "floods").stdout
    assert "  epochs " in said and "variants: small, seeds, leave_one_out" in said and "batch_size" not in said


@pytest.mark.parametrize(("name", "code"), [("KeyError", 1), ("Refused", 2), ("TooManyFailures", 3), ("Preempted", 75)])
def test_the_error_of_a_cell_decides_the_exit_code(tmp_path, name, code):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('run: str = ""  # run folder\nseed: int = 0  # of nothing', metadata={"tags": ["parameters"]}),
                                         nbformat.v4.new_code_cell(f"raise type({name!r}, (ValueError,), {{}})('the machine goes')")])
    (tmp_path / "mine").mkdir()
    nbformat.write(nb, tmp_path / "mine" / "10_catalog.ipynb")
    (tmp_path / "mine" / "recipe.yml").write_text("jobs: [10_catalog]\n")
    done = geoseg("run", tmp_path / "mine", "--out", tmp_path / "run")
    assert done.returncode == code and f"{name}: the machine goes" in done.stderr


@pytest.mark.parametrize(("name", "becomes"), [("KeyError", "failed"), ("KeyboardInterrupt", "failed"), ("Preempted", "preempted")])
def test_a_cell_that_fails_after_the_record_takes_complete_back(tmp_path, name, becomes):
    "Else the table of runs says complete, and the next job builds on it"
    sources = ['run: str = ""  # run folder\nseed: int = 0  # of nothing', "from geoseg_nb.stages import open_job, record\nrecord(open_job('10_catalog', run, {}), {'scenes': 3}, {})",
               f"raise type({name!r}, (ValueError,), {{}})('rows')"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nb.cells[0].metadata = {"tags": ["parameters"]}
    nbformat.write(nb, tmp_path / "10_catalog.ipynb")
    step = Step("10_catalog", tmp_path / "run", {}, tmp_path / "10_catalog.ipynb")
    with pytest.raises((JobFailed, KeyboardInterrupt)): execute(step)
    found = read_job(step.folder)
    assert found["status"] == becomes and (becomes == "preempted" or found["metrics"] == {"scenes": 3} and name in found["why"])
    with pytest.raises(Refused, match="no complete 10_catalog"): earlier(step.run, "catalog")


WAITING = """
import os, signal, time
from geoseg_nb.resuming import Preempted, heeding
from geoseg_nb.stages import open_job, record
job = open_job("10_catalog", run, {"way": way})
if not (job.folder / "began").exists():
    (job.folder / "began").touch()
    if way == "killed": os.kill(os.getpid(), signal.SIGKILL)
    if way == "deaf": time.sleep(300)
    with heeding() as noted:
        (job.folder / "heeds").touch()
        while not noted or way == "stubborn": time.sleep(0.02)
        time.sleep(1.5)
        (job.folder / "saved").touch()
    raise Preempted("saved at the notice")
record(job, {}, {})
"""


def waiting_recipe(folder):
    "A recipe of one job that waits for a notice the first time, and is done at once the second time"
    cells = [nbformat.v4.new_code_cell('run: str = ""  # run folder\nway: str = "heeds"  # what it does', metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(WAITING)]
    folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "10_catalog.ipynb")
    (folder / "recipe.yml").write_text("jobs: [10_catalog]\n")
    return folder


def notice(run, condition, *words, signals=(signal.SIGTERM,)):
    "Start a run, send the launcher its signals once a condition holds: exit code, what it said, seconds it took to end"
    place = ["--out", str(run)] if run else []
    process = subprocess.Popen([sys.executable, "-m", "geoseg_nb.cli", "run", *map(str, words), *place],
                               cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # tests in the background ignore it
    end = time.monotonic() + 240
    while not condition() and process.poll() is None and time.monotonic() < end: time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be told"
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.5 if len(signals) > 1 else 0)
    said = process.communicate(timeout=200)[1]
    return process.returncode, said, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_a_notice_reaches_the_kernel_which_saves_and_the_run_ends_with_75(tmp_path, number):
    mine, run = waiting_recipe(tmp_path / "mine"), tmp_path / "run"
    code, said, _ = notice(run, (run / "10_catalog" / "heeds").exists, mine, signals=[number])
    assert code == 75 and "Preempted: saved at the notice" in said and (run / "10_catalog" / "saved").exists()
    left = result(run, "10_catalog")
    assert left["status"] == "preempted" and left["job"] == "10_catalog" and left["seconds"] > 0
    again = geoseg("run", mine, "--out", run)
    assert again.returncode == 0 and result(run, "10_catalog")["status"] == "complete", again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["SIGINT", "SIGTERM"])
def test_what_goes_on_with_a_run_in_a_folder_by_the_clock_is_told(tmp_path, monkeypatch, number, code):
    "Without --out the same words begin another run; the line that is told is typed into a shell as it stands"
    monkeypatch.setenv("GEOSEG_RUNS", str(tmp_path / "my runs"))
    mine, begun = waiting_recipe(tmp_path / "mine"), lambda: list((tmp_path / "my runs").glob("*/*/10_catalog/heeds"))
    ended, said, _ = notice("", begun, mine, "-p", "way=it's", signals=[number])
    assert ended == code
    [line] = [line for line in said.splitlines() if line.startswith("go on with: geoseg run ")]
    command = line.removeprefix("go on with: geoseg ")
    again = subprocess.run(f"{sys.executable} -m geoseg_nb.cli {command}", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    [run] = (tmp_path / "my runs" / "mine").iterdir()
    assert result(run, "10_catalog")["status"] == "complete" and result(run, "10_catalog")["params"] == {"way": "it's"}


def test_a_kernel_that_does_not_heed_a_notice_dies_of_it(tmp_path):
    mine, run = waiting_recipe(tmp_path / "mine"), tmp_path / "run"
    code, said, _ = notice(run, (run / "10_catalog" / "began").exists, mine, "-p", "way=deaf")
    assert code == 75 and "stopped by SIGTERM" in said and result(run, "10_catalog")["status"] == "preempted"
    assert result(run, "10_catalog")["params"] == {"way": "deaf"}


def test_a_second_notice_kills_at_once(tmp_path):
    mine, run = waiting_recipe(tmp_path / "mine"), tmp_path / "run"
    code, _, seconds = notice(run, (run / "10_catalog" / "heeds").exists, mine, "-p", "way=stubborn", signals=[signal.SIGTERM] * 2)
    assert code == 75 and seconds < 15 and result(run, "10_catalog")["status"] == "preempted"


def test_a_notice_while_the_kernel_starts_is_not_lost(tmp_path):
    mine, run = waiting_recipe(tmp_path / "mine"), tmp_path / "run"
    code, _, _ = notice(run, (run / "10_catalog" / "10_catalog.ipynb").exists, mine)
    assert code == 75 and result(run, "10_catalog")["status"] == "preempted"


def test_a_kernel_that_the_system_killed_leaves_a_record_and_a_hint(tmp_path):
    "Fault 36"
    mine, run = waiting_recipe(tmp_path / "mine"), tmp_path / "run"
    done = geoseg("run", mine, "--out", run, "-p", "way=killed")
    assert done.returncode == 1 and re.search(r"out of memory\? the largest process of this launch held [\d.]+ [MG]B\)", done.stderr), done.stderr
    assert result(run, "10_catalog")["status"] == "killed" and (run / "10_catalog" / "10_catalog.ipynb").exists()


def test_sizes_in_errors_are_said_in_powers_of_a_thousand(tmp_path, monkeypatch):
    "As disks are sold, and as every plan says them"
    from geoseg_nb import launch, mirror
    monkeypatch.setattr(launch, "used_kib", lambda whose: 3_000_000)
    assert "held 3.1 GB)" in str(launch.kernel_died("37_train", tmp_path))
    monkeypatch.setattr(mirror, "remote", lambda root: storage(tmp_path))
    monkeypatch.setattr(mirror.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 52_428_800))
    with pytest.raises(GeosegError, match="has 52 MB left on its disk"): mirror._require_room(tmp_path, 30_000_000)


def test_between_two_steps_a_notice_stops_the_run(tmp_path, monkeypatch):
    from geoseg_nb import launch
    steps = bind([launch.Step("10_catalog", tmp_path), launch.Step("11_split", tmp_path)])
    monkeypatch.setattr(launch, "launch", lambda step, say: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(launch.JobFailed, match="11_split: stopped by SIGTERM") as caught: launch.run_steps(steps, tmp_path, [].append)
    assert caught.value.code == 75 and signal.getsignal(signal.SIGTERM) is not launch.pass_on


@pytest.mark.slow
def test_a_training_that_is_told_to_stop_goes_on_to_the_same_weights(floods, tmp_path):
    run = tmp_path / "run"
    code, said, _ = notice(run, (run / "37_train" / "checkpoints" / "last.ckpt").exists, "floods", "--variant", "small")
    assert code == 75 and result(run, "37_train")["status"] == "preempted", said
    done = geoseg("run", "floods", "--variant", "small", "--out", run)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = [r / "37_train" / "model" / "model.safetensors" for r in (run, floods[0])]
    assert sha256(weights[0]) == sha256(weights[1])


def test_a_file_that_a_parameter_names_counts_by_what_it_holds(tmp_path):
    from geoseg_nb import launch
    regions, run = tmp_path / "regions.geojson", tmp_path / "run"
    regions.write_text("{}")
    for values in ({"regions": str(regions)}, {"scenes": [str(regions)]}):
        step = bind([launch.Step("11_split", run, values)])[0]
        before = launch.launch_facts(step)
        launch.write_atomic(step.folder / "result.json", '{"status": "complete", "outputs": {}}')
        launch.write_atomic(step.folder / "launch.json", launch.dumps_json(launch.launch_facts(step)))
        assert launch.stale(step, launch.launch_facts(step)) == "" and before["files"]
        regions.write_text(regions.read_text() + " ")
        assert launch.stale(step, launch.launch_facts(step)) == "files changed"
    inside = run / "11_split" / "result.json"
    assert launch.named_files({"a": str(inside), "b": "x" * 5000, "c": ""}, run) == {}


def test_a_killed_swap_of_folders_leaves_nothing(tmp_path):
    for name in (".geoseg-tmp-0a1b2c3d", ".geoseg-tmp-0a1b2c3d-old"): (tmp_path / "run" / "37_train" / name).mkdir(parents=True)
    with run_lock(tmp_path / "run"): assert not list((tmp_path / "run" / "37_train").iterdir())


def kill_when(run, condition, *words):
    "Start a run in its own session, kill -9 launcher and kernel once a condition holds"
    process = subprocess.Popen([sys.executable, "-m", "geoseg_nb.cli", "run", *map(str, words), "--out", str(run)],
                               cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 240
    while not condition() and process.poll() is None and time.monotonic() < end: time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_kernel_whose_launcher_died_ends_itself_and_the_run_finishes(floods, tmp_path):
    "kill -9 in the middle of train: the same final weights as the undisturbed run"
    run, reference = tmp_path / "run", floods[0]
    kill_when(run, (run / "37_train" / "checkpoints" / "last.ckpt").exists, "floods", "--variant", "small")
    done = geoseg("run", "floods", "--variant", "small", "--out", run)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = [r / "37_train" / "model" / "model.safetensors" for r in (run, reference)]
    assert sha256(weights[0]) == sha256(weights[1])
    stores = [r / result(r, "22_tile")["outputs"]["store"] for r in (run, reference)]
    assert folder_sha256(stores[0]) == folder_sha256(stores[1])


@pytest.mark.slow
def test_bare_papermill_runs_a_job_of_the_recipe(floods, tmp_path):
    run, _ = floods
    done = subprocess.run([Path(sys.executable).with_name("papermill"), ROOT / "nbs/jobs/11_split.ipynb", tmp_path / "out.ipynb",
                           "-f", ROOT / "runs/floods/11_split.yml", "-p", "run", run], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_every_job_runs_on_its_defaults_as_in_lab(tmp_path, monkeypatch):
    "In the order of the recipe, with nothing but the parameter cell; only the run folder and the length of training differ"
    for job in ORDER:
        notebook = next(p for p in JOBS if p.stem == job)
        step = next(s for s in bind(plan_steps(prepare_recipe(), tmp_path)) if s.job == job)
        values = {"epochs": 1} if job == "37_train" else {}
        execute(type(step)(job, tmp_path, values, notebook))


def prepare_recipe():
    from geoseg_nb.jobs import Recipe
    return Recipe(jobs=ORDER)


def test_a_request_is_checked_whole_before_it_starts(tmp_path):
    steps, run = prepare(Request(name="floods", out=str(tmp_path), assignments=["train.epochs=2"]))
    assert [s.job for s in steps] == ORDER and run == tmp_path
    assert next(s.values["epochs"] for s in steps if s.job == "37_train") == 2


@pytest.mark.parametrize("columns", [["unit", "F1", "F1"], ["unit", "", "F1"], ["unit", " ", "F1"], []], ids=["twice", "empty", "blank", "none"])
def test_figures_of_others_have_a_heading_of_their_own_each(columns):
    "Of two equal headings the last value would be shown twice"
    with pytest.raises(Refused, match="of a paper: each needs a heading of its own"):
        make(Published, {"caption": "c", "source": "a paper", "columns": columns, "rows": [[1] * len(columns)]})
