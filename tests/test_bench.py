"The benchmark: unequal sides never race, rows are whole, goals are judged as they are written, and every script runs"
import importlib.util
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from geoseg_nb import bench
from geoseg_nb.bench import (
    COLUMNS, BenchSpec, Scale, Side, agree, bench_page, bench_scripts, bench_table, cost_of, most_workers, plot_ratios, quoted, race,
    race_rows, run_bench, total_seconds, value_row)
from geoseg_nb.core import GeosegError, Refused
from house import ROOT, geoseg
from hypothesis import given
from hypothesis import strategies as st

SCRIPTS = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "tests" / "bench").glob("bench_*.py"))


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def burn(seconds):
    "Uses the CPU for a while"
    end = time.process_time() + seconds
    while time.process_time() < end: pass
    return 1


def test_the_ratio_is_that_of_the_work():
    "One side does three times the work of the other"
    found = race([Side("once", lambda: burn(0.05)), Side("three times", lambda: burn(0.15))], rounds=2)
    rows = race_rows(("0", "burning"), found, 10, {"three times": 2.0})
    assert rows[1]["ratio"] == pytest.approx(3, rel=0.15) and rows[1]["met"] is True and rows[0]["ratio"] == 1
    assert rows[0]["per_cpu_s"] == pytest.approx(200, rel=0.15)


def test_sides_take_turns():
    order = []
    race([Side(name, lambda name=name: order.append(name)) for name in "ab"], rounds=3)
    assert order == list("ab" * 4)  # the first turn of each is its proof


def test_what_comes_before_is_not_timed_and_the_proof_is_not_either():
    side = Side("lazy", lambda needed: needed, before=lambda: burn(0.1) and "ready", prove=lambda: burn(0.1) and "ready")
    assert race([side], rounds=1)["cpu_s"][0] < 0.05


@pytest.mark.parametrize("other", [np.zeros(3, "float32"), np.float32([0, 1, 2.01]), np.float32([0, 1, np.nan]), [0, 1], {"a": 1}, "012", None])
def test_a_side_that_gives_something_else_is_refused_by_name(other):
    ran = []
    sides = [Side("ours", lambda: np.arange(3, dtype="float32")), Side("theirs", lambda: ran.append(1) or other)]
    with pytest.raises(Refused, match="theirs gives another result than ours"): race(sides, rounds=9)
    assert len(ran) == 1  # no clock ran


def test_what_all_have_to_prove_is_held_against_ours_too():
    with pytest.raises(Refused, match="ours does not give"): race([Side("ours", lambda: [1, 2])], wanted=[1, 2, 3])


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), st.floats(1e-4, 1e3))
def test_results_agree_with_themselves_and_not_with_shifted_ones(values, shift):
    a = np.float64(values)
    assert agree({"x": [a]}, {"x": (a.copy(),)}) and not agree(a, a + shift * (1 + np.abs(a)))


def test_the_cpu_time_of_children_counts():
    import subprocess
    import sys
    code = "import time\nwhile time.process_time() < 0.3: pass"
    assert cost_of(lambda: subprocess.run([sys.executable, "-c", code], check=True)).cpu > 0.28


@pytest.mark.parametrize(("ratio", "goal", "met"), [(2, ("at least", 2), True), (1.9, ("at least", 2), False), (2, ("at most", 2), True),
                                                    (2.1, ("at most", 2), False), (2, None, None)])
def test_goals_are_bounds(ratio, goal, met):
    assert value_row(("1", "x"), "y", ratio, goal=goal)["met"] is met


def test_the_page_says_what_was_missed_and_the_picture_shows_it():
    rows = [value_row(("4", "loading"), "peer", 3.0, goal=("at least", 20.0), how="tuned", note="half of it is decoding"),
            value_row(("7", "memory"), "ours", 1.02, "times the memory", ("at most", 1.1))]
    found = {"conditions": bench.conditions(), "patches": 8, "rounds": 1, "rows": rows, "left_out": ["petastorm: no network"]}
    page = bench_page(found)
    assert "| 4 | loading | peer |  | 3 times as fast | at least 20 | **no** | half of it is decoding |" in page
    assert "1.02 times the memory | at most 1.1 | yes |" in page and "**petastorm: no network**" in page and "* peer: tuned" in page
    ax = plot_ratios(rows)
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(1, 2.0)] and ax.get_xscale() == "log"
    assert bench_table(found)["met"].tolist() == [False, True]


def test_what_the_readme_quotes_is_what_was_measured():
    "README and RESULTS.md say what bench.json says"
    quote, found = module("quote"), json.loads((ROOT / "tests" / "bench" / "bench.json").read_text())
    assert quote.block((ROOT / "README.md").read_text())[1] == quoted(found)
    assert (ROOT / "tests" / "bench" / "RESULTS.md").read_text() == bench_page(found)


