"""Action masks: of environments, in training, in `predict` and in evaluations."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from fastrl.agents import A2C, CEM, DQN, PPO, REINFORCE, TRPO, InputError, RecurrentPPO, SACDiscrete
from fastrl.agents.envs import Envs
from fastrl.agents.masks import masks_given

K = 4
SMALL = {"hidden": (16,), "seed": 1}
DQN_SMALL = {**SMALL, "learning_starts": 20, "batch_size": 16, "buffer_size": 300, "epsilon_steps": 100}
ON_POLICY = {**SMALL, "n_steps": 8, "num_envs": 1}
CEM_SMALL = {**SMALL, "population": 2, "elites": 1}


class Masked(gym.Env):
    """The observation shows which actions are allowed, and the step; a forbidden one is an error.

    The best action is the last allowed one.  Half of the episodes are truncated, some of them with a mask; the others
    end with nothing allowed.
    """

    observation_space = gym.spaces.Box(0, 9, (K + 1,), np.float32)
    action_space = gym.spaces.Discrete(K, start=2)

    def __init__(self, kind="info", last=None):
        self.kind, self.last = kind, last

    def _draw(self, end=False):
        self.mask = self.np_random.random(K) < 0.5
        self.mask[self.np_random.integers(K)] = True
        if end:
            self.mask[:] = False
        if self.last is not None and self.t == 2:
            self.mask = self.last
        obs = np.concatenate([self.mask, [self.t]]).astype(np.float32)
        return obs, {"action_mask": self.mask.astype(np.int8)} if self.kind == "info" else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.cut = 0, bool(self.np_random.random() < 0.5)
        return self._draw()

    def step(self, action):
        assert self.mask[action - 2], "forbidden"
        reward = float(action - 2 == np.flatnonzero(self.mask)[-1])
        self.t += 1
        end = self.t == 5
        obs, info = self._draw(end and (not self.cut or self.np_random.random() < 0.5))
        return obs, reward, end and not self.cut, end and self.cut, info


gym.register("MaskedForTests-v0", Masked)


class MaskedByMethod(Masked):
    def __init__(self, last=None):
        super().__init__("method", last)

    def action_masks(self):
        return self.mask


def vector(mode, kind="info", wrapped=False):
    """`wrapped`: it steps itself, and its environments are not driven one by one."""
    envs = SyncVectorEnv([{"info": Masked, "method": MaskedByMethod}[kind]] * 3, autoreset_mode=mode)
    return RecordEpisodeStatistics(envs) if wrapped else envs


def same(a, b):
    (state_a, x), (state_b, y) = a._state(), b._state()
    return state_a == state_b and x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)


WRAPPED = pytest.mark.parametrize("wrapped", [False, True])
KIND = pytest.mark.parametrize("kind", ["info", "method"])
MODE = pytest.mark.parametrize("mode", list(AutoresetMode))


@WRAPPED
@KIND
@MODE
@pytest.mark.parametrize(
    ("cls", "settings"),
    [(DQN, DQN_SMALL), (PPO, ON_POLICY), (A2C, ON_POLICY), (REINFORCE, SMALL), (TRPO, ON_POLICY), (CEM, CEM_SMALL)],
)
def test_only_allowed_actions_are_taken_in_every_autoreset_mode(cls, settings, mode, kind, wrapped):
    agent = cls(vector(mode, kind, wrapped), **{**settings, "num_envs": 3})
    agent.learn(120, progress=False)  # else the environments raise
    assert agent.envs.allowed.shape == (3, K) and agent.n_updates > 0
    assert (agent.envs.allowed == agent.envs.obs[:, :K].astype(bool))[~agent.envs._done].all()


@WRAPPED
@KIND
@MODE
def test_masks_of_the_observations_that_were_reached(mode, kind, wrapped):
    envs, truncated = Envs(vector(mode, kind, wrapped), 3, 0, masks=True), 0
    assert (envs._loop is None) == (wrapped or mode == AutoresetMode.NEXT_STEP)
    for _ in range(60):
        t = envs.step(envs.allowed.argmax(1) + 2)
        shown, done = t.next_obs[:, :K] > 0, t.terminated | t.truncated
        unknown = done if wrapped and kind == "method" and mode == AutoresetMode.SAME_STEP else False  # reset already
        expected = np.where((~shown.any(1) | unknown)[:, None], True, shown)
        assert (t.next_allowed == expected).all()
        truncated += int((t.truncated & (shown.sum(1) % K > 0)).sum())
        assert (envs.allowed == (envs.obs[:, :K] > 0))[~(done & (mode == AutoresetMode.NEXT_STEP))].all()
    assert truncated > 3  # with a mask


@KIND
def test_lists_of_infos(kind):
    """Those of DictInfoToList: masks in them are refused, and methods count."""
    envs = DictInfoToList(vector(AutoresetMode.SAME_STEP, kind))
    if kind == "info":
        with pytest.raises(InputError, match=r"^Masked: action masks in the info must be an array, .* got a list"):
            DQN(envs, **DQN_SMALL)
    else:
        assert Envs(envs, 3, 0, masks=True).allowed.shape == (3, K)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"double": True, "dueling": True, "prioritized": True, "n_step": 3},
        {"distributional": "c51", "double": True, "atoms": 7, "v_min": -1.0, "v_max": 5.0},
        {"distributional": "qr", "atoms": 7},
        {"distributional": "iqn", "num_tau_samples": 7, "hidden": (8, 8)},
        {"distributional": "iqn", "num_tau_samples": 7, "double": True, "hidden": (8, 8)},
        {"exploration": "boltzmann"},
    ],
)
def test_dqn_bootstraps_from_allowed_actions_only_as_plain_torch_does(settings):
    agent = DQN("MaskedForTests-v0", **DQN_SMALL | settings, gamma=0.5)
    agent.learn(60, progress=False)
    c, b = agent.config, agent._sample()
    allowed = torch.from_numpy(agent._next_allowed)
    shown = torch.from_numpy(b.next_obs[:, :K] > 0)
    there = shown.any(1)  # else the episode has ended
    assert (shown[there].sum(1) < K).any() and (allowed == shown)[there].all() and allowed[~there].all()
    drawn, iqn = copy.deepcopy(agent.rng), c.distributional == "iqn"
    got = agent._loss(b)
    tau, tau_prime = (drawn.random((len(b.obs), n), np.float32) for n in (7, c.num_tau_prime_samples))

    def net(network, x, taus=None):
        out = torch.from_numpy(network.forward(x, taus) if iqn else network.forward(x))
        return out if c.distributional is None else out.reshape(len(out), K, -1)

    def mean(out):
        if out.ndim == 2:
            return out
        return out.mean(2) if c.distributional != "c51" else out.softmax(2) @ torch.from_numpy(agent._atoms)

    q, target = net(agent.online, b.obs, tau), net(agent.target, b.next_obs, tau_prime)
    chooser = mean(net(agent.online if c.double else agent.target, b.next_obs, *agent._taus))
    best = chooser.masked_fill(~allowed, -torch.inf).argmax(1)
    rows = torch.arange(len(best))
    assert allowed[rows, best].all()
    action, reward, discount = (torch.from_numpy(x) for x in (b.action, b.reward, b.discount))
    if c.distributional is None:
        error = q[rows, action] - (reward + discount * target[rows, best])
        expected = (torch.from_numpy(b.weights) * error**2).mean()
        np.testing.assert_allclose(got.td_errors, error, rtol=1e-4, atol=1e-5)
    elif c.distributional != "c51":
        y = reward[:, None] + discount[:, None] * target[rows, best]
        u = y[:, None, :] - q[rows, action][:, :, None]
        huber = torch.where(u.abs() <= 1, u**2 / 2, u.abs() - 0.5)
        tau = torch.from_numpy(tau)[:, :, None] if iqn else ((torch.arange(7) + 0.5) / 7)[None, :, None]
        expected = ((tau - (u < 0).float()).abs() * huber).mean(2).sum(1).mean()
    else:
        from fastrl import categorical_projection

        p = target[rows, best].softmax(1).numpy()
        m = torch.from_numpy(categorical_projection(p, b.reward, b.discount, v_min=c.v_min, v_max=c.v_max))
        expected = -(m * q[rows, action].log_softmax(1)).sum(1).mean()
    np.testing.assert_allclose(float(got.loss), float(expected), rtol=1e-4)


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_ppos_loss_and_gradient_with_masks_are_plain_torchs(objective):
    agent = PPO("MaskedForTests-v0", **ON_POLICY, objective=objective, entropy_coef=0.1)
    agent.learn(40, progress=False)
    agent._collect()
    policy, r, c = agent.policy, agent.rollout, agent.config
    obs, action, old_log_prob, *rest = r.batch(*r.advantages(c.gamma, c.gae_lambda, None))
    allowed = r.real(r.allowed)
    assert (allowed == (obs[:, :K] > 0)).all() and allowed[np.arange(len(action)), action].all()
    old_out = policy.output(obs, allowed=allowed) + 0
    policy.vector[: policy.n_policy] *= 2
    more = {"old_out": old_out} if objective == "penalty" else {}
    terms = agent._loss(obs, action, old_log_prob, *rest, allowed=allowed, **more)
    grad = policy.grad.copy()

    actor = copy.deepcopy(policy.actor).to_torch().requires_grad_(True)
    actor.zero_grad()
    logits = actor(torch.from_numpy(obs)).masked_fill(~torch.from_numpy(allowed), -1e9)
    pi = torch.distributions.Categorical(logits=logits)
    advantage = torch.from_numpy(rest[0])
    advantage = (advantage - advantage.mean()) / (advantage.std(unbiased=False) + 1e-8)
    rho = (pi.log_prob(torch.from_numpy(action)) - torch.from_numpy(old_log_prob)).exp()
    if objective == "clip":
        loss = -torch.min(rho * advantage, rho.clamp(1 - c.clip_range, 1 + c.clip_range) * advantage).mean()
    else:
        old = torch.distributions.Categorical(logits=torch.from_numpy(old_out).clamp(min=-1e9))
        kl = torch.distributions.kl_divergence(old, pi).mean()
        np.testing.assert_allclose(float(terms["kl"]), kl.item(), rtol=1e-4)
        exact = policy.kl(old_out, None, policy.output(obs, allowed=allowed)).mean()
        np.testing.assert_allclose(float(exact), kl.item(), rtol=1e-4)
        loss = -(rho * advantage).mean() + agent.penalty.beta * kl
    np.testing.assert_allclose(float(terms["policy_loss"]), loss.item(), rtol=1e-4, atol=1e-6)
    (loss - c.entropy_coef * pi.entropy().mean()).backward()
    expected = torch.cat([p.grad.flatten() for p in actor.parameters()])
    np.testing.assert_allclose(grad[: policy.n_policy], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (DQN, DQN_SMALL),
        (PPO, {**ON_POLICY, "num_envs": 2}),
        (A2C, {**ON_POLICY, "num_envs": 2}),
        (TRPO, {**ON_POLICY, "num_envs": 2}),
    ],
)
def test_training_goes_on_exactly_where_it_was(cls, settings, tmp_path):
    first, straight = (cls("MaskedForTests-v0", **settings) for _ in range(2))
    first.learn(48, schedule_steps=96, progress=False)
    straight.learn(96, progress=False)
    first.save(tmp_path / "a")
    loaded = cls.load(tmp_path / "a")
    assert np.array_equal(loaded.envs.allowed, first.envs.allowed)
    for agent in (first, loaded, copy.deepcopy(loaded)):
        assert same(agent.learn(96, progress=False), straight)


def test_predict_and_evaluations_keep_to_the_masks():
    agent = DQN(Masked(), **DQN_SMALL).learn(60, progress=False, eval_every=30, eval_env=Masked())
    obs, allowed = np.zeros((K, K + 1), np.float32), np.eye(K, dtype=bool)
    for deterministic in (True, False):
        assert (agent.predict(obs, deterministic, action_masks=allowed) == np.arange(K) + 2).all()
        assert agent.predict(obs[0], deterministic, action_masks=[0, 0, 1, 0]) == 4
    assert len(agent.evaluate(5, env=Masked())) == 5  # else it raises
    with pytest.raises(InputError, match=r"^MaskedByMethod: the action mask forbids all"):
        agent.evaluate(1, env=gym.wrappers.TimeLimit(MaskedByMethod(np.zeros(K, bool)), 5))
    with pytest.raises(InputError, match=r"predict: action_masks must have shape \(4,\) or \(B, 4\), got \(3,\)"):
        agent.predict(obs, action_masks=[1, 1, 1])
    for bad in ([[1, 1, 1, 1], [1, 1]], ()):
        with pytest.raises(InputError, match=r"predict: an action mask must be an array: ") as error:
            agent.predict(obs, action_masks=bad)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"predict: the action mask forbids all actions"):
        agent.predict(obs, action_masks=np.zeros(K, bool))
    assert agent.predict(obs[:0], action_masks=allowed[:0]).shape == (0,)
    given = allowed[0].copy()
    masks = masks_given(agent, given, 3)
    masks[:] = True  # an array of its own, which torch takes without a warning
    assert masks.shape == (3, K) and given.sum() == 1
    with pytest.raises(InputError, match="action_masks must be None, because SACDiscrete knows no masks"):
        SACDiscrete("CartPole-v1").predict(np.zeros(4), action_masks=[1, 1])


def test_reinforces_gradient_with_masks_is_plain_torchs():
    agent = REINFORCE("MaskedForTests-v0", **SMALL, baseline=False, entropy_coef=0.1, normalize_advantages=False)
    agent._collect()
    r = agent.rollout
    obs, action, _, advantage, allowed = r.batch(np.arange(r.reward.size, dtype=np.float32)[:, None], r.allowed)
    assert not allowed.all() and allowed[np.arange(len(action)), action].all()
    agent._loss(obs, action, advantage, None, allowed)
    actor = copy.deepcopy(agent.policy.actor).to_torch().requires_grad_(True)
    actor.zero_grad()
    logits = actor(torch.from_numpy(obs)).masked_fill(~torch.from_numpy(allowed), -1e9)
    pi = torch.distributions.Categorical(logits=logits)
    loss = -(torch.from_numpy(advantage) * pi.log_prob(torch.from_numpy(action))).mean() - 0.1 * pi.entropy().mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in actor.parameters()])
    np.testing.assert_allclose(agent.policy.grad[: agent.policy.n_policy], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_trpos_steps_with_masks(own):
    """F is the Hessian of the masked policy's KL, by autograd in float64; the step keeps to it."""
    network = {"actor": torch.nn.Linear(K + 1, K), "critic": torch.nn.Linear(K + 1, 1)} if own else None
    agent = TRPO("MaskedForTests-v0", **{**ON_POLICY, "n_steps": 32}, network=network, cg_damping=0.1)
    agent.learn(40, progress=False)
    agent._collect()
    r = agent.rollout
    obs, action, _, advantage, allowed = r.batch(r.reward, r.allowed)
    agent._refresh_fisher(obs, allowed)
    actor = copy.deepcopy(agent.policy.actor).to_torch().double().requires_grad_(True)
    params = dict(actor.named_parameters())
    x, mask = torch.from_numpy(obs).double(), torch.from_numpy(allowed)

    def log_p(values):
        return torch.func.functional_call(actor, values, (x,)).masked_fill(~mask, -1e9).log_softmax(1)

    old = log_p(params).detach()

    def kl(flat):
        at, values = 0, {}
        for name, p in params.items():
            values[name] = flat[at : at + p.numel()].view_as(p)
            at += p.numel()
        return (old.exp() * (old - log_p(values))).sum(1).mean()

    flat = torch.cat([p.detach().flatten() for p in params.values()])
    hessian = torch.autograd.functional.hessian(kl, flat).numpy()
    v = np.random.default_rng(0).standard_normal(len(flat)).astype(np.float32)
    np.testing.assert_allclose(agent._fisher(v), hessian @ v + 0.1 * v, rtol=1e-3, atol=1e-4)
    log = agent._improve_policy(obs, action, advantage, allowed=allowed)
    assert 0 < log["kl"] <= agent.max_kl and log["step_fraction"] > 0


