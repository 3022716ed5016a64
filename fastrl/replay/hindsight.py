"""Hindsight experience replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.batch import Batch
from fastrl.replay.buffer import ReplayBuffer
from fastrl.replay.checks import check_int
from fastrl.replay.spaces import convert

_KEYS = {"observation", "achieved_goal", "desired_goal"}


class HindsightReplay(ReplayBuffer):
    """A `ReplayBuffer` of goal environments that draws most transitions as if another goal had been meant (HER).

    Of a batch the share goals / (goals + 1) is relabelled: the desired goal of `obs` and `next_obs` becomes one that
    was achieved later in the same episode, and the reward what ``compute_reward`` says of it:

        g = achieved_goal of the next_obs of transition k;  reward = compute_reward(achieved_goal of next_obs, g, {})

    with k uniform over the transitions of the episode from the drawn one on ("future"), or its last one ("final").  Of
    an episode that still runs, those that there are.  A draw takes time in proportion to them.  `terminated`,
    `truncated` and `discount` stay as they were added.
    ``buffer[indices]`` and `transitions` give what was added, not relabelled.

    Args (besides those of `ReplayBuffer`, of which `n_step` must be 1):
        obs_space: Dict of "observation", "achieved_goal" and "desired_goal", the last two alike (Gymnasium-Robotics).
        compute_reward: (achieved [B, *goal], desired [B, *goal], info {}) -> [B] of NumPy arrays: the environment's own
            (``env.unwrapped.compute_reward``), which must not need an `info`.
        goals: int >= 0: relabelled draws for each as it was; the paper's k.
        strategy: "future" or "final".

    Raises:
        ValueError: another obs_space, or n_step > 1; `sample`: rewards that are not finite or not [B].
        TypeError: `sample`: rewards that are no numbers, or a tensor that NumPy cannot read.

    Source: Andrychowicz et al., "Hindsight Experience Replay" (2017), arXiv:1707.01495, section 4.5.
    """

    def __init__(
        self,
        capacity: int,
        obs_space: Any,
        action_space: Any,
        num_envs: int = 1,
        *,
        compute_reward: Callable[[NDArray[Any], NDArray[Any], dict[str, Any]], Any],
        goals: int = 4,
        strategy: Literal["future", "final"] = "future",
        **options: Any,
    ) -> None:
        if not callable(compute_reward):
            raise TypeError(f"replay: compute_reward must be callable, got {type(compute_reward).__name__}")
        if strategy not in ("future", "final"):
            raise ValueError(f'replay: strategy must be "future" or "final", got {strategy!r}')
        self._compute_reward = compute_reward
        self.goals, self.strategy = check_int("goals", goals, least=0), strategy
        super().__init__(capacity, obs_space, action_space, num_envs, **options)

    def _make_storage(self) -> None:
        if self.n_step > 1:
            raise ValueError(f"replay: n_step must be 1 in a HindsightReplay, got {self.n_step}")
        kinds = {leaf.path: (leaf.shape, leaf.dtype) for leaf in self._obs.leaves}
        goal = kinds.get("['achieved_goal']")
        if self._obs.keys != _KEYS or goal is None or kinds.get("['desired_goal']") != goal:
            raise ValueError(
                'replay: obs_space must be a Dict of "observation", "achieved_goal" and "desired_goal", the last two '
                f"alike, got {self._obs}"
            )
        super()._make_storage()

    def _draw(self, rows: NDArray[np.int64], weights: Any) -> Batch:
        batch, store = self._batch(rows, weights), self._store
        n = round(len(rows) * self.goals / (self.goals + 1))
        if n == 0:
            return batch  # type: ignore[no-any-return]
        rows = rows[:n]
        _, _, last = store.returns(rows, self._most)
        if self.strategy == "future":
            steps = (last - rows) // self.num_envs % store.slots + 1
            state = self._tree.generator.state_dict()  # where the draws of rows have left it
            random = np.random.Generator(np.random.Philox(key=[state["seed"], state["counter"]]))
            last = (rows + random.integers(steps) * self.num_envs) % (store.slots * self.num_envs)
        goal = np.asarray(store.read(last, 1, None).next_obs["achieved_goal"])
        for obs in (batch.obs, batch.next_obs):
            np.asarray(obs["desired_goal"])[:n] = goal
        achieved = np.asarray(batch.next_obs["achieved_goal"])[:n]
        given = self._compute_reward(achieved.copy(), goal, {})
        try:
            reward = convert("what compute_reward gives", given, np.dtype(np.float32), [(n,)], check=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"replay.sample: {error}") from None
        bad = ~np.isfinite(reward)
        if bad.any():
            b = int(bad.argmax())
            raise ValueError(f"replay.sample: what compute_reward gives must be finite in float32, got {given[b]}")
        np.asarray(batch.reward)[:n] = reward
        return batch  # type: ignore[no-any-return]

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "goals": self.goals, "strategy": self.strategy}
