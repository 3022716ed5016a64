"""Whole replay buffers: draw a prioritized batch and gather it; the same and new priorities; add one step."""

import numpy as np
from _harness import RTOL, Case
from bench_gather_rows import SPACES, random_array
from bench_sum_tree import ALPHA, BETA, td_errors

from fastrl import PrioritizedReplay, ReplayBuffer

SIZES = [{"capacity": n, "batch": b, "obs": "17 floats"} for n in (2**17, 10**6) for b in (32, 256, 4096)]
SIZES += [{"capacity": 2**14, "batch": b, "obs": "84x84x4 bytes"} for b in (32, 256)]
ENVS = 64  # only to fill the buffers fast


def transitions(capacity, space):
    """[steps, ENVS, ...] arrays of episodes without an end; the reward is the transition's number."""
    rng = np.random.default_rng(0)
    steps = -(-capacity // ENVS)
    obs = random_array(rng, (steps + 1) * ENVS, *space["obs"])
    obs = obs.reshape(steps + 1, ENVS, *obs.shape[1:])
    action = random_array(rng, steps * ENVS, *space["action"])
    return {
        "obs": obs[:-1],
        "next_obs": obs[1:],
        "action": action.reshape(steps, ENVS, *action.shape[1:]),
        "reward": np.arange(steps * ENVS, dtype=np.float32).reshape(steps, ENVS),
        "done": np.zeros((steps, ENVS), np.bool_),
    }


class Library:
    """`__init__` stores the transitions and the TD errors td_errors(n) in that order; `sample` draws a batch;
    `update` writes the priorities of the batch; `fields` gives (obs, next_obs, action, reward, weights) of it."""

    eps = 1e-6

    def __init__(self, capacity, batch, obs):
        self.batch = batch
        data = transitions(capacity, SPACES[obs])
        self.flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in data.items() if name != "next_obs"}
        self.flat["next_obs"] = data["next_obs"].reshape(self.flat["obs"].shape).copy()
        self.td = td_errors(len(self.flat["reward"]))
        self.new_td = [td_errors(batch, seed) for seed in range(2, 63)]
        self.k = 0
        self.build(data, SPACES[obs])

    def chunks(self, size=4096):
        for start in range(0, len(self.td), size):
            yield {name: x[start : start + size] for name, x in self.flat.items()}, self.td[start : start + size]

    def sample_update(self):
        found = self.sample()
        self.k = (self.k + 1) % 61
        self.update(found, self.new_td[self.k])
        return found


class Fastrl(Library):
    device = None
    buffer_class, options = PrioritizedReplay, {"alpha": ALPHA, "beta": BETA, "beta_end": BETA, "eps": Library.eps}

    def build(self, data, space):
        buffer = self.buffer_class(
            len(self.td), space["obs"], space["action"], ENVS, device=self.device, seed=0, **self.options
        )
        for obs, next_obs, action, reward, done in zip(
            data["obs"], data["next_obs"], data["action"], data["reward"], data["done"], strict=True
        ):
            buffer.add(obs, action, reward, next_obs, done, done)
        assert len(buffer) == len(self.td)
        self.buffer = buffer
        if self.options:
            buffer.update_priorities(np.arange(len(self.td)), self.td)  # in the order in which they were added

    def sample(self):
        return self.buffer.sample(self.batch)

    def update(self, found, td):
        self.buffer.update_priorities(found.indices, td)

    def fields(self, found):
        return found.obs, found.next_obs, found.action, found.reward, found.weights


class FastrlTorch(Fastrl):
    device = "cpu"

    def build(self, data, space):
        import torch  # noqa: F401  (an ImportError here leaves this contender out)

        super().build(data, space)


class FastrlUniform(Fastrl):
    buffer_class, options = ReplayBuffer, {}


