"Prediction equals the whole scene, whatever its windows; no data stays no data; memory is that of a strip"
import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import rasterio
import rioxarray  # noqa: F401
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from geoseg_nb import predict as module
from geoseg_nb import strips
from geoseg_nb.checkpoint import ModelCard, load_model, save_model
from geoseg_nb.core import Band, GeosegError, Grid, GridMismatch, Refused, Sensor, TooManyFailures, make_legend
from geoseg_nb.mapfolder import copy_known, failed_maps, maps_of, read_note
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.predict import (
    ONE, PredictSpec, as_model, class_rows, map_folder, predict, predict_all, predict_files, predict_scene, row_prints, window_plan)
from geoseg_nb.scenes import Scene, open_scene
from geoseg_nb.pools import local_cluster
from geoseg_nb.stages import Execution
from geoseg_nb.strips import scene_strips, scorer
from geoseg_nb.windows import WindowPlan, blend_weights

LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"], "ice": [2, "#9fd3e6"]})
GRID = Grid("EPSG:32633", (10, 0, 500000, 0, -10, 5000000), 90, 70)
FP32 = PredictSpec(precision="fp32", device="cpu")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def unet(tmp_path_factory):
    sensor = Sensor("s1", (Band("VV", "dB"), Band("VH", "dB")))
    spec = ModelSpec(bands=2, classes=3)
    card = ModelCard(model=spec, sensors=[sensor.as_dict()], normaliser={"kind": "none"}, legend=LEGEND.as_dict(), tile_size=64, overlap=32)
    return load_model(save_model(tmp_path_factory.mktemp("model") / "m", build_model(spec, seed=1), card))


@pytest.fixture(scope="session")
def pointwise(unet):
    torch.manual_seed(0)
    return replace(unet, network=nn.Conv2d(2, 3, 1).eval())


def pixels(height, width, seed=0, holes=0.1):
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, (2, height, width)).astype("float32")
    image[rng.random(image.shape) < holes] = rng.choice([np.nan, np.inf, -np.inf])
    return image


def scene_of(image, grid=None):
    return Scene(grid, lambda w: np.where(np.isfinite(image).all(0), image, np.nan)[:, *w.slices], shape=image.shape[1:])


def whole(model, image):
    "The class of each pixel on its own: one forward pass over the whole scene, no windows"
    with torch.inference_mode():
        classes = model.network(torch.from_numpy(np.nan_to_num(image, nan=0, posinf=0, neginf=0))[None])[0].argmax(0).numpy()
    return np.where(np.isfinite(image).all(0), classes, 255)


def accumulated(model, image, size, overlap, blend="cosine"):
    "Plain numpy: full-size sums of weighted probabilities, windows enumerated by hand"
    padded = [max(n, size) for n in image.shape[1:]]
    known = np.isfinite(image).all(0)
    full = np.zeros((2, *padded), "float32")
    full[:, :image.shape[1], :image.shape[2]] = np.where(known, image, 0)
    total, weight, w = np.zeros((3, *padded)), np.zeros(padded), blend_weights(size, overlap, blend)
    steps = [sorted({*range(0, n - size + 1, size - overlap), n - size}) for n in padded]
    for r in steps[0]:
        for c in steps[1]:
            with torch.inference_mode():
                p = model.network(torch.from_numpy(full[None, :, r:r + size, c:c + size])).softmax(1)[0].numpy()
            total[:, r:r + size, c:c + size] += p * w
            weight[r:r + size, c:c + size] += w
    return np.where(known, (total / weight)[:, :image.shape[1], :image.shape[2]].argmax(0), 255)


