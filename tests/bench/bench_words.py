"""Raw codes to class indices: Legend.encode against what people write instead

    python tests/bench/bench_words.py [--edge 1024] [--rounds 5]

Every way takes turns on the same labels, and what they give back is compared before a number is printed. CPU seconds of the
process are the measure, as nanoseconds a pixel. Only `encode` refuses a code that the legend does not know, names it and counts its
pixels; the others are shown without such a check. The goal is 20 ns a pixel or better.
"""
import argparse
import statistics
import time

import numpy as np
from geoseg_nb.core import make_legend

GOAL = 20  # ns a pixel
CORINE = [111, 112, 121, 122, 123, 124, 131, 132, 133, 141, 142, 211, 212, 213, 221, 222, 223, 231, 241, 242, 243, 244,
          311, 312, 313, 321, 322, 323, 324, 331, 332, 333, 334, 335, 411, 412, 421, 422, 423, 511, 512, 521, 522, 523]


def legends():
    "Name -> legend, codes in it, data type of the labels"
    floods = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
    level1 = make_legend({str(k): [[c for c in CORINE if c // 100 == k], f"#{k}0{k}0{k}0"] for k in range(1, 6)}, ignore=[999])
    crops = make_legend({f"crop {k}": [1000 + 97 * k, f"#{k:02x}4020"] for k in range(200)}, ignore=[0])
    return {"floods, int16, 3 codes": (floods, [-1, 0, 1], "int16"), "CORINE, int16, 45 codes": (level1, [*CORINE, 999], "int16"),
            "crops, int32, 201 codes": (crops, [0, *(1000 + 97 * k for k in range(200))], "int32"),
            "floods, float32, 3 codes": (floods, [-1, 0, 1], "float32")}


def pairs_of(legend):
    "Code -> index, the ignored ones too"
    return {code: i for i, c in enumerate(legend.classes) for code in c.codes} | dict.fromkeys(legend.ignore, legend.ignore_index)


def ours(legend, codes):
    return legend.encode(codes)


def by_search(legend, codes):
    known, index = np.array(sorted(pairs_of(legend).items())).T
    return index.astype("uint8")[np.searchsorted(known, codes)]


def by_class(legend, codes):
    out = np.empty(codes.shape, "uint8")
    for code, index in pairs_of(legend).items():
        out[codes == code] = index
    return out


def by_unique(legend, codes):
    table = pairs_of(legend)
    found, inverse = np.unique(codes, return_inverse=True)
    return np.array([table[c] for c in found.tolist()], "uint8")[inverse].reshape(codes.shape)


def by_vectorize(legend, codes):
    return np.vectorize(pairs_of(legend).__getitem__, otypes=["uint8"])(codes)


WAYS = {"Legend.encode": ours, "np.searchsorted": by_search, "loop over codes": by_class, "np.unique": by_unique, "np.vectorize(dict)": by_vectorize}


def nanoseconds(way, legend, codes):
    start = time.process_time_ns()
    out = way(legend, codes)
    return (time.process_time_ns() - start) / codes.size, out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("edge", 1024), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked, missed = parser.parse_args(), []
    print(f"{asked.edge} x {asked.edge} pixels in squares of 8, median of {asked.rounds} rounds, CPU ns a pixel\n")
    for title, (legend, known, dtype) in legends().items():
        squares = np.random.default_rng(0).choice(known, (-(-asked.edge // 8),) * 2)
        codes = np.kron(squares, np.ones((8, 8), int))[:asked.edge, :asked.edge].astype(dtype)
        times = {name: [] for name in WAYS}
        for _ in range(asked.rounds):
            turn = {name: nanoseconds(way, legend, codes) for name, way in WAYS.items()}
            for name, (spent, out) in turn.items():
                assert out.dtype == np.uint8 and np.array_equal(out, turn["np.vectorize(dict)"][1]), f"{title}: {name} disagrees"
                times[name].append(spent)
        medians = {name: statistics.median(spent) for name, spent in times.items()}
        print(f"{title:26}" + "   ".join(f"{name} {spent:.1f}" for name, spent in medians.items()))
        if medians["Legend.encode"] > GOAL: missed.append(f"{title}: {medians['Legend.encode']:.1f} ns a pixel, the goal is {GOAL}")
    raise SystemExit("\n".join(missed) or None)


if __name__ == "__main__":
    main()
