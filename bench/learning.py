"""Does it learn?  Every variant over several seeds, the greedy policy's return at the END of training, from kept logs.

    python bench/learning.py --jobs 2                     run what is missing; a CSV a run in bench/results/learning
    python bench/learning.py --algorithm ppo --seeds 3    some of it; also --env and --variant
    python bench/learning.py --table                      the table in markdown, from those files alone
    python bench/learning.py --study per                  one of `STUDIES`, ten seeds unless --seeds says otherwise

A run's file appears when the run is complete, so a killed matrix goes on where it was.  `learning_tasks.py` says in
what hyperparameters differ from the algorithm's defaults.  The variant sb3 is Stable-Baselines3's agent with the same.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from learning_tasks import CLASSES, ENVS, MINATAR, SB3, STUDIES, TASKS, TRPO_CHEETAH, VARIANTS, Task

RESULTS = Path(__file__).parent / "results" / "learning"
EPISODES = 20
COLUMNS = ("step", "greedy_return", "greedy_return_std", "training_return", "seconds")


def log_path(algorithm: str, env: str, variant: str, seed: int) -> Path:
    return RESULTS / algorithm / env.rpartition("/")[2] / variant / f"seed{seed}.csv"


class StableBaselines3:
    """SAC, TD3, DQN, or TRPO of sb3-contrib, with the hyperparameters of ours, behind what `run` uses of an agent."""

    def __init__(self, algorithm: str, env: str, seed: int, overrides: dict[str, Any]) -> None:
        from fastrl.agents import ALGORITHMS

        self.env = env
        config = ALGORITHMS[algorithm].config_class(**overrides)
        make = {"dqn": self._dqn, "trpo": self._trpo}.get(algorithm, self._actor_critic)
        self.model = make(algorithm, config, seed, overrides)

    def _dqn(self, _: str, c: Any, seed: int, overrides: dict[str, Any]) -> Any:
        """Its loss is Huber's, and exploration falls over a share of the run (`learn`)."""
        import stable_baselines3 as sb3

        assert c.loss == "huber" and c.learning_rate == c.learning_rate_end and set(overrides) == set(MINATAR)
        self._exploration_steps = c.epsilon_steps
        return sb3.DQN(
            "MlpPolicy", _flat(self.env), learning_rate=c.learning_rate, buffer_size=c.buffer_size,
            batch_size=c.batch_size, learning_starts=c.learning_starts, tau=c.tau, gamma=c.gamma,
            train_freq=c.train_every, gradient_steps=c.updates, max_grad_norm=c.max_grad_norm,
            target_update_interval=c.target_every * c.train_every, exploration_final_eps=c.epsilon_end,
            policy_kwargs={"net_arch": list(c.hidden)}, seed=seed, device="cpu",
        )  # fmt: skip

    def _trpo(self, _: str, c: Any, seed: int, overrides: dict[str, Any]) -> Any:
        """Its KL, and with it the Fisher matrix that is damped, is the mean over the dimensions of an action."""
        import gymnasium as gym
        import sb3_contrib

        with contextlib.closing(gym.make(self.env)) as env:
            dims = env.action_space.shape[0]
        assert set(overrides) == set(TRPO_CHEETAH) and c.num_envs == 1
        assert c.max_kl == c.max_kl_end and c.learning_rate == c.learning_rate_end
        return sb3_contrib.TRPO(
            "MlpPolicy", self.env, learning_rate=c.learning_rate, n_steps=c.n_steps,
            batch_size=c.n_steps // c.minibatches, gamma=c.gamma, gae_lambda=c.gae_lambda,
            cg_max_steps=c.cg_iterations, cg_damping=c.cg_damping / dims, line_search_shrinking_factor=c.backtrack,
            line_search_max_iter=c.backtracks + 1, n_critic_updates=c.value_epochs, target_kl=c.max_kl / dims,
            seed=seed, device="cpu",
        )  # fmt: skip

    def _actor_critic(self, algorithm: str, c: Any, seed: int, overrides: dict[str, Any]) -> Any:
        import gymnasium as gym
        import numpy as np
        import stable_baselines3 as sb3
        from stable_baselines3.common.noise import NormalActionNoise

        assert c.learning_rate == c.actor_learning_rate
        passed_on = {"hidden", "batch_size", "learning_starts", "train_every", "learning_rate", "actor_learning_rate"}
        assert set(overrides) <= passed_on, "the others have to be translated first"
        of_td3 = {
            "policy_delay": c.policy_delay,
            "target_policy_noise": c.target_noise,
            "target_noise_clip": c.target_noise_clip,
            "action_noise": NormalActionNoise(np.zeros(gym.make(self.env).action_space.shape), c.exploration_noise),
        } if algorithm == "td3" else {}  # fmt: skip
        return {"sac": sb3.SAC, "td3": sb3.TD3}[algorithm](
            "MlpPolicy", self.env, learning_rate=c.learning_rate, buffer_size=c.buffer_size, batch_size=c.batch_size,
            learning_starts=c.learning_starts, tau=c.tau, gamma=c.gamma, train_freq=c.train_every,
            gradient_steps=c.updates, policy_kwargs={"net_arch": list(c.hidden)}, seed=seed, device="cpu", **of_td3,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        return self.model.num_timesteps

    def learn(self, steps: int, schedule_steps: int, progress: bool) -> None:
        if hasattr(self, "_exploration_steps"):
            from stable_baselines3.common.utils import LinearSchedule

            share = self._exploration_steps / steps  # of this call's total, by which it measures progress
            self.model.exploration_schedule = LinearSchedule(1.0, self.model.exploration_final_eps, share)
        self.model.learn(steps - self.steps, reset_num_timesteps=False, progress_bar=progress)

    def evaluate(self, episodes: int) -> Any:
        import gymnasium as gym

        from fastrl.agents.evaluation import evaluate

        with contextlib.closing(_flat(self.env) if self.env.startswith("MinAtar") else gym.make(self.env)) as env:
            return evaluate(lambda obs: self.model.predict(obs, deterministic=True)[0], env, episodes, seed=10**6)

    @property
    def recent_returns(self) -> list[float]:
        return [episode["r"] for episode in self.model.ep_info_buffer]


def _flat(env: str) -> Any:
    """The environment with flat float observations, as an MLP sees them."""
    import gymnasium as gym
    import numpy as np

    flat = gym.wrappers.FlattenObservation(gym.make(env))
    return gym.wrappers.DtypeObservation(flat, np.float32)


def run(path: Path, algorithm: str, env: str, seed: int, task: Task) -> str:
    """Train one agent and write its evaluation curve."""
    import numpy as np
    import torch

    from fastrl.agents import ALGORITHMS

    torch.set_num_threads(1)
    if env.startswith("MinAtar/"):
        from minatar.gym import register_envs

        register_envs()
    sb3 = path.parent.name == SB3
    agent: Any = (
        StableBaselines3(CLASSES.get(algorithm, algorithm), env, seed, task.overrides)
        if sb3
        else ALGORITHMS[CLASSES.get(algorithm, algorithm)](env, seed=seed, **task.overrides)
    )
    rows, seconds, every = [], 0.0, task.evaluate_every(algorithm)
    for step in range(every, task.steps + 1, every):
        if agent.steps >= step:  # learning ends with an update, which may be of many steps
            continue
        began = time.perf_counter()
        agent.learn(step, schedule_steps=task.steps, progress=False)
        seconds += time.perf_counter() - began
        returns = agent.evaluate(EPISODES)
        recent = agent.recent_returns if sb3 else [r for r, _ in agent.envs.recent]
        training = np.mean(recent or [np.nan])
        rows.append((agent.steps, returns.mean(), returns.std(), round(training, 2), round(seconds, 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".part").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    path.with_suffix(".part").replace(path)
    return f"{rows[-1][1]:.1f} after {seconds:.0f} s"


class Summary(NamedTuple):
    """The kept logs of one variant of an algorithm on one environment."""

    env: str
    algorithm: str
    variant: str
    task: Task
    final: Any  # [seeds], float64: the last evaluation of each seed
    iqm: float
    low: float  # 95 % bootstrap interval of iqm
    high: float
    wanted: float | None
    p: float | None  # of the two-sided Mann-Whitney test against the variant `beside`, where that is the bar

    @property
    def reached(self) -> str:
        if self.wanted is None:
            return ""
        text = f"{'>=' if self.iqm >= self.wanted else 'MISSED'} {round(self.wanted, 1):g}"
        return text if self.p is None else f"{text}, p = {self.p:.2f}" if self.p >= 0.005 else f"{text}, p < 0.005"


def final_returns(algorithm: str, env: str, variant: str, steps: int, column: str = "greedy_return") -> Any:
    """[seeds]: the last row's `column` of each kept log, by default the last evaluation."""
    import numpy as np

    last = []
    logs = log_path(algorithm, env, variant, 0).parent.glob("seed*.csv")
    for path in sorted(logs, key=lambda path: int(path.stem.removeprefix("seed"))):
        with path.open() as file:
            last.append(list(csv.DictReader(file))[-1])
    if any(int(row["step"]) < steps for row in last):
        raise SystemExit(f"{algorithm} {env} {variant}: a log ends before step {steps}")
    return np.array([float(row[column]) for row in last])


def summaries(study: str | None = None, column: str = "greedy_return") -> list[Summary]:
    """Of all kept logs, or those of a study: interquartile mean over the seeds of the last row's `column`, by default
    the last evaluation, with its bootstrap interval."""
    from scipy.stats import bootstrap, mannwhitneyu, trim_mean

    def iqm(x, axis=-1):
        return trim_mean(x, 0.25, axis=axis)

    rows = [
        (env, algorithm, variant, envs[env])
        for env in ENVS
        for algorithm, variants in (TASKS if study is None else {study: STUDIES[study]}).items()
        for variant, envs in variants.items()
        if env in envs
    ]
    found = []
    for env, algorithm, variant, task in rows:
        final, wanted, p = final_returns(algorithm, env, variant, task.steps, column), task.wanted, None
        if not len(final):
            continue
        peer_algorithm, peer_variant = task.beside.split("/") if "/" in task.beside else (algorithm, task.beside)
        if wanted is None and (algorithm, variant) != (peer_algorithm, peer_variant):
            peer = final_returns(peer_algorithm, env, peer_variant, task.steps, column)
            if len(peer):
                wanted, p = iqm(peer), mannwhitneyu(final, peer).pvalue
        low, high = final.min(), final.max()
        if low < high:
            low, high = bootstrap((final,), iqm, n_resamples=9999, method="percentile", rng=0).confidence_interval
        found.append(Summary(env, algorithm, variant, task, final, iqm(final), low, high, wanted, p))
    return found


def table(study: str | None = None, column: str = "greedy_return") -> str:
    """The summaries in markdown."""
    lines = [
        "| environment | algorithm | variant | IQM [95 % interval] | each seed | wanted | steps |",
        "|---" * 7 + "|",
    ]
    for row in summaries(study, column):
        each = " ".join(f"{x:.0f}" for x in row.final)
        lines.append(
            f"| {row.env} | {row.algorithm} | {row.variant} | {row.iqm:.1f} [{row.low:.1f}, {row.high:.1f}] | {each} "
            f"| {row.reached} | {row.task.steps:,} |"
        )
    return "\n".join(lines)


def print_tables(study: str | None) -> None:
    if study is not None:  # what the published figures are of
        print(f"Returns of the last 100 episodes of training:\n\n{table(study, 'training_return')}\n")
        print("Greedy, at the end:\n")
    print(table(study))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", action="append", choices=TASKS, help="only this algorithm; repeatable")
    parser.add_argument(
        "--env",
        action="append",
        choices=ENVS,
        help="only this environment; repeatable",
    )
    parser.add_argument(
        "--variant",
        action="append",
        choices=VARIANTS,
        help="only this variant; repeatable",
    )
    parser.add_argument("--study", choices=STUDIES, help="this study, and nothing else")
    parser.add_argument("--seeds", type=int, help="5 unless given, of a study 10")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print_tables(args.study)
        return 0
    tasks = TASKS if args.study is None else {args.study: STUDIES[args.study]}
    todo = {
        (algorithm, env, variant, seed): task
        for algorithm, variants in tasks.items()
        for seed in range(args.seeds or (5 if args.study is None else 10))
        for variant, envs in variants.items()
        for env, task in envs.items()
        if (args.algorithm is None or algorithm in args.algorithm)
        and (args.env is None or env in args.env)
        and (args.variant is None or variant in args.variant)
        and not log_path(algorithm, env, variant, seed).exists()
    }
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FASTRL_NUM_THREADS"):
        os.environ[name] = "1"
    failed = False
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        running = {}
        for (algorithm, env, variant, seed), task in todo.items():
            job = pool.submit(run, log_path(algorithm, env, variant, seed), algorithm, env, seed, task)
            running[job] = f"{algorithm} {env} {variant} seed {seed}"
        for job in as_completed(running):
            if error := job.exception():  # one run that diverges does not end the others
                print(f"{running[job]} FAILED: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                failed = True
            else:
                print(f"{running[job]}: {job.result()}", flush=True)
    print_tables(args.study)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
