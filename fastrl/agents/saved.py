"""Agents from checkpoints, and copies of agents; what the JSON has to hold is checked before an agent is made of it."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle  # type: ignore[import-untyped]  # Gymnasium needs it, so it is there
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from fastrl.agents.checkpoint import Checkpoint
from fastrl.agents.config import InputError, make_config, settings_of
from fastrl.agents.env_config import EnvConfig, digest, told, told_of
from fastrl.agents.network_kinds import OwnNetwork
from fastrl.agents.spaces import OnlySpaces, check_alike, space_of

if TYPE_CHECKING:
    from fastrl.agents.agent import Agent

A = TypeVar("A", bound="Agent[Any]")

COUNTERS = ("steps", "total_steps", "schedule_steps", "n_updates")
TYPES = {"algorithm": str, "env": (str, type(None)), "made_from_id": bool, "network": bool, "config": dict}


def restored(
    cls: type[A], checkpoint: Checkpoint, env: Any = None, device: str | None = None, network: Any = None
) -> A:
    """The agent of a checkpoint, as `Agent.load` gives it; raises InputError."""
    saved, where, versions = checkpoint.config, f"checkpoint {checkpoint.folder}", checkpoint.versions()
    if saved.get("algorithm") != cls.algorithm:
        raise InputError(f"{where} is of algorithm {saved.get('algorithm')!r}, not {cls.algorithm!r}")
    check_config(saved, where)
    if saved["network"] != (network is not None):
        wanted = "give `network` again, because the agent" if saved["network"] else "`network` given, but the agent"
        raise InputError(f"{where}: {wanted} was made with {'one' if saved['network'] else 'none'}")
    absent = isinstance(env, OnlySpaces)
    if env is None and not saved["made_from_id"]:
        raise InputError(f"{where}: give `env`, because the agent was not made from an id")
    if env is None or isinstance(env, (str, EnvConfig)):
        env = env_of(saved, env, where)
    settings = settings_of(cls.config_class, saved["config"])
    try:
        config = make_config(cls.config_class, settings, where)
    except InputError as error:
        raise InputError(f"{error}{versions}") from None
    missing = [f.name for f in fields(cls.config_class) if f.name not in settings]
    if missing:
        warnings.warn(f"{where} lacks {', '.join(missing)}; the defaults are used{versions}", stacklevel=4)
    if not isinstance(env, (str, EnvConfig)):  # it need not hold as many as were saved
        config = replace(config, num_envs=env.num_envs if isinstance(env, VectorEnv) else 1)
    agent = cls(env, config if device is None else replace(config, device=device), network=network)
    if agent.envs.env_id != saved["env"]:
        raise InputError(f"{where} is of {saved['env']}, not {agent.envs.env_id}")
    if saved.get("observation_space") is not None and not absent:  # an earlier version did not keep them
        mine = only_spaces(saved, where)
        given = agent.envs.raw_space, agent.envs.action_space
        check_alike(f"{where}: env", given, (mine.single_observation_space, mine.single_action_space))
    try:
        check_state(checkpoint.state, as_json(agent._state()[0]))
        if not absent:
            check_obs(checkpoint, agent.envs.obs)
        if agent.buffer is not None and saved.get("replay", True) and not absent:
            if checkpoint.replay is None:
                raise InputError("replay is missing")
            agent.buffer.load(checkpoint.replay)
        agent._load_state(checkpoint.state, checkpoint.tensors)
        agent._check_weights()
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        what = " ".join(str(error).split())
        what = f"no {what}" if isinstance(error, KeyError) else what
        raise InputError(f"{where} does not fit its config.json: {what}{versions}") from error
    agent.run_folder = None if absent else checkpoint.folder.parent.resolve()
    return agent


def only_spaces(saved: Mapping[str, Any], where: str) -> OnlySpaces:
    """What stands for the environments of a config.json; raises InputError."""
    if "observation_space" not in saved:
        raise InputError(f"{where} was written by a version that did not keep the spaces; give `env`")
    try:
        spaces = space_of(saved["observation_space"]), space_of(saved["action_space"])
        return OnlySpaces(saved["env"], spaces, int(saved["config"]["num_envs"]))
    except (AssertionError, ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{where}: config.json has no usable spaces: {type(error).__name__}: {what}") from error


def kept(spec: Any) -> dict[str, Any]:
    """What a checkpoint keeps of an `EnvConfig` besides its id; of an environment that was given, for people alone."""
    if isinstance(spec, EnvSpec):
        kwargs, wrappers = told(spec)
        return {"given": {"env_kwargs": kwargs, "wrappers": wrappers}} if kwargs or wrappers else {}
    if not isinstance(spec, EnvConfig) or not (spec.kwargs or spec.wrappers):
        return {}
    return {"env_kwargs": dict(spec.kwargs or {}), "wrappers": list(spec.wrappers or ())}


def described(agent: Any) -> dict[str, Any]:
    """What a run is of, for its run.json: for people, `fastrl list` and `plot`; no agent is made of it."""
    values = {
        "algorithm": agent.algorithm,
        "env": agent.envs.env_id,
        "env_kwargs": {},
        "wrappers": [],
        **kept(agent.envs.spec),
        "network": _described_network(agent),
        "seed": agent.config.seed,
        "config": asdict(agent.config),
    }
    if not agent.envs.made_from_id:
        try:
            values["given"] = told_of(agent._made_from)
        except Exception:  # the environment's own, and no reason not to train in it
            name = type(agent._made_from).__name__
            values["given"] = {"name": name, "env_kwargs": {}, "wrappers": [], "unknown": [name]}
    return values


def _described_network(agent: Any) -> str | None:
    """Class and size of the user's own modules, and a digest of what they are made of; None: there are none."""
    if agent._network is None:
        return None
    parts = agent._parts().items()
    modules = [part.module for name, part in parts if isinstance(part, OwnNetwork) and "target" not in name]
    names = " ".join(dict.fromkeys(type(module).__name__ for module in modules))
    number = sum(p.numel() for module in modules for p in module.parameters())
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(modules))  # another in every process
    return f"{names} of {number:,} parameters ({digest(text.encode())})"


