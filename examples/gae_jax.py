"""`fastrl.gae` on JAX arrays: they go in and come out through DLPack, without a copy.

Needs jax.  Run: python examples/gae_jax.py --steps 2048 --envs 16
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import fastrl


def gae_scan(rewards, values, next_values, terminated, gamma, lam):
    """The same with lax.scan, for comparison; no truncation."""
    alive = 1.0 - terminated
    deltas = rewards + gamma * next_values * alive - values

    def step(carry, x):
        delta, alive = x
        carry = delta + gamma * lam * alive * carry
        return carry, carry

    _, advantages = jax.lax.scan(step, jnp.zeros_like(rewards[0]), (deltas, alive), reverse=True)
    return advantages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--envs", type=int, default=16)
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (args.steps, args.envs)
    rewards = jax.random.normal(keys[0], shape)
    values = jax.random.normal(keys[1], (args.steps + 1, args.envs))
    terminated = jax.random.bernoulli(keys[2], 0.01, shape)
    truncated = jnp.zeros(shape, bool)

    advantages, returns = fastrl.gae(rewards, values[:-1], values[1:], terminated, truncated, gamma=0.99, lam=0.95)
    assert isinstance(advantages, jax.Array) and isinstance(returns, jax.Array)
    expected = gae_scan(rewards, values[:-1], values[1:], terminated, 0.99, 0.95)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-4)  # the scan is float32 throughout
    print(f"advantages {advantages.shape} {advantages.dtype}, a JAX array; as lax.scan gives them")


if __name__ == "__main__":
    main()
