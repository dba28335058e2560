"""A network of two linear layers, forward and backward, without automatic differentiation.

    z1 = W1 x + b1        z2 = f(z1)        z3 = W2 z2 + b2        y_hat = g(z3)

Complete the TODOs in this order; hw1_backpropagation.ipynb explains each of them and checks it. `pytest` in this folder
runs the example tests. No call of autograd is allowed (`backward` of a tensor, `torch.autograd`, `torch.func`).

A batch has one example in each row. B is the number of examples, n, h and k are the sizes of input, hidden layer and
output.
"""

import torch

FUNCTIONS = ("relu", "sigmoid", "identity")


# TODO mlp-activation  (6 points, ~10 min)
def activation(name, z):
    """Apply a nonlinearity to each entry.

    Args:
        name: "relu" is max(0, z), "sigmoid" is 1 / (1 + exp(-z)), "identity" is z.
        z: a tensor of any shape.

    Returns:
        A tensor of the same shape and dtype; finite for every finite z.
    """
    raise NotImplementedError("mlp-activation")


# TODO mlp-derivative  (8 points, ~15 min)
def derivative(name, z):
    """Derivative of a nonlinearity, entry by entry.

    Args:
        name: "relu", "sigmoid" or "identity".
        z: where to take the derivative: what went *into* the nonlinearity, a tensor of any shape.

    Returns:
        A tensor of the same shape and dtype as z; finite for every finite z. ReLU has no derivative at exactly 0; as
        torch does, return 0 there.
    """
    raise NotImplementedError("mlp-derivative")


class MLP:
    """Linear → f → Linear → g.

    Attributes:
        parameters: W1 (h, n), b1 (h,), W2 (k, h), b2 (k,), drawn from the standard normal distribution.
        grads: dJdW1, dJdb1, dJdW2, dJdb2, the gradient of J for each parameter, in that parameter's shape; zeros at
            first.
        cache: whatever `forward` keeps for `backward`; empty at first.

    Args:
        linear_1_in_features: n.
        linear_1_out_features: h.
        f_function: name of the nonlinearity of the hidden layer: "relu", "sigmoid" or "identity".
        linear_2_in_features: h once more.
        linear_2_out_features: k.
        g_function: name of the nonlinearity of the output.

    Raises:
        ValueError: when a nonlinearity has another name, or the two layers do not fit together.
    """

    def __init__(
        self,
        linear_1_in_features,
        linear_1_out_features,
        f_function,
        linear_2_in_features,
        linear_2_out_features,
        g_function,
    ):
        """Draw the parameters, and make room for their gradients."""
        for name in (f_function, g_function):
            if name not in FUNCTIONS:
                raise ValueError(f"{name!r} is no nonlinearity of this network; there are {', '.join(FUNCTIONS)}")
        if linear_1_out_features != linear_2_in_features:
            raise ValueError(
                f"layer 1 gives {linear_1_out_features} features, layer 2 takes {linear_2_in_features}: "
                "linear_1_out_features and linear_2_in_features must be equal"
            )
        self.f_function, self.g_function = f_function, g_function
        self.parameters = {
            "W1": torch.randn(linear_1_out_features, linear_1_in_features),
            "b1": torch.randn(linear_1_out_features),
            "W2": torch.randn(linear_2_out_features, linear_2_in_features),
            "b2": torch.randn(linear_2_out_features),
        }
        self.grads = {f"dJd{name}": torch.zeros_like(value) for name, value in self.parameters.items()}
        self.cache = {}

    # TODO mlp-forward  (10 points, ~20 min)
    def forward(self, x):
        """Compute the prediction, and keep in `self.cache` what `backward` will need.

        Args:
            x: a batch (B, n).

        Returns:
            y_hat (B, k). x and the parameters stay as they are; what an earlier call left in the cache plays no part.
        """
        raise NotImplementedError("mlp-forward")

    # TODO mlp-backward  (24 points, ~45 min)
    def backward(self, dJdy_hat):
        """Add the gradients of J for all parameters to `self.grads`.

        The batch is the one of the last call of `forward`. Gradients are added to what is there, as in torch: called
        twice, this leaves the sum of both, until `clear_grad_and_cache` sets them to zero.

        Args:
            dJdy_hat: the gradient of a scalar J for each entry of y_hat, (B, k). J may be any function of y_hat.
                Where J is a mean over the batch, the factor of the mean is in here already.
        """
        raise NotImplementedError("mlp-backward")

    # TODO mlp-clear  (6 points, ~5 min)
    def clear_grad_and_cache(self):
        """Set every gradient to zeros, in the shape of its parameter, and empty the cache."""
        raise NotImplementedError("mlp-clear")


# TODO mse-loss  (6 points, ~10 min)
def mse_loss(y, y_hat):
    """Mean squared error, the mean of (y_hat - y)² over all B·k elements, and its gradient.

    Args:
        y: targets (B, k).
        y_hat: predictions (B, k).

    Returns:
        The tuple (J, dJdy_hat): a scalar tensor, and the gradient of J for each entry of y_hat, (B, k).
    """
    raise NotImplementedError("mse-loss")


# TODO bce-loss  (10 points, ~20 min)
def bce_loss(y, y_hat):
    """Binary cross-entropy, the mean of -(y log y_hat + (1 - y) log(1 - y_hat)) over all elements, and its gradient.

    Both are finite for every y_hat from 0 to 1, with the same bounds as torch's `binary_cross_entropy`: no logarithm
    counts as less than -100, and in the gradient the denominator y_hat (1 - y_hat) counts as 1e-12 at least.

    Args:
        y: targets from 0 to 1, (B, k).
        y_hat: predictions from 0 to 1, both included, (B, k).

    Returns:
        The tuple (J, dJdy_hat): a scalar tensor, and the gradient of J for each entry of y_hat, (B, k).
    """
    raise NotImplementedError("bce-loss")
