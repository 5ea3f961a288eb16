"""The learner: replay, TD3, the update-to-data ratio and checkpoints that resume exactly."""
from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import time
from pathlib import Path
from typing import Sequence

import numpy as np
import torch

from rlt_ros.core.networks import Actor, Dims
from rlt_ros.core.replay import ReplayBuffer, Transition
from rlt_ros.core.td3 import LIVE, TD3, TD3Config
from rlt_ros.core.weights import pack

_MAGIC = b"rlt-learner-1\n"
# Versions that were published after the last checkpoint are in use on the robot: a resumed learner must go past them.
RESUME_VERSION_GAP = 1_000_000


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the text names the file and what is wrong with it."""


def _read(path: Path) -> dict:
    """The content of a checkpoint; CheckpointError when it is missing, damaged or foreign."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: {error.strerror}") from error
    digest, payload = content[len(_MAGIC):len(_MAGIC) + 32], content[len(_MAGIC) + 32:]
    if not content.startswith(_MAGIC):
        raise CheckpointError(f"checkpoint {path}: not a learner checkpoint; expected it to start with {_MAGIC!r}")
    if hashlib.sha256(payload).digest() != digest:
        kept = sorted(other.name for other in path.parent.glob(f"{path.stem}-*{path.suffix}"))
        older = f"remove it and copy an older one to its place: {', '.join(reversed(kept))}"
        remedy = older if kept else "remove it or restore a copy"
        raise CheckpointError(f"checkpoint {path}: damaged (checksum differs); {remedy}")
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def checkpoint_dims(path: Path) -> Dims:
    """Sizes of the networks in a checkpoint, for who has seen no transition yet; CheckpointError as in Learner.load."""
    actor = _read(path)["architecture"]["actor"]
    return Dims(**{name: actor[name] for name in ("token", "rl_proprio", "action", "chunk")})


def load_actor(path: str | Path) -> tuple[Actor, int]:
    """The actor of a checkpoint, in inference mode, and its version; whatever critics and settings it was trained with.

    CheckpointError as in Learner.load.
    """
    state = _read(Path(path))
    actor = Actor.from_architecture(state["architecture"]["actor"])
    actor.load_state_dict(state["td3"]["actor"])
    return actor.requires_grad_(False).eval(), int(state["version"])


