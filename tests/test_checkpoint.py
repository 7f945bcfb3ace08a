"The model folder: whole or not at all, checked byte by byte, nothing unpickled"
import json
import pickle
import shutil
import zipfile
from copy import deepcopy
from pathlib import Path

import geoseg_nb.checkpoint as checkpoint
import numpy as np
import pytest
import safetensors.torch
import torch
from geoseg_nb.checkpoint import ModelCard, load_model, read_card, save_model, write_card
from geoseg_nb.core import Band, GeosegError, Refused, Sensor, make_legend
from geoseg_nb.loader import Stats, make_normaliser
from geoseg_nb.models import ModelSpec, build_model

torch.set_num_threads(1)
SPEC = ModelSpec(encoder="resnet18", bands=3, options={"decoder_channels": [32, 16, 16, 8, 8]})
LEGEND = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
SENSORS = [Sensor("s1", (Band("VV", "dB"), Band("VH", "dB"))), Sensor("dem", (Band("height", "m"),))]
NORMALISER = make_normaliser("mean_std", Stats((-11.0, -18.0, 200.0), (4.0, 5.0, 80.0), 10))


def card(**more):
    return ModelCard(model=SPEC, sensors=[s.as_dict() for s in SENSORS], normaliser=NORMALISER.as_dict(),
                     legend=LEGEND.as_dict(), tile_size=64, overlap=32, **more)


@pytest.fixture(scope="module")
def network():
    return build_model(SPEC, seed=0).eval()


@pytest.fixture(scope="module")
def master(network, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("master") / "model", network, card(scores={"val/iou": 0.9}))


@pytest.fixture
def folder(master, tmp_path):
    return Path(shutil.copytree(master, tmp_path / "model"))


def test_a_saved_model_answers_as_the_network_did(folder, network):
    image = np.random.default_rng(0).normal(-12, 5, (2, 3, 61, 100)).astype("float32")
    image[0, :, :10] = np.nan
    model = load_model(folder, "cpu", "fp32")
    normal = (image - np.array([-11, -18, 200], "float32")[:, None, None]) / np.array([4, 5, 80], "float32")[:, None, None]
    with torch.inference_mode():
        expected = network(torch.from_numpy(np.nan_to_num(normal))).softmax(1).numpy()
    np.testing.assert_allclose(model.predict_scores(image), expected, atol=1e-5)
    assert model.bands == ["VV", "VH", "height"] and model.legend == LEGEND and not model.network.training


def test_equal_weights_are_equal_bytes(folder, network, tmp_path):
    network.to(memory_format=torch.channels_last)
    again = save_model(tmp_path / "again", network, card(scores={"val/iou": 0.9}))
    assert all((again / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir())


def test_other_tools_read_the_weights(folder, network):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items()) and len(state) == len(network.state_dict())


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_a_truncated_file_is_named_with_size_and_expected(folder, keep):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(GeosegError, match=rf"model.safetensors: {len(whole[:keep])} bytes, expected {len(whole)}"):
        load_model(folder, "cpu")


def test_a_flipped_bit_is_found(folder):
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)
    with pytest.raises(GeosegError, match="its content was changed"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(GeosegError, match=name):
        load_model(folder, "cpu")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 3}', "<html>"])
