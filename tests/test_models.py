"Any architecture on any image; weights from files whose bytes are known; no network"
import hashlib
import os
import pickle
import shutil
import socket
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.models import (
    ARCHITECTURES, OWN_ENCODER, PLAIN, AnySize, ModelSpec, adapt_bands, build_model, encoder_state, has_bf16, head_of, logits_of,
    read_state, resolve_device, set_prior)
from geoseg_nb.spec import make
from geoseg_nb.task import TrainSpec
from safetensors.torch import save_file
from scipy.stats import entropy
from timm.models import adapt_input_conv

torch.set_num_threads(1)
SIZES = {1: ((61, 61), (100, 37)), 13: ((120, 120),)}  # by bands


def spec_of(architecture, **values):
    "A specification with the encoder that an architecture takes"
    return ModelSpec(architecture=architecture, encoder=PLAIN if architecture in OWN_ENCODER else "resnet18", **values)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("bands", SIZES)
def test_every_architecture_takes_any_bands_and_any_size(name, bands):
    network = build_model(spec_of(name, bands=bands, classes=3), seed=0)
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


class Echo(torch.nn.Module):
    "Gives back its bands as logits and notes the size that it saw"

    def __init__(self, stride=32):
        super().__init__()
        self.encoder, self.seen = torch.nn.Identity(), []
        self.encoder.output_stride = stride

    def forward(self, image):
        self.seen.append(tuple(image.shape))
        return image


@pytest.mark.parametrize("size", [(61, 61), (100, 37), (40, 33), (64, 96), (33, 64)])
def test_every_pixel_of_the_answer_lies_where_it_lay_in_the_image(size):
    "What is added for the stride leaves again at the side where it was added"
    image, echo = torch.randn(2, 3, *size), Echo()
    assert torch.equal(AnySize(echo).eval()(image), image)
    (_, _, h, w), = echo.seen
    assert h % 32 == w % 32 == 0 and 0 <= h - size[0] < 32 and 0 <= w - size[1] < 32


def test_an_odd_image_is_answered_as_the_bare_library_answers_it_continued():
    import numpy as np
    import segmentation_models_pytorch as smp

    ours = build_model(ModelSpec(bands=4), seed=3).eval()
    theirs = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=2)
    theirs.load_state_dict(ours.network.state_dict())
    image = torch.randn(1, 4, 61, 75)
    continued = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), (0, 3), (0, 21)), mode="edge"))
    with torch.inference_mode():
        assert torch.equal(ours(image), theirs.eval()(continued)[:, :, :61, :75])


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


OFFLINE = """
import sys, time
from geoseg_nb.core import Refused
from geoseg_nb.models import ModelSpec, build_model
from geoseg_nb.spec import make
from geoseg_nb.task import TrainSpec
for name in ("imagenet", "ssl", "noisy-student", "weights/gone.safetensors"):
    for ask in (lambda: build_model(ModelSpec(encoder_weights=name), seed=0), lambda: make(TrainSpec, {"encoder_weights": name})):
        start = time.monotonic()
        try: ask()
        except Refused as error: print(f"{time.monotonic() - start:.3f} {error}")
"""


@pytest.mark.parametrize("isolated", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_weights_by_name_are_answered_at_once_where_there_is_no_network(isolated):
    "Fault 46: the library itself tries for 25 seconds. In a namespace without interfaces, and where that is not allowed, or also, with a dead proxy"
    shield = ["unshare", "--user", "--net"] if isolated else []
    if isolated and (not shutil.which("unshare") or subprocess.run([*shield, "true"], capture_output=True).returncode):
        pytest.skip("unshare -n is not allowed here; the other case closes the network by a dead proxy")
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    done = subprocess.run([*shield, sys.executable, "-c", OFFLINE], capture_output=True, text=True, timeout=120, env={**os.environ, **nowhere})
    assert done.returncode == 0, done.stderr
    told = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(told) == 7, "a path is looked for only when the network is built"
    assert all(float(seconds) < 2 and "nothing is downloaded" in text for seconds, text in told)
    assert sum("save_file(" in text and "weights_sha256" in text for _, text in told) == 6


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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_loss_is_the_entropy_of_the_class_shares(name):
    counts = torch.tensor([3000, 800, 296])
    network = set_prior(build_model(spec_of(name, classes=3), seed=0), counts)
    label = torch.repeat_interleave(torch.arange(3), counts)[torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0))].view(1, 64, 64)
    logits = network(torch.randn(1, 2, 64, 64))
    loss = F.cross_entropy(logits, label)
    assert loss.item() == pytest.approx(entropy(counts), rel=1e-5)
    torch.testing.assert_close(logits.softmax(1).mean((0, 2, 3)), counts / counts.sum(), rtol=1e-5, atol=1e-7)
    loss.backward()
    assert head_of(network).weight.grad.abs().sum() > 0, "the kernel can leave 0"