@pytest.mark.parametrize(("cls", "settings"), [(DQN, DQN_SMALL), (PPO, ON_POLICY), (CEM, CEM_SMALL)])
def test_torch_policies_keep_to_the_masks_that_they_get(cls, settings):
    agent = cls(Masked(), **settings).learn(60, progress=False)
    policy, rng = agent.policy_to_torch(), np.random.default_rng(0)
    obs, allowed = rng.uniform(size=(30, K + 1)).astype(np.float32), rng.random((30, K)) < 0.4
    allowed[np.arange(30), rng.integers(K, size=30)] = True
    for masks in (allowed, allowed.astype(np.int8), allowed[0]):
        found = policy(torch.from_numpy(obs), torch.from_numpy(masks)).numpy()
        np.testing.assert_array_equal(found, agent.predict(obs, action_masks=masks))
    np.testing.assert_array_equal(policy(torch.from_numpy(obs)).numpy(), agent.predict(obs))
    for shape in ((30, 1), (30, K - 1), (1, 30, K)):  # which would broadcast, or not
        with pytest.raises(ValueError, match=rf"action_masks must have shape \(B, {K}\) or \({K},\), got "):
            policy(torch.from_numpy(obs), torch.ones(shape))
    with pytest.raises(ValueError, match="action_masks must be None, because actions are continuous"):
        PPO("Pendulum-v1", hidden=(8,)).policy_to_torch()(torch.zeros(2, 3), torch.ones(2, 1))


