"""The CUDA kernels: shares of the speed of a copy, a captured prioritized step beside others' ways, small calls.

`python bench/bench_cuda.py [--json FILE]`.  Times are those of CUDA events, or of the host's clock where it says so.
Answers are checked first (those of small calls at other sizes); then a target that is missed (`TARGETS`) is named, and
the exit status is 1.
"""

import argparse
import json
import operator
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import fastrl

Found = dict[str, dict[str, float]]  # row -> unit -> number

WIDE = (1024, 16384)  # what is moved is several times the L2 cache
SCANS = [WIDE, (128, 4096), (8192, 16)]  # gae alone at the others: too few columns or too little memory to fill a GPU
ROWS, COLUMNS = 1 << 21, 8
CAPACITIES, BATCH = (10_000, 100_000, 1_000_000, 10_000_000), 256
ALPHA, BETA, EPS = 0.6, 0.4, 1e-6

SHARE, CAPTURED, HOST = "share of a copy", "captured us", "host us"
OPS = (
    "gae",
    "discounted_returns",
    "lambda_returns",
    "n_step_returns",
    "vtrace",
    "off_policy_returns",
    "reverse_affine_scan",
)
SMALL = ("gae", "categorical_sample", "tanh_normal_sample", "tree sample")
AT_MOST, AT_LEAST = operator.le, operator.ge
TARGETS: dict[tuple[str, str], tuple[Callable[[float, float], bool], float]] = {
    **{(f"{op} {WIDE[0]}x{WIDE[1]}", SHARE): (AT_LEAST, 0.85) for op in OPS},
    **{(f"tanh_normal_{op} {ROWS}x{COLUMNS}", SHARE): (AT_LEAST, 0.85) for op in ("sample", "log_prob")},
    ("tree 1000000, fastrl", CAPTURED): (AT_MOST, 15),
    ("tree 1000000, cumsum + searchsorted", "/ fastrl"): (AT_LEAST, 1),
    ("tree 1000000, all levels of a binary tree", "/ fastrl"): (AT_LEAST, 1),
    **{(f"small {name}", HOST): (AT_MOST, 10) for name in SMALL},
}


def missed(found: Found) -> list[str]:
    """The targets that were missed, in words."""
    said = []
    for (row, unit), (ok, limit) in TARGETS.items():
        number, wanted = found.get(row, {}).get(unit), f"{'<=' if ok is AT_MOST else '>='} {limit:g}"
        if number is None or not ok(number, limit):
            said.append(f"{row}: {unit} {'not measured' if number is None else f'{number:.3g}'}, wanted {wanted}")
    return said


# ---- clocks


def device_us(call: Callable[[], object], repeats: int = 30, inner: int = 10, queued: bool = True) -> float:
    """Median microseconds of a call on the device, which sleeps until all are `queued`: no time is then the host's."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if queued:
            torch.cuda._sleep(2_000_000)  # cycles, about a millisecond
        begin.record()
        for _ in range(inner):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / inner)
    return statistics.median(times)


def host_us(call: Callable[[], object], calls: int = 2000) -> float:
    """Microseconds of a call on the host, without waiting for the device."""
    for _ in range(100):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = time.perf_counter() - begin
    torch.cuda.synchronize()
    return elapsed / calls * 1e6


def copy_us(size: int) -> float:
    """Of a copy that reads and writes `size` bytes in all."""
    source, target = torch.empty(2, size // 8, device="cuda", dtype=torch.float32)
    return device_us(lambda: target.copy_(source))


def shares(call: Callable[[], object], arrays: Sequence[Any]) -> dict[str, float]:
    """Of a call that reads and writes each of the arrays once."""
    moved = sum(x.numel() * x.element_size() for x in arrays if isinstance(x, torch.Tensor))
    us = device_us(call)
    return {"us": us, "GB/s": moved / us / 1e3, SHARE: copy_us(moved) / us}


def captured(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of `work`, and what it returns."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph, results


# ---- scans


def scan_calls(T: int, N: int) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments and options by op."""
    rewards, values, following, log_rhos = torch.randn(4, T, N, device="cuda")
    ends, traces = tuple(torch.rand(2, T, N, device="cuda") < 0.01), torch.rand(T, N, device="cuda")
    discount: dict[str, Any] = {"gamma": 0.99}
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
        ((rewards, values, following, *ends), discount | {"lam": 0.95}),
        ((rewards, *ends), discount),
        ((rewards, following, *ends), discount | {"lam": 0.95}),
        ((rewards, following, *ends), discount | {"n": 3}),
        ((rewards, values, following, *ends, log_rhos / 4), discount),
        ((rewards, values, following, traces, *ends), discount),
        ((traces, rewards), {}),
    )
    return dict(zip(OPS, calls, strict=True))


