"""Inside JAX programs: `fastrl.jax` and what else such a program can call, each compiled by `jax.jit`.

sum_tree: 50 times in one `lax.scan`: draw a batch with its weights, then write its new priorities.
"""

import functools

from _harness import Case
from _rollouts import GAMMA, Vtrace
from bench_scans import GAE_SIZES, GaeFastrlJax, GaeJax, Jax, VtraceFastrlJax, VtraceRlax, checked
from bench_scans import SIZES as SCAN_SIZES
from bench_sum_tree import ALPHA, BETA, FastrlJax, Flashbax, Inputs, JaxCumsum, build_checked

TREE_SIZES = [{"capacity": c, "batch": b} for c in (2**14, 2**17, 10**6) for b in (32, 256)]
STEPS = 50


class VtraceJax(Jax, Vtrace):
    def function(self, r, v, nv, log_rhos, alive):
        def step(last, x):
            last = x[0] + GAMMA * x[1] * last
            return last, last

        jnp = self.jnp
        rho = jnp.minimum(jnp.exp(log_rhos), 1.0)
        deltas = rho * (r + GAMMA * alive * nv - v)
        _, errors = self.jax.lax.scan(step, jnp.zeros_like(r[0]), (deltas, alive * rho), reverse=True)
        vs = errors + v
        return vs, rho * (r + GAMMA * alive * jnp.concatenate([vs[1:], nv[-1:]]) - v)


def sum_tree(library_class, capacity, batch):
    library, _ = build_checked(library_class, capacity, batch)
    jax, jnp = library.jax, library.jax.numpy
    inputs = Inputs(capacity, batch, jnp.asarray)
    td = jnp.stack([inputs.next()[1] for _ in range(STEPS)])

    def step(carry, td):
        state, key = carry
        key, used = jax.random.split(key)
        indices, p = library.draw(state, used)
        weights = p**-BETA
        state = library.write(state, indices, (td + library.eps) ** ALPHA)
        return (state, key), (weights / weights.max()).sum()

    run = jax.jit(lambda state, key: jax.lax.scan(step, (state, key), td), donate_argnums=0)

    def call():
        (library.state, library.key), weights = jax.block_until_ready(run(library.state, library.key))
        return weights

    return call


CASES = [
    Case(
        "jax.sum_tree",
        TREE_SIZES,
        {
            "fastrl": functools.partial(sum_tree, FastrlJax),
            "flashbax": functools.partial(sum_tree, Flashbax),
            "jnp.cumsum, searchsorted": functools.partial(sum_tree, JaxCumsum),
        },
    ),
    Case("jax.gae", GAE_SIZES, {"fastrl": checked(GaeFastrlJax), "lax.scan": checked(GaeJax)}),
    Case(
        "jax.vtrace",
        SCAN_SIZES,
        {"fastrl": checked(VtraceFastrlJax), "lax.scan": checked(VtraceJax), "rlax": checked(VtraceRlax)},
    ),
]


def test_jax(contender):
    contender()
