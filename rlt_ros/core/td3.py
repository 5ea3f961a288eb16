"""TD3 anchored to the reference chunk: lines 9-14 of RLT's Algorithm 1, in their order (arXiv 2604.23073)."""
from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rlt_ros.core.networks import Actor, Critic, Dims
from rlt_ros.core.recorded import Recorded


@dataclass(frozen=True)
class TD3Config:
    """Hyper-parameters.  "paper": RLT; "TD3": Fujimoto et al. 2018; "RLPD": Ball et al. 2023; "ours": measured on a peg
    task, where the paper is silent."""

    # networks
    hidden: tuple[int, ...] = (256, 256)  # widths of actor and critic (paper; 512, 512, 512 for its screw)
    ensemble: int = 2  # critics (paper, TD3; RLPD 10)
    target_members: int = 2  # critics, drawn at random, whose minimum is the target (TD3: both; RLPD 2 of 10)
    actor_members: int = 1  # critics whose mean the actor climbs (TD3: the first; RLPD all)
    layer_norm: bool = True  # layer norm in the critics (RLPD; ours: steadier in the first minutes)
    # targets
    gamma: float = 0.99  # discount per control tick (ours)
    target_noise: float = 0.05  # std of the smoothing noise on the target's action (ours: as the acting noise)
    target_noise_clip: float = 0.1  # bound of that noise (ours)
    clip_targets: bool = True  # targets in [0, 1], as returns of one sparse +1; no credit over 1 (ours)
    tau: float = 0.005  # step of the target networks, each policy_delay updates (TD3)
    # actor
    beta: float = 0.2  # weight of the anchor, the MEAN square over the chunk, against Q in [0, 1] (ours: 0.1..0.3)
    beta_start: float = 0.0  # weight of the anchor before the first update, 0: beta (ours, see anchor_weight)
    beta_updates: int = 8000  # updates after which beta_start has become beta (ours)
    dropout: float = 0.5  # share of samples whose reference the actor does not see, in training only (paper)
    policy_delay: int = 2  # critic updates per actor update (paper, TD3)
    # optimisation
    actor_lr: float = 3e-4  # Adam (ours)
    critic_lr: float = 3e-4  # Adam (ours)
    grad_clip: float = 10.0  # largest norm of a gradient (ours: against exploding Q)
    batch_size: int = 256  # transitions per update (ours; 128 learns too)
    prior_fraction: float = 0.0  # least share of a batch from warm-up and human data (RLPD 0.5)
    # schedule
    utd: float = 5.0  # updates per transition (paper)
    min_buffer: int = 256  # transitions before the first update (ours: one batch)
    warm_transitions: int = 1000  # N_warm: transitions before a policy is published (ours: about ten base episodes)
    warm_updates: int = 1000  # updates before a policy is published (ours)
    warm_successes: int = 1  # successful episodes before a policy is published, the first before any update (ours: a
    # critic that has never seen a reward makes one up, and an actor that follows it never finds one; 0: do not wait)
    max_backlog: int = 10000  # updates owed at most; what is over is forgiven (ours: about a minute of one core)
    capacity: int = 200_000  # transitions in the replay buffer (ours: a whole session; 50k forgot old successes)
    seed: int = 0  # of initial weights, sampling, dropout and target noise

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(int(h) for h in self.hidden))

        def expect(name: str, good: bool, expected: str) -> None:
            if not good:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected {expected}")

        expect("hidden", len(self.hidden) > 0 and min(self.hidden) > 0, "one or more positive widths")
        expect("ensemble", self.ensemble >= 1, "at least 1")
        for name in ("target_members", "actor_members"):
            expect(name, 1 <= getattr(self, name) <= self.ensemble, f"1..ensemble ({self.ensemble})")
        for name in ("gamma", "dropout", "prior_fraction"):
            expect(name, 0.0 <= getattr(self, name) <= 1.0, "0..1")
        expect("tau", 0.0 < self.tau <= 1.0, "more than 0, at most 1")
        for name in ("target_noise", "target_noise_clip", "beta", "beta_start", "utd"):
            expect(name, getattr(self, name) >= 0.0, "0 or more")
        for name in ("actor_lr", "critic_lr", "grad_clip"):
            expect(name, getattr(self, name) > 0.0, "more than 0")
        for name in ("policy_delay", "batch_size", "min_buffer", "capacity", "max_backlog", "beta_updates"):
            expect(name, getattr(self, name) >= 1, "at least 1")
        expect("warm_successes", self.warm_successes >= 0, "0 or more")

    @classmethod
    def from_mapping(cls, values: dict) -> TD3Config:
        """From a parameter file: `preset` (td3, the default, or rlpd) and what differs from it.

        ValueError names a key that is not a hyper-parameter, or that has a value of another kind.
        """
        values = dict(values)
        preset = values.pop("preset", "td3")
        if str(preset) not in PRESETS:
            raise ValueError(f"learner: preset is {preset!r}, expected one of {', '.join(PRESETS)}")
        known = {field.name: field.default for field in fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise ValueError(
                    f"learner: unknown key '{key}', expected one of {', '.join(sorted({*known, 'preset'}))}"
                )
            if type(known[key]) is float and isinstance(value, str):  # as YAML takes 1e-3
                with suppress(ValueError):
                    value = values[key] = float(value)
            if not _alike(value, known[key]):
                example = list(known[key]) if key == "hidden" else known[key]
                raise ValueError(f"learner: {key} is {value!r}, expected {_KINDS[type(known[key])]}, such as {example}")
        return cls(**PRESETS[preset] | values)


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a list of widths"}


def _alike(value: object, default: object) -> bool:
    """Whether a value of a parameter file is of the default's kind."""
    if isinstance(default, tuple):
        return hasattr(value, "__iter__") and all(type(v) is int for v in value)
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


PRESETS = {
    "td3": {},  # as in RLT's paper
    # Ball et al. 2023: a layer-normed ensemble whose random pair is the target, prior data in half of every batch.
    "rlpd": {"ensemble": 10, "target_members": 2, "actor_members": 10, "layer_norm": True, "prior_fraction": 0.5},
}
# What may be changed while it runs: name -> (lowest, highest).
LIVE = {"beta": (0.0, 10.0)}
RECORD_AFTER = 50  # updates: a learner that was started again learns first


CRITIC_FIGURES = ("critic_loss", "q_mean", "q_max", "target_mean", "td_error", "critic_grad")
ACTOR_FIGURES = ("actor_loss", "anchor", "actor_grad")
# What of a batch each gradient reads.
_OF_ACTOR = ("token", "proprio", "reference")
_OF_CRITIC = (
    "token", "proprio", "action", "next_token", "next_proprio", "next_reference", "chunk_return", "discount",
    "terminated",
)


class TD3:
    """Twin critics, a delayed actor and their targets; `update` is one turn of the inner loop of Algorithm 1.

    device: where torch computes, "cpu" or "cuda". Random numbers are drawn on the CPU in either case, so that one seed
    is one run and a checkpoint goes on anywhere.  record_after: gradients are computed so often before they are recorded,
    to run without Python in between (recorded.py); None: never.
    """

    def __init__(
        self, config: TD3Config, dims: Dims, proprio_scale: Sequence[float] | None = None, device: str = "cpu",
        record_after: int | None = RECORD_AFTER,
    ):
        self.config = config
        self.dims = dims
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):  # initial weights from our seed, the caller's generator untouched
            torch.manual_seed(config.seed)
            self.actor = Actor(dims, config.hidden, proprio_scale).to(self.device)
            self.critic = Critic(dims, config.hidden, config.ensemble, config.layer_norm, proprio_scale).to(self.device)
        self.target_actor = deepcopy(self.actor).requires_grad_(False)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), lr=config.critic_lr, fused=True)
        self.generator = torch.Generator().manual_seed(config.seed + 1)  # smoothing noise, dropout
        self.updates = 0
        self.beta = config.beta  # may be set between two updates
        # Gradients are functions of all that they read, by name: "critic/weights.0", "token", "noise".
        self._values = {
            f"{part}/{name}": value for part in self._PARTS[:4]
            for name, value in getattr(self, part).state_dict(keep_vars=True).items()
        }
        self._critic_gradients, self._actor_gradients = self._of_critic_loss, self._of_actor_loss
        if record_after is not None:
            self._critic_gradients = Recorded(self._of_critic_loss, record_after)
            self._actor_gradients = Recorded(self._of_actor_loss, record_after)
        self._newest = {"actor_loss": 0.0, "anchor": 0.0, "actor_grad": 0.0}  # of the newest actor update

    def anchor_weight(self) -> float:
        """The weight of the anchor that is in force: from beta_start down to beta, by the same factor each update.

        Critics that have seen a handful of episodes are wrong about all that the reference never does; an actor that
        follows them ruins the next dozen episodes.  A strong anchor at first keeps it where they know something.
        """
        start, left = self.config.beta_start, 1.0 - self.updates / self.config.beta_updates
        if start <= self.beta or left <= 0.0:
            return self.beta
        return self.beta * (start / self.beta) ** left if self.beta > 0.0 else start * left

    def measure_inputs(self, token: Tensor, proprio: Tensor) -> None:
        """Centre the networks' inputs on token [M, D], proprio [M, 2P]; once, before the first update."""
        for network in (self.actor, self.critic, self.target_actor, self.target_critic):
            network.state.measure(token, proprio)

    def update(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One critic update and, every policy_delay-th time, one of the actor and the targets.

        batch: as ReplayBuffer.sample, on `device`.  Returns critic_loss, q_mean, q_max, target_mean, td_error (mean
        distance of Q to its target), critic_grad (norm before clipping), and of the newest actor update actor_loss,
        anchor, actor_grad.
        """
        metrics = self._update_critic(batch)
        self.updates += 1
        if self.updates % self.config.policy_delay == 0:
            self._newest = self._update_actor(batch)
            self._move_targets()
        return metrics | self._newest

    def target(self, batch: dict[str, Tensor]) -> Tensor:
        """Q^ = sum_i<n gamma^i r_i + gamma^n (1 - terminated) min_j Q_psi'_j(x', a'),  a' = pi_theta'(x', ref') + noise

        Returns [B].  The target actor sees every reference: dropout is not for targets.
        """
        return self._target(self._values | batch | self._chance(batch))

    def _chance(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a target draws: the smoothing noise, and which critics count."""
        config = self.config
        noise = torch.empty(batch["action"].shape).normal_(0.0, config.target_noise, generator=self.generator) \
            .clamp_(-config.target_noise_clip, config.target_noise_clip)
        drawn = {"noise": noise.to(self.device)}
        if config.target_members < config.ensemble:
            members = torch.randperm(config.ensemble, generator=self.generator)[:config.target_members]
            drawn["members"] = members.to(self.device)
        return drawn

    def _call(self, part: str, values: dict[str, Tensor], *inputs: Tensor, **options: int) -> Tensor:
        """A network with its parameters taken from `values`."""
        own = {name.partition("/")[2]: value for name, value in values.items() if name.startswith(part + "/")}
        return functional_call(getattr(self, part), own, inputs, options)

    @torch.no_grad()
    def _target(self, v: dict[str, Tensor]) -> Tensor:
        token, proprio = v["next_token"], v["next_proprio"]  # [B, D], [B, 2P]
        action = self._call("target_actor", v, token, proprio, v["next_reference"])  # [B, C, A]
        action = (action + v["noise"]).clamp(-1.0, 1.0)
        q = self._call("target_critic", v, token, proprio, action)  # [N, B]
        if "members" in v:
            q = q.index_select(0, v["members"])
        bootstrap = v["discount"] * (1.0 - v["terminated"]) * q.amin(0)  # [B]
        target = v["chunk_return"] + bootstrap
        return target.clamp(0.0, 1.0) if self.config.clip_targets else target

    def _of_critic_loss(self, v: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """L_Q(psi) = E_b[ (Q^ - Q_psi(x, a))^2 ], summed over the critics: gradients, then CRITIC_FIGURES."""
        target = self._target(v)  # [B]
        psi = self._learned("critic", v)
        q = self._call("critic", v | psi, v["token"], v["proprio"], v["action"])  # [N, B]
        error = target - q
        loss = error.square().mean(1).sum()
        gradients = torch.autograd.grad(loss, list(psi.values()))
        q, error = q.detach(), error.detach()
        norm = nn.utils.get_total_norm(gradients)
        figures = loss.detach(), q.mean(), q.max(), target.mean(), error.abs().mean(), norm
        return *gradients, torch.stack(figures)

    def _of_actor_loss(self, v: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """L_pi(theta) = E_b[ -Q_psi(x, a) + beta |a - ref|^2 ],  a = pi_theta(x, ref or zeros): gradients and figures.

        |.|^2 is the mean over the chunk.  The anchor is the true reference even where the actor did not see it.
        Young critics promise values over 1 for actions never tried; with clip_targets there is no gradient towards
        those, only the anchor, which leads back to where the critic knows.
        """
        token, proprio, reference = v["token"], v["proprio"], v["reference"]
        theta = self._learned("actor", v)
        action = self._call("actor", v | theta, token, proprio, reference * v["seen"])  # [B, C, A]
        q = self._call("critic", v, token, proprio, action, members=self.config.actor_members)  # [actor_members, B]
        if self.config.clip_targets:
            q = q.clamp(max=1.0)
        anchor = (action - reference).square().mean()
        loss = -q.mean() + v["beta"] * anchor
        gradients = torch.autograd.grad(loss, list(theta.values()))
        return *gradients, torch.stack((loss.detach(), anchor.detach(), nn.utils.get_total_norm(gradients)))

    def _learned(self, part: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of `part` as something to take gradients for, in the order of its parameters."""
        names = [f"{part}/{name}" for name, _ in getattr(self, part).named_parameters()]
        return {name: values[name].detach().requires_grad_() for name in names}

    def _critic_inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._values | {name: batch[name] for name in _OF_CRITIC} | self._chance(batch)

    def _actor_inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = torch.rand(len(batch["reference"]), 1, 1, generator=self.generator) >= self.config.dropout  # [B, 1, 1]
        chosen = {"seen": seen.to(self.device), "beta": torch.tensor(self.anchor_weight()).to(self.device)}
        return self._values | {name: batch[name] for name in _OF_ACTOR} | chosen

    def _update_critic(self, batch: dict[str, Tensor]) -> dict[str, float]:
        *gradients, figures = self._critic_gradients(self._critic_inputs(batch))
        figures = dict(zip(CRITIC_FIGURES, figures.tolist(), strict=True))
        self._descend(gradients, figures["critic_grad"], self.critic, self.critic_optimiser)
        return figures

    def _update_actor(self, batch: dict[str, Tensor]) -> dict[str, float]:
        *gradients, figures = self._actor_gradients(self._actor_inputs(batch))
        figures = dict(zip(ACTOR_FIGURES, figures.tolist(), strict=True))
        self._descend(gradients, figures["actor_grad"], self.actor, self.actor_optimiser)
        return figures

    def _descend(
        self, gradients: list[Tensor], norm: float, network: nn.Module, optimiser: torch.optim.Optimizer
    ) -> None:
        """One step down."""
        if not norm <= self.config.grad_clip:  # a NaN is not passed by
            torch._foreach_mul_(gradients, self.config.grad_clip / norm)
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()

    @torch.no_grad()
    def _move_targets(self) -> None:
        """psi' <- psi' + tau (psi - psi'), theta' alike."""
        for target, online in ((self.target_actor, self.actor), (self.target_critic, self.critic)):
            torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), self.config.tau)

    @property
    def architecture(self) -> dict:
        return {"actor": self.actor.architecture, "critic": self.critic.architecture}

    _PARTS = ("actor", "critic", "target_actor", "target_critic", "actor_optimiser", "critic_optimiser")

    def state_dict(self) -> dict:
        """Everything that the next update depends on, as tensors and plain values."""
        state = {name: getattr(self, name).state_dict() for name in self._PARTS}
        return state | {
            "generator": self.generator.get_state(), "updates": self.updates, "beta": self.beta,
            "configured_beta": self.config.beta, "of_actor": dict(self._newest),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state` as configured; a beta that was set while running stays unless another is configured."""
        for name in self._PARTS:
            getattr(self, name).load_state_dict(state[name])
        for optimiser, rate in (
            (self.actor_optimiser, self.config.actor_lr), (self.critic_optimiser, self.config.critic_lr),
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate  # that of `state` came with the moments
        self.generator.set_state(state["generator"])
        self.updates = int(state["updates"])
        # Older checkpoints lack one or both.
        if state.get("configured_beta", self.config.beta) == self.config.beta:
            self.beta = float(state.get("beta", self.config.beta))
        else:
            self.beta = self.config.beta
        self._newest |= state.get("of_actor", {})
