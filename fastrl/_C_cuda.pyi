"""The compiled CUDA kernels; call them through fastrl.kernels, which documents them."""

from collections.abc import Sequence
from typing import Any, final

def devices() -> list[str]: ...
def categorical_log_prob_entropy(logits: Any, action: Any) -> tuple[Any, Any]: ...
def categorical_log_prob_entropy_backward(logits: Any, action: Any, grad_log_prob: Any, grad_entropy: Any) -> Any: ...
def cg_start(
    b: Any,
    x: Any,
    z: Any,
    inverse: Any,
    damping: float,
    rtol: float,
    atol: float,
    r: Any,
    p: Any,
    state: Any,
    scratch: Any,
) -> None: ...
def cg_step(
    x: Any,
    r: Any,
    p: Any,
    z: Any,
    inverse: Any,
    damping: float,
    state: Any,
    scratch: Any,
    fused: bool,
) -> None: ...
def cg_direction(y: Any, r: Any, p: Any, state: Any, scratch: Any, first: bool) -> None: ...
def categorical_sample(logits: Any, state: Any, uniform: Any) -> tuple[Any, Any]: ...
def normal_log_prob_entropy(mean: Any, log_std: Any, action: Any) -> tuple[Any, Any]: ...
def normal_log_prob_entropy_backward(
    mean: Any,
    log_std: Any,
    action: Any,
    grad_log_prob: Any,
    grad_entropy: Any,
    want_mean: bool,
    want_log_std: bool,
    want_action: bool,
) -> tuple[Any, Any, Any]: ...
def normal_sample(mean: Any, log_std: Any, noise: Any, state: Any, with_noise: bool) -> tuple[Any, Any, Any]: ...
def normal_sample_backward(log_std: Any, noise: Any, grad_action: Any, grad_log_prob: Any) -> Any: ...
def tanh_normal_sample(
    mean: Any,
    log_std: Any,
    noise: Any,
    state: Any,
    low: Any,
    high: Any,
    log_std_min: float,
    log_std_max: float,
    epsilon: float,
    with_saved: bool,
) -> tuple[Any, Any, Any]: ...
def tanh_normal_sample_backward(
    saved: Any,
    log_std: Any,
    grad_action: Any,
    grad_log_prob: Any,
    low: Any,
    high: Any,
    log_std_min: float,
    log_std_max: float,
    epsilon: float,
    want_mean: bool,
    want_log_std: bool,
) -> tuple[Any, Any]: ...
def tanh_normal_log_prob(
    mean: Any,
    log_std: Any,
    action: Any,
    low: Any,
    high: Any,
    log_std_min: float,
    log_std_max: float,
    epsilon: float,
) -> Any: ...
def tanh_normal_log_prob_backward(
    mean: Any,
    log_std: Any,
    action: Any,
    grad_log_prob: Any,
    low: Any,
    high: Any,
    log_std_min: float,
    log_std_max: float,
    epsilon: float,
    want_mean: bool,
    want_log_std: bool,
    want_action: bool,
) -> tuple[Any, Any, Any]: ...
def tanh_normal_mode(mean: Any, low: Any, high: Any) -> Any: ...
def tanh_normal_mode_backward(mean: Any, grad_action: Any, low: Any, high: Any) -> Any: ...
def n_step_gather(
    rewards: Any,
    terminated: Any,
    truncated: Any,
    indices: Any,
    cursor: Any,
    size: Any,
    gamma: Any,
    n: Any,
    next_values: Any,
    cut: Any,
    out: Any,
) -> Any: ...
def reverse_affine_scan(a: Any, b: Any, y_T: Any, out: Any) -> Any: ...
def gae(
    rewards: Any,
    values: Any,
    next_values: Any,
    terminated: Any,
    truncated: Any,
    gamma: Any,
    lam: Any,
    mask: Any,
    out: Any,
) -> Any: ...
def discounted_returns(
    rewards: Any, terminated: Any, truncated: Any, gamma: Any, next_values: Any, mask: Any, out: Any
) -> Any: ...
def lambda_returns(
    rewards: Any, next_values: Any, terminated: Any, truncated: Any, gamma: Any, lam: Any, mask: Any, out: Any
) -> Any: ...
def n_step_returns(
    rewards: Any,
    next_values: Any,
    terminated: Any,
    truncated: Any,
    gamma: Any,
    n: Any,
    cut: Any,
    mask: Any,
    out: Any,
) -> Any: ...
def vtrace(
    rewards: Any,
    values: Any,
    next_values: Any,
    terminated: Any,
    truncated: Any,
    log_rhos: Any,
    gamma: Any,
    lam: Any,
    rho_clip: Any,
    c_clip: Any,
    pg_rho_clip: Any,
    mask: Any,
    out: Any,
) -> Any: ...
def off_policy_returns(
    rewards: Any,
    q_values: Any,
    next_state_values: Any,
    traces: Any,
    terminated: Any,
    truncated: Any,
    gamma: Any,
    mask: Any,
    out: Any,
) -> Any: ...

@final
class SumTreeCore:
    def __init__(
        self,
        capacity: int,
        widths: Sequence[int],
        leaves: Any,
        sums: Any,
        mins: Any,
        maxs: Any,
        winner: Any,
        flag: Any,
        smallest: Any,
        state: Any,
    ) -> None: ...
    def update(self, indices: Any, priorities: Any) -> None: ...
    def update_from_td_errors(
        self, indices: Any, td_errors: Any, alpha: float, eps: float, keep_zeros: bool
    ) -> Any: ...
    def get(self, indices: Any) -> Any: ...
    def find(self, prefix_sums: Any) -> Any: ...
    def sample(self, batch_size: int, stratified: bool, replacement: bool) -> tuple[Any, Any]: ...
    def sample_weighted(self, batch_size: int, beta: float, whole_tree: bool, stratified: bool) -> tuple[Any, Any]: ...
