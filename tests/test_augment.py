"""D4 as a group, image and label in step, chance from the generator alone."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from geoseg_nb.augment import AUGMENTS, d4, d4_element, jitter, move
from geoseg_nb.core import GeosegError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_elements_equal_numpy_and_form_a_group():
    square = torch.arange(9).view(3, 3)
    views = [d4_element(square, g) for g in range(8)]
    for g, view in enumerate(views):
        turned = np.rot90(square.numpy(), g % 4)
        assert (view.numpy() == (np.fliplr(turned) if g >= 4 else turned)).all()
    seen = {tuple(v.flatten().tolist()) for v in views}
    assert len(seen) == 8
    for a, b in itertools.product(range(8), repeat=2):
        assert tuple(d4_element(d4_element(square, a), b).flatten().tolist()) in seen


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9), st.integers(1, 13), st.integers(1, 7), st.integers(0, 2**31), st.sampled_from(["d4", "d4_jitter", "none"]))
def test_image_and_label_move_together(n, bands, edge, seed, name):
    "Every pixel has a value of its own, so the label tells where it came from"
    label = torch.arange(n * edge * edge).view(n, edge, edge)
    image = (label + 1).float().unsqueeze(1).repeat(1, bands, 1, 1)
    before = image.clone(), label.clone()
    moved, moved_label = AUGMENTS[name](image, label, seeded(seed))
    assert moved.shape == image.shape and moved.dtype == image.dtype and moved_label.dtype == label.dtype
    assert (image == before[0]).all() and (label == before[1]).all(), "the input is left alone"
    for tile, where, source in zip(moved, moved_label, label):
        assert sorted(where.flatten().tolist()) == sorted(source.flatten().tolist()), "no pixel is lost, none leaves its sample"
        if name != "d4_jitter":
            assert (tile == (where + 1).float()).all()
        elif edge > 2:
            for band in tile:
                fit = np.polyfit(where.flatten() - where.float().mean(), band.flatten(), 1, full=True)
                assert fit[1] < 1e-4 * max(1, band.abs().max().item()) ** 2


def test_all_eight_are_reached_equally_often_and_independently():
    image = torch.arange(4.0).view(1, 1, 2, 2).repeat(16000, 1, 1, 1)
    moved, _ = d4(image, image[:, 0].long(), seeded(7))
    codes = np.array([(moved == d4_element(image[:1], g)).flatten(1).all(1).numpy() for g in range(8)]).argmax(0)
    assert chisquare(np.bincount(codes, minlength=8)).pvalue > 1e-3
    pairs = np.bincount(codes[:-1:2] * 8 + codes[1::2], minlength=64)
    assert chisquare(pairs).pvalue > 1e-3, "neighbours in a batch draw for themselves"


@pytest.mark.parametrize("name", sorted(AUGMENTS))
def test_the_generator_decides_alone(name):
    image, label = torch.randn(64, 3, 4, 4), torch.randint(3, (64, 4, 4))
    torch.manual_seed(0)
    first = AUGMENTS[name](image, label, seeded(5))
    torch.manual_seed(1)
    again, other = AUGMENTS[name](image, label, seeded(5)), AUGMENTS[name](image, label, seeded(6))
    assert all((a == b).all() for a, b in zip(first, again))
    assert (name == "none") == bool((first[0] == other[0]).all())


def test_one_generator_goes_on_from_batch_to_batch():
    image, label = torch.randn(64, 1, 4, 4), torch.zeros(64, 4, 4, dtype=torch.long)
    generator = seeded(0)
    first, second = d4(image, label, generator)[0], d4(image, label, generator)[0]
    assert not (first == second).all()


@pytest.mark.parametrize("name", sorted(AUGMENTS))
def test_invalid_pixels_stay_zero_and_the_batch_finite(name):
    image, label = torch.randn(8, 2, 6, 6), torch.zeros(8, 6, 6, dtype=torch.long)
    image[0], image[1:, :, :2] = 0, 0
    label[image[:, 0] == 0] = 255
    moved, moved_label = AUGMENTS[name](image, label, seeded(0))
    assert torch.isfinite(moved).all() and ((moved == 0).all(1) == (moved_label == 255)).all()


def test_tiles_must_be_square_and_movable_without_a_float():
    with pytest.raises(GeosegError, match="8 x 4"):
        d4(torch.zeros(2, 1, 8, 4), torch.zeros(2, 8, 4), seeded(0))
    counts = torch.randint(0, 60000, (5, 4, 3, 3), dtype=torch.int32)
    assert move(counts, torch.arange(5)).dtype == torch.int32


def test_jitter_has_the_strength_it_says():
    image = torch.ones(20000, 1, 1, 1).repeat(1, 1, 1, 2)
    image[..., 1] = 3
    shaken = jitter(image, seeded(0), strength=0.2)[:, 0, 0]
    gain = (shaken[:, 1] - shaken[:, 0]) / 2
    offset = shaken[:, 0] - gain
    assert gain.mean().item() == pytest.approx(1, abs=0.01) and gain.std().item() == pytest.approx(0.2, rel=0.05)
    assert offset.mean().item() == pytest.approx(0, abs=0.01) and offset.std().item() == pytest.approx(0.2, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_batch_gets_the_draws_of_the_cpu():
    image, label = torch.randn(64, 3, 4, 4), torch.randint(3, (64, 4, 4))
    ours = d4(image.cuda(), label.cuda(), seeded(5))
    assert all((a.cpu() == b).all() for a, b in zip(ours, d4(image, label, seeded(5))))
