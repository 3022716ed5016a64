"""`ClassicControl` in Numba: the equations of csrc/classic_control/physics.h, operation by operation."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from fastrl.envs import reference
from fastrl.envs.reference import Array

PI = math.pi


class _UFunc(ctypes.Structure):
    """The beginning of NumPy's PyUFuncObject, the same in NumPy 1 and 2."""

    _fields_ = [
        *((name, ctypes.c_ssize_t) for name in ("refcount", "type")),
        *((name, ctypes.c_int) for name in ("nin", "nout", "nargs", "identity")),
        ("functions", ctypes.POINTER(ctypes.c_void_p)),
        ("data", ctypes.POINTER(ctypes.c_void_p)),
    ]


def _loop_of(function: Any, kind: str) -> Any:
    """NumPy's own loop of `function`, whose last bits are not those of the C library, for one number.

    Its arguments lie in a frame (`_frame`): two pointers, a count, two strides, the number and the result.
    """
    i = function.types.index(f"{kind}->{kind}")
    ufunc = _UFunc.from_address(id(function))
    loop = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 4)(ufunc.functions[i])
    data = (ufunc.data[i] if ufunc.data else None) or 0
    wide, x, y = (0, 5, 6) if kind == "d" else (1, 10, 12)

    @njit
    def call(frames: Any, number: Any) -> Any:
        address, memory = frames[wide]
        memory[x] = number
        loop(address, address + 16, address + 24, data)
        return memory[y]

    return call


def _frame(dtype: Any) -> tuple[int, Array]:
    memory, size = np.empty(7, np.int64), np.dtype(dtype).itemsize
    address = memory.ctypes.data
    memory[:5] = address + 40, address + 48, 1, size, size
    return address, memory.view(dtype)


_sin, _cos = _loop_of(np.sin, "d"), _loop_of(np.cos, "d")
_sin32, _cos32 = _loop_of(np.sin, "f"), _loop_of(np.cos, "f")


@njit
def _clip(x: Any, low: Any, high: Any) -> Any:
    return low if x < low else high if x > high else x


# The step of each family: the state [S] in place, its reward and whether it is terminal.  `two` is 2, which compilers
# must not know: x ** 2 of NumPy's and Python's numbers is the C library's pow, which is not always x * x.


@njit(error_model="numpy")
def _cart_pole(f: Any, s: Any, fresh: Any, action: Any, sutton_barto_reward: Any, two: Any) -> Any:
    masspole, length, tau = 0.1, 0.5, 0.02
    total_mass, polemass_length, max_theta = masspole + 1.0, masspole * length, 12 * 2 * PI / 360
    force = 10.0 if action == 1 else -10.0
    cos, sin = _cos(f, s[2]), _sin(f, s[2])
    temp = (force + polemass_length * (s[3] * s[3]) * sin) / total_mass
    thetaacc = (9.8 * sin - cos * temp) / (length * (4.0 / 3.0 - masspole * (cos * cos) / total_mass))
    xacc = temp - polemass_length * thetaacc * cos / total_mass
    s[0] = s[0] + tau * s[1]
    s[1] = s[1] + tau * xacc
    s[2] = s[2] + tau * s[3]
    s[3] = s[3] + tau * thetaacc
    terminated = s[0] < -2.4 or s[0] > 2.4 or s[2] < -max_theta or s[2] > max_theta
    if sutton_barto_reward != 0:
        return -1.0 if terminated else 0.0, terminated
    return 1.0, terminated


@njit(error_model="numpy")
def _pendulum(f: Any, s: Any, fresh: Any, action: Any, g: Any, two: Any) -> Any:
    u, th, thdot = _clip(action, np.float32(-2), np.float32(2)), s[0], s[1]
    rest = np.fmod(th + PI, 2 * PI)
    if rest < 0:
        rest += 2 * PI
    angle = (0.0 if rest == 0 else rest) - PI
    costs = angle**two + 0.1 * thdot**two + np.float32(0.001) * u ** np.float32(two)
    newthdot = thdot + (3 * g / 2 * _sin(f, th) + np.float32(3) * u) * 0.05
    s[1] = _clip(newthdot, -8.0, 8.0)
    s[0] = th + s[1] * 0.05
    return -costs, False


