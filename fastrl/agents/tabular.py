"""Learning a table of action values by temporal differences, for Discrete observations and actions.

q_learning      Watkins 1989; Watkins and Dayan 1992, doi:10.1007/BF00992698
sarsa           Rummery and Niranjan 1994; SARSA(lambda) by Sutton and Barto 2018, section 12.7
expected_sarsa  van Seijen et al. 2009, doi:10.1109/ADPRL.2009.4927542

The loop is plain Python over floats of a NumPy table: of a step, most of the time is the environment's.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Agent, Env
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.tabular import SARSAConfig, TabularConfig

MOST = 10**8  # entries of a table
C = TypeVar("C", bound=TabularConfig)


class Table:
    """What is learned: `q` ``[S, A]``, the number of `visits`, and what is carried through an episode."""

    def __init__(self, states: int, actions: int, num_envs: int, value: float, traces: bool) -> None:
        self.q = np.full((states, actions), value)
        self.visits = np.zeros((states, actions), np.int64)
        self.traces = np.zeros((num_envs, states, actions)) if traces else np.zeros((0, 0, 0))
        self.chosen: list[int] | None = None  # the actions that come next, by SARSA

    def new_episodes(self) -> None:
        self.traces[:] = 0
        self.chosen = None

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).ravel().tolist() for name in ("q", "visits", "traces")}
        return {**arrays, "chosen": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        loaded = {}
        for name in ("q", "visits", "traces"):
            array = getattr(self, name)
            values = np.asarray(state[name], array.dtype)
            if name == "traces" and len(values) != array.size:
                values = np.zeros(array.size)  # of another number of environments, where new episodes begin
            if values.shape != (array.size,) or not np.isfinite(values).all():
                raise ValueError(f"{name} must be {array.size} finite numbers, got {values.shape}")
            loaded[name] = values.reshape(array.shape)
        chosen = state["chosen"]
        if chosen is not None and not all(isinstance(a, int) and 0 <= a < self.q.shape[1] for a in chosen):
            raise ValueError(f"chosen must be actions, got {chosen!r}")
        for name, values in loaded.items():
            getattr(self, name)[...] = values
        self.chosen = chosen


class TabularAgent(Agent[C]):
    """Base: Q(s, a) <- Q(s, a) + alpha [r + gamma (1 - terminated) V(s') - Q(s, a)], and V is the algorithm's own."""

    continuous = False
    tabular = True
    cpu_only = True

    def __init__(self, env: Env, config: C | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        this, c = type(self).__name__, self.config
        if self._network is not None:
            raise InputError(f"{this}: network must be left out: it learns a table")
        observations: Any = self.envs.observation_space
        actions: Any = self.envs.action_space
        self._first, self.n_states = int(observations.start), int(observations.n)
        self._start, self.n_actions = int(actions.start), int(actions.n)
        entries, traces = self.n_states * self.n_actions, getattr(c, "lam", 0.0) > 0
        if entries > MOST:
            raise InputError(
                f"{this}: a table of {self.n_states} states and {self.n_actions} actions is too large, the most are "
                f"{MOST} entries; DQN learns from encoded observations"
            )
        if traces and c.num_envs * entries > MOST:
            raise InputError(
                f"{this}: traces of {c.num_envs} environments, {self.n_states} states and {self.n_actions} actions are "
                f"too large, the most are {MOST} entries; num_envs must be smaller, or lam 0"
            )
        self.table = Table(self.n_states, self.n_actions, c.num_envs, c.initial_value, traces)
        self._predict_rng = np.random.default_rng(self._predict_seed)
        self._reached: NDArray[Any] | None = None  # the observations after the last step
        self._log = {"loss": 0.0, "mean_q": 0.0}

    @property
    def q(self) -> NDArray[np.float64]:
        """The table Q(s, a) ``[S, A]``, the agent's own."""
        return self.table.q

    @property
    def epsilon(self) -> float:
        """The probability of a random action now: linear from epsilon_start to epsilon_end."""
        c = self.config
        return self._linear(c.epsilon_start, c.epsilon_end, c.epsilon_steps)

    def _choose(self, state: int, rng: np.random.Generator) -> int:
        """An action of the epsilon-greedy policy; of equal ones any."""
        if rng.random() < self.epsilon:
            return int(rng.integers(self.n_actions))
        row = self.q[state].tolist()
        top = max(row)
        if row.count(top) == 1:
            return int(row.index(top))
        return int(rng.choice([a for a, value in enumerate(row) if value == top]))

    @abstractmethod
    def _next_value(self, state: int, action: int | None) -> float:
        """V(s'), which s' is valued by; `action` is the one that comes next, if it is known."""

    def _iterate(self) -> None:
        obs, table, rng = self.envs.obs, self.table, self.rng
        if self._reached is not None and obs is not self._reached:
            self._new_episodes()  # somebody has reset the environments since
        states = (obs - self._first).tolist()
        chosen = table.chosen or [self._choose(s, rng) for s in states]
        t = self.envs.step(np.array(chosen, np.int64) + self._start)
        self._reached = self.envs.obs
        following, now = (t.next_obs - self._first).tolist(), (self.envs.obs - self._first).tolist()
        table.chosen = [] if self._on_policy else None
        for i, (s, a) in enumerate(zip(states, chosen, strict=True)):
            done = bool(t.terminated[i] or t.truncated[i])
            after = self._choose(following[i], rng) if self._on_policy else None
            if t.mask is None or t.mask[i]:
                value = 0.0 if t.terminated[i] else self._next_value(following[i], after)
                self._learn(i, s, a, float(t.reward[i]) + self.config.gamma * value, done)
            if table.chosen is not None and after is not None:
                new = done or (t.mask is not None and not t.mask[i])
                table.chosen.append(self._choose(now[i], rng) if new else after)
        self._stepped()

    _on_policy = False  # is the next action chosen before the update?

    def _learn(self, i: int, s: int, a: int, target: float, done: bool) -> None:
        """Move Q(s, a) towards `target`; `i` is the environment."""
        q, c, alpha = self.q, self.config, self.learning_rate
        error = target - float(q[s, a])
        if c.learning_rate_power:
            self.table.visits[s, a] += 1
            visits, horizon = float(self.table.visits[s, a]), c.learning_rate_horizon
            alpha /= ((horizon + visits) / (horizon + 1)) ** c.learning_rate_power
        if len(self.table.traces):
            trace = self.table.traces[i]
            trace *= c.gamma * c.lam  # type: ignore[attr-defined]
            trace[s, a] = 1.0  # replacing
            q += alpha * error * trace
            if done:
                trace[:] = 0.0
        else:
            q[s, a] += alpha * error
        self.n_updates += 1
        self._log["loss"], self._log["mean_q"] = error * error, float(q[s, a])

    def _predict(self, obs: NDArray[Any], deterministic: bool) -> NDArray[Any]:
        states = obs.astype(np.int64) - self._first
        bad = (states + self._first != obs) | (states < 0) | (states >= self.n_states)
        if bad.any():
            raise InputError(f"predict: obs must be in {self.envs.observation_space}, got {obs[bad][0]}")
        if deterministic:
            actions: NDArray[Any] = self.q[states].argmax(1)
        else:
            actions = np.array([self._choose(s, self._predict_rng) for s in states.tolist()], np.int64)
        return actions + self._start

    def _deploy(self, deploy: Any) -> Any:
        return deploy.TablePolicy(self.q.argmax(1) + self._start, self.envs.observation_space)

    def metrics(self) -> dict[str, float]:
        """For the logs: of the last update the squared TD error and Q(s, a), and the exploration now."""
        return {**super().metrics(), "epsilon": self.epsilon}

    def _parts(self) -> dict[str, Any]:
        return {"table": self.table}


class QLearning(TabularAgent[TabularConfig]):
    """Q-learning on a table (Watkins 1989; Watkins and Dayan 1992, doi:10.1007/BF00992698).

    Q(s, a) <- Q(s, a) + alpha [r + gamma (1 - terminated) max_a' Q(s', a') - Q(s, a)]

    For Discrete observations and actions.  `q` is the table ``[S, A]``.  `env`, `config` and keyword overrides as in
    all agents; raises InputError for anything that cannot work.

    >>> agent = QLearning("CliffWalking-v1", seed=0, learning_rate=1.0, learning_rate_end=1.0).learn(50_000)
    >>> agent.evaluate().mean()
    -13.0
    """

    algorithm = "q_learning"
    config_class = TabularConfig

    def _next_value(self, state: int, action: int | None) -> float:
        return float(self.q[state].max())


class SARSA(TabularAgent[SARSAConfig]):
    """SARSA(lambda) on a table, with replacing traces (Sutton and Barto 2018, section 12.7).

    delta = r + gamma (1 - terminated) Q(s', a') - Q(s, a), a' the action that is taken next
    e <- gamma lam e;  e(s, a) <- 1;  Q <- Q + alpha delta e

    For Discrete observations and actions.  It values the policy that explores: for the best one epsilon must fall to 0
    (`epsilon_end`).  `q` is the table ``[S, A]``.  `env`, `config` and keyword overrides as in all agents; raises
    InputError for anything that cannot work.
    """

    algorithm = "sarsa"
    config_class = SARSAConfig
    _on_policy = True

    def _next_value(self, state: int, action: int | None) -> float:
        assert action is not None
        return float(self.q[state, action])


class ExpectedSARSA(TabularAgent[TabularConfig]):
    """Expected SARSA on a table (van Seijen et al. 2009, doi:10.1109/ADPRL.2009.4927542).

    Q(s, a) <- Q(s, a) + alpha [r + gamma (1 - terminated) sum_a' pi(a'|s') Q(s', a') - Q(s, a)]

    pi is the epsilon-greedy policy that acts.  For Discrete observations and actions.  `q` is the table ``[S, A]``.
    `env`, `config` and keyword overrides as in all agents; raises InputError for anything that cannot work.
    """

    algorithm = "expected_sarsa"
    config_class = TabularConfig

    def _next_value(self, state: int, action: int | None) -> float:
        row, epsilon = self.q[state], self.epsilon
        return float((1 - epsilon) * row.max() + epsilon * row.mean())
