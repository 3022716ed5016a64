#!/usr/bin/env bash
# What must be seen on a GPU: `bash .ci/gpu.sh RESULTS [SECONDS]`, at most 7 minutes (420 seconds) in all. Builds for the
# card that is there, then runs all CUDA tests, the benchmarks with their targets, and compute-sanitizer on a few short
# calls of every op. RESULTS gets each step's output and the numbers. Where the build fails nothing else runs; any other
# failure stops no later step. The end of the output of what failed first is printed, before the names of the rest.
# Exit status: 0, 1 for a failure, 2 where something is missing, and it says what: a GPU, nvcc, compute-sanitizer, a Python with CUDA's torch and what the tests need (PYTHON=... names it).
#
# Every op is captured in a CUDA graph and replayed, and so is one whole update of DQN and of SAC: draw, gather, losses,
# backward passes, Adam, target networks, priorities (tests/agents/test_cuda_updates.py, which says what is the host's).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ $# -ge 1 ] && [ $# -le 2 ] || { echo "usage: bash .ci/gpu.sh RESULTS [SECONDS]" >&2; exit 2; }
mkdir -p "$1" && results=$(cd "$1" && pwd) || exit 2
[ -z "$(ls -A "$results")" ] || { echo "RESULTS must be a new or an empty folder: $1" >&2; exit 2; }
root=$PWD python=${PYTHON:-python3} all=${2:-420}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin

missing=()
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')
[[ $capability =~ ^[0-9]+$ ]] || missing+=("a GPU: nvidia-smi names no compute capability")
command -v nvcc >/dev/null || missing+=("nvcc: neither on PATH nor under CUDA_HOME")
command -v compute-sanitizer >/dev/null || missing+=("compute-sanitizer: it comes with the CUDA toolkit")
lacking=$(timeout 60 "$python" -c '
import importlib.util, sys
lacking = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
if "torch" not in lacking:
    import torch
    lacking += ["a torch that sees the GPU"] * (not torch.cuda.is_available())
print(*lacking, sep=", ")' torch pytest xdist hypothesis mpmath scipy gymnasium pybind11 scikit_build_core 2>/dev/null) ||
  lacking="what it takes to run"
[ -z "$lacking" ] || missing+=("$python lacks $lacking")
if [ ${#missing[@]} -gt 0 ]; then
  printf 'missing: %s\n' "${missing[@]}"
  exit 2
fi

failed=()
step() { # step NAME SECONDS COMMAND...: from outside the source tree, which has no extension; never beyond the limit of all
  local name=$1 limit=$2 start=$SECONDS status=124 left=$((all - SECONDS))
  shift 2
  if [ $left -gt 0 ]; then
    (cd "$work" && timeout -k 5 $((limit < left ? limit : left)) "$@") >"$results/$name.log" 2>&1 </dev/null
    status=$?
  else
    echo "not run: the $all seconds were over" >"$results/$name.log"
  fi
  printf '%-12s %4d s  %s\n' "$name" $((SECONDS - start)) "$([ $status -eq 0 ] && echo ok || echo "FAILED ($status)")" |
    tee -a "$results/summary"
  [ $status -eq 0 ] || failed+=("$name")
  return $status
}
nvidia-smi >"$results/summary"
export FASTRL_CUDA=ON FASTRL_REQUIRE_EXT=1 PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
pytest=("$python" -m pytest -q -p no:cacheprovider --rootdir "$root" -c "$root/pyproject.toml")

# With a look at what was built: without it, or with another build, all tests would be skipped.
built='import sys, fastrl._C_cuda as m; from fastrl._backend import cuda_backend as b; '
built+='assert m.__file__.startswith(sys.argv[1]) and m.devices() and b()[0] == "cuda", (m.__file__, m.devices(), b())'
build=(bash -ec '"${@:3}"; "$3" -c "$1" "$2"' build "$built" "$work" "$python"
  -m pip install -q --no-build-isolation --no-deps --target "$work/site"
  -C "cmake.define.FASTRL_CUDA_ARCHITECTURES=$capability-real" "$root")
if step build 160 "${build[@]}"; then
  step tests 110 "${pytest[@]}" -n 4 -k cuda "$root"/tests/{kernels,replay/test_buffer.py,agents/test_cuda_updates.py}
  step bench 60 "$python" "$root/bench/bench_cuda.py" --json "$results/bench.json"
  cat "$results/bench.log"
  for tool in memcheck racecheck synccheck; do # each tensor in memory of its own, so that what is beyond it is seen
    step $tool 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool --error-exitcode 9 \
      --target-processes all "${pytest[@]}" "$root/tests/kernels/test_cuda_short.py" -k "not captured"
  done
fi
printf '%-12s %4d s\n' total $SECONDS | tee -a "$results/summary"

if [ ${#failed[@]} -gt 0 ]; then
  printf '\n######## %s failed first; the end of its output:\n\n' "${failed[0]}"
  tail -n 60 "$results/${failed[0]}.log"
  [ ${#failed[@]} -eq 1 ] || printf '\n######## failed after it: %s\n' "${failed[*]:1}"
  exit 1
fi
