"What the launcher writes of a run, and what the table and the report read from it: nothing is guessed"
import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from geoseg_nb.core import Refused
from geoseg_nb.findings import entries_in, trouble_table
from geoseg_nb.jobs import recipe_folders
from geoseg_nb.launch import inputs_of, note_run, run_steps
from geoseg_nb.places import claimed
from geoseg_nb.profile import time_text
from geoseg_nb.report import report_on
from geoseg_nb.requests import Request, run_note
from geoseg_nb.runs import held, list_runs, note_of, run_table
from geoseg_nb.sections import read_story, what_was_run
from geoseg_nb.storage import run_lock, storage
from house import JOBS


def record(folder, **more):
    "What a job leaves, by hand"
    folder.mkdir(parents=True, exist_ok=True)
    values = {"job": folder.name, "status": "complete", "params": {}, "metrics": {}, "outputs": {}, "seconds": 1.0, **more}
    (folder / "result.json").write_text(json.dumps(values))
    return folder.parent


def noted(run, name, variant=""):
    "A run folder with the record of a launch"
    run.mkdir(parents=True, exist_ok=True)
    note_run(run_note(Request(name=str(name), variant=variant)), run)
    return run


def recipe_file(name):
    return yaml.safe_load((recipe_folders()[name] / "recipe.yml").read_text(encoding="utf-8"))


# what is written

@pytest.mark.parametrize(("name", "variant"), [("floods", ""), ("floods", "small"), ("floods", "seeds"), ("floods", "leave_one_out"), ("full_tile", "map")])
def test_a_run_says_what_it_was_made_from(tmp_path, name, variant):
    "Read back by Python's own parser, and held against recipe.yml"
    said, recipe = json.loads((noted(tmp_path, name, variant) / "run.json").read_text()), recipe_file(name)
    change = recipe["variants"][variant] if variant else {}
    assert (said["recipe"], said["variant"], said["title"]) == (name, variant, recipe["title"])
    assert said["jobs"] == change.get("jobs", recipe["jobs"])
    axes = change.get("matrix", {})
    assert len(said["members"]) == sum(map(len, axes.values())), "each of these matrices has one axis at most"
    for (key, values) in axes.items():
        job, _, parameter = key.partition(".")
        assert [cell[job][parameter] for cell in said["members"].values()] == values


def test_the_launcher_leaves_the_record_in_a_folder_and_in_a_bucket(tmp_path, bucket):
    note = run_note(Request(name="floods", variant="small"))
    for out in (str(tmp_path / "run"), f"s3://{bucket}/runs/mine"):
        run_steps([], claimed(out), [].append, note)
        assert json.loads(storage(out).read("run.json"))["variant"] == "small"


def test_a_job_alone_leaves_the_record_of_the_recipe_as_it_is(tmp_path):
    run = noted(tmp_path, "floods", "small")
    before = (run / "run.json").stat().st_mtime_ns
    for note in (run_note(Request(name="report")), run_note(Request(name="floods", variant="small"))):
        run_steps([], run, [].append, note)
        assert (run / "run.json").stat().st_mtime_ns == before
    assert not (record(tmp_path / "alone" / "10_catalog") / "run.json").exists()


def test_a_secret_in_a_title_is_masked(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "wandb-canary-5c1f")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yml").write_text("title: as wandb-canary-5c1f says\njobs: [10_catalog]\n")
    assert "canary" not in (noted(tmp_path / "run", tmp_path / "mine") / "run.json").read_text()


# what is read