@njit(error_model="numpy")
def _slope(f: Any, s: Any, torque: Any, two: Any, out: Any) -> None:
    theta1, theta2, dtheta1, dtheta2 = s
    cos2, sin2 = _cos(f, theta2), _sin(f, theta2)
    d1 = 0.25 + (1 + 0.25 + 2 * 0.5 * cos2) + 1 + 1
    d2 = (0.25 + 0.5 * cos2) + 1
    phi2 = 0.5 * 9.8 * _cos(f, theta1 + theta2 - PI / 2.0)
    phi1 = -0.5 * dtheta2**two * sin2 - dtheta2 * dtheta1 * sin2 + 1.5 * 9.8 * _cos(f, theta1 - PI / 2) + phi2
    ddtheta2 = (torque + d2 / d1 * phi1 - 0.5 * dtheta1**two * sin2 - phi2) / (0.25 + 1 - d2**two / d1)
    out[0], out[1], out[2], out[3] = dtheta1, dtheta2, -(d2 * ddtheta2 + phi1) / d1, ddtheta2


@njit
def _wrap(x: Any) -> Any:
    turn = PI - -PI
    if abs(x) > 1e6:  # Gymnasium goes on subtracting, for ever from 1e17 on
        x = np.fmod(x, turn)
    while x > PI:
        x = x - turn
    while x < -PI:
        x = x + turn
    return x


@njit(error_model="numpy")
def _acrobot(f: Any, s: Any, fresh: Any, action: Any, _: Any, two: Any) -> Any:
    dt = 0.2
    if fresh:
        for i in range(4):
            s[i] = np.float32(s[i])
    torque, k = float(action - 1), np.empty((4, 4))
    _slope(f, s, torque, two, k[0])
    _slope(f, s + dt / 2.0 * k[0], torque, two, k[1])
    _slope(f, s + dt / 2.0 * k[1], torque, two, k[2])
    _slope(f, s + dt * k[2], torque, two, k[3])
    for i in range(4):
        s[i] = s[i] + dt / 6.0 * (k[0, i] + 2 * k[1, i] + 2 * k[2, i] + k[3, i])
    s[0], s[1] = _wrap(s[0]), _wrap(s[1])
    s[2], s[3] = _clip(s[2], -4 * PI, 4 * PI), _clip(s[3], -9 * PI, 9 * PI)
    terminated = -_cos(f, s[0]) - _cos(f, s[1] + s[0]) > 1.0
    return 0.0 if terminated else -1.0, terminated


@njit(error_model="numpy")
def _mountain_car(f: Any, s: Any, fresh: Any, action: Any, goal_velocity: Any, two: Any) -> Any:
    position, velocity = s[0], s[1]
    velocity += float(action - 1) * 0.001 + math.cos(3 * position) * -0.0025
    velocity = _clip(velocity, -0.07, 0.07)
    position = _clip(position + velocity, -1.2, 0.6)
    if position == -1.2 and velocity < 0:
        velocity = 0.0
    s[0], s[1] = position, velocity
    return -1.0, position >= 0.5 and velocity >= goal_velocity


def _mover(real: Any) -> Any:
    """In the precision that Gymnasium's state has then; afterwards it is float32."""

    @njit(error_model="numpy")
    def move(s: Any, action: Any, goal_velocity: Any) -> Any:
        position, velocity = real(s[0]), real(s[1])
        slope = 0.0025 * math.cos(np.float64(real(3) * position))
        if action < -1 or action > 1:  # a force at its bound is Python's
            velocity += real((1.0 if action > 1 else -1.0) * 0.0015 - slope)
        else:
            velocity += real(action * np.float32(0.0015) - np.float32(slope))
        velocity = _clip(velocity, real(-0.07), real(0.07))
        position = _clip(position + velocity, real(-1.2), real(0.6))
        if position == real(-1.2) and velocity < 0:
            velocity = real(0)
        s[0], s[1] = np.float32(position), np.float32(velocity)
        return position >= real(0.45) and velocity >= real(goal_velocity)

    return move


