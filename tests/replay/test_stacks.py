"""Frame stacks kept as single frames, against Gymnasium's own wrapper and what was given.

tests/replay/test_oracle.py has them in combination with everything else.
"""

import subprocess
import sys

import numpy as np
import pytest

from fastrl.replay import PrioritizedReplay, ReplayBuffer

BOTH = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplay])
SPACE = ((4, 8, 6), np.uint8)
ACTION = ((), np.int64)


def camera(lengths, seed):
    """An environment of random images whose episodes last so many steps."""
    gym = pytest.importorskip("gymnasium")

    class Camera(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (8, 6), np.uint8)
        action_space = gym.spaces.Discrete(3)

        def __init__(self):
            self.rng, self.episode = np.random.default_rng(seed), -1

        def image(self):
            return self.rng.integers(256, size=(8, 6), dtype=np.uint8)

        def reset(self, *, seed=None, options=None):
            self.episode, self.t = self.episode + 1, 0
            return self.image(), {}

        def step(self, action):
            self.t += 1
            ends = self.t == lengths[self.episode % len(lengths)]
            return self.image(), float(self.t), ends and self.episode % 2 == 0, ends and self.episode % 2 == 1, {}

    return Camera()


@BOTH
@pytest.mark.parametrize("padding", ["reset", "zero"])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_batches_equal_those_of_gymnasiums_wrapper(cls, padding, n_step, mode):
    """Bit for bit, of several environments, at episodes' starts, at the cursor and after a wrap."""
    gym = pytest.importorskip("gymnasium")
    num_envs, share, n = 3, 11, n_step
    make = [
        lambda e=e: gym.wrappers.FrameStackObservation(camera([3, 1, 7, 30], e), 4, padding_type=padding)
        for e in range(num_envs)
    ]
    envs = gym.vector.SyncVectorEnv(make, autoreset_mode=gym.vector.AutoresetMode[mode])
    buffer = cls(
        share * num_envs, envs.single_observation_space, envs.single_action_space, num_envs, n_step=n, gamma=1.0,
        frame_stack=4, seed=0,
    )  # fmt: skip
    seen = [[] for _ in range(num_envs)]  # (obs, next_obs, end)
    obs, _ = envs.reset()
    done = np.zeros(num_envs, bool)
    for _ in range(60):
        next_obs, reward, terminated, truncated, info = envs.step(np.zeros(num_envs, int))
        reached, left_out = next_obs.copy(), done if mode == "NEXT_STEP" else np.zeros(num_envs, bool)
        done = terminated | truncated
        if mode == "SAME_STEP":
            for e in done.nonzero()[0]:
                reached[e] = info["final_obs"][e]
        buffer.add(obs, np.zeros(num_envs, int), reward, reached, terminated, truncated, mask=~left_out)
        for e in (~left_out).nonzero()[0]:
            seen[e].append((obs[e].copy(), reached[e].copy(), done[e]))
        obs = next_obs
        batch = buffer[buffer.transitions().indices]
        assert len(batch.reward) == sum(min(len(x), share) for x in seen)
        for b, number in enumerate(batch.indices.tolist()):
            k, e = divmod(number, num_envs)
            last = next((m for m in range(k, k + n) if seen[e][m][2] or m + 1 == len(seen[e])), k + n - 1)
            np.testing.assert_array_equal(batch.obs[b], seen[e][k][0])
            np.testing.assert_array_equal(batch.next_obs[b], seen[e][last][1])
    assert batch.obs.shape == (3 * share, *SPACE[0]) and batch.obs.dtype == np.uint8
    drawn = buffer.sample(64)
    for name, mine, its in zip(batch._fields, drawn, buffer[drawn.indices], strict=True):
        if name != "weights":
            np.testing.assert_array_equal(mine, its)


def stacks(steps, seed=0):
    """obs and next_obs of one episode."""
    frames = np.random.default_rng(seed).integers(256, size=(steps + 4, *SPACE[0][1:]), dtype=np.uint8)
    whole = np.stack([frames[t : t + 4] for t in range(steps + 1)])
    return whole[:-1], whole[1:]


