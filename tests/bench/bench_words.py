"""Raw codes to class indices: Legend.encode against what people write instead

    python tests/bench/bench_words.py [--rounds 3]

Every way takes turns on the same labels, and what they give back is compared before a number is printed. CPU seconds of the
process are the measure, as nanoseconds a pixel. Only `encode` refuses a code that the legend does not know, names it and counts its
pixels; the others are shown without such a check. The goal is 20 ns a pixel or better.
"""
import numpy as np
from geoseg_nb.bench import Side, race, race_rows, value_row
from geoseg_nb.core import make_legend
from sides import measure

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


def rows(asked):
    edge, rows = 64 if asked.tiny else 1024, []
    for title, (legend, known, dtype) in legends().items():
        squares = np.random.default_rng(0).choice(known, (-(-edge // 8),) * 2)
        codes = np.kron(squares, np.ones((8, 8), int))[:edge, :edge].astype(dtype)
        found = race([Side(name, lambda way=way: way(legend, codes), "one thread") for name, way in WAYS.items()], asked.rounds)  # noqa: B023
        question = ("words", f"codes to classes, {title}")
        rows.append(value_row(question, "Legend.encode", 1e9 * found["cpu_s"].iloc[0] / codes.size, "ns a pixel", ("at most", GOAL)))
        rows += race_rows(question, found, codes.size, {})[1:]
    return rows


if __name__ == "__main__":
    measure(rows)
