"""Importing this package, against the libraries that it stands on (row 13)

    python tests/bench/bench_import.py [--rounds 3] [--out ROWS.json]

Fresh processes by turns; the CPU seconds of one that imports nothing are taken off, the files are in the page cache."""
import subprocess
import sys

from geoseg_nb.bench import Side, race, race_rows, value_row
from sides import measure

LIBRARIES = ("xarray", "rioxarray", "dask.array", "zarr", "torch", "segmentation_models_pytorch")


def importing(*names):
    code = "; ".join(f"import {name}" for name in names)
    return lambda: subprocess.run([sys.executable, "-c", code or "pass"], check=True).returncode


def rows(asked):
    sides = [Side("import geoseg_nb", importing("geoseg_nb"), "in a fresh process"), Side("its six libraries", importing(*LIBRARIES), ", ".join(LIBRARIES)),
             Side("nothing", importing(), "in a fresh process")]
    found = race(sides, asked.rounds).set_index("side", drop=False)
    for column in ("cpu_s", "wall_s"): found[column] = (found[column] - found[column]["nothing"]).clip(lower=1e-4)
    question = ("13", "import")
    seconds = value_row(question, "import geoseg_nb, seconds", float(found["cpu_s"].iloc[0]), "CPU seconds", ("at most", 0.3), how="in a fresh process")
    return [seconds, *race_rows(question, found.iloc[:2], 1, {})]


if __name__ == "__main__":
    measure(rows)
