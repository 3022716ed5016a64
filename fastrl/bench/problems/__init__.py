"""The problems that `fastrl bench` times, a file for each family of kernels."""

from fastrl.bench.problems import curvature, gathers, heads, scans, sum_tree
from fastrl.bench.timing import Kernel

KERNELS: dict[str, Kernel] = {
    name: kernel for family in (scans, sum_tree, gathers, heads, curvature) for name, kernel in family.KERNELS.items()
}
