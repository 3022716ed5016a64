"""The compiled CPU kernels; call them through fastrl.kernels, which documents them."""

from typing import Any, final

def simd_level() -> str: ...
def jax_handlers(major: int, minor: int) -> dict[str, Any]: ...
def jax_sum_tree_sizes(capacity: int, float64: bool) -> tuple[int, int]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
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
def cem_argmax(
    sizes: list[int],
    activation: int,
    layer_norm: bool,
    dueling: bool,
    vector: Any,
    obs: Any,
    noise: Any,
    elites: int,
    std: float,
) -> tuple[Any, Any]: ...
def quadratic_advantage(mean: Any, cholesky: Any, action: Any) -> Any: ...
def quadratic_advantage_backward(mean: Any, cholesky: Any, action: Any, grad: Any) -> tuple[Any, Any]: ...
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
def flat_adam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    target: Any,
    average: Any,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    steps: float,
    max_norm: float,
    tau: float,
    average_weight: float,
) -> float: ...
def q_learning_loss(
    q: Any,
    actions: Any,
    rewards: Any,
    discounts: Any,
    next_q: Any,
    next_q_online: Any,
    weights: Any,
    huber: bool,
) -> tuple[float, Any, Any, float]: ...
def min_q_targets(next_q: Any, rewards: Any, discounts: Any, next_log_prob: Any, temperature: float) -> Any: ...
def q_regression_loss(q: Any, targets: Any, weights: Any, huber: bool) -> tuple[float, Any, Any, float]: ...
def min_q_loss(q: Any) -> tuple[float, Any]: ...
def value_loss(values: Any, returns: Any, old_values: Any, clip_range: float, coef: float) -> tuple[float, Any]: ...
def ppo_categorical_loss(
    logits: Any,
    actions: Any,
    old_log_probs: Any,
    advantages: Any,
    old_logits: Any,
    clip_range: float,
    kl_coef: float,
    entropy_coef: float,
    normalize: bool,
) -> tuple[float, float, float, float, Any]: ...
def ppo_normal_loss(
    mean: Any,
    log_std: Any,
    actions: Any,
    old_log_probs: Any,
    advantages: Any,
    old_mean: Any,
    old_log_std: Any,
    clip_range: float,
    kl_coef: float,
    entropy_coef: float,
    normalize: bool,
) -> tuple[float, float, float, float, Any, Any]: ...
def categorical_projection(probs: Any, rewards: Any, discounts: Any, v_min: float, v_max: float) -> Any: ...
def c51_loss(
    logits: Any,
    actions: Any,
    rewards: Any,
    discounts: Any,
    next_logits: Any,
    next_logits_online: Any,
    weights: Any,
    v_min: float,
    v_max: float,
) -> tuple[float, Any, Any, float]: ...
def c51_actor_loss(logits: Any, v_min: float, v_max: float) -> tuple[float, Any]: ...
def quantile_huber_loss(
    quantiles: Any,
    actions: Any,
    rewards: Any,
    discounts: Any,
    next_quantiles: Any,
    next_quantiles_online: Any,
    weights: Any,
    taus: Any,
    kappa: float,
) -> tuple[float, Any, Any, float]: ...
def _probe(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any]: ...

@final
class MlpCore:
    def __init__(
        self, sizes: list[int], activation: str, n: int, stacked: bool, layer_norm: bool, dueling: int
    ) -> None: ...
    @property
    def size(self) -> int: ...
    def forward(self, vector: Any, x: Any, first: int, cached: bool) -> Any: ...
    def backward(self, d_out: Any, grad: Any, begin: int, end: int) -> Any: ...

@final
class MlpFisher:
    def __init__(
        self, n: int, layers: list[tuple[int, int, int, int, int]], log_std_at: int, logits: list[int]
    ) -> None: ...
    def refresh(self, weights: list[Any], values: list[Any], slopes: list[Any], scale: Any) -> None: ...
    def product(self, v: Any, damping: float) -> Any: ...

def publish(counter: Any, value: int) -> None: ...
def observe(counter: Any) -> int: ...

@final
class ReplayRing:
    def __init__(
        self,
        obs: Any,
        next_obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        cut: Any,
        added: Any,
        start: Any,
        cursor: Any,
        broken: Any,
        depth: Any,
        frames: int,
        leaves: list[tuple[int, int]],
    ) -> None: ...
    def try_add(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        next_obs: Any,
        terminated: Any,
        truncated: Any,
        mask: Any,
        episode_start: Any,
        priority: float,
        rows: Any,
        priorities: Any,
    ) -> int | None: ...
    def write(
        self,
        steps: int,
        first: int,
        envs: int,
        obs: Any,
        action: Any,
        reward: Any,
        next_obs: Any,
        terminated: Any,
        truncated: Any,
        mask: Any,
        episode_start: Any,
        priority: float,
        rows: Any,
        priorities: Any,
    ) -> int: ...
    def unshifted(self, steps: int, obs: Any, next_obs: Any, mask: Any) -> int: ...
    def finish(self, rows: Any, last: Any, next_obs: list[Any]) -> Any: ...
    def stacks(self, rows: Any, last: Any, obs: list[Any], next_obs: list[Any]) -> Any: ...
    def windows(
        self, rows: Any, steps: int, gamma: float, sources: list[Any], outs: list[Any], next_obs: list[Any]
    ) -> tuple[Any, Any, Any]: ...
    def locate(self, numbers: Any) -> tuple[Any, int]: ...
    def extras(self) -> tuple[Any, Any]: ...
    def set_extras(self, rows: Any, data: Any) -> None: ...
    def heads(self) -> tuple[Any, Any]: ...
    def set_heads(self, rows: Any, data: Any) -> None: ...

@final
class SumTreeCore:
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

@final
class ClassicControl:
    def __init__(
        self,
        name: str,
        state: Any,
        elapsed: Any,
        done: Any,
        fresh: Any,
        last_action: Any,
        max_steps: int,
        mode: str,
        parameter: float,
        low: Any,
        high: Any,
        sin: Any,
        cos: Any,
    ) -> None: ...
    def set_generators(self, bit_generators: list[Any]) -> None: ...
    def reset(self, which: Any, low: Any, high: Any) -> Any: ...
    def observe(self) -> Any: ...
    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]: ...
