"The model folder: whole or not at all, checked byte by byte, nothing unpickled"
import json
import shutil
import zipfile
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
    assert load_model(save_model(tmp_path / "model", network, told), "cpu").card.model.encoder_weights.startswith("/gone")


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