def rows_of(model, scene, spec):
    parts = list(class_rows(model, scene, spec))
    assert [row for row, _ in parts] == [0, *np.cumsum([len(r) for _, r in parts])[:-1]]
    return np.concatenate([r for _, r in parts])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 40), share=st.floats(0, 0.99),
       blend=st.sampled_from(["flat", "linear", "cosine"]), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_pointwise_model_is_pointwise_on_the_whole_scene(pointwise, height, width, size, share, blend, batch, seed):
    image = pixels(height, width, seed)
    model = replace(pointwise, card=pointwise.card.replace(tile_size=size))
    spec = FP32.replace(overlap=int(share * size), blend=blend, batch_size=batch)
    assert np.array_equal(rows_of(model, scene_of(image), spec), whole(model, image))


@settings(max_examples=80, deadline=None)
@given(classes=st.integers(1, 9), kinds=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_best_class_is_numpys_also_where_scores_are_equal(classes, kinds, seed):
    scores = np.random.default_rng(seed).integers(-1, kinds, (classes, 7, 11)).astype("float32")
    found = strips.best_class(scores)
    assert np.array_equal(found, scores.argmax(0)) and found.dtype == np.uint8


@pytest.mark.parametrize("height,width,overlap,blend", [(150, 100, 32, "cosine"), (64, 64, 0, "flat"), (100, 130, 17, "linear"), (40, 200, 48, "cosine"), (30, 20, 32, "cosine")])
def test_a_unet_equals_a_whole_image_accumulation(unet, height, width, overlap, blend):
    image = pixels(height, width, holes=0.01)
    found = rows_of(unet, scene_of(image), FP32.replace(overlap=overlap, blend=blend, batch_size=1))
    assert (found == accumulated(unet, image, 64, overlap, blend)).mean() > 0.9999


def test_bf16_differs_from_fp32_only_where_classes_are_almost_equal(unet):
    image = pixels(64, 64, holes=0)
    with torch.inference_mode():
        logits = unet.network(torch.from_numpy(image[None]))[0].sort(0).values
    sure = ((logits[-1] - logits[-2]) > 0.1 * logits.std()).numpy()
    exact, quick = (rows_of(unet, scene_of(image), FP32.replace(precision=p, overlap=0)) for p in ("fp32", "bf16"))
    assert (exact == quick).mean() > 0.95 and sure.mean() > 0.5 and (exact == quick)[sure].all()


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 2000), size=st.integers(1, 700), share=st.floats(0, 0.99))
def test_strips_hold_the_scene_and_read_each_pixel_once(height, size, share):
    asked = []
    scene = Scene(None, lambda w: asked.append(w) or np.arange(w.row, w.row + w.height, dtype="float32")[None, :, None], shape=(height, 1))
    last = 0
    for strip in scene_strips(scene, WindowPlan(size=size, overlap=int(share * size))):
        assert strip.row == last and strip.until > strip.row
        assert strip.image[0, :, 0].tolist() == list(range(strip.row, min(strip.row + size, height)))
        assert strip.until <= strip.row + strip.image.shape[1]
        last = strip.until
    assert last == height and sum(w.height for w in asked) == height
    assert max(w.height for w in asked) <= max(512, size)


def test_windows_overlap_as_the_card_says(unet):
    "A reader of the card's page does the same by hand, and gets the same map"
    image = pixels(150, 100, holes=0.01)
    wary = replace(unet, card=unet.card.replace(overlap=8))
    own, told, half = (rows_of(m, scene_of(image), s) for m, s in ((wary, FP32), (unet, FP32.replace(overlap=8)), (unet, FP32)))
    assert np.array_equal(own, told) and not np.array_equal(own, half)
    assert (own == accumulated(unet, image, 64, 8)).mean() > 0.9999
    with pytest.warns(UserWarning, match="may collapse"):
        assert window_plan(wary, FP32.replace(window=32, allow_other_window=True)) == WindowPlan(size=32, overlap=4)
    bare = replace(unet, card=unet.card.replace(overlap=0))
    assert window_plan(bare, FP32).overlap == 0 and window_plan(bare, FP32.replace(overlap=5)).overlap == 5


def test_unknown_windows_never_reach_the_network(unet):
    class Silent(nn.Module):
        def forward(self, image): raise AssertionError("called")
    image = np.full((2, 100, 100), np.nan, "float32")
    assert (rows_of(replace(unet, network=Silent()), scene_of(image), FP32) == 255).all()


