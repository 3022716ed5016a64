"""A step of N classic control environments with random actions, ended episodes begun anew (NEXT_STEP autoreset).

``python bench/bench_envs.py`` times whole runs of PPO and A2C on CartPole-v1 with them instead, beside Gymnasium's.
"""

import functools
import json
import time

import gymnasium as gym
import numpy as np
from _harness import OURS, Case, NotApplicable, interleaved_speeds
from gymnasium.vector import SyncVectorEnv

import fastrl.envs  # noqa: F401 (registers the ids)

IDS = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
SIZES = [{"env": env, "envs": n} for env in IDS for n in (1, 4, 16)]


def state_of(env, obs):
    """The states that observations are of."""
    if env in ("CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0"):
        return obs.astype(np.float64)
    angles = [np.arctan2(obs[:, 2 * i + 1], obs[:, 2 * i]) for i in range(obs.shape[1] // 3)]
    return np.stack([*angles, *obs[:, 2 * len(angles) :].T], axis=1).astype(np.float64)


def check(env, vec, n, actions):
    """Several steps of `vec` are those that ours takes from the states before them."""
    ours = gym.make_vec(f"fastrl/{env}", n)
    ours.reset(seed=0)
    obs, _ = vec.reset(seed=0)
    for action in actions[:5]:
        state = ours.state_dict()
        state.update(state=state_of(env, obs), fresh=np.zeros(n, np.bool_), done=np.zeros(n, np.bool_))
        ours.load_state_dict(state)
        wanted = ours.step(action.astype(ours.action_space.dtype))
        obs, reward, terminated, *_ = vec.step(action)
        assert not wanted[2].any() and not terminated.any()
        np.testing.assert_allclose(obs, wanted[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(reward, wanted[1], rtol=1e-4, atol=1e-4)


def stepper(make, env, envs, dtype=None):
    vec = make(env, envs)
    space = gym.make(env).action_space
    rng = np.random.default_rng(0)
    if isinstance(space, gym.spaces.Discrete):
        actions = rng.integers(0, space.n, (64, envs)).astype(dtype or np.int64)
    else:
        actions = rng.uniform(space.low, space.high, (64, envs, 1)).astype(np.float32)
    check(env, vec, envs, actions)
    vec.reset(seed=0)
    k = 0

    def step():
        nonlocal k
        k = (k + 1) % 64
        return vec.step(actions[k])

    return step


def fastrl_vec(env, n):
    return gym.make_vec(f"fastrl/{env}", n)


def sync(env, n):
    return SyncVectorEnv([lambda: gym.make(env, disable_env_checker=True)] * n)


def gymnasium_vector(env, n):
    if gym.spec(env).vector_entry_point is None:
        raise NotApplicable("Gymnasium has none of this environment")
    return gym.make_vec(env, n)


def envpool(env, n):
    import envpool

    return envpool.make_gymnasium(env, num_envs=n, seed=0)


CASES = [
    Case(
        "step",
        SIZES,
        {
            "fastrl": functools.partial(stepper, fastrl_vec),
            "SyncVectorEnv": functools.partial(stepper, sync),
            "Gymnasium's own vector": functools.partial(stepper, gymnasium_vector),
            "EnvPool": functools.partial(stepper, envpool, dtype=np.int32),
        },
    )
]


# How much acting counts: PPO's own settings pass 20 times over 32 steps of 8 environments, those of CleanRL's ppo.py 4
# times over 128 steps.
RUNS = {
    "PPO, 20 passes": ("PPO", {}),
    "PPO, 4 passes": ("PPO", {"n_steps": 128, "epochs": 4, "minibatches": 4}),
    "A2C": ("A2C", {}),
}


def agent_run(algorithm, settings, make, steps):
    """seed -> {"speed": environment steps a second of processor time} of a run."""
    from fastrl import agents

    def run(seed):
        agent = getattr(agents, algorithm)(make(), seed=seed, num_envs=8, **settings)
        began = time.process_time()
        agent.learn(steps, progress=False)
        return {"speed": steps / (time.process_time() - began)}

    return run


def main(steps=32_768, repeats=5):
    makes = {
        OURS: lambda: "fastrl/CartPole-v1",
        "Gymnasium's single environments": lambda: "CartPole-v1",
        "SyncVectorEnv": lambda: sync("CartPole-v1", 8),
    }
    for name, (algorithm, settings) in RUNS.items():
        runs = {env: agent_run(algorithm, settings, make, steps) for env, make in makes.items()}
        print(name, json.dumps(interleaved_speeds(runs, repeats), indent=1))


if __name__ == "__main__":
    main()
