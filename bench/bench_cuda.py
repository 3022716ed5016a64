"""The CUDA kernels: shares of the speed of a copy, a captured prioritized step, small calls.

`python bench/bench_cuda.py [--json FILE]`.  Times are those of CUDA events, or of the host's clock where it says so.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

import fastrl


def device_us(call: Callable[[], object], repeats: int = 30, inner: int = 10) -> float:
    """Median microseconds of a call on the device."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
    source, target = torch.empty(2, size // 8, device="cuda", dtype=torch.float32)
    return device_us(lambda: target.copy_(source))


def rollout(T: int, N: int) -> tuple[torch.Tensor, ...]:
    rewards, values, next_values = torch.randn(3, T, N, device="cuda")
    terminated, truncated = torch.rand(2, T, N, device="cuda") < 0.01
    return rewards, values, next_values, terminated, truncated


def bench_scans() -> dict[str, dict[str, float]]:
    found = {}
    for T, N in ((128, 4096), (1024, 16384), (8192, 16)):
        arrays = rollout(T, N)
        outs = torch.empty(2, T, N, device="cuda").unbind()
        got = fastrl.gae(*arrays, gamma=0.99, lam=0.95, out=outs)
        columns = slice(0, 4)
        wanted = fastrl.gae(*(x[:, columns].cpu().numpy() for x in arrays), gamma=0.99, lam=0.95)
        np.testing.assert_allclose(got[0][:, columns].cpu().numpy(), wanted[0], rtol=1e-4, atol=1e-4)
        us = device_us(lambda arrays=arrays, outs=outs: fastrl.gae(*arrays, gamma=0.99, lam=0.95, out=outs))
        moved = T * N * (5 * 4 + 2)
        found[f"gae {T}x{N}"] = {"us": us, "GB/s": moved / us / 1e3, "share of a copy": copy_us(moved) / us}
    return found


def bench_tanh_normal() -> dict[str, dict[str, float]]:
    B, A = 1 << 18, 8
    mean, log_std = torch.randn(2, B, A, device="cuda")
    action, log_prob = fastrl.tanh_normal_sample(mean, log_std)
    assert bool(action.abs().le(1).all()) and bool(log_prob.isfinite().all())
    us = device_us(lambda: fastrl.tanh_normal_sample(mean, log_std))
    moved = B * A * 3 * 4 + B * 4
    return {f"tanh_normal_sample {B}x{A}": {"us": us, "GB/s": moved / us / 1e3, "share of a copy": copy_us(moved) / us}}


def bench_tree() -> dict[str, dict[str, float]]:
    capacity, batch = 1_000_000, 256
    tree = fastrl.SumTree(capacity, device="cuda", seed=0)
    tree.update(torch.arange(capacity, device="cuda"), torch.rand(capacity, device="cuda") + 0.1)
    errors = torch.rand(batch, device="cuda")

    def step() -> torch.Tensor:
        indices, _ = tree.sample_weighted(batch, 0.4)
        tree.update_from_td_errors(indices, errors, 0.6, 1e-6)
        return indices

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices = step()
    graph.replay()
    first = indices.clone()
    graph.replay()
    assert not torch.equal(first, indices), "each replay draws anew"
    tree.check()
    eager, replayed = device_us(step), device_us(graph.replay)
    return {
        f"tree sample + update {capacity} batch {batch}": {
            "us": eager,
            "captured us": replayed,
            "ratio": eager / replayed,
        }
    }


def bench_small_calls() -> dict[str, dict[str, float]]:
    arrays = rollout(16, 8)
    logits = torch.randn(8, 4, device="cuda")
    return {
        "small gae, host": {"us": host_us(lambda: fastrl.gae(*arrays, gamma=0.99, lam=0.95))},
        "small categorical_sample, host": {"us": host_us(lambda: fastrl.categorical_sample(logits))},
        "torch add, host": {"us": host_us(lambda: logits + logits)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the numbers to this file too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_cuda: torch finds no CUDA device")
    found = {}
    for bench in (bench_scans, bench_tanh_normal, bench_tree, bench_small_calls):
        found.update(bench())
    print(torch.cuda.get_device_name())
    for name, numbers in found.items():
        print(f"{name:45s}", "  ".join(f"{unit} {x:.3g}" for unit, x in numbers.items()))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
