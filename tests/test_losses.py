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
from torchvision.ops import sigmoid_focal_loss

from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.losses import (
    LOSSES, class_weights, cross_entropy, cross_entropy_dice, dice, focal, jaccard, known_loss, loss_terms, make_loss,
    weighted_cross_entropy, weighted_focal, weighs_classes)


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


@settings(deadline=None, max_examples=60)
@given(batches(least_labelled=1))
def test_jaccard_equals_smp_over_the_present_classes(batch):
    logits, target, _ = batch
    labelled = target != 255
    row = logits.movedim(1, 0)[:, labelled].view(1, logits.shape[1], 1, -1)
    theirs = smp.losses.JaccardLoss("multiclass")(row, target[labelled].view(1, 1, -1)) * logits.shape[1] / target[labelled].unique().numel()
    assert torch.allclose(jaccard(logits, target), theirs, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(batches(least_labelled=1), st.sampled_from([0.0, 0.5, 1.0, 1.6, 2.0, 5.0]), st.floats(0.01, 0.99))
def test_focal_of_two_classes_equals_torchvision(batch, gamma, alpha):
    logits, target, _ = batch
    pair = logits[:, :2].detach().clamp(-20, 20)
    two, labelled = torch.where(target == 255, 255, target % 2), target != 255
    z, y = (pair[:, 1] - pair[:, 0])[labelled], two[labelled].float()
    ours = weighted_focal(pair, two, 255, torch.tensor([1 - alpha, alpha]), gamma)
    assert torch.allclose(ours, sigmoid_focal_loss(z, y, alpha, gamma, "mean"), rtol=1e-3, atol=1e-6)
    assert torch.allclose(focal(pair, two, gamma=gamma), sigmoid_focal_loss(z, y, -1, gamma, "mean"), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("z, y, expected", [(2.0, 1, 0.003885), (-1.0, 1, 0.731918), (-3.0, 0, 0.000030), (1.0, 0, 0.063645)])
def test_focal_numbers_worked_by_hand(z, y, expected):
    logits, weights = torch.tensor([0.0, z]).view(1, 2, 1, 1), torch.tensor([0.08, 0.92])
    assert weighted_focal(logits, torch.tensor([[[y]]]), weights=weights, gamma=1.6).item() == pytest.approx(expected, abs=6e-7)


def test_focal_of_many_classes_is_the_mean_over_labelled_pixels():
    torch.manual_seed(3)
    logits, target = torch.randn(2, 5, 6, 6), torch.randint(5, (2, 6, 6))
    target[0, :2] = 255
    p = logits.double().softmax(1).movedim(1, -1)[target != 255][torch.arange((target != 255).sum()), target[target != 255]].numpy()
    assert focal(logits, target, gamma=3).item() == pytest.approx(np.mean((1 - p) ** 3 * -np.log(p)), rel=1e-5)


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
@pytest.mark.parametrize("sure", [1e3, 30.0, -1e3])
def test_focal_has_a_finite_gradient_however_sure_the_network_is(gamma, sure):
    logits = torch.tensor([sure, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2).clone().requires_grad_()
    value = focal(logits, torch.tensor([[[0, 255]]]), gamma=gamma)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all() and (logits.grad[..., 1] == 0).all()


def test_sums_by_name():
    torch.manual_seed(4)
    logits, target, weights = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8)), torch.tensor([1.0, 2.0, 3.0])
    target[0, :3] = 255
    both = make_loss("0.7 * focal( gamma = 1.5 )+0.5*dice")(logits, target, 255, weights)
    assert torch.isclose(both, 0.7 * focal(logits, target, gamma=1.5) + 0.5 * dice(logits, target))
    assert torch.equal(make_loss("cross_entropy + dice")(logits, target), cross_entropy_dice(logits, target))
    assert torch.isclose(make_loss("2*weighted_cross_entropy")(logits, target, 255, weights),
                         2 * weighted_cross_entropy(logits, target, 255, weights))
    assert all(make_loss(name) is LOSSES[name] for name in LOSSES)
    assert weighs_classes("dice + weighted_focal(gamma=1)") and not weighs_classes("dice + focal")
    assert make_loss("dice + jaccard")(logits, torch.full_like(target, 255)).item() == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 999), st.sampled_from(sorted(LOSSES))), min_size=1, max_size=4, unique_by=lambda t: t[1]), st.data())
def test_every_sum_that_is_written_is_read(terms, data):
    blank = st.sampled_from(["", " ", "  "])
    text = "+".join(f"{data.draw(blank)}{n / 100:.2f}{data.draw(blank)}*{data.draw(blank)}{name}{data.draw(blank)}" for n, name in terms)
    assert [(t.factor, t.name, t.options) for t in loss_terms(text)] == [(n / 100, name, {}) for n, name in terms]
    assert known_loss(text) == text


@pytest.mark.parametrize("text, said", [
    ("crossentropy", "did you mean 'cross_entropy'"), ("focal + jacard", "did you mean 'jaccard'"), ("", "is no term"), ("dice +", "is no term"),
    ("dice - focal", "is no term"), ("-1*dice", "is no term"), ("1e3*dice", "is no term"), ("dice*2", "is no term"), ("2 dice", "is no term"),
    ("0*dice", "factor of 0"), ("dice + dice", "named twice"), ("focal(gama=2)", "did you mean 'gamma'"), ("focal(gamma=-1)", "is no term"),
    ("focal()", "is no term"), ("dice(gamma=2)", "no option of dice"), ("focal(gamma=2", "is no term"), ("nan*dice", "is no term"),
    ("__import__('os')", "is no term"), ("2**dice", "is no term"), ("focal(gamma=1,gamma=2)", "no option of focal 'gamma'"), (None, "no loss 'None'"),
])
def test_what_is_no_sum_is_refused(text, said):
    with pytest.raises(Refused) as caught:
        make_loss(text)
    assert said in str(caught.value)
