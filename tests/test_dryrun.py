"`--dry-run`: nothing written, the same refusals as a run, numbers against files, rasterio and real runs"
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from geoseg_nb.cli import main
from geoseg_nb.estimates import Plan
from geoseg_nb.jobs import Step
from geoseg_nb.storage import free_bytes
from geoseg_nb.storage import sample_folder
from house import ROOT

TINY = "{encoder_depth: 3, decoder_channels: [16, 8, 8]}"


def tree(folder):
    "Every file with its size and time"
    return sorted((str(p.relative_to(folder)), p.lstat().st_size, p.lstat().st_mtime_ns) for p in Path(folder).rglob("*"))


def told(capsys, *words):
    "Exit code, lines on stdout and text on stderr"
    code = main(["run", *map(str, words), "--dry-run"])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


@pytest.fixture
def recipe(tmp_path):
    "A recipe of two real chips and a tiny network"
    folder, chips = tmp_path / "small", tmp_path / "chips"
    for part, suffix in (("S1", "S1Hand"), ("labels", "LabelHand")):
        (chips / part).mkdir(parents=True)
        for chip in ("Ghana_53713", "Spain_7370579"):
            shutil.copy(sample_folder() / part / f"{chip}_{suffix}.tif", chips / part)
    folder.mkdir()
    (folder / "recipe.yml").write_text("title: small\njobs: [10_catalog, 22_tile, 11_split, 37_train, 43_evaluate, 42_predict]\n"
                                       "variants:\n  seeds: {matrix: {37_train.seed: [0, 1]}}\n")
    (folder / "10_catalog.yml").write_text(f"root: {chips}\n")
    (folder / "22_tile.yml").write_text("size: 128\noverlap: 0\nshard_tiles: 8\n")
    (folder / "37_train.yml").write_text(f"epochs: 2\nmodel_options: {TINY}\ndevice: cpu\n")
    return folder


def section(lines, job):
    "The facts that stand under a job"
    start = next(i for i, line in enumerate(lines) if job in line and line.startswith("["))
    rest = lines[start + 1:]
    end = next((i for i, line in enumerate(rest) if not line.startswith("      ")), len(rest))
    return {line.split(None, 1)[0]: line.split(None, 1)[1] for line in rest[:end]} | {"head": lines[start]}


def test_a_whole_recipe_is_told_and_nothing_is_written(recipe, tmp_path, capsys):
    before = tree(tmp_path)
    code, lines, _ = told(capsys, recipe, "--out", tmp_path / "run")
    assert code == 0 and tree(tmp_path) == before and not (tmp_path / "run").exists()
    assert all("would run" in section(lines, job)["head"] for job in ("10_catalog", "22_tile", "37_train", "42_predict"))
    size = sum(p.stat().st_size for p in (tmp_path / "chips").rglob("*.tif"))
    assert section(lines, "10_catalog")["scenes"] == "2 scenes in 2 places, 524,288 pixels"
    assert section(lines, "10_catalog")["files"].startswith(f"4 files, {size / 1e6:.1f} MB in ")
    assert section(lines, "22_tile")["tiles"] == "32 tiles of 128 x 128 px (s1 float32 x 2)", "2 scenes of 4 x 4"
    assert section(lines, "22_tile")["size"].startswith(f"{32 * 128 * 128 * (2 * 4 + 1) / 1e6:.1f} MB uncompressed")
    assert section(lines, "43_evaluate")["windows"] == "98 of 128 px", "2 scenes; (512 - 128) / 64 + 1 = 7 starts an edge"
    assert "2 of them copied from evaluate" in section(lines, "42_predict")["scenes"]
    assert "6 of 6 jobs would run" in lines[-2] and len(lines) < 40 and max(map(len, lines)) < 180