def test_a_broken_record_is_one_refusal(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(Refused):
        load_model(folder, "cpu")


def test_weights_of_another_network_are_refused(folder):
    record = json.loads((folder / "model.json").read_text())
    record["model"]["options"] = {}
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(GeosegError, match="the weights are not those of"):
        load_model(folder, "cpu")


class Bomb:
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return (open, (self.mark, "w"))


@pytest.mark.parametrize("name", ["last.ckpt", "model.pt", "model.pth", "model.safetensors"])
def test_a_pickle_bomb_is_refused_and_not_executed(folder, tmp_path, name):
    mark, path = tmp_path / "executed", tmp_path / name
    torch.save({"state_dict": {}, "bomb": Bomb(mark)}, path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(Refused, match="is a file, not a model folder"):
        load_model(path)
    record = json.loads((folder / "model.json").read_text())
    record["weights"] = checkpoint_of(shutil.copy(path, folder / "model.safetensors"))
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(GeosegError, match="no safetensors file"):
        load_model(folder, "cpu")
    assert not mark.exists()


def checkpoint_of(path):
    "A record that vouches for whatever lies there"
    return {"file": Path(path).name, "bytes": Path(path).stat().st_size, "sha256": checkpoint.sha256(path)}


@pytest.mark.parametrize("step", ["write_weights", "write_card", "write_atomic", "_put_in_place"])
def test_a_writer_that_dies_leaves_the_old_model(folder, network, monkeypatch, step):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def die(*args):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, step, die)
    with pytest.raises(OSError, match="disk full"):
        save_model(folder, network, card())
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before and [p.name for p in folder.parent.iterdir()] == ["model"]


def test_the_file_of_pretrained_weights_need_not_travel(network, tmp_path):
    told = card().replace(model=SPEC.replace(encoder_weights="/gone/resnet18.safetensors", weights_sha256="0" * 64))
    assert load_model(save_model(tmp_path / "model", network, told), "cpu").card.model.encoder_weights == "resnet18.safetensors"
    assert not [p.name for p in (tmp_path / "model").glob("*.[jm][sd]*") if "/gone" in p.read_text()]


def test_the_page_for_people_names_what_they_need(folder):
    page = (folder / "README.md").read_text()
    for said in ("Maps dry, water from VV, VH, height", "| 2 | dem | height | m |", "64 x 64", "| val/iou | 0.9 |",
                 read_card(folder).weights["sha256"], "predict_scene(load_model("):
        assert said in page, said
    assert "None measured." in write_card(card())


@pytest.mark.parametrize("own", ["notes.txt", "model.json"])
def test_only_a_model_is_replaced(network, tmp_path, own):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / own).write_text("{}")
    with pytest.raises(Refused, match="holds something that is no model"): save_model(tmp_path / "thesis", network, card())
    with pytest.raises(Refused, match="holds something that is no model"): save_model(tmp_path / "thesis" / own, network, card())
    assert [f.name for f in tmp_path.rglob("*")] == ["thesis", own] and (tmp_path / "thesis" / own).read_text() == "{}"
    (tmp_path / "empty").mkdir()
    assert save_model(save_model(tmp_path / "empty", network, card()), network, card()).name == "empty"


def write_record(folder, record):
    (folder / "model.json").write_text(json.dumps(record))


def at(record, path):
    for key in path: record = record[key]
    return record


def edited(record, path, value):
    "A copy of the record with another value at a path; the path's last key goes where the value is `...`"
    record, (*above, last) = deepcopy(record), path
    if value is ...: del at(record, above)[last]
    else: at(record, above)[last] = value
    return record