def env_of(saved: Mapping[str, Any], given: str | EnvConfig | None, where: str) -> str | EnvConfig:
    """The environment of a config.json, where `given` does not say otherwise; raises InputError.

    Whoever can write a checkpoint must not choose what code is run: what imports anything has to be `given` again.
    """
    try:
        config = EnvConfig(saved["env"], saved.get("env_kwargs"), saved.get("wrappers"))
    except (InputError, TypeError) as error:
        raise InputError(f"{where}: config.json has no usable environment: {error}") from None
    repeated: list[str] = []
    if given is not None:
        given = EnvConfig(given) if isinstance(given, str) else given
        kwargs = config.kwargs if given.kwargs is None else given.kwargs
        config = EnvConfig(given.id, kwargs, config.wrappers if given.wrappers is None else given.wrappers)
        repeated = [given.id, *(given.wrappers or ())]
    unsure = [part for part in config.imports() if part not in repeated]
    if config.id in unsure:
        module, _, _ = config.id.partition(":")
        raise InputError(
            f"{where} is of {config.id}, which imports the module {module!r}; "
            f"if that is meant, repeat it: env={config.id!r}, or --env {config.id}"
        )
    if unsure:
        wrappers = list(config.wrappers or ())
        raise InputError(
            f"{where} has the wrapper {unsure[0]}, which runs code that was not chosen here; if that is meant, repeat "
            f"all of them: env=EnvConfig({config.id!r}, wrappers={wrappers}), or --wrapper {shlex.join(wrappers)}"
        )
    return config if config.kwargs or config.wrappers else config.id


def pickled(value: Any, error: str) -> bytes:
    """Bytes, so that what cannot be copied is found here; raises InputError."""
    try:
        pickled: bytes = cloudpickle.dumps(value)
    except Exception as reason:  # whatever the object's own methods raise
        raise InputError(f"{error}: {' '.join(str(reason).split())}") from reason
    return pickled


def taken_apart(agent: Agent[Any]) -> tuple[Any, ...]:
    """What `Agent.__reduce__` returns; raises InputError for an agent that cannot be copied."""
    this, (state, tensors) = type(agent).__name__, agent._state()
    tensors = {name: np.array(tensor) for name, tensor in tensors.items()}
    env: Any
    env, network = agent._made_from, agent._network
    if not isinstance(env, str):
        env = pickled(env, f"{this} cannot be copied, because its environment cannot; agents made from an id can")
    if network is not None:
        network = pickled(network, f"{this} cannot be copied, because its network cannot")
    return copied, (type(agent), env, agent.config, network, state, tensors, agent.buffer)