class Cpprb(Library):
    eps = 1e-4

    def build(self, data, space):
        from cpprb import PrioritizedReplayBuffer

        fields = {name: {"shape": x.shape[1:] or 1, "dtype": x.dtype} for name, x in self.flat.items()}
        self.buffer = PrioritizedReplayBuffer(len(self.td), fields, alpha=ALPHA, eps=self.eps)
        for chunk, td in self.chunks():
            self.buffer.add(**chunk, priorities=td)

    def sample(self):
        return self.buffer.sample(self.batch, BETA)

    def update(self, found, td):
        self.buffer.update_priorities(found["indexes"], td)

    def fields(self, found):
        return found["obs"], found["next_obs"], found["action"], found["reward"], found["weights"]


class Torchrl(Library):
    eps = 1e-8

    def build(self, data, space):
        import torch
        from tensordict import TensorDict
        from torchrl._torchrl import SumSegmentTreeFp32  # noqa: F401  (the sampler fails late without it)
        from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        from torchrl.data.replay_buffers.samplers import PrioritizedSampler

        torch.manual_seed(0)
        n = len(self.td)
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(n), batch_size=self.batch, sampler=PrioritizedSampler(n, alpha=ALPHA, beta=BETA)
        )
        for chunk, td in self.chunks():
            tensors = {name: torch.from_numpy(x) for name, x in chunk.items()}
            self.buffer.extend(TensorDict(tensors, batch_size=[len(td)]))
        self.buffer.update_priority(torch.arange(n), torch.from_numpy(self.td))
        self.new_td = [torch.from_numpy(td) for td in self.new_td]

    def sample(self):
        return self.buffer.sample()

    def update(self, found, td):
        self.buffer.update_priority(found["index"], td)

    def fields(self, found):
        return found["obs"], found["next_obs"], found["action"], found["reward"], found["priority_weight"]


class Tianshou(Library):
    eps = float(np.finfo(np.float32).eps)

    def build(self, data, space):
        from tianshou.data import Batch, PrioritizedReplayBuffer

        np.random.seed(0)  # noqa: NPY002  (the generator that tianshou draws from)
        f = self.flat
        self.buffer = PrioritizedReplayBuffer(len(self.td), alpha=ALPHA, beta=BETA)
        flags = {"terminated": f["done"], "truncated": f["done"].copy(), "done": f["done"].copy()}
        self.buffer.set_batch(
            Batch(obs=f["obs"], obs_next=f["next_obs"], act=f["action"], rew=f["reward"], **flags, info=Batch())
        )
        self.buffer._size = len(self.td)
        self.buffer.update_weight(np.arange(len(self.td)), self.td)

    def sample(self):
        return self.buffer.sample(self.batch)

    def update(self, found, td):
        self.buffer.update_weight(found[1], td)

    def fields(self, found):
        batch, _ = found
        return batch.obs, batch.obs_next, batch.act, batch.rew, batch.weight


class StableBaselines3(Library):
    """Uniform: it has no prioritized buffer."""

    def build(self, data, space):
        import gymnasium
        from stable_baselines3.common.buffers import ReplayBuffer

        f, n = self.flat, len(self.td)
        box = gymnasium.spaces.Box(0, 255, space["obs"][0], space["obs"][1])
        self.buffer = ReplayBuffer(2, box, gymnasium.spaces.Box(-1, 1, (6,)), device="cpu")
        self.buffer.buffer_size, self.buffer.full, self.buffer.pos = n, True, 0
        self.buffer.observations, self.buffer.next_observations = f["obs"][:, None], f["next_obs"][:, None]
        self.buffer.actions = f["action"].reshape(n, 1, -1)
        self.buffer.rewards = f["reward"][:, None]
        self.buffer.dones = f["done"].astype(np.float32)[:, None]
        self.buffer.timeouts = np.zeros_like(self.buffer.dones)

    def sample(self):
        return self.buffer.sample(self.batch)

    def fields(self, found):
        return found.observations, found.next_observations, found.actions, found.rewards, None