def test_after_the_first_step_the_whole_network_learns():
    torch.manual_seed(0)
    network = set_prior(build_model(ModelSpec(), seed=0), [900, 100])
    image, label = torch.randn(2, 2, 64, 64), torch.randint(2, (2, 64, 64))
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for step in range(2):
        optimiser.zero_grad()
        F.cross_entropy(network(image), label).backward()
        still = [n for n, p in network.named_parameters() if p.grad.abs().sum() == 0]
        assert bool(still) == (step == 0)
        optimiser.step()


@pytest.mark.parametrize("counts", [[1, 2], [0, 0, 0], [5, -1, 3], [float("nan"), 1, 1]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(GeosegError, match="pixel counts of 3 classes"):
        set_prior(build_model(ModelSpec(classes=3), seed=0), counts)


def test_a_class_that_was_never_seen_keeps_a_chance():
    network = set_prior(build_model(ModelSpec(classes=3), seed=0), [998, 0, 1]).eval()
    with torch.inference_mode():
        chances = network(torch.randn(1, 2, 64, 64)).softmax(1)[0, :, 0, 0]
    assert chances.tolist() == pytest.approx([0.998, 0.001, 0.001], rel=1e-5)


def test_the_skipless_net_is_layer_by_layer_what_the_first_system_trained():
    "Counted by hand: in * out * 9 + out of each convolution, in * out + out of the head"
    channels = [(6, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 128), (128, 64)]
    network = build_model(spec_of("SkiplessUnet", bands=6, classes=256), seed=0).network
    kernels = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(k.in_channels, k.out_channels) for k in kernels] == [*channels, (64, 256)]
    assert sum(p.numel() for p in network.parameters()) == sum(9 * a * b + b for a, b in channels) + 64 * 256 + 256
    names = [type(layer).__name__ for part in (network.encoder, network.decoder) for layer in part]
    conv = ["Conv2d", "ReLU"]
    assert names == 2 * [*conv, *conv, "MaxPool2d"] + conv + 2 * ["Upsample", *conv]


def test_the_skipless_net_is_what_plain_functions_of_torch_make_of_its_weights():
    network = build_model(spec_of("SkiplessUnet", bands=3, classes=4, options={"widths": [5, 6, 7]}), seed=2).eval()
    weights = iter([p for p in network.parameters()])
    image = torch.randn(2, 3, 36, 44)
    conv = lambda x: F.conv2d(x, next(weights), next(weights), padding=1).relu()
    with torch.inference_mode():
        x = F.max_pool2d(conv(conv(image)), 2)
        x = conv(F.max_pool2d(conv(conv(x)), 2))
        for _ in range(2): x = conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        expected = F.conv2d(x, next(weights), next(weights))
        torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize("values, said", [
    ({}, "SkiplessUnet has an encoder of its own and takes no 'resnet18': pass encoder='plain'"), ({"encoder": PLAIN, "encoder_weights": "a.pt"}, "takes no encoder_weights"),
    ({"architecture": "Unet", "encoder": PLAIN}, "Unet has no encoder 'plain'"), ({"encoder": "plane"}, "did you mean 'plain'")])
def test_what_the_skipless_net_cannot_take_is_refused_by_name(values, said):
    for kind in (ModelSpec, TrainSpec):
        with pytest.raises(Refused, match=said): make(kind, {"architecture": "SkiplessUnet", **values})


@pytest.mark.parametrize("options, said", [({"decoder_channels": [8]}, "no option of SkiplessUnet 'decoder_channels': known are widths"),
                                           ({"widths": [64]}, "two or more numbers"), ({"widths": [8, 0]}, "two or more numbers")])
def test_options_that_the_skipless_net_does_not_have_are_refused(options, said):
    with pytest.raises(Refused, match=said): build_model(spec_of("SkiplessUnet", options=options), seed=0)
