"""`fastrl.conjugate_gradient` on a SciPy LinearOperator: ridge regression without ever forming X^T X.

Needs scipy.  Run: python examples/cg_scipy.py --rows 2000 --columns 500
"""

import argparse

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

import fastrl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--ridge", type=float, default=1.0)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.rows, args.columns)) * np.geomspace(1, 10, args.columns)  # badly scaled on purpose
    y = x @ rng.standard_normal(args.columns) + 0.1 * rng.standard_normal(args.rows)

    gram = LinearOperator((args.columns, args.columns), matvec=lambda v: x.T @ (x @ v), dtype=np.float64)
    b = x.T @ y
    inverse_diagonal = 1 / (np.square(x).sum(0) + args.ridge)

    solve = {"max_iter": 5 * args.columns, "rtol": 1e-10, "damping": args.ridge}
    plain, plain_info = fastrl.conjugate_gradient(gram, b, **solve)
    w, info = fastrl.conjugate_gradient(gram, b, preconditioner=inverse_diagonal, **solve)

    # The damping is the ridge; SciPy has none, so it gets the sum of two operators.
    shifted = LinearOperator(gram.shape, matvec=lambda v: gram.matvec(v) + args.ridge * v, dtype=np.float64)
    expected, _ = cg(shifted, b, rtol=1e-10, maxiter=5 * args.columns)
    np.testing.assert_allclose(w, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(plain, expected, rtol=1e-6, atol=1e-8)
    print(f"plain: {plain_info.status} after {plain_info.iterations} iterations")
    print(f"with the diagonal as preconditioner: {info.status} after {info.iterations} iterations, as SciPy's cg")


if __name__ == "__main__":
    main()
