"""Sequences for recurrent agents, with burn-in, stored states and priorities."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.kernels.gather_rows import gather_rows
from fastrl.replay import state as states
from fastrl.replay.batch import Batch
from fastrl.replay.checks import check_float, check_int, to_numpy
from fastrl.replay.prioritized import PrioritizedReplay, checked_errors
from fastrl.replay.spaces import Space

Rows = NDArray[np.int64]


class SequenceBatch(NamedTuple):
    """B sequences of T = burn_in + length steps: NumPy arrays, or torch tensors if the buffer has a device.

    Where `mask` is False a sequence is over, and everything else is 0 there.
    """

    obs: Any
    """[B, T, *shape of an observation]."""
    action: Any
    """[B, T, *shape of an action]."""
    reward: Any
    """[B, T] float32; with n_step > 1 the sums of m <= n_step steps, which go on behind the sequence's end."""
    next_obs: Any
    """Like `obs`: the observation really reached after these steps."""
    terminated: Any
    """[B, T] bool, of the last of these steps."""
    truncated: Any
    """[B, T] bool, likewise."""
    indices: Any
    """[B] int64: the number of the first transition of each, for `update_priorities`.  On the CPU."""
    weights: Any
    """[B] float32: importance weights."""
    discount: Any
    """[B, T] float32: gamma^m (1 - terminated)."""
    mask: Any
    """[B, T] bool: where there is a step, the first `burn_in` ones of them only to warm the state up."""
    state: Any
    """[B, *shape of a state]: of the network before the first step, as it was given to `add`; None without them."""


