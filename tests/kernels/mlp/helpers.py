"""Outputs and gradients of networks in float64, layer by layer."""

import numpy as np
from scipy.special import expit

from ..complex_step import exact

ACTIVATIONS = {  # h = f(z), and f'(z)
    "relu": (lambda z: np.maximum(z, 0), lambda z, h: z > 0),
    "tanh": (np.tanh, lambda z, h: 1 - h * h),
    "silu": (lambda z: z * expit(z), lambda z, h: expit(z) * (1 + z - h)),
    "none": (lambda z: z, lambda z, h: 1.0),
}


def dyadic(rng, shape, unit, most=8):
    """Multiples of `unit`: their products and sums are exact, so that no ReLU differs by rounding."""
    return (rng.integers(-most, most + 1, shape) * unit).astype(np.float32)


class Layers:
    """Each gives its outputs, and a function d_out -> d_x that fills the gradient."""

    def __init__(self, net, grad):
        self.net, self.grad = net, net.parameters(grad)
        self.p = {name: exact(view) for name, view in net.parameters().items()}

    def linear(self, at, x):
        def back(d):
            self.grad[at + "weight"][...], self.grad[at + "bias"][...] = d.T @ x, d.sum(0)
            return d @ self.p[at + "weight"]

        return x @ self.p[at + "weight"].T + self.p[at + "bias"], back

    def norm(self, at, x):
        centred = x - x.mean(1, keepdims=True)
        scale = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        unit = centred * scale

        def back(d):
            self.grad[at + "weight"][...], self.grad[at + "bias"][...] = (d * unit).sum(0), d.sum(0)
            d = d * self.p[at + "weight"]
            return scale * (d - d.mean(1, keepdims=True) - unit * (d * unit).mean(1, keepdims=True))

        return unit * self.p[at + "weight"] + self.p[at + "bias"], back

    def activated(self, at, z):
        f, slope = ACTIVATIONS[self.net.activation]
        h = f(z)
        return h, lambda d: d * slope(z, h)

    def streams(self, at, x):
        """V + A - mean A, for each atom."""
        value, value_back = self.chain(at + "value.", x)
        flat, advantage_back = self.chain(at + "advantage.", x)
        a = flat.reshape(len(x), -1, value.shape[1])

        def back(d):
            d = d.reshape(a.shape)
            return value_back(d.sum(1)) + advantage_back((d - d.mean(1, keepdims=True)).reshape(flat.shape))

        return (value[:, None] + a - a.mean(1, keepdims=True)).reshape(flat.shape), back

    def chain(self, at, x):
        """All layers whose names begin so."""
        backs, k, step = [], 0, 2 + self.net.layer_norm
        kind = {f"{at}{{}}.weight": self.linear, f"{at}{{}}.value.0.weight": self.streams}
        while layer := next((layer for name, layer in kind.items() if name.format(k) in self.p), None):
            between = [(self.norm, k - step + 1)] if self.net.layer_norm and k else []
            between += [(self.activated, k)] if k else []
            for call, number in [*between, (layer, k)]:
                x, back = call(f"{at}{number}.", x)
                backs.append(back)
            k += step

        def back(d):
            for back in reversed(backs):
                d = back(d)
            return d

        return x, back


def by_hand(net, x, d_out, first=None):
    """Outputs, gradient of the vector and of the inputs, in float64."""
    grad, outputs, d_x = np.zeros(net.vector.shape), [], 0
    layers = Layers(net, grad)
    for i in range(first or net.n or 1):
        out, back = layers.chain("" if net.n is None else f"{i}.", exact(x))
        outputs.append(out)
        d_x = d_x + back(exact(d_out if net.n is None else d_out[i]))
    return outputs[0] if net.n is None else np.stack(outputs), grad, d_x
