"An ONNX file answers as the model does, in a runtime that knows nothing of us, or it is not written"
import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch
import xarray as xr

from geoseg_nb import exchange
from geoseg_nb.checkpoint import Model, ModelCard, load_model, save_model
from geoseg_nb.core import Band, GeosegError, Refused, Sensor, make_legend
from geoseg_nb.exchange import NormalisingLayer, export_onnx, load_onnx, require_parity, trial_images
from geoseg_nb.loader import Stats, make_normaliser
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.predict import predict
from geoseg_nb.storage import sample_folder

torch.set_num_threads(1)
LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
SENSOR = Sensor("s1", (Band("VV", "dB"), Band("VH", "dB")))
NORMALISER = make_normaliser("mean_std", Stats((-11.0, -18.5), (4.0, 5.0)), clip=[-45, 12])
SPECS = {
    "resnet18": ModelSpec(),
    "floods": ModelSpec(options={"encoder_depth": 3, "decoder_channels": [128, 64, 32]}),
    "pooling": ModelSpec(architecture="PSPNet", options={"encoder_depth": 3}),
    "skipless": ModelSpec(architecture="SkiplessUnet", encoder="plain", options={"widths": [16, 32, 64]}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("exchange")


def saved(place, name, seed=0):
    network = build_model(SPECS[name], seed=seed)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1), layer.running_var.uniform_(0.5, 2)
    card = ModelCard(model=SPECS[name], sensors=[SENSOR.as_dict()], normaliser=NORMALISER.as_dict(), legend=LEGEND.as_dict(), tile_size=64)
    return save_model(place / name, network, card)


@pytest.fixture(scope="module", params=SPECS)
def case(request, place):
    "The model and its file, exported once"
    folder = saved(place, request.param)
    tiles = chip()[..., :128, :128]
    return request.param, load_model(folder, "cpu", "fp32"), export_onnx(folder, place / f"{request.param}.onnx", tiles)


@pytest.fixture(scope="module")
def floods(place):
    "The small network of the flood recipe"
    if not (place / "floods.onnx").exists():
        export_onnx(saved(place, "floods"), place / "floods.onnx")
    return load_model(place / "floods", "cpu", "fp32"), place / "floods.onnx"


@pytest.fixture(scope="module")
def another(floods):
    "The graph of other weights, traced once"
    return exchange.traced(replace(floods[0], network=build_model(SPECS["floods"], seed=5).eval()), True, 0)


def chip(name="Nigeria_812045"):
    with rasterio.open(sample_folder() / "S1" / f"{name}_S1Hand.tif") as file:
        return file.read()[None]


def test_the_file_answers_as_the_model_on_real_pixels(case):
    name, model, path = case
    opened, images = load_onnx(path), chip()
    assert np.isnan(images).any()
    sizes = [(64, 64), (61, 40)] if name == "pooling" else [(64, 64), (61, 40), (200, 130), (512, 512)]
    for h, w in sizes:
        image = images[..., -h:, -w:]
        ours, theirs = model.predict_scores(image), opened.predict_scores(image)
        assert theirs.shape == ours.shape and np.abs(theirs - ours).max() <= 1e-4
        assert (theirs.argmax(1) == ours.argmax(1)).mean() > 0.999


def test_the_bare_runtime_takes_raw_pixels_in_any_number(case):
    name, model, path = case
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for n in (1, 5):
        image = np.repeat(chip()[..., -64:, -64:], n, axis=0)
        values = torch.from_numpy(np.nan_to_num((np.clip(image, -45, 12) - [[[-11]], [[-18.5]]]) / [[[4]], [[5]]]).astype("float32"))
        with torch.inference_mode():
            expected = model.network.network(values).softmax(1).numpy()
        (found,) = session.run(None, {"image": image})
        assert np.abs(found - expected).max() <= 1e-4 and np.abs(found.sum(1) - 1).max() < 1e-5
    assert json.loads(load_onnx(path).network.notes["fixed_edge"]) == (64 if name == "pooling" else 0)


def test_a_graph_of_one_size_says_so(case):
    name, _, path = case
    opened = load_onnx(path)
    if name == "pooling":
        with pytest.raises(GeosegError, match="predict in windows of 64 px"):
            opened.predict_scores(np.zeros((1, 2, 65, 64), "float32"))
    else:
        shape = onnxruntime.InferenceSession(path.read_bytes()).get_inputs()[0].shape
        assert shape[1] == 2 and all(isinstance(side, str) for side in (shape[0], *shape[2:]))


def test_the_file_says_what_it_needs(floods):
    model, path = floods
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    notes = {entry.key: entry.value for entry in graph.metadata_props}
    weights = (path.parent / "floods" / "model.safetensors").read_bytes()
    assert notes["source_sha256"] == hashlib.sha256(weights).hexdigest()
    read = {k: json.loads(notes[k]) for k in ("bands", "classes", "colours", "tile_size", "normaliser", "normalised_inside", "stride", "card")}
    assert read["bands"] == ["VV", "VH"] and read["classes"] == LEGEND.names and read["colours"] == LEGEND.colours
    assert read["tile_size"] == 64 and read["normaliser"] == NORMALISER.as_dict() and read["normalised_inside"] is True and read["stride"] == 8
    assert load_onnx(path).card == model.card
    assert exchange.source_sha256(Model(model.network, model.card.replace(weights={}))) == notes["source_sha256"]


def test_nothing_of_this_machine_is_in_the_file(floods):
    content, graph = floods[1].read_bytes(), onnx.load(floods[1]).graph
    assert b"site-packages" not in content and str(exchange.__file__).encode() not in content
    assert not any(len(node.metadata_props) for node in graph.node)


def test_maps_are_made_from_the_file_as_from_the_model(floods):
    model, path = floods
    image = xr.DataArray(chip()[0, :, 100:300, 50:250], dims=("band", "y", "x"), coords={"band": ["VV", "VH"]})
    ours, theirs = predict(model, image), predict(load_onnx(path), image)
    assert (ours == theirs).mean() > 0.999 and ours.attrs == theirs.attrs and {0, 1} >= set(np.unique(theirs)) - {255}
    assert (theirs == 255).equals(ours == 255)


def test_two_files_are_told_apart(floods):
    from geoseg_nb.predict import model_hash
    _, path = floods
    graph = onnx.load(path)
    graph.producer_name = "another"
    onnx.save(graph, path.with_name("another.onnx"))
    assert model_hash(load_onnx(path)) == model_hash(load_onnx(path)) != model_hash(load_onnx(path.with_name("another.onnx")))


@pytest.mark.parametrize("normaliser", [
    NORMALISER, make_normaliser("none"), make_normaliser("clip", clip=[[-30, 0], [-40, -5]]), make_normaliser("mean_std", Stats((1e4,), (1e-3,)))])
def test_the_layer_is_the_normaliser_to_the_last_bit(normaliser):
    rng = np.random.default_rng(0)
    image = rng.normal(-15, 10, (3, 2, 9, 7)).astype("float32")
    image[0, :, 0, :5] = np.nan, np.inf, -np.inf, 3e38, -3e38
    assert torch.equal(NormalisingLayer(normaliser)(torch.from_numpy(image)), torch.from_numpy(normaliser(image)))


def test_the_caller_may_normalise(floods, tmp_path):
    model, _ = floods
    path = export_onnx(model, tmp_path / "bare.onnx", normalise=False)
    image = chip()[..., :64, :64]
    assert np.abs(load_onnx(path).predict_scores(image) - model.predict_scores(image)).max() <= 1e-4
    (found,) = onnxruntime.InferenceSession(path.read_bytes()).run(None, {"image": model.normaliser(image)})
    assert np.abs(found - model.predict_scores(image)).max() <= 1e-4


def shifted(path, out):
    "The file with the last layer's kernel a hundredth off"
    graph = onnx.load(path)
    kernel = next(t for t in graph.graph.initializer if "segmentation_head" in t.name and t.name.endswith("weight"))
    kernel.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(kernel) * np.float32(1.01), kernel.name))
    onnx.save(graph, out)


