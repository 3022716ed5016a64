"""ReplayBuffer.add and sample: against the oracle, the faults of other libraries by name, spaces, torch, threads."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_worlds import ACTION, BOTH, EVENTS, OBS, Item, Oracle, World, assert_same, contents, fill, items_of

from fastrl import _backend
from fastrl.replay import PrioritizedReplay, ReplayBuffer


@settings(max_examples=150, deadline=None)
@given(
    capacity=st.integers(1, 14),
    steps=st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from(EVENTS), min_size=n, max_size=n), min_size=1, max_size=60)
    ),
    constant=st.booleans(),
)
def test_holds_exactly_what_the_oracle_holds(capacity, steps, constant):
    n = len(steps[0])
    buffer = PrioritizedReplay(capacity, OBS, ACTION, n, seed=0)
    uniform = ReplayBuffer(capacity, OBS, ACTION, n, seed=0)
    oracle, world = Oracle(capacity, n), World(n, constant)
    for events in steps:
        items = world.step(events)
        mask = np.array([event != "masked" for event in events])
        columns = [np.array(column) for column in zip(*items, strict=True)]
        for b in (buffer, uniform):
            b.add(*columns, mask=None if mask.all() else mask)
        for env in np.flatnonzero(mask):
            oracle.add(env, items[env])
        wanted = oracle.contents()
        assert len(buffer) == len(uniform) == len(wanted)
        found = contents(buffer)
        assert set(found) == set(wanted)
        for reward, item in found.items():
            assert_same(item, wanted[reward])
        if wanted:
            for item in items_of(uniform.sample(8)):
                assert_same(item, wanted[float(item.reward)])


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("num_envs", [1, 2, 3, 5])
def test_holds_capacity_transitions_while_no_episode_ends(capacity, num_envs):
    buffer = PrioritizedReplay(capacity, OBS, ACTION, num_envs, seed=0)
    world = World(num_envs)
    for t in range(3 * capacity + 3):
        items = world.step(["goes on"] * num_envs)
        buffer.add(*(np.array(column) for column in zip(*items, strict=True)))
        held = len(buffer)
        assert held == min((t + 1) * num_envs, -(-capacity // num_envs) * num_envs)
    assert capacity <= held < capacity + num_envs
    # and they are the newest: the rewards count on
    newest = max(contents(buffer))
    assert min(contents(buffer)) == newest - held + 1


def test_an_end_costs_nothing():
    buffer = PrioritizedReplay(10, OBS, ACTION, seed=0)
    world = World(1)
    for t in range(60):
        buffer.add(*world.step(["terminated" if t % 3 == 2 else "goes on"])[0])
        assert len(buffer) == min(t + 1, 10)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_one_episode_longer_than_the_ring(num_envs):
    buffer = PrioritizedReplay(3 * num_envs, OBS, ACTION, num_envs, seed=0)
    oracle, world = Oracle(3 * num_envs, num_envs), World(num_envs)
    for t in range(50):
        items = world.step(["terminated" if t == 47 else "goes on"] * num_envs)
        buffer.add(*(np.array(column) for column in zip(*items, strict=True)))
        for env, item in enumerate(items):
            oracle.add(env, item)
        assert set(contents(buffer)) == set(oracle.contents())


def test_one_path_for_one_environment_and_for_many():
    """num_envs = 1 has code of its own: a buffer of two environments must hold the same, twice."""
    one, two = PrioritizedReplay(5, OBS, ACTION, 1, seed=0), PrioritizedReplay(10, OBS, ACTION, 2, seed=0)
    world, rng = World(1), np.random.default_rng(0)
    for _ in range(100):
        (item,) = world.step([rng.choice(EVENTS[:-2])])
        one.add(*item)
        two.add(*(np.array([a, a]) for a in item))
        assert 2 * len(one) == len(two)
        found, wanted = contents(two), contents(one)
        assert set(found) == set(wanted)
        for reward, other in found.items():
            assert_same(other, wanted[reward])


# ---- faults of other libraries ------------------------------------------------------------------------------------


@BOTH
def test_next_obs_of_a_truncated_step_is_the_final_observation(cls):
    """Not the reset observation, whose value other libraries bootstrap from; and truncated is not terminated."""
    buffer = cls(100, OBS, ACTION, seed=0)
    final, reset = np.full(3, 7.0), np.full(3, -1.0)
    buffer.add(np.zeros(3), 0, 1.0, final, False, True)
    buffer.add(reset, 0, 2.0, np.ones(3), True, False)
    buffer.add(reset, 0, 3.0, np.ones(3), True, True)
    for item in items_of(buffer.sample(100)):
        if item.reward == 1.0:
            assert_same(item, Item(np.zeros(3), 0, 1.0, final, False, True))
        else:
            assert_same(item, Item(reset, 0, item.reward, np.ones(3), True, item.reward == 3.0))


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_gymnasium_autoreset(mode, num_envs):
    """The step after an end is a dummy under NEXT_STEP and must not be learned from; both modes give the same items."""
    gym = pytest.importorskip("gymnasium")

    class Count(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        action_space = gym.spaces.Discrete(3)

        def __init__(self, limit):
            self.limit, self.episode = limit, 0

        def reset(self, *, seed=None, options=None):
            self.episode, self.t = self.episode + 1, 0
            return np.array([self.episode, self.t], np.float64), {}

        def step(self, action):
            self.t += 1
            end = self.t == self.limit
            obs = np.array([self.episode, self.t], np.float64)
            return obs, float(self.t), end and self.episode % 2 == 0, end and self.episode % 2 == 1, {}

    limits = [3, 4, 5][:num_envs]
    envs = gym.vector.SyncVectorEnv(
        [lambda limit=limit: Count(limit) for limit in limits], autoreset_mode=gym.vector.AutoresetMode[mode]
    )
    buffer = PrioritizedReplay(
        1000 * num_envs, envs.single_observation_space, envs.single_action_space, num_envs, seed=0
    )
    obs, _ = envs.reset()
    ended, n_steps = np.zeros(num_envs, bool), np.zeros(num_envs, int)
    for _ in range(60):
        action = envs.action_space.sample()
        next_obs, reward, terminated, truncated, info = envs.step(action)
        reached = next_obs.copy()
        if mode == "SAME_STEP":
            for env in np.flatnonzero(terminated | truncated):
                reached[env] = info["final_obs"][env]
        mask = ~ended if mode == "NEXT_STEP" else None
        buffer.add(obs, action, reward, reached, terminated, truncated, mask)
        n_steps += True if mask is None else mask
        if mode == "NEXT_STEP":
            ended = terminated | truncated
        obs = next_obs
    assert len(buffer) == n_steps.sum()
    batch = buffer.sample(2 * len(buffer))  # all of them
    assert len(np.unique(batch.indices)) == len(buffer)
    assert (batch.obs[:, 0] == batch.next_obs[:, 0]).all(), "an item crosses the end of an episode"
    assert (batch.obs[:, 1] + 1 == batch.next_obs[:, 1]).all()
    assert (batch.reward == batch.next_obs[:, 1]).all()
    ends = batch.terminated | batch.truncated
    assert np.isin(batch.next_obs[ends, 1], limits).all()
    assert (batch.terminated[ends] == (batch.obs[ends, 0] % 2 == 0)).all()
    if num_envs == 1:
        assert (ends == (batch.next_obs[:, 1] == 3)).all()


def test_a_reset_without_a_flag_does_not_corrupt_the_last_item():
    """A loop left early, or an agent resumed with new environments, resets where no episode ended."""
    for num_envs in (1, 2):
        buffer = PrioritizedReplay(20, OBS, ACTION, num_envs, seed=0)
        batch = np.ones((num_envs, 1))
        buffer.add(
            0 * batch * [1, 1, 1], [0] * num_envs, [1] * num_envs, 5 * batch * [1, 1, 1], *[[False] * num_envs] * 2
        )
        buffer.add(
            9 * batch * [1, 1, 1], [0] * num_envs, [2] * num_envs, 6 * batch * [1, 1, 1], *[[False] * num_envs] * 2
        )
        found = contents(buffer)
        assert found[1.0].next_obs.tolist() == [5, 5, 5] and found[2.0].obs.tolist() == [9, 9, 9]


@BOTH
def test_the_same_seed_gives_the_same_batches(cls):
    def batches(seed):
        buffer = fill(cls(50, OBS, ACTION, 2, seed=seed), 40)
        return [column.tobytes() for _ in range(5) for column in buffer.sample(16)]

    assert batches(3) == batches(3)
    assert batches(3) != batches(4)


def test_manual_seed_seeds_a_buffer_without_a_seed():
    import fastrl

    drawn = []
    for _ in range(2):
        fastrl.manual_seed(5)
        drawn.append(fill(ReplayBuffer(50, OBS, ACTION), 40).sample(16).indices.tolist())
    assert drawn[0] == drawn[1]


@BOTH
def test_arrays_are_the_callers_own(cls, state):
    """Neither what was added nor what was drawn shares memory with the buffer."""
    touched, twin = (fill(cls(50, OBS, ACTION, seed=1), 40) for _ in range(2))
    for column in touched.sample(16):
        column[...] = 0
    twin.sample(16)
    obs, next_obs = np.zeros(3, np.float32), np.ones(3, np.float32)
    for buffer in (touched, twin):
        buffer.add(obs, 0, 0.0, next_obs, False, False)
    before = state(twin)
    obs[:], next_obs[:] = 9, 9
    assert state(touched) == state(twin) == before


def test_uniform_draws_are_uniform():
    buffer = fill(ReplayBuffer(40, OBS, ACTION, 2, seed=11), 100)
    n, draws = len(buffer), 200_000
    _, counts = np.unique(buffer.sample(draws).indices, return_counts=True)
    assert len(counts) == n
    chi2 = ((counts - draws / n) ** 2 / (draws / n)).sum()
    assert chi2 < n - 1 + 6 * np.sqrt(2 * (n - 1))  # the seed is fixed: no false alarm comes and goes
    batch = buffer.sample(64)
    assert batch.weights.dtype == np.float32 and (batch.weights == 1).all()


# ---- spaces and dtypes --------------------------------------------------------------------------------------------


def test_gymnasium_spaces():
    gym = pytest.importorskip("gymnasium")
    s = gym.spaces
    for obs_space, action_space in [
        (s.Box(0, 255, (2, 4, 4), np.uint8), s.Discrete(4)),
        (s.Discrete(9), s.MultiDiscrete([2, 3])),
        (s.Box(-1, 1, (), np.float64), s.MultiBinary(5)),
        (s.Box(-1, 1, (3,), np.float16), s.Box(-1, 1, (2,), np.float32)),
        (s.MultiBinary((2, 2)), s.Discrete(3, start=-1)),
    ]:
        for num_envs in (1, 3):
            buffer = ReplayBuffer(10, obs_space, action_space, num_envs, seed=0)
            rewards = {}
            for t in range(30):
                obs = np.array([obs_space.sample() for _ in range(num_envs)])
                action = np.array([action_space.sample() for _ in range(num_envs)])
                next_obs = np.array([obs_space.sample() for _ in range(num_envs)])
                reward = np.arange(num_envs) + t * num_envs
                rewards.update({r: (o, a, x) for r, o, a, x in zip(reward, obs, action, next_obs, strict=True)})
                if num_envs == 1:
                    obs, action, next_obs, reward = obs[0], action[0], next_obs[0], float(reward[0])
                no = False if num_envs == 1 else np.zeros(num_envs, np.uint8)
                buffer.add(obs, action, reward, next_obs, no, no)
            batch = buffer.sample(7)
            assert batch.obs.dtype == obs_space.dtype and batch.obs.shape == (7, *obs_space.shape)
            assert batch.next_obs.dtype == obs_space.dtype and batch.next_obs.shape == (7, *obs_space.shape)
            assert batch.action.shape == (7, *action_space.shape) and batch.action.dtype == action_space.dtype
            assert batch.reward.dtype == np.float32 and batch.reward.shape == (7,)
            assert batch.terminated.dtype == batch.truncated.dtype == np.bool_
            for o, a, r, x in zip(batch.obs, batch.action, batch.reward, batch.next_obs, strict=True):
                for got, wanted in zip((o, a, x), rewards[int(r)], strict=True):
                    np.testing.assert_array_equal(got, wanted)


def test_discrete_actions_are_int64_whatever_the_space_says():
    buffer = ReplayBuffer(4, OBS, ((), np.int32), seed=0)
    buffer.add(np.zeros(3), np.int8(3), 0, np.zeros(3), False, False)
    assert buffer.sample(1).action.dtype == np.int64


@BOTH
def test_spaces_that_cannot_be_stored(cls):
    for space in (None, 3, "Box", (3, np.float32), ((3,), object), ((3,), None), ((3,), "U5"), ((2.5,), np.float32)):
        with pytest.raises(TypeError, match="obs_space must be a Box"):
            cls(10, space, ACTION)
        with pytest.raises(TypeError, match="action_space must be a Box"):
            cls(10, OBS, space)
    with pytest.raises(ValueError, match="obs_space must have no empty axis"):
        cls(10, ((3, 0), np.float32), ACTION)
    gym = pytest.importorskip("gymnasium")
    s, discrete = gym.spaces, gym.spaces.Discrete(2)
    graph = s.Graph(discrete, discrete)
    for space in (s.Text(4), graph, s.Sequence(discrete), s.OneOf([discrete, discrete]), s.Dict(), s.Tuple([]), {}):
        with pytest.raises(TypeError, match="obs_space must be a Box, .*a Dict or Tuple of these"):
            cls(10, space, ACTION)
    for space, where in ((s.Dict(a=discrete, b=s.Tuple([discrete, graph])), r"\['b'\]\[1\]"), ({"x": 3}, r"\['x'\]")):
        with pytest.raises(TypeError, match=f"action_space{where} must be a Box"):
            cls(10, OBS, space)


@BOTH
@pytest.mark.parametrize("name", ["capacity", "num_envs"])
def test_bad_sizes(cls, name):
    for value, error in ((0, ValueError), (-3, ValueError), (2.0, TypeError), ("4", TypeError), (True, TypeError)):
        arguments = {"capacity": 10, "num_envs": 2, name: value}
        with pytest.raises(error, match=f"{name} must be"):
            cls(obs_space=OBS, action_space=ACTION, **arguments)


# ---- torch ----------------------------------------------------------------------------------------------------------


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    for device in ("cpu", torch.device("cpu")):
        plain = fill(PrioritizedReplay(50, OBS, ACTION, 2, seed=0), 40)
        buffer = fill(PrioritizedReplay(50, OBS, ACTION, 2, seed=0, device=device), 40)
        batch, wanted = buffer.sample(16), plain.sample(16)
        for name, tensor, array in zip(batch._fields, batch, wanted, strict=True):
            assert isinstance(tensor, torch.Tensor), name
            np.testing.assert_array_equal(tensor.numpy(), array)
            assert tensor.numpy().dtype == array.dtype, name
        assert batch.action.dtype == torch.int64 and batch.reward.dtype == torch.float32
        batch.obs.add_(1)  # the caller's own
        buffer.update_priorities(batch.indices, torch.ones(16, requires_grad=True, dtype=torch.bfloat16))


def test_torch_inputs():
    torch = pytest.importorskip("torch")
    buffer = ReplayBuffer(50, OBS, ACTION, 2, seed=0)
    buffer.add(torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2), torch.ones(2, 3), [False, True], [False, False])
    with pytest.raises(ValueError, match="replay.add: obs"):
        buffer.add(torch.zeros(2, 3, requires_grad=True), [0, 1], [0, 0], torch.ones(2, 3), [False] * 2, [False] * 2)
    assert len(buffer) == 2


def test_cuda(state):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="finds no CUDA device"):
            ReplayBuffer(50, OBS, ACTION, device="cuda")
        pytest.skip("needs a CUDA device")
    plain = fill(PrioritizedReplay(50, OBS, ACTION, 2, seed=0), 40)
    buffer = fill(PrioritizedReplay(50, OBS, ACTION, 2, seed=0, device="cuda"), 40)
    batches = [(buffer.sample(16), plain.sample(16)) for _ in range(100)]  # pinned blocks are used again
    steps = fill(ReplayBuffer(50, OBS, ACTION, 2, seed=0, n_step=3), 40).sample(16)
    batches.append((fill(ReplayBuffer(50, OBS, ACTION, 2, seed=0, n_step=3, device="cuda"), 40).sample(16), steps))
    for batch, wanted in batches[::-1]:
        for name, tensor, array in zip(batch._fields, batch, wanted, strict=True):
            assert tensor.is_cuda == (name != "indices")
            np.testing.assert_array_equal(tensor.cpu().numpy(), array)
    errors = torch.ones(16, device="cuda")
    buffer.update_priorities(batch.indices.cuda(), errors)
    plain.update_priorities(wanted.indices, errors.cpu())
    assert state(buffer) == state(plain)


def test_bad_devices():
    pytest.importorskip("torch")
    for device in ("nonsense", 1.5):
        with pytest.raises(ValueError, match="device must be None or a torch device"):
            ReplayBuffer(50, OBS, ACTION, device=device)


def test_importing_replay_imports_neither_torch_nor_gymnasium():
    code = "import sys, fastrl.replay; print([m for m in ('torch', 'gymnasium', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, fastrl\n"
        "b = fastrl.ReplayBuffer(9, ((3,), np.float32), ((), np.int64))\n"
        "b.add(np.zeros(3), 0, 0, np.zeros(3), False, False); b.sample(4)\n"
        "try: fastrl.ReplayBuffer(9, ((3,), np.float32), ((), np.int64), device='cpu')\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a device needs torch: pip install" in done.stdout


# ---- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3])
def test_one_writer_and_several_samplers_never_see_half_a_transition(num_envs):
    """Every field of item k is made of k; the ring is small, so that rows are overwritten all the time."""
    width = 64
    buffer = PrioritizedReplay(8 * num_envs, ((width,), np.float32), ACTION, num_envs, seed=0)
    stop, faults = threading.Event(), []

    def add(k):
        obs = np.repeat(np.arange(k, k + num_envs, dtype=np.float32)[:, None], width, 1)
        end = np.full(num_envs, k // num_envs % 5 == 4)
        buffer.add(obs, obs[:, 0].astype(int), obs[:, 0], obs + num_envs, end, ~end & (obs[:, 0] % 11 == 0))

    def sampler(seed):
        rng = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                batch = buffer.sample(32)
                k = batch.reward
                assert (batch.obs == k[:, None]).all() and (batch.next_obs == k[:, None] + num_envs).all()
                assert (batch.action == k).all() and (batch.terminated == (k // num_envs % 5 == 4)).all()
                buffer.update_priorities(batch.indices, rng.random(32))
        except BaseException as error:
            faults.append(error)

    add(0)
    threads = [threading.Thread(target=sampler, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for k in range(1, 1500):
        add(k * num_envs)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
    assert 8 * num_envs * 0.7 < len(buffer) <= 8 * num_envs


def test_writers_need_the_compiled_extension(monkeypatch):
    buffer = ReplayBuffer(10, OBS, ACTION)
    monkeypatch.setattr(_backend, "_C", None)
    with pytest.raises(RuntimeError, match="writers need the compiled extension"):
        buffer.writers(1)
