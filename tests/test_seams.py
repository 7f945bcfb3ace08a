"Distances are those of SciPy from the rims of all windows; maps of a pointwise model have no seam, those of a padded network do"
import warnings
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from torch import nn

from geoseg_nb.catalog import CatalogSpec
from geoseg_nb.checkpoint import ModelCard, load_model, save_model
from geoseg_nb.core import Band, GeosegError, Sensor, make_legend
from geoseg_nb.diagrams import plot_border_errors
from geoseg_nb.evaluate import EvaluateSpec, evaluate
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.products import catalog as product_catalog
from geoseg_nb.products import reader
from geoseg_nb.seams import scene_borders, seam_counts, seam_errors, seam_table
from geoseg_nb.split import SplitSpec, make_split
from geoseg_nb.windows import Window, WindowPlan, windows

LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
SPEC = EvaluateSpec(baseline="water: VH < -23", precision="fp32", device="cpu")
pytestmark = pytest.mark.filterwarnings("ignore:the model's card names")
torch.set_num_threads(1)


def brute_force(height, width, plan):
    "Distance of each pixel from the nearest pixel that touches a window's rim within the scene, from either side"
    placed = windows(max(height, plan.size), max(width, plan.size), plan)
    touched = np.zeros((height + 2 * plan.size,) * 2 if height > width else (width + 2 * plan.size,) * 2, bool)
    for row, col, *_ in placed:
        rows, cols = slice(row + 1, row + plan.size + 1), slice(col + 1, col + plan.size + 1)
        for line in (row, row + plan.size):
            if 0 < line < height: touched[line:line + 2, cols] = True
        for line in (col, col + plan.size):
            if 0 < line < width: touched[rows, line:line + 2] = True
    touched = touched[1:height + 1, 1:width + 1]
    return distance_transform_edt(~touched) if touched.any() else np.full((height, width), plan.size)


plans = st.integers(2, 20).flatmap(lambda size: st.builds(WindowPlan, size=st.just(size), overlap=st.integers(0, size - 1)))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), plans)
def test_distances_are_those_of_scipy(height, width, plan):
    borders = scene_borders((height, width), plan)
    assert np.array_equal(borders.distance(Window(0, 0, height, width)), brute_force(height, width, plan))
    assert borders.rows.max() <= plan.size and (height > plan.size) == (borders.rows < plan.size).all()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), plans, st.integers(1, 30), st.integers(0, 99))
def test_counts_of_blocks_add_up_to_those_of_the_scene(height, width, plan, rows, seed):
    draw = np.random.default_rng(seed)
    target, found = draw.choice([0, 1, 2, 255], (2, height, width)).astype("uint8")
    borders = scene_borders((height, width), plan)
    whole, parts = borders.distance(Window(0, 0, height, width)), 0
    for top in range(0, height, rows):
        window = Window(top, 0, min(rows, height - top), width)
        parts = parts + seam_counts(target[window.slices], found[window.slices], borders.distance(window), plan.size)
    plain = [[np.sum((whole == d) & (target != 255)), np.sum((whole == d) & (target != 255) & (target != found))] for d in range(plan.size + 1)]
    assert np.array_equal(parts, plain)
    numbers = seam_errors(parts, reach=2)
    near, far = (whole < 2) & (target != 255), (whole >= 2) & (whole < plan.size) & (target != 255)
    for name, place in (("border", near), ("interior", far)):
        mean = (target != found)[place].mean() if place.any() else np.nan
        assert numbers[f"{name}_error"] == pytest.approx(mean, nan_ok=True) and numbers[f"{name}_pixels"] == place.sum()


def test_parts_of_two_places_are_an_error():
    distance = scene_borders((8, 8), WindowPlan(size=4)).distance(Window(0, 0, 2, 8))
    with pytest.raises(GeosegError, match="of one place"): seam_counts(np.zeros((2, 8), "uint8"), np.zeros((1, 8), "uint8"), distance, 4)


# Maps

@pytest.fixture(scope="module")
def chips():
    return product_catalog(CatalogSpec(options={"place": "{place}_{chip}"})).query("id in ['Nigeria_812045', 'Spain_7370579']")


