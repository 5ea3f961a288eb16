"""How good a policy is: episodes in lock-step on scenes that practice never uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np

from rlt_ros.core.episode import Phase
from rlt_ros.core.intervals import wilson
from rlt_ros.core.joining import Join
from rlt_ros.core.parameters import read_parameters
from rlt_ros.data.handover import load_classifier
from rlt_ros.sim.handover import Learned, Person, Rule
from rlt_ros.sim.lockstep import EpisodeResult, LockStep, Timing
from rlt_ros.sim.task import EVALUATION_SEED, Task, TaskEnv, load_task

HAND_OVERS = ("rule", "person", "learned")


def load_policy(session: Path):
    """The practised :class:`~rlt_ros.core.networks.Actor` of a session, and its version.

    ValueError says what is missing.
    """
    from rlt_ros.core.learner import load_actor

    path = Path(session) / "checkpoints" / "learner.ckpt"
    if not path.is_file():
        raise ValueError(
            f"session {str(session)!r}: no checkpoint {path}; practise first: `rlt practice --session {session}`"
        )
    return load_actor(path)


def session_settings(session: Path) -> tuple[Timing, str]:
    """Timing and VLA (name or folder, "" unknown) that a session was practised with, from its config.yaml; else
    the defaults."""
    path = Path(session) / "config.yaml"
    if not path.is_file():
        return Timing(), ""
    content = read_parameters(path)
    section = lambda name: content.get(name, {}).get("ros__parameters", {})  # noqa: E731
    # Sessions from before chunks were joined say nothing of it.
    known = {"join_ticks": 0, "join": Join.NONE.value} | section("/**")
    for node, names in (("replay_node", ["stride"]), ("actor_node", ["join_ticks"]), ("vla_node", ["join"])):
        known |= {name: value for name, value in section(f"/**/{node}").items() if name in names}
    timing = Timing(**{f.name: type(f.default)(known[f.name]) for f in fields(Timing) if f.name in known})
    return timing, str(section("/**/vla_node").get("model", ""))


def handed_over_by(name: str, session: Path, token_dim: int, task: Task, timing: Timing) -> Rule:
    """Who hands over in lock-step, by name; HandOverError when a session's classifier is missing or does not fit."""
    if name == "learned":
        classifier, _ = load_classifier(session)
        classifier.require(token_dim, task.proprio_dim, f"session {str(session)!r}: hand-over classifier")
        return Learned(classifier, timing.chunk_steps, 1.0 / task.rate)
    return Person(timing.chunk_steps, 1.0 / task.rate) if name == "person" else Rule()


def evaluate(
    task: Task | str,
    policy: str = "base",
    episodes: int = 50,
    seed: int = 0,
    progress: Callable[[int, EpisodeResult], None] | None = None,
    timing: Timing | None = None,
    checkpoint: str | Path = "",
    hand_over: str = "rule",
    watch: Callable[[Phase, float], None] | None = None,
) -> dict:
    """Evaluate ``base`` (the VLA alone), ``demonstrator`` or a session folder; what ``rlt eval --json`` writes.

    ``timing`` and ``checkpoint`` (the VLA), left out: those of the session, else the defaults and the task's own
    checkpoint.
    ``hand_over`` names who does it: ``rule`` (the task's), ``person`` (the same, a reaction time later) or ``learned``
    (the session's classifier).
    ``progress`` is told of each episode that ended, ``watch`` of each tick of it: the phase, and s since its start.
    ``median_steps_success`` counts control ticks of the critical phase, hand-over to success, as RLT's paper does;
    ``median_episode_steps_success`` those of the whole episode.
    """
    task = load_task(task) if isinstance(task, str) else task
    env = TaskEnv(task)
    first = EVALUATION_SEED + 10_000 * seed
    results: list[EpisodeResult] = []
    if hand_over not in HAND_OVERS:
        raise ValueError(f"hand_over is {hand_over!r}, expected one of {', '.join(HAND_OVERS)}")
    if hand_over == "learned" and policy in ("base", "demonstrator"):
        raise ValueError(f"policy {policy!r} has no session, and a learned hand-over is a session's; name a session")
    if hand_over == "person" and policy == "demonstrator":
        raise ValueError("the demonstrator does all of the task; nobody hands over to it")
    if policy == "demonstrator":
        run = lambda scene: _demonstrate(env, scene)  # noqa: E731
    else:
        from rlt_ros.vla.frozen import load
        from rlt_ros.vla.traced import TracedVLA

        from rlt_ros.core.networks import Dims

        actor, practised, model = None, Timing(), ""
        if policy != "base":
            actor = load_policy(Path(policy))[0]
            practised, model = session_settings(Path(policy))
        timing = timing or practised
        vla = TracedVLA(load(checkpoint or model or task.name), joins=timing.join == Join.RTC.value)
        if actor is not None:
            wanted = Dims(vla.token_dim, 2 * task.proprio_dim, task.action_dim, timing.chunk_steps)
            if actor.dims != wanted:
                raise ValueError(
                    f"session {policy!r}: its actor has {actor.dims}, task '{task.name}' with this VLA needs {wanted}"
                )
        who = handed_over_by(hand_over, Path(policy), vla.token_dim, task, timing)
        run = LockStep(env, vla, timing, actor and actor.act, hand_over=who, watch=watch).run
    for i in range(episodes):
        results.append(run(first + i))
        if progress:
            progress(i + 1, results[-1])
    env.close()
    good = [r for r in results if r.success]
    low, high = wilson(len(good), len(results))
    minutes = sum(r.steps for r in results) / task.rate / 60
    median = lambda values: float(np.median(values)) if values else None  # noqa: E731
    return {
        "task": task.name,
        "policy": str(policy),
        "hand_over": hand_over,
        "episodes": len(results),
        "successes": len(good),
        "success_rate": len(good) / len(results) if results else 0.0,
        "wilson_low": low,
        "wilson_high": high,
        "median_steps_success": median([r.critical_steps for r in good]),
        "median_episode_steps_success": median([r.steps for r in good]),
        "throughput_per_10min": 10 * len(good) / minutes if minutes else 0.0,
        "max_force_p95": float(np.percentile([r.max_force for r in results], 95)) if results else 0.0,
        "seed": seed,
        "first_scene": first,
        "outcomes": [r.outcome.name for r in results],
        "critical_steps": [r.critical_steps for r in results],
    }


def _demonstrate(env: TaskEnv, scene: int) -> EpisodeResult:
    """The demonstrator under the same hand-over and the same time limit as everybody."""
    from rlt_ros.core.episode import Outcome
    from rlt_ros.sim.demonstrator import Demonstrator

    env.reset(scene)
    person, task = Demonstrator(env, np.random.default_rng([scene, 1])), env.task
    critical, tick = -1, 0
    limit = round(task.critical_timeout * task.rate)
    while not env.success() and (
        tick - critical < limit if critical >= 0 else tick < round(task.approach_timeout * task.rate)
    ):
        env.step(person.step(env))
        tick += 1
        if critical < 0 and env.critical():
            critical = tick
    outcome = Outcome.SUCCESS if env.success() else Outcome.TIMEOUT
    return EpisodeResult(scene, outcome, tick, tick - critical if critical >= 0 else 0, 0.0)
