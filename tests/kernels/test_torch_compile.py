"""The ops registered for torch.compile: opcheck, one graph with static and dynamic shapes, results as in eager mode."""

import shutil

import numpy as np
import pytest

from fastrl import (
    Generator,
    categorical_log_prob_entropy,
    categorical_sample,
    manual_seed,
    normal_log_prob_entropy,
    normal_sample,
    tanh_normal_sample,
)

torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def compiled(function, dynamic=False):
    """In one graph, or an error. AOTAutograd traces all that Inductor is given, without compiling C++."""
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)


def random(*shape, dtype=torch.float64, grad=True, seed=0):
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_(grad)


def actions(rows, n):
    return torch.arange(rows) % n


def test_importing_the_kernels_does_not_register():
    import subprocess
    import sys

    code = """
import sys, fastrl.kernels
assert "torch" not in sys.modules and not any(name.endswith("._torch") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- opcheck ----------------------------------------------------------------------------------------------------


def op_calls():
    import fastrl.kernels.categorical._torch
    import fastrl.kernels.normal._torch  # noqa: F401 (registers them)

    ops = torch.ops.fastrl
    ones = torch.ones(5, dtype=torch.float64)
    z, a, m, x = random(5, 3), actions(5, 3), random(5, 3), random(5, 3, seed=1)
    flat, noise = random(3, seed=2), random(5, 3, grad=False)
    state = torch.tensor([7, 0], dtype=torch.int64)
    plain = [t.detach() for t in (z, m, x, flat)]
    return {
        "categorical_log_prob_entropy": (ops.categorical_log_prob_entropy, (z, a)),
        "categorical_log_prob_entropy strided": (ops.categorical_log_prob_entropy, (random(3, 5).T, a)),
        "categorical_backward": (ops.categorical_log_prob_entropy_backward, (plain[0], a, ones, ones)),
        "categorical_backward None": (ops.categorical_log_prob_entropy_backward, (plain[0], a, ones, None)),
        "categorical_sample": (ops.categorical_sample, (z, torch.rand(5, dtype=torch.float64))),
        "normal_log_prob_entropy": (ops.normal_log_prob_entropy, (m, flat, x)),
        "normal_log_prob_entropy rows": (ops.normal_log_prob_entropy, (m, random(5, 3, seed=3), x)),
        "normal_backward": (ops.normal_log_prob_entropy_backward, (plain[1], plain[3], plain[2], ones, ones)),
        "normal_sample": (ops.normal_sample, (m, flat, noise)),
        "normal_sample_backward": (ops.normal_sample_backward, (plain[3], noise, plain[2], ones)),
        "draw uniforms": (ops.draw, (state, 6, False)),
        "draw normals": (ops.draw, (state.clone(), 6, True)),
    }


@pytest.mark.parametrize(
    "name",
    [
        "categorical_log_prob_entropy",
        "categorical_log_prob_entropy strided",
        "categorical_backward",
        "categorical_backward None",
        "categorical_sample",
        "normal_log_prob_entropy",
        "normal_log_prob_entropy rows",
        "normal_backward",
        "normal_sample",
        "normal_sample_backward",
        "draw uniforms",
        "draw normals",
    ],
)
def test_opcheck(name):
    op, args = op_calls()[name]
    result = torch.library.opcheck(op, args)
    assert set(result.values()) == {"SUCCESS"}, result


# ---- one graph --------------------------------------------------------------------------------------------------


def policy_loss(z, action, m, log_std, x):
    """Both heads inside other operations, as in an agent's step."""
    log_prob, entropy = categorical_log_prob_entropy(z * 2.0, action)
    log_density, spread = normal_log_prob_entropy(m.tanh(), log_std, x)
    return (log_prob.exp() * log_density).sum() + (0.1 * entropy + spread).mean()


