"""The most memory that conversion and loading take, for ten times as many patches (row 7)

    python tests/bench/bench_memory.py [--patches 2000] [--data FOLDER] [--out ROWS.json]

Each is a process of its own, of which the highest resident size is told. Ten thousand patches are hard links to fewer ones under names of other years. The loader may keep 256 MB of tiles, which both stores exceed."""
import json
import shutil

from geoseg_nb.bench import value_row
from geoseg_nb.plan import TileSpec
from geoseg_nb.tiling import tile
from geoseg_nb.tilestore import open_store
from sides import ONE, alone, copies, loader, measure, peak_mb, scenes, source


def one(verb, root, number, url):
    "What a process of its own does"
    if verb == "convert": tile(TileSpec(size=120, overlap=0, order="shuffled"), scenes(root).iloc[:number], source(root), url, ONE)
    else: seen = sum(len(batch["id"]) for batch in loader(open_store(url), cache_mb=64, prefetch=2))
    assert verb == "convert" or seen == number
    print(json.dumps(peak_mb()))


def rows(asked):
    if asked.one: return one(*asked.one.split("|")[:2], int(asked.one.split("|")[2]), asked.one.split("|")[3])
    numbers = (64, 320) if asked.tiny else (1000, 10_000)
    root, rows = copies(asked, numbers[1]), []
    peaks = {verb: [] for verb in ("convert", "load")}
    for number in numbers:
        url = asked.data / f"bench_memory_{number}.zarr"
        shutil.rmtree(url, ignore_errors=True)
        for verb in peaks: peaks[verb].append(alone(__file__, "--data", asked.data, "--one", f"{verb}|{root}|{number}|{url}"))
    for verb, (few, many) in peaks.items():
        note = f"{few:,.0f} MB for {numbers[0]:,} patches, {many:,.0f} MB for {numbers[1]:,}"
        how = {"convert": "tile, one thread", "load": "make_loader, prefetch 2, cache_mb 64, which both sizes fill"}[verb]
        rows.append(value_row(("7", "peak memory of ten times as much"), verb, many / few, "times the memory", ("at most", 1.1), how=how, note=note))
    return rows


if __name__ == "__main__":
    measure(rows, one="")
