"""The CUDA kernels on the CPU, without a GPU and without nvcc: they are compiled with g++, and the CUDA tests run them.

The threads of a block run in an order that a seed decides, and every access is watched (runtime.cpp), so these are
errors: data races, barriers and warp functions that not all of their threads reach, shared memory that is read
unwritten, accesses outside an array, undefined behaviour.  That each is found is tested by faults put into the sources.

What it cannot show: speed; what a weaker order of memory does to code that looks ordered here; how the GPU's own
functions (exp, pow, fused multiply-adds) round; launches that overlap, streams; graphs, whose work is done again; a
read of global memory that nobody wrote (it is filled with NaN, which the results then show).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
COMPILER = os.environ.get("CXX", "g++")


def library(name):
    """The path of one of the compiler's libraries, or None."""
    if not shutil.which(COMPILER):
        return None
    path = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return path if os.path.isabs(path) else None


pytest.importorskip("torch", reason="the CUDA tests need torch")
pytest.importorskip("pybind11", reason="compiling the CUDA module needs pybind11")
pytest.importorskip("fastrl._C", reason="needs the compiled extension")
if sys.platform != "linux" or not library("libasan.so") or not library("libubsan.so"):
    pytest.skip("needs Linux, GCC and its sanitizers", allow_module_level=True)


def build(folder, patch=None, base=None):
    sys.path.insert(0, str(HERE))
    try:
        from build import build as compile_module
    finally:
        sys.path.remove(str(HERE))
    return compile_module(folder, patch, base)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of the emulated module; under xdist one worker compiles it for all."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "cuda_emulation"
    try:
        folder.mkdir()
    except FileExistsError:
        wait_for(folder)
        return folder
    try:
        module = build(folder / "built")
        (folder / "done").write_text(str(module))
    finally:
        if not (folder / "done").exists():
            (folder / "done").write_text("")
    return folder


def wait_for(folder):
    import time

    for _ in range(600):
        if (folder / "done").exists():
            break
        time.sleep(1)
    assert (folder / "done").read_text(), "another worker could not compile it"


def run(module, folder, *arguments, seed=0, short=True):
    """pytest with `arguments`, in a process whose CUDA module is the emulated one."""
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(HERE),
        "FASTRL_EMULATION_MODULE": str(module),
        "FASTRL_EMULATION_SEED": str(seed),
        "FASTRL_EMULATION_SHORT": "1" if short else "",
    }
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    root = TESTS.parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "emulated", "-p", "no:xdist"]
    command += ["--rootdir", str(root), "-c", str(root / "pyproject.toml"), *map(str, arguments)]
    limit = 1500 if short else 4 * 3600
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit)
    return done.returncode, done.stdout + done.stderr


def cuda_tests():
    return [
        *sorted(TESTS.glob("kernels/**/test_*cuda*.py")),
        TESTS / "agents/test_cuda_updates.py",
        HERE / "cases_errors.py",
    ]


def check(base, folder, *tests, **options):
    status, output = run((base / "done").read_text(), folder, *tests, **options)
    assert status == 0, output[-6000:]
    assert int(re.search(r"(\d+) passed", output)[1]) > 0 and "skipped" not in output.splitlines()[-1], output[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])  # each file in a process of its own would load torch anew
def test_the_cuda_tests_pass(base, tmp_path, half):
    check(base, tmp_path, *cuda_tests()[half::2])


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("test", cuda_tests(), ids=lambda path: "-".join(path.with_suffix("").parts[-2:]))
def test_the_cuda_tests_pass_in_full(base, tmp_path, test, seed):
    check(base, tmp_path, test, seed=seed, short=False)


