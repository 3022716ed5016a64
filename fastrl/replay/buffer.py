"""The uniform replay buffer: one-step and n-step, on vector environments, each observation stored once.

`store.py` has the transitions.  A `SumTree` over their rows knows which of them can be drawn: the priority is 0 where
there is none.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastrl import _fork
from fastrl.kernels import SumTree
from fastrl.replay import checks
from fastrl.replay import state as states
from fastrl.replay.batch import Batch, to_device
from fastrl.replay.mapped import Closed, Folder
from fastrl.replay.samplers import ReplaySampler, SamplerLanes
from fastrl.replay.saved import Saved
from fastrl.replay.shared import ReplayWriter, WriterLanes
from fastrl.replay.spaces import Space
from fastrl.replay.store import Store


class ReplayBuffer(Saved):
    """The last transitions of `num_envs` environments, drawn uniformly with replacement.

    P(i) = 1 / len(buffer).

    Args:
        capacity: int >= 1, rounded up to a multiple of num_envs.  Each environment has its share, and once it has added
            as many transitions exactly so many of its newest ones are held, however its episodes end.
        obs_space, action_space: of ONE environment: Gymnasium Box, Discrete, MultiDiscrete or MultiBinary, anything
            else with a `shape` and a real `dtype`, a pair ``(shape, dtype)``, or a Gymnasium Dict or Tuple or a dict of
            these, to any depth.  Elements of a Dict or Tuple are dicts or tuples of arrays, here and in a batch.
        num_envs: int >= 1.
        n_step: int >= 1: a batch has the returns of m steps, where m <= n_step is as many as there are before the
            episode ends (the last step of it included), a new one starts or the newest transition is reached.
            So the last transitions of every episode are drawn too, with their shorter m.
        gamma: in [0, 1]: of these returns and of `Batch.discount`.
        frame_stack: int >= 1: observations are stacks of so many frames along their first axis, the newest last, as
            Gymnasium's FrameStackObservation gives them, and each frame is stored once.  `next_obs` must be `obs`
            shifted by one frame; batches have the stacks that were given, whatever an episode's first ones are padded
            with.  With a Dict or Tuple every array is such a stack.
        store_next_obs: keep `next_obs` apart.  False stores an observation once where the next transition starts from
            it, byte for byte, and twice where not; if that is most of the time (normalisation or noise between the
            two, transitions in random order) True is as small and faster.  The batches are the same.
        storage: None for memory, or a folder whose files are mapped into it: see `flush`.  One that is not there or is
            empty is made; another one has to be that of a buffer with the same arguments (`device`, `seed` and beta may
            differ), which goes on from its last flush.
        device: None: `sample` returns NumPy arrays.  A torch device or its name: torch tensors there; to a CUDA device
            through pinned memory, without waiting for the copy.  The storage stays in host memory.
        seed: int in [0, 2^64); None draws from the default generator (see `fastrl.manual_seed`).

    Raises:
        TypeError: a space that has other parts than arrays of numbers, or a `capacity` or `num_envs` that is no int.
        ValueError: a number out of range, spaces that are no such stacks, `store_next_obs` with stacks, an unknown
            device, or a `storage` with something else in it, which is left as it was.
        OSError: no room on the disk of `storage`, no folder to make it in, or another process has it open
            (BlockingIOError).
        RuntimeError: `device` given, but torch or that device missing; `storage` on Windows.
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

    _draws_rows = True  # each transition by itself
    _chunk = 1 << 14  # transitions of `extend` between two updates of the tree
    _unread = 0  # see Store
    _stratified = False
    _normalize: Literal["batch", "tree"] = "batch"
    __iter__ = None  # else Python would iterate by __getitem__
    _update: Any = None  # priorities of indices [B] by their errors
    _lanes: WriterLanes | None = None
    _desk: SamplerLanes | None = None

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
    ) -> None:
        self.capacity = checks.check_int("capacity", capacity)
        self.num_envs = checks.check_int("num_envs", num_envs)
        self.n_step = checks.check_int("n_step", n_step)
        self.gamma = checks.check_float("gamma", gamma)
        if self.gamma > 1:
            raise ValueError(f"replay: gamma must be in [0, 1], got {gamma}")
        self.store_next_obs = checks.check_bool("store_next_obs", store_next_obs)
        self.frame_stack = checks.check_int("frame_stack", frame_stack)
        if self.frame_stack > 256:
            raise ValueError(f"replay: frame_stack must be at most 256, got {frame_stack}")
        if self.frame_stack > 1 and self.store_next_obs:
            raise ValueError("replay: store_next_obs must be False with frame_stack, which stores each frame once")
        self._obs = Space("obs_space", obs_space, frames=self.frame_stack)
        self._action = Space("action_space", action_space, index=True)
        self._is_single = self._obs.is_single and self._action.is_single
        self._seed = seed
        self._torch, self.device = checks.load_torch(device)
        self._added = 0  # transitions ever
        self._new_priority = 1.0  # of a new transition
        self._most = -(-self.capacity // self.num_envs)  # transitions of each environment
        obs = self._obs.nbytes * (2 if self.store_next_obs else 1)
        slots = self._most + self.frame_stack + 1
        sizes = obs, self._action.nbytes
        self._memory = checks.check_memory(self.capacity, self.num_envs, slots, sizes, warn=storage is None)
        self._path = storage
        self._make_storage()
        if self._folder is not None:
            self._open_folder()

    def _make_storage(self) -> None:
        pinned = self._torch if self._torch is not None and self.device.type == "cuda" else None
        try:
            self._store = Store(
                self._obs, self._action, self.num_envs, self._most, store_next_obs=self.store_next_obs,
                gamma=self.gamma, unread=self._unread, pinned=pinned,
            )  # fmt: skip
            self._tree = SumTree(self._store.rows, dtype=np.float32, seed=self._seed)
            self._folder = None if self._path is None else Folder(self._path, self._config(), self._store.specs())
            if self._folder is None:
                self._store.set_columns(self._store.new_columns())
            else:
                self._store.counts = self._folder.added
                self._store.set_columns(self._folder.columns)
        except MemoryError:
            raise MemoryError(f"replay: {self._memory}, more than there is") from None
        self._ring = self._store.ring
        self._lock = threading.RLock()
        if self._torch is not None:
            for leaf in (*self._obs.leaves, *self._action.leaves):
                self._torch.from_numpy(np.zeros(0, leaf.dtype))  # TypeError: torch has no such dtype
        # What an `add` tells the tree.
        self._rows, self._priorities = np.zeros(2 * self.num_envs, np.int64), np.zeros(2 * self.num_envs)
        _fork.outer.add(self._lock)

    def __len__(self) -> int:
        """The number of transitions that can be drawn."""
        return len(self._tree)

    def __repr__(self) -> str:
        held = "closed" if isinstance(self._tree, Closed) else f"{len(self)} transitions"
        return (
            f"fastrl.{type(self).__name__}({held}, capacity={self.capacity}, "
            f"num_envs={self.num_envs}, obs={self._obs}, action={self._action})"
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
        if not self._is_single:
            given = obs, action, next_obs
            space, n = self._obs, self.num_envs
            obs, action, next_obs = space.pack(obs, n), self._action.pack(action, n), space.pack(next_obs, n)
        with self._lock:
            try:
                n = self._ring.try_add(
                    obs, action, reward, next_obs, terminated, truncated, mask, episode_start, self._new_priority,
                    self._rows, self._priorities,
                )  # fmt: skip
                if n == self.num_envs and self._draws_rows:  # the usual call, in the fewest steps
                    self._added += n
                    self._tree.update(self._rows, self._priorities)
                    return
                if n is not None:
                    n = self._publish(n, self._rows, self._priorities)
            except BaseException:
                self._settle()
                raise
        if n is None:
            if not self._is_single:
                obs, action, next_obs = given
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
        items = checks.check_items(f"replay.{method}", lead, self.num_envs, self._obs, self._action, arguments)
        if self.frame_stack > 1:
            i = self._ring.unshifted(len(items[0]), items[0], items[3], items[6])
            if i >= 0:
                at = checks.position(i, lead, self.num_envs)
                raise ValueError(
                    f"replay.{method}: next_obs{at} must be obs shifted by one frame (next_obs[:-1] == obs[1:], "
                    f"frame_stack={self.frame_stack}); where an episode ended it is the final observation, not that of "
                    "the reset"
                )
        return items

    def _write(self, steps: int, items: list[Any]) -> int:
        """Store what `_items` gave; negative when it is time to warn."""
        per = max(1, min(steps, self._chunk // self.num_envs))
        rows, priorities = np.empty(2 * per * self.num_envs, np.int64), np.empty(2 * per * self.num_envs)
        least = 0
        with self._lock:
            try:
                for i in range(0, steps, per):
                    part = [None if item is None else item[i : i + per] for item in items]
                    n = self._ring.write(
                        min(per, steps - i), 0, self.num_envs, *part, self._new_priority, rows, priorities
                    )
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
        store = self._store
        states.settle(self._tree, store.counts, store.start, store.slots, store.most, self._new_priority)

    def writers(self, n: int, *, steps: int = 256) -> list[ReplayWriter]:
        """For `n` other processes, spawned or forked, that add to this buffer: writer w has the environments from
        w * num_envs / n on.  What they add is taken in by the next `sample`, `transitions`, `save` or `receive`.

        Args:
            steps: int >= 1: those that a writer may be ahead before it waits.

        Raises:
            ValueError: `n` does not divide num_envs, or the buffer has writers already or is closed.
            OSError: no room in the shared memory.
            RuntimeError: an install without the compiled extension, or Windows.
        """
        n, steps = checks.check_int("n", n), checks.check_int("steps", steps)
        if self.num_envs % n:
            raise ValueError(f"replay.writers: n must divide num_envs = {self.num_envs}, got {n}")
        if self._lanes is not None:
            raise ValueError("replay.writers: the buffer has writers already")
        with self._lock:
            len(self._tree)  # a closed buffer says so
            # `_publish` of sequences sees no row twice.
            self._lanes = WriterLanes(self._obs, self._action, self.num_envs, n, min(steps, self._most))
        return self._lanes.writers

    def receive(self) -> int:
        """Take in what the writers have added; how many steps of one writer that was."""
        if self._lanes is None:
            return 0
        with self._lock:
            return self._lanes.receive(self._store, self._write_lane)

    def samplers(self, n: int, batch_size: int, *, ahead: int = 2, min_size: int = 1) -> list[ReplaySampler]:
        """For `n` other processes, spawned or forked, that draw from this buffer: see `serve`.

        Args:
            batch_size: int >= 1: of each of their batches.
            ahead: int >= 1: batches that are drawn for a sampler before it asks for them.
            min_size: int >= 1: a `len` of the buffer below which none is drawn.

        Raises:
            ValueError: `min_size` is more than the buffer can have, or it has samplers already or is closed.
            OSError: no room in the shared memory.
            RuntimeError: an install without the compiled extension, or Windows.
        """
        n, batch_size = checks.check_int("n", n), checks.check_int("batch_size", batch_size)
        ahead, min_size = checks.check_int("ahead", ahead), checks.check_int("min_size", min_size)
        if self._desk is not None:
            raise ValueError("replay.samplers: the buffer has samplers already")
        if min_size > self._most_items():
            raise ValueError(
                f"replay.samplers: min_size must be at most {self._most_items()}, all that the buffer can "
                f"have, got {min_size}"
            )
        device = None if self.device is None else str(self.device)
        with self._lock:
            len(self._tree)  # a closed buffer says so
            template = self._draw(np.zeros(0, np.int64), np.zeros(0, np.float32))
            self._desk = SamplerLanes(template, n, batch_size, ahead, min_size, device, self._errors())
        return self._desk.samplers

    def serve(self) -> int:
        """`receive`, then set the priorities that samplers have sent and draw the batches that they wait for.

        To be called again and again, by a loop of this process or a thread of it.

        Returns:
            The steps, updates and batches that there were; 0: nobody waited.
        """
        count = self.receive()
        if self._desk is not None:
            with self._lock:
                count += self._desk.serve(self, self._sample, self._update)
        return count

    def _most_items(self) -> int:
        """The largest `len` that there can be."""
        return self._most * self.num_envs

    def _errors(self) -> Any:
        """What makes indices and errors [B] of the arguments of `update_priorities`; None: there is none."""
        return None

    def _write_lane(self, steps: int, first: int, envs: int, items: list[Any]) -> None:
        rows, priorities = np.empty(2 * steps * envs, np.int64), np.empty(2 * steps * envs)
        try:
            n = self._ring.write(steps, first, envs, *items, self._new_priority, rows, priorities)
            self._publish(n, rows, priorities)
        except BaseException:
            self._settle()
            raise

    def new_episodes(self) -> None:
        """The next transition of every environment begins an episode: they were reset without an end being added.

        Of a writer's environments that is the first one that it has not added yet.
        """
        with self._lock:
            self.receive()
            self._break_episodes()

    def _break_episodes(self) -> None:
        self._store.broken[:] = True
        if self._lanes is not None:
            self._lanes.begins[:] = True

    def clear(self) -> None:
        """Forget all transitions, those that writers have added included; what comes next begins episodes.

        The generator and the schedule of beta go on, and old `indices` are stale.
        """
        with self._lock:
            self.receive()
            self._clear()

    def _clear(self) -> None:
        self._tree.clear()
        self._store.start[:] = self._store.counts
        self._break_episodes()
        self._new_priority = 1.0
        self._store.set_columns(self._store.columns)  # a ring without extras
        self._ring = self._store.ring

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` transitions, with replacement.  The arrays are new and the caller's own.

        Raises:
            ValueError: nothing has been added yet, or batch_size < 1.
            TypeError: batch_size is not an int.
        """
        if self._lanes is not None:
            self.receive()
        with self._lock:
            batch = self._sample(batch_size)
        return self._to_device(batch)  # type: ignore[no-any-return]

    def _sample(self, batch_size: int) -> Any:
        tree = self._tree
        try:
            rows, weights = tree.sample_weighted(batch_size, self.beta, self._normalize, stratified=self._stratified)
        except ValueError:
            if len(tree):
                raise
            raise ValueError("replay.sample: the buffer is empty: add transitions before sampling") from None
        return self._draw(rows, weights)

    def __getitem__(self, indices: Any) -> Batch:
        """The transitions of these numbers [B], as `sample` would give them, with weights of 1.

        Raises:
            IndexError: naming the first one that is not held any more, or was never added.
        """
        numbers = checks.to_numpy(indices)
        with self._lock:
            checks.check_indices("replay", numbers)
            rows, stale = self._locate("replay", numbers)
            if stale:
                b = int(np.argmax(rows >= self._store.slots * self.num_envs))
                raise IndexError(f"replay: indices[{b}] is {numbers[b]}, a transition that is not held any more")
            batch = self._batch(rows, np.ones(len(rows), np.float32))
        return self._to_device(batch)  # type: ignore[no-any-return]

    def transitions(self) -> Batch:
        """All transitions held, each once and of one step whatever `n_step`, in the order of their `indices`,
        which is of each environment oldest first.
        """
        self.receive()
        with self._lock:
            rows = self._store.held()
            batch = self._store.read(rows, 1, np.ones(len(rows), np.float32))
        return self._to_device(batch)  # type: ignore[no-any-return]

    def _locate(self, where: str, numbers: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
        """The rows of checked numbers, and how many are stale: their rows are ones that never hold a transition."""
        rows, stale = self._ring.locate(numbers if numbers.size else np.zeros(0, np.int64))
        if stale < 0:
            raise IndexError(f"{where}: indices[{~stale}] is {numbers[~stale]}, outside the transitions added so far")
        return rows, stale

    def _draw(self, rows: NDArray[np.int64], weights: Any) -> Any:
        """The batch that `sample` gives of these rows."""
        return self._batch(rows, weights)

    def _batch(self, rows: NDArray[np.int64], weights: Any) -> Any:
        return self._store.read(rows, self.n_step, weights)

    def _to_device(self, batch: Any) -> Any:
        if self.device is None:
            return batch
        if self._draws_rows and self.device.type == "cpu" and self._is_single:  # in the fewest steps
            # Wrapping NumPy's results costs less than having torch allocate them.
            return Batch(*[self._torch.from_numpy(x) for x in batch])
        return to_device(batch, self._torch, self.device)
