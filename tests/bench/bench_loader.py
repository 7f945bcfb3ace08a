"""The share of a training step that is spent waiting for data, with batches made when asked for and made ahead by a thread

    python tests/bench/bench_loader.py [--tiles 1024] [--epochs 3] [--step 5 10 20]

The consumer stands for a GPU: it uses each batch of 16 for so many milliseconds in which the CPU is free. `memory`: all shards are kept, as in
every epoch after the first of a store that fits; `disk`: four shards are kept, so that each is read anew in every epoch. The machine has to be idle.
"""
import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from bench_learning import patches
from geoseg_nb.loader import Stats, make_loader, make_normaliser


def waiting(loader, step, epochs):
    "Share of the time that the consumer waits, over some epochs"
    waited, start = 0.0, time.perf_counter()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        batches, done = iter(loader), False
        while not done:
            asked = time.perf_counter()
            done = next(batches, None) is None
            waited += time.perf_counter() - asked
            if not done: time.sleep(step)
    return waited / (time.perf_counter() - start)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tiles", type=int, default=1024)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--step", type=float, nargs="+", default=[5, 10, 20])
    args = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store, _, _ = patches(Path(folder), tiles=args.tiles)
        split = pd.DataFrame({"scene": store.index["scene"], "part": "train", "row0": 0, "row1": 120, "col0": 0, "col1": 120})
        normaliser = make_normaliser("mean_std", Stats([1000] * 6, [50] * 6))
        for kept, memory in (("memory", {"cache_mb": 4000}), ("disk", {"cache_mb": 0, "mix_shards": 4})):
            for step in args.step:
                for prefetch in (0, 2, 8):
                    loader = make_loader(store, split, "train", 16, 0, normaliser, prefetch=prefetch, **memory)
                    if kept == "memory": sum(1 for _ in loader)
                    rows.append((kept, step, prefetch, 100 * waiting(loader, step / 1000, args.epochs)))
    table = pd.DataFrame(rows, columns=["shards from", "ms a batch", "prefetch", "% waiting"])
    print(table.pivot(index=["shards from", "ms a batch"], columns="prefetch", values="% waiting").round(2).to_string())


if __name__ == "__main__":
    main()