class GatherOnly(Library):
    """The floor: np.take of ready-made indices into ready-made arrays."""

    def build(self, data, space):
        rng = np.random.default_rng(0)
        self.indices = [rng.integers(0, len(self.td), self.batch) for _ in range(64)]
        names = ("obs", "next_obs", "action", "reward", "done")
        self.out = [np.empty((self.batch, *self.flat[n].shape[1:]), self.flat[n].dtype) for n in names]
        self.columns = [self.flat[n] for n in names]

    def sample(self):
        self.k = (self.k + 1) % 64
        for column, out in zip(self.columns, self.out, strict=True):
            np.take(column, self.indices[self.k], axis=0, out=out, mode="clip")
        return self.out

    def fields(self, found):
        return *found[:4], None


def assert_batch(library, found, td):
    """The rows of a batch belong together, and its weights are (p_min / p)^beta."""
    obs, next_obs, action, reward, weights = (None if x is None else np.asarray(x) for x in library.fields(found))
    number = reward.reshape(-1).astype(np.int64)
    assert len(number) == library.batch and len(np.unique(number)) > library.batch // 2
    for name, x in (("obs", obs), ("next_obs", next_obs), ("action", action)):
        np.testing.assert_array_equal(x.reshape(len(number), -1), library.flat[name][number].reshape(len(number), -1))
    if weights is not None:
        expected = np.ones(library.batch)
        if td is not None:
            expected = (td[number].astype(np.float64) + library.eps) ** -(ALPHA * BETA)
        scaled = weights.reshape(-1) / expected
        np.testing.assert_allclose(scaled, scaled[0], rtol=RTOL)
    return number


def sample(library_class):
    def build(capacity, batch, obs):
        library = library_class(capacity, batch, obs)
        assert_batch(library, library.sample(), None if library_class is FastrlUniform else library.td)
        return library.sample

    return build


def sample_update(library_class):
    def build(capacity, batch, obs):
        library = library_class(capacity, batch, obs)
        td = library.td.copy()
        for _ in range(3):
            numbers = assert_batch(library, library.sample_update(), td)
            # Priorities that the library stored: of equal numbers the last one wins in all that are timed here.
            td[numbers] = np.asarray(library.new_td[library.k])
        assert_batch(library, library.sample(), td)
        return library.sample_update

    return build


class Add:
    """One step of one environment with 4 floats, as an agent's loop adds it; every 200th step ends an episode."""

    def __init__(self, capacity):
        rng = np.random.default_rng(0)
        self.obs = rng.standard_normal((201, 4), dtype=np.float32)
        self.step, self.capacity = -1, capacity
        self.build(capacity)

    def __call__(self):
        self.step += 1
        i = self.step % 200
        self.add(self.obs[i], i % 2, float(i), self.obs[i + 1], i == 199)


class AddFastrl(Add):
    def build(self, capacity):
        self.buffer = PrioritizedReplay(capacity, ((4,), np.float32), ((), np.int64), seed=0)

    def add(self, obs, action, reward, next_obs, terminated):
        self.buffer.add(obs, action, reward, next_obs, terminated, False)

    def drawn(self):
        found = self.buffer.sample(1000)
        return found.obs, found.next_obs, found.reward


class AddFastrlUniform(AddFastrl):
    def build(self, capacity):
        self.buffer = ReplayBuffer(capacity, ((4,), np.float32), ((), np.int64), seed=0)


class AddCpprb(Add):
    def build(self, capacity):
        from cpprb import PrioritizedReplayBuffer

        fields = {
            "obs": {"shape": 4},
            "next_obs": {"shape": 4},
            "action": {"dtype": np.int64},
            "reward": {},
            "done": {},
        }
        self.buffer = PrioritizedReplayBuffer(capacity, fields)

    def add(self, obs, action, reward, next_obs, terminated):
        self.buffer.add(obs=obs, action=action, reward=reward, next_obs=next_obs, done=terminated)

    def drawn(self):
        found = self.buffer.sample(1000)
        return found["obs"], found["next_obs"], found["reward"]


