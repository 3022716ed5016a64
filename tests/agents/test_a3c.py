"""A3C: workers share parameters and statistics; what becomes of a run whose workers die, hang or raise."""

import os
import signal
import subprocess
import sys
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from processes import descendants, running_in_group

from fastrl.agents import A2C, A3C, networks
from fastrl.agents.config import InputError
from fastrl.agents.workers import Shared

SMALL = {"hidden": (8,), "n_steps": 5}


class Troubled(gym.Env):
    """CartPole, which does `trouble` at a step after the 20th of every process but the first."""

    first = os.getpid()

    def __init__(self, trouble):
        self._env = gym.make("CartPole-v1").unwrapped
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self._trouble, self._steps = trouble, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._env.reset(seed=seed)

    def step(self, action):
        self._steps += 1
        if self._steps > 20 and os.getpid() != Troubled.first:
            if self._trouble == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self._trouble == "hangs":
                time.sleep(1000)
            else:
                raise RuntimeError("no more steps")
        return self._env.step(action)


for trouble in ("dies", "hangs", "raises"):
    gym.register(f"{trouble}-v0", Troubled, kwargs={"trouble": trouble}, max_episode_steps=50)


def test_with_one_worker_it_is_a2c_with_rmsprop():
    """Which another test holds against torch's."""
    ours = A3C("CartPole-v1", **SMALL, seed=3).learn(500, progress=False)
    settings = {name: getattr(ours.config, name) for name in A2C.config_class.__dataclass_fields__}
    theirs = A2C("CartPole-v1", **settings).learn(500, progress=False)
    assert np.array_equal(ours.policy.vector, theirs.policy.vector) and ours.n_updates == theirs.n_updates == 100


def test_two_workers_update_the_same_parameters_and_statistics():
    before = descendants(os.getpid())
    agent = A3C("CartPole-v1", **SMALL, workers=2, seed=3)
    seen = []
    agent.learn(3000, progress=False, callback=lambda a: seen.append(a._shared.steps.copy()))
    assert (seen[-1] > 100).all() and agent.steps >= 3000 and agent.n_updates == agent.steps // 5
    assert agent.optimizer.vector is agent.policy.vector and (agent.optimizer.square_avg > 0).any()
    assert descendants(os.getpid()) == before  # none is left
    steps = agent.steps
    agent.learn(steps + 500, progress=False)  # goes on with others
    assert agent.steps >= steps + 500 and np.isfinite(agent.policy.vector).all()


def test_the_update_of_two_interleaved_workers_is_that_of_plain_torch():
    """Two agents on one memory, taking turns here: RMSprop with the statistics of both."""
    one, two = (A3C("CartPole-v1", **SMALL, seed=seed, max_grad_norm=None) for seed in (3, 4))
    theta = torch.nn.Parameter(torch.from_numpy(one.policy.vector.copy()))
    optimizer = torch.optim.RMSprop([theta], lr=one.learning_rate, alpha=0.99, eps=one.config.optimizer_eps)
    one.config.__dict__["learning_rate_end"] = two.config.__dict__["learning_rate_end"] = one.config.learning_rate
    shared = Shared(len(one.policy.vector), 2)
    shared.vector[:] = one.policy.vector
    for index, agent in enumerate((one, two)):
        agent._share(shared, index)
    for agent in (one, two, two, one, two) * 4:
        agent._catch_up()
        assert np.array_equal(agent.policy.vector, shared.vector)
        agent._iterate()
        theta.grad = torch.from_numpy(agent.policy.grad.copy())  # in theta' = theta, as nobody wrote meanwhile
        optimizer.step()
        np.testing.assert_allclose(shared.vector, theta.detach().numpy(), rtol=1e-5, atol=1e-7)
    one._catch_up()
    two._catch_up()
    assert shared.steps.tolist() == [8 * 5, 12 * 5] and one.steps == two.steps == 100 == 5 * one.n_updates


class Flat(gym.Env):
    """Images ``[84, 84]`` of one colour."""

    observation_space, action_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((4, 84, 84), np.uint8), {}

    def step(self, action):
        return np.full((4, 84, 84), action, np.uint8), float(action), False, False, {}


gym.register("FlatForTests-v0", Flat, max_episode_steps=10)


def convolution():
    layers = torch.nn.Conv2d(4, 16, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 4, 2), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(32 * 9 * 9, 3))


def test_workers_convolve(monkeypatch):
    """Though torch's threads, which have worked before the fork, are not there after it."""
    before, others = torch.get_num_threads(), descendants(os.getpid())
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(networks, "SMALL", 10)
        agent = A3C("FlatForTests-v0", network=convolution, workers=2, worker_timeout=10.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a worker that hangs
            agent.learn(10**6, progress=False, callback=lambda a: not a._shared.steps.all())
        assert agent.n_updates >= 2 and descendants(os.getpid()) == others
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        ("dies", r"^worker 1 has died \(signal SIGKILL\); training goes on with 1 of 2$"),
        (
            "hangs",
            r"^worker 1 has taken no step for 0.5 s and is ended \(worker_timeout\); training goes on with 1 of 2$",
        ),
    ],
)
def test_a_worker_that_is_dead_or_hangs_does_not_stop_the_run(trouble, text, tmp_path):
    before = descendants(os.getpid())
    agent = A3C(f"{trouble}-v0", **SMALL, workers=2, worker_timeout=0.5)
    slow = lambda _: time.sleep(0.001)  # noqa: E731
    with pytest.warns(UserWarning, match=text):
        agent.learn(2000, progress=False, folder=tmp_path, callback=slow)
    assert agent.steps >= 2000 and A3C.load(tmp_path).steps == agent.steps and descendants(os.getpid()) == before


def test_an_error_of_a_worker_ends_the_run_and_the_checkpoint_is_whole(tmp_path):
    before = descendants(os.getpid())
    agent = A3C("raises-v0", **SMALL, workers=2)
    with pytest.raises(InputError, match=r"^worker 1: RuntimeError: no more steps$"):
        agent.learn(10**6, progress=False, folder=tmp_path)
    assert descendants(os.getpid()) == before
    assert 0 < A3C.load(tmp_path).steps <= agent.steps


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_worker_outlives_the_run(number, code, tmp_path):
    command = ["train", "a3c", "--env", "CartPole-v1", "--workers", "2", "--total-steps", "100000000", "--hidden", "8"]
    run = subprocess.Popen(
        [sys.executable, "-m", "fastrl", *command, "--save-every", "2000", "--out", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 100
    while not list(tmp_path.glob("run/checkpoint/*")) and time.monotonic() < until:
        time.sleep(0.05)
    run.send_signal(number)
    assert run.wait(60) == code
    while running_in_group(run.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running_in_group(run.pid)
    assert A3C.load(tmp_path / "run").steps >= 2000


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"workers": 0}, "workers must be .*, got 0"),
        ({"worker_timeout": 0.0}, "worker_timeout must be .*, got 0"),
        ({"optimizer": "adam"}, "optimizer must be .*, got 'adam'"),
        ({"normalize_obs": True}, "normalize_obs must be .*, got True"),
        ({"normalize_rewards": True, "workers": 2}, "normalize_rewards must be False with several workers, got True"),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(InputError, match=text):
        A3C("CartPole-v1", **settings)


def test_workers_make_their_environments_from_an_id():
    with pytest.raises(
        InputError, match="^A3C: workers must be 1 with an environment as an object, got 2: give its id$"
    ):
        A3C(gym.make("CartPole-v1"), workers=2)