def test_no_kernel_and_no_lock(recipe, tmp_path, capsys, monkeypatch):
    def never(*_, **__): raise AssertionError("a dry run starts nothing")
    for name in ("papermill_run", "execute", "run_lock", "write_atomic"): monkeypatch.setattr(f"geoseg_nb.launch.{name}", never)
    monkeypatch.setattr("geoseg_nb.storage.atomic_file", never)
    (recipe / "recipe.yml").write_text("title: data\njobs: [10_catalog, 22_tile, 11_split]\n")
    (recipe / "37_train.yml").unlink()
    assert told(capsys, recipe, "--out", tmp_path / "run")[0] == 0


@pytest.mark.slow
def test_members_are_told_once_and_named_each(recipe, tmp_path, capsys):
    code, lines, _ = told(capsys, recipe, "--variant", "seeds", "--out", tmp_path / "run")
    heads = [line for line in lines if line.startswith("[")]
    assert code == 0 and len(heads) == 3 + 2 * 3
    assert [head.split()[1] for head in heads[3:]] == [f"seed-{n}/{job}" for n in (0, 1) for job in ("37_train", "43_evaluate", "42_predict")]
    assert sum(line.split()[0] == "network" for line in lines) == 1


@pytest.mark.parametrize("words, said", [
    (["-p", "train.epoch=3"], "did you mean 'epochs'"), (["-p", "catalog.root=nowhere/at/all"], "no folder"),
    (["-p", "train.encoder=resnet19"], "encoder"), (["-p", "tile.bands=[VX]"], "band"), (["--variant", "none"], "variant")])
def test_refused_as_a_run_would_be(recipe, tmp_path, capsys, words, said):
    code, _, error = told(capsys, recipe, "--out", tmp_path / "run", *words)
    assert code == 2 and said in error and not (tmp_path / "run").exists()


def test_a_broken_file_is_found_before_the_run(recipe, tmp_path, capsys):
    mask = next((tmp_path / "chips" / "labels").iterdir())
    mask.write_bytes(mask.read_bytes()[:500])
    code, _, error = told(capsys, recipe, "--out", tmp_path / "run")
    assert code == 1 and mask.name in error


def test_a_job_alone_needs_what_came_before(tmp_path, capsys):
    code, _, error = told(capsys, "tile", "--out", tmp_path / "run")
    assert code == 2 and "no complete catalog" in error and not (tmp_path / "run").exists()
    code, lines, _ = told(capsys, "catalog", "--out", tmp_path / "run")
    assert code == 0 and section(lines, "10_catalog")["scenes"].startswith("10 scenes")


def test_label_counts_are_known_after_the_catalog(recipe, tmp_path, capsys):
    (recipe / "11_split.yml").write_text("rule: stratified\n")
    code, lines, _ = told(capsys, recipe, "--out", tmp_path / "run")
    assert code == 0 and section(lines, "11_split")["plan"] == "needs the label counts of the scenes: known after catalog"
    assert section(lines, "37_train")["plan"] == "needs what split makes: known after split"


def test_a_job_of_ones_own_says_that_it_has_no_plan(recipe, tmp_path, capsys):
    shutil.copy(ROOT / "nbs" / "jobs" / "10_catalog.ipynb", recipe / "50_mine.ipynb")
    for file in recipe.glob("[0-9]*.yml"): file.unlink()
    (recipe / "recipe.yml").write_text("title: mine\njobs: [50_mine]\n")
    code, lines, _ = told(capsys, recipe, "--out", tmp_path / "run")
    assert code == 0 and "brings no planner" in section(lines, "50_mine")["plan"] and "of unknown cost" in lines[-2]


def test_a_disk_that_is_too_small_is_warned_of(tmp_path):
    from geoseg_nb.dryrun import sum_lines
    free = shutil.disk_usage(tmp_path).free
    assert abs(free_bytes(tmp_path / "not" / "there") - free) < 2e9
    assert sum_lines([Plan(seconds=1, disk=2 * free)], tmp_path)[-1].startswith("WARNING")
    assert not any("WARNING" in line for line in sum_lines([Plan(seconds=1, disk=1000)], tmp_path))


