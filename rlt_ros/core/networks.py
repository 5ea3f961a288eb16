"""The two small networks of RLT: an actor that writes the whole chunk and an ensemble of critics."""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Sequence

import numpy as np
import torch
from torch import Tensor, nn

# |reference| beyond this enters the actor's skip path as this: atanh(1) is infinite, a saturated tanh learns nothing.
PASS_THROUGH_LIMIT = 0.95


@dataclass(frozen=True)
class Dims:
    """Sizes that actor, critic and replay share."""

    token: int  # D, size of the RL token
    rl_proprio: int  # 2P: proprioception now and its change since the token's frame
    action: int  # A, actions per control tick
    chunk: int  # C, control ticks per chunk

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"dims.{name}: got {value}, expected at least 1")

    @property
    def flat_action(self) -> int:
        return self.chunk * self.action


class StateInput(nn.Module):
    """x = (token, proprio) as the networks take it, [B, D+2P]: centred and in units of about one.

    The units of the proprioception are the task's (`proprio_scale`, what counts as one).  The centres, and the units of
    the token, are measured once on the first transitions (`measure`) and travel with the weights: a pose of 0.45 m +- 5
    mm and a token that hardly varies within the critical phase would be a constant to a small network otherwise.
    """

    def __init__(self, dims: Dims, proprio_scale: Sequence[float] | None = None):
        super().__init__()
        self.token_dim = dims.token
        scale = torch.ones(dims.rl_proprio) if proprio_scale is None else torch.as_tensor(proprio_scale).float()
        if scale.shape != (dims.rl_proprio,) or not (torch.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"proprio_scale: got {scale.tolist()}, expected {dims.rl_proprio} positive numbers (2P)")
        self.register_buffer("centre", torch.zeros(dims.token + dims.rl_proprio))
        self.register_buffer("unit", torch.cat((torch.ones(dims.token), scale)))

    @torch.no_grad()
    def measure(self, token: Tensor, proprio: Tensor) -> None:
        """Set centres, and the token's units, from samples token [M, D], proprio [M, 2P]."""
        self.centre.copy_(torch.cat((token.mean(0), proprio.mean(0))))
        spread = token.std(0, unbiased=False)
        # Values that hardly move are not blown up into noise.
        self.unit[:self.token_dim] = spread.clamp_min(max(0.1 * float(spread.mean()), 1e-3))

    def forward(self, token: Tensor, proprio: Tensor) -> Tensor:
        return (torch.cat((token, proprio), dim=1) - self.centre) / self.unit