def test_torch_policies_with_a_memory_keep_to_the_masks_too():
    agent = RecurrentPPO(Masked(), **{**ON_POLICY, "memory_size": 8}).learn(60, progress=False)
    policy, rng = agent.policy_to_torch(), np.random.default_rng(0)
    state, memory, without, forbidden = policy.start(30), agent.memory(30), agent.memory(30), 0
    for _ in range(4):
        obs, allowed = rng.uniform(size=(30, K + 1)).astype(np.float32), rng.random((30, K)) < 0.4
        allowed[np.arange(30), rng.integers(K, size=30)] = True
        found, state = policy(torch.from_numpy(obs), state, torch.from_numpy(allowed))
        np.testing.assert_array_equal(found, agent.predict(obs, action_masks=allowed, memory=memory))
        np.testing.assert_allclose(state, memory.state, atol=1e-6)
        forbidden += (~allowed[np.arange(30), agent.predict(obs, memory=without) - 2]).sum()
    assert forbidden > 0
    pendulum = RecurrentPPO("Pendulum-v1", hidden=(8,)).policy_to_torch()
    with pytest.raises(ValueError, match="action_masks must be None, because actions are continuous"):
        pendulum(torch.zeros(2, 3), pendulum.start(2), torch.ones(2, 1))


def test_what_is_learned_is_the_best_allowed_action():
    agent = DQN(Masked(), **{**DQN_SMALL, "epsilon_steps": 1000, "learning_rate": 3e-3}, gamma=0.5)
    assert agent.learn(3000, progress=False).evaluate(20, env=Masked()).mean() > 4.5


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (np.zeros(K, bool), "MaskedByMethod: the action mask forbids all actions, but the episode goes on"),
        (np.ones(3, bool), r"MaskedByMethod: an action mask must have shape \(4,\), got \(3,\)"),
        (np.full(K, 0.5), "MaskedByMethod: an action mask must hold bools, or 0 and 1, got float64"),
    ],
)
def test_masks_that_cannot_be(last, text):
    env = MaskedByMethod(last)
    with pytest.raises(InputError, match=text) as error:
        PPO(env, **ON_POLICY).learn(20, progress=False)
    assert "\n" not in str(error.value)


