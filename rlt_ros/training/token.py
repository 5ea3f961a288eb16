"""Algorithm 1, phase 1: train the RL token over a VLA's embeddings, and the VLA with it when alpha is not 0.

What a step does follows from the seed, the step and the process alone, so that a run that was stopped and goes on is
the run that was not stopped.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlt_ros.core.rl_token import RLToken, TokenConfig
from rlt_ros.training import embeddings as cache
from rlt_ros.training import lora
from rlt_ros.training.frames import Frames
from rlt_ros.training.processes import Processes

STATE = Path("training") / "state.pt"  # in the folder of the result
SAVE_S = 60.0  # between two states, and 20 times as long as saving takes
_FORMAT = 1
_WIDE = 512  # from this width on the token is that of a large VLA: more heads, a smaller rate (both ours, not measured)
_SHOW = 20  # steps between two reports


@dataclass(frozen=True)
class Settings:
    """What a training depends on; one that goes on must have the same."""

    steps: int = 2000
    minutes: float = 0.0  # not 0: so long instead, by the clock, which no second run repeats
    batch: int = 64  # samples a step, of all processes and pieces together
    accumulate: int = 1  # pieces that a process computes its part of a batch in
    lr: float = 0.0  # peak; 0: 1e-3, for VLAs wider than 512 2e-4
    seed: int = 0
    dtype: str = "float32"  # or bfloat16: autocast, parameters stay float32
    layers: int = 2
    action_weight: float = 1.0
    context_dropout: float = 0.9
    alpha: float = 0.0  # weight of the VLA's flow-matching loss; 0: frozen
    tune: str = "lora"  # what of the VLA learns when alpha is not 0: lora or full
    rank: int = 16  # of the adapters
    vla_lr: float = 5e-5  # peak of the VLA's rate

    def check(self, rows: int, processes: int) -> None:
        """ValueError names what does not fit `rows` samples and so many processes."""
        low = {"steps": 0, "minutes": 0, "batch": 1, "accumulate": 1, "lr": 0, "seed": 0, "layers": 1,
               "action_weight": 0, "alpha": 0, "rank": 1}  # fmt: skip
        for name, least in low.items():
            if not (value := getattr(self, name)) >= least or not math.isfinite(value):
                raise ValueError(f"{name} is {value}, expected at least {least}")
        for name, known in (("dtype", tuple(cache.DTYPES)), ("tune", ("lora", "full"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}")
        if not self.steps and not self.minutes:
            raise ValueError("steps and minutes are both 0; expected one of them")
        if self.minutes and processes > 1:
            raise ValueError(f"{processes} processes end together by --steps, not by --minutes")
        if self.batch > rows:
            raise ValueError(f"batch is {self.batch}, but there are only {rows} samples; take a smaller --batch")
        if self.batch % (self.accumulate * processes):
            raise ValueError(f"batch is {self.batch}, expected a multiple of {self.accumulate} pieces times {processes}"
                             " processes")


class Order:
    """Which samples a step takes: every one once before any comes again, in an order of the seed's and epoch's."""

    def __init__(self, rows: np.ndarray, batch: int, seed: int):
        self.rows, self.batch, self.seed = rows, batch, seed
        self._epoch, self._shuffled = -1, rows

    def at(self, step: int) -> np.ndarray:
        """Rows [batch], ascending."""
        epoch, place = divmod(step, len(self.rows) // self.batch)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return np.sort(self._shuffled[place * self.batch : (place + 1) * self.batch])


class TokenTraining:
    """The token in the making: `token`, `policy`, `step` (made so far), `elapsed` (s of training, over all runs)."""

    def __init__(
        self, policy, frames: Frames, rows: np.ndarray, settings: Settings, embeddings: np.ndarray | None = None,
        processes: Processes | None = None,
    ):  # fmt: skip
        """rows: of `frames`, which are trained on.  embeddings: of all frames; None when alpha is not 0.

        ValueError as of Settings.check.
        """
        self.processes = processes or Processes()
        settings.check(len(rows), self.processes.count)
        self.policy, self.frames, self.settings, self.embeddings = policy, frames, settings, embeddings
        self.order = Order(rows, settings.batch, settings.seed)
        self.step, self.elapsed = 0, 0.0
        torch.manual_seed(settings.seed)
        self.joint = settings.alpha > 0
        width = policy.embedding_dim
        config = TokenConfig(
            width, policy.image_tokens, layers=settings.layers, heads=4 if width < _WIDE else 8, feedforward=2 * width,
            action_values=policy.horizon * policy.action_dim, action_weight=settings.action_weight,
            context_dropout=settings.context_dropout,
        )  # fmt: skip
        device = self.processes.device
        self.policy.to(device).requires_grad_(False).eval()
        self.token = RLToken(config).to(device)
        self._measure(rows)
        peak = settings.lr or (1e-3 if width < _WIDE else 2e-4)
        groups = [{"params": list(self.token.parameters()), "peak": peak}]
        if self.joint:
            if settings.tune == "lora":
                tuned = lora.add(policy.model, settings.rank, settings.rank)
            else:
                tuned = list(policy.model.requires_grad_(True).parameters())
            groups.append({"params": tuned, "peak": settings.vla_lr})
        self.processes.begin_alike([*self.token.buffers(), *(p for group in groups for p in group["params"])])
        self.optimiser = torch.optim.AdamW(groups, lr=peak, weight_decay=0.01, fused=True)

    @property
    def tuned(self) -> dict[str, nn.Parameter]:
        """The VLA's parameters that learn."""
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad}

    @property
    def done(self) -> float:
        """How far it is, 0 to 1."""
        if self.settings.minutes:
            return min(1.0, self.elapsed / (60.0 * self.settings.minutes))
        return self.step / self.settings.steps

    def mine(self, step: int) -> np.ndarray:
        """This process's rows of a step's batch."""
        return self.order.at(step)[self.processes.rank :: self.processes.count]

    def update(self) -> dict[str, float]:
        """One step; its losses, means over this process's part of the batch. ValueError when a loss is not finite."""
        start, settings = time.monotonic(), self.settings
        for group in self.optimiser.param_groups:
            warm = min(1.0, (self.step + 1) / 100)
            group["lr"] = group["peak"] * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.done)))
        chance = np.random.SeedSequence([settings.seed, self.step, self.processes.rank]).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(chance))  # what is hidden from the decoder, and the flow's noise and times
        self.optimiser.zero_grad(set_to_none=True)
        parts: dict[str, float] = {}
        for piece in np.split(self.mine(self.step), settings.accumulate):
            loss, some = self.loss(piece)
            (loss / settings.accumulate).backward()
            parts = {name: parts.get(name, 0.0) + value / settings.accumulate for name, value in some.items()}
        if wrong := [name for name, value in parts.items() if not math.isfinite(value)]:
            raise ValueError(f"step {self.step}: the loss of {wrong[0]} is {parts[wrong[0]]}; the state saved before is"
                             " as it was. Try a smaller --lr, or --dtype float32")
        for number, group in enumerate(self.optimiser.param_groups):
            self.processes.average(group["params"])
            norm = nn.utils.clip_grad_norm_(group["params"], 1.0)
            parts[("token_gradient", "vla_gradient")[number]] = float(norm)
        self.optimiser.step()
        self.step += 1
        self.elapsed += time.monotonic() - start
        return parts

    def loss(self, rows: np.ndarray) -> tuple[torch.Tensor, dict[str, float]]:
        """L_ro + alpha L_vla of some rows, and the parts as numbers.

        No gradient of L_ro reaches the VLA (:meth:`RLToken.loss`): its embeddings stay what its actions need.
        """
        device, policy = self.processes.device, self.policy
        actions = torch.from_numpy(self.frames.actions[rows]).to(device)
        wanted = ((actions - policy.action_mean) / policy.action_std).flatten(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16"):
            if not self.joint:
                return self.token.loss(self.seen(rows), wanted)
            prefix, seen = policy.prefix(policy.pixels(torch.from_numpy(self.frames.images(rows)).to(device)))
            flow = policy.flow_loss(prefix, torch.from_numpy(self.frames.proprio[rows]).to(device), actions)
            loss, parts = self.token.loss(seen.float(), wanted)
            return loss + self.settings.alpha * flow, parts | {"flow": float(flow.detach())}

    def seen(self, rows: np.ndarray) -> torch.Tensor:
        """The VLA's embeddings float32 [n, M, E] of some rows, without gradients."""
        if self.embeddings is not None:
            return torch.from_numpy(np.array(self.embeddings[rows])).to(self.processes.device).float()
        return cache.embed(self.policy, self.frames.images(rows), self.processes, self.settings.dtype)

    def _measure(self, rows: np.ndarray) -> None:
        """Mean and spread of the embeddings, from a thousand pictures."""
        some = rows[:: max(1, len(rows) // 1000)]
        total = square = count = 0
        for first in range(0, len(some), 32):
            values = self.seen(some[first : first + 32]).double().flatten(0, 1)
            total, square, count = total + values.sum(0), square + values.square().sum(0), count + len(values)
        mean = total / count
        self.token.mean.copy_(mean)
        self.token.std.copy_((square / count - mean.square()).clamp_min(0).sqrt() + 1e-6)

    # --- the state ---------------------------------------

    def save(self, path: Path, about: dict[str, str]) -> None:
        """Write all that is needed to go on, atomically. about: hashes of what it is trained on."""
        state = {
            "format": _FORMAT, "settings": asdict(self.settings), "about": about, "config": asdict(self.token.config),
            "step": self.step, "elapsed": self.elapsed, "finished": self.done >= 1, "token": self.token.state_dict(),
            "vla": {name: p.detach() for name, p in self.tuned.items()}, "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            cache.sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :func:`read_state` gave, of the same settings."""
        self.token.load_state_dict(state["token"])
        tuned = self.tuned
        if set(tuned) != set(state["vla"]):
            raise ValueError("the saved state is of another VLA; begin anew with --restart")
        with torch.no_grad():
            for name, value in state["vla"].items():
                tuned[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.elapsed = state["step"], state["elapsed"]


def read_state(path: Path) -> dict[str, Any] | None:
    """What :meth:`TokenTraining.save` wrote; None when there is nothing. ValueError when it cannot be read."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != _FORMAT:
            raise ValueError(f"format {state['format']}, expected {_FORMAT}")
        return state
    except Exception as error:  # zip, pickle and torch each have their own
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read ({first}); begin anew with --restart") from error


def resume(training: TokenTraining, path: Path, about: dict[str, str], say: Callable[[str], None]) -> None:
    """Go on with an unfinished training that has the same settings and data, and say so.

    ValueError when there is one with others: it is neither mixed nor lost.
    """
    state = read_state(path)
    if state is None:
        return
    if state["finished"]:
        say(f"{path}: that training is finished; this one begins anew")
        return
    settings = asdict(training.settings)
    other = [f"{name} {state['settings'].get(name)} there, {value} now" for name, value in settings.items()
             if state["settings"].get(name) != value]  # fmt: skip
    other += [f"other {name}" for name, value in about.items() if state["about"].get(name) != value]
    if other:
        raise ValueError(f"{path}: an unfinished training ({state['step']} steps) of other settings:"
                         f" {'; '.join(other)}. Go on with those, or begin anew with --restart")
    training.restore(state)
    say(f"{path}: goes on after {training.step} steps")


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, for the end of a step; a second Ctrl-C interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def heard(number: int, _frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    training: TokenTraining, out: Path, about: dict[str, str], say: Callable[[str], None] = print,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> None:  # fmt: skip
    """To the end, with a state in OUT/training now and then and scalars in OUT/tensorboard.

    KeyboardInterrupt after Ctrl-C or SIGTERM, with everything saved.  The token itself is written by :func:`publish`.
    """
    from torch.utils.tensorboard import SummaryWriter

    with interruptible() as asked:
        _train(training, out, about, say, progress, asked, SummaryWriter)
    training.token.eval()
    if training.joint:
        lora.merge(training.policy.model)
        training.policy.requires_grad_(False).eval()


def _train(training, out, about, say, progress, asked: threading.Event, writer_class) -> None:
    first, path = training.processes.first, out / STATE
    resume(training, path, about, say if first else lambda text: None)
    writer = writer_class(str(out / "tensorboard"), purge_step=training.step, flush_secs=10) if first else None
    saved, pause, shown, smooth = time.monotonic(), SAVE_S, (training.step, training.elapsed), {}
    try:
        while training.done < 1:
            for name, value in training.update().items():
                smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
            if progress and first:
                progress(int(1000 * training.done), 1000, {"step": training.step} | smooth)
            if writer and (training.step % _SHOW == 0 or training.done >= 1):
                speed = (training.step - shown[0]) / max(1e-9, training.elapsed - shown[1])
                shown = (training.step, training.elapsed)
                values = smooth | {"samples_per_s": speed * training.settings.batch}
                values["lr"] = training.optimiser.param_groups[0]["lr"]
                for name, value in values.items():
                    writer.add_scalar(f"token/{name}", value, training.step)
            stop = training.processes.any(asked.is_set()) and training.done < 1
            if first and training.done < 1 and (stop or time.monotonic() - saved > pause):
                begin = time.monotonic()
                training.save(path, about)
                saved = time.monotonic()
                pause = max(SAVE_S, 20 * (saved - begin))
            if stop:
                if first:
                    say(f"{path}: saved after {training.step} steps; the same command goes on from there")
                raise KeyboardInterrupt
        training.processes.check_alike([*training.token.state_dict().values(), *training.tuned.values()])
        if first:
            training.save(path, about)
    finally:
        if writer:
            writer.close()


def publish(training: TokenTraining, model: Path, out: Path) -> None:
    """Make `out` a checkpoint folder that nodes load: the token and its VLA, which came from `model`.

    Files appear under their names when all are written.
    """
    part = out / ".part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if training.joint or not os.path.samefile(model, out):
            for file in cache.checkpoint_files(model):
                if not (training.joint and ".safetensors" in file.name):
                    shutil.copyfile(file, part / file.name)
        if training.joint:
            training.policy.save(part)
        training.token.save(part)
        for file in sorted(part.iterdir()):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(file, out / file.name)
        cache.sync_folder(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
