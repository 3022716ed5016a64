#!/usr/bin/env bash
# safetensors 0.8.0, safetensors.numpy.save and save_file: of an array that is not contiguous (a transpose, a slice with
# a step) other numbers are written than it holds, without an error. safetensors 0.7.0 wrote the right ones, and
# safetensors.torch refuses such a tensor. The docstring says that arrays "need to be contiguous"; nothing checks it.
# Seen: [[0, 1, 2], [3, 4, 5]] transposed, [[0, 3], [1, 4], [2, 5]], comes back as [[0, 1], [2, 3], [4, 5]].
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
cd "$tmp"
for version in 0.7.0 0.8.0; do
  "$tmp/venv/bin/pip" install -q --disable-pip-version-check safetensors==$version numpy==2.4.6
  "$tmp/venv/bin/python" - <<'PY'
import numpy as np
import safetensors
from safetensors.numpy import load, save

x = np.arange(6, dtype=np.float32).reshape(2, 3)
found = {name: load(save({"x": a}))["x"].tolist() == a.tolist() for name, a in (("T", x.T), ("::2", x[:, ::2]), ("whole", x))}
print("safetensors", safetensors.__version__, "comes back as it was:", found)
right = safetensors.__version__ == "0.7.0"
assert found == {"T": right, "::2": right, "whole": True}
PY
done