class Actor(nn.Module):
    """pi(x, ref) -> the mean of the whole chunk, [B, C, A] in [-1, 1].

    The chunk is tanh(mlp(x, ref) + W atanh(ref)).  W is an ordinary trained matrix that starts as the identity, and the
    MLP's last layer starts small: a new actor passes its reference through (RLT's ablation without pass-through learns
    slower, and the first published policy must not be noise), yet nothing ties the output to the reference later, and
    with the reference dropped out (zeros) the MLP alone has to write the chunk.
    """

    def __init__(self, dims: Dims, hidden: Sequence[int] = (256, 256), proprio_scale: Sequence[float] | None = None):
        super().__init__()
        self.dims = dims
        self.hidden = tuple(int(h) for h in hidden)
        self.state = StateInput(dims, proprio_scale)
        layers: list[nn.Module] = []
        size = dims.token + dims.rl_proprio + dims.flat_action
        for width in self.hidden:
            layers += [nn.Linear(size, width), nn.ReLU(inplace=True)]
            size = width
        last = nn.Linear(size, dims.flat_action)
        self.mlp = nn.Sequential(*layers, last)
        self.skip = nn.Linear(dims.flat_action, dims.flat_action, bias=False)
        with torch.no_grad():
            last.weight.mul_(0.01)
            last.bias.zero_()
            self.skip.weight.copy_(torch.eye(dims.flat_action))

    @property
    def architecture(self) -> dict:
        """What must agree before weights may be loaded; plain JSON."""
        return {"name": "rlt-actor-1", **asdict(self.dims), "hidden": list(self.hidden)}

    @classmethod
    def from_architecture(cls, architecture: dict) -> Actor:
        """An actor with fresh weights.  KeyError/TypeError/ValueError on an architecture that is not one."""
        dims = Dims(**{name: int(architecture[name]) for name in ("token", "rl_proprio", "action", "chunk")})
        return cls(dims, architecture["hidden"])

    def forward(self, token: Tensor, proprio: Tensor, reference: Tensor) -> Tensor:
        """token [B, D], proprio [B, 2P] (SI), reference [B, C, A] -> [B, C, A]."""
        flat = reference.flatten(1)  # [B, C*A]
        inputs = torch.cat((self.state(token, proprio), flat), dim=1)  # [B, D+2P+C*A]
        passed = self.skip(torch.atanh(flat.clamp(-PASS_THROUGH_LIMIT, PASS_THROUGH_LIMIT)))
        return torch.tanh(self.mlp(inputs) + passed).view_as(reference)

    @torch.inference_mode()
    def act(self, token: np.ndarray, proprio: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """One state, numpy: token [D], proprio [2P], reference [C, A] -> mean chunk float32 [C, A]."""
        token, proprio, reference = (
            torch.from_numpy(np.array(x, dtype=np.float32))[None] for x in (token, proprio, reference)
        )
        return self(token, proprio, reference)[0].numpy()


class Normalise(torch.autograd.Function):
    """Layer norm of [B, width] without gains: the next layer has its own.

    By hand, because the library's gradient of it takes as long as the products of a layer do; a mean is a product with
    a vector.
    """

    @staticmethod
    def forward(ctx, y: Tensor) -> Tensor:
        mean = y.new_full((y.shape[1],), 1.0 / y.shape[1])
        centred = y - torch.mv(y, mean)[:, None]
        variance = torch.linalg.vector_norm(centred, dim=1, keepdim=True).square_().div_(y.shape[1])  # [B, 1]
        scale = variance.add_(1e-5).rsqrt_()
        normal = centred.mul_(scale)
        ctx.save_for_backward(normal, scale)
        return normal

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        normal, scale = ctx.saved_tensors
        mean = gradient.new_full((gradient.shape[1],), 1.0 / gradient.shape[1])
        along = torch.mv(gradient * normal, mean)[:, None]
        return (gradient - torch.mv(gradient, mean)[:, None]).addcmul_(normal, along, value=-1.0).mul_(scale)


class Critic(nn.Module):
    """N independent Q_psi(x, a), one after another: on a CPU a batched product runs at three quarters of the rate of
    single ones."""

    def __init__(
        self,
        dims: Dims,
        hidden: Sequence[int] = (256, 256),
        members: int = 2,
        layer_norm: bool = False,
        proprio_scale: Sequence[float] | None = None,
    ):
        super().__init__()
        self.dims = dims
        self.members = members
        self.layer_norm = layer_norm
        self.hidden = tuple(int(h) for h in hidden)
        self.state = StateInput(dims, proprio_scale)
        sizes = [dims.token + dims.rl_proprio + dims.flat_action, *self.hidden, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:]):
            bound = 1.0 / math.sqrt(fan_in)  # as nn.Linear
            self.weights.append(nn.Parameter(torch.empty(members, fan_in, fan_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, fan_out).uniform_(-bound, bound)))

    @property
    def architecture(self) -> dict:
        return {
            "name": "rlt-critic-1", **asdict(self.dims), "hidden": list(self.hidden),
            "members": self.members, "layer_norm": self.layer_norm,
        }

    def forward(self, token: Tensor, proprio: Tensor, action: Tensor, members: int | None = None) -> Tensor:
        """token [B, D], proprio [B, 2P] (SI), action [B, C, A] -> Q of the first `members` (default all), [N, B]."""
        x = torch.cat((self.state(token, proprio), action.flatten(1)), dim=1)  # [B, D+2P+C*A]
        # unbind: the gradient of a member's slice would be as large as everything.
        weights, biases = ([p.unbind() for p in group] for group in (self.weights, self.biases))
        values = []
        for member in range(self.members if members is None else members):
            h = x
            for weight, bias in zip(weights[:-1], biases[:-1]):
                h = torch.addmm(bias[member][0], h, weight[member])  # [B, width]
                if self.layer_norm:
                    h = Normalise.apply(h)
                h = torch.relu(h)
            values.append(torch.mv(h, weights[-1][member][:, 0]) + biases[-1][member][0])
        return torch.stack(values)