def test_a_file_that_answers_otherwise_is_told(floods, tmp_path):
    model, path = floods
    assert require_parity(load_onnx(path), model, trial_images(model, 0)) <= 1e-4
    shifted(path, tmp_path / "off.onnx")
    with pytest.raises(GeosegError, match="probabilities differ by .*, allowed is 1e-04"):
        require_parity(load_onnx(tmp_path / "off.onnx"), model, trial_images(model, 0))


def test_trial_images_hold_unknown_pixels_and_other_sizes(floods):
    images = trial_images(floods[0], 0)
    assert all(np.isnan(i).any() and np.isinf(i).any() for i in images) and len({i.shape for i in images}) == 3
    known = images[1][np.isfinite(images[1])]
    assert -18.5 < known.mean() < -11 and any(i.shape[-2] % 8 for i in images)


def test_without_parity_there_is_no_file_and_the_old_one_stays(floods, another, tmp_path, monkeypatch):
    model, path = floods
    monkeypatch.setattr(exchange, "traced", lambda *_: another)
    (tmp_path / "old.onnx").write_bytes(path.read_bytes())
    for name in ("new.onnx", "old.onnx"):
        with pytest.raises(GeosegError, match=rf"{name} was not written; with open edges: .*differ.*; with edges of 64 px: .*differ"):
            export_onnx(model, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == path.read_bytes()


def test_tiles_of_ones_own_are_judged_too(floods, another, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(exchange, "traced", lambda *_: another)
    monkeypatch.setattr(exchange, "require_parity", lambda opened, model, images, tolerance: seen.extend(i.shape for i in images))
    export_onnx(floods[0], tmp_path / "a.onnx", tiles=chip()[..., :96, :80])
    assert (1, 2, 96, 80) in seen


@pytest.mark.parametrize("module", ["onnxscript", "onnxruntime"])
def test_a_missing_extra_names_its_command(floods, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Refused, match=r"onnx needs \w+: pip install 'geoseg_nb\[onnx\]'"):
        export_onnx(floods[0], tmp_path / "a.onnx") if module == "onnxscript" else load_onnx(floods[1])
    assert not list(tmp_path.iterdir())


def test_importing_the_module_needs_no_extra():
    assert not re.search(r"^(import|from) onnx", Path(exchange.__file__).read_text(), re.MULTILINE)


def test_what_is_no_such_file_is_refused(floods, tmp_path):
    with pytest.raises(Refused, match="no ONNX file"):
        load_onnx(tmp_path / "none.onnx")
    (tmp_path / "cut.onnx").write_bytes(floods[1].read_bytes()[:5000])
    with pytest.raises(GeosegError, match="cut.onnx: no ONNX file that can be run"):
        load_onnx(tmp_path / "cut.onnx")
    graph = onnx.load(floods[1])
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "foreign.onnx")
    with pytest.raises(Refused, match="its notes say 'nothing'"):
        load_onnx(tmp_path / "foreign.onnx")
    with pytest.raises(GeosegError, match="the model's bands are VV, VH"):
        load_onnx(floods[1]).predict_scores(np.zeros((1, 3, 64, 64)))