def test_the_quoted_side_is_the_hardest_one():
    rows = [value_row(("7", "memory"), name, ratio, "times the memory", ("at most", 1.1)) for name, ratio in (("a", 1.0), ("b", 1.3), ("c", 1.05))]
    rows += [value_row(("7", "memory"), "d", 99.0, "MB")]
    said = quoted({"conditions": bench.conditions(), "patches": 8, "rounds": 1, "rows": rows, "left_out": []})
    assert "| 7 | memory | b | 1.3 times the memory | at most 1.1 | **no** |" in said and said.count("| 7 |") == 1


def test_the_formula_of_scale_is_bounded_by_what_is_slowest():
    scale = Scale(patch=0.004, serial=1e-5, task=0.002)
    limits = scale.seconds(640_000, 8, bandwidth=1e9, requests=3500)
    assert limits == {"workers": 320.0, "scheduler": 20.0, "bandwidth": 128.0, "requests": 1280.0, "serial": pytest.approx(6.4)}
    assert total_seconds(limits) == pytest.approx(1286.4) and most_workers(scale, 1e9, 3500)["requests"] == pytest.approx(2)


def test_an_empty_bench_has_a_picture_and_a_table():
    empty = {"conditions": bench.conditions(), "patches": 8, "rounds": 1, "rows": [], "left_out": []}
    assert len(bench_table(empty)) == 0 and plot_ratios([]).texts and "| row |" in bench_page(empty)


def test_without_a_checkout_it_says_where_the_peers_are(monkeypatch, tmp_path):
    monkeypatch.setattr(bench.geoseg_nb, "__file__", str(tmp_path / "site-packages" / "geoseg_nb" / "__init__.py"))
    with pytest.raises(Refused, match="git clone"): bench_scripts()


def test_a_job_with_an_unknown_script_is_refused_before_anything_is_made(tmp_path):
    done = geoseg("run", "bench", "--out", tmp_path / "run", "-p", "scripts=[loadin]", "-p", f"data={tmp_path / 'data'}")
    assert done.returncode != 0 and "loading" in done.stderr and not (tmp_path / "data").exists()


def module(name):
    "A file of tests/bench as a module"
    import sys
    sys.path.insert(0, str(ROOT / "tests" / "bench"))
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "bench" / f"{name}.py")
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made
        spec.loader.exec_module(made)
        return made
    finally: sys.path.remove(str(ROOT / "tests" / "bench"))


class Asked:
    patches, rounds, tiny = 8, 1, True

    def __init__(self, data): self.data, self.left_out = data, []


def test_the_truth_of_the_patches_notices_a_wrong_sample(tmp_path):
    "A pixel, a label, a repeated and a forgotten sample"
    import torch
    sides = module("sides")
    truth = sides.Truth(Asked(tmp_path))
    mean, std = (np.float32(v).reshape(-1, 1, 1) for v in (sides.MEAN, sides.STD))
    batch = {"image": torch.from_numpy((truth.image[:] - mean) / std), "label": torch.from_numpy(truth.label[:].astype("int64")), "id": list(range(8))}
    assert truth.loaded([batch]) == list(range(8))
    batch["image"][3, 2, 5, 7] += 0.01
    batch["label"][5, 0, 0] += 1
    assert truth.loaded([batch]) == [0, 1, 2, 4, 6, 7]
    assert truth.loaded([{**batch, "id": [0, 0, *range(2, 8)]}]) == [0, 2, 4, 6, 7]
    assert truth.loaded([{**batch, "image": batch["image"].double()}]) == []


def test_copies_are_the_same_patches_under_other_names(tmp_path):
    sides = module("sides")
    root = sides.copies(Asked(tmp_path), 20)
    rows = sides.scenes(root)
    assert len(rows) == rows["id"].nunique() == 20 and rows["place"].nunique() > 6
    reader, table = sides.source(root).reader, pd.read_parquet(root / "metadata.parquet").set_index("patch_id")
    sums = {row["id"]: int(reader(row)["s2"].values.sum()) for _, row in rows.iterrows()}
    assert len(set(sums.values())) == 8 and set(sums) == set(table.index)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_gives_whole_rows(name, tmp_path_factory):
    for peer in ("lmdb", "numba"): pytest.importorskip(peer, reason="pip install 'geoseg_nb[bench]'")
    data = tmp_path_factory.getbasetemp() / "bench"
    found = run_bench(BenchSpec(patches=64, rounds=1, scripts=[name], data=str(data), size="tiny"), data / "out")
    assert found["rows"] and all(set(row) == set(COLUMNS) and row["ratio"] is not None and row["side"] for row in found["rows"])
    assert all(row["per_cpu_s"] > 0 for row in found["rows"] if row["cpu_s"])
    assert json.loads(Path(data / "out" / "bench.json").read_text())["rows"] == found["rows"]


def test_a_script_that_fails_stops_the_bench(tmp_path, monkeypatch):
    script = tmp_path / "bench_bad.py"
    script.write_text("raise SystemExit('the peer is not there')")
    monkeypatch.setattr(bench, "bench_scripts", lambda names: {"bad": script})
    with pytest.raises(GeosegError, match="bench_bad.py ended with 1: the peer is not there"): run_bench(BenchSpec(data=str(tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out" / "RESULTS.md").exists()
