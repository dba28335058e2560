"""Example tests of sgd.py: run `pytest` in this folder. They are few; hidden tests look at more."""

import torch
from torch import nn

from sgd import (
    blur,
    forward_and_return_activation,
    gradient_descent,
    gradient_descent_at_scales,
    normalize_and_jitter,
    tidy_up,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def second_class(logits):
    return logits.log_softmax(-1)[0, 1]


def test_jitter_moves_pixels_and_normalises_them():
    img = torch.rand(1, 3, 8, 8)
    seen = normalize_and_jitter(img, step=2, mean=(0, 0, 0), std=(2, 2, 2))
    torch.testing.assert_close(seen.flatten().sort()[0], (img / 2).flatten().sort()[0])


def test_the_class_rises():
    model, start = network(), torch.rand(1, 3, 8, 8)
    end = gradient_descent(start, model, second_class, iterations=50)
    assert end.shape == start.shape
    before, after = (model(normalize_and_jitter(img, step=0)).softmax(-1)[0, 1] for img in (start, end))
    assert after > before, "the probability of the class must rise: step along the gradient"


def test_model_and_input_stay_as_they_were():
    model, start = network(), torch.rand(1, 3, 8, 8)
    kept, weights = start.clone(), [parameter.clone() for parameter in model.parameters()]
    gradient_descent(start, model, second_class, iterations=2)
    assert torch.equal(start, kept), "the input was changed in place"
    assert all(map(torch.equal, weights, model.parameters())), "the model was changed"
    assert all(parameter.grad is None for parameter in model.parameters()), "gradients are left in the model"


def test_only_the_model_sees_the_jitter():
    start = torch.rand(1, 3, 8, 8)
    end = gradient_descent(start, network(), second_class, iterations=3, lr=0.0)
    torch.testing.assert_close(end, start)


def test_extra_blur_keeps_the_mean():
    img = torch.full((1, 3, 9, 9), 0.7)
    torch.testing.assert_close(blur(img, 1.0), img)


def test_extra_tidy_up_keeps_pixels_possible():
    img = tidy_up(10 * torch.randn(1, 3, 9, 9))
    assert img.min() >= 0
    assert img.max() <= 1


def test_extra_scales_end_with_the_last_size():
    assert gradient_descent_at_scales(torch.rand(1, 3, 8, 8), network(), second_class, 2, (6, 12)).shape == (
        1,
        3,
        12,
        12,
    )


def test_extra_activation_is_that_of_the_module():
    model, img = network(), torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(forward_and_return_activation(model, img, model[0]), model[0](img))
