#!/usr/bin/env bash
# NumPy 2.4: the square of a float64 scalar, `x[i] ** 2`, is the C library's pow(x, 2), and that of an array, `x ** 2`, is
# x * x. With glibc they differ in the last bit for about one number in a thousand. So a loop over an array and the same
# code on the array, or a compiled program with x * x, drift apart: Gymnasium's Pendulum and Acrobot square scalars.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q numpy==2.4.6
cd "$dir" && venv/bin/python - <<'EOF'
import numpy as np

x = np.random.default_rng(0).uniform(-10, 10, 200_000)
by_item = np.array([item**2 for item in x])
assert np.array_equal(x**2, x * x)
differ = int((by_item != x**2).sum())
print(f"x[i] ** 2 != (x ** 2)[i] for {differ} of {x.size} numbers")
assert 0 < differ < x.size // 100, "NumPy or the C library has changed"
assert np.allclose(by_item, x**2, rtol=1e-15, atol=0)
EOF
