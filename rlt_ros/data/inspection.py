"""What is in a folder of demonstrations, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlt_ros.core.pictures import PictureWatch
from rlt_ros.data import demos, resample
from rlt_ros.sim.task import Task

FROZEN_S = 2.0  # a camera that shows the same for longer, while the robot moves, is frozen; less may be out of its view
_MOVED = 5.0  # times what the task calls moved (`moved` of its state): a camera without noise must see that
_JUMP = 10.0  # times the step that 99 of 100 do not exceed
_FULL = 1.0 - 1e-6
_OFTEN = 0.5  # a larger part of the ticks at full action in one direction is more than a person does
# Largest plausible absolute value of the parts whose units are known: m and rad, m/s and rad/s, N and N m.
_PLAUSIBLE = {"pose": ([5.0] * 3 + [4.0], ["millimetres", "degrees"]),
              "twist": ([10.0] * 3 + [20.0], ["mm/s", "degrees/s"]),
              "wrench": ([2000.0] * 3 + [500.0] * 3, ["another unit", "N mm"])}  # fmt: skip
_JOINT_RAD = 4 * np.pi  # a joint that turns further is rather measured in degrees
_GAIN = (0.2, 5.0)  # plausible motion over commanded motion


@dataclass(frozen=True)
class Finding:
    """Something wrong: `kind`, and `text`, which names file and frame."""

    kind: str
    text: str


@dataclass
class Inspection:
    """What was found in a folder.

    Attributes:
        lengths, successes, criticals: of each readable episode: ticks, outcome, tick of the critical phase or -1.
        low, high [P + A]: extremes of state and action.
        shots: some pictures uint8 [cameras, S, S, 3], with their episode's name and frame.
        curves: name and (proprio, action) of a few episodes.
    """

    folder: Path
    task: Task
    lengths: list[int] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)
    criticals: list[int] = field(default_factory=list)
    pictures: int = 0
    instructions: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    full: np.ndarray | None = None  # [A] ticks at full action
    gains: dict[str, float] = field(default_factory=dict)
    shots: list[tuple[str, np.ndarray]] = field(default_factory=list)
    curves: list[tuple[str, np.ndarray, np.ndarray]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Of the values of state and action."""
        state = [f"{key.key}[{i}]" for key in self.task.state for i in range(key.size)]
        return state + [f"action {name}" for name in self.task.action_names]


