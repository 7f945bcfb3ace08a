"""Sliding-window prediction and stitching of a scene: this package against numpy, run by hand

    python tests/bench/bench_predict.py [--edge 1024] [--classes 12] [--size 256] [--overlap 128] [--rounds 5]

Three ways to the class map of one scene take turns, and their maps are compared equal first.

* rows: `windows.Stitcher`, a strip of rows at a time, as `predict` does it
* sums: numpy sums of weighted scores over the whole scene, divided by the weights and then argmax (the usual loop)
* fold: `torch.nn.functional.fold` over all windows at once

The first table is stitching alone, the scores of all windows being given. The second is the whole prediction of a scene by a U-Net, both
sides with the same network, windows and batches. CPU seconds of the process, median of the rounds; the third table is the most memory
that a scene takes on top of what was there before, at two heights, each in a process of its own.
"""
import argparse
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

from geoseg_nb.checkpoint import Model, ModelCard
from geoseg_nb.core import Band, Sensor, make_legend
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.predict import PredictSpec, best_class, class_rows
from geoseg_nb.scenes import Scene
from geoseg_nb.windows import Stitcher, Window, WindowPlan, blend_weights, windows


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


def cpu_seconds(contenders, rounds):
    "Contender -> median CPU seconds; they take turns"
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title, seconds, ours):
    print(f"\n{title}\n{'':24}{'CPU s':>9}{'ours is':>10}")
    for name, value in seconds.items():
        print(f"{name:24}{value:9.3f}{'' if name == ours else f'{value / seconds[ours]:9.2f}x'}")


def stitching(args):
    rng, plan = np.random.default_rng(0), WindowPlan(size=args.size, overlap=args.overlap)
    shape, weights = (args.edge, args.edge), blend_weights(args.size, args.overlap)
    scored = [(w, rng.random((args.classes, args.size, args.size), dtype="float32")) for w in windows(*shape, plan)]
    sides = {"rows (this package)": by_rows, "sums (numpy)": by_sums, "fold (torch)": by_fold}
    maps = {name: side(scored, shape, args.classes, weights) for name, side in sides.items()}
    for name, found in maps.items():
        same = (found == maps["sums (numpy)"]).mean()
        assert same > 0.9999, f"{name}: {same:.4%} of the pixels equal"
    seconds = cpu_seconds({n: lambda side=side: side(scored, shape, args.classes, weights) for n, side in sides.items()}, args.rounds)
    show(f"stitching {args.edge} x {args.edge}, {args.classes} classes, windows of {args.size} px overlapping by {args.overlap}",
         seconds, "rows (this package)")


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
    maps = {name: np.concatenate(list(side(model, scene))) for name, side in SIDES.items()}
    same = (maps["rows (this package)"] == maps["sums (numpy)"]).mean()
    assert same > 0.9999, f"{same:.4%} of the pixels equal"
    seconds = cpu_seconds({n: lambda side=side: [None for _ in side(model, scene)] for n, side in SIDES.items()}, args.rounds)
    show(f"prediction {args.edge} x {args.edge} by a small U-Net, windows of 64 px overlapping by 32", seconds, "rows (this package)")


def peak(name, height):
    "Megabytes on top of a scene of one strip, with a network that costs nothing"
    model = small_model()
    object.__setattr__(model, "network", torch.nn.Conv2d(2, 2, 1).eval())
    used = []
    for rows in (64, height):
        for _ in SIDES[name](model, scene_of(rows, 2048)):
            pass
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(round(used[1] - used[0]))


def memory():
    print(f"\npeak memory above that of 64 rows, MB, 2048 columns\n{'':24}{'1,024 rows':>12}{'8,192 rows':>12}")
    for name in SIDES:
        found = [subprocess.run([sys.executable, __file__, "--peak", name, str(rows)], capture_output=True, text=True, check=True).stdout.strip()
                 for rows in (1024, 8192)]
        print(f"{name:24}{found[0]:>12}{found[1]:>12}")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"edge": 1024, "classes": 12, "size": 256, "overlap": 128, "rounds": 5}.items():
        options.add_argument(f"--{name}", type=int, default=default)
    options.add_argument("--peak", nargs=2)
    args = options.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        return peak(args.peak[0], int(args.peak[1]))
    stitching(args)
    predicting(args)
    memory()


if __name__ == "__main__":
    main()
