"""TD3 updates per second, in turns with Stable-Baselines3's TD3 and with nothing but the matrix products of an update.

Stable-Baselines3 is no dependency: without it, that comparison is left out. It gets what our learner gets, flattened:
observation (token, proprioception, reference), action C*A. Its critics see the reference, ours do not.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

from rlt_ros.bench import in_turns, ratio

# Without its dependencies: pip would replace torch and numpy. Those two are what it needs beyond what is here.
INSTALL = "python3 -m pip install --no-deps stable-baselines3 pandas python-dateutil six"
ROWS = 4000  # transitions in the buffers: more than the caches hold, little enough to be filled soon


def measure(args: argparse.Namespace) -> dict:
    """The figures, at args.batch, args.token, args.device, one thread."""
    import torch

    from rlt_ros.cli.arguments import require_device
    from rlt_ros.core.networks import Dims
    from rlt_ros.core.td3 import TD3Config
    from rlt_ros.sim.task import load_task

    require_device(args.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task = load_task(args.task)
        dims = Dims(token=args.token, rl_proprio=2 * task.proprio_dim, action=task.action_dim, chunk=10)
        config = TD3Config(batch_size=args.batch, capacity=ROWS)
        return compare(config, dims, task.proprio_scale, args)
    finally:
        torch.set_num_threads(threads)


def compare(config, dims, proprio_scale, args: argparse.Namespace) -> dict:
    from dataclasses import replace

    import torch

    updates, device = args.updates, args.device
    products = Products(config, dims, device, torch.float32)
    contestants = {
        "ours": ours(config, dims, proprio_scale, device, updates),
        # What SB3's critics are made of; as shipped ours have layer norm.
        "plain": ours(replace(config, layer_norm=False), dims, proprio_scale, device, updates),
        "gemm": lambda: products.run(updates),
    }
    half = Products(config, dims, device, torch.bfloat16) if has_bf16(device) else None
    if half:
        contestants["bf16"] = lambda: half.run(updates)
    missing = ""
    try:
        contestants["sb3"] = stable_baselines3(config, dims, device, updates)
    except ImportError as error:
        missing = f"not installed ({error}): {INSTALL}"
    contestants = {name: synchronised(call, device) for name, call in contestants.items()}
    in_turns(contestants, 1)  # warm up
    seconds = in_turns(contestants, args.rounds)

    rate = {name: updates / statistics.median(values) for name, values in seconds.items()}
    sb3 = seconds.get("sb3")
    return {
        "updates_per_s": rate["ours"],
        "updates_per_s_without_layer_norm": rate["plain"],
        "sb3_updates_per_s": rate.get("sb3"),
        "ratio_sb3": ratio(sb3, seconds["ours"]) if sb3 else None,
        "ratio_sb3_without_layer_norm": ratio(sb3, seconds["plain"]) if sb3 else None,
        "sb3": missing or version(),
        "gflop_per_update": products.flop / 1e9,
        "gflop_per_s": rate["ours"] * products.flop / 1e9,
        "gemm_gflop_per_s": rate["gemm"] * products.flop / 1e9,
        "gemm_fraction": ratio(seconds["gemm"], seconds["ours"]),
        "gemm_bf16_gflop_per_s": rate["bf16"] * products.flop / 1e9 if half else None,
        "gemm_fraction_bf16": ratio(seconds["bf16"], seconds["ours"]) if half else None,
        "dtype": "float32", "batch": config.batch_size, "token": dims.token, "hidden": list(config.hidden),
        "device": device, "threads": 1, "updates_timed": updates * args.rounds,
    }  # fmt: skip


def ours(config, dims, proprio_scale, device: str, updates: int) -> Callable[[], None]:
    """A call that makes `updates` updates of our learner, sampling included; its gradients are recorded already."""
    import numpy as np

    from rlt_ros.core.learner import Learner
    from rlt_ros.core.td3 import RECORD_AFTER
    from rlt_ros.core.transition import Transition

    learner = Learner(config, dims, None, proprio_scale, device)
    rng = np.random.default_rng(0)

    def some(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    chunk = (dims.chunk, dims.action)
    for i in range(ROWS):
        learner.add(
            Transition(
                # Far apart: no two transitions share a state, as hardly any two of a batch do.
                sequence=i, episode=0, tick=100 * i, token=some(dims.token), proprio=some(dims.rl_proprio),
                reference=some(*chunk), action=some(*chunk), rewards=np.zeros(dims.chunk, np.float32), steps=dims.chunk,
                next_token=some(dims.token), next_proprio=some(dims.rl_proprio), next_reference=some(*chunk),
                terminated=False, truncated=False, sources=np.zeros(dims.chunk, np.uint8), token_age_ticks=5,
                policy_version=0,
            )
        )  # fmt: skip

    for _ in range(config.policy_delay * (RECORD_AFTER + 1)):
        learner.step()

    def run() -> None:
        for _ in range(updates):
            learner.step()

    return run


def stable_baselines3(config, dims, device: str, updates: int) -> Callable[[], None]:
    """The same with Stable-Baselines3's TD3; ImportError without it."""
    import numpy as np
    from gymnasium import Env, spaces
    from stable_baselines3 import TD3
    from stable_baselines3.common.logger import Logger
    from torch import nn

    observations, actions = dims.token + dims.rl_proprio + dims.flat_action, dims.flat_action

    class Sizes(Env):
        observation_space = spaces.Box(-np.inf, np.inf, (observations,), np.float32)
        action_space = spaces.Box(-1.0, 1.0, (actions,), np.float32)

    model = TD3(
        "MlpPolicy", Sizes(), learning_rate=config.critic_lr, buffer_size=ROWS, batch_size=config.batch_size,
        tau=config.tau, gamma=config.gamma, policy_delay=config.policy_delay, target_policy_noise=config.target_noise,
        target_noise_clip=config.target_noise_clip, seed=config.seed, device=device,
        policy_kwargs={"net_arch": list(config.hidden), "activation_fn": nn.ReLU, "n_critics": config.ensemble},
    )  # fmt: skip
    model.set_logger(Logger(folder=None, output_formats=[]))
    rng = np.random.default_rng(0)
    for _ in range(ROWS):
        state, following = rng.uniform(-1, 1, (2, 1, observations)).astype(np.float32)
        action = rng.uniform(-1, 1, (1, actions)).astype(np.float32)
        model.replay_buffer.add(state, following, action, np.zeros(1), np.zeros(1, bool), [{}])
    return lambda: model.train(gradient_steps=updates, batch_size=config.batch_size)