def inspect(folder: Path, task: Task, progress=lambda done, total: None) -> Inspection:
    """Look at every episode, one at a time. ValueError when there is none."""
    found = Inspection(Path(folder), task)
    judge = _Judge(found)
    paths = demos.paths(folder)
    for done, path in enumerate(paths, 1):
        try:
            episode = demos.read(path)
        except ValueError as error:
            found.findings.append(Finding("unreadable", str(error)))
        else:
            judge.episode(path, episode, keep=done in {1, 1 + len(paths) // 2, len(paths)})
        progress(done, len(paths))
    judge.end()
    return found


class _Judge:
    def __init__(self, found: Inspection) -> None:
        self.found, self.task = found, found.task
        self.steps: list[np.ndarray] = []  # of the state, absolute, of which the usual size is learned
        self.largest: list[tuple[str, np.ndarray, np.ndarray]] = []  # file, largest step of each value, its frame
        self.sums = np.zeros((2, self.task.action_dim))  # of commanded times moved, and of commanded squared
        self.tracked = self._tracked()
        self.moved = np.array(self.task.proprio_scale[self.task.proprio_dim :])

    def wrong(self, kind: str, text: str) -> None:
        self.found.findings.append(Finding(kind, text))

    def _tracked(self) -> list[tuple[int, int]]:
        """(action, place in the state) of actions that move a value of the state by themselves."""
        out, start = [], 0
        for key in self.task.state:
            if key.key == "pose":
                axes = ("x", "y", "z", "yaw")
                out += [(i, start + axes.index(n)) for i, n in enumerate(self.task.action_names) if n in axes]
            elif key.key.startswith("joint_position") and key.size == self.task.action_dim and not out:
                out += [(i, start + i) for i in range(key.size)]
            start += key.size
        return out

    def episode(self, path: Path, episode: dict[str, np.ndarray], keep: bool) -> None:
        task, found = self.task, self.found
        proprio, action, images, ticks = (episode[k] for k in ("proprio", "action", "images", "frame_tick"))
        shapes = {"proprio": proprio.shape[1:] == (task.proprio_dim,), "action": action.shape[1:] == (task.action_dim,),
                  "images": images.ndim == 5 and images.shape[1] == len(task.cameras)}  # fmt: skip
        for name, fits in shapes.items():
            if not fits:
                self.wrong(
                    "shape", f"{path}: {name} is {episode[name].shape}, which does not fit the task '{task.name}'"
                )
                return
        if not len(action) or not len(ticks):
            self.wrong("empty", f"{path}: {len(action)} steps and {len(ticks)} pictures; delete it")
            return
        if len(proprio) != len(action) or len(images) != len(ticks) or ticks[-1] >= len(action):
            self.wrong(
                "shape",
                f"{path}: {len(proprio)} readings, {len(action)} actions, {len(images)} pictures at"
                f" {len(ticks)} ticks until {ticks[-1]}; delete it",
            )
            return
        found.lengths.append(len(action))
        found.successes.append(bool(episode["success"]))
        found.criticals.append(int(episode["critical_tick"]))
        found.pictures += len(images)
        found.instructions.add(str(episode.get("instruction", task.instruction)))
        both = np.concatenate([proprio, action], 1)
        bad = np.argwhere(~np.isfinite(both))
        if len(bad):
            frame, i = (int(v) for v in bad[0])
            self.wrong(
                "not finite",
                f"{path}: frame {frame}: {found.names[i]} is {both[frame, i]}"
                + (f", and {len(bad) - 1} more" if len(bad) > 1 else ""),
            )
            return
        low, high = both.min(0), both.max(0)
        found.low = low if found.low is None else np.minimum(found.low, low)
        found.high = high if found.high is None else np.maximum(found.high, high)
        over = np.argwhere(np.abs(action) > 1.0 + 1e-4)
        if len(over):
            frame, i = (int(v) for v in over[0])
            self.wrong(
                "over full action",
                f"{path}: frame {frame}: action {task.action_names[i]} is"
                f" {action[frame, i]:.3g}, expected at most 1, and {len(over) - 1} more",
            )
        full = (np.abs(action) >= _FULL).sum(0)
        found.full = full if found.full is None else found.full + full
        gap = np.diff(ticks)
        usual = np.median(gap) if len(gap) else 0
        for i in np.flatnonzero((gap > 1.5 * usual) | (gap <= 0))[:1]:
            self.wrong(
                "gap",
                f"{path}: frame {int(ticks[i])}: the next picture is {int(gap[i])} ticks later, usual are {usual:.0f}",
            )
        self._steps(path, proprio, action)
        self._cameras(path, proprio, images, ticks)
        if keep:
            found.shots.append((path.stem, images[len(images) // 2]))
            found.curves.append((path.stem, proprio, action))

    def _steps(self, path: Path, proprio: np.ndarray, action: np.ndarray) -> None:
        if len(proprio) < 2:
            return
        steps = np.diff(proprio, axis=0).astype(np.float64)
        at = 0
        for key in self.task.state:
            if key.key == "pose":
                steps[:, at + 3] = resample.wrapped(steps[:, at + 3])
            at += key.size
        size = np.abs(steps)
        self.steps.append(np.quantile(size, 0.99, axis=0))
        self.largest.append((str(path), size.max(0), size.argmax(0) + 1))
        for i, place in self.tracked:
            commanded = action[:-1, i] * self.task.action_scale[i]
            self.sums[0, i] += float((commanded * steps[:, place]).sum())
            self.sums[1, i] += float(np.square(commanded).sum())

    def _cameras(self, path: Path, proprio: np.ndarray, images: np.ndarray, ticks: np.ndarray) -> None:
        period_ns = round(1e9 / self.task.rate)
        for i, camera in enumerate(self.task.cameras):
            watch, since, said = PictureWatch(0.0, 10, 250), 0, set()
            for at, tick in enumerate(ticks.tolist()):
                wrong = watch.judge(images[at, i], 1 + tick * period_ns)
                if wrong and wrong not in said:
                    said.add(wrong)
                    self.wrong(
                        wrong,
                        f"{path}: frame {tick}: camera '{camera}' is {'black' if wrong == 'dark' else 'blown out'}",
                    )
                since = tick if watch.same_s == 0 else since
                if watch.same_s > FROZEN_S and "frozen" not in said:
                    way = np.abs(proprio[since : tick + 1] - proprio[since]).max(0)
                    if (way[self._motion()] > _MOVED * self.moved[self._motion()]).any():
                        said.add("frozen")
                        self.wrong(
                            "frozen camera",
                            f"{path}: frame {since}: camera '{camera}' shows the same picture, bit"
                            f" for bit, for more than {watch.same_s:.2f} s while the robot moves",
                        )

    def _motion(self) -> np.ndarray:
        """Indices of the state that say where the robot is; all of it where no part says so."""
        where = [
            np.full(key.size, key.key == "pose" or key.key.startswith("joint_position")) for key in self.task.state
        ]
        moves = np.concatenate(where)
        return np.flatnonzero(moves if moves.any() else np.ones_like(moves))

    def end(self) -> None:
        """What is seen over all episodes only."""
        found, task = self.found, self.task
        if found.low is None or found.high is None or found.full is None:
            return
        units = np.array(task.proprio_scale[: task.proprio_dim])
        jumpy = np.concatenate([np.full(key.size, key.key == "wrench") for key in task.state])  # as it is in a contact
        if self.steps:
            usual = np.median(self.steps, axis=0)
            for path, size, frame in self.largest:
                jumps = np.flatnonzero((size > np.maximum(_JUMP * usual, units)) & ~jumpy)
                for i in jumps[:1]:
                    self.wrong(
                        "jump",
                        f"{path}: frame {int(frame[i])}: {found.names[i]} jumps by {size[i]:.3g} within a"
                        f" tick, usual are up to {usual[i]:.2g}",
                    )
        ticks = sum(found.lengths)
        for i, name in enumerate(task.action_names):
            part = found.full[i] / ticks
            if part > _OFTEN:
                self.wrong(
                    "clipped actions",
                    f"action {name} is at full action in {100 * part:.0f} % of the ticks: what"
                    " was done is cut off; look at action.scale of the task",
                )
        largest = np.abs(np.stack([found.low, found.high])).max(0)
        top = largest[task.proprio_dim :].max()
        if 0 < top < 0.02:
            self.wrong(
                "unit",
                f"no action exceeds {100 * top:.2g} % of full action; look at action.unit and action.kind"
                " of the mapping, and action.scale of the task",
            )
        elif top == 0:
            self.wrong("unit", "all actions are zero; look at action in the mapping")
        self._units(largest)
        self._gains()
        if not any(found.successes):
            self.wrong(
                "no success",
                "no episode is a success, and only successes are trained on; look at success in the mapping",
            )
        others = found.instructions - {task.instruction}
        if others and len(found.instructions) > 1:
            self.wrong("instructions", f"the episodes were told different things: {sorted(found.instructions)[:3]}")

    def _units(self, largest: np.ndarray) -> None:
        at = 0
        for key in self.task.state:
            values = largest[at : at + key.size]
            limits, units = _PLAUSIBLE.get(key.key, ([np.inf] * key.size, []))
            for i in np.flatnonzero(values > np.array(limits))[:1]:
                unit = units[int(i >= 3)]
                self.wrong(
                    "unit",
                    f"{self.found.names[at + i]} reaches {values[i]:.4g}; is it in {unit}? Expected SI and"
                    f" radians: say state.{key.key}.unit in the mapping",
                )
            if key.key.startswith("joint_position"):
                for i in np.flatnonzero(values > _JOINT_RAD)[:1]:
                    self.wrong(
                        "unit",
                        f"{self.found.names[at + i]} reaches {values[i]:.4g}; is it in degrees? Expected"
                        f" radians: say state.{key.key}.unit in the mapping",
                    )
            at += key.size

    def _gains(self) -> None:
        """Whether the robot went where it was told to, at the size of it."""
        for i, place in self.tracked:
            if self.sums[1, i] <= 0:
                continue
            name = self.task.action_names[i]
            gain = self.found.gains[name] = self.sums[0, i] / self.sums[1, i]
            if not _GAIN[0] <= gain <= _GAIN[1]:
                why = "the sign is wrong" if gain < -_GAIN[0] else "a unit, the kind of action or the scale is wrong"
                self.wrong(
                    "unit",
                    f"action {name} moves {self.found.names[place]} by {gain:.3g} of what it says, expected"
                    f" about 1; {why}, or the two have nothing to do with each other",
                )


def lines(found: Inspection) -> Iterator[str]:
    """What was found, for a terminal."""
    task, rate = found.task, found.task.rate
    yield (
        f"{found.folder}: {len(found.lengths)} episodes, {sum(found.successes)} successful, {found.pictures} pictures,"
        f" {sum(found.lengths) / rate / 60:.1f} min at {rate:g} Hz"
    )
    ended = [(n, c) for n, s, c in zip(found.lengths, found.successes, found.criticals, strict=True) if s]
    if ended:
        critical = [n - c for n, c in ended if c >= 0]
        yield (
            f"median control steps: {np.median([n for n, _ in ended]):.0f} in all"
            + (f", {np.median(critical):.0f} in the critical phase" if critical else "; no critical phase is marked")
        )
    for text in sorted(found.instructions):
        yield f"told: {text}"
    if found.low is not None and found.high is not None and found.full is not None:
        width = max(map(len, found.names))
        full = [""] * task.proprio_dim + [f"  at full action {100 * n / sum(found.lengths):.0f} %" for n in found.full]
        for name, low, high, more in zip(found.names, found.low, found.high, full, strict=True):
            yield f"  {name:<{width}}  {low:>10.4g} to {high:<10.4g}{more}"
    kinds: dict[str, list[str]] = {}
    for finding in found.findings:
        kinds.setdefault(finding.kind, []).append(finding.text)
    for kind, texts in kinds.items():
        yield f"WRONG, {kind}: {texts[0]}" + (f" (and {len(texts) - 1} more)" if len(texts) > 1 else "")
    if not kinds:
        yield "nothing wrong was found"


def plot(found: Inspection, path: Path) -> None:
    """Curves and pictures of a few episodes, and what was found, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    task, cameras = found.task, list(found.task.cameras)
    parts = [(key.key, key.size) for key in task.state] + [("action", task.action_dim)]
    columns = max(1, len(found.curves))
    figure = Figure(figsize=(5 * columns, 2.2 * (len(parts) + 1) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(parts) + 1, columns, squeeze=False)
    for column, (name, proprio, action) in enumerate(found.curves):
        seconds, at, both = np.arange(len(action)) / task.rate, 0, np.concatenate([proprio, action], 1)
        for row, (part, size) in enumerate(parts):
            axis = axes[row][column]
            axis.plot(seconds, both[:, at : at + size], linewidth=0.8, label=found.names[at : at + size])
            axis.set_title(f"{name}: {part}", fontsize=9)
            axis.tick_params(labelsize=7)
            if column == 0:
                axis.legend(fontsize=6, loc="upper right")
            at += size
        axes[-2][column].set_xlabel("s", fontsize=8)
        axes[-1][column].imshow(np.concatenate(list(found.shots[column][1]), 1))
        axes[-1][column].set_title(f"{name}: {', '.join(cameras)}", fontsize=9)
        axes[-1][column].set_axis_off()
    for axis in axes.ravel():
        axis.set_visible(axis.has_data())
    text = [f"{finding.kind}: {finding.text}" for finding in found.findings[:6]] or ["nothing wrong was found"]
    figure.suptitle(
        f"{found.folder}: {len(found.lengths)} episodes\n" + "\n".join(t[: 60 * columns] for t in text), fontsize=8
    )
    figure.savefig(path, dpi=100)
