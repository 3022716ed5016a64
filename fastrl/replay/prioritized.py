"""The prioritized replay buffer."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.buffer import ReplayBuffer
from fastrl.replay.checks import check_float, check_indices, check_int, to_numpy


class PrioritizedReplay(ReplayBuffer):
    """A `ReplayBuffer` that draws what surprised: transition i in proportion to p_i = (|delta_i| + eps)^alpha.

    P(i) = p_i / sum_k p_k, where delta_i is the temporal-difference error last given to `update_priorities`; a new
    transition has the largest p given so far, and at least 1.  A batch is stratified: one draw from each of B equal
    slices of sum_k p_k.  Its weights w_i = (N P(i))^-beta / max_j (N P(j))^-beta, N = len(buffer), correct the bias;
    beta grows linearly from `beta` to `beta_end` while `beta_steps` transitions are added.

    Args (besides those of `ReplayBuffer`):
        alpha: >= 0; 0 is uniform.  Applied once, when p_i is stored.
        beta, beta_end: >= 0; equal for a constant beta.
        beta_steps: int >= 1: environment steps, as in the OpenAI baselines, not calls of `sample`.
        eps: > 0, so that no transition is lost.
        normalize: the largest weight 1 is that of the "batch", or of all transitions in the "tree" (the paper's
            max_i w_i leaves it open): then equal priorities have equal weights in every batch.

    Source: Schaul et al., "Prioritized Experience Replay" (2016), arXiv:1511.05952, proportional variant; the defaults
    are its section 4.
    """

    _stratified = True

    def __init__(
        self,
        capacity: int,
        obs_space: Any,
        action_space: Any,
        num_envs: int = 1,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        store_next_obs: bool = False,
        storage: str | os.PathLike[str] | None = None,
        device: Any = None,
        seed: int | None = None,
        alpha: float = 0.6,
        beta: float = 0.4,
        beta_end: float = 1.0,
        beta_steps: int = 100_000,
        eps: float = 1e-6,
        normalize: Literal["batch", "tree"] = "batch",
    ) -> None:
        self._alpha = check_float("alpha", alpha)
        self._beta_start, self._beta_end = check_float("beta", beta), check_float("beta_end", beta_end)
        self._beta_steps = check_int("beta_steps", beta_steps)
        self.eps = check_float("eps", eps)
        if self.eps == 0:
            raise ValueError("replay: eps must be > 0, got 0")
        if normalize not in ("batch", "tree"):
            raise ValueError(f'replay: normalize must be "batch" or "tree", got {normalize!r}')
        self._normalize = normalize
        super().__init__(
            capacity, obs_space, action_space, num_envs, n_step=n_step, gamma=gamma, frame_stack=frame_stack,
            store_next_obs=store_next_obs, storage=storage, device=device, seed=seed,
        )  # fmt: skip

    @property
    def alpha(self) -> float:
        """The exponent of the priorities given from now on; those that are kept stay as they are.

        Raises ValueError where it is set to a number < 0 or not finite, TypeError to no number.
        """
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self._alpha = check_float("alpha", alpha)

    @property
    def beta(self) -> float:
        """The exponent of the importance weights now: beta + (beta_end - beta) min(1, added / beta_steps)."""
        fraction = min(1.0, self._added / self._beta_steps)
        return self._beta_start * (1 - fraction) + self._beta_end * fraction

    def update_priorities(self, indices: Any, td_errors: Any) -> int:
        """p = (|td_error| + eps)^alpha, kept in the normal range of float32, for each transition of a batch.

        One that has been overwritten since it was drawn is left out: the transition now in its place keeps its own
        priority.  Of equal indices the last one wins.

        Args:
            indices: int64 / int32 [B], the `indices` of a batch.
            td_errors: real [B], of any sign; NumPy or torch, on any device.

        Returns:
            How many were left out.

        Raises:
            ValueError: shapes that differ; a NaN or infinite error, the first is named.
            IndexError: an index that no transition has had.
            In both cases no priority is changed.
        """
        return self._update(*checked_errors(indices, td_errors))

    def _update(self, numbers: NDArray[Any], errors: NDArray[Any]) -> int:
        with self._lock:
            rows, stale = self._locate("replay.update_priorities", numbers)
            # The row of a stale one holds no transition, and a priority of 0 is kept.
            largest = self._tree.update_from_td_errors(rows, errors, self._alpha, self.eps, keep_zeros=True)
            self._new_priority = max(self._new_priority, largest)
        return stale

    def _errors(self) -> Any:
        return checked_errors

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "alpha": self.alpha, "eps": self.eps}


def checked_errors(indices: Any, td_errors: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Arguments of `update_priorities` as NumPy arrays [B], the errors as floats."""
    where = "replay.update_priorities"
    numbers, errors = to_numpy(indices), to_numpy(td_errors)
    if numbers.ndim != 1 or errors.shape != numbers.shape:
        raise ValueError(
            f"{where}: indices and td_errors must both have shape [B], got {numbers.shape} and {errors.shape}"
        )
    if numbers.dtype.char not in "lq":
        check_indices(where, numbers)
    dtype = errors.dtype
    if dtype.char not in "fd" or not dtype.isnative:
        if dtype.kind not in "fiu":
            raise ValueError(f"{where}: td_errors must be real numbers, got {dtype}")
        errors = errors.astype(np.float64)
    return numbers, errors
