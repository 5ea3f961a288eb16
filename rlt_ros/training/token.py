"""Algorithm 1, phase 1: train the RL token over a VLA's embeddings, and the VLA with it when alpha is not 0.

What a step does follows from the seed, the step and the process alone, so that a run that was stopped and goes on is
the run that was not stopped.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlt_ros.core.rl_token import RLToken, TokenConfig
from rlt_ros.training import embeddings as cache
from rlt_ros.training import lora
from rlt_ros.training.frames import Frames
from rlt_ros.training.processes import Processes, part, whole
from rlt_ros.vla.backend import SETTINGS, Backend, read_settings

STATE = Path("training") / "state.pt"  # in the folder of the result
_NUMBERS = Path("token.safetensors")  # there too
SAVE_S = 60.0  # between two states, and 20 times as long as saving takes
_FORMAT = 1
_WIDE = 512  # from this width on a token has more heads and a smaller rate (both ours, not measured)
_ROUNDED = 2**-7  # of its mean: the least unit of an embedding, 16 times what float16 rounds
_SHOW = 20  # steps between two reports


@dataclass(frozen=True)
class Settings:
    """What a training depends on; one that goes on must have the same."""

    steps: int = 2000
    minutes: float = 0.0  # not 0: so long instead, by the clock, which no second run repeats
    batch: int = 64  # samples a step, of all processes and pieces together
    accumulate: int = 1  # pieces that a process computes its part of a batch in
    lr: float = 0.0  # peak; 0: 1e-3, for tokens of 512 and wider 2e-4
    seed: int = 0
    dtype: str = "float32"  # or bfloat16: autocast, parameters stay float32
    layers: int = 2  # of encoder and decoder
    width: int = 0  # numbers of the token; 0: as many as an embedding has
    action_weight: float = 1.0
    context_dropout: float = 0.9
    alpha: float = 0.0  # weight of the VLA's flow-matching loss; 0: frozen
    tune: str = "lora"  # what of the VLA learns when alpha is not 0: lora or full
    rank: int = 16  # of the adapters
    vla_lr: float = 5e-5  # peak of the VLA's rate

    def check(self, rows: int, processes: int) -> None:
        """ValueError names what does not fit `rows` samples and so many processes."""
        low = {"steps": 0, "minutes": 0, "batch": 1, "accumulate": 1, "lr": 0, "seed": 0, "layers": 1,
               "width": 0, "action_weight": 0, "alpha": 0, "rank": 1}  # fmt: skip
        for name, least in low.items():
            if not (value := getattr(self, name)) >= least or not math.isfinite(value):
                raise ValueError(f"{name} is {value}, expected at least {least}")
        for name, known in (("dtype", tuple(cache.DTYPES)), ("tune", ("lora", "full"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}")
        if self.width % heads(self.width):
            raise ValueError(f"width is {self.width}, expected a multiple of its {heads(self.width)} heads")
        if not self.steps and not self.minutes:
            raise ValueError("steps and minutes are both 0; expected one of them")
        if self.minutes and processes > 1:
            raise ValueError(f"{processes} processes end together by --steps, not by --minutes")
        if self.batch > rows:
            raise ValueError(f"batch is {self.batch}, but there are only {rows} samples; take a smaller --batch")
        if self.batch % (self.accumulate * processes):
            raise ValueError(f"batch is {self.batch}, expected a multiple of {self.accumulate} pieces times {processes}"
                             " processes")


def heads(width: int) -> int:
    """Of the attention in a token of that width."""
    return 4 if width < _WIDE else 8


class Losses(nn.Module):
    """L_ro + alpha L_vla of samples, as the one module whose call DDP and FSDP follow."""

    def __init__(self, token: RLToken, vla, alpha: float, dtype: str):
        """vla: the Pi0 that learns along, or None, with alpha 0."""
        super().__init__()
        self.token, self.vla, self.alpha, self.dtype = token, vla, alpha, dtype

    def forward(
        self, wanted: Tensor, seen: Tensor | None, images: np.ndarray | None = None, proprio: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """The loss, and its parts as numbers.

        wanted: action chunks [n, H*A] in units of their spread.  seen: embeddings [n, M, E], or None: of images uint8
        [n, cameras, S, S, 3] by the VLA, with proprioception [n, P] and actions [n, H, A] for its own loss.

        No gradient of L_ro reaches the VLA (:meth:`RLToken.loss`): its embeddings stay what its actions need.
        """
        with torch.autocast(wanted.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            if self.vla is None:
                return self.token.loss(seen, wanted, cache.there(seen))
            prefix, seen = self.vla.prefix(self.vla.pixels(images))
            flow = self.vla.flow_loss(prefix, proprio, actions)
            loss, parts = self.token.loss(seen.float(), wanted)
            return loss + self.alpha * flow, parts | {"flow": float(flow.detach())}


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
    """The token in the making: `token`, `policy` (a back end), `step` (made so far), `elapsed` (s, over all runs)."""

    def __init__(
        self, policy: Backend, frames: Frames, rows: np.ndarray, settings: Settings,
        embeddings: np.ndarray | None = None, processes: Processes | None = None,
    ):  # fmt: skip
        """policy: where `processes` compute (:func:`embeddings.move`); with alpha, a Pi0 or what has its methods.
        rows: of `frames`, which are trained on.  embeddings: of all frames; None when alpha is not 0.

        ValueError as of Settings.check.
        """
        self.processes = processes or Processes()
        settings.check(len(rows), self.processes.count)
        self.policy, self.frames, self.settings, self.embeddings = policy, frames, settings, embeddings
        self.order = Order(rows, settings.batch, settings.seed)
        self.step, self.elapsed = 0, 0.0
        torch.manual_seed(settings.seed)
        self.joint = settings.alpha > 0
        embedded = policy.embedding_dim
        width = settings.width or embedded
        config = TokenConfig(
            embedded, policy.image_tokens, layers=settings.layers, heads=heads(width), feedforward=2 * width,
            action_values=policy.horizon * policy.action_dim, action_weight=settings.action_weight,
            context_dropout=settings.context_dropout, width=0 if width == embedded else width,
        )  # fmt: skip
        self.token = RLToken(config).to(self.processes.device)
        if isinstance(policy, nn.Module):
            policy.requires_grad_(False).eval()
        self._measure(rows)
        peak = settings.lr or (1e-3 if width < _WIDE else 2e-4)
        groups = [{"params": list(self.token.parameters()), "peak": peak}]
        if self.joint:
            if settings.tune == "lora":
                tuned = lora.add(policy.model, settings.rank, settings.rank)
            else:
                tuned = list(policy.model.requires_grad_(True).parameters())
            groups.append({"params": tuned, "peak": settings.vla_lr})
        optimiser = torch.optim.AdamW(groups, lr=peak, weight_decay=0.01, fused=True)
        self._whole = None
        if self.joint and self.processes.sharded and self.processes.first:
            self._whole = copy.deepcopy(policy).cpu()  # the weights are shared out now, and come together in it
        losses = Losses(self.token, policy if self.joint else None, settings.alpha, settings.dtype)
        self.losses, self.optimiser = self.processes.prepare(losses, optimiser)

    @property
    def tuned(self) -> dict[str, nn.Parameter]:
        """The VLA's parameters that learn."""
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad} if self.joint else {}

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
        """One step; its losses, means over this process's part of the batch.

        ValueError when a loss or a gradient is not finite.
        """
        start, settings = time.monotonic(), self.settings
        for group in self.optimiser.param_groups:
            warm = min(1.0, (self.step + 1) / 100)
            group["lr"] = group["peak"] * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.done)))
        chance = np.random.SeedSequence([settings.seed, self.step, self.processes.rank]).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(chance))  # what is hidden from the decoder, and the flow's noise and times
        self.optimiser.zero_grad(set_to_none=True)
        parts: dict[str, float] = {}
        pieces = np.split(self.mine(self.step), settings.accumulate)
        for number, piece in enumerate(pieces, 1):
            with nullcontext() if number == len(pieces) else self.processes.apart(self.losses):
                loss, some = self.loss(piece)
                (loss / settings.accumulate).backward()
            parts = {name: parts.get(name, 0.0) + value / settings.accumulate for name, value in some.items()}
        if wrong := [name for name, value in parts.items() if not math.isfinite(value)]:
            raise ValueError(f"step {self.step}: the loss of {wrong[0]} is {parts[wrong[0]]}; the state saved before is"
                             " as it was. Try a smaller --lr, or --dtype float32")
        for name, group in zip(("token_gradient", "vla_gradient"), self.optimiser.param_groups, strict=False):
            parts[name] = float(whole(nn.utils.clip_grad_norm_(group["params"], 1.0)))
            if not math.isfinite(parts[name]):
                raise ValueError(f"step {self.step}: {name} is {parts[name]}; the state saved before is as it was. Try"
                                 " a smaller --lr or --vla-lr, or --dtype float32")
        self.optimiser.step()
        self.step += 1
        self.elapsed += time.monotonic() - start
        return parts

    def loss(self, rows: np.ndarray) -> tuple[Tensor, dict[str, float]]:
        """L_ro + alpha L_vla of some rows, and the parts as numbers."""
        frames, device = self.frames, self.processes.device
        wanted = torch.from_numpy(frames.targets(rows)).to(device)
        if not self.joint:
            return self.losses(wanted, self.seen(rows))
        proprio, actions = (torch.from_numpy(values[rows]).to(device) for values in (frames.proprio, frames.actions))
        return self.losses(wanted, None, frames.images(rows), proprio, actions)

    def seen(self, rows: np.ndarray) -> Tensor:
        """The VLA's embeddings float32 [n, M, E] of some rows, without gradients."""
        if self.embeddings is not None:
            return torch.from_numpy(np.array(self.embeddings[rows])).to(self.processes.device).float()
        return cache.embed(self.policy, self.frames.images(rows), self.processes, self.settings.dtype)

    def _measure(self, rows: np.ndarray) -> None:
        """Mean and spread of the embeddings, from a thousand pictures, by the first process."""
        measured = None
        if self.processes.first:
            some = rows[:: max(1, len(rows) // 1000)]
            total = square = count = 0
            for first in range(0, len(some), 32):
                values = self.seen(some[first : first + 32]).double()
                values = values[cache.there(values)]
                total, square, count = total + values.sum(0), square + values.square().sum(0), count + len(values)
            mean = total / count
            spread = (square / count - mean.square()).clamp_min(0).sqrt()
            # Values that hardly move are not blown up into noise, nor is what float16 rounds in the cache.
            least = (_ROUNDED * mean.abs()).clamp_min(max(0.1 * float(spread.mean()), 1e-6))
            measured = [mean.cpu(), torch.maximum(spread, least).cpu()]
        for buffer, value in zip((self.token.mean, self.token.std), self.processes.share(measured), strict=True):
            buffer.copy_(value)

    # --- the state ---------------------------------------

    def save(self, path: Path, about: dict[str, str]) -> None:
        """Write all that is needed to go on, atomically; all processes are to call it, and the first one writes.

        about: hashes of what it is trained on.
        """
        if not (self.processes.first or self.processes.sharded):
            return
        state = {
            "format": _FORMAT, "settings": asdict(self.settings), "about": about, "config": asdict(self.token.config),
            "step": self.step, "elapsed": self.elapsed, "finished": self.done >= 1,
            "token": _each(whole, self.token.state_dict()), "optimiser": _each(whole, self.optimiser.state_dict()),
            "vla": _each(whole, {name: p.detach() for name, p in self.tuned.items()}),
        }  # fmt: skip
        if not self.processes.first:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(path.name + ".part")
        try:
            with half.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
            cache.sync_folder(path.parent)
        finally:
            half.unlink(missing_ok=True)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :func:`read_state` gave, of the same settings."""
        tuned = self.tuned
        if set(tuned) != set(state["vla"]):
            raise ValueError("the saved state is of another VLA; begin anew with --restart")
        with torch.no_grad():
            for own, kept in ((self.token.state_dict(), state["token"]), (tuned, state["vla"])):
                for name, value in own.items():
                    value.copy_(part(kept[name], value))
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        kept = state["optimiser"]
        kept["state"] = {
            number: {name: part(value, parameters[number]) if value.shape == parameters[number].shape else value
                     for name, value in values.items()}
            for number, values in kept["state"].items()
        }  # fmt: skip
        self.optimiser.load_state_dict(kept)
        self.step, self.elapsed = state["step"], state["elapsed"]

    def finish(self) -> None:
        """Make `token` and `policy` whole, in inference, the adapters merged; of the first process where sharded."""
        if self.processes.sharded:
            token, tuned = (_each(whole, dict(values)) for values in (self.token.state_dict(), self.tuned))
            if not self.processes.first:
                return
            self.token = RLToken(self.token.config).to(self.processes.device)
            self.token.load_state_dict(token)
            if self._whole is not None:
                self.policy, self._whole = self._whole, None
                self.policy.load_state_dict(tuned, strict=False)
                self.policy.to(self.processes.device)
        self.token.eval()
        if self.joint:
            lora.merge(self.policy.model)
            self.policy.requires_grad_(False).eval()


def _each(function: Callable[[Tensor], Tensor], values: Any) -> Any:
    """The same dicts and lists with the function's values of their tensors."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, dict):
        return type(values)((name, _each(function, value)) for name, value in values.items())
    return [_each(function, value) for value in values] if isinstance(values, list) else values


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
    """Go on with a training of the same settings and data that is unfinished, or not published yet, and say so.

    ValueError when there is one with others: it is neither mixed nor lost.
    """
    state = read_state(path)
    if state is None:
        return
    if published(state, path.parents[1]):
        say(f"{path}: that training is finished; this one begins anew")
        return
    settings = asdict(training.settings)
    other = [f"{name} {state['settings'].get(name)} there, {value} now" for name, value in settings.items()
             if state["settings"].get(name) != value]  # fmt: skip
    other += [f"other {name}" for name, value in about.items() if state["about"].get(name) != value]
    if other:
        what = "a training whose token was not put in place" if state["finished"] else "an unfinished training"
        raise ValueError(f"{path}: {what} ({state['step']} steps) of other settings:"
                         f" {'; '.join(other)}. Go on with those, or begin anew with --restart")
    training.restore(state)
    say(f"{path}: " + ("that training is finished; its token is put in place now" if state["finished"] else
                       f"goes on after {training.step} steps"))  # fmt: skip


def published(state: dict[str, Any], out: Path) -> bool:
    """Whether the token in `out` is that of the state, which is a finished training's."""
    try:
        there = RLToken.load(out).e_rl.detach()
    except ValueError:
        return False
    return state["finished"] and torch.equal(state["token"]["e_rl"].half().float(), there)


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
    training.finish()


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
            if training.done >= 1:
                break
            stop, due = training.processes.any(asked.is_set(), first and time.monotonic() - saved > pause)
            if stop or due:
                begin = time.monotonic()
                training.save(path, about)
                saved = time.monotonic()
                pause = max(SAVE_S, 20 * (saved - begin))
            if stop:
                if first:
                    say(f"{path}: saved after {training.step} steps; the same command goes on from there")
                raise KeyboardInterrupt
        if not training.processes.sharded:
            training.processes.check_alike([*training.token.state_dict().values(), *training.tuned.values()])
        training.save(path, about)
    finally:
        if writer:
            writer.close()


def publish(training: TokenTraining, model: Path, out: Path) -> None:
    """Make `out` a checkpoint folder that nodes load: the token and its VLA, which came from `model`.

    Files appear under their names when all are written, the token's numbers last. Until then there are none: a VLA must
    not be loaded with the token of the one before.
    """
    new = out / ".part"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        if training.joint or not os.path.samefile(model, out):
            for file in cache.checkpoint_files(model):
                if not (training.joint and ".safetensors" in file.name):
                    (new / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(model / file, new / file)
            if (new / SETTINGS).is_file():
                _keep_paths(new, model)
        if training.joint:
            training.policy.save(new)
        training.token.save(new)
        files = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
        for file in files:
            with (new / file).open("rb") as written:
                os.fsync(written.fileno())
        (out / _NUMBERS).unlink(missing_ok=True)
        cache.sync_folder(out)
        for file in sorted(files, key=_NUMBERS.__eq__):
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / file, out / file)
        cache.sync_folder(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _keep_paths(copy_of: Path, model: Path) -> None:
    """Have the ``rlt.json`` of a copy name by its full path what it named relative to `model`, and was not copied."""
    before = read_settings(copy_of)
    settings = dict(before)
    for name, value in before.items():
        with suppress(OSError, TypeError):  # a text too long for a path, or no text
            target = (model / value).resolve()
            if target.exists() and not target.is_relative_to(model.resolve()):
                settings[name] = str(target)
    if settings != before:
        (copy_of / SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")
