"""The share of a training step that is spent waiting for data, with a consumer at a GPU's rate (row 1)

    python tests/bench/bench_waiting.py [--patches 2000] [--data FOLDER] [--out ROWS.json]

The consumer stands for a GPU: it uses each batch of 16 for so many milliseconds in which the CPU is free. `memory`: all shards are kept, as in every epoch after the first of a store that fits; `disk`: four shards are
kept, so that each is read anew in every epoch. Prefetch 2 is what training uses; 0 makes batches when they are asked for. The machine has to be idle: this is wall time."""
import time

from geoseg_nb.bench import value_row
from sides import loader, measure, store

STEPS = (5, 10, 20)  # milliseconds a batch: 3,200 to 800 samples a second


def waiting(batches, step, epochs):
    "Percent of the time that the consumer waits"
    waited, start = 0.0, time.perf_counter()
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)
        coming, done = iter(batches), False
        while not done:
            asked = time.perf_counter()
            done = next(coming, None) is None
            waited += time.perf_counter() - asked
            if not done: time.sleep(step)
    return 100 * waited / (time.perf_counter() - start)


def rows(asked):
    found, question, rows = store(asked), ("1", "waiting for data"), []
    for kept, memory in (("memory", {"cache_mb": 8000}), ("disk", {"cache_mb": 0, "mix_shards": 4})):
        for step in STEPS[: 1 if asked.tiny else 3]:
            for prefetch in (0, 2, 4):
                batches = loader(found, prefetch=prefetch, **memory)
                if kept == "memory": sum(1 for _ in batches)
                share = waiting(batches, step / 1000, 1 if asked.tiny else 2)
                side, how = f"{kept}, {step} ms a batch, prefetch {prefetch}", f"make_loader, prefetch {prefetch}, {memory}, a consumer of {step} ms a batch"
                rows.append(value_row(question, side, share, "% of the time", ("at most", 2.0) if prefetch else None, how=how))
    return rows


if __name__ == "__main__":
    measure(rows)
