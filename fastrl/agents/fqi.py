"""Fitted Q iteration: Q-learning of a fixed batch of transitions, as one regression after another.

fitted Q iteration, extremely randomised trees  Ernst, Geurts and Wehenkel 2005, JMLR 6, p. 503-556
neural fitted Q iteration                       Riedmiller 2005, doi:10.1007/11564096_32
the least Q of several networks                 An et al. 2021, arXiv:2110.01548
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Agent, Env
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.batch import FQIConfig
from fastrl.agents.hyperparameters.needs import check_found
from fastrl.agents.images import unpacked
from fastrl.agents.policies import RunningMoments
from fastrl.agents.spaces import input_scale
from fastrl.agents.training import check_loss
from fastrl.agents.trees import Forest
from fastrl.kernels import MLP, FlatAdam
from fastrl.replay import Batch, ReplayBuffer, from_minari, from_saved

PLAYED = 20_000  # transitions of random play, unless a number is given
A_TURN = 1_000  # of them between two looks at Ctrl-C
GIVEN = "(a buffer)"  # stands for a dataset that has no name
WANTED = "a replay buffer, its file or folder, or an id that Minari has on this machine"


class FQI(Agent[FQIConfig]):
    """Fitted Q iteration (Ernst et al. 2005), on stored transitions or on random play.

    Q_0 = 0;  y = r + gamma (1 - terminated) max_a' Q_k(s', a') of every transition (s, a, r, s');
    Q_{k+1} = the regression of y on (s, a):  table: the mean of each cell (s, a), and 0 where there is none;
    trees: extremely randomised trees, of each action;  network: MLPs (Riedmiller 2005), Q the least of theirs

    A step of this agent is an iteration: ``learn(200)`` makes 200.  `steps`, logs and evaluations count them.

    For discrete actions.  Observations that are not of a Box are seen flattened, discrete ones one-hot.

    `dataset`: a `ReplayBuffer` of transitions of the environment, with actions from 0, or what names one (see below);
    without one the first iteration begins with random play.  `env`, `config` and keyword overrides as in all agents.
    Raises InputError for anything that cannot work.

    >>> agent = FQI("CartPole-v1", seed=0).learn(200)
    >>> agent.evaluate().mean()
    """

    algorithm = "fqi"
    config_class = FQIConfig
    continuous = False
    cpu_only = True
    counts = "iterations"
    log_every, eval_every, save_every = 1, 10, 10
    buffer: ReplayBuffer

    def __init__(
        self,
        env: Env,
        config: FQIConfig | None = None,
        *,
        dataset: ReplayBuffer | str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        given = dataset if isinstance(dataset, ReplayBuffer) else None
        if dataset is not None:
            if not isinstance(dataset, (ReplayBuffer, str, os.PathLike)):
                raise InputError(f"FQI: dataset must be {WANTED}, got {type(dataset).__name__}")
            overrides["dataset"] = GIVEN if isinstance(dataset, ReplayBuffer) else os.fspath(dataset)
        super().__init__(env, config, **overrides)
        c, space = self.config, self.envs.observation_space
        if self._network is not None:
            raise InputError("FQI: network must be left out: regressor says what Q is fitted by")
        actions: Any = self.envs.action_space
        self.n_actions, self._start = int(actions.n), int(actions.start)
        self._shape: tuple[int, ...] = space.shape or ()
        self._scale = input_scale(space)
        discrete = isinstance(self.envs.raw_space, gym.spaces.Discrete)
        self.regressor = c.regressor if c.regressor != "auto" else "table" if discrete else "network"
        if c.regressor == "auto":
            settings = {name: value for name, value in overrides.items() if name != "network"}
            check_found(c, {"regressor": self.regressor}, settings)
        if self.regressor == "table" and not discrete:
            raise InputError(f"FQI: regressor table needs Discrete observations, got {self.envs.raw_space}")
        n = int(np.prod(self._shape))
        self.moments = RunningMoments((n,)) if self.regressor == "network" else None
        self.model: Table | Forest | Networks
        if self.regressor == "table":
            self.model = Table(n, self.n_actions)
        elif self.regressor == "trees":
            self.model = Forest(n, self.n_actions, c.trees, c.min_split)
        else:
            self.model = Networks((n, *c.hidden, self.n_actions), c)
        stored = None
        if given is not None or (c.dataset is not None and c.transitions is None):
            stored = self._read(given)
        # A checkpoint says how many, so that it is loaded without the dataset.
        most = c.transitions or (PLAYED if stored is None else len(stored.reward))
        self.config = replace(c, transitions=most)
        self.buffer = ReplayBuffer(most, space, actions, store_next_obs=True, seed=c.seed)
        if stored is not None:
            self._store(*stored[:6])
        self._data: tuple[Any, ...] | None = None
        self._y: NDArray[np.float64] = np.zeros(1)
        self._predict_rng = np.random.default_rng(self._predict_seed)
        self._log = {"loss": 0.0, "mean_q": 0.0}

    # ---- the transitions

    def _read(self, given: ReplayBuffer | None = None) -> Batch:
        """Those of the dataset, with observations as the agent sees them and actions from 0; raises InputError."""
        name, first = self.config.dataset, 0
        try:
            if given is not None:
                batch: Batch = given.transitions()
            elif name == GIVEN:
                raise InputError("FQI: the dataset was a buffer that is not here: give it again, or save it, too")
            elif name is not None and os.path.exists(name):
                opened = from_saved(name, seed=0)  # which leaves the default generator alone
                batch = opened.transitions()
                if os.path.isdir(name):
                    opened.close()
            else:
                batch, first = from_minari(name).transitions(), self._start
        except InputError:
            raise
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            why = " ".join(str(error).split())
            if given is None and name is not None:
                why = _unreadable(name, why)
            raise InputError(f"FQIConfig: dataset must be {WANTED}: {why}") from error
        action = np.asarray(batch.action)
        if not len(action):
            raise InputError("FQIConfig: dataset must have a transition, got none")
        if action.ndim != 1 or action.dtype.kind not in "iu":
            raise InputError(f"FQIConfig: dataset must have discrete actions, got {action.dtype} {action.shape[1:]}")
        action = action.astype(np.int64) - first
        if action.min() < 0 or action.max() >= self.n_actions:
            got = f"{action.min()}..{action.max()}"
            raise InputError(f"FQIConfig: dataset must have actions from 0 to {self.n_actions - 1}, got {got}")
        obs, next_obs = (self._seen(x, len(action)) for x in (batch.obs, batch.next_obs))
        for x in (obs, next_obs):
            if not (finite := np.isfinite(x)).all():
                raise InputError(f"FQIConfig: dataset must have finite observations, got {x[~finite][0]}")
        return batch._replace(obs=obs, next_obs=next_obs, action=action)

    def _seen(self, obs: Any, n: int) -> NDArray[Any]:
        """The dataset's observations as the environments give them here; raises InputError."""
        flat = self.envs.flattened
        obs = obs if flat is None else unpacked(obs, flat)
        single = not isinstance(obs, (dict, tuple))
        if single and np.shape(obs)[1:] == self._shape:  # an agent's own buffer has them flattened
            return np.asarray(obs)
        if flat is None:
            got = np.shape(obs)[1:] if single else type(obs).__name__
            raise InputError(f"FQIConfig: dataset must have observations of shape {self._shape}, got {got}")
        return flat(obs, "FQIConfig: dataset: an observation", n)

    def _store(self, obs: Any, action: Any, reward: Any, next_obs: Any, terminated: Any, truncated: Any) -> None:
        begins = np.ones(len(action), np.bool_)
        try:
            self.buffer.extend(obs, action, reward, next_obs, terminated, truncated, episode_start=begins)
        except (TypeError, ValueError) as error:
            raise InputError(f"FQI: the transitions do not fit {self.envs.name}: {error}") from error

    def _gather(self) -> None:
        """Some more steps of the random policy."""
        envs, n = self.envs, self.envs.num_envs
        for _ in range(-(-A_TURN // n)):
            left = self.buffer.capacity - len(self.buffer)
            if not left:
                break
            obs, action = envs.obs, self.rng.integers(self.n_actions, size=n)
            t = envs.step(action + self._start)
            rows = np.flatnonzero(np.ones(n, np.bool_) if t.mask is None else t.mask)[:left]
            self._store(*(x[rows] for x in (obs, action, t.reward, t.next_obs, t.terminated, t.truncated)))
        envs.ended = ()

    def _inputs(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """Observations ``[B, ...]`` as the regressor takes them, ``[B, n]``."""
        x = np.asarray(obs, np.float32).reshape(len(obs), -1)
        if self.moments is not None:
            return self.moments.normalize(x)
        return x if self._scale is None or self.regressor == "table" else x * np.float32(self._scale)

    def _prepared(self) -> tuple[Any, ...]:
        """What an iteration takes of all transitions."""
        b = self.buffer.transitions()
        if self.moments is not None and not self.moments.count:
            self.moments.update(np.asarray(b.obs, np.float32).reshape(len(b.obs), -1))
        return self._inputs(b.obs), b.action, b.reward.astype(np.float64), self._inputs(b.next_obs), ~b.terminated

    # ---- an iteration

    def _iterate(self) -> None:
        """y_i = r_i + gamma (1 - terminated_i) max_a Q(s'_i, a), and Q <- the regression of y on (s, a).

        Truncation does not stop the bootstrap.  y is kept to what returns of the rewards seen can be, from
        min(0, min r) / (1 - gamma) to max(0, max r) / (1 - gamma).  The log's loss is the mean square by which y has
        moved, and mean_q its mean.
        """
        c = self.config
        if self._data is None:
            if c.dataset is None and len(self.buffer) < self.buffer.capacity:
                self._gather()
                return
            if not len(self.buffer):
                self._store(*self._read()[:6])
            self._data = self._prepared()
        x, action, reward, x_next, goes_on = self._data
        y = reward + c.gamma * goes_on * self.model(x_next).max(1) if self.n_updates else reward
        if c.gamma < 1:
            y = np.clip(y, min(0, reward.min()) / (1 - c.gamma), max(0, reward.max()) / (1 - c.gamma))
        self.model.fit(x, action, y, self.rng, self.learning_rate)
        self.n_updates += 1
        self.steps += 1
        self._log = {"loss": float(np.square(y - self._y).mean()), "mean_q": float(y.mean())}
        self._y = y
        check_loss(self._log["loss"], self.steps)
        if self.on_step is not None:
            self.on_step()

    def _predict(self, obs: NDArray[Any], deterministic: bool) -> NDArray[Any]:
        if deterministic:
            action: NDArray[Any] = self.model(self._inputs(obs)).argmax(1)
        else:  # as the transitions of random play were made
            action = self._predict_rng.integers(self.n_actions, size=len(obs))
        return action + self._start

    def _deploy(self, deploy: Any) -> Any:
        m = self.moments
        moments = None if m is None else (m.mean.reshape(self._shape), m.var.reshape(self._shape))
        return deploy.TorchPolicy(deploy.values_of_model(self.model), self.envs, moments=moments)

    def _switches(self) -> list[str]:
        return [self.regressor]

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        state, tensors = super()._state()
        return state, tensors | {"y": self._y}

    def _load_state(self, state: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        super()._load_state(state, tensors)
        if len(self.buffer):  # else they are of transitions that are not here
            y = np.array(tensors["y"], np.float64)
            if y.shape not in ((1,), (len(self.buffer),)) or not np.isfinite(y).all():
                raise ValueError(f"y must be finite [{len(self.buffer)}], got {y.shape}")
            self._y = y

    def _parts(self) -> dict[str, Any]:
        if isinstance(self.model, Networks):
            return {"q": self.model.net, "optimizer": self.model.optimizer, "obs_moments": self.moments}
        return {"q": self.model}


def _unreadable(name: str, why: str) -> str:
    """Why there is no dataset of this name, where what raised `why` took it for what it is not."""
    if not os.path.exists(name):
        # No id of Minari's has a dot.
        return f"no such file or folder: {name}" + ("" if "." in name or os.path.isabs(name) else f"; {why}")
    if not os.path.isdir(name) or os.path.exists(os.path.join(name, "state")):
        return why
    for inside in (os.path.join(name, "checkpoint", "replay"), os.path.join(name, "replay")):  # of a run, a checkpoint
        if os.path.exists(inside):
            return f"{name} is not one, but {inside} is"
    return f"the folder {name} holds none"


class Table:
    """Q of each cell, ``[S, A]`` in float64; `vector` is it in a row.  States are one-hot rows."""

    def __init__(self, states: int, actions: int) -> None:
        self.q = np.zeros((states, actions))
        self.vector = self.q.reshape(-1)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.q[x.argmax(1)]
        return found

    def fit(self, x: NDArray[np.float32], action: NDArray[np.int64], y: NDArray[np.float64], *_: Any) -> None:
        """The mean of each cell; those without a transition stay 0."""
        cell = x.argmax(1) * self.q.shape[1] + action
        n = np.bincount(cell, minlength=self.q.size)
        self.vector[:] = np.bincount(cell, y, minlength=self.q.size) / np.maximum(n, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"table": self.q}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        q = state["table"]
        if q.shape != self.q.shape or not np.isfinite(q).all():
            raise ValueError(f"table must be finite {self.q.shape}, got {q.shape}")
        self.q[...] = q


class Networks:
    """MLPs side by side, whose least Q counts."""

    def __init__(self, sizes: tuple[int, ...], config: FQIConfig) -> None:
        self.config = config
        self.net = MLP(sizes, n=config.networks, seed=config.seed)
        self.optimizer = FlatAdam(self.net.vector, self.net.grad, lr=config.learning_rate)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        q: NDArray[np.float32] = self.net.forward(x).min(0)
        return q

    def fit(
        self,
        x: NDArray[np.float32],
        action: NDArray[np.int64],
        y: NDArray[np.float64],
        rng: np.random.Generator,
        learning_rate: float,
    ) -> None:
        """`epochs` passes of Adam on the mean of (Q_k(s, a) - y)^2, of each network k; it goes on from where it is."""
        for _ in range(self.config.epochs):
            order = rng.permutation(len(x))
            for begin in range(0, len(x), self.config.batch_size):
                rows = order[begin : begin + self.config.batch_size]
                q, each, a = self.net.forward_cached(x[rows]), np.arange(len(rows)), action[rows]
                d = np.zeros_like(q)
                d[:, each, a] = (q[:, each, a] - y[rows]) * (2 / len(rows))
                self.net.backward(d)
                self.optimizer.step(lr=learning_rate)
