"""The compiled CPU kernels; call them through fastrl.kernels, which documents them."""

from typing import Any, type_check_only

def simd_level() -> str: ...
def get_num_threads() -> int: ...
def set_num_threads(arg0: int, /) -> None: ...
def categorical_sample(logits: Any, state: Any, uniform: Any) -> tuple[Any, Any]: ...
def categorical_log_prob_entropy(logits: Any, action: Any) -> tuple[Any, Any]: ...
def categorical_log_prob_entropy_backward(logits: Any, action: Any, grad_log_prob: Any, grad_entropy: Any) -> Any: ...
def normal_sample(mean: Any, log_std: Any, noise: Any, state: Any, with_noise: bool) -> tuple[Any, Any, Any]: ...
def normal_sample_backward(log_std: Any, noise: Any, grad_action: Any, grad_log_prob: Any) -> Any: ...
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
def draw(state: Any, n: int, normal: bool) -> Any: ...
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
def cg_start(b: Any, x: Any, z: Any, inverse: Any, damping: float, r: Any, p: Any) -> tuple[float, float, float]: ...
def cg_step(
    x: Any,
    x_next: Any,
    r: Any,
    r_next: Any,
    p: Any,
    z: Any,
    inverse: Any,
    damping: float,
    rz: float,
    target: float,
    fused: bool,
) -> tuple[int, float, float]: ...
def cg_direction(y: Any, r: Any, p: Any, rz: float) -> float: ...
def gather_rows(arrays: Any, indices: Any, out: Any) -> Any: ...
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
) -> tuple[Any, Any, Any]: ...
def adam_step(
    params: Any,
    grads: Any,
    exp_avgs: Any,
    exp_avg_sqs: Any,
    steps: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
) -> None: ...
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
def _probe(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any]: ...

@type_check_only
class _PybindType(type): ...

class MlpFisher(metaclass=_PybindType):
    def __init__(
        self, n: int, layers: list[tuple[int, int, int, int, int]], log_std_at: int, categorical: bool
    ) -> None: ...
    def refresh(self, weights: list[Any], values: list[Any], slopes: list[Any], scale: Any) -> None: ...
    def product(self, v: Any, damping: float) -> Any: ...

class SumTreeCore(metaclass=_PybindType):
    def __init__(self, capacity: int, dtype: str, state: Any, tensor_type: Any = None) -> None: ...
    def update(self, indices: Any, priorities: Any) -> None: ...
    def update_from_td_errors(self, indices: Any, td_errors: Any, alpha: Any, eps: Any, keep_zeros: bool) -> float: ...
    def get(self, indices: Any) -> Any: ...
    def find(self, prefix_sums: Any) -> Any: ...
    def sample(self, batch_size: Any, stratified: bool, replacement: bool) -> tuple[Any, Any]: ...
    def sample_weighted(self, batch_size: Any, beta: Any, normalize: Any, stratified: bool) -> tuple[Any, Any]: ...
    def load(self, priorities: Any) -> None: ...
    def priorities(self) -> Any: ...
    def clear(self) -> None: ...
    def acquire(self) -> bool: ...
    def release(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def total(self) -> float: ...
    @property
    def min(self) -> float: ...
    @property
    def max(self) -> float: ...
