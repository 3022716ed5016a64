"""fastrl.integrations.torchrl inside TorchRL: its GAE, and its replay buffers with our sampler."""

import copy
import os
import pickle
import warnings

import numpy as np
import pytest

os.environ["RL_WARNINGS"] = "0"  # of the extension that does not load beside this PyTorch
pytest.importorskip("torchrl")

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import samplers
from torchrl.objectives.value import advantages as host

from fastrl.integrations import _version
from fastrl.integrations import torchrl as ours


@pytest.fixture(autouse=True)
def no_fallback():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not compiled.*")
        yield


def rollout(*batch, seed=0, dtype=torch.float32):
    """[*batch, 1], with terminations, time limits and both on one step."""
    g = torch.Generator().manual_seed(seed)
    terminated, truncated = (torch.rand(*batch, 1, generator=g) < 0.15 for _ in range(2))
    obs, next_obs = (torch.randn(*batch, 3, generator=g, dtype=dtype) for _ in range(2))
    reward = torch.randn(*batch, 1, generator=g, dtype=dtype)
    step = {"obs": next_obs, "reward": reward, "done": terminated | truncated, "terminated": terminated}
    return TensorDict({"obs": obs, "next": TensorDict(step, batch)}, batch)


def value_network(dtype=torch.float32):
    torch.manual_seed(0)
    return TensorDictModule(torch.nn.Linear(3, 1, dtype=dtype), in_keys=["obs"], out_keys=["state_value"])


KEYS = ("advantage", "value_target", "state_value", ("next", "state_value"))


def both(data, **settings):
    """What the host's module and ours write into copies of `data`."""
    found = []
    for module in (host.GAE, ours.GAE):
        mine, call = data.clone(), dict(settings)
        time_dim = call.pop("time_dim", None)
        network = call.pop("value_network", None) or value_network(data["obs"].dtype)
        module(gamma=0.97, lmbda=0.9, value_network=network, **call)(mine, time_dim=time_dim)
        found.append(mine)
    return found


@pytest.mark.parametrize("batch", [(4, 17), (17,), (2, 3, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gae_is_the_hosts(batch, dtype):
    theirs, mine = both(rollout(*batch, dtype=dtype))
    for key in KEYS:
        assert mine[key].shape == (*batch, 1) and mine[key].dtype == dtype and mine[key].is_contiguous()
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"average_gae": True}, {"time_dim": 0}, {"skip_existing": True}], ids=str)
def test_settings_of_gae(settings):
    theirs, mine = both(rollout(6, 11), **settings)
    for key in KEYS[:2]:
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-5, atol=1e-5)