class AddTorchrl(Add):
    def build(self, capacity):
        import torch
        from tensordict import TensorDict
        from torchrl._torchrl import SumSegmentTreeFp32  # noqa: F401  (the sampler fails late without it)
        from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        from torchrl.data.replay_buffers.samplers import PrioritizedSampler

        self.torch, self.tensordict = torch, TensorDict
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(capacity), sampler=PrioritizedSampler(capacity, ALPHA, BETA), batch_size=1000
        )

    def add(self, obs, action, reward, next_obs, terminated):
        tensor, from_numpy = self.torch.tensor, self.torch.from_numpy
        step = {"obs": from_numpy(obs), "action": tensor(action), "reward": tensor(reward)}
        step |= {"next_obs": from_numpy(next_obs), "done": tensor(terminated)}
        self.buffer.add(self.tensordict(step))

    def drawn(self):
        found = self.buffer.sample()
        return found["obs"], found["next_obs"], found["reward"]


class AddTianshou(Add):
    def build(self, capacity):
        from tianshou.data import Batch, PrioritizedReplayBuffer

        self.batch = Batch
        self.buffer = PrioritizedReplayBuffer(capacity, alpha=ALPHA, beta=BETA)

    def add(self, obs, action, reward, next_obs, terminated):
        done = {"terminated": terminated, "truncated": False, "done": terminated}
        self.buffer.add(self.batch(obs=obs, obs_next=next_obs, act=action, rew=reward, **done, info={}))

    def drawn(self):
        found, _ = self.buffer.sample(1000)
        return found.obs, found.obs_next, found.rew


class AddStableBaselines3(Add):
    def build(self, capacity):
        import gymnasium
        from stable_baselines3.common.buffers import ReplayBuffer

        box, discrete = gymnasium.spaces.Box(-9, 9, (4,)), gymnasium.spaces.Discrete(2)
        self.buffer = ReplayBuffer(capacity, box, discrete, device="cpu")

    def add(self, obs, action, reward, next_obs, terminated):
        self.buffer.add(obs, next_obs, np.array([action]), np.array([reward]), np.array([terminated]), [{}])

    def drawn(self):
        found = self.buffer.sample(1000)
        return found.observations, found.next_observations, found.rewards


def add(adder_class):
    def build(capacity):
        adder = adder_class(capacity)
        for _ in range(1000):
            adder()
        obs, next_obs, reward = (np.asarray(x) for x in adder.drawn())
        i = reward.reshape(-1).astype(np.int64)
        assert len(np.unique(i)) > 100
        np.testing.assert_array_equal(obs.reshape(-1, 4), adder.obs[i])
        np.testing.assert_array_equal(next_obs.reshape(-1, 4), adder.obs[i + 1])
        return adder

    return build


PRIORITIZED = {
    "fastrl": Fastrl,
    "fastrl, torch tensors": FastrlTorch,
    "cpprb": Cpprb,
    "torchrl": Torchrl,
    "tianshou": Tianshou,
}
ADDERS = {
    "fastrl": AddFastrl,
    "fastrl, uniform": AddFastrlUniform,
    "cpprb": AddCpprb,
    "torchrl": AddTorchrl,
    "tianshou": AddTianshou,
    "stable-baselines3, uniform": AddStableBaselines3,
}
UNIFORM = {"fastrl, uniform": FastrlUniform, "stable-baselines3, uniform": StableBaselines3, "np.take only": GatherOnly}

CASES = [
    Case("replay.sample", SIZES, {name: sample(lib) for name, lib in {**PRIORITIZED, **UNIFORM}.items()}),
    Case("replay.sample_then_update", SIZES, {name: sample_update(lib) for name, lib in PRIORITIZED.items()}),
    Case("replay.add", [{"capacity": 10**5}], {name: add(adder) for name, adder in ADDERS.items()}),
]


def test_replay(contender):
    contender()
