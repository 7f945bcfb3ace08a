"""Many tiles to parts: the time of every rule and of the leak check

    python tests/bench/bench_split.py [--tiles 480000]

The tiles lie as those of BigEarthNet do: 1.2 km squares side by side in scenes of 90 x 90, in ten zones. CPU seconds of the process.
"""
import numpy as np
import pandas as pd
from geoseg_nb.bench import cost_of, value_row
from geoseg_nb.split import SplitSpec, divide
from sides import measure


def tiles(rows: int) -> pd.DataFrame:
    "Square neighbours of 120 px of 10 m, in scenes side by side, each zone in one column of scenes"
    number = np.arange(rows)
    scene, inside = number // 8_100, number % 8_100
    zone, down = 32_629 + scene % 10, scene // 10
    x, y = 400_000 + 1_200.0 * (inside % 90), 5_500_000 - 1_200.0 * (90 * down + inside // 90)
    ids = [f"tile{n:07d}" for n in number]
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": ids, "place": [f"scene{s:03d}" for s in scene], "height": 120, "width": 120})
    table["crs"] = [f"EPSG:{z}" for z in zone]
    table["transform"] = [[10.0, 0.0, a, 0.0, -10.0, b] for a, b in zip(x, y)]
    counts = rng.dirichlet([0.3] * 5, rows)
    return table.assign(**{f"count_{name}": (14_400 * counts[:, i]).astype(int) for i, name in enumerate("abcde")})


RULES = {
    "position": {},
    "random": {},
    "random, places": {"column": "place"},
    "stratified": {},
    "folds": {"folds": 5},
    "folds, stratified": {"folds": 5, "stratify": "classes"},
    "folds, places, stratified": {"folds": 5, "group": "place", "stratify": "classes"},
    "leave_one_out": {},
    "blocks, 20 km": {"block": 20_000},
    "blocks, 20 km, 1 km apart": {"block": 20_000, "distance": 1_000},
}


def rows(asked):
    number, rules = (17_000, {"random": {}}) if asked.tiny else (asked.tiles, RULES)
    catalog, rows = tiles(number), []
    for name, fields in rules.items():
        spec = SplitSpec(rule=name.split(",")[0], **fields)
        (split, dropped), bare, _ = cost_of(lambda: divide(catalog, spec, False))  # noqa: B023
        _, cpu, wall = cost_of(lambda: divide(catalog, spec, True))  # noqa: B023
        note = f"{cpu - bare:.1f} of them for the check; {len(split):,} areas, {len(dropped):,} tiles left out"
        rows.append(value_row(("split", f"{number:,} tiles to parts"), name, cpu, "CPU seconds", items=number, cpu_s=cpu, wall_s=wall, note=note))
    return rows


if __name__ == "__main__":
    measure(rows, tiles=120_000)
