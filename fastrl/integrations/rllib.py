"""RLlib's own prioritized episode buffer on a compiled tree: one setting of DQN and SAC on its new API stack.

from fastrl.integrations.rllib import PrioritizedEpisodeReplayBuffer

replay = {"type": PrioritizedEpisodeReplayBuffer, "capacity": 50_000, "alpha": 0.6, "beta": 0.4}
config.training(replay_buffer_config=replay)
"""

from __future__ import annotations

import uuid
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.integrations._version import installed, untested
from fastrl.kernels import SumTree

with installed("RLlib", '"ray[rllib]"', "ray"):
    from ray.rllib.core import DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.utils.replay_buffers import PrioritizedEpisodeReplayBuffer as Host

__all__ = ["PrioritizedEpisodeReplayBuffer"]

TESTED = "2.60"


class PrioritizedEpisodeReplayBuffer(Host):  # type: ignore[misc]
    """RLlib's ``PrioritizedEpisodeReplayBuffer`` on a `fastrl.SumTree` in float64.

    A subclass: the host's constructor, `add`, metrics and states, which either reads of the other.  `sample` draws the
    batch at once, and gives the host's own episodes for the same random numbers: those of one step each, with
    ``n_step`` and ``weights``.  With ``n_step`` as a range, ``include_infos``, ``include_extra_model_outputs`` or
    ``to_numpy`` the host's own code draws, from the same tree.  `seed`: of the draws, which the host does not seed.

    With another version of Ray than 2.60 the host's code does all of it, after one warning.
    """

    _sum_segment: Any
    _min_segment: Any
    _max_priority: float

    def __init__(self, *args: Any, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        reason = untested("ray", TESTED)
        self._ours = reason is None
        if reason:
            warnings.warn(f"fastrl.integrations.rllib.{type(self).__name__}: {reason}", stacklevel=2)
            return
        self._tree = SumTree(self._sum_segment.capacity, dtype=np.float64, seed=0)  # the draws are the host's
        self._sum_segment, self._min_segment = _Sums(self._tree), _Minima(self._tree)

    def set_state(self, state: Any) -> None:
        """The host's `set_state`, in place of all that is held: the host's own keeps episodes of before."""
        self.episodes.clear()
        super().set_state(state)

    def sample(
        self,
        num_items: int | None = None,
        *,
        batch_size_B: int | None = None,
        n_step: Any = None,
        beta: float = 0.0,
        gamma: float = 0.99,
        **kwargs: Any,
    ) -> Any:
        """The host's `sample`: episodes of one step each, drawn with probability p_i / sum_k p_k."""
        rare = any(kwargs.get(name) for name in ("include_infos", "include_extra_model_outputs", "to_numpy"))
        if not self._ours or rare or isinstance(n_step, tuple) or (num_items is not None and batch_size_B is not None):
            given: dict[str, Any] = {"batch_size_B": batch_size_B, "n_step": n_step, "beta": beta, "gamma": gamma}
            return super().sample(num_items, **given, **kwargs)
        assert beta >= 0.0
        size, n = num_items or batch_size_B or self.batch_size_B, n_step or 1
        tree, resampled = self._tree, 0
        drawn: list[tuple[Any, int]] = []
        total = tree.total
        self._last_sampled_indices: list[int] = []
        while len(drawn) < size:  # the numbers that the host draws one by one
            for idx in tree.find(self.rng.random(size - len(drawn)) * total).tolist():
                of_episode, t, _ = self._indices[self._tree_idx_to_sample_idx[idx]]
                episode = self.episodes[of_episode - self._num_episodes_evicted]
                if t + n > len(episode):
                    resampled += 1
                    continue
                drawn.append((episode, t))
                self._last_sampled_indices.append(idx)
        # (p_i / min_k p_k)^-beta, in which the sum and the number of steps cancel
        weights = (tree[np.array(self._last_sampled_indices)] / tree.min) ** -beta
        make = _Episodes(n, gamma)
        episodes = [make(episode, t, weight) for (episode, t), weight in zip(drawn, weights.tolist(), strict=True)]
        self.sampled_timesteps += size
        self._count(size, n, resampled, drawn)
        return episodes

    def _count(self, size: int, n: int, resampled: int, drawn: list[tuple[Any, int]]) -> None:
        of_episodes = len({id(episode) for episode, _ in drawn})
        steps = len({(id(episode), t) for episode, t in drawn})
        metrics: dict[str, Any] = {
            "num_env_steps_sampled": size, "num_episodes_per_sample": of_episodes,
            "num_env_steps_per_sample": steps, "sampled_n_step": float(n), "num_resamples": resampled,
        }  # fmt: skip
        for who, key in (("agent", DEFAULT_AGENT_ID), ("module", DEFAULT_MODULE_ID)):
            for name in list(metrics)[:5]:
                metrics[f"{who}_to_{name.replace('env_steps', 'steps')}"] = {key: metrics[name]}
        self._update_sample_metrics(**metrics)

    def update_priorities(self, priorities: Any, module_id: Any = None) -> None:
        """p_i = max(priority, 1e-12)^alpha for the steps that were sampled last, of equal ones the last."""
        if not self._ours:
            super().update_priorities(priorities, module_id)
            return
        assert len(priorities) == len(self._last_sampled_indices)
        new = np.maximum(np.asarray(priorities, np.float64), 1e-12)
        if len(new):
            self._tree.update(np.array(self._last_sampled_indices), new**self._alpha)
            self._max_priority = max(self._max_priority, float(new.max()))
        self._last_sampled_indices.clear()


class _Sums:
    """What the host's buffer calls of its SumSegmentTree."""

    neutral: float = 0.0
    combine: Any = np.add

    def __init__(self, tree: SumTree) -> None:
        self.tree, self.capacity = tree, tree.capacity

    def __getitem__(self, idx: int) -> float:
        return float(self.tree[idx])

    def __setitem__(self, idx: int, value: float) -> None:
        self.tree.update(idx, value)

    def sum(self) -> float:
        return self.tree.total

    def find_prefixsum_idx(self, prefixsum: float) -> int:
        return self.tree.find(prefixsum)  # type: ignore[no-any-return]

    def _leaves(self) -> NDArray[np.float64]:
        leaves: NDArray[np.float64] = self.tree[np.arange(self.capacity)]
        return leaves

    def get_state(self) -> list[float]:
        """That of the host's tree: all nodes, the root at 1, then the leaves."""
        level = self._leaves()
        levels = [level]
        while len(level) > 1:
            level = self.combine(level[::2], level[1::2])
            levels.append(level)
        return [self.neutral, *np.concatenate(levels[::-1]).tolist()]

    def set_state(self, state: list[float]) -> None:
        assert len(state) == 2 * self.capacity
        self.tree.update(np.arange(self.capacity), np.asarray(state[self.capacity :]))


class _Minima(_Sums):
    """What it calls of its MinSegmentTree: the same priorities, of which those that are 0 are free."""

    neutral = float("inf")
    combine = np.minimum

    def __setitem__(self, idx: int, value: float) -> None:
        pass  # it is in the sums

    def min(self) -> float:
        return self.tree.min

    def _leaves(self) -> NDArray[np.float64]:
        leaves = super()._leaves()
        leaves[leaves == 0] = np.inf
        return leaves

    def set_state(self, state: list[float]) -> None:
        pass


class _Episodes:
    """Makes episodes of one step like the host's, whose constructor looks at the spaces again for each."""

    def __init__(self, n: int, gamma: float) -> None:
        self.n, self.gamma = n, gamma
        outputs = {"weights": [1.0], "n_step": [n]}
        self.plain = SingleAgentEpisode(
            observations=[0, 0], actions=[0], rewards=[0.0], extra_model_outputs=outputs, len_lookback_buffer=0
        )

    def __call__(self, source: Any, t: int, weight: float) -> Any:
        n, plain, outputs = self.n, self.plain, self.plain.extra_model_outputs
        reward = _at(source.rewards, t + n - 1)
        for k in reversed(range(n - 1)):
            reward = _at(source.rewards, t + k) + self.gamma * reward
        ended = t + n == len(source)
        made = object.__new__(SingleAgentEpisode)
        for name in SingleAgentEpisode.__slots__:
            setattr(made, name, getattr(plain, name))
        made.id_ = uuid.uuid4().hex
        made._observation_space, made._action_space = source.observation_space, source.action_space
        made.observations = _like(source.observations, [_at(source.observations, t), _at(source.observations, t + n)])
        made.actions = _like(source.actions, [_at(source.actions, t)])
        made.rewards = _like(source.rewards, [reward])
        made.infos = _like(plain.infos, [{}, {}])
        weights, n_step = _like(outputs["weights"], [weight]), _like(outputs["n_step"], [n])
        made.extra_model_outputs = {"weights": weights, "n_step": n_step}
        made.is_terminated, made.is_truncated = ended and source.is_terminated, ended and source.is_truncated
        made.t_started, made.t = t, t + 1
        made._custom_data = {}
        return made


def _at(buffer: Any, i: int) -> Any:
    """Item i behind the look-back."""
    data = buffer.data
    return data[buffer.lookback + i] if isinstance(data, (list, np.ndarray)) else buffer.get(i)


def _like(buffer: Any, data: list[Any]) -> Any:
    """A look-back buffer of the same space with `data`, and nothing to look back at."""
    made = object.__new__(type(buffer))
    made.__dict__.update(buffer.__dict__)
    made.data, made.lookback, made.finalized = data, 0, False
    return made