@pytest.fixture(scope="module")
def split(chips):
    return make_split(chips, SplitSpec(rule="position", areas={"test": {"cols": [0, 1]}}))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A stack of convolutions padded with zeros, drawn at random: it reaches four pixels"
    spec, sensor = ModelSpec(bands=2, classes=2), Sensor("s1", (Band("VV", "dB"), Band("VH", "dB")))
    card = ModelCard(model=spec, sensors=[sensor.as_dict()], normaliser={"kind": "none"}, legend=LEGEND.as_dict(), tile_size=64, overlap=0)
    base = load_model(save_model(tmp_path_factory.mktemp("model") / "m", build_model(spec, seed=3), card))
    torch.manual_seed(1)
    layers = [layer for c in (2, 8, 8, 8) for layer in (nn.Conv2d(c, 8, 3, padding=1), nn.Tanh())]
    network = nn.Sequential(*layers, nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        network[0].weight *= 0.02  # dB are tens; tanh stays in its slope
        network[-1].bias[:] = 0
        image = torch.full((1, 2, 32, 32), -18.0)
        network[-1].bias[1] -= (network(image)[0, 1] - network(image)[0, 0]).mean()
    return replace(base, network=network.eval())


def scored(model, chips, split, folder, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the model's card names")
        return evaluate(model, chips, split, reader("pairs", {"place": "{place}_{chip}"}), folder, SPEC.replace(**changes))


def plain(chips, found):
    "Labels and written classes by rasterio alone"
    for row, path in zip(chips.itertuples(), found.classes, strict=True):
        with rasterio.open(row.image) as i, rasterio.open(row.mask) as m, rasterio.open(path) as p:
            label, classes = m.read(1), p.read(1)
            yield label, classes, (label >= 0) & np.isfinite(i.read()).all(0)


def test_an_evaluation_counts_its_own_seams(model, chips, split, tmp_path):
    found = scored(model, chips, split, tmp_path, overlap=18)
    distance = brute_force(512, 512, WindowPlan(size=64, overlap=18))
    near = np.concatenate([(label != classes)[counted & (distance < 4)] for label, classes, counted in plain(chips, found)])
    far = np.concatenate([(label != classes)[counted & (distance >= 4)] for label, classes, counted in plain(chips, found)])
    seams = found.metrics()["seams"]
    assert seams == {"border_error": pytest.approx(near.mean()), "interior_error": pytest.approx(far.mean()),
                     "border_pixels": len(near), "interior_pixels": len(far)}
    assert seams["border_pixels"] + seams["interior_pixels"] == found.metrics()["pixels"]
    assert found.seam_table["pixels"].sum() == found.metrics()["pixels"] and plot_border_errors(found.seam_table).get_xlabel().endswith("(px)")


def test_seams_show_without_overlap_and_not_with_it(model, chips, split, tmp_path):
    "Against one pass over the whole image of 512 px, asked for as one more window size"
    found = {o: scored(model, chips, split, tmp_path / str(o), overlap=o, window_sizes=[512]).window_table.set_index("window") for o in (0, 32)}
    bare, blended = found[0].loc[512], found[32].loc[512]
    assert bare.differs_border > 0.01 and bare.differs_interior == 0, "the network reaches four pixels and no farther"
    assert blended.differs_border < bare.differs_border / 10 and blended.differs_interior == 0
    assert found[0].loc[64, ["differs_border", "differs_interior"]].tolist() == [0, 0]


@pytest.mark.parametrize("blend,overlap", [("cosine", 18), ("flat", 40), ("linear", 0)])
def test_a_pointwise_model_has_no_seam(model, chips, split, tmp_path, blend, overlap):
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Tanh(), nn.Conv2d(8, 2, 1)).eval()
    found = scored(replace(model, network=network), chips[:1], split[split.scene.isin(chips.id[:1])], tmp_path, blend=blend, overlap=overlap, window_sizes=[512])
    table = found.window_table.set_index("window")
    assert np.nan_to_num(table[["differs_border", "differs_interior"]].to_numpy(dtype=float)).max() == 0
    assert table.loc[64, "iou"] == table.loc[512, "iou"]


def test_a_scene_within_one_window_has_no_border():
    borders = scene_borders((50, 64), WindowPlan(size=64, overlap=8))
    counts = seam_counts(np.zeros((50, 64), "uint8"), np.ones((50, 64), "uint8"), borders.distance(Window(0, 0, 50, 64)), 64)
    assert counts[-1].tolist() == [3200, 3200] and not counts[:-1].any() and seam_table(counts).empty
    assert seam_errors(counts)["border_pixels"] == 0 and np.isnan(seam_errors(counts)["interior_error"])
