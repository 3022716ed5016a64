"""`learn(callback=...)`: what is called when, how False ends a run, and what an error in one leaves."""

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from fastrl.agents import CEM, DQN, PPO, REINFORCE, SARSA, Callback, InputError, QLearning

SMALL = {"hidden": (16,), "learning_starts": 100, "train_every": 10, "updates": 1, "batch_size": 16, "seed": 3}
ROLLOUTS = {"hidden": (16,), "n_steps": 32, "num_envs": 2, "minibatches": 2, "epochs": 1, "seed": 3}


class Diary(Callback):
    """Every call as (name, agent.steps, what came with it)."""

    def __init__(self):
        self.calls = []

    def of(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


def _entry(name):
    def call(self, agent, *args):
        self.calls.append((name, agent.steps, *args))

    return call


for event in [name for name in vars(Callback) if name.startswith("on_")]:
    setattr(Diary, event, _entry(event))


def test_what_is_called_in_a_run_with_a_buffer():
    diary = Diary()
    agent = DQN("CartPole-v1", **SMALL).learn(2500, progress=False, callback=diary, eval_every=1000, eval_episodes=2)
    names = [call[0] for call in diary.calls]
    assert names[0] == "on_start" and names[-1] == "on_end" and diary.of("on_end") == [(2500,)]
    steps = diary.of("on_step")
    assert [step for step, _ in steps] == list(range(1, 2501))
    assert all(t.reward.shape == (1,) for _, t in steps)
    episodes = diary.of("on_episode")
    assert len(episodes) == agent.envs.episodes and [tuple(e[1:]) for e in episodes][-100:] == list(agent.envs.recent)
    ends = np.flatnonzero([t.terminated[0] or t.truncated[0] for _, t in steps]) + 1
    assert [e[0] for e in episodes] == ends.tolist()
    assert len(diary.of("on_update")) == agent.n_updates == 240  # at steps 110, 120, ..., 2500
    assert [step for step, _ in diary.of("on_log")] == [1000, 2000, 2500]
    row = diary.of("on_log")[-1][1]
    assert row["step"] == 2500 and row["episodes"] == agent.envs.episodes and row["loss"] == agent.metrics()["loss"]
    assert [e.step for _, e in diary.of("on_evaluation")] == [1000, 2000]


@pytest.mark.parametrize("make", [PPO, REINFORCE])
def test_steps_are_counted_within_rollouts(make):
    diary = Diary()
    agent = PPO("CartPole-v1", **ROLLOUTS) if make is PPO else REINFORCE("CartPole-v1", num_envs=2, episodes=2)
    agent.learn(300, progress=False, callback=diary)
    assert [step for step, _ in diary.of("on_step")] == list(range(2, agent.steps + 1, 2))
    updates = [step for step, *_ in diary.of("on_update")]
    assert updates[-1] == agent.steps and (make is REINFORCE or updates == [64, 128, 192, 256, 320])
    assert len(diary.of("on_episode")) == agent.envs.episodes > 0


@pytest.mark.parametrize("make", [QLearning, SARSA])
def test_tables_tell_of_every_step(make):
    diary = Diary()
    agent = make("FrozenLake-v1", num_envs=2, seed=3).learn(300, progress=False, callback=diary)
    assert [step for step, _ in diary.of("on_step")] == list(range(2, 301, 2))
    episodes = [tuple(e[1:]) for e in diary.of("on_episode")]
    assert len(episodes) == agent.envs.episodes > 0 and episodes == list(agent.envs.recent)[-len(episodes) :]
    stopped = make("FrozenLake-v1", seed=3).learn(300, progress=False, callback=lambda agent: agent.steps < 37)
    assert stopped.steps == 37


def test_a_generation_tells_of_its_steps():
    diary, settings = Diary(), {"population": 4, "elites": 2, "num_envs": 2, "seed": 3}
    agent = CEM("CartPole-v1", **settings).learn(1, progress=False, callback=diary)
    assert [step for step, _ in diary.of("on_step")] == list(range(2, agent.steps + 1, 2))
    assert len(diary.of("on_episode")) == agent.envs.episodes > 0
    stopped = CEM("CartPole-v1", **settings).learn(10**6, progress=False, callback=lambda agent: agent.steps < 10)
    assert stopped.n_updates == 1 and stopped.steps == agent.steps  # after the generation


def test_an_error_in_a_generation_takes_its_steps_back():
    def fail(agent):
        if agent.steps > first.steps:
            raise RuntimeError("mine")

    settings = {"population": 4, "elites": 2, "seed": 3}
    first = CEM("CartPole-v1", **settings).learn(1, progress=False)
    agent = CEM("CartPole-v1", **settings)
    with pytest.raises(RuntimeError, match="mine"):
        agent.learn(10**6, progress=False, callback=fail)
    assert agent.steps == first.steps and agent.n_updates == 1
    np.testing.assert_array_equal(agent.weights, first.weights)


def test_episodes_of_a_vector_environment(counters):
    diary = Diary()
    agent = DQN(counters(AutoresetMode.NEXT_STEP), **SMALL).learn(40, progress=False, callback=diary)
    assert [call[1:] for call in diary.of("on_episode")] == list(agent.envs.recent)


@pytest.mark.parametrize("answer", [False, np.False_])
def test_false_ends_the_training(answer, tmp_path):
    agent = DQN("CartPole-v1", **SMALL)
    agent.learn(5000, folder=tmp_path, progress=False, callback=lambda a: answer if a.steps == 123 else None)
    assert agent.steps == 123 and DQN.load(tmp_path).steps == 123
    # Where it stopped, it goes on as if it had not.
    agent.learn(700, schedule_steps=5000, progress=False)
    other = DQN("CartPole-v1", **SMALL).learn(700, schedule_steps=5000, progress=False)
    assert agent.online.vector.tobytes() == other.online.vector.tobytes()


@pytest.mark.parametrize("event", ["on_start", "on_step", "on_episode", "on_update", "on_log", "on_evaluation"])
def test_every_call_can_end_it(event):
    one = type("One", (Callback,), {event: lambda self, *args: False})()
    agent = DQN("CartPole-v1", **SMALL)
    agent.learn(3000, progress=False, callback=[lambda a: None, one], eval_every=500)
    assert agent.steps < 3000 and (event == "on_start") == (agent.steps == 0)


def test_rollouts_are_learned_from_before_the_end():
    agent = PPO("CartPole-v1", **ROLLOUTS).learn(5000, progress=False, callback=lambda a: a.steps < 70)
    assert agent.steps == 128 and agent.n_updates == 4


def test_an_error_in_one_ends_it_and_what_was_learned_is_saved(tmp_path):
    ended = []

    class Broken(Callback):
        def on_step(self, agent, transition):
            if agent.steps == 300:
                raise RuntimeError("mine")

        def on_end(self, agent):
            ended.append((agent.steps, (tmp_path / "run" / "checkpoint").is_dir()))

    agent = DQN("CartPole-v1", **SMALL)
    with pytest.raises(RuntimeError, match="mine"):
        agent.learn(1000, folder=tmp_path / "run", progress=False, callback=Broken())
    assert ended == [(300, True)] and DQN.load(tmp_path / "run").steps == 300 and agent.on_step is None
    # Of an on-policy agent, the rollout that was not learned from is not counted.
    agent = PPO("CartPole-v1", **ROLLOUTS)
    broken = lambda a: 1 / (200 - a.steps)  # noqa: E731
    with pytest.raises(ZeroDivisionError):
        agent.learn(1000, folder=tmp_path / "ppo", progress=False, callback=broken)
    assert agent.steps == 192 == PPO.load(tmp_path / "ppo").steps


def test_nothing_is_called_for_what_learn_refuses(tmp_path):
    diary, agent = Diary(), DQN("CartPole-v1", **SMALL)
    (tmp_path / "notes").write_text("")
    with pytest.raises(InputError):
        agent.learn(100, folder=tmp_path, callback=diary, progress=False)
    assert diary.calls == []


def test_training_is_the_same_with_one():
    plain, watched = (DQN("CartPole-v1", **SMALL) for _ in range(2))
    plain.learn(600, progress=False)
    watched.learn(600, progress=False, callback=Diary())
    assert plain.online.vector.tobytes() == watched.online.vector.tobytes()


@pytest.mark.parametrize(
    ("given", "got"),
    [(3, "int"), (Diary, "the class Diary, not an instance"), ([Diary(), "x"], "str")],
    ids=["number", "class", "list"],
)
def test_what_is_none(given, got):
    agent = DQN("CartPole-v1", **SMALL)
    with pytest.raises(InputError, match=f"^callback must be a fastrl.agents.Callback, .* got {got}$"):
        agent.learn(100, callback=given, progress=False)
    assert agent.steps == agent.total_steps == 0


def test_an_agent_with_callbacks_can_be_copied_meanwhile():
    copies = []

    def keep(agent):
        if agent.steps == 10:
            copies.append(copy.deepcopy(agent))

    DQN(gym.make("CartPole-v1"), **SMALL).learn(20, progress=False, callback=keep)
    assert copies[0].steps == 10 and copies[0].on_step is None


def test_the_end_is_told_when_the_checkpoint_cannot_be_written(tmp_path, monkeypatch):
    diary, agent = Diary(), DQN("CartPole-v1", **SMALL)

    def full(*args, **kwargs):
        raise InputError("no space left")

    monkeypatch.setattr(agent, "save", full)
    with pytest.raises(InputError, match="no space left"):
        agent.learn(20, folder=tmp_path / "run", progress=False, callback=diary)
    assert diary.of("on_end") == [(20,)]
    with pytest.raises(ZeroDivisionError):
        agent.learn(40, progress=False, callback=[diary, lambda a: 1 / 0])
    assert diary.of("on_end") == [(20,), (21,)]
