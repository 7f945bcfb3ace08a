"""Sliding-window prediction and stitching of a scene: this package against numpy (row 10)

    python tests/bench/bench_predict.py [--edge 1024] [--classes 12] [--window 256] [--overlap 128] [--rounds 5]

Three ways to the class map of one scene take turns, and their maps are compared equal first.

* rows: `windows.Stitcher`, a strip of rows at a time, as `predict` does it
* sums: numpy sums of weighted scores over the whole scene, divided by the weights and then argmax (the usual loop)
* fold: `torch.nn.functional.fold` over all windows at once

Row 10 is stitching alone, the scores of all windows being given; 10a the whole prediction of a scene by a U-Net, both sides with the same network,
windows and batches; 10b the most memory that a scene takes on top of what was there before, at two heights, each in a process of its own.
"""
import numpy as np
import torch
from torch.nn import functional as F

from geoseg_nb.bench import Side, race, race_rows, value_row
from geoseg_nb.checkpoint import Model, ModelCard
from geoseg_nb.core import Band, Sensor, make_legend
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.scenes import Scene
from geoseg_nb.strips import PredictSpec, best_class, class_rows
from geoseg_nb.windows import Stitcher, Window, WindowPlan, blend_weights, windows
from sides import alone, measure, peak_mb

HOW = {"rows (this package)": "a strip of rows at a time, as predict does it", "sums (numpy)": "weighted sums over the whole scene, divided, argmax",
       "fold (torch)": "torch.nn.functional.fold over all windows at once"}


def same_map(a, b): return a.shape == b.shape and (a == b).mean() > 0.9999


def by_rows(scored, shape, classes, weights):
    "What `predict.class_rows` does with the scores of its windows"
    stitcher, done = Stitcher(classes, *shape, weights), []
    for window, scores in scored:
        if window.row > stitcher.row:
            done.append(best_class(stitcher.flush(window.row)[1]))
        stitcher.add(window, scores)
    while stitcher.row < shape[0]:
        done.append(best_class(stitcher.flush(shape[0])[1]))
    return np.concatenate(done)


def by_sums(scored, shape, classes, weights):
    total, weight = np.zeros((classes, *shape), "float32"), np.zeros(shape, "float32")
    for window, scores in scored:
        total[:, *window.slices] += scores * weights
        weight[window.slices] += weights
    return (total / weight).argmax(0).astype("uint8")


def by_fold(scored, shape, classes, weights):
    size = len(weights)
    step = scored[1][0].col - scored[0][0].col
    columns = torch.from_numpy(np.stack([s * weights for _, s in scored])).reshape(len(scored), -1).T[None]
    total = F.fold(columns, shape, size, stride=step)[0]
    weight = F.fold(torch.from_numpy(weights).reshape(1, -1, 1).expand(1, -1, len(scored)).contiguous(), shape, size, stride=step)[0]
    return (total / weight).argmax(0).numpy().astype("uint8")


def stitching(args):
    rng, plan = np.random.default_rng(0), WindowPlan(size=args.window, overlap=args.overlap)
    shape, weights = (args.edge, args.edge), blend_weights(args.window, args.overlap)
    scored = [(w, rng.random((args.classes, args.window, args.window), dtype="float32")) for w in windows(*shape, plan)]
    sides = {"rows (this package)": by_rows, "sums (numpy)": by_sums, "fold (torch)": by_fold}
    def side(name): return Side(name, lambda: sides[name](scored, shape, args.classes, weights), HOW[name])
    found = race([side(name) for name in sides], args.rounds + 2, equal=same_map)
    what = f"stitching {args.edge} px, {args.classes} classes, windows of {args.window}"
    return race_rows(("10", what), found, len(scored), {"sums (numpy)": 1.5})


def small_model():
    legend = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]})
    spec, sensor = ModelSpec(bands=2, classes=2, options={"encoder_depth": 3, "decoder_channels": [128, 64, 32]}), Sensor("s1", (Band("VV"), Band("VH")))
    card = ModelCard(model=spec, sensors=[sensor.as_dict()], normaliser={"kind": "none"}, legend=legend.as_dict(), tile_size=64, overlap=32)
    return Model(build_model(spec, seed=0).eval().to(memory_format=torch.channels_last), card)


def scene_of(height, width):
    row = np.random.default_rng(0).normal(0, 1, (2, 64, width)).astype("float32")
    return Scene(None, lambda w: np.take(row, np.arange(w.row, w.row + w.height) % 64, axis=1)[:, :, w.col:w.col + w.width], shape=(height, width))


def ours(model, scene):
    for _, rows in class_rows(model, scene, PredictSpec(precision="fp32", device="cpu")):
        yield rows


def plainly(model, scene):
    "The loop of a tutorial: the whole image in memory, windows in batches of 64, whole-scene sums"
    image, plan = scene.read(Window(0, 0, *scene.shape)), WindowPlan(size=64, overlap=32)
    todo, weights = windows(*scene.shape, plan), blend_weights(64, 32)
    total, weight = np.zeros((2, *scene.shape), "float32"), np.zeros(scene.shape, "float32")
    for i in range(0, len(todo), 64):
        batch = np.stack([image[:, *w.slices] for w in todo[i:i + 64]])
        for window, scores in zip(todo[i:i + 64], model.predict_scores(batch)):
            total[:, *window.slices] += scores * weights
            weight[window.slices] += weights
    yield (total / weight).argmax(0).astype("uint8")


SIDES = {"rows (this package)": ours, "sums (numpy)": plainly}


def predicting(args):
    model, scene = small_model(), scene_of(args.edge, args.edge)
    found = race([Side(name, lambda side=side: np.concatenate(list(side(model, scene))), HOW[name]) for name, side in SIDES.items()], args.rounds, equal=same_map)
    return race_rows(("10a", f"prediction of {args.edge} px by a small U-Net"), found, args.edge**2, {})


def peak(name, height):
    "Megabytes on top of a scene of one strip, with a network that costs nothing"
    model = small_model()
    object.__setattr__(model, "network", torch.nn.Conv2d(2, 2, 1).eval())
    used = []
    for rows in (64, height):
        for _ in SIDES[name](model, scene_of(rows, 2048)):
            pass
        used.append(peak_mb())
    print(round(used[1] - used[0]))


def memory(args):
    heights, rows = (256, 512) if args.tiny else (1024, 8192), []
    for name in SIDES:
        few, many = (alone(__file__, "--peak", name, "--height", height) for height in heights)
        note = f"above that of 64 rows, for {heights[1]:,} rows of 2,048 px; {few:,} MB for {heights[0]:,}"
        rows.append(value_row(("10b", "peak memory of a high scene"), name, many, "MB", how=HOW[name], note=note))
    return rows


def rows(args):
    if args.peak: return peak(args.peak, args.height)
    if args.tiny: args.edge, args.classes, args.window, args.overlap = 256, 3, 128, 64
    return [*stitching(args), *predicting(args), *memory(args)]


if __name__ == "__main__":
    measure(rows, edge=1024, classes=12, window=256, overlap=128, peak="", height=0)
