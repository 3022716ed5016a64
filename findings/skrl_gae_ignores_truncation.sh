#!/usr/bin/env bash
# skrl 2.1.1, compute_gae of its PPO (and A2C, RPO, TRPO, AMP, IPPO, MAPPO): it takes `truncated`, but unless
# time_limit_bootstrap=True, which is not the default, reads it nowhere. The step before a time limit then bootstraps from
# the value of the NEXT episode's first observation, and that episode's advantages flow back into this one.
# Seen: with and without a truncation after step 1 the advantages are the same, and a larger value of the first
# observation of the next episode raises the advantage of the last step of this one.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 skrl==2.1.1 gymnasium==1.4.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from skrl.agents.torch.ppo import PPO_CFG
from skrl.agents.torch.ppo.ppo import compute_gae


def advantages(cut, next_value=0.5, **how):
    """A = returns - V of four steps of one environment, which a time limit may cut after the second."""
    x = torch.zeros(4, 1, 1)
    values, truncated = x + 0.5, x.bool()
    values[2], truncated[1] = next_value, cut
    returns, _ = compute_gae(
        rewards=x + 1, terminated=x.bool(), truncated=truncated, values=values, last_values=x[0], **how
    )
    return (returns - values).flatten()


assert PPO_CFG().time_limit_bootstrap is False
print("skrl", version("skrl"), "not cut:", advantages(False).tolist(), "cut:", advantages(True).tolist())
assert torch.equal(advantages(True), advantages(False))
assert advantages(True, next_value=5.0)[1] != advantages(True)[1]
assert not torch.equal(advantages(True, time_limit_bootstrap=True), advantages(False, time_limit_bootstrap=True))
PY
