"""Philox 4x32-10 against its published vectors and against an independent implementation; Generator; manual_seed."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.kernels import Generator
from fastrl.kernels.random.reference import philox4x32_reference, uniform_reference

uint64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])

# counter, key, output: Random123 1.14, tests/kat_vectors, "philox4x32 10".
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(oracle, counter, key, expected):
    assert oracle.philox4x32(words(counter), words(key)) == words(expected), "the oracle itself"
    ours = philox4x32_reference(np.array([words(counter)], np.int64), words(key))
    assert tuple(ours[0].tolist()) == words(expected)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers_torch(torch, counter, key, expected):
    ours = philox4x32_reference(torch.tensor([words(counter)], dtype=torch.int64), words(key))
    assert tuple(ours[0].tolist()) == words(expected)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(seed=uint64, counter=uint64, n=st.integers(1, 20))
def test_uniform_reference_equals_the_oracle(oracle, seed, counter, n):
    np.testing.assert_array_equal(uniform_reference(seed, counter, n), oracle.uniforms(seed, counter, n))


def test_uniforms_lie_in_the_half_open_interval():
    draws = uniform_reference(3, 0, 1_000_000)
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 6 * (1 / 12 / 1e6) ** 0.5
    assert len(np.unique(draws)) > 999_990


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seed=uint64, counter=uint64, batch=st.integers(1, 9))
def test_every_backend_draws_the_oracle_stream(kernels, oracle, seed, counter, batch):
    """With 2^k equal leaves the drawn index is the leading bits of the uniform: the stream itself is compared."""
    tree = kernels.SumTree(1024, generator=Generator(seed))
    tree.update(np.arange(1024), 1.0)
    tree.generator.load_state_dict({"seed": seed, "counter": counter})
    indices, _ = tree.sample(batch, stratified=False)
    np.testing.assert_array_equal(indices, (oracle.uniforms(seed, counter, batch) * 1024).astype(np.int64))
    assert tree.generator.state_dict() == {"seed": seed, "counter": (counter + batch) % 2**64}


def test_state_round_trip():
    generator = Generator(7)
    assert (generator.seed, generator.counter) == (7, 0)
    generator.load_state_dict({"seed": 2**64 - 1, "counter": 2**64 - 2})
    state = generator.state_dict()
    assert state == {"seed": 2**64 - 1, "counter": 2**64 - 2}
    assert all(type(value) is int for value in state.values())
    other = Generator(0)
    other.load_state_dict(state)
    assert other.state_dict() == state
    other.manual_seed(9)
    assert other.state_dict() == {"seed": 9, "counter": 0}
    assert generator.state_dict() == state, "state_dict must be a copy"


def test_numpy_integers_are_seeds():
    assert Generator(np.int32(5)).seed == 5
    assert Generator(np.uint64(2**64 - 1)).seed == 2**64 - 1


def test_unseeded_generators_differ():
    assert Generator().seed != Generator().seed


@pytest.mark.parametrize(
    ("seed", "error"),
    [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError), ([1], TypeError)],
)
def test_bad_seed(seed, error):
    generator = Generator(3)
    for call in (Generator, generator.manual_seed, fastrl.manual_seed):
        with pytest.raises(error, match="seed"):
            call(seed)
    assert generator.state_dict() == {"seed": 3, "counter": 0}


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {},
        {"seed": 1},
        {"counter": 1},
        {"seed": 1, "counter": 1, "extra": 1},
        {"seed": -1, "counter": 1},
        {"seed": 1, "counter": -1},
        {"seed": 1, "counter": 2**64},
        {"seed": 1.0, "counter": 1},
        {"seed": 1, "counter": "1"},
        {"seed": 1, "counter": None},
    ],
    ids=repr,
)
def test_bad_state_changes_nothing(state):
    generator = Generator(3)
    with pytest.raises((TypeError, ValueError), match="Generator"):
        generator.load_state_dict(state)
    assert generator.state_dict() == {"seed": 3, "counter": 0}


def test_manual_seed_seeds_the_default(kernels):
    def draw():
        tree = kernels.SumTree(100)
        tree.update(np.arange(100), 1.0)
        return [tree.sample(5)[0].tolist() for _ in range(2)]

    fastrl.manual_seed(11)
    first, second = draw(), draw()
    assert first != second, "two trees share the default stream, they do not each restart it"
    fastrl.manual_seed(11)
    assert (draw(), draw()) == (first, second)


def test_trees_may_share_a_generator(kernels, oracle):
    generator = Generator(21)
    trees = [kernels.SumTree(64, generator=generator) for _ in range(2)]
    for tree in trees:
        tree.update(np.arange(64), 1.0)
        assert tree.generator is generator
    drawn = [trees[i % 2].sample(3, stratified=False)[0] for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(drawn), (oracle.uniforms(21, 0, 12) * 64).astype(np.int64))
    assert generator.counter == 12


def test_no_element_is_drawn_twice_across_threads(kernels):
    """Counter ranges of concurrent calls on a shared generator do not overlap."""
    generator = Generator(1)
    trees = [kernels.SumTree(2**20, generator=generator) for _ in range(4)]
    for tree in trees:
        tree.update(np.arange(2**20), 1.0)
    drawn = []

    def work(i):
        for _ in range(50):
            drawn.append(trees[i].sample(16, stratified=False)[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(trees))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert generator.counter == 4 * 50 * 16
    expected = (uniform_reference(1, 0, 4 * 50 * 16) * 2**20).astype(np.int64)
    np.testing.assert_array_equal(np.sort(np.concatenate(drawn)), np.sort(expected))
