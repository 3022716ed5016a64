"""fastrl.integrations.skrl beside the functions and memories of skrl."""

import pytest

pytest.importorskip("skrl")

import torch
from skrl.agents.torch.ppo import ppo
from skrl.memories.torch import RandomMemory

from fastrl.integrations import skrl as ours


@pytest.mark.parametrize("time_limit_bootstrap", [False, True])
@pytest.mark.parametrize("shape", [(33, 4), (1, 3), (8, 1)], ids=str)
def test_compute_gae_is_the_hosts(shape, time_limit_bootstrap):
    g = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(*shape, 1, generator=g) for _ in range(2))
    terminated, truncated = (torch.rand(*shape, 1, generator=g) < 0.2 for _ in range(2))
    arguments = {
        "rewards": rewards, "terminated": terminated, "truncated": truncated, "values": values,
        "last_values": torch.randn(shape[1], 1, generator=g), "discount_factor": 0.97, "lambda_coefficient": 0.9,
        "time_limit_bootstrap": time_limit_bootstrap,
    }  # fmt: skip
    for mine, theirs in zip(ours.compute_gae(**arguments), ppo.compute_gae(**arguments), strict=True):
        assert mine.shape == (*shape, 1)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_bad_input_names_the_argument():
    x, flags = torch.zeros(4, 2, 1), torch.zeros(4, 2, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"gae: terminated must have shape \(4, 2, 1\) like rewards, got \(3, 2, 1\)"):
        ours.compute_gae(rewards=x, terminated=flags[1:], truncated=flags, values=x, last_values=x[0])


def memory(kind):
    made = kind(memory_size=20, num_envs=3, device="cpu")
    made.create_tensor("states", size=4)
    made.create_tensor("actions", size=1, dtype=torch.int64)
    g = torch.Generator().manual_seed(0)
    for k in range(25):
        made.add_samples(states=torch.randn(3, 4, generator=g), actions=torch.full((3, 1), k))
    return made


@pytest.mark.parametrize("mini_batches", [1, 3])
@pytest.mark.parametrize("sequence_length", [1, 4])
def test_samples_are_the_hosts(mini_batches, sequence_length):
    found = []
    for kind in (RandomMemory, ours.RandomMemory):
        made = memory(kind)
        torch.manual_seed(0)
        names = ["states", "actions", "nothing"]
        found.append(made.sample(names, batch_size=12, mini_batches=mini_batches, sequence_length=sequence_length))
    for theirs, mine in zip(*found, strict=True):
        assert mine[2] is theirs[2] is None
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
        assert mine[1].dtype == torch.int64


def test_indexes_of_any_kind_are_the_hosts():
    theirs, mine = memory(RandomMemory), memory(ours.RandomMemory)
    for indexes in (torch.tensor([-1, 2]), torch.tensor([[0, 3], [4, 1]]), torch.arange(60) % 3 == 0):
        a, b = (m.sample_by_index(["states"], indexes=indexes) for m in (theirs, mine))
        assert torch.equal(a[0][0], b[0][0])