def _keep_as(file: Path, name: Path) -> None:
    """A second name for `file`, over what had it; a copy where the file system has no links."""
    link = name.with_name(name.name + ".tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(file, link)
    except OSError:
        shutil.copyfile(file, link)
    os.replace(link, name)


class Learner:
    """Collects transitions, says how many updates are owed, makes them, packs the actor.

    proprio_scale: what counts as one unit of each of the 2P proprioceptive inputs (they are divided by it).
    session_dir: where `save` and `load` put the checkpoint unless told otherwise.
    device: where it computes, "cpu" or "cuda"; the replay buffer stays in the host's memory.
    """

    def __init__(
        self,
        config: TD3Config,
        dims: Dims,
        session_dir: str | Path | None = None,
        proprio_scale: Sequence[float] | None = None,
        device: str = "cpu",
    ):
        self.config = config
        self.dims = dims
        self.checkpoint_path = None if session_dir is None else Path(session_dir) / "checkpoints" / "learner.ckpt"
        self.td3 = TD3(config, dims, proprio_scale, device)
        self.buffer = ReplayBuffer(config.capacity, dims, config.gamma)
        self.sampling = torch.Generator().manual_seed(config.seed + 2)
        self.version = 0  # of the newest published policy
        self.transitions = 0  # counted for the update-to-data ratio, over all lives of the session
        self.forgiven = 0  # updates that were owed and will not be made
        self.successes = 0  # episodes that were rewarded, over all lives of the session and in prior data
        self._rewarded: tuple[str, int] | None = None  # the newest of them, by session and number
        self._counted_until = -1  # highest sequence counted before the resume,
        self._uncounted: set[int] = set()  # without those that were missing then
        self._newest = -1  # highest sequence that was here
        self._ahead: set[int] = set()  # those that came before one that is still missing
        self._next_sequence = 0
        self.journal_run: int | None = None  # which life of the replay node numbered them; None: never heard
        self._losses: dict[str, float] = {}
        self._seconds_per_update = 0.0

    # --- data ----------------------------------------

    def add(self, transition: Transition) -> bool:
        """Store a transition; False when its sequence number was here before.  ValueError on malformed ones.

        After `load`, the journal's transitions are added again: they fill the buffer and are owed no second updates.
        """
        sequence = int(transition.sequence)
        if sequence < self._next_sequence or sequence in self._ahead:
            return False
        self.buffer.add(transition)
        self._newest = max(self._newest, sequence)
        self._ahead.add(sequence)
        self._close_up()
        if sequence > self._counted_until or sequence in self._uncounted:
            self._uncounted.discard(sequence)
            self.transitions += 1
            self._count_success(transition, "")
        return True

    def _count_success(self, transition: Transition, session: str) -> None:
        episode = session, int(transition.episode)
        if episode != self._rewarded and np.any(np.asarray(transition.rewards) > 0.0):
            self._rewarded = episode
            self.successes += 1

    def give_up(self, first: int, end: int) -> int:
        """Wait no longer for those from `first` to before `end`, which nobody has; how many of them were missing."""
        missing = [i for i in range(max(first, self._next_sequence), end) if i not in self._ahead]
        self._ahead.update(missing)
        self._uncounted.difference_update(missing)
        self._close_up()
        return len(missing)

    def follow(self, run: int, begins: int) -> int:
        """The journal is numbered by `run`, from `begins` on; how many numbers that were here it gives anew.

        A power cut may have lost the journal's newest entries, and without a session all are: other transitions get
        their numbers, and they are new. What was learned from the lost ones stays.
        """
        if run == self.journal_run:
            return 0
        newest = self._counted_until if self.journal_run is None else max(self._counted_until, self._newest)
        self.journal_run = run
        if begins <= newest:
            self.forget(begins)
        return max(0, newest + 1 - begins)

    def forget(self, first: int) -> None:
        """Sequence numbers from `first` on are of transitions that were never here."""
        self._next_sequence = min(self._next_sequence, first)
        self._newest = min(self._newest, first - 1)
        self._counted_until = min(self._counted_until, first - 1)
        self._ahead = {i for i in self._ahead if i < first}
        self._uncounted = {i for i in self._uncounted if i < first}

    def _close_up(self) -> None:
        while self._next_sequence in self._ahead:
            self._ahead.remove(self._next_sequence)
            self._next_sequence += 1

    def add_prior(self, transition: Transition, session: str = "prior") -> None:
        """Store a transition of an earlier session or of a demonstration, before everything else: it stays in the
        buffer for good and no updates are owed for it.  ValueError on malformed ones and when it comes late.

        session: which one, since each numbers its episodes from 1.
        """
        self.buffer.add(transition, keep=True)
        self._count_success(transition, session)

    def set(self, name: str, value: float) -> None:
        """Change a hyper-parameter while learning; ValueError names what can be changed and within what."""
        if name not in LIVE:
            raise ValueError(f"learner: {name} cannot change while it runs, only {', '.join(LIVE)}")
        low, high = LIVE[name]
        if not low <= value <= high:
            raise ValueError(f"learner: {name} is {value}, expected {low} to {high}")
        setattr(self.td3, name, float(value))

    @property
    def next_sequence(self) -> int:
        """The lowest sequence number that is missing: what to ask the journal for."""
        return self._next_sequence

    # --- updates ----------------------------------------

    @property
    def updates(self) -> int:
        return self.td3.updates

    def due(self) -> int:
        """Updates owed now: utd * transitions - made, at most max_backlog (the rest is forgiven).

        0 below min_buffer, before the first success when one is to be waited for, and after a resume until all that was
        counted is here again or given up: updates from a part of it would not be those that were owed.
        """
        if self._next_sequence <= self._counted_until:
            return 0
        if len(self.buffer) < self.config.min_buffer or self.successes < min(1, self.config.warm_successes):
            return 0
        owed = math.floor(self.config.utd * self.transitions) - self.updates - self.forgiven
        if owed > self.config.max_backlog:
            self.forgiven += owed - self.config.max_backlog
        return max(0, min(owed, self.config.max_backlog))

    def forgive(self) -> None:
        """Owe nothing for what was counted, whether fewer updates were made or more."""
        self.forgiven = math.floor(self.config.utd * self.transitions) - self.updates

    def step(self) -> dict[str, float]:
        """One update; its metrics.  ValueError when the buffer is empty."""
        start = time.perf_counter()
        if self.updates == 0 and len(self.buffer):
            self.td3.measure_inputs(*self.buffer.states())
        batch = self.buffer.sample(self.config.batch_size, self.sampling, self.config.prior_fraction)
        prior_share = float(batch["prior"].float().mean())
        if self.td3.device.type != "cpu":
            batch = {name: values.to(self.td3.device) for name, values in batch.items()}
        self._losses = self.td3.update(batch) | {"prior_share": prior_share}
        seconds = time.perf_counter() - start
        self._seconds_per_update += (seconds - self._seconds_per_update) * (0.05 if self._seconds_per_update else 1.0)
        return self.metrics

    @property
    def metrics(self) -> dict[str, float]:
        """Plain floats.  updates_per_s is the speed while updating, not counting waits for data."""
        return {
            "updates": float(self.updates),
            "version": float(self.version),
            "replay_size": float(len(self.buffer)),
            "transitions": float(self.transitions),
            "forgiven": float(self.forgiven),
            "updates_per_transition": self.updates / max(1, self.transitions),
            "updates_per_s": 1.0 / self._seconds_per_update if self._seconds_per_update else 0.0,
            **self._losses,
        }

    def warm(self) -> bool:
        """Whether there is data and training enough to let the actor act."""
        return not self.waiting_for()

    def waiting_for(self) -> str:
        """What the warm-up has of what it needs, such as "transitions 640/1000, successes 1/3"; "" when it is over."""
        config = self.config
        needs = {
            "transitions": (self.transitions, config.warm_transitions),
            "successes": (self.successes, config.warm_successes),
            "updates": (self.updates, config.warm_updates),
        }
        return ", ".join(f"{name} {has}/{needed}" for name, (has, needed) in needs.items() if has < needed)

    def publish(self) -> tuple[bytes, str, int]:
        """The actor packed under the next version: bytes, SHA-256 hex, version."""
        self.version += 1
        return *pack(self.td3.actor, self.version), self.version

    # --- checkpoints ----------------------------------------

    def _path(self, path: str | Path | None) -> Path:
        path = self.checkpoint_path if path is None else Path(path)
        if path is None:
            raise CheckpointError("no checkpoint path: give one, or a session_dir to the learner")
        return path

    def save(self, path: str | Path | None = None, keep: int = 0) -> Path:
        """Write everything but the replay buffer (the journal has it), atomically: the old file stays until the new
        one is safe on disk.

        keep: so many of the newest stay beside it as <name>-<updates>.ckpt, to go back to.
        """
        path = self._path(path)
        unseen = range(max(self._next_sequence, self._counted_until + 1), self._newest)
        buffer = io.BytesIO()
        torch.save(
            {
                "architecture": self.td3.architecture,
                "td3": self.td3.state_dict(),
                "sampling": self.sampling.get_state(),
                "version": self.version,
                "transitions": self.transitions,
                "forgiven": self.forgiven,
                "successes": self.successes,
                "counted_until": max(self._counted_until, self._newest),
                "uncounted": [*self._uncounted, *(i for i in unseen if i not in self._ahead)],
                "rewarded": self._rewarded,
                "journal_run": self.journal_run,
            },
            buffer,
        )
        payload = buffer.getvalue()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)  # takes no space of a full disk
            raise
        if keep:
            _keep_as(temporary, path.with_name(f"{path.stem}-{self.updates:09d}{path.suffix}"))
            kept = path.parent.glob(f"{path.stem}-*{path.suffix}")
            # By age: whoever went back to an older one has newer ones with smaller numbers now.
            for old in sorted(kept, key=lambda other: (other.stat().st_mtime_ns, other.name))[:-keep]:
                old.unlink(missing_ok=True)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
        return path

    def load(self, path: str | Path | None = None) -> None:
        """Resume: bit-identical on one machine once the journal's transitions are added again in their order.

        Published versions go on past those that a crash may have left on the robot; save() again before publishing.
        Raises CheckpointError on a missing, damaged or foreign file and another architecture; the learner is unchanged.
        """
        path = self._path(path)
        state = _read(path)
        for network, expected in self.td3.architecture.items():
            found = state["architecture"].get(network)
            if found != expected:
                raise CheckpointError(f"checkpoint {path}: {network} is {found}, this learner has {expected}")
        self.td3.load_state_dict(state["td3"])
        self.sampling.set_state(state["sampling"])
        self.version = int(state["version"]) + RESUME_VERSION_GAP
        self.transitions = int(state["transitions"])
        self.forgiven = int(state["forgiven"])
        # Older checkpoints do not say; what they had seen was good enough for them.
        self.successes = int(state.get("successes", self.config.warm_successes))
        self._counted_until = int(state["counted_until"])
        self._uncounted = set(state.get("uncounted", ()))
        self._rewarded = state.get("rewarded")
        self.journal_run = state.get("journal_run")