def bench_scans() -> Found:
    found = {}
    for T, N in SCANS:
        calls = scan_calls(T, N)
        for op in OPS if (T, N) == WIDE else OPS[:1]:
            arguments, options = calls[op]
            function = getattr(fastrl, op)
            out = function(*arguments, **options)
            wanted = function(*(x[:, :4].cpu().numpy() for x in arguments), **options)
            outs = out if isinstance(out, tuple) else (out,)
            for got, want in zip(outs, wanted if isinstance(out, tuple) else (wanted,), strict=True):
                if op != "n_step_returns" or got.dtype == torch.float32:  # its indices count all columns
                    np.testing.assert_allclose(got[:, :4].cpu().numpy(), want, rtol=1e-4, atol=1e-4, err_msg=op)
            call = lambda f=function, a=arguments, o=options, out=out: f(*a, **o, out=out)  # noqa: E731
            found[f"{op} {T}x{N}"] = shares(call, (*arguments, *outs))
    return found


# ---- the tanh-Gaussian


def bench_tanh_normal() -> Found:
    mean, log_std = torch.randn(2, ROWS, COLUMNS, device="cuda")
    action, log_prob = fastrl.tanh_normal_sample(mean, log_std)
    assert bool(action.abs().le(1).all()) and bool(log_prob.isfinite().all())
    few = mean[:100], log_std[:100], torch.randn(100, COLUMNS, device="cuda")
    drawn = fastrl.tanh_normal_sample(*few[:2], noise=few[2])
    for got, want in zip(
        drawn, fastrl.tanh_normal_sample(*(x.cpu() for x in few[:2]), noise=few[2].cpu()), strict=True
    ):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-3)
    inside = action.clamp(-0.99, 0.99)
    some = (x[:100].cpu().numpy() for x in (mean, log_std, inside))
    got = fastrl.tanh_normal_log_prob(mean, log_std, inside)[:100].cpu().numpy()
    np.testing.assert_allclose(got, fastrl.tanh_normal_log_prob(*some), rtol=1e-3, atol=1e-3)
    size, arrays = f"{ROWS}x{COLUMNS}", (mean, log_std, action, log_prob)
    return {
        f"tanh_normal_sample {size}": shares(lambda: fastrl.tanh_normal_sample(mean, log_std), arrays),
        f"tanh_normal_log_prob {size}": shares(lambda: fastrl.tanh_normal_log_prob(mean, log_std, inside), arrays),
    }


# ---- one prioritized step: BATCH stratified draws with their weights, then new priorities of TD errors


class Ours:
    def __init__(self, priorities: torch.Tensor) -> None:
        n = len(priorities)
        self.tree = fastrl.SumTree(n, dtype=torch.float32, device="cuda", seed=0)
        self.tree.update(torch.arange(n, device="cuda"), priorities)

    def find(self, sums: torch.Tensor) -> torch.Tensor:
        return self.tree.find(sums)

    def step(self, errors: torch.Tensor) -> Any:
        indices, weights = self.tree.sample_weighted(BATCH, BETA)
        self.tree.update_from_td_errors(indices, errors, ALPHA, EPS)
        return indices, weights


def strata(total: torch.Tensor) -> torch.Tensor:
    return (torch.arange(BATCH, device="cuda") + torch.rand(BATCH, device="cuda")) * (total / BATCH)


def weighted(priorities: torch.Tensor, total: torch.Tensor, n: int) -> torch.Tensor:
    weights = (priorities * (n / total)) ** -BETA
    return weights / weights.max()


class Cumsum:
    """O(N): the running sums anew at each step."""

    def __init__(self, priorities: torch.Tensor) -> None:
        self.priorities = priorities.clone()

    def find(self, sums: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self.priorities.cumsum(0), sums, right=True).clamp_(max=len(self.priorities) - 1)

    def step(self, errors: torch.Tensor) -> Any:
        sums = self.priorities.cumsum(0)
        indices = torch.searchsorted(sums, strata(sums[-1]), right=True).clamp_(max=len(sums) - 1)
        weights = weighted(self.priorities[indices], sums[-1], len(sums))
        self.priorities[indices] = (errors.abs() + EPS) ** ALPHA
        return indices, weights


class AllLevels:
    """O(N), the update alone: leaves are written and then all levels above anew, a launch each.

    As torchrl's tree for CUDA does (torchrl/csrc/cuda_segment_tree.cu), but for its search and its second tree of
    minima: what it takes at least.
    """

    def __init__(self, priorities: torch.Tensor) -> None:
        self.n = 1 << (len(priorities) - 1).bit_length()
        self.tree = torch.zeros(2 * self.n, device="cuda")
        self.write(torch.arange(len(priorities), device="cuda"), priorities)
        self.indices = torch.randint(0, len(priorities), (BATCH,), device="cuda")

    def write(self, indices: torch.Tensor, priorities: torch.Tensor) -> None:
        self.tree[self.n + indices] = priorities
        level = self.n // 2
        while level:
            torch.sum(self.tree[2 * level : 4 * level].view(level, 2), 1, out=self.tree[level : 2 * level])
            level //= 2

    def step(self, errors: torch.Tensor) -> Any:
        self.write(self.indices, (errors.abs() + EPS) ** ALPHA)
        return (self.tree[1],)


