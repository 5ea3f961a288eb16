"""Every process of a practice killed with SIGKILL, at random moments, and started again.

What must hold: whatever was published on `replay` is in the journal, bit for bit; the robot is commanded no motion
after the time-outs that config/practice.yaml gives; a learner that comes back learns on.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Joy

from rlt_ros.core.chunks import ControlClock, Source
from rlt_ros.core.episode import Phase
from rlt_ros.core.learner import RESUME_VERSION_GAP
from rlt_ros.data.journal import read_journal
from rlt_ros.msg import ActionChunk, EpisodeState, PolicyWeights, Transition
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_from_msg
from rlt_ros.ros.supervisor import Supervisor, commands

CLOCK = ControlClock(50.0)

# --- the learner's checkpoint, by the dozen

LEARNER = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
from rlt_ros.core.learner import Learner
from rlt_ros.core.networks import Dims
from rlt_ros.core.replay import Transition
from rlt_ros.core.td3 import TD3Config

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
dims, config = Dims(token=3, rl_proprio=4, action=2, chunk=5), TD3Config(hidden=(64, 64), batch_size=16, min_buffer=10)

def learner():
    made = Learner(config, dims, folder)
    r = np.random.default_rng(0)
    for i in range(30):
        chunk = lambda: r.uniform(-1, 1, (5, 2))
        made.add(Transition(i, 1, 2 * i, r.normal(size=3), r.normal(size=4), chunk(), chunk(), np.zeros(5), 5,
                            r.normal(size=3), r.normal(size=4), chunk(), False, False, np.ones(5), 5, 0))
    return made

def live(pipe):
    made = learner()
    if made.checkpoint_path.exists():
        made.load()
    while True:
        made.step()
        made.save()
        os.write(pipe, b"%d\\n" % made.updates)  # acknowledged

chance, saved, lost, unreadable, killed = random.Random(0), 0, 0, 0, 0
for _ in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        live(write)
    os.close(write)
    pipe = os.fdopen(read)
    for _ in range(4):  # the first updates of a life are slow: their recording is made
        saved = max(saved, int(pipe.readline()))
    time.sleep(chance.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    lines = [line for line in pipe.read().split("\\n")[:-1]]
    saved = max([saved, *map(int, lines)])
    try:
        found = learner()
        found.load()
        lost += found.updates < saved
        saved = found.updates
    except Exception as error:
        unreadable += 1
        print(error, file=sys.stderr)
print(json.dumps({"killed": killed, "saved": saved, "lost": lost, "unreadable": unreadable}))
"""
LEARNER_KILLS = 16


