"""Replay buffers: uniform and prioritized, one-step and n-step, on vector environments, each observation stored once.

Storage: one ring of slots per environment, side by side: slot s of environment e is row s * num_envs + e.  A transition
in slot s has its observation there and its next observation in slot s + 1, which is also where the next transition
starts if it goes on from that observation.  If it does not (the episode ended or the environment was reset), slot s + 1
keeps the observation that was reached and the next transition starts in slot s + 2.  A ring has one slot more at its
end, for the next observation of the last slot, so that it is num_envs rows on everywhere, and a batch is one
`gather_rows` of ``(obs, obs[num_envs:], action, ...)``.

A `SumTree` over the rows knows which of them can be drawn: the priority is 0 where no transition starts, or where it or
its next observation has been overwritten.  A column `cut` marks the slots in which no transition goes on from the slot
before: `n_step_gather` stops in front of them.
"""

from __future__ import annotations

import math
import operator
import os
import threading
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.kernels import SumTree, gather_rows, n_step_gather
from fastrl.replay import storage


class Batch(NamedTuple):
    """B transitions: NumPy arrays, or torch tensors if the buffer has a device."""

    obs: Any
    """[B, *shape of an observation], dtype of the space."""
    action: Any
    """[B, *shape of an action]; int64 for discrete actions, else dtype of the space."""
    reward: Any
    """[B] float32; with n_step > 1 of m <= n_step steps: sum_{k<m} gamma^k r_{t+k}."""
    next_obs: Any
    """Like `obs`: the observation really reached after m steps; of the last step of an episode the final one."""
    terminated: Any
    """[B] bool: the last of the m steps ended in a terminal state; nothing is bootstrapped from `next_obs`."""
    truncated: Any
    """[B] bool: a limit cut the episode after the last of the m steps; bootstrap from `next_obs`."""
    indices: Any
    """[B] int64: the rows, for `update_priorities`.  They name rows in host memory and stay on the CPU."""
    weights: Any
    """[B] float32: importance weights in [0, 1], 0 only by underflow; all 1 in a uniform buffer."""
    discount: Any
    """[B] float32: gamma^m (1 - terminated), so that the target is reward + discount * V(next_obs)."""