def copied(
    cls: type[A],
    env: str | bytes,
    config: Any,
    network: bytes | None,
    state: dict[str, Any],
    tensors: dict[str, NDArray[Any]],
    buffer: Any,
) -> A:
    """The agent that was `taken_apart`."""
    made_from = pickle.loads(env) if isinstance(env, bytes) else env
    agent = cls(made_from, config, network=None if network is None else pickle.loads(network))
    if buffer is not None:
        agent.buffer = buffer
    agent._load_state(state, tensors)
    return agent


def check_config(saved: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless config.json holds what `Agent.load` needs, with the right types."""
    for name, types in TYPES.items():
        if name not in saved or not isinstance(saved[name], types):  # type: ignore[arg-type]
            raise InputError(f"{where}: config.json has no usable {name}, but {_short(saved.get(name))}")
    if saved["made_from_id"] and saved["env"] is None:
        raise InputError(f"{where}: config.json has no usable env, but None")


def check_state(saved: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """Raise ValueError unless state.json has the form of the state of a new agent with the same settings."""
    for name in COUNTERS:
        if not _is_count(saved[name]):
            raise ValueError(f"{name} must be a count, got {_short(saved[name])}")
    for name, value in fresh.items():
        if name in saved and name != "envs":
            same_form(saved[name], value, name)
    envs = saved["envs"]
    if not isinstance(envs, dict) or not _is_count(envs["num_envs"]) or not _is_count(envs["episodes"]):
        raise ValueError("envs must be an object with num_envs and episodes")
    numbers = {"returns": envs["returns"], "lengths": envs["lengths"]}
    for name, values in {**numbers, "recent": [x for pair in envs["recent"] for x in pair]}.items():
        if not isinstance(values, list) or not all(map(_is_number, values)):
            raise ValueError(f"envs.{name} must be numbers, got {_short(values)}")
        if name != "recent" and len(values) != envs["num_envs"]:
            raise ValueError(f"envs.{name} must be {envs['num_envs']} numbers, got {len(values)}")
    if any(len(pair) != 2 for pair in envs["recent"]):
        raise ValueError("envs.recent must be pairs of a return and a length")


def check_obs(checkpoint: Checkpoint, fresh: NDArray[Any]) -> None:
    """Raise ValueError unless the saved observations are such as the new agent's, if it has as many environments."""
    obs = checkpoint.tensors["obs"]
    if checkpoint.state["envs"]["num_envs"] == len(fresh) and (obs.shape, obs.dtype) != (fresh.shape, fresh.dtype):
        raise ValueError(f"obs must be {fresh.dtype}{fresh.shape}, got {obs.dtype}{obs.shape}")


def same_form(saved: Any, fresh: Any, name: str) -> None:
    """Raise ValueError where `saved` has other keys than `fresh`, or a value of another kind."""
    if isinstance(fresh, Mapping):
        if not isinstance(saved, dict) or set(saved) != set(map(str, fresh)):
            wanted, got = ", ".join(map(str, fresh)), ", ".join(saved) if isinstance(saved, dict) else _short(saved)
            raise ValueError(f"{name} must have the keys {wanted}, got {got}")
        for key, value in fresh.items():
            same_form(saved[str(key)], value, f"{name}.{key}")
        return
    if isinstance(fresh, (list, tuple)):
        fits = isinstance(saved, list)
    elif isinstance(fresh, bool) or fresh is None or isinstance(fresh, str):
        fits = fresh is None or type(saved) is type(fresh)
    elif isinstance(fresh, int):
        fits = isinstance(saved, int) and not isinstance(saved, bool)
    else:
        fits = _is_number(saved)
    if not fits:
        raise ValueError(f"{name} must be {type(fresh).__name__}, got {_short(saved)}")


def as_json(value: Any) -> Any:
    """`value` as it is after a save and a load."""
    return json.loads(json.dumps(value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 2**63


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 50 else f"{text[:47]}..."
