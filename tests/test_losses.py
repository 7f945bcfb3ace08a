"""Losses against torch, segmentation-models-pytorch and scikit-learn; never NaN, whatever is not labelled."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import sklearn.metrics as oracle
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from geoseg_nb.core import GeosegError
from geoseg_nb.losses import LOSSES, class_weights, cross_entropy, dice, weighted_cross_entropy


@st.composite
def batches(draw, least_labelled=0):
    "Logits that ask for gradients, targets with any share ignored (255), weights"
    classes, n, edge = draw(st.integers(2, 6)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 8]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(n, classes, edge, edge, generator=generator) * draw(st.sampled_from([0.1, 1, 30, 1e4]))
    target = torch.randint(classes, (n, edge, edge), generator=generator)
    target[torch.rand(target.shape, generator=generator) < draw(st.sampled_from([0, 0.5, 0.95, 1]))] = 255
    target.view(-1)[:least_labelled] = torch.arange(least_labelled) % classes
    return logits.requires_grad_(), target, torch.rand(classes, generator=generator) + 0.1


@settings(deadline=None, max_examples=150)
@given(batches(), st.sampled_from(sorted(LOSSES)))
def test_always_finite_and_unlabelled_pixels_have_no_gradient(batch, name):
    logits, target, weights = batch
    value = LOSSES[name](logits, target, 255, weights)
    (gradient,) = torch.autograd.grad(value, logits)
    ignored = (target == 255).unsqueeze(1).expand_as(gradient)
    assert value.dtype == torch.float32 and value.ndim == 0
    assert torch.isfinite(value) and value >= -1e-6 and torch.isfinite(gradient).all() and (gradient[ignored] == 0).all()
    if ignored.all():
        assert value == 0


@settings(deadline=None, max_examples=60)
@given(batches(least_labelled=1), st.sampled_from(sorted(LOSSES)))
def test_what_is_predicted_where_nothing_is_labelled_does_not_matter(batch, name):
    logits, target, weights = batch
    other = torch.where((target == 255).unsqueeze(1), logits.flip(1) + 3, logits)
    assert torch.allclose(LOSSES[name](logits, target, 255, weights), LOSSES[name](other, target, 255, weights), rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(batches(least_labelled=1))
def test_cross_entropy_equals_torch_and_scikit_learn(batch):
    logits, target, weights = batch
    assert torch.allclose(cross_entropy(logits, target), F.cross_entropy(logits, target, ignore_index=255), rtol=1e-5)
    each = F.cross_entropy(logits, target, weights, ignore_index=255, reduction="none")[target != 255]
    assert torch.allclose(weighted_cross_entropy(logits, target, 255, weights), each.mean(), rtol=1e-5)
    if logits.abs().max() < 10:
        chances = logits.detach().double().softmax(1).movedim(1, -1)[target != 255]
        theirs = oracle.log_loss(target[target != 255], chances, labels=range(logits.shape[1]))
        assert cross_entropy(logits, target).item() == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(batches(least_labelled=1))
def test_dice_equals_smp_over_the_present_classes(batch):
    "smp divides by all classes, present or not; times classes / present is the mean over the present ones"
    logits, target, _ = batch
    present = target[target != 255].unique().numel()
    theirs = smp.losses.DiceLoss("multiclass", ignore_index=255)(logits, target) * logits.shape[1] / present
    assert torch.allclose(dice(logits, target), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_equal_finite_differences(name):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 2)
    target = torch.tensor([[[0, 255], [2, 1]], [[255, 255], [1, 1]]])
    loss = lambda x: LOSSES[name](x, target, 255, torch.tensor([0.5, 1.0, 2.0]))
    (gradient,) = torch.autograd.grad(loss(logits.requires_grad_()), logits)
    for i in range(0, logits.numel(), 5):
        step = torch.zeros(logits.numel()).index_fill(0, torch.tensor([i]), 0.05).view_as(logits)
        slope = (loss(logits + step) - loss(logits - step)) / 0.1
        assert slope.item() == pytest.approx(gradient.view(-1)[i].item(), abs=2e-3)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("ignore_index", [-1, 0, 255])
def test_ignore_index_may_be_any_number(name, ignore_index):
    torch.manual_seed(1)
    logits, target, weights = torch.randn(2, 3, 8, 8), torch.randint(1, 3, (2, 8, 8)), torch.tensor([1.0, 2.0, 3.0])
    hidden = torch.rand(2, 8, 8) < 0.3
    values = [LOSSES[name](logits, target.masked_fill(hidden, i), i, weights) for i in (ignore_index, -100)]
    assert torch.allclose(*values)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_half_precision_logits_give_a_full_precision_loss(name):
    torch.manual_seed(2)
    logits, target, weights = torch.randn(4, 3, 64, 64), torch.randint(3, (4, 64, 64)), torch.ones(3)
    full = LOSSES[name](logits, target, 255, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = LOSSES[name](logits.bfloat16(), target, 255, weights)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(full.item(), rel=2e-3)


def test_class_weights():
    assert class_weights([0, 600, 300, 100]).tolist() == pytest.approx([0, 0.416667, 0.833333, 2.5], abs=1e-6)
    assert class_weights([0, 600, 300, 100], 0.1).tolist() == pytest.approx([0.9, 0.941667, 0.983333, 1.15], abs=1e-6)
    y = np.repeat([0, 1, 2], [50, 30, 7])
    assert class_weights(np.bincount(y)).tolist() == pytest.approx(compute_class_weight("balanced", classes=np.unique(y), y=y))
    with pytest.raises(GeosegError, match="no labelled pixel"):
        class_weights([0, 0, 0])
    with pytest.raises(GeosegError, match="class_weights"):
        weighted_cross_entropy(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
