#!/usr/bin/env bash
# What must be seen on a GPU: `bash .ci/gpu.sh RESULTS`, at most 7 minutes. Builds for the card that is there, then runs
# the CUDA tests (capture and replay among them), compute-sanitizer on short ones, and the benchmarks; each step's output
# is in RESULTS. What failed first is printed last. Needs a GPU, nvcc, and a Python with CUDA's torch: PYTHON=... names it.
# Without them it says what is missing, and exits with 2.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ $# -eq 1 ] || { echo "usage: bash .ci/gpu.sh RESULTS" >&2; exit 2; }
mkdir -p "$1" && results=$(cd "$1" && pwd) || exit 2
root=$PWD python=${PYTHON:-python3}
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin

missing=()
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')
[[ $capability =~ ^[0-9]+$ ]] || missing+=("a GPU: nvidia-smi names no compute capability")
command -v nvcc >/dev/null || missing+=("nvcc: neither on PATH nor under CUDA_HOME")
command -v compute-sanitizer >/dev/null || missing+=("compute-sanitizer: it comes with the CUDA toolkit")
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
  missing+=("$python with a torch that sees the GPU")
"$python" -c 'import pytest, scikit_build_core, pybind11' 2>/dev/null ||
  missing+=("$python with pytest, scikit-build-core and pybind11")
if [ ${#missing[@]} -gt 0 ]; then
  printf 'missing: %s\n' "${missing[@]}" | tee "$results/missing"
  exit 2
fi

first_failure=
step() { # step NAME SECONDS COMMAND...: from outside the source tree, which has no extension
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  (cd "$results" && timeout "$limit" "$@") >"$results/$name.log" 2>&1 </dev/null
  status=$?
  printf '%-22s %4d s  %s\n' "$name" $((SECONDS - start)) "$([ $status -eq 0 ] && echo ok || echo "FAILED ($status)")" |
    tee -a "$results/summary"
  if [ $status -ne 0 ] && [ -z "$first_failure" ]; then first_failure=$name; fi
  return $status
}
: >"$results/summary"
nvidia-smi >"$results/nvidia-smi"
site=$results/site
export FASTRL_CUDA=ON FASTRL_REQUIRE_EXT=1
tests=() # the tests of CUDA, wherever they are
while IFS= read -r file; do tests+=("$root/$file"); done < <(git ls-files 'tests/kernels/*test_*.py' | xargs grep -lw cuda)
pytest=("$python" -m pytest -q -p no:cacheprovider --rootdir "$root" -c "$root/pyproject.toml")

if step build 150 "$python" -m pip install -q --no-build-isolation --no-deps --target "$site" \
  -C "cmake.define.FASTRL_CUDA_ARCHITECTURES=$capability-real" "$root"; then
  export PYTHONPATH=$site
  step tests 90 "${pytest[@]}" "${tests[@]}" -k "cuda or captured or graph"
  for tool in memcheck racecheck synccheck; do
    step "$tool" 40 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
      "${pytest[@]}" "${tests[@]}" -x \
      -k "float32 and reference and (17 or 63 or 64) and not torch"
  done
  step bench 50 "$python" "$root/bench/bench_cuda.py" --json "$results/bench.json"
  cat "$results/bench.log"
fi

if [ -n "$first_failure" ]; then
  printf '\n######## %s failed first; the end of its output:\n\n' "$first_failure"
  tail -n 60 "$results/$first_failure.log"
  exit 1
fi