def test_gae_of_values_that_are_there_and_of_plain_tensors():
    data = rollout(4, 9)
    value_network()(data)
    value_network()(data["next"])
    module = ours.GAE(gamma=0.97, lmbda=0.9, value_network=None)
    theirs = host.GAE(gamma=0.97, lmbda=0.9, value_network=None)(data.clone())
    torch.testing.assert_close(module(data.clone())["advantage"], theirs["advantage"], rtol=1e-5, atol=1e-5)
    module = ours.GAE(gamma=0.97, lmbda=0.9, value_network=value_network())
    step = {f"next_{key}": data["next", key] for key in ("obs", "reward", "done", "terminated")}
    advantage, target = module(obs=data["obs"], **step)
    torch.testing.assert_close(advantage, theirs["advantage"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target, theirs["value_target"], rtol=1e-5, atol=1e-5)


def test_what_is_not_compiled_is_the_hosts_and_said_once():
    with pytest.warns(UserWarning, match="not compiled"):
        theirs, mine = both(rollout(4, 9), differentiable=True)
    torch.testing.assert_close(mine["advantage"], theirs["advantage"])
    module = ours.GAE(gamma=0.97, lmbda=0.9, value_network=value_network(), auto_reset_env=False, differentiable=True)
    with pytest.warns(UserWarning, match="GAE is not compiled, TorchRL's own code runs instead: differentiable is set"):
        module(rollout(4, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(rollout(4, 9))


def test_another_version_is_the_hosts_own_code(monkeypatch):
    monkeypatch.setattr(_version, "version", lambda package: "9.1")
    module = ours.GAE(gamma=0.97, lmbda=0.9, value_network=value_network())
    with pytest.warns(UserWarning, match=r"torchrl is 9\.1, and 0\.14 is what was tested"):
        found = module(rollout(4, 9))
    assert found["advantage"].shape == (4, 9, 1)


# ---- the prioritized sampler ----------------------------------------------------------------------------------------


def sampler(capacity=40, **settings):
    return ours.PrioritizedSampler(capacity, **{"alpha": 0.7, "beta": 0.5, **settings})


def buffer(n=20, **settings):
    made = TensorDictReplayBuffer(
        storage=LazyTensorStorage(40), sampler=sampler(**settings), batch_size=64, priority_key="td_error"
    )
    made.extend(TensorDict({"x": torch.arange(n), "td_error": torch.ones(n)}, [n]))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_draws_and_weights_follow_the_priorities(dtype):
    np.random.seed(0)  # noqa: NPY002
    b = buffer(dtype=dtype)
    assert isinstance(b.sampler, samplers.PrioritizedSampler)
    errors = torch.linspace(0.1, 4, 20)
    b.update_priority(torch.arange(20), errors)
    batch = torch.cat([b.sample() for _ in range(625)])  # of 64
    p = (errors.double() + 1e-8) ** 0.7
    share = torch.bincount(batch["index"], minlength=20) / 40_000
    assert (share - p / p.sum()).abs().max() < 5 * (0.25 / 40_000) ** 0.5
    weights = (p / p.min()) ** -0.5
    torch.testing.assert_close(batch["priority_weight"].double(), weights[batch["index"]], rtol=1e-5, atol=0)
    assert torch.equal(batch["x"], batch["index"])


def test_td_errors_reach_the_tree():
    b = buffer()
    batch = b.sample()
    batch["td_error"] = torch.full((64,), 2.0)
    b.update_tensordict_priority(batch)
    drawn = batch["index"].unique()
    rest = torch.tensor([k for k in range(20) if k not in drawn.tolist()], dtype=torch.int64)
    torch.testing.assert_close(b.sampler._sum_tree[drawn], torch.full(drawn.shape, 2.0**0.7))
    torch.testing.assert_close(b.sampler._sum_tree[rest], torch.ones(rest.shape))
    b.extend(TensorDict({"x": torch.arange(3), "td_error": torch.ones(3)}, [3]))
    assert b.sampler.default_priority == 2.0  # the largest so far


def test_alpha_may_be_changed():
    b = buffer()
    b.update_priority(torch.arange(20), torch.linspace(0.1, 4, 20))
    b.sampler.alpha = 1.0
    torch.testing.assert_close(b.sampler._sum_tree[torch.arange(20)], torch.linspace(0.1, 4, 20), rtol=1e-4, atol=1e-5)
    assert b.sampler._sum_tree.query(0, 40) == pytest.approx(41, rel=1e-4)
    assert b.sampler._sum_tree.query(0, 1) == b.sampler._min_tree.query(0, 40) == pytest.approx(0.1, rel=1e-4)


def test_a_storage_of_two_dimensions():
    b = TensorDictReplayBuffer(storage=LazyTensorStorage(40, ndim=2), sampler=sampler(), batch_size=32)
    b.extend(TensorDict({"x": torch.arange(20).view(4, 5)}, [4, 5]))
    batch = b.sample()
    column, row = batch["index"].view(32, 2).T  # the storage has time first
    assert torch.equal(batch["x"], row * 5 + column)


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle", "dumps"])
def test_copies_go_on_alike(how, tmp_path):
    b = buffer()
    b.update_priority(torch.arange(20), torch.linspace(0.1, 4, 20))
    if how == "dumps":
        b.sampler.dumps(tmp_path)
        other = sampler()
        other.loads(tmp_path)
    elif how == "state_dict":
        other = sampler(alpha=1)
        other.load_state_dict(b.sampler.state_dict())
    else:
        other = copy.deepcopy(b.sampler) if how == "deepcopy" else pickle.loads(pickle.dumps(b.sampler))
    draws = []
    for s in (b.sampler, other):
        np.random.seed(3)  # noqa: NPY002
        index, info = s.sample(b.storage, 50)
        draws.append((index, info["priority_weight"]))
    assert all(torch.equal(x, y) for x, y in zip(*draws, strict=True))
    other.update_priority(torch.tensor([0]), torch.tensor([9.0]))
    for tree in ("_sum_tree", "_min_tree"):  # of its own
        assert getattr(other, tree).query(0, 40) > getattr(b.sampler, tree).query(0, 40)


def test_errors():
    with pytest.raises(ValueError, match="device must be None or the CPU, got cuda"):
        sampler(device="cuda")
    with pytest.raises(ValueError, match="alpha must be greater or equal than 0"):
        sampler(alpha=-1)
    with pytest.raises(ValueError, match=r"dtype must be float32 or float64, got torch\.int64"):
        sampler(dtype=torch.int64)
    with pytest.raises(RuntimeError, match="storage is empty"):
        TensorDictReplayBuffer(storage=LazyTensorStorage(4), sampler=sampler(4), batch_size=2).sample()
