"Runs as a table, and the report: one page that stands alone, of runs that are whole, cut short, damaged or from elsewhere"
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser

import nbformat
import numpy as np
import pandas as pd
import pytest
from geoseg_nb.comparisons import plot_axis_times
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.findings import (
    axes_between, entries_in, judgements, member_table, parameter_table, pooled_classes, scene_table, training_seconds, trouble_table)
from geoseg_nb.launch import gather
from geoseg_nb.pages import Section, drawing_block, leaks, notebook_of, page_of, table_block
from geoseg_nb.report import ReportSpec, is_measure, make_report, published
from geoseg_nb.requests import Request, run_note
from geoseg_nb.runs import find_runs, list_runs, members_of, read_job, run_table
from geoseg_nb.sections import read_story
from house import geoseg
from PIL import Image

HOSTILE = '<script>alert(1)</script>"[x](javascript:alert(2))'


def put(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def job(folder, metrics=None, status="complete", **params):
    "What a job leaves, written by hand"
    values = {"job": folder.name, "status": status, "params": params, "metrics": metrics or {}, "outputs": {}, "seconds": 60.0, "peak_rss_mb": 100.0}
    put(folder / "launch.json", {"values": params})
    return put(folder / "result.json", values)


def of_class(matrix, i):
    "Scores of a class by the textbook, from counts"
    hit, label, found = matrix[i][i], sum(matrix[i]), sum(row[i] for row in matrix)
    return {"iou": hit / (label + found - hit), "f1": 2 * hit / (label + found), "precision": hit / found, "recall": hit / label, "support": label}


def evaluated(matrix, baseline, scenes=(), names=("dry", "water")):
    "Metrics of an evaluation, from counts"
    per_class = {name: of_class(matrix, i) for i, name in enumerate(names)}
    mean = sum(c["iou"] for c in per_class.values()) / len(names)
    each = {scene: {"per_class": {n: of_class(m, i) for i, n in enumerate(names)}, "mean_iou": 0.5} for scene, m in scenes}
    return {"per_class": per_class, "mean_iou": mean, "confusion": matrix, "baseline": {"confusion": baseline, "rule": "water: VH < -23"},
            "scenes": each, "summary": [], "unscored": [], "failed": {}, "note": ""}


@pytest.fixture
def matrix(tmp_path):
    "Three members: two whole, one killed while it trained; what they share stands above"
    run = tmp_path / "runs" / "floods" / "20260102-030405"
    job(run / "10_catalog", {"scenes": 4, "pixels": 400})
    for fraction, hits in ((0.1, 60), (0.5, 90)):
        member = run / f"fraction-{fraction}"
        job(member / "37_train", {"val/iou": hits / 100, "epoch": 2}, fraction=fraction, epochs=3, monitor="val/iou")
        scenes = [("Spain", [[90, 10], [100 - hits, hits]]), ("Nile", [[50, 50], [0, 100]])]
        job(member / "43_evaluate", evaluated([[140, 60], [100 - hits, 100 + hits]], [[100, 100], [100, 100]], scenes), part="test")
    put(run / "fraction-1.0" / "37_train" / "params.json", {"fraction": 1.0})
    put(run / "members.json", ["fraction-0.1", "fraction-0.5", "fraction-1.0"])
    put(run / "run.json", {"recipe": "floods", "jobs": ["10_catalog", "22_tile", "11_split", "37_train", "43_evaluate"]})
    return run


class Page(HTMLParser):
    "What a browser would find in a page, by Python's own parser"

    def __init__(self, text):
        super().__init__()
        self.tags, self.targets, self.links, self.images, self.text = [], set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.targets.add(values.get("id"))
        self.links += [values[name] for name in ("href", "src", "srcset", "action", "data", "poster") if values.get(name)]
        self.images += [values["src"]] if tag == "img" else []
        assert not [name for name in values if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    "The page, after what must hold of every page: nothing from outside, whole pictures, links that lead somewhere"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(text) < 5_000_000 and not {"script", "iframe", "link", "object", "embed", "form", "base"} & set(page.tags)
    assert all(link.startswith(("data:image/", "#")) for link in page.links), [link[:60] for link in page.links]
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.targets
    assert "url(" not in text and "@import" not in text and "Content-Security-Policy" in text
    for source in page.images: Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).load()
    return " ".join(" ".join(page.text).split()), page


# the table of runs

def test_every_run_and_member_is_a_row_and_no_second_counts_twice(matrix):
    table = run_table(matrix.parents[1])
    assert table["member"].tolist() == ["(shared)", "fraction-0.1", "fraction-0.5", "fraction-1.0"]
    assert table["status"].tolist() == ["complete", "complete", "complete", "unfinished"] and set(table["recipe"]) == {"floods"}
    assert table["seconds"].sum() == 5 * 60 and table["metric"].tolist() == ["", "test/iou_water", "test/iou_water", ""]
    expected = [160 / (200 + 220 - 160), 190 / (200 + 250 - 190)]
    assert np.allclose(table["value"].iloc[1:3], expected)
    assert find_runs(matrix.parents[1]) == [matrix] and len(list_runs(str(matrix))) == 5


def test_more_than_two_classes_are_told_by_their_mean_and_a_training_by_what_it_watched(tmp_path):
    metrics = evaluated([[8, 1, 1], [1, 8, 1], [1, 1, 8]], [[10, 0, 0], [10, 0, 0], [10, 0, 0]], names=("a", "b", "c"))
    job(tmp_path / "one" / "43_evaluate", metrics, part="val")
    job(tmp_path / "two" / "37_train", {"val/f1": 0.5}, monitor="val/f1")
    rows = run_table(tmp_path).set_index("run")
    assert rows.loc["one", "metric"] == "val/iou" and np.isclose(rows.loc["one", "value"], 8 / 12)
    assert rows.loc["two", ["metric", "value"]].tolist() == ["val/f1", 0.5]


@pytest.mark.parametrize(("text", "says"), [
    ('{"status": "complete", "metr', "not JSON"), ("[]", "no job in result.json"), ('{"answer": 42}', "no job in result.json"), ("\xff\xfe", "UnicodeDecodeError"),
    ('{"job": "x", "status": 3, "params": {}, "metrics": {}, "outputs": {}}', "no status"), ("[" * 100_000, "not JSON")])
def test_a_damaged_or_foreign_record_is_named_and_stops_nothing(matrix, text, says):
    bad = matrix / "fraction-0.1" / "43_evaluate" / "result.json"
    bad.write_bytes(text.encode("latin-1"))
    lines = list_runs(str(matrix))
    assert says in lines[-1] and "43_evaluate" in lines[-1] and sum("complete" in line for line in lines) == 2


@pytest.mark.slow
def test_a_damaged_record_is_named_in_the_report(matrix):
    (matrix / "fraction-0.1" / "43_evaluate" / "result.json").write_text('{"status": ')
    said, _ = read(make_report(ReportSpec(runs=[str(matrix)]), matrix / "62_report"))
    assert "result.json: not JSON" in said and "IoU of water 0.731 on" in said


def test_a_broken_list_of_members_still_shows_them(matrix):
    (matrix / "members.json").write_text('["fraction-0.1", ')
    assert [path.name for path in members_of(matrix)] == ["fraction-0.1", "fraction-0.5", "fraction-1.0"]
    (matrix / "members.json").write_text('["../../etc", "fraction-0.5"]')
    assert [path.name for path in members_of(matrix)] == ["fraction-0.5"]


def test_times_are_in_utc_wherever_the_machine_stands(matrix, monkeypatch):
    folder = matrix / "10_catalog"
    os.utime(folder / "result.json", (1_767_323_045,) * 2)
    os.utime(folder / "launch.json", (1_767_323_045,) * 2)
    for zone in ("UTC", "Asia/Tokyo", "America/Lima"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert read_job(folder)["when"] == "2026-01-02 03:04:05"
    monkeypatch.delenv("TZ")
    time.tzset()


def test_a_run_whose_process_lives_is_running(matrix):
    put(matrix / ".lock", {"pid": os.getpid(), "host": os.uname().nodename})
    assert read_job(matrix / "fraction-1.0" / "37_train")["status"] == "running"
    put(matrix / ".lock", {"pid": os.getpid(), "host": "elsewhere"})
    assert read_job(matrix / "fraction-1.0" / "37_train")["status"] == "unfinished"


def test_the_table_needs_neither_torch_nor_rasterio(matrix):
    code = f"import sys; from geoseg_nb.runs import list_runs; print(*list_runs({str(matrix)!r}), sep=chr(10)); assert not {{'torch', 'rasterio', 'matplotlib'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "fraction-0.5" in done.stdout, done.stderr


def test_a_folder_without_runs_says_so(tmp_path):
    assert list_runs(str(tmp_path)) == [f"no run in {tmp_path}"]
    with pytest.raises(Refused, match="no folder"): list_runs(str(tmp_path / "nowhere"))


# what a report finds

def test_members_are_pooled_averaged_and_spread_as_numpy_does(matrix):
    found = judgements(entries_in([matrix]))
    table = member_table(found).set_index("member")
    ious = np.array([160 / 260, 190 / 260])
    assert np.allclose(table.loc[["fraction-0.1", "fraction-0.5"], "iou_water"], ious)
    assert np.isclose(table.loc["mean", "iou_water"], ious.mean()) and np.isclose(table.loc["std", "iou_water"], ious.std(ddof=1))
    assert np.isclose(table.loc["pooled", "iou_water"], 350 / 520) and np.isclose(table.loc["baseline, pooled", "iou_water"], 1 / 3)
    scenes = scene_table(found).set_index("scene")
    assert np.isclose(scenes.loc["Spain", "score"], np.mean([60 / 110, 90 / 110])) and scenes.loc["Nile", "members"] == 2


def test_what_differs_between_members_is_the_axis(matrix):
    assert axes_between(entries_in([matrix])[:2]) == {"fraction": [0.1, 0.5]}
    killed = trouble_table(entries_in([matrix])).query("run == 'fraction-1.0'")
    assert set(killed["job"]) == {"37_train", "22_tile", "11_split", "43_evaluate"} and killed["what"].str.contains("did not end").any()


def test_a_result_that_somebody_changed_is_named(matrix):
    from geoseg_nb.launch import digest
    from geoseg_nb.spec import dumps_json
    path = matrix / "10_catalog" / "result.json"
    put(matrix / "10_catalog" / "launch.json", {"values": {}, "result": digest(dumps_json(json.loads(path.read_text())).encode())})
    assert not trouble_table(entries_in([matrix]))["what"].str.contains("changed").any()
    path.write_text(path.read_text().replace('"scenes": 4', '"scenes": 5'))
    assert trouble_table(entries_in([matrix]))["what"].str.contains("changed").any()


def test_classes_keep_the_order_of_their_matrix_through_json(tmp_path):
    "Keys of a record are sorted, its matrix is not: scores by counting by hand, in the report, the summary and the table of runs"
    names, counts = ("water", "dry", "ice"), [[5, 5, 0], [0, 80, 0], [2, 0, 8]]
    truth = {"water": 5 / 12, "dry": 80 / 85, "ice": 8 / 10}
    for seed in (0, 1):
        job(tmp_path / f"seed-{seed}" / "37_train", seed=seed)
        told = json.loads(json.dumps({**evaluated(counts, counts, names=names), "classes": names}, sort_keys=True))
        job(tmp_path / f"seed-{seed}" / "43_evaluate", told, part="test")
    put(tmp_path / "members.json", ["seed-0", "seed-1"])
    found = judgements(entries_in([tmp_path]))
    table, each = member_table(found).set_index("member"), pooled_classes(found, {}).set_index("name")
    together = gather([j.record for j in found])["pooled"]
    for name, iou in truth.items():
        assert np.isclose([table.loc["seed-0", f"iou_{name}"], each.loc[name, "iou"], together[name]], iou).all(), name
    assert list(each["support"]) == [20, 160, 20]


def test_the_class_to_look_at_is_the_last_of_the_legend_and_not_of_the_alphabet(tmp_path):
    told = {**evaluated([[90, 10], [40, 60]], [[1, 1], [1, 1]], names=("rock", "ice")), "classes": ["rock", "ice"]}
    job(tmp_path / "run" / "43_evaluate", json.loads(json.dumps(told, sort_keys=True)), part="test")
    row = run_table(tmp_path).iloc[0]
    assert row["metric"] == "test/iou_ice" and np.isclose(row["value"], 60 / 110)


def test_the_time_of_a_training_is_that_of_its_epochs_also_before_a_kill(matrix):
    entries = entries_in([matrix])
    (matrix / "fraction-0.5" / "37_train" / "metrics.csv").write_text("epoch,epoch_seconds\n0,100\n1,110\n2,120\n")
    assert np.array_equal([training_seconds(entry) for entry in entries], [60, 330, np.nan], equal_nan=True)


@pytest.mark.parametrize(("axis", "values", "measured"), [
    ("fraction", [0.1, 0.5], True), ("lr", [1, 0.001], True), ("seed", [0, 1], False), ("fold", [0, 1], False), ("ema", [True, False], False), ("loss", ["dice", "focal"], False)])
def test_time_is_drawn_against_numbers_that_can_cost(axis, values, measured):
    assert is_measure(axis, values) == measured


@pytest.mark.parametrize(("values", "seconds", "scales", "unit"), [
    ([0.01, 0.1], [20, 3000], ("log", "log"), "min"), ([0.01, 0.1], [20, 30], ("log", "linear"), "s"), ([1, 2], [9000, 99_000], ("linear", "linear"), "h"),
    ([0, 0.5], [1, np.nan], ("linear", "linear"), "s")])
def test_axes_are_logarithmic_where_they_span_much_and_points_lie_where_they_were_measured(values, seconds, scales, unit):
    from matplotlib import pyplot as plt
    ax = plot_axis_times(pd.DataFrame({"value": values, "seconds": seconds}), "fraction")
    size = {"s": 1, "min": 60, "h": 3600}[unit]
    assert (ax.get_xscale(), ax.get_yscale()) == scales and ax.get_xlabel() == "fraction" and ax.get_ylabel() == f"time of training ({unit})"
    known = [(v, s / size) for v, s in zip(values, seconds) if not np.isnan(s)]
    assert np.allclose(ax.collections[-1].get_offsets(), known) and (scales[1] == "log" or ax.get_ylim()[0] == 0)
    plt.close(ax.figure)


# the page

def test_figures_of_others_stand_by_themselves_as_they_were_published(matrix):
    note = json.loads((matrix / "run.json").read_text())
    figures = {"caption": "A net <b>", "source": "a paper", "columns": ["share", "training (s)"], "rows": [[0.01, 186.1], [0.1, 1555.0]]}
    put(matrix / "run.json", {**note, "published": [figures]})
    section = published(read_story([matrix]))
    assert "other data, other hardware" in section.text and "not a comparison" in section.text
    text = section.blocks[0].html
    assert "A net &lt;b&gt; Source: a paper." in text and text.index("<th class=n>share") < text.index("<th class=n>training (s)")
    assert [text.count(f"<td class=n>{value}</td>") for value in ("0.01", "186.1", "0.1", "1555.0")] == [1] * 4
    put(matrix / "run.json", {**note, "published": [{**figures, "rows": 3}]})
    assert published(read_story([matrix])) is None and trouble_table(entries_in([matrix]))["what"].str.contains("run.json is damaged").any()


def test_the_recipe_carries_the_published_figures_and_no_others_print_any(matrix):
    "The counts of patches are those of the official table"
    assert published(read_story([matrix])) is None
    note = run_note(Request(name="bigearthnet_fractions", variant="small"))
    training, conversion = note.published
    assert len(training.rows) == 16 and training.rows[0] == [0.01, 1, 16, 186.1, 9.5, 206.0, 0.318] and training.rows[-1][-1] == 0.561
    assert [row[1:4] for row in conversion.rows] == [[2379, 1223, 1198], [7136, 3670, 3595], [11894, 6117, 5991], [23787, 12234, 11982]]
    assert all("plots.ipynb" in each.source for each in note.published)


def test_the_page_of_a_matrix_tells_members_axis_and_who_is_missing(matrix):
    said, page = read(make_report(ReportSpec(), matrix / "62_report"))
    assert "IoU of water 0.673 ± 0.082 over 2 of 3 members" in said and "0.340 above the baseline" in said
    assert "IoU of water against fraction" in said and "Time of training against fraction" in said and "was begun and did not end" in said and "No complete split in this run." in said
    assert not (matrix / "62_report" / "result.json").exists() and len(page.images) >= 5


@pytest.mark.slow
def test_many_runs_and_single_members_go_into_one_report(matrix, tmp_path):
    other = tmp_path / "elsewhere" / "second"
    shutil.copytree(matrix / "fraction-0.5", other)
    said, _ = read(make_report(ReportSpec(runs=[str(other), str(matrix / "fraction-0.1")], title="Two runs"), tmp_path / "out" / "62_report"))
    assert said.startswith("Two runs") and "second" in said and "/fraction-0.1" in said and "2 runs or members" in said
    with pytest.raises(GeosegError, match="no job of geoseg_nb"): make_report(ReportSpec(runs=[str(tmp_path / "none")]), tmp_path / "out" / "62_report")


@pytest.mark.slow
def test_a_run_without_an_evaluation_says_what_is_missing(matrix):
    for member in members_of(matrix): shutil.rmtree(member / "43_evaluate", ignore_errors=True)
    said, _ = read(make_report(ReportSpec(), matrix / "62_report"))
    assert "No score : 3 runs without a complete evaluation" in said and "no score on unseen ground" in said and "43_evaluate was not run" in said.replace("  ", " ")


@pytest.mark.slow
def test_records_of_another_version_cost_a_section_and_not_the_page(matrix):
    path = matrix / "fraction-0.5" / "43_evaluate" / "result.json"
    record = json.loads(path.read_text())
    record["metrics"]["scenes"] = {"Spain": {"iou": 0.5}}
    put(path, record)
    said, _ = read(make_report(ReportSpec(), matrix / "62_report"))
    assert "This section could not be written: KeyError" in said and "Cost of each job" in said


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    "The page of a run that means ill: names that are markup, credentials, a record and a picture that are none"
    run = tmp_path_factory.mktemp("hostile") / "run"
    job(run / "10_catalog", {"scenes": 4, "failed": {"a": "s3://me:canary-77@host/bucket is gone"}},
        root="https://me:canary-77@host/x", options={"api_key": "canary-77", "x": 1})
    job(run / "22_tile", {"skipped_scenes": [HOSTILE, "$x$ `y` | z"]}, size=64)
    put(run / "10_catalog" / "figures" / "x", 0)
    (run / "10_catalog" / "figures" / "footprints.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    put(run / "11_split" / "result.json", [])
    scenes = [(HOSTILE, [[90, 10], [10, 90]])]
    job(run / "43_evaluate", evaluated([[90, 10], [10, 90]], [[50, 50], [50, 50]], scenes, names=("dry", HOSTILE)), part=HOSTILE)
    return make_report(ReportSpec(title=HOSTILE), run / "62_report")


def test_names_that_look_like_markup_are_shown_as_names(hostile):
    said, _ = read(hostile)
    assert said.startswith(HOSTILE) and said.count("<script>alert(1)</script>") >= 5 and "$x$ `y` | z" in said


def test_no_credential_reaches_the_page(hostile):
    assert "***" in read(hostile)[0] and not [p for p in hostile.parent.iterdir() if b"canary-77" in p.read_bytes()]


def test_a_damaged_record_and_a_damaged_picture_are_named_in_the_page(hostile):
    said, _ = read(hostile)
    assert "footprints.png" in said and "is no picture" in said and "no job in result.json" in said and "No complete split in this run." in said


def test_a_page_that_would_fetch_anything_is_refused():
    for bad in ('<img src="https://a.b/c.png">', "<script>f()</script>", '<a href="//a.b">', '<p onclick="f()">', '<i style="background:url(x)">', '<img src="file:///etc/passwd">'):
        assert leaks(bad), bad
        with pytest.raises(GeosegError, match="stand alone"): page_of(notebook_of("x", "", [Section("A", "", [type("B", (), {"html": bad})()])], ""))
    assert not leaks('<a href="#a"><img src="data:image/png;base64,AA==">')


def test_numbers_stand_right_and_the_unknown_is_a_dash():
    from matplotlib import pyplot as plt
    text = table_block(pd.DataFrame({"name": ["a", "b"], "n": [1234, 5], "x": [0.12345, None]}), {"name": "name", "n": "n", "x": "x"}, "T").html
    assert "<th class=n>n</th>" in text and "<td class=n>1,234</td>" in text and "<td class=n>0.123</td>" in text and "<td class=n>–</td>" in text
    drawing_block(plt.subplots()[1], "x")
    assert not plt.get_fignums()


def test_the_report_of_a_real_run_tells_its_numbers(floods, tmp_path):
    "Copied as if to another machine: the source folder of the data is of no use there"
    run = tmp_path / "copy"
    shutil.copytree(floods[0], run, ignore=shutil.ignore_patterns("62_report", "*.ckpt"))
    said, page = read(make_report(ReportSpec(), run / "62_report"))
    metrics = json.loads((run / "43_evaluate" / "result.json").read_text())["metrics"]
    water, base = metrics["per_class"]["water"]["iou"], metrics["baseline"]["per_class"]["water"]["iou"]
    assert f"IoU of water {water:.3f}" in said and f"baseline {base:.3f}" in said and f"{metrics['pixels']:,} labelled pixels" in said
    for name in ("Floods mapped from Sentinel-1", "Ghana_83483", "Paraguay_34417", "1,210", "tile store", "epochs 2 20", "Learning curves", "Maps as they are delivered"):
        assert name in said, name
    assert json.loads((run / "22_tile" / "result.json").read_text())["outputs"]["store_hash"] in said
    assert len(page.images) >= 11 and parameter_table(entries_in([run]))["parameter"].tolist().count("epochs") == 1
    assert str(tmp_path) not in said and "hostname" not in said


@pytest.mark.slow
def test_the_report_job_runs_on_a_finished_run_and_again_when_it_changed(floods, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(floods[0], run, ignore=shutil.ignore_patterns("62_report"))
    done = geoseg("run", "report", "--out", run)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((run / "62_report" / "result.json").read_text())
    assert record["status"] == "complete" and record["metrics"]["runs"] == 1 and record["outputs"]["page"] == "62_report/report.html"
    assert "skipped" in geoseg("run", "report", "--out", run).stdout
    train = run / "37_train" / "result.json"
    train.write_text(train.read_text().replace('"epoch": ', '"epoch":  ').replace('"notes": []', '"notes": ["a note"]'))
    assert "earlier changed, runs again" in geoseg("run", "report", "--out", run).stdout
    assert "a note" in read(run / "62_report" / "report.html")[0]
    done = geoseg("run", "report", "--out", tmp_path / "both", "-p", f"runs=[{run}, {run / 'nowhere'}]")
    assert done.returncode == 2 and "no job of geoseg_nb" in done.stderr
    assert geoseg("run", "report", "--out", tmp_path / "both", "-p", f"runs=[{run}]").returncode == 0 and (tmp_path / "both" / "62_report" / "report.html").exists()


@pytest.mark.slow
def test_the_notebook_of_a_report_can_be_run_again_elsewhere(matrix, tmp_path):
    from nbclient import NotebookClient
    make_report(ReportSpec(), matrix / "62_report")
    shutil.move(matrix, tmp_path / "moved")
    path = tmp_path / "moved" / "62_report" / "report.ipynb"
    before, notebook = nbformat.read(path, 4), nbformat.read(path, 4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    tables = [[o["data"]["text/html"] for c in nb.cells for o in c.get("outputs", []) if "<table" in o.get("data", {}).get("text/html", "")] for nb in (before, notebook)]
    assert len(tables[0]) > 4 and tables[0] == tables[1]


def chromium():
    "Headless Chromium, or a skip"
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("no chromium: apt-get install chromium")


def opened(page, folder, *options):
    "What Chromium prints of a page; it may ask nobody for anything"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder}", "--enable-logging=stderr", "--log-level=0"]
    return subprocess.run([chromium(), *quiet, *options, page.as_uri()], capture_output=True, text=True, timeout=180)


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_draws_the_page(floods, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(floods[0], run, ignore=shutil.ignore_patterns("62_report", "*.ckpt"))
    page = make_report(ReportSpec(), run / "62_report")
    done = opened(page, tmp_path / "a", "--dump-dom")
    dom = Page(done.stdout)
    assert "What went wrong" in " ".join(dom.text) and len(dom.images) >= 11 and dom.tags.count("table") >= 8
    assert not re.search(r"Refused to|Content Security Policy|Failed to load", done.stderr), done.stderr[-1500:]
    for width, name in ((1200, "wide"), (500, "phone")):
        picture = tmp_path / f"{name}.png"
        opened(page, tmp_path / name, f"--screenshot={picture}", f"--window-size={width},3000")
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert pixels.shape[:2] == (3000, width) and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
        assert (pixels[:, -4:] == 255).all(), "something reaches over the right edge"
