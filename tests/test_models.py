"Any architecture on any image; weights from files whose bytes are known; no network"
import hashlib
import pickle
import socket

import pytest
import torch
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.models import (
    ARCHITECTURES, AnySize, ModelSpec, adapt_bands, build_model, encoder_state, has_bf16, logits_of, read_state, resolve_device)
from safetensors.torch import save_file
from timm.models import adapt_input_conv

torch.set_num_threads(1)
SIZES = {1: ((61, 61), (100, 37)), 13: ((120, 120),)}  # by bands


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("bands", SIZES)
def test_every_architecture_takes_any_bands_and_any_size(name, bands):
    network = build_model(ModelSpec(architecture=name, bands=bands, classes=3), seed=0)
    for h, w in SIZES[bands]:
        logits = network(torch.randn(1, bands, h, w))
        assert logits.shape == (1, 3, h, w) and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    with torch.inference_mode():
        assert network.eval()(torch.randn(2, bands, 40, 72)).shape == (2, 3, 40, 72)


@pytest.mark.parametrize("encoder", ["resnet34", "mobilenet_v2", "efficientnet-b0", "mit_b0", "tu-efficientnet_b0"])
def test_encoders_by_name(encoder):
    network = build_model(ModelSpec(encoder=encoder, bands=5), seed=0).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 5, 70, 50)).shape == (1, 2, 70, 50)


def test_the_same_weights_as_the_bare_library_give_the_same_logits():
    import segmentation_models_pytorch as smp

    ours = build_model(ModelSpec(bands=4), seed=3)
    theirs = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=2)
    theirs.load_state_dict(ours.network.state_dict())
    image = torch.randn(2, 4, 64, 96)
    assert torch.equal(ours.eval()(image), theirs.eval()(image))


def test_the_seed_decides_and_disturbs_nothing():
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    a = build_model(ModelSpec(), seed=0).state_dict()
    assert torch.equal(torch.rand(4), expected)
    torch.rand(17)
    b, c = build_model(ModelSpec(), seed=0).state_dict(), build_model(ModelSpec(), seed=1).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["network.encoder.conv1.weight"], c["network.encoder.conv1.weight"])


def test_no_network_is_tried(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    build_model(ModelSpec(encoder="tu-resnet18"), seed=0)
    with pytest.raises(Refused, match="nothing is downloaded"):
        build_model(ModelSpec(encoder_weights="imagenet"), seed=0)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("prefix", ["", "encoder.", "network.encoder."])
def test_encoder_weights_from_a_file(tmp_path, suffix, prefix):
    source = build_model(ModelSpec(bands=3), seed=7).network.encoder.state_dict()
    state, path = {prefix + k: v for k, v in source.items()}, tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state, "epoch": 3}, path)
    spec = ModelSpec(bands=2, encoder_weights=str(path), weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    filled = build_model(spec, seed=0).network.encoder.state_dict()
    assert all(torch.equal(filled[k], v) for k, v in source.items() if k != "conv1.weight")
    torch.testing.assert_close(filled["conv1.weight"].sum(1), source["conv1.weight"].sum(1))


def test_timm_names_fill_a_timm_encoder():
    import timm

    theirs = timm.create_model("resnet18", pretrained=False).state_dict()
    wanted = build_model(ModelSpec(encoder="tu-resnet18", bands=2), seed=0).network.encoder.state_dict()
    assert torch.equal(encoder_state(theirs, wanted)["model.layer2.0.conv1.weight"], theirs["layer2.0.conv1.weight"])


def test_one_band_is_what_timm_makes_of_it():
    kernel = torch.randn(8, 3, 7, 7)
    torch.testing.assert_close(adapt_bands(kernel, 1), adapt_input_conv(1, kernel))
    assert adapt_bands(kernel, 3) is kernel


def test_another_file_than_the_one_meant_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(Refused, match=f"sha256 is {right}"):
        read_state(path, "0" * 64)
    with pytest.raises(Refused, match="is this file of the encoder"):
        build_model(ModelSpec(encoder_weights=str(path), weights_sha256=right), seed=0)


class Bomb:
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return (open, (self.mark, "w"))


@pytest.mark.parametrize("content", ["bomb", "truncated", "html"])
def test_a_weights_file_that_is_none_is_refused_and_not_executed(tmp_path, content):
    path, mark = tmp_path / "weights.pt", tmp_path / "executed"
    torch.save({"a": torch.zeros(1000), **({"bomb": Bomb(mark)} if content == "bomb" else {})}, path)
    if content == "truncated": path.write_bytes(path.read_bytes()[:1500])
    if content == "html": path.write_text("<html>not found</html>")
    with pytest.raises(Refused, match="weights.pt: not a file of tensors"):
        read_state(path, hashlib.sha256(path.read_bytes()).hexdigest())
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(Refused, match="not a file of tensors"):
        read_state(plain, hashlib.sha256(plain.read_bytes()).hexdigest())
    assert not mark.exists()


def test_an_option_reaches_the_architecture():
    small = build_model(ModelSpec(options={"decoder_channels": [64, 32, 16, 8, 8]}), seed=0)
    full = build_model(ModelSpec(), seed=0)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in full.parameters())
    with pytest.raises(Refused, match="option of Unet"):
        build_model(ModelSpec(options={"decoder_chanels": [64]}), seed=0)


def test_a_batch_of_one_counted_twice_is_the_batch_of_one():
    network = build_model(ModelSpec(), seed=0)
    twice = AnySize(network.network, network.limits._replace(batch=2))
    image = torch.randn(1, 2, 64, 64)
    torch.testing.assert_close(twice(image), network(image), atol=1e-4, rtol=1e-4)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(GeosegError, match="known are auto, .*cpu"):
        resolve_device("cuda:7")
    assert isinstance(has_bf16(torch.device("cpu")), bool)


def test_bf16_answers_in_float32_and_close_by():
    network = build_model(ModelSpec(), seed=0).eval()
    image = torch.randn(2, 2, 64, 64)
    with torch.inference_mode():
        exact, brain = logits_of(network, image, "fp32"), logits_of(network, image, "bf16")
    assert brain.dtype == torch.float32 and 0 < (exact - brain).abs().mean() < 0.05 * exact.std()