def test_runs_and_report_name_the_recipe_that_was_launched(tmp_path):
    "A copy under another name keeps the title of its own recipe.yml"
    shutil.copytree(recipe_folders()["floods"], tmp_path / "lakes", ignore=shutil.ignore_patterns("sample"))
    shutil.copytree(recipe_folders()["floods"], tmp_path / "elsewhere" / "floods", ignore=shutil.ignore_patterns("sample"))
    text = (tmp_path / "elsewhere" / "floods" / "recipe.yml").read_text().replace(recipe_file("floods")["title"], "Lakes of my own")
    (tmp_path / "elsewhere" / "floods" / "recipe.yml").write_text(text)
    for place, name, title in ((tmp_path / "lakes", "lakes", recipe_file("floods")["title"]), (tmp_path / "elsewhere" / "floods", "floods", "Lakes of my own")):
        run = record(noted(tmp_path / "out" / title[:5], place, "small") / "10_catalog")
        assert run_table(run)["recipe"].tolist() == [name]
        assert f"Recipe **{name}**, variant small: {title[:5]}" in what_was_run(read_story([run])).text
        assert report_on([run]).title == title


def test_without_a_record_nothing_is_guessed(tmp_path):
    "The values and the folder are those of a recipe of the package; made by bare papermill or by an older version"
    run = record(tmp_path / "floods" / "20260102-030405" / "11_split", params={"buffer": 8})
    (run / "11_split" / "launch.json").write_text(json.dumps({"values": yaml.safe_load((recipe_folders()["floods"] / "11_split.yml").read_text())}))
    assert run_table(run)["recipe"].tolist() == [""] and list_runs(str(run))[1].startswith("-  ")
    report = report_on([run])
    assert report.title == "Report on 20260102-030405" and "Recipe -" in what_was_run(read_story([run])).text
    assert not trouble_table(entries_in([run]))["what"].str.contains("was not run").any()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": 3}', '{"recipe": ["x"], "jobs": "11_split"}', '{"jobs": [1]}', "\xff", "[" * 100_000])
def test_a_damaged_record_of_a_run_is_named_and_stops_nothing(tmp_path, text):
    run = record(tmp_path / "10_catalog")
    (run / "run.json").write_bytes(text.encode("latin-1"))
    assert note_of(run)[0].recipe == "" and "run.json" in list_runs(str(run))[-1]
    assert trouble_table(entries_in([run]))["what"].str.contains("run.json").any() and report_on([run]).sections


def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known(tmp_path):
    run = record(noted(tmp_path, "floods") / "10_catalog")
    said = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**said, "weather": "fair"}))
    assert run_table(run)["recipe"].tolist() == ["floods"]


@pytest.mark.parametrize(("name", "variant"), [("full_tile", "map"), ("full_tile", ""), ("floods", "")])
def test_missing_is_what_the_recipe_and_its_variant_name(tmp_path, name, variant):
    run, recipe = noted(tmp_path, name, variant), recipe_file(name)
    wanted = (recipe["variants"][variant] if variant else recipe).get("jobs")
    for job in wanted: record(run / job)
    assert not trouble_table(entries_in([run]))["what"].str.contains("was not run").any()
    shutil.rmtree(run / wanted[-1])
    table = trouble_table(entries_in([run]))
    assert table.loc[table["what"] == "was not run", "job"].tolist() == [wanted[-1]]


def test_a_run_that_only_maps_has_no_section_on_what_it_was_not_to_do(tmp_path):
    run = noted(tmp_path, "full_tile", "map")
    for job in recipe_file("full_tile")["variants"]["map"]["jobs"]: record(run / job)
    report, titles = report_on([run]), ["Split", "Training", "Scores"]
    assert not {section.title for section in report.sections} & set(titles) and "nothing was to be evaluated" in report.lead
    assert "Nothing: every job is complete" in next(s.text for s in report.sections if s.title == "What went wrong")
    (run / "run.json").unlink()
    assert {section.title for section in report_on([run]).sections} > set(titles), "where the recipe is not known, the reader is told what there is not"


# who holds a run