def test_another_window_is_refused_or_warned_of(unet):
    scene = scene_of(pixels(90, 70), GRID)
    with pytest.raises(Refused, match="trained on tiles of 64 px"): list(class_rows(unet, scene, FP32.replace(window=128)))
    with pytest.warns(UserWarning, match="may collapse"):
        rows_of(unet, scene, FP32.replace(window=32, allow_other_window=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows_of(unet, scene, FP32.replace(window=64))


# files, arrays, names

def write(path, bands, names=(), grid=GRID, nodata=None):
    with rasterio.open(path, "w", driver="GTiff", crs=grid.crs, transform=rasterio.Affine(*grid.transform), count=len(bands),
                       height=grid.height, width=grid.width, dtype=bands.dtype, nodata=nodata) as f:
        f.write(bands)
        f.descriptions = tuple(names) or f.descriptions
    return path


def test_every_kind_of_scene_gives_the_same_map(pointwise, tmp_path):
    image = pixels(90, 70)
    expected = whole(pointwise, image)
    one = write(tmp_path / "one.tif", image[::-1], ["VH", "VV"])
    plain = write(tmp_path / "plain.tif", image)
    files = [write(tmp_path / f"x_{b}.tif", image[i:i + 1]) for i, b in ((1, "VH"), (0, "VV"))]
    with rioxarray.open_rasterio(one) as source:
        array = source.load().assign_coords(band=["VH", "VV"])
    dataset = xr.Dataset({"s1": (("s1_band", "y", "x"), image)}, {"s1_band": ["VV", "VH"]}, {"grid": GRID.as_dict()})
    for k, scene in enumerate([one, str(plain), files, array, array.chunk(y=20), dataset, scene_of(image, GRID)]):
        with rasterio.open(predict_scene(pointwise, scene, tmp_path / f"out/{k}.tif", FP32)) as f:
            assert np.array_equal(f.read(1), expected), k
            assert f.crs.to_epsg() == 32633 and tuple(f.transform)[:6] == GRID.transform and f.nodata == 255


def test_bands_are_matched_by_name_and_errors_name_both_sides(pointwise, tmp_path):
    image = pixels(90, 70)
    with pytest.raises(Refused, match=r"lacks VH; the model reads VV, VH, the scene has VV, HV"):
        predict_scene(pointwise, write(tmp_path / "a.tif", image, ["VV", "HV"]), tmp_path / "out.tif")
    with pytest.raises(Refused, match=r"a.tif: lacks VV, VH; .* the scene has \(unnamed\), \(unnamed\), \(unnamed\)"):
        predict_scene(pointwise, write(tmp_path / "a.tif", np.concatenate([image, image[:1]])), tmp_path / "out.tif")
    with pytest.raises(Refused, match="more than once"):
        predict_scene(pointwise, [write(tmp_path / n, image, ["VV", "VH"]) for n in ("a.tif", "b.tif")], tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


def test_bands_on_two_grids_are_an_error_that_names_both(pointwise, tmp_path):
    shifted = replace(GRID, crs="EPSG:32634")
    files = [write(tmp_path / "x_VV.tif", pixels(90, 70)[:1]), write(tmp_path / "x_VH.tif", pixels(90, 70)[:1], grid=shifted)]
    with pytest.raises(GridMismatch, match="EPSG:32633.*EPSG:32634"): predict_scene(pointwise, files, tmp_path / "out.tif")
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_declared_nodata_comes_out_as_nodata(pointwise, tmp_path):
    image = (np.arange(2 * 90 * 70).reshape(2, 90, 70) % 500).astype("int16")
    path = write(tmp_path / "a.tif", image, ["VV", "VH"], nodata=0)
    with rasterio.open(predict_scene(pointwise, path, tmp_path / "out.tif", FP32)) as f:
        assert np.array_equal(f.read(1) == 255, (image == 0).any(0))
    with rioxarray.open_rasterio(path) as source:
        masked = predict(pointwise, source.load().assign_coords(band=["VV", "VH"]), FP32)
    assert np.array_equal(masked == 255, (image == 0).any(0))


@pytest.mark.parametrize("damage", ["missing", "empty", "html", "truncated"])
def test_broken_files_are_named_and_nothing_is_left(pointwise, tmp_path, damage):
    path = write(tmp_path / "scene.tif", pixels(90, 70), ["VV", "VH"])
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes({"empty": b"", "html": b"<html>404", "truncated": data[:len(data) // 2]}[damage])
    with pytest.raises(GeosegError, match="scene.tif"): predict_scene(pointwise, path, tmp_path / "out.tif", FP32)
    assert not [p for p in tmp_path.iterdir() if p.name != "scene.tif"]


def test_the_array_keeps_its_coordinates_and_crs(pointwise):
    image = pixels(90, 70)
    y, x = 5e6 - 5 - 10 * np.arange(90), 5e5 + 5 + 10 * np.arange(70)
    array = xr.DataArray(image, {"band": ["VV", "VH"], "y": y, "x": x, "time": 3}, ("band", "y", "x")).rio.write_crs("EPSG:32633")
    classes = predict(pointwise, array, FP32)
    assert np.array_equal(classes, whole(pointwise, image)) and classes.dtype == np.uint8
    assert classes.rio.crs == array.rio.crs and classes.dims == ("y", "x") and classes.time == 3
    assert np.array_equal(classes.y, y) and np.array_equal(classes.x, x) and classes.rio.bounds() == array.rio.bounds()
    part = open_scene(array[:, 10:, 20:], ["VV", "VH"])
    assert part.grid == GRID.window(10, 20, 80, 50)


def test_the_map_is_a_valid_cog_with_colours_and_overviews(pointwise, tmp_path):
    from rio_cogeo import cog_validate
    grid = replace(GRID, height=1100, width=900)
    path = predict_scene(pointwise, scene_of(pixels(1100, 900), grid), tmp_path / "map.tif", FP32.replace(overlap=0))
    valid, errors, _ = cog_validate(path)
    assert valid and not errors
    with rasterio.open(path) as f:
        assert f.overviews(1) and f.colormap(1)[2] == (159, 211, 230, 255) and f.tags(1)["CLASS_2"] == "ice"


def test_maps_are_kept_and_those_of_another_model_are_not(pointwise, unet, tmp_path):
    scenes = {n: str(write(tmp_path / f"in_{n}.tif", pixels(90, 70, i), ("VV", "VH"))) for i, n in enumerate("ab")}
    tmp_path /= "maps"
    first = predict_all(pointwise, scenes, tmp_path, FP32)
    before = [p.read_bytes() for p in first]
    first[1].unlink()
    stamp = first[0].stat().st_mtime_ns
    again = predict_all(pointwise, scenes, tmp_path, FP32)
    assert again == first and first[0].stat().st_mtime_ns == stamp and [p.read_bytes() for p in again] == before
    other = predict_all(unet, {"a": scenes["a"]}, tmp_path, FP32)
    assert other[0].read_bytes() != before[0] and not first[1].exists()
    with pytest.raises(Refused): predict_all(pointwise, {"../a": scenes["a"]}, tmp_path, FP32)


def test_files_of_ones_own_are_never_deleted(pointwise, unet, tmp_path):
    own = write(tmp_path / "a.tif", pixels(90, 70), ("VV", "VH"))
    before = own.read_bytes()
    with pytest.raises(Refused, match="would replace the image"): predict_all(pointwise, {"a": str(own)}, tmp_path, FP32)
    with pytest.raises(Refused, match="would replace the image"): predict_scene(pointwise, own, own, FP32)
    with pytest.raises(Refused, match="no made_by.json"): predict_all(pointwise, {"b": str(own)}, tmp_path, FP32)
    maps = predict_all(pointwise, {"b": str(own)}, tmp_path / "maps", FP32)[0].parent
    (maps / "mine.tif").write_bytes(b"mine")
    predict_all(unet, {"c": str(own)}, maps, FP32)
    assert sorted(p.name for p in maps.glob("*.tif")) == ["c.tif", "mine.tif"]
    with pytest.raises(Refused, match="not listed"): predict_all(unet, {"mine": str(own)}, maps, FP32)
    assert own.read_bytes() == before and (maps / "mine.tif").read_bytes() == b"mine"


def test_a_map_follows_its_image(pointwise, tmp_path):
    image = write(tmp_path / "in.tif", pixels(90, 70), ("VV", "VH"))
    made = predict_all(pointwise, {"a": str(image)}, tmp_path / "maps", FP32)[0]
    old = made.read_bytes()
    changed = pixels(90, 70, 5)
    write(image, changed, ("VV", "VH"))
    assert predict_all(pointwise, {"a": str(image)}, tmp_path / "maps", FP32) == [made] and made.read_bytes() != old
    with rasterio.open(made) as f: assert np.array_equal(f.read(1), whole(pointwise, changed))
    for seed in (6, 7):
        predict_all(pointwise, {"m": scene_of(pixels(90, 70, seed), GRID)}, tmp_path / "maps", FP32)
        with rasterio.open(tmp_path / "maps/m.tif") as f: assert np.array_equal(f.read(1), whole(pointwise, pixels(90, 70, seed)))


def test_a_map_of_a_row_follows_image_and_options_and_not_the_label(pointwise, tmp_path):
    image, mask = (write(tmp_path / f"{n}.tif", pixels(90, 70), ("VV", "VH")) for n in ("image", "mask"))
    row = pd.DataFrame([{"id": "a", "image": str(image), "mask": str(mask), "n": 3}]).iloc[0]
    first = row_prints(row, partial(print, {"scale": 1}))
    os.utime(mask, ns=(1, 1))
    assert row_prints(row, partial(print, {"scale": 1})) == first != row_prints(row, partial(print, {"scale": 2}))
    os.utime(image, ns=(1, 1))
    assert row_prints(row, partial(print, {"scale": 1})) != first
    image.unlink()
    assert row_prints(row, print) is None


def test_scores_that_are_no_numbers_are_an_error(pointwise):
    broken = nn.Conv2d(2, 3, 1).eval()
    with torch.no_grad(): broken.bias[0] = float("nan")
    with pytest.raises(GeosegError, match="Ghana: the model's scores of 6300 known pixels from row 0 on are not finite"):
        list(class_rows(replace(pointwise, network=broken), replace(scene_of(pixels(90, 70, holes=0)), name="Ghana"), FP32.replace(window=128, allow_other_window=True)))
    unknown = scene_of(np.full((2, 70, 70), np.nan, "float32"))
    assert (rows_of(replace(pointwise, network=broken), unknown, FP32) == 255).all()


def test_the_callers_model_stays_where_it_is(pointwise, monkeypatch):
    monkeypatch.setattr(strips, "resolve_device", lambda name: torch.device("meta"))
    moved = scorer(pointwise, PredictSpec(device="cuda:7", precision="fp32")).__self__
    assert moved.network.weight.device.type == "meta" and pointwise.network.weight.device.type == "cpu"
    assert scorer(pointwise, PredictSpec()).__self__.network is pointwise.network


# items: known maps, failures, workers

def test_known_maps_are_copied_byte_for_byte_and_not_predicted(pointwise, tmp_path):
    files = [write(tmp_path / f"{n}.tif", pixels(90, 70, i), ("VV", "VH")) for i, n in enumerate("abc")]
    known = predict_files(pointwise, files[:2], tmp_path / "evaluated", FP32)
    spec = FP32.replace(known=[tmp_path / "evaluated", tmp_path / "nowhere"])
    first = [p.stat().st_ino for p in known]
    found = predict_files(pointwise, files, tmp_path / "delivered", spec)
    assert [p.read_bytes() for p in found[:2]] == [p.read_bytes() for p in known]
    assert not any(p.is_symlink() or p.stat().st_nlink > 1 for p in found) and [p.stat().st_ino for p in known] == first
    alone = predict_files(pointwise, files, tmp_path / "alone", FP32)
    assert [p.read_bytes() for p in found] == [p.read_bytes() for p in alone]


def test_copies_cost_no_forward_pass(pointwise, tmp_path, monkeypatch):
    image = write(tmp_path / "a.tif", pixels(90, 70), ("VV", "VH"))
    predict_files(pointwise, [image], tmp_path / "known", FP32)
    monkeypatch.setattr(module, "predict_scene", lambda *_: pytest.fail("predicted again"))
    assert predict_files(pointwise, [image], tmp_path / "new", FP32.replace(known=[tmp_path / "known"]))[0].is_file()


@pytest.mark.parametrize("change", ["model", "overlap", "blend", "precision", "image", "missing", "symlink", "unlisted"])
def test_a_map_that_is_not_the_same_is_not_taken_over(unet, pointwise, tmp_path, change):
    image = write(tmp_path / "a.tif", pixels(90, 70), ("VV", "VH"))
    known = predict_files(unet, [image], tmp_path / "known", FP32)[0]
    if change == "image": write(image, pixels(90, 70, 9), ("VV", "VH"))
    if change in ("missing", "symlink"): os.rename(known, tmp_path / "away")
    if change == "symlink": known.symlink_to(tmp_path / "away")
    if change == "unlisted": (tmp_path / "known/made_by.json").unlink()
    spec = FP32.replace(**{"overlap": {"overlap": 4}, "blend": {"blend": "flat"}, "precision": {"precision": "bf16"}}.get(change, {}))
    model, marks = pointwise if change == "model" else unet, []
    real = module.predict_scene
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "predict_scene", lambda *args: marks.append(1) or real(*args))
        found = predict_files(model, [image], tmp_path / "new", spec.replace(known=[tmp_path / "known"]))
    assert marks == [1] and found[0].is_file() and not found[0].is_symlink()


def test_what_lies_in_memory_is_never_taken_over(pointwise, tmp_path):
    scenes = [{"m": scene_of(pixels(90, 70, seed), GRID)} for seed in (1, 2)]
    predict_all(pointwise, scenes[0], tmp_path / "known", FP32)
    made = predict_all(pointwise, scenes[1], tmp_path / "new", FP32.replace(known=[tmp_path / "known"]))[0]
    with rasterio.open(made) as f: assert np.array_equal(f.read(1), whole(pointwise, pixels(90, 70, 2)))


def test_only_a_complete_job_has_maps_to_take_over(tmp_path):
    (tmp_path / "43_evaluate/classes").mkdir(parents=True)
    for status, expected in (("failed", []), ("complete", [tmp_path / "43_evaluate/classes"])):
        (tmp_path / "43_evaluate/result.json").write_text(f'{{"status": "{status}"}}')
        assert maps_of(tmp_path, "evaluate") == expected
    assert copy_known(tmp_path, {}, tmp_path / "nowhere") == []


def test_the_precision_that_was_computed_in_makes_another_map(unet, tmp_path):
    plans = [read_note(map_folder(tmp_path / p, replace(unet, precision=p), PredictSpec())) for p in ("fp32", "bf16")]
    assert [p["precision"] for p in plans] == ["fp32", "bf16"]
    assert read_note(map_folder(tmp_path / "x", replace(unet, precision="bf16"), FP32))["precision"] == "fp32"


def test_failures_are_kept_by_id_and_reason_until_the_next_call(pointwise, tmp_path):
    good, bad = write(tmp_path / "good.tif", pixels(90, 70), ("VV", "VH")), tmp_path / "bad.tif"
    bad.write_bytes(b"<html>404")
    skip = lambda n: ONE.replace(on_error="skip", max_failures=n)
    with pytest.warns(UserWarning, match="bad has no map: .*bad.tif"):
        made = predict_files(pointwise, [bad, good], tmp_path / "maps", FP32, skip(1))
    assert [p.name for p in made] == ["good.tif"] and list(failed_maps(tmp_path / "maps")) == ["bad"]
    assert "bad.tif" in failed_maps(tmp_path / "maps")["bad"]
    with pytest.raises(TooManyFailures, match="max_failures=0: bad"):
        predict_files(pointwise, [bad, good], tmp_path / "maps", FP32, skip(0))
    with pytest.raises(GeosegError, match="bad.tif"): predict_files(pointwise, [bad, good], tmp_path / "maps", FP32)
    assert failed_maps(tmp_path / "maps") == {}, "what an earlier call could not map says nothing of this one"
    write(bad, pixels(90, 70, 3), ("VV", "VH"))
    assert len(predict_files(pointwise, [bad, good], tmp_path / "maps", FP32)) == 2 and failed_maps(tmp_path / "maps") == {}


def test_dask_workers_write_the_same_bytes(unet, tmp_path):
    "A real scheduler on this machine, the model named by its folder and sent as it is"
    folder = save_model(tmp_path / "model", unet.network, unet.card.replace(weights={}))
    files = [write(tmp_path / f"{n}.tif", pixels(90, 70, i), ("VV", "VH")) for i, n in enumerate("ab")]
    alone = [p.read_bytes() for p in predict_files(folder, files, tmp_path / "alone", FP32)]
    with local_cluster(Execution(backend="dask", workers=1, threads=2)) as cluster:
        dask = ONE.replace(backend="dask", address=cluster.scheduler_address)
        for name, model in (("folder", folder), ("object", unet)):
            assert [p.read_bytes() for p in predict_files(model, files, tmp_path / name, FP32, dask)] == alone


def test_a_model_is_loaded_once_and_again_when_it_changed(unet, pointwise, tmp_path):
    folder = save_model(tmp_path / "model", unet.network, unet.card.replace(weights={}))
    assert as_model(folder) is as_model(str(folder)) and as_model(unet) is unet
    before = as_model(folder)
    save_model(folder, unet.network, unet.card.replace(weights={}, overlap=3))
    assert as_model(folder) is not before and as_model(folder).card.overlap == 3
    with pytest.raises(Refused, match="no model in"): as_model(tmp_path / "nowhere")


PEAK = """
    import resource, sys, numpy as np, torch
    from dataclasses import replace
    from pathlib import Path
    from torch import nn
    from geoseg_nb.checkpoint import load_model
    from geoseg_nb.core import Grid
    from geoseg_nb.predict import PredictSpec, predict_scene
    from geoseg_nb.scenes import Scene
    folder, height = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    model = load_model(folder / "m", device="cpu", precision="fp32")
    model = replace(model, network=nn.Conv2d(2, 3, 1).eval(), card=model.card.replace(tile_size=250))
    read = lambda w: np.full((2, w.height, w.width), w.row % 7 - 3, "float32")
    scene = Scene(Grid("EPSG:32633", (10, 0, 5e5, 0, -10, 5e6), height, 2000), read)
    predict_scene(model, scene, folder / f"{height}.tif", PredictSpec(overlap=0))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height_of_the_scene(unet, tmp_path):
    save_model(tmp_path / "m", unet.network, unet.card.replace(weights={}))
    peak = lambda height: int(subprocess.run([sys.executable, "-c", textwrap.dedent(PEAK), tmp_path, str(height)], check=True, capture_output=True,
                                             text=True, env={**os.environ, "GDAL_CACHEMAX": "32"}).stdout)
    low, high = peak(1024), peak(8192)
    scores_of_the_whole = 8192 * 2000 * 3 * 4 / 2**20
    assert high - low < 40 < scores_of_the_whole / 4, f"{low} MB for 1,024 rows, {high} MB for 8,192"
