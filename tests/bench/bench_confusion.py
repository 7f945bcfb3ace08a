"""A confusion matrix of a million pixels, against torchmetrics and scikit-learn (row 12)

    python tests/bench/bench_confusion.py [--rounds 3] [--out ROWS.json]

Labels and predictions as the stages hold them, uint8; what a library wants instead is converted before the clock runs."""
import numpy as np
import torch
from geoseg_nb.bench import Side, race, race_rows
from geoseg_nb.metrics import confusion
from sides import measure
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

CLASSES = 12


def rows(asked):
    target, prediction = np.random.default_rng(0).integers(0, CLASSES, (2, 1 << (14 if asked.tiny else 20)), dtype=np.uint8)
    t, p = torch.from_numpy(target).long(), torch.from_numpy(prediction).long()
    sides = [Side("geoseg_nb", lambda: confusion(target, prediction, CLASSES), "metrics.confusion, uint8"),
             Side("torchmetrics", lambda: multiclass_confusion_matrix(p, t, CLASSES).numpy(), "its default, int64"),
             Side("torchmetrics, validate_args=False", lambda: multiclass_confusion_matrix(p, t, CLASSES, validate_args=False).numpy(), "int64"),
             Side("scikit-learn", lambda: confusion_matrix(target, prediction), "its default")]
    found = race(sides, asked.rounds + 4)
    return race_rows(("12", "confusion matrix, pixels"), found, target.size, {"torchmetrics": 12.0, "torchmetrics, validate_args=False": 1.0})


if __name__ == "__main__":
    measure(rows)