def test_a_run_is_held_by_the_process_that_took_its_lock_and_by_no_later_one_of_its_number(tmp_path):
    "The lock is a day older than the process whose number it names, as after a reboot"
    with run_lock(tmp_path):
        assert held(tmp_path)
        left = (tmp_path / ".lock").read_text()
    assert not held(tmp_path)
    (tmp_path / ".lock").write_text(left)
    assert json.loads(left)["pid"] == os.getpid() and held(tmp_path)
    then = (tmp_path / ".lock").stat().st_mtime - 86_400
    os.utime(tmp_path / ".lock", (then, then))
    assert not held(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", '{"pid": "1"}', '{"pid": -1}', '{"pid": 4194305}', '{"pid": null}', '{"pid": 1e99}'])
def test_a_lock_that_names_no_process_holds_nothing(tmp_path, text):
    values = json.loads(text)
    (tmp_path / ".lock").write_text(json.dumps({**values, "host": os.uname().nodename} if isinstance(values, dict) else values))
    assert not held(tmp_path)


# what a job reads

def test_a_job_declares_in_code_what_it_reads():
    "Prose that quotes a call is no declaration; the page is written again after each job that it tells of"
    report = next(path for path in JOBS if path.stem == "62_report")
    assert inputs_of(report) == ["catalog", "evaluate", "predict", "split", "tile", "train"]
    quoted = [cell for cell in json.loads(report.read_text())["cells"] if cell["cell_type"] == "markdown" and "earlier(" in "".join(cell["source"])]
    assert not quoted


READS = {"10_catalog": [], "19a_check": [], "11_split": ["catalog"], "22_tile": ["catalog"], "95_bench": [], "37_train": ["split", "tile"], "42_predict": ["catalog", "train"],
         "43_evaluate": ["catalog", "split", "train"], "62_report": ["catalog", "evaluate", "predict", "split", "tile", "train"]}


def test_what_each_job_reads():
    assert {path.stem: inputs_of(path) for path in JOBS} == READS


@pytest.mark.parametrize(("code", "reads"), [
    ("x = 1  # earlier(run, 'tile')", []), ("x = 'earlier(run, \"tile\")'", []), ("not_earlier(run, 'tile')", []),
    ("if x: y = [earlier(\n    run,\n    'tile'  # of it\n)]", ["tile"]), ("begun(run, 'split', '22_tile')", ["split", "tile"]),
    ("%matplotlib inline\nfiles = !ls\nearlier(run, 'tile')", ["tile"]), ("%%time\nearlier(run, 'tile')", ["tile"]),
    ("earlier(run, 'tile'", []), ("", [])])
def test_comments_and_texts_are_no_input_and_magics_hide_none(tmp_path, code, reads):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "10_x.ipynb")
    assert inputs_of(tmp_path / "10_x.ipynb") == reads


def test_prose_is_no_input(tmp_path):
    cells = [{"cell_type": "markdown", "metadata": {}, "source": ['as `earlier(run, "tile")` does']},
             {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": ['x = earlier(run, "split")']}]
    (tmp_path / "10_x.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert inputs_of(tmp_path / "10_x.ipynb") == ["split"]
    (tmp_path / "11_x.ipynb").write_text("{")
    with pytest.raises(Refused, match="11_x.ipynb is no notebook"): inputs_of(tmp_path / "11_x.ipynb")


def test_the_table_of_runs_imports_nothing_heavy(tmp_path):
    record(noted(tmp_path, "floods") / "10_catalog")
    code = (f"import sys; from geoseg_nb.runs import list_runs; print(*list_runs({str(tmp_path)!r}), sep=chr(10)); "
            "assert not {'torch', 'rasterio', 'matplotlib'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "floods" in done.stdout, done.stderr


@pytest.mark.parametrize(("seconds", "said"), [
    (0.01, "0 s"), (9.96, "10 s"), (41, "41 s"), (119, "119 s"), (120, "2.0 min"), (7199, "120 min"), (7200, "2.0 h"),
    (172_799, "48 h"), (172_800, "2.0 d"), (10**6, "12 d"), (float("nan"), "unknown")])
def test_a_duration_is_said_in_one_way(seconds, said):
    assert time_text(seconds) == said
