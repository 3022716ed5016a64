"""One whole update of DQN and of SAC in one CUDA graph, against the same updates one call after another.

An agent's replay buffer is the host's, which no graph can draw from: here rings and a SumTree on the device are in its
place.  What the host decides is what it was at the capture: the learning rate, the number of the update (Adam's bias
correction, the averaging's weight, whether it is the target network's turn).  Not in the graph: acting, and the check
of a prioritized loss for NaN.  Agents do not capture graphs themselves.
"""

import numpy as np
import pytest
from cuda_graphs import captured

from fastrl import SumTree, _backend
from fastrl.agents import DQN, SAC
from fastrl.kernels import gather_rows
from fastrl.kernels.n_step_gather import n_step_gather
from fastrl.replay import Batch

torch = pytest.importorskip("torch", reason="CUDA tensors need torch, which is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if _backend.cuda_backend()[0] != "cuda":
    pytest.skip(_backend.cuda_backend()[1], allow_module_level=True)

SLOTS, BATCH = 200, 32
SETTINGS = {"seed": 0, "device": "cuda", "hidden": (64, 64), "batch_size": BATCH, "n_step": 3, "prioritized": True}
AGENTS = {
    "dqn": lambda: DQN("CartPole-v1", double=True, dueling=True, averaging=True, **SETTINGS),
    "sac": lambda: SAC("Pendulum-v1", max_grad_norm=10.0, **SETTINGS),
}


class OnTheDevice:
    """An agent whose transitions and priorities are on the device, and what its updates leave there."""

    def __init__(self, name):
        self.agent = agent = AGENTS[name]()
        rng = np.random.default_rng(0)
        obs = rng.normal(size=(SLOTS + 1, agent._n_obs)).astype(np.float32)
        action = rng.uniform(-1, 1, (SLOTS, agent.n_actions)).astype(np.float32)
        if name == "dqn":
            action = rng.integers(0, agent.n_actions, SLOTS)
        arrays = obs[:-1], action, obs[1:], rng.normal(size=SLOTS).astype(np.float32)
        self.obs, self.action, self.next_obs, self.reward = (torch.from_numpy(x).cuda() for x in arrays)
        self.ends = [torch.from_numpy(rng.random(SLOTS) < 0.05).cuda() for _ in range(2)]
        self.tree = SumTree(SLOTS, dtype=torch.float32, device="cuda", seed=1)
        self.tree.update(torch.arange(SLOTS, device="cuda"), torch.rand(SLOTS, device="cuda") + 0.5)
        agent._sample, agent._learned = self.sample, self.learned
        self.optimizers = [agent.optimizer] if name == "dqn" else [
            agent.actor_optimizer, agent.critic_optimizer, agent.temperature_optimizer
        ]  # fmt: skip

    def sample(self):
        indices, weights = self.tree.sample_weighted(BATCH, 0.4)
        reward, discount, last = n_step_gather(self.reward, *self.ends, indices, 7, SLOTS, gamma=0.99, n=3)
        obs, action = gather_rows([self.obs, self.action], indices)
        following, terminated, truncated = gather_rows([self.next_obs, *self.ends], last)
        return Batch(obs, action, reward, following, terminated, truncated, indices, weights, discount)

    def learned(self, batch, q):
        self.tree.update_from_td_errors(batch.indices, self.agent._td_errors(q), 0.6, 1e-6)
        self.agent._last |= {"loss": q.loss, "mean_q": q.mean_q, "drawn": batch.indices}

    def update(self):
        self.agent.n_updates = 10
        for optimizer in self.optimizers:
            optimizer.steps = 10
        self.agent._update()
        return dict(self.agent._last)

    def left(self):
        """Parameters, gradients and moments, target networks, priorities."""
        parts = self.agent._parts()
        found = {f"{name}.vector": part.vector for name, part in parts.items() if hasattr(part, "vector")}
        for k, optimizer in enumerate(self.optimizers):
            found |= {f"{k}.exp_avg": optimizer.exp_avg, f"{k}.exp_avg_sq": optimizer.exp_avg_sq}
        return {**found, "priorities": self.tree[torch.arange(SLOTS, device="cuda")]}


@pytest.mark.parametrize("name", AGENTS)
def test_a_captured_update(name):
    """Replay k does what the k-th update does: it draws anew, learns, and gives new priorities."""
    ours, theirs = OnTheDevice(name), OnTheDevice(name)
    theirs.tree.load_state_dict(ours.tree.state_dict())
    graph, found = captured(ours.update)
    theirs.update()  # the one before the capture
    drawn = set()
    for _ in range(3):
        before = {part: x.clone() for part, x in ours.left().items()}
        graph.replay()
        wanted = theirs.update()
        assert set(found) == set(wanted)
        for number, x in wanted.items():
            torch.testing.assert_close(found[number], x, rtol=1e-4, atol=1e-5, msg=number)
        for part, x in theirs.left().items():
            torch.testing.assert_close(ours.left()[part], x, rtol=1e-4, atol=1e-5, msg=part)
            assert not torch.equal(ours.left()[part], before[part]), part
        drawn.add(tuple(found["drawn"].tolist()))
    assert len(drawn) == 3
    ours.tree.check()
    generators = [[x.tree.generator, *([x.agent.generator] if name == "sac" else [])] for x in (ours, theirs)]
    assert [g.state_dict() for g in generators[0]] == [g.state_dict() for g in generators[1]]