def version() -> str:
    import stable_baselines3

    return stable_baselines3.__version__


class Products:
    """The matrix products that one update cannot do without, on tensors that are there, and nothing else.

    Critic update: target actor and target critics forward; critics forward, their weights' gradients, and their inputs'
    except of the first layer. Actor update, every policy_delay-th time: the actor alike, through `actor_members`
    critics forward and back to the action.
    """

    def __init__(self, config, dims, device: str, dtype) -> None:
        self.delay, self.flop = config.policy_delay, 0.0
        self._make = {"device": device, "dtype": dtype}
        batch, state, action = config.batch_size, dims.token + dims.rl_proprio, dims.flat_action
        actor = list(zip((state + action, *config.hidden), (*config.hidden, action)))
        critic = list(zip((state + action, *config.hidden), (*config.hidden, 1)))
        skip = (action, action)  # of the reference to the chunk

        # (members, rows, inner, columns), (transposed left, transposed right)
        def forward(layers, n: int) -> list:
            return [((n, batch, i, o), (False, False)) for i, o in layers]

        def weights(layers, n: int) -> list:
            return [((n, i, batch, o), (True, False)) for i, o in layers]

        def inputs(layers, n: int) -> list:
            return [((n, batch, o, i), (False, True)) for i, o in layers]

        n, m = config.ensemble, config.actor_members
        always = forward([*actor, skip], 1) + forward(critic, n)
        always += forward(critic, n) + weights(critic, n) + inputs(critic[1:], n)
        delayed = forward([*actor, skip], 1) + forward(critic, m)
        delayed += inputs([*critic[1:], (action, config.hidden[0])], m)
        delayed += weights([*actor, skip], 1) + inputs(actor[1:], 1)
        self.always = [self._product(*p) for p in always]
        self.delayed = [self._product(*p) for p in delayed]
        count = lambda products: sum(2.0 * n * a * b * c for (n, a, b, c), _ in products)  # noqa: E731
        self.flop = count(always) + count(delayed) / self.delay

    def _product(self, shape: tuple[int, int, int, int], transposed: tuple[bool, bool]) -> Callable[[], object]:
        import torch

        n, rows, inner, columns = shape

        def some(rows: int, columns: int, transposed: bool):
            if transposed:
                return torch.randn(n, columns, rows, **self._make).mT
            return torch.randn(n, rows, columns, **self._make)

        left, right = some(rows, inner, transposed[0]), some(inner, columns, transposed[1])
        out = torch.empty(n, rows, columns, **self._make)

        def single() -> None:
            for a, b, c in members:
                torch.mm(a, b, out=c)

        def batched() -> None:
            torch.bmm(left, right, out=out)

        members = list(zip(left, right, out))
        if n == 1:
            return single
        # What the machine can do: for a critic's last layer, one number wide, the batched product takes ten times as
        # long; on a GPU it is the other way round.
        ways = {way: synchronised(way, self._make["device"]) for way in (single, batched)}
        best = {way: min(in_turns({"": call}, 20)[""]) for way, call in ways.items()}
        return min(best, key=best.get)

    def run(self, updates: int) -> None:
        """Those of so many updates."""
        for i in range(updates):
            for product in self.always:
                product()
            if i % self.delay == self.delay - 1:
                for product in self.delayed:
                    product()


def has_bf16(device: str) -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    if device != "cpu":
        return True
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def synchronised(call: Callable[[], None], device: str) -> Callable[[], None]:
    """Wait for the device at the end, or only the launches would be timed."""
    if device == "cpu":
        return call
    import torch

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run
