"""How tiling grows with patches and with workers, and the constants of one formula for it

    python tests/bench/bench_scale.py [--patches 2000] [--rounds 3] [--data FOLDER] [--out ROWS.json]

Wall time through the whole stage with one and two threads and Dask processes (their start is taken off, it is measured with items that do nothing); the machine has to be idle for that. The constants go into `geoseg_nb.bench.Scale`."""
import shutil
from functools import partial
from pathlib import Path

from geoseg_nb.bench import Scale, cost_of, total_seconds, value_row
from geoseg_nb.plan import TileSpec, plan_tiles
from geoseg_nb.stages import Execution, run_items
from geoseg_nb.tiling import tile
from sides import files_of, measure, patches, scenes, source

WORLD = 549_488  # patches of BigEarthNet v2
UNITS = {"patch": "CPU seconds a patch", "serial": "seconds a patch", "task": "seconds a shard", "read": "bytes a patch", "written": "bytes a patch",
         "shard_tiles": "patches", "files": "a patch"}
SPEC = TileSpec(size=120, overlap=0, order="shuffled")


def nothing(item):
    "What a worker has to import before its first shard, and no more"
    import geoseg_nb.tiling  # noqa: F401
    return item


def doing_nothing(execution, number):
    return cost_of(lambda: run_items(nothing, list(range(number)), execution, key=str)).wall


def converting(asked, catalog, made, execution):
    "What tiling costs, median of the rounds by wall time"
    url = asked.data / "bench_scale.zarr"

    def run():
        shutil.rmtree(url, ignore_errors=True)
        return tile(SPEC, catalog, made, url, execution)
    turns = sorted((cost_of(run) for _ in range(asked.rounds)), key=lambda turn: turn.wall)
    return turns[len(turns) // 2]


def constants(asked, catalog, made):
    "Each of them measured on its own"
    some = len(catalog) // 4
    few, many = (converting(asked, rows, made, Execution(workers=1)) for rows in (catalog[:some], catalog))
    dask = Execution(backend="dask", workers=1)
    number = 20 if asked.tiny else 2000
    task = max(1e-4, (doing_nothing(dask, number + 10) - doing_nothing(dask, 10)) / number)
    store = asked.data / "bench_scale.zarr"
    written = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / len(catalog)
    read = sum(Path(path).stat().st_size for files in list(files_of(catalog.assign(patch_id=catalog["id"]), patches(asked)))[:200] for path in files) / min(200, len(catalog))
    plan = cost_of(partial(plan_tiles, SPEC, catalog)).cpu / len(catalog)
    return Scale(patch=(many.cpu - few.cpu) / (len(catalog) - some), serial=plan, task=task, read=read, written=written), many


def rows(asked):
    root = patches(asked)
    catalog, made, what = scenes(root), source(root), f"{asked.patches:,} patches by workers"
    found, one = constants(asked, catalog, made)
    rows = [value_row(("scale", what), "one thread", 1.0, "times one thread (wall)", items=len(catalog), cpu_s=one.cpu, wall_s=one.wall)]
    for name, execution in (("two threads", Execution(workers=2)), ("one Dask process", Execution(backend="dask", workers=1)),
                            ("two Dask processes", Execution(backend="dask", workers=2))):
        spent, start = converting(asked, catalog, made, execution), doing_nothing(execution, 1)
        wall = max(spent.wall - start, 1e-3)
        rows.append(value_row(("scale", what), name, one.wall / wall, "times one thread (wall)", items=len(catalog), cpu_s=spent.cpu, wall_s=wall,
                              note=f"{len(catalog) / wall:,.0f} patches a second" + (f"; {start:.1f} s to start taken off" if "Dask" in name else "")))
    for field, value in found._asdict().items(): rows.append(value_row(("scale", "constants of the formula"), field, float(value), UNITS[field]))
    for workers in (1, 2, 16, 64):
        limits = found.seconds(WORLD, workers, bandwidth=1e9, requests=5500)
        first = max(limits, key=limits.get)
        rows.append(value_row(("scale", f"{WORLD:,} patches, computed"), f"{workers} workers", total_seconds(limits) / 3600, "hours", note=f"limited by {first}"))
    return rows


if __name__ == "__main__":
    measure(rows)