class ReplayBuffer:
    """The last transitions of `num_envs` environments, drawn uniformly with replacement.

    P(i) = 1 / len(buffer).

    Args:
        capacity: int >= 1.  At least this many transitions are held as long as no episode ends among them; every end of
            an episode takes the place of one more, because its final observation needs a slot of its own.
        obs_space, action_space: of ONE environment: Gymnasium Box, Discrete, MultiDiscrete or MultiBinary, anything
            else with a `shape` and a real `dtype`, or a pair ``(shape, dtype)``.
        num_envs: int >= 1.
        n_step: int >= 1: a batch has the returns of m steps, where m <= n_step is as many as there are before the
            episode ends (the last step of it included), the environment is reset or the newest transition is reached.
            So the last transitions of every episode are drawn too, with their shorter m.
        gamma: in [0, 1]: of these returns and of `Batch.discount`.
        device: None: `sample` returns NumPy arrays.  A torch device or its name: torch tensors there; to a CUDA device
            through pinned memory, without waiting for the copy.  The storage stays in host memory.
        seed: int in [0, 2^64); None draws from the default generator (see `fastrl.manual_seed`).

    Raises:
        TypeError: a Dict, Tuple or other space that is not one array, or a `capacity` or `num_envs` that is no int.
        ValueError: a number out of range, or an unknown device.
        RuntimeError: `device` given, but torch or that device missing.

    One thread may add while others sample: none sees half a transition.  The GIL is not held in the kernels.

    >>> import numpy as np, fastrl
    >>> buffer = fastrl.ReplayBuffer(100, ((3,), np.float32), ((), np.int64), seed=0)
    >>> buffer.add(np.zeros(3), 1, 0.5, np.ones(3), terminated=False, truncated=False)
    >>> buffer.sample(2).next_obs.tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    _stratified = False
    _normalize: Literal["batch", "tree"] = "batch"

    def __init__(
        self,
        capacity: int,
        obs_space: Any,
        action_space: Any,
        num_envs: int = 1,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        device: Any = None,
        seed: int | None = None,
    ) -> None:
        self.capacity = _check_int("capacity", capacity)
        self.num_envs = _check_int("num_envs", num_envs)
        self.n_step = _check_int("n_step", n_step)
        self.gamma = _check_float("gamma", gamma)
        if self.gamma > 1:
            raise ValueError(f"replay: gamma must be in [0, 1], got {gamma}")
        self._obs_shape, self._obs_dtype = _check_space("obs_space", obs_space)
        self._action_shape, self._action_dtype = _check_space("action_space", action_space)
        if self._action_shape == () and self._action_dtype.kind in "iu":
            self._action_dtype = np.dtype(np.int64)  # what indexing with it needs
        # One slot more than transitions: no transition starts where the newest next observation is.
        self._slots = -(-self.capacity // self.num_envs) + 1
        self._envs = np.arange(self.num_envs)
        self._tree = SumTree(self.num_envs * (self._slots + 1), dtype=np.float32, seed=seed)
        self._torch, self.device = _load_torch(device)
        self._lock = threading.Lock()
        self._set_columns(self._new_columns())
        self._pinned = self._torch is not None and self.device.type == "cuda"
        if self._torch is not None:
            for column in self._columns:
                self._torch.from_numpy(column[:0])  # TypeError: torch has no such dtype
        self._slot = np.full(self.num_envs, self._slots - 1)  # where the newest next observation is
        self._broken = np.ones(self.num_envs, np.bool_)  # the next transition must not share that slot
        self._added = 0  # transitions, ever
        self._new_priority = 1.0  # of a new transition

    def __len__(self) -> int:
        """The number of transitions that can be drawn."""
        return len(self._tree)

    def __repr__(self) -> str:
        return (
            f"fastrl.{type(self).__name__}({len(self)} transitions, capacity={self.capacity}, "
            f"num_envs={self.num_envs}, obs={self._obs_dtype}{list(self._obs_shape)}, "
            f"action={self._action_dtype}{list(self._action_shape)})"
        )

    @property
    def beta(self) -> float:
        """The exponent of the importance weights now: 0 in a uniform buffer, so that all of them are 1."""
        return 0.0

    def add(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        next_obs: Any,
        terminated: Any,
        truncated: Any,
        mask: Any = None,
    ) -> None:
        """Store one transition of each environment; the oldest ones make room.

        All or nothing: whatever raises leaves the buffer as it was.

        Args:
            obs: [num_envs, *obs shape]: the observations acted on.
            action: [num_envs, *action shape].
            reward: [num_envs], stored as float32.
            next_obs: like `obs`: the observations REALLY reached.  Where an episode ended the final one, never that of
                the reset after it: Gymnasium's SAME_STEP autoreset has it in ``info["final_obs"]``.
            terminated, truncated: [num_envs] bool; both may be set.
            mask: [num_envs] bool; False leaves an environment out.  Under Gymnasium's NEXT_STEP autoreset the step
                after an episode's end is a dummy, to be left out.

        With num_envs = 1 the leading axis may be left out.  Integers and floats of other widths are converted.

        Raises:
            ValueError: a wrong shape; a dtype or value that does not fit; a reward that is NaN or infinite.
            TypeError: not an array.
        """
        batch = () if self.num_envs == 1 else (self.num_envs,)
        items = (
            self._array("obs", obs, self._obs_dtype, batch + self._obs_shape),
            self._array("action", action, self._action_dtype, batch + self._action_shape),
            self._array("reward", reward, _FLOAT32, batch),
            self._array("next_obs", next_obs, self._obs_dtype, batch + self._obs_shape),
            self._array("terminated", terminated, _BOOL, batch),
            self._array("truncated", truncated, _BOOL, batch),
        )
        if mask is not None:
            mask = self._array("mask", mask, _BOOL, batch)
        if self.num_envs == 1:
            if mask is None or mask:
                self._add_one(*items)
        elif mask is None or mask.all():
            self._add_many(slice(None), *items)
        elif mask.any():
            self._add_many(np.flatnonzero(mask), *(item[mask] for item in items))

    def _add_one(self, *item: Any) -> None:
        # The same as _add_many with one row, without NumPy's cost of indexing by arrays: DQN calls it every step.
        obs, action, reward, next_obs, terminated, truncated = item
        if not math.isfinite(reward):
            raise ValueError(f"replay.add: reward must be finite in float32, got {reward}")
        with self._lock:
            slot = int(self._slot[0])
            # Compared as bytes, so that NaN equals itself.
            if self._broken[0] or self._obs[slot].tobytes() != obs.tobytes():
                slot = (slot + 1) % self._slots
                self._obs[slot] = obs
            after = (slot + 1) % self._slots
            self._obs[slot + 1] = next_obs
            if after == 0:
                self._obs[0] = next_obs
            self._action[slot] = action
            self._reward[slot] = reward
            self._terminated[slot] = terminated
            self._truncated[slot] = truncated
            self._cut[slot] = False  # if it does not go on from the slot before, no transition is there
            self._cut[after] = True
            self._slot[0] = after
            self._broken[0] = terminated or truncated
            self._added += 1
            self._tree.update(np.array((slot, after)), np.array((self._new_priority, 0.0)))

    def _add_many(self, envs: Any, *items: Any) -> None:
        obs, action, reward, next_obs, terminated, truncated = items
        if not np.isfinite(reward).all():
            env = self._envs[envs][~np.isfinite(reward)][0]
            bad = reward[~np.isfinite(reward)][0]
            raise ValueError(f"replay.add: reward[{env}] must be finite in float32, got {bad}")
        n = len(obs)
        with self._lock:
            env, slot = self._envs[envs], self._slot[envs]
            moved = self._broken[envs] | (_bytes(self._obs[slot * self.num_envs + env], n) != _bytes(obs, n)).any(1)
            slot = (slot + moved) % self._slots
            after = (slot + 1) % self._slots
            rows, rows_after = slot * self.num_envs + env, after * self.num_envs + env
            if moved.any():
                self._obs[rows[moved]] = obs[moved]
            self._obs[rows + self.num_envs] = next_obs
            if not after.all():
                self._obs[env[after == 0]] = next_obs[after == 0]
            self._action[rows] = action
            self._reward[rows] = reward
            self._terminated[rows] = terminated
            self._truncated[rows] = truncated
            self._cut[rows] = False  # where it does not go on from the slot before, no transition is there
            self._cut[rows_after] = True
            self._slot[envs] = after
            self._broken[envs] = terminated | truncated
            self._added += n
            priorities = np.zeros(2 * n)
            priorities[:n] = self._new_priority
            self._tree.update(np.concatenate((rows, rows_after)), priorities)

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` transitions, with replacement.  The arrays are new and the caller's own.

        Raises:
            ValueError: nothing has been added yet, or batch_size < 1.
            TypeError: batch_size is not an int.
        """
        tree = self._tree
        with self._lock:
            if not tree.total > 0:
                raise ValueError("replay.sample: the buffer is empty: add transitions before sampling")
            indices, weights = tree.sample_weighted(batch_size, self.beta, self._normalize, stratified=self._stratified)
            if self.n_step == 1:
                obs, action, next_obs, terminated, truncated, reward = self._gather(self._sources, indices)
                discount = np.where(terminated, np.float32(0), np.float32(self.gamma))
            else:
                # Every slot may be read: `cut` is set where the cursor is.
                rewards, terminated, truncated, cut = self._rings
                reward, discount, last = n_step_gather(
                    rewards, terminated, truncated, indices, self._slot, self._slots,
                    gamma=self.gamma, n=self.n_step, cut=cut,
                )  # fmt: skip
                obs, action = self._gather(self._sources[:2], indices)
                next_obs, terminated, truncated = self._gather(self._sources[2:5], last)
        batch = Batch(obs, action, reward, next_obs, terminated, truncated, indices, weights, discount)
        if self.device is None:
            return batch
        # Wrapping NumPy's results costs less than having torch allocate them.
        tensors = [x if isinstance(x, self._torch.Tensor) else self._torch.from_numpy(x) for x in batch]
        if self.device.type != "cpu":
            tensors = [
                x if name == "indices" else x.to(self.device, non_blocking=True)
                for name, x in zip(Batch._fields, tensors, strict=True)
            ]
        return Batch(*tensors)

    def _gather(self, sources: list[NDArray[Any]], rows: NDArray[np.int64]) -> list[Any]:
        if not self._pinned:
            return gather_rows(sources, rows)  # type: ignore[no-any-return]
        # torch does not hand out a pinned block again before the copies from it are done.
        out = [
            self._torch.empty(
                (len(rows), *source.shape[1:]), dtype=self._torch.from_numpy(source[:0]).dtype, pin_memory=True
            )
            for source in sources
        ]
        return gather_rows(sources, rows, out=out)  # type: ignore[no-any-return]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that decides what the buffer will do to one file, checksummed and without pickle.

        Atomic: after a crash at any moment `path` is the old file or the new one (a file ``.NAME.PID.tmp`` may be left
        beside it).  Other threads that add or sample wait meanwhile.

        Raises:
            OSError: the file cannot be written; an earlier one is left as it was.
        """
        with self._lock:
            tree = self._tree.state_dict()
            # Up to the next observation of the last transition in any ring.
            starts = tree["priorities"].reshape(-1, self.num_envs).any(1)
            slots = int(np.flatnonzero(starts).max(initial=-2)) + 2
            rows = slots * self.num_envs
            header = {
                "config": self._config(),
                "slots": slots,
                "slot": self._slot.tolist(),
                "broken": self._broken.tolist(),
                "added": self._added,
                "new_priority": self._new_priority,
                "generator": tree["generator"],
            }
            storage.write(path, header, [column[:rows] for column in (tree["priorities"], *self._columns)])

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on bit for bit where `save` was called, random draws included.

        Whatever raises leaves the buffer as it was.  With seed=None the default generator is set back as well.

        Raises:
            ValueError: not a file of `save`; cut off or changed since; or of a buffer with another class, capacity,
                num_envs, spaces, n_step, gamma, alpha or eps (the message says which).  `device` and the schedule of
                beta may differ.
            OSError: the file cannot be read.
        """
        where = f"replay.load: {os.fspath(path)}"
        with open(path, "rb") as file:
            try:
                reader = storage.Reader(file)
                header = reader.header
                config = self._config()
                differing = [
                    f"{name} {header['config'].get(name)!r} (here {config.get(name)!r})"
                    for name in {**config, **header["config"]}
                    if header["config"].get(name) != config.get(name)
                ]
                if differing:
                    raise ValueError(f"of a buffer with {', '.join(differing)}")
                columns = self._new_columns()
                priorities = np.zeros(self._tree.capacity, np.float32)
                rows = header["slots"] * self.num_envs
                reader.read_into([column[:rows] for column in (priorities, *columns)])
            except ValueError as error:
                raise ValueError(f"{where} is {error}") from None
        tree = {"capacity": self._tree.capacity, "dtype": "float32", "priorities": priorities}
        with self._lock:
            self._tree.load_state_dict({**tree, "generator": header["generator"]})
            self._set_columns(columns)
            self._slot[:] = header["slot"]
            self._broken[:] = header["broken"]
            self._added = header["added"]
            self._new_priority = header["new_priority"]

    def _config(self) -> dict[str, Any]:
        """What a saved state must agree in."""
        return {
            "class": type(self).__name__,
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "n_step": self.n_step,
            "gamma": self.gamma,
            "obs_shape": list(self._obs_shape),
            "obs_dtype": self._obs_dtype.name,
            "action_shape": list(self._action_shape),
            "action_dtype": self._action_dtype.name,
        }

    def _new_columns(self) -> list[NDArray[Any]]:
        rows = self._tree.capacity
        return [
            np.zeros((rows, *self._obs_shape), self._obs_dtype),
            np.zeros((rows, *self._action_shape), self._action_dtype),
            np.zeros(rows, np.float32),
            np.zeros(rows, np.bool_),
            np.zeros(rows, np.bool_),
            np.zeros(rows, np.bool_),
        ]

    def _set_columns(self, columns: list[NDArray[Any]]) -> None:
        self._columns = columns
        self._obs, self._action, self._reward, self._terminated, self._truncated, self._cut = columns
        next_obs = self._obs[self.num_envs :]
        self._sources = [self._obs, self._action, next_obs, self._terminated, self._truncated, self._reward]
        # [slots, num_envs], without the slot at the end.
        self._rings = [c[: -self.num_envs].reshape(-1, self.num_envs) for c in columns[2:]]

    def _array(self, name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """`value` with this dtype and shape, or an error that says what of it is wrong."""
        try:
            if isinstance(value, np.ma.MaskedArray):
                raise TypeError("must not be a masked array, whose mask would be ignored: give filled(value)")
            array = np.asarray(value)
            if array.dtype != dtype:
                array = _cast(array, dtype)
            if array.shape != shape:
                if self.num_envs > 1 or array.shape != (1, *shape):
                    raise ValueError(f"must have shape {shape}, got {array.shape}")
                array = array.reshape(shape)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that requires grad
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"replay.add: {name} {error}") from None
        return array


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
        device: Any = None,
        seed: int | None = None,
        alpha: float = 0.6,
        beta: float = 0.4,
        beta_end: float = 1.0,
        beta_steps: int = 100_000,
        eps: float = 1e-6,
        normalize: Literal["batch", "tree"] = "batch",
    ) -> None:
        self.alpha = _check_float("alpha", alpha)
        self._beta_start, self._beta_end = _check_float("beta", beta), _check_float("beta_end", beta_end)
        self._beta_steps = _check_int("beta_steps", beta_steps)
        self.eps = _check_float("eps", eps)
        if self.eps == 0:
            raise ValueError("replay: eps must be > 0, got 0")
        if normalize not in ("batch", "tree"):
            raise ValueError(f'replay: normalize must be "batch" or "tree", got {normalize!r}')
        self._normalize = normalize
        super().__init__(
            capacity, obs_space, action_space, num_envs, n_step=n_step, gamma=gamma, device=device, seed=seed
        )

    @property
    def beta(self) -> float:
        """The exponent of the importance weights now: beta + (beta_end - beta) min(1, added / beta_steps)."""
        fraction = min(1.0, self._added / self._beta_steps)
        return self._beta_start * (1 - fraction) + self._beta_end * fraction

    def update_priorities(self, indices: Any, td_errors: Any) -> None:
        """p = (|td_error| + eps)^alpha, kept in the normal range of float32, for each row of a batch.

        A row where no transition starts any more (overwritten since it was drawn) is left out; one that a newer
        transition took over meanwhile gets the priority.  Of equal indices the last one wins.

        Args:
            indices: int64 / int32 [B], the `indices` of a batch.
            td_errors: real [B], of any sign; NumPy or torch, on any device.

        Raises:
            ValueError: shapes that differ; a NaN or infinite error, the first is named.
            IndexError: an index outside the buffer.
            In both cases no priority is changed.
        """
        where = "replay.update_priorities"
        rows, errors = _to_numpy(indices), _to_numpy(td_errors)
        if rows.ndim != 1 or errors.shape != rows.shape:
            raise ValueError(
                f"{where}: indices and td_errors must both have shape [B], got {rows.shape} and {errors.shape}"
            )
        if errors.dtype.kind not in "fiu":
            raise ValueError(f"{where}: td_errors must be real numbers, got {errors.dtype}")
        if errors.dtype not in (np.float32, np.float64):
            errors = errors.astype(np.float64)
        with self._lock:
            largest = self._tree.update_from_td_errors(rows, errors, self.alpha, self.eps, keep_zeros=True)
            self._new_priority = max(self._new_priority, largest)

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "alpha": self.alpha, "eps": self.eps}