@BOTH
@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_next_obs_that_is_no_shift_is_refused(cls, num_envs):
    """The observation of the reset in the place of the final one is the usual mistake."""
    buffer = cls(20, SPACE, ACTION, num_envs, frame_stack=4, seed=0)
    obs, next_obs = (np.repeat(x[:, None], num_envs, 1) for x in stacks(5))
    zeros, no = np.zeros(num_envs), np.zeros(num_envs, bool)
    for t in range(3):
        buffer.add(obs[t], zeros.astype(int), zeros, next_obs[t], no, no)
    before = buffer.transitions()
    bad = next_obs.copy()
    bad[3, -1, 0, 0, 0] ^= 1
    at = "" if num_envs == 1 else r"\[1\]"
    with pytest.raises(ValueError, match=rf"replay.add: next_obs{at} must be obs shifted by one frame .*final observ"):
        buffer.add(obs[3], zeros.astype(int), zeros, bad[3], no, no)
    flags, columns = np.zeros((5, num_envs), bool), np.zeros((5, num_envs))
    at = r"\[3\]" if num_envs == 1 else r"\[3, 1\]"
    with pytest.raises(ValueError, match=f"replay.extend: next_obs{at} must be obs shifted by one frame"):
        buffer.extend(obs, columns.astype(int), columns, bad, flags, flags)
    for mine, its in zip(buffer.transitions(), before, strict=True):
        np.testing.assert_array_equal(mine, its)
    kept = np.ones((5, num_envs), bool)
    kept[3, -1] = False  # what is left out may be nonsense
    buffer.extend(obs, columns.astype(int), columns, bad, flags, flags, mask=kept)
    assert len(buffer) == min(20, 3 * num_envs + 5 * num_envs - 1)


@BOTH
def test_bad_stacks(cls):
    for shape in ((3, 8, 6), (), (8, 6, 4)):
        with pytest.raises(ValueError, match=r"obs_space must have shape \(4, ...\) with frame_stack=4, .*, got \("):
            cls(10, (shape, np.uint8), ACTION, frame_stack=4)
    with pytest.raises(ValueError, match=r"obs_space\['b'\] must have shape \(4, ...\)"):
        cls(10, {"a": SPACE, "b": ((2,), np.float32)}, ACTION, frame_stack=4)
    with pytest.raises(ValueError, match="store_next_obs must be False with frame_stack"):
        cls(10, SPACE, ACTION, frame_stack=4, store_next_obs=True)
    for value, error in ((0, ValueError), (257, ValueError), (4.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="replay: frame_stack must be"):
            cls(10, SPACE, ACTION, frame_stack=value)


@BOTH
def test_stacks_in_no_order(cls):
    """Every transition starts an episode of its own, and its stack is not padded: all frames come back."""
    obs, next_obs = stacks(40)
    order = np.random.default_rng(0).permutation(40)
    buffer = cls(40, SPACE, ACTION, n_step=3, frame_stack=4, seed=0)
    no = np.zeros(40, bool)
    buffer.extend(obs[order], np.arange(40), np.zeros(40), next_obs[order], no, no, episode_start=~no)
    batch = buffer.sample(200)
    np.testing.assert_array_equal(batch.obs, obs[order][batch.action])
    np.testing.assert_array_equal(batch.next_obs, next_obs[order][batch.action])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what memory a process has touched")
def test_a_transition_takes_one_frame_and_none_before_it_is_added():
    code = """
import numpy as np, os
from fastrl.replay import PrioritizedReplay
def touched():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
obs = np.ones((84 * 84 * 4), np.uint8).reshape(4, 84, 84)
first = PrioritizedReplay(8, ((4, 84, 84), np.uint8), ((), np.int64), frame_stack=4, seed=0)
first.add(obs, 0, 0.0, obs, False, False)
start = touched()
buffer = PrioritizedReplay(20_000, ((4, 84, 84), np.uint8), ((), np.int64), frame_stack=4, seed=0)
made = touched()
for t in range(4000):
    buffer.add(obs, 0, 0.0, obs, t % 500 == 499, False)
filled = touched()
print(made - start, filled - made)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    made, filled = map(int, out)
    assert made < 2e6 < 4000 * 7056 < filled < 4000 * 7056 * 1.1
