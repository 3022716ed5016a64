"""Settings that have an effect only with another one: who gives such a setting alone is told so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from fastrl.agents.config import check_kept, warn


class Need(NamedTuple):
    """The effect needs one of `values` of `setting`, or with `but` any other; where no such setting is, nothing."""

    setting: str
    values: tuple[Any, ...]
    but: bool = False

    def met(self, config: Any) -> bool:
        return not hasattr(config, self.setting) or (getattr(config, self.setting) in self.values) != self.but


_PRIORITIZED = Need("prioritized", (True,))
_IQN = Need("distributional", ("iqn",))
_EPSILON = Need("exploration", ("epsilon-greedy",))
_TUNED = Need("temperature", (None,))
_MLP = Need("network", ("nature", "impala"), but=True)
_TREES = Need("regressor", ("trees",))
_NOT_TREES = Need("regressor", ("trees", "table"), but=True)

NEEDS: dict[str, tuple[Need, ...]] = {
    "activation": (_MLP,),
    "atoms": (Need("distributional", ("c51", "qr")),),
    "batch_size": (_NOT_TREES,),
    "clip_range": (Need("objective", ("clip",)),),
    "epochs": (_NOT_TREES,),
    "epsilon_end": (_EPSILON, Need("noisy", (True,), but=True)),
    "epsilon_start": (_EPSILON,),
    "epsilon_steps": (_EPSILON,),
    "extra_std_steps": (Need("extra_std", (0,), but=True),),
    "hidden": (_MLP, _NOT_TREES),
    "initial_temperature": (_TUNED,),
    "lap_alpha": (Need("lap", (True,)),),
    "learning_rate": (_NOT_TREES,),
    "learning_rate_end": (_NOT_TREES,),
    "learning_rate_horizon": (Need("learning_rate_power", (0,), but=True),),
    "learning_rate_steps": (Need("learning_rate_end", (None,), but=True), _NOT_TREES),
    "loss": (Need("distributional", ("c51", "qr", "iqn"), but=True),),
    "min_split": (_TREES,),
    "networks": (_NOT_TREES,),
    "num_quantile_samples": (_IQN,),
    "num_tau_prime_samples": (_IQN,),
    "num_tau_samples": (_IQN,),
    "ou_theta": (Need("noise", ("ou",)),),
    "penalty_beta": (Need("objective", ("penalty",)),),
    "penalty_kl": (Need("objective", ("penalty",)),),
    "per_alpha": (_PRIORITIZED,),
    "per_beta": (_PRIORITIZED,),
    "per_beta_end": (_PRIORITIZED,),
    "per_beta_steps": (_PRIORITIZED,),
    "per_eps": (_PRIORITIZED,),
    "quantile_embedding_dim": (_IQN,),
    "sigma": (Need("noisy", (True,)),),
    "target_entropy": (_TUNED,),
    "temperature": (Need("exploration", ("boltzmann",)),),
    "trees": (_TREES,),
    "v_max": (Need("distributional", ("c51",)),),
    "v_min": (Need("distributional", ("c51",)),),
    "value_coef": (Need("baseline", (True,)),),
    "worker_timeout": (Need("workers", (1,), but=True),),
}

OF_MLP = {"activation", "hidden", "shared_network"}  # what shapes the networks that agents make


def idle(config: Any, given: Mapping[str, Any]) -> Iterator[tuple[str, Need]]:
    """Those of the `given` settings that have no effect in `config`, and what each needs."""
    for name in given:
        for need in NEEDS.get(name, ()):
            if not need.met(config):
                yield name, need
                break


def check_given(config: Any, given: Mapping[str, Any]) -> None:
    """`check_kept`, and a warning for each setting that is not the default and has no effect."""
    check_kept(config, given)
    _warn(config, idle(config, changed(config, given)))


def idle_now(config: Any, found: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[str, Need]]:
    """What `idle` says beyond that once it is `found` what the settings that are auto stand for."""
    before = {name for name, _ in idle(config, given)}
    return [(name, need) for name, need in idle(replace(config, **found), given) if name not in before]


def check_found(config: Any, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """The warnings of `check_given` that depend on what settings that are auto are `found` to stand for."""
    _warn(replace(config, **found), idle_now(config, found, changed(config, given)))


def check_networks(config: Any, kind: str | None, own: Any, given: Mapping[str, Any]) -> None:
    """The warnings of `check_given` that depend on the networks: `kind` of ready-made ones, or the user's `own`."""
    if kind is not None:
        check_found(config, {"network": kind}, given)
    if own is not None and not (isinstance(own, Mapping) and len(own) == 1):  # of a single one the others are ours
        for name in sorted(OF_MLP & changed(config, given).keys()):
            warn(f"{type(config).__name__}: {name} has no effect with networks of your own")


def changed(config: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Those of the settings, or of the `given` ones, that are not the defaults."""
    given = asdict(config) if given is None else given
    return {name: value for name, value in given.items() if getattr(config, name) != getattr(type(config), name)}


def _warn(config: Any, found: Iterable[tuple[str, Need]]) -> None:
    for name, need in found:
        values = [getattr(config, need.setting)] if need.but else need.values
        how = f"{'with' if need.but else 'without'} {need.setting}={' or '.join(map(repr, values))}"
        warn(f"{type(config).__name__}: {name} has no effect {how}")