class Torchrl:
    """O(N): torchrl's own tree for CUDA, as its PrioritizedSampler uses it."""

    def __init__(self, priorities: torch.Tensor) -> None:
        from torchrl._torchrl import CudaMinSegmentTreeFp32, CudaSumSegmentTreeFp32  # not in the wheels on PyPI

        self.n, device = len(priorities), torch.device("cuda", 0)
        self.trees = CudaSumSegmentTreeFp32(self.n, device), CudaMinSegmentTreeFp32(self.n, device)
        self.ends = torch.zeros((), dtype=torch.int64, device="cuda"), torch.full((), self.n, device="cuda")
        self.write(torch.arange(self.n, device="cuda"), priorities)

    def write(self, indices: torch.Tensor, priorities: torch.Tensor) -> None:
        for tree in self.trees:
            tree[indices] = priorities

    def find(self, sums: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.trees[0].scan_lower_bound(sums)
        return found.clamp_(max=self.n - 1)

    def step(self, errors: torch.Tensor) -> Any:
        total = self.trees[0].query(*self.ends)
        self.trees[1].query(*self.ends)
        indices = self.find(strata(total))
        weights = weighted(self.trees[0][indices], total, self.n)
        self.write(indices, (errors.abs() + EPS) ** ALPHA)
        return indices, weights


CONTENDERS: dict[str, Any] = {
    "fastrl": Ours,
    "cumsum + searchsorted": Cumsum,
    "all levels of a binary tree": AllLevels,
    "torchrl": Torchrl,
}


def check_tree(name: str, contender: Any) -> None:
    """Priorities are whole numbers, whose sums are exact: each must find what the running sums say."""
    n = 1000
    priorities = torch.randint(1, 9, (n,), device="cuda").float()
    made, sums = contender(priorities), priorities.cumsum(0)
    if hasattr(made, "find"):
        between = (torch.rand(BATCH, device="cuda") * (sums[-1] - 1)).floor() + 0.5
        assert torch.equal(made.find(between), torch.searchsorted(sums, between, right=True)), name
    else:
        assert float(made.tree[1]) == float(sums[-1]), name
    errors = torch.rand(BATCH, device="cuda")
    first, *weights = made.step(errors)
    assert all(bool((w > 0).all() and (w <= 1).all()) for w in weights), name
    if weights:
        assert not torch.equal(first, made.step(errors)[0]), f"{name} draws anew"


def bench_tree() -> Found:
    found: Found = {}
    contenders = {**CONTENDERS}
    for name, contender in CONTENDERS.items():
        try:
            check_tree(name, contender)
        except ImportError as error:
            print(f"{name} is left out: {error}")
            del contenders[name]
    for capacity in CAPACITIES:
        priorities, errors = torch.rand(capacity, device="cuda") + 0.1, torch.rand(BATCH, device="cuda")
        for name, contender in contenders.items():
            made = contender(priorities)
            graph, (drawn, *_) = captured(lambda made=made, errors=errors: made.step(errors))
            graph.replay()
            first = drawn.clone()
            graph.replay()
            assert name == "all levels of a binary tree" or not torch.equal(first, drawn), "each replay draws anew"
            row = found[f"tree {capacity}, {name}"] = {CAPTURED: device_us(graph.replay)}
            row["/ fastrl"] = row[CAPTURED] / found[f"tree {capacity}, fastrl"][CAPTURED]
            if name == "fastrl":
                row["eager us"] = device_us(lambda made=made, errors=errors: made.step(errors), queued=False)
                made.tree.check()
    return found


# ---- small calls


def bench_small_calls() -> Found:
    (arguments, options), logits = scan_calls(16, 8)["gae"], torch.randn(8, 4, device="cuda")
    tree = fastrl.SumTree(1000, dtype=torch.float32, device="cuda", seed=0)
    tree.update(torch.arange(1000, device="cuda"), torch.ones(1000, device="cuda"))
    calls: dict[str, Callable[[], object]] = {
        "gae": lambda: fastrl.gae(*arguments, **options),
        "categorical_sample": lambda: fastrl.categorical_sample(logits),
        "tanh_normal_sample": lambda: fastrl.tanh_normal_sample(logits, logits),
        "tree sample": lambda: tree.sample(64),
        "torch add": lambda: logits + logits,
    }
    return {f"small {name}": {HOST: host_us(call)} for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the numbers to this file too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_cuda: torch finds no CUDA device")
    found: Found = {}
    print(torch.cuda.get_device_name())
    for bench in (bench_scans, bench_tanh_normal, bench_tree, bench_small_calls):
        part = bench()
        found.update(part)
        for name, numbers in part.items():
            print(f"{name:50s}", "  ".join(f"{unit} {x:.3g}" for unit, x in numbers.items()), flush=True)
    wrong = missed(found)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"found": found, "missed": wrong}, file, indent=1)
    if wrong:
        sys.exit("\n".join(["", f"{len(wrong)} of {len(TARGETS)} targets missed:", *wrong]))
    print(f"all {len(TARGETS)} targets met")


if __name__ == "__main__":
    main()
