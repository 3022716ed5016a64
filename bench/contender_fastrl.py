"""fastrl as a contender of an external harness of peers with the cases A.sample, A.update, A.cycle and A.full.

Save it beside that harness's bench.py, which loads every contender_*.py.  As in the peers' rows, an update includes the
power (priority + eps)^alpha.
"""

import fam_a_per
import numpy as np

from bench import register
from fastrl import PrioritizedReplay, SumTree, set_num_threads

ALPHA, BETA, EPS = fam_a_per.ALPHA, fam_a_per.BETA, 1e-6
set_num_threads(1)


class Tree(fam_a_per.UpdateInputs):
    def setup(self, cap, batch):
        self.tree = SumTree(cap, seed=0)
        self.tree.update(np.arange(cap), fam_a_per.prios(cap) ** ALPHA)
        self.batch = batch
        self.make(cap, batch)


@register("A.sample", "fastrl")
class Sample(Tree):
    def run(self):
        return self.tree.sample_weighted(self.batch, BETA)


@register("A.update", "fastrl")
class Update(Tree):
    def run(self):
        indices, priorities = self.nxt()
        self.tree.update_from_td_errors(indices, priorities, ALPHA, EPS)


@register("A.cycle", "fastrl")
class Cycle(Tree):
    def run(self):
        indices, weights = self.tree.sample_weighted(self.batch, BETA)
        self.tree.update_from_td_errors(indices, self.nxt()[1], ALPHA, EPS)
        return weights


@register("A.full", "fastrl")
class Full:
    def setup(self, cap, batch, obs):
        columns = fam_a_per.columns(obs, cap)
        envs = 64  # only to fill it fast
        steps = cap // envs
        x = columns["obs"]
        self.buffer = PrioritizedReplay(
            cap,
            (x.shape[1:], x.dtype),
            ((6,), np.float32),
            envs,
            alpha=ALPHA,
            beta=BETA,
            beta_end=BETA,
            eps=EPS,
            seed=0,
        )
        for start in range(0, steps * envs, envs):
            rows = slice(start, start + envs)
            # Next observations are the following step's: stored once, as an environment gives them.
            following = x[start + envs : start + 2 * envs] if start + 2 * envs <= cap else x[:envs]
            done = columns["done"][rows, 0] > 0
            self.buffer.add(x[rows], columns["act"][rows], columns["rew"][rows, 0], following, done, done)
        tree = self.buffer._tree
        rows = np.flatnonzero(tree[np.arange(tree.capacity)])
        self.buffer.update_priorities(rows, fam_a_per.prios(len(rows)))
        self.batch = batch

    def run(self):
        return self.buffer.sample(self.batch)