@pytest.mark.parametrize("shared", [True, False], ids=["[A]", "[B, A]"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_log_prob_and_entropy_in_one_graph(tolerance, dynamic, shared):
    step = compiled(policy_loss, dynamic)
    for rows, k in ((5, 3), (17, 3), (33, 6)):
        args = [
            random(rows, k),
            actions(rows, k),
            random(rows, 4),
            random(4) if shared else random(rows, 4),
            random(rows, 4),
        ]
        wanted = [x for x in args if x.requires_grad]
        ours, theirs = step(*args), policy_loss(*args)
        np.testing.assert_allclose(ours.detach(), theirs.detach(), **tolerance(ours.dtype))
        for a, b in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True):
            np.testing.assert_allclose(a, b, **tolerance(a.dtype))


def act(z, m, log_std, generator):
    """Two draws of each head, which must not be merged to one."""
    drawn = (categorical_sample(z, generator=generator), categorical_sample(z, generator=generator))
    continuous = (normal_sample(m, log_std, generator=generator), normal_sample(m, log_std, generator=generator))
    return *drawn, *continuous


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_draws_in_one_graph(tolerance, dynamic):
    step = compiled(act, dynamic)
    ours, theirs = Generator(5), Generator(5)
    for rows in (6, 6, 21):
        args = random(rows, 4), random(rows, 2), random(2)
        results, expected = step(*args, ours), act(*args, theirs)
        assert ours.state_dict() == theirs.state_dict()
        for (a, log_prob), (b, expected_log_prob) in zip(results, expected, strict=True):
            np.testing.assert_allclose(a.detach(), b.detach(), **tolerance("float64"))
            np.testing.assert_allclose(log_prob.detach(), expected_log_prob.detach(), **tolerance("float64"))
        assert (results[2][0] != results[3][0]).all()
        loss, expected_loss = (sum(x.sum() for pair in r for x in pair if x.requires_grad) for r in (results, expected))
        for a, b in zip(torch.autograd.grad(loss, args), torch.autograd.grad(expected_loss, args), strict=True):
            np.testing.assert_allclose(a, b, **tolerance("float64"))


def test_each_call_uses_the_generator_it_is_given():
    step = compiled(lambda z, g: categorical_sample(z, generator=g)[0])
    z = torch.zeros(64, 8)
    generators = Generator(1), Generator(2)
    for generator in (*generators, generators[0]):
        twin = Generator(generator.seed)
        twin.load_state_dict(generator.state_dict())
        np.testing.assert_array_equal(step(z, generator), categorical_sample(z, generator=twin)[0])
        assert generator.counter == twin.counter
    assert (generators[0].counter, generators[1].counter) == (128, 64)


def test_the_default_generator_in_a_graph():
    step = compiled(lambda z: categorical_sample(z)[0])
    z = torch.zeros(64, 8)
    results = []
    for call in (step, lambda z: categorical_sample(z)[0]):
        manual_seed(12)
        results.append((call(z), call(z)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (results[0][0] != results[0][1]).any()


def test_given_noise_in_a_graph(tolerance):
    step = compiled(lambda m, s, n: normal_sample(m, s, noise=n))
    m, s, noise = random(5, 3), random(3), random(5, 3, grad=False)
    for ours, theirs in zip(step(m, s, noise), normal_sample(m, s, noise=noise), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), **tolerance(ours.dtype))


def test_errors_are_raised_from_a_graph():
    step = compiled(categorical_log_prob_entropy)
    with pytest.raises(IndexError, match=r"action\[1\] is 3, outside \[0, 3\)"):
        step(torch.zeros(2, 3), torch.tensor([0, 3]))


BAD_DRAWS = {
    "categorical_sample": (torch.full((5, 3), torch.nan), None),
    "normal_sample": (torch.zeros(5, 3), {"log_std": torch.zeros(4)}),
    "tanh_normal_sample shape": (torch.zeros(5, 3), {"log_std": torch.zeros(4)}),
    "tanh_normal_sample bounds": (torch.zeros(5, 3), {"log_std": torch.zeros(3), "low": torch.ones(3)}),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("name", BAD_DRAWS)
def test_a_call_that_raises_has_drawn_nothing(name, backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("Inductor needs g++")
    first, options = BAD_DRAWS[name]

    def act(first, options, generator):
        if options is None:
            return categorical_sample(first, generator=generator)
        sample = tanh_normal_sample if name.startswith("tanh") else normal_sample
        return sample(first, **options, generator=generator)

    generators, texts = (Generator(5), Generator(5)), []
    for generator, call in zip(generators, (torch.compile(act, fullgraph=True, backend=backend), act), strict=True):
        with pytest.raises(ValueError, match=name.split()[0]) as caught:
            normal_sample(torch.zeros(2, 2), torch.zeros(2), generator=generator)
            call(first, options, generator)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert generators[0].state_dict() == generators[1].state_dict() == {"seed": 5, "counter": 1}


def test_numbers_that_others_have_drawn_since_are_not_taken_back():
    from fastrl.kernels.normal import _torch
    from fastrl.kernels.random._torch import draw_op

    generator = Generator(5)
    state = torch.as_tensor(generator.state)
    noise, after = draw_op(state, 15, True)
    normal_sample(torch.zeros(2, 2), torch.zeros(2), generator=generator)
    with pytest.raises(ValueError, match="log_std must have shape"):
        _torch._normal_sample_op(torch.zeros(5, 3), torch.zeros(4), noise.view(5, 3).float(), state, after)
    assert generator.counter == 5


def test_gradcheck_of_the_registered_ops():
    for name in (
        "categorical_log_prob_entropy",
        "normal_log_prob_entropy",
        "normal_log_prob_entropy rows",
        "normal_sample",
    ):
        op, args = op_calls()[name]
        assert torch.autograd.gradcheck(op, args), name


def test_second_derivatives_of_the_registered_ops_raise():
    for name in ("categorical_log_prob_entropy", "normal_log_prob_entropy", "normal_sample"):
        op, args = op_calls()[name]
        (gradient,) = torch.autograd.grad(sum(x.sum() for x in op(*args)), args[0], create_graph=True)
        if name == "normal_sample":  # d action / d mean is 1
            assert not gradient.requires_grad
            continue
        with pytest.raises(RuntimeError, match="autograd formula|does not require grad"):
            ((gradient**2).sum() + (args[0] ** 2).sum()).backward()


@pytest.mark.slow
def test_inductor(tolerance):
    args = random(9, 3), actions(9, 3), random(9, 4), random(4), random(9, 4)
    wanted = [x for x in args if x.requires_grad]
    ours, theirs = torch.compile(policy_loss, fullgraph=True)(*args), policy_loss(*args)
    for a, b in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True):
        np.testing.assert_allclose(a, b, **tolerance(a.dtype))
    step = torch.compile(act, fullgraph=True)
    generators = Generator(5), Generator(5)
    for _ in range(2):
        results = step(random(9, 3), random(9, 4), random(4), generators[0])
        expected = act(random(9, 3), random(9, 4), random(4), generators[1])
        assert generators[0].state_dict() == generators[1].state_dict()
        for (a, _), (b, _) in zip(results, expected, strict=True):
            np.testing.assert_allclose(a.detach(), b.detach(), **tolerance("float64"))
