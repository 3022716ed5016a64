"""The weight of the entropy in the soft actor-critics: fixed, or tuned so that the policy has a target entropy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrl.agents.arrays import exp
from fastrl.kernels import FlatAdam


class Temperature:
    """Mixin of an off-policy agent: alpha = exp(log_temperature), as a logarithm, so that it stays positive."""

    config: Any  # with temperature and initial_temperature
    learning_rate: Any
    _array: Any

    def _make_temperature(self, target_entropy: float) -> float:
        """Returns alpha at the start."""
        c = self.config
        self.target_entropy = target_entropy if c.target_entropy is None else c.target_entropy
        start: float = c.initial_temperature if c.temperature is None else c.temperature
        # Of a fixed temperature 0 it is -inf.
        self.log_temperature = self._array(np.full(1, math.log(start) if start else -math.inf, np.float32))
        self._d_log_temperature = self._array(np.zeros(1, np.float32))
        vectors = self.log_temperature, self._d_log_temperature
        self.temperature_optimizer = FlatAdam(*vectors, lr=c.learning_rate) if c.temperature is None else None
        return start

    @property
    def temperature(self) -> float:
        """alpha, the weight of the entropy now."""
        return math.exp(float(self.log_temperature[0]))

    def _alpha(self) -> Any:
        """``[1]``."""
        return exp(self.log_temperature)

    def _tune_temperature(self, entropy: Any) -> None:
        """A step on log(alpha) (entropy - target_entropy), unless alpha is fixed."""
        if self.temperature_optimizer is not None:
            self._d_log_temperature[0] = entropy - self.target_entropy
            self.temperature_optimizer.step(lr=self.learning_rate)

    def _temperature_switches(self) -> list[str]:
        return ["fixed temperature"] * (self.temperature_optimizer is None)

    def _temperature_parts(self) -> dict[str, Any]:
        tuned = {} if self.temperature_optimizer is None else {"temperature_optimizer": self.temperature_optimizer}
        return {"log_temperature": self.log_temperature, **tuned}
