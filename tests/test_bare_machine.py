"Machines that lack what a desk has: a network, a locale"
import os
import shutil
import subprocess
import sys

import pytest
from geoseg_nb.storage import sample_folder
from house import ROOT

CHIPS = ("Ghana_53713", "Spain_7370579")
OFFLINE = "ip link set lo up 2>/dev/null || ifconfig lo up; exec \"$@\""


def folder_of(root, names):
    "The sample's chips under other names"
    for folder, suffix in (("S1", "S1Hand"), ("labels", "LabelHand")):
        (root / folder).mkdir(parents=True)
        for chip, name in zip(CHIPS, names, strict=True):
            shutil.copy(sample_folder() / folder / f"{chip}_{suffix}.tif", root / folder / f"{name}_{suffix}.tif")
    return root


def offline(*command, **options):
    "A program in a network namespace with nothing but the loopback"
    alone = ["unshare", "--net", "--map-root-user", "sh", "-c", OFFLINE, "sh"]
    return subprocess.run([*alone, *map(str, command)], capture_output=True, text=True, timeout=600, **options)


@pytest.fixture(scope="module")
def no_network():
    "Proof that there is no way out, and that the loopback works"
    probe = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server: socket.create_connection(server.getsockname(), 5).close()
for place in ("1.1.1.1", "8.8.8.8"):
    try: socket.create_connection((place, 53), 5)
    except OSError as error: print(error.errno)
    else: raise SystemExit("there is a network")
"""
    if not shutil.which("unshare"):
        pytest.skip("no unshare: util-linux is not installed")
    done = offline(sys.executable, "-c", probe)
    if done.returncode:
        pytest.skip(f"no network namespace here: {(done.stderr or done.stdout).strip()[-200:]}")
    assert done.stdout.split() == ["101", "101"], "ENETUNREACH, twice"


@pytest.mark.slow
def test_a_recipe_runs_where_there_is_no_network(no_network, tmp_path):
    "Fault 46: catalog, tile, split and one epoch; jobs in kernels, as on a GPU host without a way out"
    recipe = tmp_path / "offline"
    recipe.mkdir()
    root = folder_of(tmp_path / "chips", CHIPS)
    (recipe / "recipe.yml").write_text("title: offline\njobs: [10_catalog, 22_tile, 11_split, 37_train]\n")
    (recipe / "10_catalog.yml").write_text(f"root: {root}\n")
    (recipe / "22_tile.yml").write_text("overlap: 0\n")
    (recipe / "37_train.yml").write_text("epochs: 1\nmodel_options: {encoder_depth: 3, decoder_channels: [32, 16, 8]}\n")
    done = offline(sys.executable, "-m", "geoseg_nb.cli", "run", recipe, "--out", tmp_path / "run", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "37_train" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_weights_that_would_have_to_be_fetched_are_refused_at_once(no_network):
    "smp alone tries for half a minute"
    code = """
import time
from geoseg_nb.core import Refused
from geoseg_nb.models import ModelSpec, build_model
began = time.monotonic()
try: build_model(ModelSpec(encoder_weights="imagenet"))
except Refused as error: print(f"{time.monotonic() - began:.3f} {error}")
"""
    done = offline(sys.executable, "-c", code, cwd=ROOT)
    seconds, _, said = done.stdout.partition(" ")
    assert done.returncode == 0 and float(seconds) < 2 and "nothing is downloaded" in said, done.stderr[-500:]


TILED = """
import sys
from pathlib import Path
from geoseg_nb.catalog import CatalogSpec, read_catalog, write_catalog
from geoseg_nb.core import Refused
from geoseg_nb.products import measured_catalog, source_of
from geoseg_nb.tiling import TileSpec, tile
spec, out = CatalogSpec(root=sys.argv[1]), Path(sys.argv[2])
try: catalog = read_catalog(write_catalog(measured_catalog(spec)[0], out / "catalog.parquet"))
except Refused as error: raise SystemExit(f"refused: {error}")
store = tile(TileSpec(size=256, overlap=0), catalog, source_of(spec), out / "tiles.zarr")
print(sys.getfilesystemencoding(), len(store), ascii(sorted(set(store.index["scene"]))))
"""


def tiled(root, out, **environment):
    "Catalog and tile in a process with another locale"
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING"))}
    return subprocess.run([sys.executable, "-c", TILED, root, out], cwd=ROOT, capture_output=True, timeout=120, env={**bare, **environment})


def test_a_plain_c_locale_takes_any_name(tmp_path):
    "Fault 45: what cron, a container or a batch system starts with"
    root = folder_of(tmp_path / "Überflutung 水", ("Ñandú 1", "Åre_2"))
    done = tiled(root, tmp_path / "out", LC_ALL="C")
    assert done.returncode == 0, done.stderr[-800:]
    assert done.stdout.decode().split(None, 2) == ["utf-8", "8", ascii(["Åre_2", "Ñandú 1"]) + "\n"]


@pytest.mark.slow
def test_where_python_reads_names_as_ascii_other_names_are_refused_and_plain_ones_work(tmp_path):
    "Fault 45: UTF-8 mode switched off by hand"
    root = folder_of(tmp_path / "chips 水", ("Ñandú 1", "Åre_2"))
    done = tiled(root, tmp_path / "out", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 1 and b"refused: " in done.stderr and b"PYTHONUTF8=1" in done.stderr and b"Traceback" not in done.stderr
    plain = tiled(folder_of(tmp_path / "chips", CHIPS), tmp_path / "plain", LC_ALL="C", PYTHONUTF8="0")
    assert plain.returncode == 0 and plain.stdout.split()[:2] == [b"ascii", b"8"], plain.stderr[-800:]