CONTRADICTIONS = {
    ("model",): [(..., "needs model"), (3, "model")],
    ("model", "bands"): [(2, "model.bands is 2, the sensors hold 3 bands"), (0, "model.bands"), (10**12, "the sensors hold 3 bands")],
    ("model", "classes"): [(3, "model.classes is 3, the legend has 2"), (10**12, "the legend has 2")],
    ("model", "architecture"): [("Unit", "did you mean 'Unet'"), (None, "architecture"), ("Linknet", "no option of Linknet 'decoder_channels'")],
    ("model", "encoder"): [("tu-resnet10t", "the weights are not those of"), ("resnet19", "did you mean 'resnet18'"), ("resnet34", "the weights are not those of")],
    ("model", "options"): [({"decoder_channels": [10**5] * 5}, "the weights are not those of"), ({"decoder_channel": 3}, "decoder_channels"),
                           ({"decoder_channels": 3}, "decoder_channels"), ({"decoder_channels": [10**30] * 5}, "decoder_channels"),
                           ({"encoder_depth": 10**6}, "encoder_depth"), ({"encoder_depth": "5"}, "encoder_depth")],
    ("sensors",): [(..., "needs sensors"), ([], "the sensors hold 0 bands"), ({}, "sensors")],
    ("sensors", 0): [(None, "sensors.0")],
    ("sensors", 0, "dtype"): [("float33", "data type 'float33' not understood"), ("x" * 3000, "data type 'xxx")],
    ("sensors", 0, "bands"): [([], "bands"), ([{"name": "VV"}, {"name": "VV"}], "each once"), ("VV", "sensors.0.bands")],
    ("sensors", 0, "bands", 0, "name"): [(..., "sensors.0.bands.0.name"), (None, "sensors.0.bands.0.name")],
    ("sensors", 0, "bands", 0, "unit"): [(3, "sensors.0.bands.0.unit")],
    ("sensors", 0, "bands", 0, "units"): [("dB", "units")],
    ("normaliser",): [(..., "needs normaliser"), ({}, "normaliser.kind")],
    ("normaliser", "mean"): [([0.0, 0.0], "normaliser.mean holds 2 numbers, the sensors 3 bands (VV, VH, height)"), ([], "normaliser.mean"), (None, "normaliser.mean")],
    ("normaliser", "std"): [([1.0, 1.0], "normaliser.std holds 2 numbers"), ([1.0, 0.0, 1.0], "normaliser.std holds 0"), ([-1.0, 1.0, 1.0], "normaliser.std holds -1"),
                            ([1.0, float("inf"), 1.0], "Infinity"), ([1.0, float("nan"), 1.0], "NaN"), ("111", "normaliser.std")],
    ("normaliser", "low"): [([0.0], "one of the two is empty"), ([0.0] * 5, "normaliser.low holds 5 numbers")],
    ("legend",): [(..., "needs legend"), ({}, "legend.classes")],
    ("legend", "classes"): [([], "legend"), (None, "legend.classes")],
    ("legend", "classes", 0, "colour"): [("beige", "#rrggbb"), (7, "legend.classes.0.colour")],
    ("legend", "classes", 1, "codes"): [([0], "0 given twice"), ([1.5], "legend.classes.1.codes.0"), ([], "no raw code")],
    ("legend", "ignore_index"): [(1, "above the classes"), (300, "255 at most")],
    ("tile_size",): [(..., "needs tile_size"), (0, "tile_size is 0"), (-64, "tile_size is -64"), (10**9, "tile_size is 1000000000"), (None, "tile_size"), (64.5, "tile_size")],
    ("overlap",): [(64, "overlap 64"), (-1, "overlap -1")],
    ("weights",): [(..., "needs weights.bytes"), (None, "weights")],
    ("weights", "bytes"): [(..., "needs weights.bytes"), ("many", "bytes is 'many'"), (7, "expected 7")],
    ("weights", "sha256"): [(..., "needs weights.sha256"), (None, "sha256 is None"), ("0" * 64, "its content was changed"), ("0", "weights.sha256")],
    ("weights", "file"): [("../../elsewhere.safetensors", "weights.file"), (..., "needs weights.file")],
    ("training_areas",): [([{"scene": "a", "row0": 8, "row1": 8, "col0": 0, "col1": 8}], "ends before it begins"), ([{"scene": "a"}], "training_areas.0"), (3, "training_areas")],
    ("format",): [("geoseg_nb model 2", "geoseg_nb model 1")],
    ("surprise",): [(1, "surprise")],
}


@pytest.mark.parametrize(("path", "value", "says"), [(p, v, says) for p, pairs in CONTRADICTIONS.items() for v, says in pairs],
                         ids=lambda x: ".".join(map(str, x)) if isinstance(x, tuple) else str(x)[:30])
def test_a_card_that_contradicts_itself_is_refused_with_both_sides(folder, path, value, says):
    write_record(folder, edited(json.loads((folder / "model.json").read_text()), path, value))
    with pytest.raises(GeosegError) as caught: load_model(folder, "cpu", "fp32")
    assert says in str(caught.value) and str(folder / "model.") in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def paths_of(value, path=()):
    "Every place of a record; the first stands for all of a list"
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [*([path] if path else []), *(p for key, v in inner for p in paths_of(v, (*path, key)))]


def mutants(value):
    "What else could stand in a place: nothing, another type, another length, too much"
    lists = [value[:-1], value + value[-1:] * 3, [value]] if isinstance(value, list) else [[], [value]]
    numbers = [value + 1, -value, value * 10**9, 10**400] if isinstance(value, int | float) else [0, 10**18]
    return [..., None, "x" * 3000, "", {}, {"a": {}}, True, 1e308, -1, *lists, *numbers]


def forbid(*args, **more):
    raise AssertionError("something was unpickled")


