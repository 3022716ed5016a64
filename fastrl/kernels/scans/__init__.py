"""Returns and advantages over rollouts: every op here is the reverse affine recurrence y_t = b_t + a_t y_{t+1}.

What all of them share:

- Arrays are time-major, ``[T, N]`` (t = 0 .. T-1 steps of N environments) or ``[T]``, float32 or float64 (one dtype a
  call), NumPy arrays or torch tensors (one kind and device a call), with any strides and without a copy: batch-major
  data goes in as ``x.T``, or with ``layout``: "NT" is [N, T], "TN1" [T, N, 1] and "NT1" [N, T, 1], of all arrays, `out`
  and results included.  Empty inputs give empty outputs.  No gradient flows through them, except through
  `reverse_affine_scan`.
- ``terminated[t]``: step t ended in a terminal state, past which nothing is bootstrapped.  ``truncated[t]``: a limit
  cut the episode after step t: bootstrap from ``next_values[t]``, then stop.  Both set count as terminated.  None for
  `truncated`: never.  Flags are bool, or integers or floats of 0 and 1 (which are converted first, but for uint8).
- ``next_values[t]`` is V of the observation that step t really reached; of the last step of an episode that is the
  final observation, never the one of the reset.  With `values` of shape ``[T+1, N]`` and no truncation
  ``next_values=None`` means ``values[:-1], values[1:]``: views, no copy.
- ``discounts``: where rewards come with a discount of each step, gamma_t (1 - terminated_t), as DeepMind's libraries
  have it, they go in place of gamma, and `terminated` may be None.  These calls, and those with an array `lam` or
  `pg_lam`, take elementwise passes over float64 arrays beside the scan, and end a graph of ``torch.compile``.
- ``mask[t]`` (optional) is True for real transitions.  The others (the dummy step after an episode's end under
  Gymnasium's NEXT_STEP autoreset, padding) get output 0 and pass nothing backward.
- The recurrence goes on from step t + 1 to step t where ``cont_t``: t + 1 < T, both steps are real (`mask`), and step t
  is neither terminated nor truncated.  Everywhere else it starts anew from the bootstrap.  In all of these equations
  0 times x is 0, whatever x: a NaN or infinity beyond an episode's end, or beyond a discount of 0, reaches nothing.
  A discount (gamma, lam, gamma lam, gamma^k) is 0 too where it is that in the dtype of the arrays.
- The recurrence is float64 inside, whatever the dtype.  In `gae`, `discounted_returns` and `lambda_returns` of float32
  arrays the C++ and CUDA backends take the terms of one step in float32, so that their errors do not grow with the
  horizon.  CUDA does so in `vtrace` and `off_policy_returns` too, where they do grow: up to about 1e-7 / (1 - gamma) of
  the largest value, which is 1e-5 at gamma = 0.99 and 1e-4 at 0.999.
- `out`: an array, or a tuple of arrays as returned, of any strides, written in place of new ones.

Errors, raised before anything is written: TypeError for what is no array, another kind of array or a parameter that is
no number, and for masked arrays; ValueError for a wrong dtype, shape or device, a flag that is neither 0 nor 1, or a
parameter out of range.  RuntimeError inside a transform of torch.func.

CUDA tensors stay on their device and may be bfloat16 or float16 too.  The compiled kernels run on the caller's stream,
can be captured in a CUDA graph, and do not wait for the device to check values: any flag but 0 counts as 1 there.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.arrays import A
from fastrl.kernels._core.backends import choose
from fastrl.kernels.scans import discounts as _discounts
from fastrl.kernels.scans import layouts as _layouts

backend = choose(__package__)

Layout = Literal["TN", "NT", "TN1", "NT1"]


def reverse_affine_scan(a: A, b: A, y_T: Any = None, *, out: Any = None) -> A:
    """y_t = b_t + a_t y_{t+1} for t = T-1 .. 0, with y_T given or 0.

    a_t = 0 cuts the recurrence: what comes after, NaN too, does not reach y_t.  Differentiable by torch in a, b and y_T
    (once): with g_t = dL/dy_t and l_t = g_t + a_{t-1} l_{t-1}, dL/db_t = l_t, dL/da_t = l_t y_{t+1} and
    dL/dy_T = a_{T-1} l_{T-1}.

    Dtypes and errors are those of all scans: ``help(fastrl.kernels.scans)``.

    Args:
        a, b: [T] or [T, N].
        y_T: None for 0, a number, or an array of the shape of b[0].
        out: None, or an array like b; then nothing may want a gradient.

    Returns:
        y, like b.
    """
    if not _arrays.is_compiling() and _arrays.wants_grad(a, b, y_T):
        from fastrl.kernels.scans import _torch

        return _torch.reverse_affine_scan_autograd(a, b, y_T, out)  # type: ignore[no-any-return]
    y = _scans_for(a).reverse_affine_scan(a, b, y_T, out)
    if out is not None:
        _arrays.mark_written(out)
    return y  # type: ignore[no-any-return]


def gae(
    rewards: A,
    values: A,
    next_values: A | None,
    terminated: Any,
    truncated: Any,
    *,
    gamma: float | None = None,
    lam: float | A,
    mask: Any = None,
    out: Any = None,
    discounts: A | None = None,
    layout: Layout = "TN",
) -> tuple[A, A]:
    """Generalized advantage estimation.

    A_t = delta_t + gamma lam A_{t+1} where cont_t, else delta_t;  returns_t = A_t + V_t, with
    delta_t = r_t + gamma (1 - terminated_t) V'_t - V_t.

    Dtypes, errors, masks and cont_t are those of all scans: ``help(fastrl.kernels.scans)``.

    Args:
        rewards, values, next_values: [T] or [T, N]: r_t, V_t = V(s_t) and V'_t = V(s_{t+1}).
        terminated, truncated, mask: flags like `rewards`.
        gamma, lam: in [0, 1]; lam may be an array like `rewards`.
        out: None, or the pair to write to.
        discounts: in place of gamma, that of each step, like `rewards`, in [0, 1].

    Returns:
        advantages, returns: like `rewards`.

    Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation" (2016),
    arXiv:1506.02438, eq. 16.
    """
    if layout != "TN":
        return _layouts.call(  # type: ignore[no-any-return]
            gae, layout, out,
            rewards=rewards, values=values, next_values=next_values, terminated=terminated,
            truncated=truncated, mask=mask, discounts=discounts, lam=lam, gamma=gamma,
        )  # fmt: skip
    if next_values is None:
        values, next_values = _now_and_next(rewards, values)
    result: tuple[A, A]
    if discounts is None and (type(lam) is float or not _discounts.wanted(None, lam)):
        result = _scans_for(rewards).gae(rewards, values, next_values, terminated, truncated, gamma, lam, mask, out)
    else:
        result = _discounts.gae(rewards, values, next_values, terminated, truncated, gamma, discounts, lam, mask, out)
    if out is not None:
        _arrays.mark_written(out)
    return result


def discounted_returns(
    rewards: A,
    terminated: Any,
    truncated: Any,
    *,
    gamma: float | None = None,
    next_values: A | None = None,
    mask: Any = None,
    out: Any = None,
    discounts: A | None = None,
    layout: Layout = "TN",
) -> A:
    """Reward-to-go.

    G_t = r_t + gamma G_{t+1} where cont_t, else r_t + gamma (1 - terminated_t) V'_t; without `next_values` V' is 0.

    Dtypes, errors, masks and cont_t are those of all scans: ``help(fastrl.kernels.scans)``.

    Args:
        rewards: [T] or [T, N].
        terminated, truncated, mask: flags like `rewards`.
        gamma: in [0, 1].
        next_values: None, or V'_t like `rewards`; read only where the recurrence starts anew.
        out: None, or the array to write to.
        discounts: in place of gamma, that of each step, like `rewards`, in [0, 1].

    Returns:
        returns, like `rewards`.
    """
    if layout != "TN":
        return _layouts.call(  # type: ignore[no-any-return]
            discounted_returns, layout, out,
            rewards=rewards, terminated=terminated, truncated=truncated, next_values=next_values, mask=mask,
            discounts=discounts, gamma=gamma,
        )  # fmt: skip
    if discounts is None:
        returns = _scans_for(rewards).discounted_returns(rewards, terminated, truncated, gamma, next_values, mask, out)
    else:
        returns = _discounts.lambda_returns(
            "discounted_returns", rewards, next_values, terminated, truncated, gamma, discounts, 1.0, mask, out
        )
    if out is not None:
        _arrays.mark_written(out)
    return returns  # type: ignore[no-any-return]


def lambda_returns(
    rewards: A,
    next_values: A,
    terminated: Any,
    truncated: Any,
    *,
    gamma: float | None = None,
    lam: float | A,
    mask: Any = None,
    out: Any = None,
    discounts: A | None = None,
    layout: Layout = "TN",
) -> A:
    """The returns of TD(lambda), which are advantages + values of `gae`.

    G_t = r_t + gamma [(1 - lam) V'_t + lam G_{t+1}] where cont_t, else r_t + gamma (1 - terminated_t) V'_t.

    Dtypes, errors, masks and cont_t are those of all scans: ``help(fastrl.kernels.scans)``.

    Args:
        rewards, next_values: [T] or [T, N]: r_t and V'_t = V(s_{t+1}).
        terminated, truncated, mask: flags like `rewards`.
        gamma, lam: in [0, 1]; lam may be an array like `rewards`.
        out: None, or the array to write to.
        discounts: in place of gamma, that of each step, like `rewards`, in [0, 1].

    Returns:
        returns, like `rewards`.

    Source: Sutton and Barto, "Reinforcement Learning" (2018), eq. 12.18.
    """
    if layout != "TN":
        return _layouts.call(  # type: ignore[no-any-return]
            lambda_returns, layout, out,
            rewards=rewards, next_values=next_values, terminated=terminated, truncated=truncated, mask=mask,
            discounts=discounts, lam=lam, gamma=gamma,
        )  # fmt: skip
    if discounts is None and (type(lam) is float or not _discounts.wanted(None, lam)):
        returns = _scans_for(rewards).lambda_returns(rewards, next_values, terminated, truncated, gamma, lam, mask, out)
    else:
        returns = _discounts.lambda_returns(
            "lambda_returns", rewards, next_values, terminated, truncated, gamma, discounts, lam, mask, out
        )
    if out is not None:
        _arrays.mark_written(out)
    return returns  # type: ignore[no-any-return]


def n_step_returns(
    rewards: A,
    next_values: A,
    terminated: Any,
    truncated: Any,
    *,
    gamma: float | None = None,
    n: int,
    cut: Any = None,
    mask: Any = None,
    out: Any = None,
    discounts: A | None = None,
    layout: Layout = "TN",
) -> tuple[A, A, Any]:
    """n-step returns, shorter at the end of an episode or of the arrays.

    G_t = sum_{k=0}^{m-1} gamma^k r_{t+k} + gamma^m (1 - terminated_{t+m-1}) V'_{t+m-1}, where m <= n is the largest
    number of steps with cont_t .. cont_{t+m-2} and none of cut_{t+1} .. cut_{t+m-1}.  Takes O(T N), whatever n.

    Dtypes, errors, masks and cont_t are those of all scans: ``help(fastrl.kernels.scans)``.

    Args:
        rewards: [T] or [T, N].
        next_values: V'_t like `rewards`, or None for the reward part alone.
        terminated, truncated, mask: flags like `rewards`.
        gamma: in [0, 1].
        n: int >= 1.
        cut: None, or flags: no return goes on into a step with cut_t.  For off-policy data: set where the stored action
            is not the one that the current policy would take.
        out: None, or the three arrays to write to.
        discounts: in place of gamma, that of each step, like `rewards`, in [0, 1]: gamma^k is the product of k of them,
            and one of 0 ends a return.  O(T N log n) then.

    Returns:
        returns, like `rewards`.
        discounts, like `rewards`: gamma^m (1 - terminated_{t+m-1}), the factor of V'.
        last, int64: t + m - 1, the step whose next observation is bootstrapped from (t itself in a masked step).

    Source: Sutton and Barto, "Reinforcement Learning" (2018), eq. 7.1; `cut`: Watkins (1989), Peng and Williams (1996).
    """
    if layout != "TN":
        return _layouts.call(  # type: ignore[no-any-return]
            n_step_returns, layout, out,
            rewards=rewards, next_values=next_values, terminated=terminated, truncated=truncated, cut=cut,
            mask=mask, discounts=discounts, gamma=gamma, n=n,
        )  # fmt: skip
    result: tuple[Any, Any, Any]
    if discounts is None:
        result = _scans_for(rewards).n_step_returns(
            rewards, next_values, terminated, truncated, gamma, n, cut, mask, out
        )
    else:
        result = _discounts.n_step_returns(
            rewards, next_values, terminated, truncated, gamma, discounts, n, cut, mask, out
        )
    if out is not None:
        _arrays.mark_written(out)
    return result


def vtrace(
    rewards: A,
    values: A,
    next_values: A | None,
    terminated: Any,
    truncated: Any,
    log_rhos: A,
    *,
    gamma: float | None = None,
    lam: float | A = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    pg_rho_clip: float = 1.0,
    mask: Any = None,
    out: Any = None,
    discounts: A | None = None,
    layout: Layout = "TN",
    pg_lam: bool = False,
) -> tuple[A, A]:
    """V-trace targets and the advantages of the policy gradient.

    With rho_t = exp(log_rhos_t), e_t = vs_t - V_t and V'_t replaced by 0 where terminated_t::

        e_t = min(rho_clip, rho_t) (r_t + gamma V'_t - V_t) + gamma lam min(c_clip, rho_t) e_{t+1}   [if cont_t]
        vs_t = V_t + e_t
        pg_advantages_t = min(pg_rho_clip, rho_t) (r_t + gamma (V'_t + e_{t+1} [if cont_t]) - V_t)

    V'_t + e_{t+1} is vs_{t+1} where V'_t = V_{t+1}, as it is inside an episode.  At truncation the trace is cut and the
    value of the final observation is used.  The paper's pg_advantages bootstrap from vs_{t+1} whatever lam.  With
    `pg_lam` they weight e_{t+1} with lam, as those of rlax do, and are GAE(lam)'s on policy::

        pg_advantages_t = min(pg_rho_clip, rho_t) (r_t + gamma (V'_t + lam e_{t+1} [if cont_t]) - V_t)

    Dtypes, errors, masks and cont_t are those of all scans: ``help(fastrl.kernels.scans)``.

    Args:
        rewards, values, next_values: [T] or [T, N]: r_t, V_t = V(s_t) and V'_t = V(s_{t+1}).
        log_rhos: like them, log pi(a_t|s_t) - log mu(a_t|s_t): logarithms of the ratios.  A UserWarning, once, where
            none is negative but some are positive, as ratios are.
        terminated, truncated, mask: flags like `rewards`.
        gamma, lam: in [0, 1]; lam may be an array like `rewards`.
        rho_clip, c_clip, pg_rho_clip: >= 0; inf does not clip.
        out: None, or the pair to write to.
        discounts: in place of gamma, that of each step, like `rewards`, in [0, 1].
        pg_lam: see above; costs what `discounts` does.

    Returns:
        vs, pg_advantages: like `rewards`.

    Source: Espeholt et al., "IMPALA" (2018), arXiv:1802.01561, eq. 1 and section 4.2.
    """
    if not isinstance(pg_lam, bool):
        raise TypeError(f"vtrace: pg_lam must be a bool, got {type(pg_lam).__name__}")
    if layout != "TN":
        return _layouts.call(  # type: ignore[no-any-return]
            vtrace, layout, out,
            rewards=rewards, values=values, next_values=next_values, terminated=terminated,
            truncated=truncated, log_rhos=log_rhos, mask=mask, discounts=discounts, lam=lam, gamma=gamma,
            rho_clip=rho_clip, c_clip=c_clip, pg_rho_clip=pg_rho_clip, pg_lam=pg_lam,
        )  # fmt: skip
    if next_values is None:
        values, next_values = _now_and_next(rewards, values)
    result: tuple[A, A]
    if discounts is None and not pg_lam and (type(lam) is float or not _discounts.wanted(None, lam)):
        result = _scans_for(rewards).vtrace(
            rewards, values, next_values, terminated, truncated, log_rhos,
            gamma, lam, rho_clip, c_clip, pg_rho_clip, mask, out,
        )  # fmt: skip
    else:
        result = _discounts.vtrace(
            rewards, values, next_values, terminated, truncated, log_rhos,
            gamma, discounts, lam, rho_clip, c_clip, pg_rho_clip, mask, out, pg_lam,
        )  # fmt: skip
    if out is not None:
        _arrays.mark_written(out)
    if _unseen_log_rhos > 0 and not _arrays.is_compiling():
        _look_at_log_rhos(log_rhos)
    return result


_unseen_log_rhos = 100  # so many calls of `vtrace` are looked at, until one shows that its ratios are logarithms


def _look_at_log_rhos(log_rhos: Any) -> None:
    """A warning, once, where the ratios themselves must have been given: some are above 0 and none is below."""
    global _unseen_log_rhos
    if getattr(log_rhos, "is_cuda", False):  # that would wait for the device
        return
    array = _arrays.load(log_rhos, "vtrace: log_rhos")
    if array.size < 16:
        return
    low, high = array.min(), array.max()
    _unseen_log_rhos = 0 if low < 0 or high > 0 else _unseen_log_rhos - 1
    if low >= 0 and high > 0:
        warnings.warn(
            f"vtrace: none of the {array.size} log_rhos is negative: are they ratios? Their logarithms are wanted, "
            "log pi(a|s) - log mu(a|s)",
            UserWarning,
            stacklevel=3,
        )


def off_policy_returns(
    rewards: A,
    q_values: A,
    next_state_values: A,
    traces: A,
    terminated: Any,
    truncated: Any,
    *,
    gamma: float | None = None,
    mask: Any = None,
    out: Any = None,
    discounts: A | None = None,
    layout: Layout = "TN",
) -> A:
    """Off-policy targets for Q with one trace coefficient c_t a step.

    y_t = r_t + gamma (1 - terminated_t) [V'_t + c_{t+1} (y_{t+1} - Q_{t+1})], the last term only where cont_t.

    Retrace: c_t = lam min(1, pi(a_t|s_t) / mu(a_t|s_t)).  Watkins: lam where a_t is greedy, else 0.
    Tree backup: lam pi(a_t|s_t).  Peng: lam.  One-step: 0.

    Dtypes, errors, masks and cont_t are those of all scans: ``help(fastrl.kernels.scans)``.

    Args:
        rewards, q_values, traces: [T] or [T, N]: r_t, Q_t = Q(s_t, a_t) and c_t.
        next_state_values: like them, V'_t = E_pi Q(s_{t+1}, .).
        terminated, truncated, mask: flags like `rewards`.
        gamma: in [0, 1].
        out: None, or the array to write to.
        discounts: in place of gamma, that of each step, like `rewards`, in [0, 1].

    Returns:
        targets y_t, like `rewards`.

    Source: Munos et al., "Safe and Efficient Off-Policy Reinforcement Learning" (2016), arXiv:1606.02647, eq. 3 and 4.
    """
    if layout != "TN":
        return _layouts.call(  # type: ignore[no-any-return]
            off_policy_returns, layout, out,
            rewards=rewards, q_values=q_values, next_state_values=next_state_values, traces=traces,
            terminated=terminated, truncated=truncated, mask=mask, discounts=discounts, gamma=gamma,
        )  # fmt: skip
    if discounts is None:
        returns = _scans_for(rewards).off_policy_returns(
            rewards, q_values, next_state_values, traces, terminated, truncated, gamma, mask, out
        )
    else:
        returns = _discounts.off_policy_returns(
            rewards, q_values, next_state_values, traces, terminated, truncated, gamma, discounts, mask, out
        )
    if out is not None:
        _arrays.mark_written(out)
    return returns  # type: ignore[no-any-return]


def _now_and_next(rewards: Any, values: Any) -> tuple[Any, Any]:
    """V_t and V'_t of `values` [T + 1, ...], for next_values=None; as they are if they have another length."""
    shape, wanted = getattr(values, "shape", ()), getattr(rewards, "shape", ())
    if not shape or not wanted or shape[0] != wanted[0] + 1:
        return values, None
    return values[:-1], values[1:]


def _scans_for(first: Any) -> Any:
    """What serves a call whose first array this is: while torch.compile traces, the ops registered with torch."""
    if _arrays.is_compiling():
        from fastrl.kernels.scans import _torch

        return _torch
    return backend.of(first)