def test_the_program_and_its_imports(recipe, tmp_path):
    "A plan of a catalog needs no torch, and stdout is the plan and nothing else"
    code = ("import sys\nfrom geoseg_nb.cli import main\ncode = main(sys.argv[1:])\n"
            "assert 'torch' not in sys.modules and 'papermill' not in sys.modules\nraise SystemExit(code)")
    done = subprocess.run([sys.executable, "-c", code, "run", "catalog", "--dry-run", "--out", tmp_path / "run"], cwd=ROOT,
                          capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 0 and "10 scenes" in done.stdout, done.stderr[-500:]


@pytest.mark.slow
def test_what_is_complete_is_skipped_and_the_estimates_hold(recipe, tmp_path, capsys):
    "A real run beside its plan: bytes and tiles; then the plan of the same command, of a changed value, and of a lost result"
    (recipe / "recipe.yml").write_text("title: small\njobs: [10_catalog, 22_tile, 11_split, 37_train, 43_evaluate]\n")
    _, lines, _ = told(capsys, recipe, "--out", tmp_path / "run")
    assert main(["run", str(recipe), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    before, store = tree(tmp_path / "run"), tmp_path / "run" / "22_tile" / "tiles.zarr"
    index = pd.read_parquet(store / "index.parquet")
    assert section(lines, "22_tile")["tiles"].startswith(f"{len(index)} tiles")
    said = float(section(lines, "22_tile")["size"].split("about ")[1].split()[0])
    real = sum(p.stat().st_size for p in store.rglob("*") if p.is_file()) / 1e6
    assert 0.5 < said / real < 2
    network = section(lines, "37_train")["network"]
    card = json.loads((tmp_path / "run" / "37_train" / "model" / "model.json").read_text())
    parameters = int(network.split(" parameters")[0].split()[-1].replace(",", ""))
    assert 0.95 < 4 * parameters / card["weights"]["bytes"] < 1.01
    code, again, _ = told(capsys, recipe, "--out", tmp_path / "run")
    assert code == 0 and again[-1].startswith("0 of 5 jobs would run") and tree(tmp_path / "run") == before
    code, changed, _ = told(capsys, recipe, "--out", tmp_path / "run", "-p", "tile.overlap=64")
    heads = [section(changed, job)["head"] for job in ("10_catalog", "22_tile", "11_split", "37_train", "43_evaluate")]
    assert "skipped" in heads[0] and "values changed" in heads[1] and "skipped" in heads[2]
    assert "tile would run before it" in heads[3] and "train would run before it" in heads[4]
    code, alone, _ = told(capsys, "train", "--out", tmp_path / "run", "-p", "epochs=3", "-p", f"model_options={TINY}", "-p", "device=cpu")
    assert code == 0 and "up to" not in section(alone, "37_train")["tiles"] and tree(tmp_path / "run") == before


MOUNT = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs"]


@pytest.fixture
def small_disk(tmp_path):
    "Three megabytes"
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run([*MOUNT, folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_tiling_refuses_before_it_begins_where_the_disk_is_too_small(small_disk):
    "Fault 5: 10 chips make about 20 MB of tiles"
    from geoseg_nb.catalog import CatalogSpec
    from geoseg_nb.core import Refused
    from geoseg_nb.products import catalog, source_of
    from geoseg_nb.tiling import TileSpec, tile
    spec = CatalogSpec()
    with pytest.raises(Refused, match=r"need about \d+ MB, 3 MB are free there; free some space"):
        tile(TileSpec(size=128, overlap=0), catalog(spec), source_of(spec), small_disk / "tiles.zarr")
    assert list(small_disk.iterdir()) == []


def test_a_plan_knows_nothing_by_default():
    assert math.isnan(Plan().seconds) and Step("10_catalog", Path("out")).folder == Path("out/10_catalog")
