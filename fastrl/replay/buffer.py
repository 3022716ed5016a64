"""The uniform replay buffer: one-step and n-step, on vector environments, each observation stored once.

`ring.py` says where a transition is.  A `SumTree` over the rows knows which of them can be drawn: the priority is 0
where there is no transition.  A batch is one `gather_rows` of ``(obs, obs[num_envs:], action, ...)``.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from fastrl import _fork
from fastrl.kernels import SumTree, gather_rows, n_step_gather
from fastrl.replay import checks, storage
from fastrl.replay import state as states
from fastrl.replay.batch import Batch
from fastrl.replay.ring import ring_class

_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(np.bool_)
_CHUNK = 1 << 14  # transitions of `extend` between two updates of the tree
_DERIVED = {  # of an instance's attributes those that are made anew for a copy
    "_lock", "_tree", "_ring", "_columns", "_sources", "_first", "_last", "_rings", "_torch", "_rows", "_priorities",
    "_discounts", "_counts", "_start", "_cursor", "_broken",
}  # fmt: skip


class ReplayBuffer:
    """The last transitions of `num_envs` environments, drawn uniformly with replacement.

    P(i) = 1 / len(buffer).

    Args:
        capacity: int >= 1, rounded up to a multiple of num_envs.  Each environment has its share, and once it has added
            as many transitions exactly so many of its newest ones are held, however its episodes end.
        obs_space, action_space: of ONE environment: Gymnasium Box, Discrete, MultiDiscrete or MultiBinary, anything
            else with a `shape` and a real `dtype`, or a pair ``(shape, dtype)``.
        num_envs: int >= 1.
        n_step: int >= 1: a batch has the returns of m steps, where m <= n_step is as many as there are before the
            episode ends (the last step of it included), a new one starts or the newest transition is reached.
            So the last transitions of every episode are drawn too, with their shorter m.
        gamma: in [0, 1]: of these returns and of `Batch.discount`.
        store_next_obs: keep `next_obs` apart.  False stores an observation once where the next transition starts from
            it, byte for byte, and twice where not; if that is most of the time (normalisation or noise between the
            two, transitions in random order) True is as small and faster.  The batches are the same.
        device: None: `sample` returns NumPy arrays.  A torch device or its name: torch tensors there; to a CUDA device
            through pinned memory, without waiting for the copy.  The storage stays in host memory.
        seed: int in [0, 2^64); None draws from the default generator (see `fastrl.manual_seed`).

    Raises:
        TypeError: a Dict, Tuple or other space that is not one array, or a `capacity` or `num_envs` that is no int.
        ValueError: a number out of range, or an unknown device.
        RuntimeError: `device` given, but torch or that device missing.
        MemoryError: with the sum; a buffer larger than the memory of this machine, which fills as it is used, is a
            warning.

    One thread may add while others sample: none sees half a transition.  The GIL is not held in the kernels.  Pickle,
    copy and deepcopy give what `save` and `load` give.

    >>> import numpy as np, fastrl
    >>> buffer = fastrl.ReplayBuffer(100, ((3,), np.float32), ((), np.int64), seed=0)
    >>> buffer.add(np.zeros(3), 1, 0.5, np.ones(3), terminated=False, truncated=False)
    >>> buffer.sample(2).next_obs.tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    _stratified = False
    _normalize: Literal["batch", "tree"] = "batch"
    __iter__ = None  # else Python would iterate by __getitem__

    def __init__(
        self,
        capacity: int,
        obs_space: Any,
        action_space: Any,
        num_envs: int = 1,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        store_next_obs: bool = False,
        device: Any = None,
        seed: int | None = None,
    ) -> None:
        self.capacity = checks.check_int("capacity", capacity)
        self.num_envs = checks.check_int("num_envs", num_envs)
        self.n_step = checks.check_int("n_step", n_step)
        self.gamma = checks.check_float("gamma", gamma)
        if self.gamma > 1:
            raise ValueError(f"replay: gamma must be in [0, 1], got {gamma}")
        self.store_next_obs = checks.check_bool("store_next_obs", store_next_obs)
        self._obs_shape, self._obs_dtype = checks.check_space("obs_space", obs_space)
        self._action_shape, self._action_dtype = checks.check_space("action_space", action_space)
        if self._action_shape == () and self._action_dtype.kind in "iu":
            self._action_dtype = np.dtype(np.int64)  # what indexing with it needs
        self._slots = -(-self.capacity // self.num_envs) + 1  # see ring.py
        self._seed = seed
        self._torch, self.device = checks.load_torch(device)
        self._added = 0  # transitions ever
        self._new_priority = 1.0  # of a new transition
        obs = math.prod(self._obs_shape) * self._obs_dtype.itemsize * (2 if self.store_next_obs else 1)
        action = math.prod(self._action_shape) * self._action_dtype.itemsize
        self._memory = checks.check_memory(self.capacity, self.num_envs, self._slots + 1, (obs, action))
        self._make_storage()

    def _make_storage(self) -> None:
        try:
            self._tree = SumTree(self.num_envs * (self._slots + 1), dtype=np.float32, seed=self._seed)
            columns = self._new_columns()
        except MemoryError:
            raise MemoryError(f"replay: {self._memory}, more than there is") from None
        self._lock = threading.RLock()
        if self._torch is not None:
            for column in columns:
                self._torch.from_numpy(column[:0])  # TypeError: torch has no such dtype
        self._pinned = self._torch is not None and self.device.type == "cuda"
        self._counts, self._start, self._cursor = (np.zeros(self.num_envs, np.int64) for _ in range(3))
        self._broken = np.ones(self.num_envs, np.bool_)
        # What an `add` tells the tree.
        self._rows, self._priorities = np.zeros(2 * self.num_envs, np.int64), np.zeros(2 * self.num_envs)
        self._discounts = np.array((self.gamma, 0), np.float32)
        self._set_columns(columns)
        _fork.outer.add(self._lock)

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
        episode_start: Any = None,
    ) -> None:
        """Store one transition of each environment; the oldest ones make room.

        All or nothing: whatever raises leaves the buffer as it was.  Every array is copied.

        Args:
            obs: [num_envs, *obs shape]: the observations acted on.
            action: [num_envs, *action shape].
            reward: [num_envs], stored as float32.
            next_obs: like `obs`: the observations REALLY reached.  Where an episode ended the final one, never that of
                the reset after it: Gymnasium's SAME_STEP autoreset has it in ``info["final_obs"]``.
            terminated, truncated: [num_envs] bool; both may be set.
            mask: [num_envs] bool; False leaves an environment out.  Under Gymnasium's NEXT_STEP autoreset the step
                after an episode's end is a dummy, to be left out.
            episode_start: [num_envs] bool: this transition does not continue the last one of its environment, so that
                no n-step return goes on into it.  None: it does unless that one was terminated or truncated, a step was
                left out by `mask` since, or `new_episodes` was called.  Whether `obs` equals the last `next_obs` plays
                no part.

        With num_envs = 1 the leading axis may be left out.  Integers and floats of other widths are converted.

        Raises:
            ValueError: a wrong shape; a dtype or value that does not fit; a reward that is NaN or infinite.
            TypeError: not an array.
        """
        with self._lock:
            try:
                n = self._ring.try_add(
                    obs, action, reward, next_obs, terminated, truncated, mask, episode_start, self._new_priority,
                    self._rows, self._priorities,
                )  # fmt: skip
                if n == self.num_envs:  # the usual call, in the fewest steps
                    self._added += n
                    self._tree.update(self._rows, self._priorities)
                    return
                if n is not None:
                    n = self._publish(n, self._rows, self._priorities)
            except BaseException:
                self._settle()
                raise
        if n is None:
            items = self._items("add", (), obs, action, reward, next_obs, terminated, truncated, mask, episode_start)
            n = self._write(1, items)
        if n < 0:
            checks.warn_of_differing("add")

    def extend(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        next_obs: Any,
        terminated: Any,
        truncated: Any,
        mask: Any = None,
        episode_start: Any = None,
    ) -> None:
        """`add` K times in one call, all or nothing: a rollout, an episode, or an offline dataset.

        Args: those of `add` with an axis K of the steps, oldest first, before the others: ``[K, num_envs, ...]``, or
            ``[K, ...]`` with num_envs = 1.  For transitions in no order give ``episode_start=np.ones(K, bool)``.

        Raises: as `add`.
        """
        lead = np.shape(truncated)[:1]
        if not lead:
            raise ValueError("replay.extend: truncated must have shape [K] or [K, num_envs], got ()")
        items = self._items("extend", lead, obs, action, reward, next_obs, terminated, truncated, mask, episode_start)
        if self._write(lead[0], items) < 0:
            checks.warn_of_differing("extend")

    def _items(self, method: str, lead: tuple[int, ...], *arguments: Any) -> list[Any]:
        shapes = (self._obs_shape, self._action_shape, (), self._obs_shape, (), (), (), ())
        dtypes = (self._obs_dtype, self._action_dtype, _FLOAT32, self._obs_dtype, _BOOL, _BOOL, _BOOL, _BOOL)
        return checks.check_items(f"replay.{method}", lead, self.num_envs, shapes, dtypes, arguments)

    def _write(self, steps: int, items: list[Any]) -> int:
        """Store what `_items` gave; negative when it is time to warn."""
        per = max(1, min(steps, _CHUNK // self.num_envs))
        rows, priorities = np.empty(2 * per * self.num_envs, np.int64), np.empty(2 * per * self.num_envs)
        least = 0
        with self._lock:
            try:
                for i in range(0, steps, per):
                    part = [None if item is None else item[i : i + per] for item in items]
                    n = self._ring.write(min(per, steps - i), *part, self._new_priority, rows, priorities)
                    least = min(least, self._publish(n, rows, priorities))
            except BaseException:
                self._settle()
                raise
        return least

    def _publish(self, n: int, rows: NDArray[np.int64], priorities: NDArray[np.float64]) -> int:
        """Give the tree what the ring wrote, which returned `n`."""
        count = max(n, ~n)
        self._added += count
        self._tree.update(rows[: 2 * count], priorities[: 2 * count])
        return n

    def _settle(self) -> None:
        states.settle(self._tree, self._counts, self._start, self._slots, self._new_priority)

    def new_episodes(self) -> None:
        """The next transition of every environment begins an episode: they were reset without an end being added."""
        with self._lock:
            self._broken[:] = True

    def clear(self) -> None:
        """Forget all transitions; the generator and the schedule of beta go on, and old `indices` are stale."""
        with self._lock:
            self._tree.clear()
            self._start[:] = self._counts
            self._broken[:] = True
            self._new_priority = 1.0
            self._set_columns(self._columns)  # a ring without extras

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` transitions, with replacement.  The arrays are new and the caller's own.

        Raises:
            ValueError: nothing has been added yet, or batch_size < 1.
            TypeError: batch_size is not an int.
        """
        tree = self._tree
        with self._lock:
            try:
                rows, weights = tree.sample_weighted(
                    batch_size, self.beta, self._normalize, stratified=self._stratified
                )
            except ValueError:
                if len(tree):
                    raise
                raise ValueError("replay.sample: the buffer is empty: add transitions before sampling") from None
            batch = self._read(rows, weights, self.n_step)
        return self._to_device(batch)

    def __getitem__(self, indices: Any) -> Batch:
        """The transitions of these numbers [B], as `sample` would give them, with weights of 1.

        Raises:
            IndexError: naming the first one that is not held any more, or was never added.
        """
        numbers = checks.to_numpy(indices)
        with self._lock:
            rows, stale = self._locate("replay", numbers)
            if stale:
                b = int(np.argmax(rows >= self._slots * self.num_envs))
                raise IndexError(f"replay: indices[{b}] is {numbers[b]}, a transition that is not held any more")
            batch = self._read(rows, np.ones(len(rows), np.float32), self.n_step)
        return self._to_device(batch)

    def transitions(self) -> Batch:
        """All transitions held, each once and of one step whatever `n_step`, in the order of their `indices`,
        which is of each environment oldest first.
        """
        with self._lock:
            first = np.maximum(self._start, self._counts - self._slots + 1)
            numbers = [
                np.arange(a, b) * self.num_envs + e for e, (a, b) in enumerate(zip(first, self._counts, strict=True))
            ]
            rows, _ = self._ring.locate(np.sort(np.concatenate(numbers)))
            batch = self._read(rows, np.ones(len(rows), np.float32), 1)
        return self._to_device(batch)

    def _locate(self, where: str, numbers: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
        """The rows of numbers, and how many are stale: their rows are ones that never hold a transition."""
        if numbers.ndim != 1:
            raise ValueError(f"{where}: indices must have shape [B], got {numbers.shape}")
        if numbers.size and numbers.dtype.char not in "ilq":
            raise ValueError(f"{where}: indices must have dtype int64 or int32, got {numbers.dtype}")
        rows, stale = self._ring.locate(numbers if numbers.size else np.zeros(0, np.int64))
        if stale < 0:
            raise IndexError(f"{where}: indices[{~stale}] is {numbers[~stale]}, outside the transitions added so far")
        return rows, stale

    def _read(self, rows: NDArray[np.int64], weights: Any, n_step: int) -> Batch:
        if n_step == 1:
            obs, action, next_obs, terminated, truncated, reward = self._gather(self._sources, rows)
            discount = self._discounts.take(np.asarray(terminated).view(np.int8))
            last = rows
        else:
            rewards, ends, limits, cut = self._rings
            reward, discount, last = n_step_gather(
                rewards, ends, limits, rows, self._cursor, self._slots, gamma=self.gamma, n=n_step, cut=cut
            )
            obs, action = self._gather(self._first, rows)
            next_obs, terminated, truncated = self._gather(self._last, last)
        indices = self._ring.finish(rows, last, next_obs)
        return Batch(obs, action, reward, next_obs, terminated, truncated, indices, weights, discount)

    def _to_device(self, batch: Batch) -> Batch:
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

        Atomic: after a crash at any moment `path` is the old file or the new one (a file ``.NAME.*.fastrl-tmp`` may be
        left beside it, which the next save removes).  Other threads that add or sample wait meanwhile.

        Raises:
            OSError: the file cannot be written; an earlier one is left as it was.
        """
        with self._lock:
            header, arrays = self._state()
            storage.write(path, header, arrays)

    def load(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Go on bit for bit where `save` was called, random draws included; `path` may be a file opened to be read.

        Whatever raises leaves the buffer as it was.  With seed=None the default generator is set back as well.  Files
        of before `store_next_obs` are read too; their transitions get new numbers.

        Raises:
            ValueError: not a file of `save`; cut off or changed since; or of a buffer with another class, capacity,
                num_envs, spaces, n_step, gamma, store_next_obs, alpha or eps (`device` and beta may differ).
            OSError: the file cannot be read.
        """
        if isinstance(path, (str, os.PathLike)):
            with open(path, "rb") as file:
                return self.load(file)
        where = f"replay.load: {path.name}"
        try:
            columns = [np.zeros(self._tree.capacity, np.float32), *self._new_columns()]
            header, arrays = states.read(storage.Reader(path), self._config(), columns, self.num_envs)
            self._set_state(header, arrays)
        except ValueError as error:
            raise ValueError(f"{where} is {error}") from None
        except (TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}") from None

    def _config(self) -> dict[str, Any]:
        """What a saved state must agree in."""
        return {
            "class": type(self).__name__,
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "n_step": self.n_step,
            "gamma": self.gamma,
            "store_next_obs": self.store_next_obs,
            "obs_shape": list(self._obs_shape),
            "obs_dtype": self._obs_dtype.name,
            "action_shape": list(self._action_shape),
            "action_dtype": self._action_dtype.name,
        }

    def _state(self) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """The header, and views of: priorities, the columns, which rows have an extra, extras."""
        tree = self._tree.state_dict()
        rows = states.saved_rows(self._counts, self._slots)
        where, extras = self._ring.extras()
        has_extra = np.zeros(rows, np.bool_)
        has_extra[where] = True
        header = {
            "config": self._config(),
            "layout": states.LAYOUT,
            "added": self._counts.tolist(),
            "start": self._start.tolist(),
            "broken": self._broken.tolist(),
            "steps": self._added,
            "extras": len(where),
            "new_priority": self._new_priority,
            "generator": tree["generator"],
        }
        return header, [*(column[:rows] for column in (tree["priorities"], *self._columns)), has_extra, extras]

    def _set_state(self, header: dict[str, Any], arrays: list[NDArray[Any]]) -> None:
        """Go on from what `states.read` gave."""
        priorities, *columns, has_extra, extras = arrays
        tree = {"capacity": self._tree.capacity, "dtype": "float32", "priorities": priorities}
        where = np.flatnonzero(has_extra)
        with self._lock:
            try:
                self._tree.load_state_dict({**tree, "generator": header["generator"]})
            except (TypeError, ValueError) as error:
                raise ValueError(f"damaged: {error}") from None
            self._counts[:], self._start[:] = header["added"], header["start"]
            self._cursor[:] = self._counts % self._slots
            self._broken[:] = header["broken"]
            self._set_columns(columns)
            self._ring.set_extras(where, extras)
            self._added = header["steps"]
            self._new_priority = header["new_priority"]

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            kept = {name: value for name, value in self.__dict__.items() if name not in _DERIVED}
            header, arrays = self._state()
            kept["_saved"] = header, [array.copy() for array in arrays]
            return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        header, arrays = kept["_saved"]
        self.__dict__.update((name, value) for name, value in kept.items() if name != "_saved")
        self._torch, _ = checks.load_torch(self.device)
        self._make_storage()
        rows = self._tree.capacity
        whole = [np.zeros((rows, *array.shape[1:]), array.dtype) for array in arrays[:-1]]
        for column, array in zip(whole, arrays, strict=False):
            column[: len(array)] = array
        self._set_state(header, [*whole, arrays[-1]])

    def _new_columns(self) -> list[NDArray[Any]]:
        rows = self.num_envs * (self._slots + 1)
        shapes: list[tuple[tuple[int, ...], Any]] = [
            (self._obs_shape, self._obs_dtype),
            (self._action_shape, self._action_dtype),
            ((), np.float32),
            ((), np.bool_),
            ((), np.bool_),
            ((), np.bool_),
        ]
        if self.store_next_obs:
            shapes.append((self._obs_shape, self._obs_dtype))
        return [np.zeros((rows, *shape), dtype) for shape, dtype in shapes]

    def _set_columns(self, columns: list[NDArray[Any]]) -> None:
        self._columns = columns
        obs, action, reward, terminated, truncated = columns[:5]
        apart = columns[6] if self.store_next_obs else None
        next_obs = obs[self.num_envs :] if apart is None else apart
        self._sources = [obs, action, next_obs, terminated, truncated, reward]
        self._first, self._last = self._sources[:2], self._sources[2:5]
        # [slots, num_envs], without the slot at the end.
        self._rings = [c[: -self.num_envs].reshape(-1, self.num_envs) for c in columns[2:6]]
        per_env = self._counts, self._start, self._cursor, self._broken
        self._ring = ring_class()(obs, apart, *columns[1:6], *per_env)
