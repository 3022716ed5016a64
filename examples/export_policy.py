"""Load a trained agent without its environment and export its policy: torch.export, and ONNX if it is there.

pip install onnx onnxscript onnxruntime  # only for the ONNX part
python examples/export_policy.py [folder]
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import fastrl.agents

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "exported")
folder.mkdir(parents=True, exist_ok=True)
sac = fastrl.agents.SAC("Pendulum-v1", hidden=(64, 64), batch_size=64, seed=0)
sac.learn(1500, progress=False).save(folder / "agent")

# Where the policy is deployed, neither the environment nor the algorithm has to be known.
agent = fastrl.agents.load(folder / "agent")
# Observations [B, 3] -> actions [B, 1] as the environment takes them: scaling, tanh and bounds are inside.
policy = agent.policy_to_torch()
env = gym.make("Pendulum-v1")
obs = np.stack([env.observation_space.sample() for _ in range(5)])
expected = agent.predict(obs)
np.testing.assert_allclose(policy(torch.from_numpy(obs)).numpy(), expected, rtol=1e-4, atol=1e-5)

batch = {0: torch.export.Dim("batch")}
program = torch.export.export(policy, (torch.from_numpy(obs),), dynamic_shapes=(batch,))
torch.export.save(program, folder / "policy.pt2")
again = torch.export.load(folder / "policy.pt2").module()  # without fastrl
np.testing.assert_allclose(again(torch.from_numpy(obs[:2])).numpy(), expected[:2], rtol=1e-4, atol=1e-5)
print(f"torch.export: {folder / 'policy.pt2'}")

try:
    import onnx  # noqa: F401
    import onnxscript  # noqa: F401
except ImportError:
    print("ONNX: left out, pip install onnx onnxscript")
else:
    torch.onnx.export(
        policy, (torch.from_numpy(obs),), folder / "policy.onnx", input_names=["obs"], output_names=["action"],
        dynamic_shapes=(batch,), dynamo=True,
    )  # fmt: skip
    print(f"ONNX: {folder / 'policy.onnx'}")
    try:
        import onnxruntime
    except ImportError:
        print("ONNX: not run, pip install onnxruntime")
    else:
        session = onnxruntime.InferenceSession(folder / "policy.onnx")
        (action,) = session.run(None, {"obs": obs})
        np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-5)
        print("ONNX: the actions are those of predict")