CG, HEADS = "conjugate_gradient/cuda.cu", "heads/rows.cuh"
SCANS, TREE = "scans/cuda.cu", "sum_tree/cuda.exact.cu"
MODULE = "binding/module_cuda.cpp"
FAULTS = {  # name: (file, regex, replacement, which tests, what is reported)
    "no barrier between two sums": (
        CG, r"__syncthreads\(\);  // a sum before.*", "", "several_blocks and 1025", "race: .* of shared",
    ),
    "no fence before the count": (
        CG, r"__threadfence\(\);\n    last", "last", "several_blocks and 5000", "race: a read of global",
    ),
    "a count that is not atomic": (
        CG, r"atomicAdd\(done, 1u\)", "(*done)++", "several_blocks and 5000", "race: .* of global",
    ),
    "an odd number of threads waits": (
        CG, r"(__syncthreads\(\);)\n  if \(!last\)", r"if (threadIdx.x != 7) \1\n  if (!last)",
        "several_blocks and 1025", "divergent: some threads wait.*__syncthreads",
    ),
    "a thread leaves before a barrier": (
        SCANS, r"const int64_t n = blockIdx.x;", r"\g<0> if (threadIdx.x == 5) return;", "a_zero_cuts", "divergent",
    ),
    "shared memory that nobody wrote": (
        SCANS, r"if \(lane == kWarp - 1\) maps", "if (lane == kWarp - 1 && warp > 0) maps", "130",
        "which no thread of the block has written",
    ),
    "shared memory that is written again without a barrier": (
        SCANS, r"of_warp\[tile % 2\]", "of_warp[0]", "reference and 1100", "race: a write of shared",
    ),
    "a mask without the last lane": (
        SCANS, r"kAllLanes = 0xFFFFFFFF", "kAllLanes = 0x7FFFFFFF", "130", "does not name its own lane",
    ),
    "one column too many": (SCANS, r"if \(n >= d.N\)", "if (n > d.N)", "reference and 63", "outside an array|race"),
    "one block too few": (
        SCANS, r"\(threads \+ block - 1\) / block", "threads / block", "reference and 63", "bad launch",
    ),
    "a shuffle as wide as the warp": (
        TREE, r"\+ h - 1, kFanout\)", "+ h - 1, kWarp)", "same_bits and 257", "AssertionError",
    ),
    "a generator's counter moves while its block reads": (
        HEADS, r"__syncthreads\(\);  // the block has read it", "", "test_categorical and 99", "race: .* of global",
    ),
    "a generator's counter moves while other blocks read": (
        HEADS, r"\+ 1 < gridDim.x", "+ 1 < 1", "test_categorical and 99", "race: .* of global",
    ),
    "no fence before a block is counted": (
        HEADS, r"__threadfence\(\);\n    if", "if", "test_categorical and 99", "race: a write of global",
    ),
    "no __syncwarp after a leaf is drawn": (
        TREE, r"__syncwarp\(\);\n    for", "for", "same_bits and 17", "race: .* of global",
    ),
    "an error of before is taken for the call's": (
        MODULE, r"cudaGetLastError\(\);  // not of this call", "", "another_library", "a call was to fail",
    ),
    "an error is left for the next call": (
        MODULE, r"if \(status != cudaSuccess\) cudaGetLastError\(\);", "", "leaves_no_error", "AssertionError",
    ),
    "the current device runs the kernels": (
        MODULE, r"before_ == device", "before_ != device", "of_the_arrays", "bad launch",
    ),
}  # fmt: skip
TEST_OF = {
    CG: lambda path: path.parent.name == "conjugate_gradient",
    HEADS: lambda path: path.name == "test_cuda_heads.py",
    SCANS: lambda path: "scans" in str(path.relative_to(TESTS)),
    MODULE: lambda path: path.name == "cases_errors.py",
    TREE: lambda path: "sum_tree" in str(path.relative_to(TESTS)) or path.name == "test_cuda.py",
}


OFTEN = ("no barrier between two sums", "an odd number of threads waits")  # quick to compile


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=pytest.mark.slow if f in OFTEN else pytest.mark.long) for f in FAULTS]
)
def test_a_fault_is_found(base, tmp_path, fault):
    file, pattern, replacement, which, report = FAULTS[fault]
    module = build(tmp_path / "built", (file, pattern, replacement), base / "built")
    tests = [path for path in cuda_tests() if TEST_OF[file](path)]
    status, output = run(module, tmp_path, *tests, "-x", "-k", which)
    assert status == 1 and re.search(report, output), output[-6000:]