class NoInfo(MaskedByMethod):
    """An info that is no dict."""

    def reset(self, **how):
        return super().reset(**how)[0], None

    def step(self, action):
        return *super().step(action)[:4], None


class Unmasked(NoInfo):
    action_masks = None

    def step(self, action):
        self.mask[:] = True
        return super().step(action)


@pytest.mark.parametrize("env", [NoInfo, Unmasked])
@pytest.mark.parametrize(
    ("cls", "settings"),
    [(DQN, DQN_SMALL), (PPO, ON_POLICY), (A2C, ON_POLICY), (REINFORCE, SMALL), (TRPO, ON_POLICY), (CEM, CEM_SMALL)],
)
def test_an_info_that_is_no_dict_holds_no_mask(cls, settings, env):
    agent = cls(env(), **settings).learn(40, progress=False)
    assert agent.n_updates > 0 and (agent.envs.allowed is None) == (env is Unmasked)
    assert len(agent.evaluate(1, env=env())) == 1


def test_a_mask_that_is_there_at_reset_only():
    env = Masked()
    env.step = lambda action: (np.zeros(K + 1, np.float32), 0.0, False, False, None)
    with pytest.raises(InputError, match=r"action_mask.* must be there at every reset and step, but is missing"):
        PPO(env, **ON_POLICY).learn(20, progress=False)


class Several(gym.Env):
    """Two parts, of which the second one's values are masked."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {"action_mask": (np.ones(2, np.int8), np.array([0, 1, 0], np.int8))}

    def step(self, action):
        assert action[1] == 1
        obs, info = self.reset()
        return obs, float(action[0]), False, bool(self.np_random.random() < 0.2), info


@pytest.mark.parametrize("cls", [PPO, A2C])
def test_masks_of_the_parts_of_an_action(cls):
    agent = cls(Several(), **ON_POLICY).learn(64, progress=False)
    assert agent.rollout.allowed.shape == (8, 1, 5) and np.isfinite(agent.policy.vector).all()