_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(np.bool_)


def _check_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"replay: {name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"replay: {name} must be >= 1, got {value}")
    return int(value)


def _check_float(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"replay: {name} must be a float, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"replay: {name} must be finite and >= 0, got {value}")
    return float(value)


def _check_space(name: str, space: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an element of the space."""
    try:
        shape, dtype = space if type(space) is tuple else (space.shape, space.dtype)
        shape = tuple(operator.index(n) for n in shape)
        dtype = None if dtype is None else np.dtype(dtype).newbyteorder("=")
    except (AttributeError, TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in "biuf":
        raise TypeError(
            f"replay: {name} must be a Box, Discrete, MultiDiscrete or MultiBinary space, or a pair (shape, dtype) "
            f"with a real dtype, got {space!r}; flatten a Dict or Tuple space"
        )
    if any(n < 1 for n in shape):
        raise ValueError(f"replay: {name} must have no empty axis, got shape {shape}")
    return shape, dtype


def _load_torch(device: Any) -> tuple[Any, Any]:
    """torch and the device, or None and None."""
    if device is None:
        return None, None
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            'replay: a device needs torch: pip install "fastrl-kernels[agents]"; device=None gives NumPy arrays'
        ) from error
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"replay: device must be None or a torch device, got {device!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"replay: device is {device}, but torch finds no CUDA device")
    return torch, device


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A float takes any number, rounded; an integer or a flag only those that it represents."""
    kind = array.dtype.kind
    if kind not in "biufc":
        raise TypeError(f"must be numbers of dtype {dtype}, got dtype {array.dtype}")
    if kind == "c" or (kind == "f" and dtype.kind != "f"):
        raise ValueError(f"must have dtype {dtype}, got {array.dtype}")
    cast = array.astype(dtype)
    if dtype.kind != "f" and not (cast == array).all():
        raise ValueError(f"must fit in dtype {dtype}, got {array.dtype} values from {array.min()} to {array.max()}")
    return cast


def _bytes(array: NDArray[Any], n: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(n, -1).view(np.uint8)


def _to_numpy(array: Any) -> NDArray[Any]:
    if hasattr(array, "detach"):  # a torch tensor; float64 because NumPy has no bfloat16
        array = array.detach()
        array = (array.double() if array.is_floating_point() else array).cpu()
    return np.asarray(array)
