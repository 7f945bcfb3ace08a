"A disk that is full: one error that names the path and what is left, nothing half-written, and a rerun with room gives the same bytes"
import os
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from geoseg_nb.core import GeosegError, Grid
from geoseg_nb.raster import write_cog
from geoseg_nb.resuming import TensorFiles
from geoseg_nb.room import require_room
from geoseg_nb.stages import Execution
from geoseg_nb.storage import NoRoom, atomic_file, files_below, folder_sha256, is_leftover, sample_folder, write_atomic
from geoseg_nb.tilestore import open_store
from geoseg_nb.tiling import tile
from house import ROOT
from safetensors.torch import save_file
from test_tiling import LEGEND, OPTIONS, SMALL, SOURCE, pairs

SIZE = 256 << 20


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if is_leftover(path.name) or path.suffix == ".partial"]


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 256 MB, most of which a test fills; the bundled sample makes a store of some 20 MB"
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root; test_a_file_that_may_not_grow_is_one_error runs everywhere")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk, left):
    "Leave a number of bytes"
    (disk / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - left)))


def test_tiling_onto_a_full_disk_is_one_error_and_goes_on_with_room(small_disk, tmp_path, monkeypatch):
    "Fault 5: somebody else fills the disk after the tiling has asked for room"
    catalog = pairs.catalog(sample_folder(), OPTIONS)
    whole = tile(SMALL, catalog, SOURCE, tmp_path / "floods.zarr", Execution(workers=1))
    monkeypatch.setattr("geoseg_nb.tiling.require_room", lambda *asked: (require_room(*asked), fill(small_disk, 3 << 20)))
    with pytest.raises(GeosegError, match=rf"no room for {small_disk}/floods.zarr/\S+: \d\.\d MB are free on its disk; make room") as caught:
        tile(SMALL, catalog, SOURCE, small_disk / "floods.zarr", Execution(workers=1))
    assert "\n" not in str(caught.value) and not (small_disk / "floods.zarr" / "MANIFEST.json").exists() and leftovers(small_disk) == []
    with pytest.raises(GeosegError, match="is not finished"): open_store(small_disk / "floods.zarr")
    done = len(list((small_disk / "floods.zarr" / "progress").glob("[0-9]*.json")))
    assert 0 < done < len(whole.manifest.shards)
    monkeypatch.undo()
    (small_disk / "ballast").unlink()
    assert tile(SMALL, catalog, SOURCE, small_disk / "floods.zarr", Execution(workers=1)).hash == whole.hash
    assert folder_sha256(small_disk / "floods.zarr") == folder_sha256(whole.url)


def write_checkpoint(folder):
    TensorFiles().save_checkpoint({"weights": torch.ones(1 << 19)}, folder / "last.ckpt")


def write_map(folder):
    grid = Grid("EPSG:32632", (10, 0, 5e5, 0, -10, 5e6), 4096, 4096)
    write_cog(folder / "map.tif", np.random.default_rng(0).integers(0, 2, (4096, 4096), dtype="uint8"), grid, LEGEND)


def write_table(folder):
    with atomic_file(folder / "table.parquet") as temporary:
        pd.DataFrame({"x": np.random.default_rng(0).random(300_000)}).to_parquet(temporary)


def write_weights(folder):
    with atomic_file(folder / "model.safetensors") as temporary: save_file({"weights": torch.ones(1 << 19)}, temporary)


def write_figure(folder):
    with atomic_file(folder / "figure.png") as temporary: figure().savefig(temporary, dpi=200)


def write_text(folder):
    write_atomic(folder / "scores.csv", "0123456789" * 200_000)


def figure():
    drawing, axes = plt.subplots(figsize=(6, 6))
    axes.imshow(np.random.default_rng(0).random((600, 600)), interpolation="none")
    return drawing


WRITERS = [write_checkpoint, write_map, write_table, write_weights, write_figure, write_text]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_whatever_is_written_a_full_disk_is_one_error_and_leaves_nothing(small_disk, write):
    "The six libraries that write our files report a full disk in six ways, or not at all"
    fill(small_disk, 200_000)
    with pytest.raises(NoRoom, match=rf"no room for {small_disk}/\S+: 0\.\d MB are free on its disk; make room there"): write(small_disk)
    assert files_below(small_disk) == ["ballast"] and leftovers(small_disk) == []
    (small_disk / "ballast").unlink()
    write(small_disk)
    assert len(files_below(small_disk)) >= 1 and leftovers(small_disk) == []


GROWS = """
import resource, sys
from geoseg_nb.storage import NoRoom, write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try: write_atomic(sys.argv[1], bytes(2 << 20))
except NoRoom as error: print(error)
"""


def test_a_file_that_may_not_grow_is_one_error(tmp_path):
    "A quota, as the system call sees it; needs no root"
    done = subprocess.run([sys.executable, "-c", GROWS, tmp_path / "scores.csv"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.startswith(f"no room for {tmp_path}/scores.csv: ") and not list(tmp_path.iterdir()), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("left, job, code, why", [(100_000, "10_catalog", 1, "no room for"), (3_600_000, "22_tile", 2, "shards need about")])
def test_a_run_onto_a_full_disk_ends_with_one_error(small_disk, left, job, code, why):
    "The launcher and the kernel write to the same disk: whoever meets its end first says so; what clearly does not fit does not begin"
    words = [sys.executable, "-m", "geoseg_nb.cli", "run", "floods", "--variant", "small", "-p", "epochs=1", "-p", "window_sizes=[128]", "--out"]
    disk = small_disk / "run"
    fill(small_disk, left)
    done = subprocess.run([*words, disk], cwd=ROOT, capture_output=True, text=True, timeout=600)
    last = done.stderr.strip().splitlines()
    assert done.returncode == code and why in "".join(last) and "MB are free" in "".join(last), done.stderr[-2000:]
    assert "Traceback" not in done.stderr and f"{job} runs" in done.stdout.splitlines()[-1]
    assert leftovers(small_disk) == [] and not (disk / job / "result.json").exists()
    if job == "22_tile": assert not (disk / "22_tile" / "tiles.zarr" / "MANIFEST.json").exists()