@pytest.mark.slow
def test_whatever_is_done_to_a_field_the_model_works_or_one_error_names_the_file(tmp_path, monkeypatch):
    "Every field of a real card, each in up to 16 ways; a third of them leave the network as it was, so it is built once"
    built = {}

    def once(name, build):
        def call(spec, *more, **named):
            key = (name, str(spec))
            if key not in built: built[key] = build(spec, *more, **named)
            return built[key]
        return call

    for name in ("bare_network", "build_model"): monkeypatch.setattr(checkpoint, name, once(name, getattr(checkpoint, name)))
    small = SPEC.replace(encoder="mobilenet_v2", options={"encoder_depth": 3, "decoder_channels": [16, 8, 8]})
    told = card(scores={"val/iou": 0.9}, training={"epochs": 3}, provenance={"seed": 0}, training_areas=[{"scene": "a", "row0": 0, "row1": 8, "col0": 0, "col1": 8}])
    folder = save_model(tmp_path / "model", build_model(small, seed=0), told.replace(model=small))
    for module, name in ((pickle, "loads"), (pickle, "load"), (pickle, "Unpickler"), (torch, "load")): monkeypatch.setattr(module, name, forbid)
    whole = json.loads((folder / "model.json").read_text())
    image, refused, works = np.zeros((1, 3, 64, 64), "float32"), 0, []
    for path in paths_of(whole):
        for value in mutants(at(whole, path)):
            write_record(folder, edited(whole, path, value))
            try: model = load_model(folder, "cpu", "fp32")
            except GeosegError as error:
                refused += 1
                assert "model." in str(error) and "\n" not in str(error), (path, value, error)
                continue
            works.append((path, value))
            assert np.isfinite(model.predict_scores(image)).all(), (path, value)
    free = [w for w in works if w[0][0] not in ("scores", "training", "provenance")]
    assert refused > 400 and len(free) < 0.25 * refused, (refused, free)


def test_weights_that_are_not_finite_are_refused_when_they_are_saved_and_read(network, folder, tmp_path):
    spoilt = build_model(SPEC, seed=0)
    with torch.no_grad(): next(spoilt.parameters()).view(-1)[5] = float("nan")
    with pytest.raises(GeosegError, match="network.encoder.conv1.weight .* not finite"): save_model(tmp_path / "spoilt", spoilt, card())
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    safetensors.torch.save_file(spoilt.state_dict(), folder / "model.safetensors")
    write_record(folder, edited(json.loads((folder / "model.json").read_text()), ("weights",), checkpoint_of(folder / "model.safetensors")))
    with pytest.raises(GeosegError, match="encoder.conv1.weight in model.safetensors is not finite"): load_model(folder, "cpu")


@pytest.mark.parametrize("change", [{"tile_size": 0}, {"normaliser": {**NORMALISER.as_dict(), "std": (1.0, 0.0, 1.0)}}, {"model": SPEC.replace(bands=4)}])
def test_a_card_that_could_not_be_read_is_not_written(folder, network, change):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(Refused, match="model.json"): save_model(folder, network, card().replace(**change))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before and [p.name for p in folder.parent.iterdir()] == ["model"]


def test_training_areas_travel_with_the_model(network, tmp_path):
    areas = [{"scene": f"chip_{k}", "row0": 0, "row1": 512, "col0": 0, "col1": 256} for k in range(20_000)]
    assert load_model(save_model(tmp_path / "model", network, card(training_areas=areas)), "cpu").card.training_areas == areas
    assert card().training_areas == []


def test_numbers_and_texts_arrive_in_their_types_however_they_were_spelt(folder):
    record = json.loads((folder / "model.json").read_text())
    record["legend"]["ignore_index"], record["normaliser"]["std"] = "255", ["4", "5.0", 80]
    write_record(folder, record)
    model = load_model(folder, "cpu", "fp32")
    assert model.legend == LEGEND and model.normaliser == NORMALISER


def test_a_negative_scale_of_a_unit_may_divide(network, tmp_path):
    told = card().replace(normaliser={"kind": "scale", "mean": [0.0], "std": [-10.0]})
    assert load_model(save_model(tmp_path / "model", network, told), "cpu").normaliser.std == (-10.0,)