class SequenceReplay(PrioritizedReplay):
    """A `PrioritizedReplay` of whole sequences, which recurrent networks learn from (R2D2).

    A sequence is a window of T = burn_in + length steps of one episode.  Windows start at its first step and every
    T - overlap steps after that, so that neighbours share `overlap` steps; the last one ends with the episode and is
    padded.  A window can be drawn once it is whole, while its first step is held, and if it has more than `burn_in`
    steps.  With the default overlap = burn_in each step but the first `burn_in` of an episode is trained on in one of
    them.

    P(i) = p_i / sum_k p_k with p_i = (eta max_t |delta_t| + (1 - eta) mean_t |delta_t| + eps)^alpha over the steps t of
    window i; alpha = 0 is uniform.  `len` is the number of windows, and `capacity` that of transitions.

    Args (besides those of `PrioritizedReplay`, whose defaults here are R2D2's):
        length: int >= 1: steps that are trained on.
        burn_in: int >= 0: steps before them, to warm up the state with.
        overlap: int in [0, T); None for burn_in.
        state_space: of the network's recurrent state of one environment, as `obs_space`; None: none is stored.
        eta: in [0, 1]: the share of the largest error.

    Raises:
        ValueError: T steps of each environment are more than the capacity, besides what `PrioritizedReplay` raises.

    Source: Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning" (2019), section 2.3.
    """

    _draws_rows = False

    def __init__(
        self,
        capacity: int,
        obs_space: Any,
        action_space: Any,
        num_envs: int = 1,
        *,
        length: int,
        burn_in: int = 0,
        overlap: int | None = None,
        state_space: Any = None,
        eta: float = 0.9,
        alpha: float = 0.9,
        beta: float = 0.6,
        beta_end: float = 0.6,
        **options: Any,
    ) -> None:
        self.length = check_int("length", length)
        self.burn_in = check_int("burn_in", burn_in, least=0)
        self.overlap = self.burn_in if overlap is None else check_int("overlap", overlap, least=0)
        self.eta = check_float("eta", eta)
        if self.eta > 1:
            raise ValueError(f"replay: eta must be in [0, 1], got {eta}")
        self._steps = self.burn_in + self.length
        if self.overlap >= self._steps:
            raise ValueError(f"replay: overlap must be less than burn_in + length = {self._steps}, got {overlap}")
        self._period = self._steps - self.overlap
        self._has_state = state_space is not None
        if self._has_state:
            Space("action_space", action_space)  # for the error, which names it as it was given
            # Kept beside the action, and read of the first step of a window alone.
            self._unread = len(Space("state_space", state_space).leaves)
            action_space = {"action": action_space, "state": state_space}
        super().__init__(
            capacity, obs_space, action_space, num_envs, alpha=alpha, beta=beta, beta_end=beta_end, **options
        )

    def _make_storage(self) -> None:
        if self._most < self._steps:
            raise ValueError(
                f"replay: capacity must be at least num_envs (burn_in + length) = {self.num_envs * self._steps}, "
                f"got {self.capacity}"
            )
        super()._make_storage()
        self._chunk = min(self._chunk, self._most * self.num_envs)  # so that `_publish` sees no row twice
        # Of the running episode of each environment: its steps, whether the newest one ends a window that can be drawn,
        # and whether it ended the episode.
        self._run = np.zeros(self.num_envs, np.int64)
        self._is_whole, self._is_over = np.ones(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)

    def __repr__(self) -> str:
        return super().__repr__().replace(" transitions,", f" sequences of {self.burn_in} + {self.length} steps,", 1)

    def add(
        self, obs: Any, action: Any, reward: Any, next_obs: Any, terminated: Any, truncated: Any, mask: Any = None,
        episode_start: Any = None, state: Any = None,
    ) -> None:  # fmt: skip
        """`ReplayBuffer.add`, and with `state_space` [num_envs, *shape] the recurrent state before `obs` was seen.

        Where `mask` leaves a step out, or an episode starts without the end of the last, the last window is closed.
        """
        action = self._with_state("add", action, state)
        super().add(obs, action, reward, next_obs, terminated, truncated, mask, episode_start)

    def extend(
        self, obs: Any, action: Any, reward: Any, next_obs: Any, terminated: Any, truncated: Any, mask: Any = None,
        episode_start: Any = None, state: Any = None,
    ) -> None:  # fmt: skip
        """`add` K times in one call: as `ReplayBuffer.extend`."""
        action = self._with_state("extend", action, state)
        super().extend(obs, action, reward, next_obs, terminated, truncated, mask, episode_start)

    def transitions(self) -> Batch:
        """All transitions held, as of `ReplayBuffer.transitions`; without their states."""
        batch = super().transitions()
        return batch._replace(action=batch.action["action"]) if self._has_state else batch

    def _with_state(self, method: str, action: Any, state: Any) -> Any:
        if (state is not None) != self._has_state:
            raise TypeError(f"replay.{method}: state must be given if and only if the buffer has a state_space")
        return {"action": action, "state": state} if self._has_state else action

    def _items(self, method: str, lead: tuple[int, ...], *arguments: Any) -> list[Any]:
        try:
            return super()._items(method, lead, *arguments)
        except (TypeError, ValueError) as error:
            if not self._has_state:
                raise
            text = str(error).replace("action['action']", "action", 1).replace("action['state']", "state", 1)
            raise type(error)(text) from None

    def _publish(self, n: int, rows: Rows, priorities: NDArray[np.float64]) -> int:
        """Give the tree the windows that the step of `rows` ended."""
        count = max(n, ~n)
        starts, when = self._end_windows(rows[: 2 * count : 2])
        # By time, as the tree keeps the last of equal rows.
        order = np.argsort(np.concatenate((when, np.arange(count))), kind="stable")
        values = np.zeros(len(starts) + count)
        values[: len(starts)] = self._new_priority
        self._added += count
        self._tree.update(np.concatenate((starts, rows[1 : 2 * count : 2]))[order], values[order])
        return n

    def _end_windows(self, rows: Rows) -> tuple[Rows, Rows]:
        """The first rows of the windows that newest transitions end, and the numbers of these in `rows` [M].

        `rows` is by time, and has no row twice.
        """
        when = np.argsort(rows % self.num_envs, kind="stable")  # from here on by environment
        rows = rows[when]
        envs, t = rows % self.num_envs, np.arange(len(rows))
        terminated, truncated, cut = (column[rows] for column in self._store.columns[3:6])
        over = terminated | truncated
        first = np.ones(len(rows), np.bool_)
        first[1:] = envs[1:] != envs[:-1]

        def before(values: Any, kept: Any) -> Any:
            """What `values` was one step earlier; `kept` [num_envs] is from the call before."""
            return kept[envs] if first.all() else np.where(first, kept[envs], np.roll(values, 1))

        begins = cut | before(over, self._is_over)
        # Steps of the episode up to each transition: from the last t at which one began, maybe before this call.
        longest = int(self._run.max())
        begin = np.where(begins, t, np.where(first, t - self._run[envs], -longest))
        apart = envs * (len(rows) + longest)  # so that all are above those of the environment before
        run: Rows = t + 1 - (np.maximum.accumulate(begin + apart) - apart).astype(np.int64)
        steps = self._last_window(run)
        whole = (steps > self.burn_in) & (over | (steps == self._steps))
        # Episodes that ended, and nobody said so until the next began.
        steps_before = self._last_window(before(run, self._run))
        late = begins & (steps_before > self.burn_in) & ~before(whole, self._is_whole)
        newest = np.append(first[1:], True)[: len(rows)]
        for kept, values in ((self._run, run), (self._is_whole, whole), (self._is_over, over)):
            kept[envs[newest]] = values[newest]
        # A window of n steps starts n - 1 before its newest.
        starts = np.concatenate(
            (rows[late] - steps_before[late] * self.num_envs, rows[whole] - (steps[whole] - 1) * self.num_envs)
        )
        return starts % (self._store.slots * self.num_envs), np.concatenate((when[late], when[whole]))

    def _last_window(self, run: Rows) -> Rows:
        """The steps of the last window of an episode of `run` steps."""
        more = run - self._steps
        return np.where(more > 0, self._steps - -more % self._period, run)

    def _settle(self) -> None:
        store = self._store
        states.settle(self._tree, store.counts, store.start, store.slots, store.most, 0.0)
        store.broken[:] = True
        self._forget_runs()

    def _forget_runs(self, envs: Any = slice(None)) -> None:
        self._run[envs], self._is_whole[envs], self._is_over[envs] = 0, True, False

    def _clear(self) -> None:
        super()._clear()
        self._forget_runs()

    def _most_items(self) -> int:
        # Windows of an episode start a period apart, and each has more than `burn_in` steps that no other episode has.
        apart = min(self._period, self.burn_in + 1)
        return self.num_envs * ((self._most - self.burn_in - 1) // apart + 1)

    def _batch(self, rows: Rows, weights: Any) -> SequenceBatch:
        if self._store.can_read_windows(self.n_step):
            batch, mask = self._store.read_windows(rows, self._steps, weights)
        else:
            batch, mask = self._read_steps(rows, weights)
        action, state = batch.action, None
        if self._has_state:
            action, state = action["action"], self._states(rows)
        _, _, reward, next_obs, terminated, truncated, indices, _, discount = batch
        return SequenceBatch(
            batch.obs, action, reward, next_obs, terminated, truncated, indices, weights, discount, mask, state
        )

    def _read_steps(self, rows: Rows, weights: Any) -> tuple[Batch, Any]:
        """What `Store.read_windows` gives, step by step."""
        store, shape = self._store, (len(rows), self._steps)
        _, _, last = store.returns(rows, self._steps)
        lengths = (last - rows) // self.num_envs % store.slots + 1
        t, end = np.arange(self._steps), store.slots * self.num_envs
        mask = t < lengths[:, None]
        left_out = None if mask.all() else ~mask
        steps = rows[:, None] + (t if left_out is None else np.minimum(t, lengths[:, None] - 1)) * self.num_envs
        steps[steps >= end] -= end
        batch = store.read(steps.reshape(-1), self.n_step, weights)

        def windows(value: Any) -> Any:
            if value is None:  # a stored state, which is not read
                return None
            if isinstance(value, dict):
                return {key: windows(part) for key, part in value.items()}
            if isinstance(value, tuple):
                return tuple(map(windows, value))
            value = value.reshape(*shape, *value.shape[1:])
            if left_out is not None:
                np.asarray(value)[left_out] = 0
            return value

        obs, action, reward, next_obs, terminated, truncated = map(windows, batch[:6])
        indices, discount = batch.indices[:: self._steps].copy(), windows(batch.discount)
        return Batch(obs, action, reward, next_obs, terminated, truncated, indices, weights, discount), mask

    def _states(self, rows: Rows) -> Any:
        arrays = gather_rows(self._store.unread, rows)
        return self._action.join([None] * (len(self._action.leaves) - self._unread) + arrays)["state"]

    def update_priorities(self, indices: Any, td_errors: Any, mask: Any = None) -> int:
        """p = (eta max_t |delta_t| + (1 - eta) mean_t |delta_t| + eps)^alpha of each window, over the steps of `mask`.

        Args:
            indices: [B], the `indices` of a batch.
            td_errors: real [B, any number of steps]: those trained on, usually `length`.
            mask: bool, like td_errors: where there is a step, usually ``batch.mask[:, burn_in:]``; None: everywhere.

        Returns and raises as `PrioritizedReplay.update_priorities`; and ValueError for a window without a step.
        """
        return self._update(*mixed_errors(self.eta, indices, td_errors, mask))

    def _errors(self) -> Any:
        return partial(mixed_errors, self.eta)

    def _config(self) -> dict[str, Any]:
        windows = {"length": self.length, "burn_in": self.burn_in, "overlap": self.overlap, "eta": self.eta}
        return {**super()._config(), **windows}

    def _state(self) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        header, arrays = super()._state()
        runs = {"run": self._run.tolist(), "whole": self._is_whole.tolist(), "over": self._is_over.tolist()}
        return {**header, "runs": runs}, arrays

    def _set_state(self, header: dict[str, Any], arrays: list[NDArray[Any]], fill: Any = None) -> None:
        runs = header.get("runs")
        if type(runs) is not dict or set(runs) != {"run", "whole", "over"}:
            raise ValueError(f"damaged: runs is {runs!r}")
        for name, kind in (("run", int), ("whole", bool), ("over", bool)):
            states.check_list(name, runs[name], kind, header["added"])
        with self._lock:
            super()._set_state(header, arrays, fill)
            self._run[:], self._is_whole[:], self._is_over[:] = runs["run"], runs["whole"], runs["over"]
            # Of a storage folder the first steps of the running window may have been lost.
            lost = self._store.counts - self._last_window(self._run) < self._store.start
            self._forget_runs(lost)
            self._store.broken[lost] = True


def mixed_errors(eta: float, indices: Any, td_errors: Any, mask: Any = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Arguments of `update_priorities` as NumPy arrays [B], an error for each window."""
    where, errors = "replay.update_priorities", to_numpy(td_errors)
    kept = np.ones(errors.shape, np.bool_) if mask is None else to_numpy(mask)
    if errors.ndim != 2 or kept.shape != errors.shape or kept.dtype != np.bool_:
        raise ValueError(
            f"{where}: td_errors must have shape [B, steps] and mask be bool like it, got {errors.shape} and "
            f"{kept.dtype} {kept.shape}"
        )
    if errors.dtype.kind not in "fiu":
        raise ValueError(f"{where}: td_errors must be real numbers, got {errors.dtype}")
    steps = kept.sum(axis=1)
    if not steps.all():
        raise ValueError(f"{where}: mask[{int(steps.argmin())}] must have a step, got none")
    sizes = np.where(kept, np.abs(errors.astype(np.float64)), 0.0)
    mixed = eta * sizes.max(axis=1, initial=0.0) + (1 - eta) * sizes.sum(axis=1) / steps
    return checked_errors(indices, mixed)
