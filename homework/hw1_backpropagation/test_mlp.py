"""Example tests of mlp.py: run `pytest` in this folder. They are few; hidden tests look at more."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlp import FUNCTIONS, MLP, activation, bce_loss, derivative, mse_loss

TORCH = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "identity": nn.Identity}


def tiny_network():
    """One input, one hidden ReLU, one output: y_hat = 3 relu(2 x - 1) + 1/2."""
    net = MLP(1, 1, "relu", 1, 1, "identity")
    for name, value in {"W1": 2.0, "b1": -1.0, "W2": 3.0, "b2": 0.5}.items():
        net.parameters[name].fill_(value)
    return net


def test_functions_at_a_few_points():
    z = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(activation("relu", z), torch.tensor([0.0, 0.0, 2.0]))
    torch.testing.assert_close(activation("sigmoid", torch.zeros(1)), torch.tensor([0.5]))
    torch.testing.assert_close(activation("identity", z), z)
    torch.testing.assert_close(derivative("relu", z), torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(derivative("sigmoid", torch.zeros(1)), torch.tensor([0.25]))
    torch.testing.assert_close(derivative("identity", z), torch.ones(3))


def test_a_tiny_network_by_hand():
    net = tiny_network()
    y_hat = net.forward(torch.tensor([[1.0], [0.0]]))  # z1 = 1 and -1: on and off
    torch.testing.assert_close(y_hat, torch.tensor([[3.5], [0.5]]))
    net.backward(torch.tensor([[1.0], [1.0]]))
    by_hand = {"dJdW1": [[3.0]], "dJdb1": [3.0], "dJdW2": [[1.0]], "dJdb2": [2.0]}
    for name, value in by_hand.items():
        torch.testing.assert_close(net.grads[name], torch.tensor(value), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("f", "g"), list(itertools.product(FUNCTIONS, repeat=2)))
def test_gradients_agree_with_torch(f, g):
    torch.manual_seed(0)
    net, x, y = MLP(4, 6, f, 6, 3, g), torch.randn(5, 4), torch.randn(5, 3)
    model = nn.Sequential(nn.Linear(4, 6), TORCH[f](), nn.Linear(6, 3), TORCH[g]())
    for own, given in zip(model.parameters(), net.parameters.values(), strict=True):
        own.data.copy_(given)
    J, dJdy_hat = mse_loss(y, net.forward(x))
    net.backward(dJdy_hat)
    expected = F.mse_loss(model(x), y)
    expected.backward()
    torch.testing.assert_close(J, expected.detach())
    for parameter, (name, gradient) in zip(model.parameters(), net.grads.items(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_add_up_until_they_are_cleared():
    net, x = tiny_network(), torch.tensor([[1.0]])
    for times in (1, 2):
        net.forward(x)
        net.backward(torch.tensor([[1.0]]))
        assert net.grads["dJdW1"].item() == 3 * times
    net.clear_grad_and_cache()
    assert net.grads["dJdW1"].item() == 0
    assert not net.cache


@pytest.mark.parametrize("y_hat", [0.3, 0.0, 1.0])
def test_cross_entropy_agrees_with_torch_and_is_finite(y_hat):
    y, y_hat = torch.tensor([[1.0, 0.0]]), torch.full((1, 2), y_hat, requires_grad=True)
    J, dJdy_hat = bce_loss(y, y_hat.detach())
    expected = F.binary_cross_entropy(y_hat, y)
    expected.backward()
    torch.testing.assert_close(J, expected.detach())
    torch.testing.assert_close(dJdy_hat, y_hat.grad)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="tanh"):
        MLP(2, 3, "tanh", 3, 1, "identity")
    with pytest.raises(ValueError, match="must be equal"):
        MLP(2, 3, "relu", 4, 1, "identity")
