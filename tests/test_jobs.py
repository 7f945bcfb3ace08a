"The launcher and the jobs, end to end on the bundled sample"
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from geoseg_nb.core import Refused
from geoseg_nb.jobs import bind, check_values, parameters_cell, plan_steps, read_parameters
from geoseg_nb.launch import Request, execute, prepare
from geoseg_nb.storage import folder_sha256, sha256
from house import JOBS, ROOT

ORDER = ["10_catalog", "22_tile", "11_split", "37_train", "43_evaluate", "42_predict"]


def geoseg(*words, cwd=ROOT, **environment):
    "Run the program; the finished process"
    return subprocess.run([sys.executable, "-m", "geoseg_nb.cli", *map(str, words)], cwd=cwd, capture_output=True, text=True,
                          timeout=900, env={**os.environ, **environment})


@pytest.fixture(scope="session")
def floods(tmp_path_factory):
    "One small run of the whole recipe"
    run = tmp_path_factory.mktemp("runs") / "floods"
    done = geoseg("run", "floods", "--variant", "small", "--out", run)
    assert done.returncode == 0, done.stderr[-3000:]
    return run, done.stdout


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


def test_the_same_command_again_skips_everything(floods):
    run, _ = floods
    before = {job: sha256(run / job / "result.json") for job in ORDER}
    began = time.monotonic()
    again = geoseg("run", "floods", "--variant", "small", "--out", run)
    assert again.returncode == 0 and again.stdout.count("complete and unchanged, skipped") == len(ORDER)
    assert before == {job: sha256(run / job / "result.json") for job in ORDER} and time.monotonic() - began < 20


def test_a_changed_parameter_runs_again_and_says_why(floods):
    run, _ = floods
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


def test_a_job_run_alone_sees_that_its_input_changed(tmp_path):
    run = tmp_path / "run"
    for words in (["catalog"], ["split"], ["catalog", "-p", "options={place: '{place}_{chip}'}"]):
        assert geoseg("run", *words, "--out", run).returncode == 0
    assert "earlier changed, runs again" in geoseg("run", "split", "--out", run).stdout


def test_a_result_of_another_hand_is_not_taken_for_ones_own(tmp_path):
    run = tmp_path / "run"
    for words in (["catalog"], ["split", "-p", "buffer=8"]): assert geoseg("run", *words, "--out", run).returncode == 0
    path = run / "11_split" / "result.json"
    path.write_text(path.read_text().replace('"buffer": 8', '"buffer": 64'))
    assert "result changed, runs again" in geoseg("run", "split", "--out", run, "-p", "buffer=8").stdout


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
    from geoseg_nb.storage import run_lock
    with run_lock(tmp_path / "run"): done = geoseg("run", "catalog", "--out", tmp_path / "run")
    assert done.returncode == 2 and "held by" in done.stderr


def test_a_recipe_folder_with_a_stray_file_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yml").write_text("jobs: [10_catalog]\n")
    (tmp_path / "mine" / "37_train.yml").write_text("epochs: 3\n")
    done = geoseg("run", tmp_path / "mine", "--out", tmp_path / "run")
    assert done.returncode == 2 and "37_train" in done.stderr


def kill_when(run, condition, *words):
    "Start a run in its own session, kill -9 launcher and kernel once a condition holds"
    process = subprocess.Popen([sys.executable, "-m", "geoseg_nb.cli", "run", *map(str, words), "--out", str(run)],
                               cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 240
    while not condition() and process.poll() is None and time.monotonic() < end: time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


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


@pytest.mark.slow
def test_the_wheel_runs_from_an_empty_folder(tmp_path):
    "Jobs, recipes and sample travel inside"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", ROOT, "--no-deps", "-w", tmp_path / "dist"], check=True, timeout=300, cwd=tmp_path)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True, timeout=300)
    (tmp_path / "empty").mkdir()
    where = {"PYTHONPATH": str(tmp_path / "site")}
    assert "floods" in geoseg("jobs", cwd=tmp_path / "empty", **where).stdout
    done = geoseg("run", "catalog", "--out", "out", cwd=tmp_path / "empty", **where)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in (tmp_path / "empty" / "out" / "10_catalog" / "result.json").read_text()


def prepare_recipe():
    from geoseg_nb.jobs import Recipe
    return Recipe(jobs=ORDER)


def test_a_request_is_checked_whole_before_it_starts(tmp_path):
    steps, run = prepare(Request(name="floods", out=str(tmp_path), assignments=["train.epochs=2"]))
    assert [s.job for s in steps] == ORDER and run == tmp_path
    assert next(s.values["epochs"] for s in steps if s.job == "37_train") == 2