def test_checkpoint_of_a_killed_learner_always_loads(python, tmp_path):
    command = [python, "-c", LEARNER, str(tmp_path), str(LEARNER_KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result | {"saved": 0} == {"killed": LEARNER_KILLS, "saved": 0, "lost": 0, "unreadable": 0}, done.stderr
    assert result["saved"] > 3 * LEARNER_KILLS


# --- the whole graph

SMALL = {
    "/**/learner_node": {
        "publish_hz": 20.0,
        "checkpoint_s": 1.0,
        "td3": {"min_buffer": 32, "batch_size": 32, "warm_transitions": 60, "warm_updates": 30, "warm_successes": 0},
    },
    "/**/operator_node": {"rest_s": 0.1, "intervention_share": 1.0, "intervention_s": [1.0, 2.0]},
    "/**/sim_node": {"seed": 0},  # its own, whatever practice.yaml has
}

# Victim -> (ticks after which nothing that it feeds moves the robot, what no longer moves it). None: it feeds nothing
# that moves. From config/practice.yaml at 50 Hz, and one tick for the message that was under way.
DEADMAN = 5  # of Joy.buttons
MOVING = {Source.VLA, Source.ACTOR, Source.HUMAN}
AUTONOMOUS = {Source.VLA, Source.ACTOR}
BOUNDS = {
    "actor_node": (2 + 1, MOVING),  # lookahead_steps reaches two ticks further; command_timeout_s is two ticks
    "safety_node": (2 + 1, MOVING),  # its commands have actions for two more ticks; then there is silence
    "proprio_node": (5 + 1 + 2, MOVING),  # proprio_timeout_s, and the actions for two more ticks
    "teleop_node": (5 + 2, {Source.HUMAN}),  # HUMAN_TIMEOUT_STEPS
    "operator_node": (15 + 5 + 2, {Source.HUMAN}),  # the gamepad's timeout_s
    "episode_node": (50 + 10 + 2, AUTONOMOUS),  # episode_timeout_s; episode/state may have been heard just before
    "vla_node": (25 + 10 + 1, AUTONOMOUS),  # max_age_ticks, and the chunk that was planned at that age
    "camera_node": (25 + 10 + 1 + 5, AUTONOMOUS),  # the same; a picture may have been on its way through the VLA
    "replay_node": None,
    "learner_node": None,
    "handover_node": None,
}
KILLS_EACH = 2
DRIFT_M = 0.001  # the arm settles; at full speed it goes so far in one tick
JUMP_M = 0.005
LEARNS_AGAIN_S = 5.0  # from its start on
PATIENCE_S = 180.0  # for what takes seconds on an idle machine
WATCHED_S = 0.6  # beyond the bound, before the dead process is started again


class Witness:
    """Sees what the graph publishes, and keeps the bytes of every transition."""

    def __init__(self, graph) -> None:
        self.graph = graph
        node = self.node = graph.add(Node("witness"))
        self.replay: list[bytes] = []
        self.executed: list = []  # Chunk
        self.poses: list[tuple[int, np.ndarray]] = []
        self.weights: list[tuple[float, int, int]] = []  # (when, updates, version)
        self.active: dict[str, float] = {}  # node -> when it said so last
        self.episode = EpisodeState()
        node.create_subscription(Transition, "replay", self.replay.append, qos.REPLAY, raw=True)
        node.create_subscription(
            ActionChunk, "command/executed", lambda m: self.executed.append(chunk_from_msg(m)), qos.REPLAY
        )
        node.create_subscription(PoseStamped, "driver/pose", self.on_pose, qos.RECORD)
        node.create_subscription(
            PolicyWeights,
            "learner/weights",
            lambda m: self.weights.append((time.monotonic(), m.updates, m.version)),
            qos.STATE,
        )
        node.create_subscription(DiagnosticArray, "/diagnostics", self.on_diagnostics, qos.REPLAY)
        node.create_subscription(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.joy = node.create_publisher(Joy, "joy", qos.EVENT)

    def on_pose(self, msg: PoseStamped) -> None:
        p, stamp = msg.pose.position, msg.header.stamp
        self.poses.append((CLOCK.tick(stamp.sec * 10**9 + stamp.nanosec), np.array([p.x, p.y, p.z])))

    def on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.message == "active":
                self.active[status.name.rsplit("/", 1)[-1]] = time.monotonic()

    def on_episode(self, msg: EpisodeState) -> None:
        self.episode = msg

    def until(self, condition, what: str) -> None:
        """Spin until `condition()`; at once a failure when a process dies that nobody killed."""

        def holds() -> bool:
            assert not self.supervisor.dead(), f"{', '.join(map(str, self.supervisor.dead()))}, waiting for {what}"
            return condition()

        self.graph.spin_until(holds, what, PATIENCE_S)

    def spin(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        self.graph.spin_until(lambda: time.monotonic() >= end_s, "time", seconds + 10.0)

    def touch_dead_man(self) -> None:
        """Hold the dead-man for a moment and let go, again until the robot goes on: not everybody may hear at once a
        process that has just started."""
        began_s = time.monotonic()

        def goes_on() -> bool:
            buttons = [0] * 12
            buttons[DEADMAN] = int((time.monotonic() - began_s) % 2.0 < 0.5)
            self.joy.publish(Joy(axes=[0.0] * 8, buttons=buttons))
            return self.driven_by(AUTONOMOUS)

        self.until(goes_on, "motion after the dead-man was touched")

    def driven_by(self, sources: set[Source]) -> bool:
        """Whether the newest commands, of this moment, all move the robot for one of `sources`."""
        newest = self.executed[-5:]
        now = CLOCK.tick(time.time_ns())
        return len(newest) == 5 and all(
            c.source in sources and np.any(c.actions) and now - c.tick < 10 for c in newest
        )


def drifted(poses: list[np.ndarray]) -> float:
    """How far the robot wanders [m]; a new scene, which puts it elsewhere at once, is no way that it went."""
    assert len(poses) > 10
    jumps = [i + 1 for i, step in enumerate(np.abs(np.diff(poses, axis=0)).max(1)) if step > JUMP_M]
    parts = [part for part in np.split(np.array(poses), jumps) if len(part)]
    return max(float(np.ptp(part, axis=0).max()) for part in parts)


@pytest.fixture
def practice(graph, tmp_path):
    """The whole graph with the shipped VLA, running, and a witness."""
    session, extra = tmp_path / "session", tmp_path / "small.yaml"
    session.mkdir()
    extra.write_text(yaml.safe_dump({node: {"ros__parameters": values} for node, values in SMALL.items()}))
    witness = Witness(graph)
    start = commands("sim", "simulated", str(session), "ethernet", extra_files=[extra])
    with Supervisor(start, tmp_path) as supervisor:
        witness.session, witness.supervisor = session, supervisor
        yield witness


def kill(supervisor: Supervisor, name: str) -> int:
    """The tick at which the process runs no further; a busy machine takes long to bury it."""
    os.kill(supervisor.pids[name], signal.SIGKILL)
    tick = CLOCK.tick(time.time_ns())
    deadline_s = time.monotonic() + 10.0
    while name not in [death.name for death in supervisor.dead()]:
        assert time.monotonic() < deadline_s, f"{name} survives SIGKILL"
        time.sleep(0.001)
    return tick


@pytest.mark.skipif(not os.environ.get("RLT_LONG_TESTS"), reason="takes three minutes; RLT_LONG_TESTS=1 runs it")
def test_killed_processes_lose_no_transition_move_no_robot_and_come_back(practice, graph, capsys):
    chance = random.Random(7)
    supervisor, kills, moved, stops, learning = practice.supervisor, Counter(), [], [], []
    schedule = KILLS_EACH * list(BOUNDS)
    chance.shuffle(schedule)
    practice.until(lambda: bool(practice.weights), "the first weights")
    began_s = time.monotonic()
    for victim in schedule:
        bound, sources = BOUNDS[victim] or (0, AUTONOMOUS)
        before = MOVING if victim == "operator_node" else sources
        # In the middle of things: the robot moves for the victim's sake; what is random is when then.
        while True:
            practice.until(
                lambda: practice.driven_by(before) and practice.episode.phase in (Phase.APPROACH, Phase.CRITICAL),
                f"motion before {victim} is killed",
            )
            practice.spin(chance.uniform(0.0, 0.3))
            if practice.driven_by(before):
                break
        killed_tick = kill(supervisor, victim)
        kills[victim] += 1
        if BOUNDS[victim]:
            end = killed_tick + bound
            practice.spin(bound * CLOCK.period_s + WATCHED_S)
            later = [c for c in practice.executed if c.tick > end and c.source in sources and np.any(c.actions)]
            last = max((c.tick for c in practice.executed if c.source in sources and np.any(c.actions)), default=0)
            stops.append((victim, last - killed_tick, bound))
            moved += [(victim, c.tick - killed_tick, c.source.name) for c in later]
            silent = victim == "safety_node"
            assert silent == all(c.tick <= end for c in practice.executed), f"{victim}: what is sent after its death"
            if sources == MOVING:  # the robot itself
                drift = drifted([pose for tick, pose in practice.poses if tick > end + 10])
                stops[-1] += (round(1e3 * drift, 3),)
                assert drift < DRIFT_M, f"{victim}: the robot moves by {drift} m after its death"
        restarted_s, version = time.monotonic(), practice.weights[-1][2]
        supervisor.restart(victim)
        if victim == "learner_node":
            # Of this life: versions after a resume go on far above those of the life before.
            again = lambda: [w for w in practice.weights if w[2] > version + RESUME_VERSION_GAP // 2]  # noqa: E731
            practice.until(lambda: bool(again()) and again()[-1][1] > again()[0][1], "a learner that learns")
            resumed_s, first, _ = again()[0]
            learned_s = next(when for when, updates, _ in again() if updates > first)
            assert first > 0  # not from the beginning
            learning.append((round(resumed_s - restarted_s, 2), round(learned_s - restarted_s, 2)))
            assert learned_s - restarted_s < LEARNS_AGAIN_S
        practice.until(lambda: practice.active.get(victim, 0.0) > restarted_s, f"{victim} to come back")
        if victim == "teleop_node":  # who steered when it died lets the robot go on by a touch of the dead-man
            practice.touch_dead_man()
    took_s = time.monotonic() - began_s
    count = len(practice.replay)
    practice.until(lambda: len(practice.replay) > count, "transitions after the last kill")
    unclean = supervisor.stop()

    journal = {entry.sequence: entry.data for entry in read_journal(practice.session / "journal")}
    lost = 0
    for data in practice.replay:
        sequence = deserialize_message(data, Transition).sequence
        lost += journal.get(sequence) != data
    figures = {
        "kills": sum(kills.values()), "acknowledged": len(practice.replay), "lost": lost, "moved": moved,
        "last motion after the kill [ticks], bound, drift [mm]": stops,
        "learner is back, learns [s]": learning, "took_s": round(took_s, 1),
    }  # fmt: skip
    with capsys.disabled():
        print("\n" + json.dumps(figures))
    assert unclean == []
    assert kills == Counter(schedule) and sum(kills.values()) >= 20
    assert len(practice.replay) > 300 and lost == 0
    assert sorted(journal) == list(range(len(journal)))
    assert moved == []
