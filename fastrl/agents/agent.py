"""What agents share besides their algorithm: settings, checks, schedules, prediction, evaluation, checkpoints.

An algorithm's file defines a frozen dataclass of hyperparameters and a subclass of `Agent` with a turn of the loop
`_iterate`, the policy `_predict`, and `_parts`, the list of what a checkpoint holds.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from fastrl.agents.callbacks import Callbacks
from fastrl.agents.checkpoint import load_checkpoint, save_checkpoint
from fastrl.agents.config import (
    InputError,
    check_int,
    describe_settings,
    import_torch,
    kind_of,
    make_config,
    resolve_device,
    warn,
)
from fastrl.agents.env_config import EnvConfig, shown
from fastrl.agents.envs import Envs
from fastrl.agents.evaluation import MAX_EPISODE_STEPS, Episode, Evaluator, evaluation_of
from fastrl.agents.hyperparameters.needs import check_given, check_networks
from fastrl.agents.images import ready_made
from fastrl.agents.masks import masks_given
from fastrl.agents.memory import Memory, memory_given
from fastrl.agents.networks import evaluating, threads_for
from fastrl.agents.parts import NETWORKS, check_weights, load_parts, parts_state
from fastrl.agents.policies import ActorCritic
from fastrl.agents.saved import kept, restored, taken_apart
from fastrl.agents.spaces import check_spaces, space_json
from fastrl.agents.training import Training
from fastrl.replay import ReplayBuffer

if TYPE_CHECKING:
    from torch import nn

C = TypeVar("C")
A = TypeVar("A", bound="Agent[Any]")
Env = str | EnvConfig | gym.Env[Any, Any] | VectorEnv[Any, Any, Any]


class Agent(ABC, Generic[C]):
    """Base of the agents: an environment, a checked config, counters, and what needs no algorithm.

    `env`: an id, an `EnvConfig`, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and
    keyword overrides set the hyperparameters.  Raises InputError for anything that cannot work.

    An id is made `num_envs` times.  An environment object is one environment and a vector environment as many as it
    holds, whatever the default of `num_envs`; another number that is asked for is an InputError.

    `network`: the user's own torch module, or a function that makes one, in place of the MLP; a copy of it is trained,
    by autograd.  What it maps to what is in the algorithm's own class.  A name is that of a ready-made one, see there.

    A copy (`copy.deepcopy`, `pickle` and what builds on it) is what `save` and `load` would give, with a copy of the
    environment if the agent was made from an object: it trains on like the original, and neither changes the other.
    """

    algorithm: ClassVar[str]  # its name on the command line
    config_class: ClassVar[type[Any]]  # a frozen dataclass with num_envs, seed, device, learning_rate and its schedule
    discrete: ClassVar[bool] = True  # does it take Discrete action spaces?
    continuous: ClassVar[bool] = True  # and Box ones?
    multi: ClassVar[bool] = False  # and MultiDiscrete and MultiBinary ones?
    tabular: ClassVar[bool] = False  # does it take Discrete observation spaces, and no others?
    masks: ClassVar[bool] = False  # does it keep to action masks?
    cpu_only: ClassVar[bool] = False  # is the CPU its one device?
    counts: ClassVar[str] = "environment steps"  # what its steps are
    log_every: ClassVar[int] = 1_000  # steps from one row of the logs to the next
    eval_every: ClassVar[int] = 5_000  # and from one evaluation, where only `stop_at` is given
    save_every: ClassVar[int] = 10_000  # and from one checkpoint, on the command line
    _trained: ClassVar[dict[str, str]] = {}  # names of the networks, and of the optimizers of their vectors
    buffer: ReplayBuffer | None = None  # of those that have one; saved beside the rest

    def __init_subclass__(cls) -> None:
        """Show the hyperparameters in ``help(cls)`` and in the signature that notebooks complete from."""
        super().__init_subclass__()
        if "config_class" not in cls.__dict__:
            return
        if cls.__doc__:
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n\nArgs:\n{describe_settings(cls.config_class)}\n"
        env, config, network = list(inspect.signature(Agent.__init__).parameters.values())[1:4]
        keywords = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in fields(cls.config_class)
        ]
        own = [p for p in (env, config, network) if p.name not in {k.name for k in keywords}]
        cls.__signature__ = inspect.Signature([*own, *keywords])  # type: ignore[attr-defined]

    def __init__(self, env: Env, config: C | None = None, *, network: Any = None, **overrides: Any) -> None:
        self._check_types(env, config)
        if isinstance(network, str) and hasattr(self.config_class, "network"):
            network, overrides["network"] = None, network
        self._network = network
        given: dict[str, Any] = asdict(config) if config is not None else {}  # type: ignore[call-overload]
        c: Any = make_config(self.config_class, {**given, **overrides}, type(self).__name__)
        check_given(c, overrides)
        if self.cpu_only and c.device not in ("cpu", "auto"):
            raise InputError(f"{type(self).__name__}: device must be cpu, got {c.device!r}")
        self.device = resolve_device("cpu" if self.cpu_only else c.device)
        asked = "num_envs" in overrides or c.num_envs != self.config_class.num_envs
        if asked and not isinstance(env, (str, EnvConfig)):
            number = env.num_envs if isinstance(env, VectorEnv) else 1
            if c.num_envs != number:
                raise InputError(
                    f"{type(self).__name__}: num_envs must be {number} like the given environment, or left out, "
                    f"got {c.num_envs}; only an id can be made several times"
                )
        self._made_from = env
        seeded = "seed" in overrides or c.seed != self.config_class.seed
        self.envs = Envs(env, c.num_envs, c.seed, seeded=seeded, flatten=not self.tabular, masks=self.masks)
        self.config: C = replace(c, num_envs=self.envs.num_envs)
        self._check_spaces()
        self._ready_made = ready_made(type(self).__name__, c, network, self.envs.observation_space, self.envs.flattened)
        check_networks(c, self._ready_made and self._ready_made.kind, network, overrides)
        self.rng = np.random.default_rng(c.seed)  # of the updates
        # Of what `predict` draws, which has to be independent of what is drawn in training.
        self._predict_seed = int(np.random.SeedSequence([c.seed, 1]).generate_state(1, np.uint64)[0])
        self.steps = 0  # of the environments, all together
        self.n_updates = 0
        self.total_steps = 0  # that the last `learn` was asked for
        self.schedule_steps = 0  # over which its schedules run that have no number of their own
        self.run_folder: Path | None = None  # of the run that this agent goes on with
        self.on_step: Callable[[], None] | None = None  # called after every step of the environments
        self._log: dict[str, float] = {}  # what `metrics` shows; every key is there from the start

    def _check_types(self, env: Any, config: Any) -> None:
        this, wanted, envs = type(self).__name__, self.config_class.__name__, (str, EnvConfig, gym.Env, VectorEnv)
        if config is not None and not isinstance(config, self.config_class):
            help_ = f"the call is {this}(env, {wanted}(...)) or {this}(env, seed=0, ...)"
            if isinstance(config, envs):  # Stable-Baselines3's order
                help_ += ": the environment comes first, and no kind of policy is named"
            raise InputError(f"{this}: config must be of type {wanted}, got {kind_of(config)}; {help_}")
        if not isinstance(env, envs):
            wanted = "an environment id, a gymnasium.Env or a gymnasium.vector.VectorEnv"
            raise InputError(f"{this}: env must be {wanted}, got {kind_of(env)}")

    def _check_spaces(self) -> None:
        check_spaces(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(self.__dict__.get(name), (*NETWORKS, ActorCritic)):
            raise InputError(
                f"{type(self).__name__}: {name} cannot be replaced, because the old one would go on being trained; the "
                "setting hidden shapes the networks, and load_state_dict gives them other weights"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<{self.describe()}: {self.steps:,} steps, {self.n_updates:,} updates>"

    @property
    def learning_rate(self) -> float:
        """The optimizer's learning rate now: linear from learning_rate to learning_rate_end."""
        c: Any = self.config
        return self._linear(c.learning_rate, c.learning_rate_end, c.learning_rate_steps)

    def _stepped(self) -> None:
        """Count a step of the environments."""
        self.steps += self.envs.num_envs
        if self.on_step is not None:
            self.on_step()

    def _linear(self, start: float, end: float, steps: int | None) -> float:
        """From `start` at step 0 to `end` at step `steps`; None: `schedule_steps`, of which `learn` knows."""
        steps = steps or self.schedule_steps
        return start + (end - start) * min(1.0, self.steps / steps) if steps else start

    def learn(
        self: A,
        total_steps: int,
        *,
        schedule_steps: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        save_every: int | None = None,
        progress: bool = True,
        callback: Any = None,
        eval_every: int | None = None,
        eval_episodes: int = 5,
        eval_env: str | EnvConfig | gym.Env[Any, Any] | None = None,
        stop_at: float | None = None,
    ) -> A:
        """Train until at least `total_steps` environment steps have been taken since the agent was made.

        Agents that learn from whole rollouts end with an update, and so up to a rollout later.  Logs and checkpoints
        go to `folder`, see `Training`.

        Schedules that have no number of steps of their own (`learning_rate_steps`, `per_beta_steps`) span
        `schedule_steps`, or without it `total_steps`.  Training on, also after a save and a load, does what training
        without a break would have done if they are the same: ``learn(15_000)`` is
        ``learn(10_000, schedule_steps=15_000)`` and ``learn(15_000)``.  A larger total without it stretches them: from
        there on the learning rate is what it would be in a run of that length.

        `callback`: a `Callback`, a function of the agent that is called after every step of the environments, or a list
        of them; what returns False ends the training.

        With `eval_every` the greedy policy plays `eval_episodes` episodes every so many steps, in an environment of its
        own: `eval_env`, or one more of the agent's.  Nothing of the training changes by it.  The results are in the
        folder's evaluations.csv, and the best agent so far in its `best`, without the replay buffer.  `stop_at` ends
        the training at that mean return (`eval_every` is 5,000 then, of FQI 10, if not given).

        One thread works meanwhile if the networks are small, on the CPU, and no number of threads was chosen.

        Raises InputError for arguments that cannot work, and then leaves the agent as it was.
        """
        self._needs_env("learn")
        span = None if schedule_steps is None else check_int("schedule_steps", schedule_steps)
        callbacks, evaluator = Callbacks(callback), None
        if eval_every is not None or stop_at is not None:
            every = self.eval_every if eval_every is None else eval_every
            evaluator = Evaluator(self.envs, every, eval_episodes, eval_env, stop_at)
        elif eval_env is not None:
            raise InputError("eval_env is given, but neither eval_every nor stop_at")
        elif eval_episodes != 5:
            warnings.warn("eval_episodes has no effect without eval_every or stop_at", stacklevel=2)
        if save_every is not None and folder is None:
            warnings.warn("save_every has no effect without folder", stacklevel=2)
        how: dict[str, Any] = {"progress": progress, "callbacks": callbacks, "evaluator": evaluator}
        run = Training(self, total_steps, folder, save_every=save_every, **how)
        span = run.total_steps if span is None else span
        if span < run.total_steps:
            raise InputError(f"schedule_steps must be >= total_steps, got {span} and {run.total_steps}")
        if replaced := ", ".join(self._replaced()):
            how_to = "they cannot be replaced, moved or converted, but load_state_dict gives them other values"
            raise InputError(f"{type(self).__name__}: {replaced} has other parameters than its optimizer; {how_to}")
        with run, threads_for(self._all_networks()):
            self.total_steps = run.total_steps
            self._begin(span)
            run.begin()
            while not run.done():
                self._iterate()
            self._check_weights()
        return self

    def _begin(self, schedule_steps: int) -> None:
        """Let the schedules without a number of their own span `schedule_steps`, and warn of one that is too short."""
        c: Any = self.config
        self.schedule_steps = schedule_steps
        if c.learning_rate_end == 0 and (c.learning_rate_steps or schedule_steps) < schedule_steps:
            at = f"from step {c.learning_rate_steps} (learning_rate_steps) of {schedule_steps} on"
            warnings.warn(f"the learning rate is 0 {at}: nothing more is learned", stacklevel=3)

    def _needs_env(self, what: str) -> None:
        if self.envs.absent:
            this = type(self).__name__
            raise InputError(f"{what}: the agent was loaded without its environment; {this}.load(folder) gives it one")

    def _all_networks(self) -> list[Any]:
        return [part for part in self._parts().values() if isinstance(part, NETWORKS)]

    def _replaced(self) -> list[str]:
        """Names of the networks that the optimizer no longer trains."""
        found = []
        for name, optimizer in self._trained.items():
            network = getattr(self, name)
            if network.vector is not getattr(self, optimizer).vector or not getattr(network, "whole", True):
                found.append(name)
        return found

    def _check_weights(self) -> None:
        """Raise Diverged for weights that are NaN or infinite, which the last loss need not show."""
        check_weights(self._parts(), self.steps)

    @abstractmethod
    def _iterate(self) -> None:
        """One turn of the training loop: environment steps, counted in `steps`, and what is learned from them."""

    @abstractmethod
    def _predict(self, obs: NDArray[Any], deterministic: bool) -> NDArray[Any]:
        """Actions ``[B, ...]``, as the environment takes them, for observations ``[B, ...]``."""

    @abstractmethod
    def _parts(self) -> dict[str, Any]:
        """By name, what a checkpoint holds of this agent besides its counters and environments.

        Networks, optimizers, NumPy generators, arrays (logarithms, changed in place), and anything whose `state_dict`
        holds JSON types only.  Those that carry something through an episode have `new_episodes`, which forgets it.
        """

    def memory(self, n: int = 1) -> Memory | None:
        """What `predict` remembers of `n` episodes, as at their start; None: this agent remembers nothing."""
        return None

    def predict(
        self, obs: Any, deterministic: bool = True, action_masks: Any = None, memory: Memory | None = None
    ) -> Any:
        """The action for one observation, or actions ``[B, ...]`` for a batch ``[B, ...]``.

        The best by the policy (its mode), or with ``deterministic=False`` one drawn as in training, from a generator
        of its own.  A discrete action for one observation is an int.  `action_masks` ``[K]`` or ``[B, K]``: what is
        allowed (DQN, PPO, A2C, ...); None: every action.  Observations are as the environment gives them, a batch as
        vector environments do (of a Dict space: a dict of arrays).  Raises InputError for another shape, or NaN.

        `memory`: of a recurrent agent (R2D2, RecurrentPPO), what it remembers of the B episodes, which is brought up to
        date: ``agent.memory(B)`` at their start, of other agents None.
        """
        batch, one = self.envs.given(obs)
        if not len(batch):
            return np.zeros((0, *(self.envs.action_space.shape or ())), self.envs.action_space.dtype)
        how: dict[str, Any] = {} if action_masks is None else {"allowed": masks_given(self, action_masks, len(batch))}
        if memory is not None or self.memory() is not None:
            how["memory"] = memory_given(self, memory, len(batch))
        with contextlib.nullcontext() if self._network is None else evaluating(self._all_networks()):
            actions = self._predict(batch, deterministic, **how)
        if not one:
            return actions
        return int(actions[0]) if isinstance(self.envs.action_space, gym.spaces.Discrete) else actions[0]

    def policy_to_torch(self) -> nn.Module:
        """A plain torch module of the greedy policy, for deployment: observations ``[B, ...]`` -> actions ``[B, ...]``.

        Actions and observations are those of `predict`, in tensors, always in batches (of a Dict space: a dict of
        tensors); bytes are scaled inside.  It is on the CPU, computes in float32 and shares nothing with the agent.
        Raises InputError where PyTorch is not installed.
        """
        import_torch("policy_to_torch")
        from fastrl.agents import deploy

        return self._deploy(deploy)  # type: ignore[no-any-return]

    @abstractmethod
    def _deploy(self, deploy: Any) -> Any:
        """The `policy_to_torch` that the classes of the module `fastrl.agents.deploy` make."""

    def evaluate(
        self,
        episodes: int = 20,
        seed: int = 1_000_000,
        env: str | EnvConfig | gym.Env[Any, Any] | None = None,
        max_steps: int | None = MAX_EPISODE_STEPS,
    ) -> NDArray[np.float64]:
        """Returns ``[episodes]`` of the greedy policy in a fresh environment; training is not disturbed.

        Episode i begins with ``reset(seed + i)``.  Rewards are those of the environment itself, beneath the wrappers
        that change them (NormalizeReward, and each RewardWrapper).  `env`, with spaces like the agent's own, is needed
        if that cannot be made a second time; its normalising wrappers have the training's statistics meanwhile.
        An episode is cut after `max_steps` steps (None or 0: never), and its return is that of these steps; a warning
        says how many were.  If `env` is one that the agent trains in, training goes on with new episodes.
        """
        played = list(self._play(episodes, seed, env, max_steps))
        if cut := sum(episode.cut for episode in played):
            warnings.warn(f"{cut} of {episodes} episodes were cut at {max_steps} steps (max_steps)", stacklevel=2)
        return np.array([episode.reward for episode in played])

    def _play(
        self,
        episodes: int,
        seed: int,
        env: str | EnvConfig | gym.Env[Any, Any] | None,
        max_steps: int | None,
        tick: Callable[[int, int], None] | None = None,
    ) -> Iterator[Episode]:
        """The episodes of `evaluate`, one by one as they end; `tick` is that of `episodes_of`."""
        return evaluation_of(self, episodes, seed, env, max_steps, tick)

    def _new_episodes(self) -> None:
        """Forget what is carried from step to step, because the running episodes are abandoned."""
        if self.buffer is not None:
            self.buffer.new_episodes()
        for part in self._parts().values():
            if hasattr(part, "new_episodes"):
                part.new_episodes()

    def close(self) -> None:
        """Close the environments, those that were given as objects too; so does the end of ``with agent:``.

        Environments made from an id are closed at the latest when the agent goes, or the process ends; others are not
        closed but by this.
        """
        self.envs.close()

    def __enter__(self: A) -> A:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def metrics(self) -> dict[str, float]:
        """For the logs: numbers of the last update, and the learning rate now."""
        return {**self._log, "learning_rate": self.learning_rate, "updates": self.n_updates}

    def describe(self) -> str:
        """One line for people: the algorithm, its switches and the environment."""
        switches = ", ".join(self._switches())
        env = shown(self.envs.spec, self.envs.env_id or "an environment without an id")
        return f"{type(self).__name__}{f' ({switches})' if switches else ''} on {env}"

    def _switches(self) -> list[str]:
        """The variants that are switched on, for `describe`."""
        return []

    def save(self, folder: str | os.PathLike[str], *, replay: bool = True) -> None:
        """Write a checkpoint folder from which `load` goes on exactly; see `fastrl.agents.checkpoint`.

        ``replay=False`` leaves the replay buffer out, which is most of it: what is loaded then learns on with an empty
        one.  Raises InputError, and writes nothing, if training has diverged to weights that are not finite.
        """
        self._needs_env("save")
        self._check_weights()
        state, tensors = self._state()
        config = {
            "algorithm": self.algorithm,
            "env": self.envs.env_id,
            "made_from_id": self.envs.made_from_id,
            **kept(self.envs.spec),
            "observation_space": space_json(self.envs.raw_space),
            "action_space": space_json(self.envs.action_space),
            "network": self._network is not None,
            "replay": self.buffer is not None and replay,
            "config": asdict(self.config),  # type: ignore[call-overload]
        }
        save_replay = None if self.buffer is None or not replay else self.buffer.save
        save_checkpoint(folder, config, state, tensors, save_replay)

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """All that changes in training but the buffer: JSON types, and arrays, which are not copied."""
        state: dict[str, Any] = {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "schedule_steps": self.schedule_steps,
            "n_updates": self.n_updates,
            "log": self._log,
            "rng": self.rng.bit_generator.state,
            "envs": self.envs.state_dict(),
        }
        parts, weights = parts_state(self._parts())
        return state | parts, {"obs": self.envs.obs} | weights

    def _load_state(self, state: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        """Give back what `_state` took to an agent that was just made; warn if the environments do not come back."""
        load_parts(self._parts(), state, tensors)
        self.rng.bit_generator.state = state["rng"]
        self.steps, self.total_steps, self.n_updates = state["steps"], state["total_steps"], state["n_updates"]
        self.schedule_steps = state["schedule_steps"]
        self._log = state["log"]
        if self.envs.absent:
            self.envs.load_statistics(state["envs"])
            return
        try:
            restored = self.envs.load_state_dict(state["envs"], tensors["obs"])
        except InputError:
            raise
        except Exception as error:  # the environment's own, for actions that it does not take
            what = " ".join(str(error).split())
            raise InputError(f"the environment cannot be brought back: {type(error).__name__}: {what}") from error
        if not restored:
            self._new_episodes()
            warn("the environment cannot be brought back to where it was: new episodes begin")

    def __reduce__(self) -> Any:
        return taken_apart(self)

    def __copy__(self: A) -> A:  # two agents cannot share networks and environments
        return copy.deepcopy(self)

    @classmethod
    def load(
        cls: type[A],
        folder: str | os.PathLike[str],
        env: Env | None = None,
        device: str | None = None,
        *,
        network: Any = None,
    ) -> A:
        """The agent of a checkpoint or run folder, ready to go on training.

        `env` is needed only if the agent was not made from an id, or if its id names a module to import
        (``module:Id``): whoever can write a checkpoint must not choose what code is run.  Agents with a replay buffer
        need as many environments as were saved.  `device`: another one than it was saved on.  `network`: as given to
        the constructor, if one was; its weights are those of the checkpoint.
        Raises InputError for a damaged checkpoint, or one of another environment.  If the environment cannot be
        brought back to where it was (it was given as an object, it does not repeat itself, or its episode is longer
        than `fastrl.agents.env_loop.KEPT_ACTIONS`), a warning says that new episodes begin; running
        statistics of normalising wrappers come back all the same.
        """
        with load_checkpoint(folder) as checkpoint:
            return restored(cls, checkpoint, env, device, network)