_move, _move32 = _mover(np.float64), _mover(np.float32)


@njit(error_model="numpy")
def _mountain_car_continuous(f: Any, s: Any, fresh: Any, action: Any, goal_velocity: Any, two: Any) -> Any:
    goal = _move(s, action, goal_velocity) if fresh else _move32(s, action, goal_velocity)
    return (100.0 if goal else 0.0) - np.float64(action) ** two * 0.1, goal


# The observation of each family.


@njit
def _plain(f: Any, s: Any, fresh: Any, out: Any) -> None:
    for i in range(len(s)):
        out[i] = s[i]


@njit
def _of_pendulum(f: Any, s: Any, fresh: Any, out: Any) -> None:
    out[0], out[1], out[2] = _cos(f, s[0]), _sin(f, s[0]), s[1]


@njit
def _of_acrobot(f: Any, s: Any, fresh: Any, out: Any) -> None:
    for i in range(2):
        if fresh:
            out[2 * i], out[2 * i + 1] = _cos32(f, np.float32(s[i])), _sin32(f, np.float32(s[i]))
        else:
            out[2 * i], out[2 * i + 1] = _cos(f, s[i]), _sin(f, s[i])
        out[4 + i] = s[2 + i]


FAMILIES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "CartPole": (_cart_pole, _plain),
    "Pendulum": (_pendulum, _of_pendulum),
    "Acrobot": (_acrobot, _of_acrobot),
    "MountainCar": (_mountain_car, _plain),
    "MountainCarContinuous": (_mountain_car_continuous, _plain),
}


@njit
def _step_all(
    step: Any, f: Any, state: Any, elapsed: Any, done: Any, fresh: Any, actions: Any, max_steps: Any,
    parameter: Any, two: Any, reset: Any, reward: Any, terminated: Any, truncated: Any,
) -> None:  # fmt: skip
    for i in range(len(state)):
        if reset[i]:
            continue
        elapsed[i] += 1
        reward[i], terminated[i] = step(f, state[i], fresh[i], actions[i], parameter, two)
        fresh[i] = False
        truncated[i] = elapsed[i] >= max_steps
        done[i] = terminated[i] or truncated[i]


@njit
def _observe_all(observe: Any, f: Any, state: Any, fresh: Any, out: Any) -> None:
    for i in range(len(state)):
        observe(f, state[i], fresh[i], out[i])


class ClassicControl(reference.ClassicControl):
    """The reference with steps and observations compiled; new episodes are begun as there."""

    def __init__(self, name: str, *args: Any) -> None:
        super().__init__(name, *args)
        self._parameter = float(args[7])
        self._family, self._frames = FAMILIES[name], (_frame(np.float64), _frame(np.float32))

    def observe(self) -> Array:
        obs = np.empty((len(self._state), *self._env.observation_space.shape), np.float32)
        _observe_all(self._family[1], self._frames, self._state, self._fresh, obs)
        return obs

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, Array | None]:
        self._check_generators()
        actions, n, final = self._checked(actions), len(self._state), None
        if actions.ndim == 2:
            actions = actions[:, 0]
        reset, reward = self._done.copy(), np.zeros(n)  # `reset` with NextStep only
        terminated, truncated = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        if actions.dtype == np.float32:
            self._last[~reset] = actions[~reset]
        for i in np.flatnonzero(reset).tolist():
            self._begin(i, self._low, self._high)
        _step_all(
            self._family[0], self._frames, self._state, self._elapsed, self._done, self._fresh, actions,
            self._max_steps, self._parameter, 2.0, reset, reward, terminated, truncated,
        )  # fmt: skip
        if self._mode == "SameStep" and self._done.any():
            final = self.observe()
            for i in np.flatnonzero(self._done).tolist():
                self._begin(i, self._low, self._high)
        return self.observe(), reward, terminated, truncated, final
