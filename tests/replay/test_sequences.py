"""Sequences for recurrent agents, against windows cut from plain lists of episodes."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_oracle import EVENTS, Envs, Lists, batched, flat
from replay_worlds import RINGS, space_of, with_ring

from fastrl import _backend
from fastrl.replay import SequenceReplay

OBS, ACTION = ((3,), np.float32), ((), np.int64)
STATE = {"h": ((2,), np.float32), "c": ACTION}


def windows(lists, steps, period, burn_in):
    """Of every window that can be drawn, by the number of its first transition: its steps."""
    found, N = {}, len(lists.count)
    for env, chains in enumerate(lists.chains):
        oldest = max(lists.cleared[env], lists.count[env] - lists.share)
        episodes = [[]]
        for i, chain in enumerate(chains):
            for step in chain:
                if step.number // N < lists.cleared[env]:
                    continue  # windows start anew
                episodes[-1].append(step)
                if step.terminated or step.truncated:
                    episodes.append([])
            if i + 1 < len(chains) and episodes[-1]:
                episodes.append([])
        for i, episode in enumerate(episodes):
            over = i + 1 < len(episodes)
            for start in range(0, len(episode), period):
                window = episode[start : start + steps]
                before = start - period + steps  # where the window before ends
                is_last = over and (start == 0 or before < len(episode)) and len(window) > burn_in
                if (len(window) == steps or is_last) and window[0].number // N >= oldest:
                    found[window[0].number] = window
    return found


def state_of(number):
    """What the tests store as the recurrent state before a transition."""
    return np.array([number, -number], np.float32), np.int64(number)


@st.composite
def cases(draw):
    num_envs, length, burn_in = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    steps, frames = length + burn_in, draw(st.sampled_from([1, 1, 3]))
    return {
        "num_envs": num_envs,
        "length": length,
        "burn_in": burn_in,
        "overlap": draw(st.one_of(st.none(), st.integers(0, steps - 1))),
        "capacity": num_envs * draw(st.integers(steps, steps + 12)),
        "frames": frames,
        "kind": draw(st.sampled_from(["box", "dict"])),
        "n": draw(st.sampled_from([1, 3])),
        "alpha": draw(st.sampled_from([0.0, 0.9])),
        "with_state": draw(st.booleans()),
        "ring": draw(st.sampled_from(sorted(RINGS))),
        "seed": draw(st.integers(0, 2**16)),
        "events": draw(
            st.lists(
                st.tuples(
                    st.lists(st.sampled_from(EVENTS), min_size=num_envs, max_size=num_envs),
                    st.sampled_from([*["add"] * 8, "clear", "pickle"]),
                ),
                min_size=1,
                max_size=50,
            )
        ),
    }


def new_buffer(case):
    with with_ring(case["ring"]):
        return SequenceReplay(
            case["capacity"], space_of(case["kind"], case["frames"]), ACTION, case["num_envs"], length=case["length"],
            burn_in=case["burn_in"], overlap=case["overlap"], n_step=case["n"], gamma=0.5, alpha=case["alpha"],
            frame_stack=case["frames"], state_space=STATE if case["with_state"] else None, seed=0,
        )  # fmt: skip


def check(buffer, lists, case, tolerance):
    burn_in, steps = case["burn_in"], case["length"] + case["burn_in"]
    overlap = burn_in if case["overlap"] is None else case["overlap"]
    wanted, held = windows(lists, steps, steps - overlap, burn_in), lists.held()
    assert len(buffer) == len(wanted)
    everything = buffer.transitions()
    assert sorted(everything.indices.tolist()) == sorted(held)
    assert everything.action.tolist() == [held[number][0].action for number in everything.indices.tolist()]
    if not wanted:
        return
    batch = buffer.sample(2 * len(wanted)) if case["alpha"] == 0 else buffer[sorted(wanted)]
    assert set(batch.indices.tolist()) <= set(wanted)
    for b, number in enumerate(batch.indices.tolist()):
        window = wanted[number]
        assert batch.mask[b].tolist() == [t < len(window) for t in range(steps)]
        for t in range(steps):
            got = [*(x[b, t] for x in (*flat(case["kind"], batch.obs), *flat(case["kind"], batch.next_obs)))]
            if t >= len(window):
                assert not any(x.any() for x in got) and not batch.action[b, t] and not batch.discount[b, t]
                continue
            step, last = window[t], held[window[t].number][-1]
            assert [x.tobytes() for x in got] == [x.tobytes() for x in (*step.obs, *last.next_obs)]
            assert batch.action[b, t] == step.action and batch.terminated[b, t] == last.terminated
            returns = sum(0.5**k * s.reward for k, s in enumerate(held[step.number]))
            np.testing.assert_allclose(batch.reward[b, t], returns, **tolerance("float32"))
        if case["with_state"]:
            h, c = state_of(window[0].action)
            np.testing.assert_array_equal(batch.state["h"][b], h)
            assert batch.state["c"][b] == c
    drawn = buffer.sample(4)
    assert set(drawn.indices.tolist()) <= set(wanted)
    errors = np.random.default_rng(0).standard_normal((4, case["length"]))
    mask = drawn.mask[:, burn_in:]
    assert mask.any(axis=1).all() and buffer.update_priorities(drawn.indices, errors, mask) == 0


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_windows_against_whole_episodes(tolerance, case):
    envs = Envs(case["kind"], case["num_envs"], case["frames"], "reset", case["seed"])
    lists = Lists(case["num_envs"], case["capacity"] // case["num_envs"], case["n"], 0.5)
    buffer = new_buffer(case)
    for events, how in case["events"]:
        rows = envs.step(events)
        arguments, kept, said = batched(case["kind"], rows)
        starts = None
        if any(s is not None for s in said):
            starts = [bool(s) if s is not None else c for s, c in zip(said, lists.cut, strict=True)]
        for env, row in enumerate(rows):
            if kept[env]:
                lists.add(env, *row[:6], start=None if starts is None else starts[env])
            else:
                lists.cut[env] = True
        if case["with_state"]:
            h, c = zip(*(state_of(row[1]) for row in rows), strict=True)
            arguments.append({"h": np.stack(h), "c": np.stack(c)})
        buffer.add(*arguments[:6], None if kept.all() else kept, starts, *arguments[6:])
        if how == "clear":
            buffer.clear()
            lists.clear()
        elif how == "pickle":
            with with_ring(case["ring"]):
                buffer = pickle.loads(pickle.dumps(buffer))
        check(buffer, lists, case, tolerance)


def rollout(steps, end_every=10):
    obs = np.arange(steps + 1, dtype=np.float32)[:, None].repeat(3, 1)
    ends = np.arange(steps) % end_every == end_every - 1
    return obs[:-1], np.arange(steps), np.ones(steps), obs[1:], ends, np.zeros(steps, bool)


def test_priorities_mix_the_largest_and_the_mean():
    """p = eta max + (1 - eta) mean over the steps of the mask, then (p + eps)^alpha."""
    buffer = SequenceReplay(
        100, OBS, ACTION, length=4, burn_in=2, eta=0.75, alpha=0.5, eps=1e-9, beta=1.0, beta_end=1.0, seed=0
    )
    buffer.extend(*rollout(20))
    assert len(buffer) == 4  # of each episode [0, 6) and [4, 10)
    errors = np.array([[1.0, -3, 2, 2], [4, 0, 0, 0], [9, 9, 9, np.nan], [-1, 1, -1, 1]])
    mask = np.ones((4, 4), bool)
    mask[2, 1:] = False
    numbers = np.array([0, 4, 10, 14])
    assert buffer.update_priorities(numbers, errors, mask) == 0
    p = np.sqrt([0.75 * 3 + 0.25 * 2, 0.75 * 4 + 0.25 * 1, 9, 1])
    batch = buffer.sample(400)
    which = np.searchsorted(numbers, batch.indices)
    np.testing.assert_allclose(batch.weights, (p.min() / p)[which], rtol=1e-5)
    assert set(np.bincount(which)) <= {
        n for x in 400 * p / p.sum() for n in (int(x) - 1, int(x), int(x) + 1, int(x) + 2)
    }


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("most", [8, 30])
@pytest.mark.parametrize("overlap", [0, 3, 7])
def test_extend_is_add_many_times(state, num_envs, most, overlap):
    """Also where rows are written again within one call, steps are left out, and episodes start or go on unsaid."""
    one, many = (
        SequenceReplay(
            most * num_envs, OBS, ACTION, num_envs, length=5, burn_in=3, overlap=overlap, state_space=ACTION, seed=0
        )
        for _ in range(2)
    )
    rng = np.random.default_rng(most)
    for steps in (1, 7, 60, 0, 200):
        shape = (steps, num_envs)
        obs = rng.standard_normal((steps + 1, num_envs, 3)).astype(np.float32)
        flags = rng.random((4, *shape)) < np.array([0.05, 0.05, 0.95, 0.1])[:, None, None]
        columns = [obs[:-1], rng.integers(9, size=shape), rng.random(shape), obs[1:], *flags]
        if steps == 60:
            columns[6:] = None, None
        hidden = rng.integers(9, size=shape)
        many.extend(*columns, state=hidden)
        for t in range(steps):
            one.add(*(None if c is None else c[t] for c in columns), state=hidden[t])
        assert state(one) == state(many)
    assert len(one)


def test_a_window_keeps_its_priority_when_the_next_episode_starts_unsaid():
    buffer = SequenceReplay(100, OBS, ACTION, length=4, alpha=1.0, eps=1e-9, beta=1.0, beta_end=1.0, seed=0)
    obs, action, reward, next_obs, _, no = rollout(8)
    buffer.extend(obs, action, reward, next_obs, no, no)  # two whole windows
    assert buffer.update_priorities([0, 4], np.array([[3.0] * 4, [2.0] * 4])) == 0
    buffer.extend(obs, action, reward, next_obs, no, no, episode_start=np.arange(8) == 0)
    batch = buffer.sample(200)
    weights = dict(zip(batch.indices.tolist(), batch.weights.tolist(), strict=True))
    new = np.float32(2 / 3)  # new ones enter at the largest priority
    assert weights == pytest.approx({0: new, 4: 1.0, 8: new, 12: new}, rel=1e-5)


@pytest.mark.parametrize("method", ["add", "extend"])
def test_ctrl_c_between_the_ring_and_the_tree(tmp_path, monkeypatch, method):
    """What was drawn still is, nothing else, and windows start anew behind it."""
    buffer = SequenceReplay(20, OBS, ACTION, length=4, seed=0)
    columns = rollout(18, 100)
    buffer.extend(*columns)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(buffer, "_publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            getattr(buffer, method)(*(c[:3] if method == "extend" else c[0] for c in columns))
    added = 18 + (3 if method == "extend" else 1)
    assert set(buffer.sample(200).indices.tolist()) == {n for n in (0, 4, 8, 12) if n >= added - 20}
    buffer.extend(*(c[:4] for c in columns))
    assert set(buffer.sample(200).indices.tolist()) == {n for n in (0, 4, 8, 12, added) if n >= added + 4 - 20}
    buffer.save(tmp_path / "file")
    other = SequenceReplay(20, OBS, ACTION, length=4)
    other.load(tmp_path / "file")
    np.testing.assert_array_equal(buffer.sample(30).obs, other.sample(30).obs)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    plain, buffer = (
        SequenceReplay(64, OBS, ACTION, length=5, state_space=OBS, seed=0, device=d) for d in (None, "cpu")
    )
    for b in (plain, buffer):
        b.extend(*rollout(33, 7), state=np.ones((33, 3)))
    a, b = buffer.sample(9), plain.sample(9)
    for name, tensor, array in zip(a._fields, a, b, strict=True):
        assert isinstance(tensor, torch.Tensor), name
        np.testing.assert_array_equal(tensor.numpy(), array, err_msg=name)
    assert a.obs.shape == (9, 5, 3) and a.mask.dtype == torch.bool
    assert buffer.update_priorities(a.indices, torch.ones(9, 5, requires_grad=True), a.mask) == 0


def test_bad_arguments(tmp_path):
    for arguments, error, message in (
        ({"length": 0}, ValueError, "length must be >= 1, got 0"),
        ({"length": 2, "burn_in": -1}, ValueError, "burn_in must be >= 0, got -1"),
        ({"length": 2, "overlap": 2}, ValueError, "overlap must be less than burn_in . length = 2, got 2"),
        ({"length": 2.0}, TypeError, "length must be an int"),
        ({"length": 2, "eta": 1.5}, ValueError, r"eta must be in \[0, 1\], got 1.5"),
        (
            {"length": 9, "burn_in": 2},
            ValueError,
            r"capacity must be at least num_envs \(burn_in . length\) = 11, got 10",
        ),
        ({"length": 2, "state_space": object()}, TypeError, "state_space must be a Box"),
        ({"length": 2, "state_space": OBS, "action_space": object()}, TypeError, "action_space must be a Box"),
    ):
        with pytest.raises(error, match=f"replay: {message}"):
            SequenceReplay(10, **{"obs_space": OBS, "action_space": ACTION, **arguments})
    buffer = SequenceReplay(10, OBS, ACTION, length=3, state_space=OBS, seed=0)
    step = [c[0] for c in rollout(1)]
    with pytest.raises(
        TypeError, match=r"^replay.add: state must be given if and only if the buffer has a state_space$"
    ):
        buffer.add(*step)
    with pytest.raises(ValueError, match=r"^replay.add: state must have shape \(3,\), got \(2,\)$"):
        buffer.add(*step, state=np.zeros(2))
    with pytest.raises(ValueError, match=r"^replay.extend: state must have shape \(2, 3\), got \(1, 3\)$"):
        buffer.extend(*rollout(2), state=np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"^replay.add: action must have dtype int64, got float64$"):
        buffer.add(step[0], 0.5, *step[2:], state=np.zeros(3))
    deep = SequenceReplay(10, OBS, {"action": ACTION}, length=3, state_space={"state": OBS})
    with pytest.raises(TypeError, match=r"^replay.add: state must be a dict with keys \['state'\], got ndarray$"):
        deep.add(step[0], {"action": 1}, *step[2:], state=np.zeros(3))
    with pytest.raises(ValueError, match=r"^replay.add: state\['state'\] must have shape \(3,\), got \(2,\)$"):
        deep.add(step[0], {"action": 1}, *step[2:], state={"state": np.zeros(2)})
    with pytest.raises(ValueError, match=r"^replay.add: action\['action'\] must have shape \(\), got \(2,\)$"):
        deep.add(step[0], {"action": [1, 2]}, *step[2:], state={"state": np.zeros(3)})
    assert len(buffer) == len(deep) == 0
    with pytest.raises(TypeError, match="state must be given if and only if"):
        SequenceReplay(10, OBS, ACTION, length=3).add(*step, state=np.zeros(3))
    with pytest.raises(ValueError, match="the buffer is empty"):
        buffer.sample(1)
    buffer.extend(*rollout(9, 3), state=np.zeros((9, 3)))
    batch = buffer.sample(4)
    for errors, mask, message in (
        (np.ones(4), None, r"td_errors must have shape \[B, steps\]"),
        (np.ones((4, 3)), np.ones((4, 2), bool), "mask be bool like it"),
        (np.ones((4, 3)), np.ones((4, 3)), "mask be bool like it"),
        (np.ones((4, 3)), np.arange(12).reshape(4, 3) > 2, r"mask\[0\] must have a step"),
        (np.full((4, 3), np.nan), None, r"td_errors\[0\] is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            buffer.update_priorities(batch.indices, errors, mask)
    buffer.save(tmp_path / "file")
    with pytest.raises(ValueError, match="of a buffer with length 3 .here 2."):
        SequenceReplay(10, OBS, ACTION, length=2, state_space=OBS).load(tmp_path / "file")


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("ring", RINGS)
def test_windows_are_those_of_single_steps(num_envs, apart, ring):
    """Copied whole: the bits of step by step, over wraps, ends, cuts and extras, up to the newest."""
    spaces = ({"x": ((3,), np.float32), "y": ((), np.uint8)}, ((), np.int64))
    options = {"length": 37, "overlap": 30, "state_space": ((2,), np.float32), "store_next_obs": apart}
    with with_ring(ring):
        replay = SequenceReplay(400 * num_envs, *spaces, num_envs, **options)
    rng = np.random.default_rng(0)

    def obs():
        return {"x": rng.standard_normal((num_envs, 3), np.float32), "y": rng.integers(256, size=num_envs, dtype="u1")}

    here = obs()
    for _ in range(700):
        reached, terminated, truncated = obs(), *(rng.random((2, num_envs)) < 0.01)
        state, reward = rng.standard_normal((num_envs, 2), np.float32), rng.standard_normal(num_envs)
        cut = rng.random(num_envs) < 0.01
        replay.add(here, rng.integers(9, size=num_envs), reward, reached, terminated, truncated, episode_start=cut,
                   state=state)  # fmt: skip
        over = terminated | truncated | (rng.random(num_envs) < 0.05)
        other = obs()
        here = {key: np.where(over.reshape(-1, *[1] * (x.ndim - 1)), other[key], x) for key, x in reached.items()}
    rows = replay._store.held()
    weights = np.ones(len(rows), np.float32)
    (found, mask), (wanted, wanted_mask) = (
        replay._store.read_windows(rows, 37, weights),
        replay._read_steps(rows, weights),
    )
    lengths = mask.sum(1)
    assert lengths.min() == 1 and lengths.max() == 37 and len(set(lengths)) > 20
    np.testing.assert_array_equal(mask, wanted_mask)
    for name, x, y in zip(found._fields, found, wanted, strict=True):
        for key in x if isinstance(x, dict) else [None]:
            if key != "state":
                a, b = (x, y) if key is None else (x[key], y[key])
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b, err_msg=f"{name} {key}")


@pytest.mark.skipif(_backend.CPU_BACKEND != "cpp", reason="of the compiled ring")
def test_windows_that_do_not_fit_are_refused():
    replay = SequenceReplay(100, ((3,), np.float32), ((), np.int64), length=4)
    store, rows = replay._store, np.zeros(2, np.int64)

    def windows(rows=rows, steps=4, sources=store._obs, outs=None, next_obs=None):
        out = np.empty((2, 4, 3), np.float32)
        return store.ring.windows(rows, steps, 0.9, sources, outs or [out], next_obs or [out])

    windows()
    for bad in (
        {"rows": np.array([0, 10**6])},
        {"rows": np.array([0, -1])},
        {"steps": 5},
        {"steps": 0},
        {"sources": [store._obs[0][:50]]},
        {"sources": [store._obs[0].astype(np.float64)]},
        {"outs": [np.empty((2, 4, 6), np.float32)[..., ::2]]},
        {"outs": [np.empty((2, 4, 3), np.int32)]},
        {"next_obs": [np.empty((2, 3, 3), np.float32)]},
    ):
        with pytest.raises((IndexError, ValueError), match="replay_ring"):
            windows(**bad)
