#!/usr/bin/env bash
# One wheel beside several versions of PyTorch: `bash .ci/torch_versions.sh PYTHON WHEEL [VERSION...]` runs the tests of
# what uses torch with each; if none is named, with the oldest that the extra `torch` takes, and a new one.
# PYTHON has the packages of the tests.  PyPI's builds of torch take up to 6 GB of disk; one is there at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1 wheel=$2
shift 2
[ $# -gt 0 ] || set -- "$(sed -n 's/^torch = \["torch>=\(.*\)"\]$/\1.0/p' pyproject.toml)" 2.14.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=$work/venv own=$work/venv/bin/python
site_packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
agents=(tests/agents/test_{r2d2,recurrent_ppo,images,own_networks,deploy,policies,masks,load,batch_norm,updates,on_policy_updates,q_prop}.py)
run_pytest() { FASTRL_REQUIRE_EXT=1 "$own" -P -m pytest -q -p no:cacheprovider -n auto --maxprocesses 4 "$@" | tee -a "$work/log"; }

said=()
for version in "$@"; do
  echo "== torch $version"
  "$python" -m venv --clear "$venv"
  if ! "$own" -m pip install -q --no-cache-dir "torch==$version"; then # no build for this Python, say
    said+=("$version: not to be had")
    continue
  fi
  "$own" -m pip install -q --no-deps "$wheel"
  site_packages "$python" >"$(site_packages "$own")/base.pth" # behind its own
  "$own" -P -c "import fastrl._C as c, sys, torch as t; assert t.__version__.split('+')[0] == '$version' and sys.prefix in c.__file__"
  : >"$work/log"
  names="not cuda"
  # Its compiler knows no getattr() of a tensor with a default.  Of tensors without data, and inside torch.func, errors of
  # torch before 2.10 say that DLPack cannot read them; its bfloat16 is gathered into out= alone.
  case $version in 2.4.*) names+=" and not compil and not meta_tensors and not transforms_of_torch_func and not torch_dtypes" ;; esac
  run_pytest tests/kernels tests/replay --backends cpp -k "(torch or arrays or gradient) and $names"
  run_pytest "${agents[@]}" tests/test_examples.py --backends cpp -k "$names"
  said+=("$version: $(sed -nE 's/^=* ?([0-9]+ passed.*) in .*/\1/p' "$work/log" | paste -sd '+')")
done
(IFS=';' && echo "${said[*]}")
