"""Rates of loader, training step and confusion matrix, in samples or pixels per CPU-second; run by hand: python tests/bench/bench_learning.py

Each rate is the best of several rounds, the contenders take turns, and their results are compared equal."""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

from geoseg_nb.core import Band, Sensor, make_legend
from geoseg_nb.layout import StoreSpec, shard_count, shard_rows
from geoseg_nb.loader import Stats, make_loader, make_normaliser
from geoseg_nb.metrics import confusion
from geoseg_nb.models import ModelSpec, build_model, has_bf16, logits_of
from geoseg_nb.tilestore import create_store, finish_store, open_store, write_shard


def rates(contenders, amount, rounds=5):
    "Contender -> amount per CPU-second, best of the rounds"
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return pd.Series({name: amount / seconds for name, seconds in best.items()})


def matrices(classes=12, pixels=1 << 20):
    rng = np.random.default_rng(0)
    target, prediction = rng.integers(0, classes, (2, pixels), dtype=np.uint8)
    t, p = torch.from_numpy(target).long(), torch.from_numpy(prediction).long()
    contenders = {
        "geoseg_nb": lambda: confusion(target, prediction, classes),
        "torchmetrics": lambda: multiclass_confusion_matrix(p, t, classes).numpy(),
        "torchmetrics validate_args=False": lambda: multiclass_confusion_matrix(p, t, classes, validate_args=False).numpy(),
        "scikit-learn": lambda: confusion_matrix(target, prediction),
    }
    assert all((run() == confusion(target, prediction, classes)).all() for run in contenders.values())
    return rates(contenders, pixels / 1e6).rename("megapixels per CPU-second")


def patches(folder, tiles=1000, size=120, codec="lz4"):
    "A store of smooth uint16 fields with noise, six bands"
    rng = np.random.default_rng(0)
    smooth = np.abs(np.cumsum(np.cumsum(rng.normal(0, 3, (40, 6, size, size)), -1), -2))
    image = (smooth[rng.integers(0, 40, tiles)] + rng.normal(1000, 20, (tiles, 6, size, size))).clip(1, 20000).astype(np.uint16)
    label = rng.integers(0, 2, (tiles, size, size), dtype=np.uint8)
    names = [f"t{i}" for i in range(tiles)]
    index = pd.DataFrame({"id": names, "scene": names, "row": 0, "col": 0, "height": size, "width": size, "labelled": 1.0})
    sensor = Sensor("s2", tuple(Band(f"B{i:02}") for i in range(6)), "uint16", 0)
    legend = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]})
    spec = StoreSpec(name="bench", size=size, sensors=[sensor.as_dict()], legend=legend.as_dict(), tiles=tiles, codec=codec)
    root = create_store(folder / f"{codec}.zarr", spec)
    for k in range(shard_count(spec)):
        part = slice(*shard_rows(spec, k))
        write_shard(root, k, {"s2": image[part], "label": label[part]}, index.iloc[part])
    finish_store(root)
    return open_store(root), image, label


def loading(folder):
    store, image, label = patches(folder)
    n, normaliser = len(store), make_normaliser("mean_std", Stats([1000] * 6, [50] * 6))
    split = pd.DataFrame({"scene": store.index["scene"], "part": "train", "row0": 0, "row1": 120, "col0": 0, "col1": 120})

    def epoch(loader):
        return lambda: sum(len(batch["id"]) for batch in loader)

    def plain():
        "The same arithmetic on arrays in memory, without store, loader or mask"
        for rows in np.random.default_rng(0).permutation(n)[: n // 16 * 16].reshape(-1, 16):
            batch = (image[rows].astype(np.float32) - np.float32(1000)) / np.float32(50)
            torch.from_numpy(batch), torch.from_numpy(label[rows].astype(np.int64))

    def loader(**options):
        return make_loader(store, split, "train", 16, 0, normaliser, **options)

    contenders = {"4 shards in memory": epoch(loader(mix_shards=4, cache_mb=0)), "all in memory": epoch(loader(cache_mb=4000)),
                  "arrays in memory, plain numpy": plain}
    assert contenders["all in memory"]() == n
    return rates(contenders, n).rename("samples per CPU-second")


def training_steps(batch=16, size=128, bands=6, classes=12):
    "One step of U-Net with resnet18: forward, loss, backward, clipping, AdamW; the plain one is that of the library's documentation"
    image, label = torch.randn(batch, bands, size, size), torch.randint(0, classes, (batch, size, size))

    def step(network, forward, **fused):
        optimiser = torch.optim.AdamW(network.parameters(), 1e-4, **fused)

        def run():
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(forward(network), label)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            return loss.item()
        return run

    plain = smp.Unet("resnet18", encoder_weights=None, in_channels=bands, classes=classes)
    contenders = {"smp, fp32": step(plain, lambda network: network(image))}
    brain = has_bf16(torch.device("cpu"))
    print("this CPU multiplies bf16 in hardware" if brain else "this CPU has no bf16 in hardware, so precision auto takes fp32")
    for precision in ("fp32", "bf16")[:1 + brain]:
        ours = build_model(ModelSpec(bands=bands, classes=classes))
        ours.network.load_state_dict(plain.state_dict())
        ours = ours.to(memory_format=torch.channels_last)
        contenders[f"geoseg_nb, {precision}"] = step(ours, lambda network, p=precision: logits_of(network, image, p), fused=True)
    first = [run() for run in contenders.values()]
    assert max(first) - min(first) < 0.02 * first[0], f"the same weights and images, other losses: {first}"
    return rates(contenders, batch, rounds=3).rename("samples per CPU-second")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(matrices().round(1).to_string(), "\n")
    print(training_steps().round(2).to_string(), "\n")
    with tempfile.TemporaryDirectory() as folder:
        print(loading(Path(folder)).round(0).to_string())
