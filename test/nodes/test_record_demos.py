"""Demonstrations of a person: driven by a gamepad over DDS, recorded, and imported again."""

import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, Joy

from rlt_ros.cli.main import main
from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.gamepad import VirtualPad, load_layout
from rlt_ros.data import demos
from rlt_ros.data.mapping import DemoError, load_mapping, own_mapping
from rlt_ros.data.recording import Recording, read_attachments, read_recording
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio
from rlt_ros.nodes.camera_node import CameraNode
from rlt_ros.nodes.episode_node import EpisodeNode
from rlt_ros.nodes.human_node import HumanNode
from rlt_ros.nodes.proprio_node import ProprioNode
from rlt_ros.nodes.recorder_node import RecorderNode, picture_topic, type_name
from rlt_ros.nodes.safety_node import SafetyNode
from rlt_ros.nodes.teleop_node import TeleopNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_to_msg, header, image_from_msg, image_to_msg, packed, proprio_to_msg, stamp_ns
from rlt_ros.ros.definitions import ros2msg
from rlt_ros.ros.recordings import import_mcap, own_mapping_of
from rlt_ros.ros.simulated_clock import CLOCK
from rlt_ros.sim.task import task_file

PATIENCE_S = 240.0  # a busy machine takes its time to start the processes
CONFIG = task_file("ethernet").parents[1]
BEGIN, SIDE = 50_000, 24  # tick, px


# --- the whole way, by a clock that the test holds, so that no load on the machine makes anything late


class Robot:
    """A robot's driver, a person's gamepad, and the time."""

    def __init__(self, graph, peer, nodes) -> None:  # noqa: ANN001
        self.graph, self.peer, self.nodes, self.tick = graph, peer, nodes, BEGIN
        self.random = np.random.default_rng(0)
        self.pad = VirtualPad(load_layout(CONFIG / "gamepads" / "xbox.yaml"))
        self.pictures = {name: peer.hear(Image, f"camera/{name}/image", qos.SENSOR) for name in ("wrist", "base")}
        self.proprio = peer.hear(Proprio, "proprio", qos.SENSOR)
        self.executed = peer.hear(ActionChunk, "command/executed")
        self.states = peer.hear(EpisodeState, "episode/state", qos.STATE)
        self.tell = peer.say(Clock, CLOCK, qos.SENSOR)
        self.joy = peer.say(Joy, "joy", qos.EVENT)
        self.says = {name: peer.say(Image, f"driver/{name}/image", qos.SENSOR) for name in self.pictures}
        for kind, part in ((PoseStamped, "pose"), (TwistStamped, "twist"), (WrenchStamped, "wrench")):
            self.says[part] = peer.say(kind, f"driver/{part}", qos.SENSOR)
        nobody = {"/learner/status", "/vla/reference", "/actor/chunk", "/driver/joint_states"}
        heard = [s for node in nodes for s in node._heard if s.topic_name not in nobody]
        graph.spin_until(lambda: all(s.get_publisher_count() for s in heard), "everybody to find everybody")

    def at(self, part: float) -> None:
        """The clock is at a part of the tick, and everybody has heard it."""
        ns = self.peer.clock.stamp_ns(self.tick) + round(part * self.peer.clock.period_ns)
        told_s = 0.0

        def heard() -> bool:
            nonlocal told_s
            if time.monotonic() - told_s > 0.5:
                told_s = time.monotonic()
                self.tell(Clock(clock=header(ns).stamp))
            return all(node._clock_ns == ns for node in self.nodes)

        self.graph.spin_until(heard, f"the clock at {part} of tick {self.tick}")

    def step(self, steers: bool, pressed: str = "") -> None:
        """A tick: the robot says where it is and what it sees, the person steers or does not."""
        self.tick += 1
        self.at(0.0)
        ns = self.peer.clock.stamp_ns(self.tick)
        for name in self.pictures:
            self.says[name](image_to_msg(self.random.integers(30, 220, (SIDE, SIDE, 3), dtype=np.uint8), ns, name))
        pose, twist, wrench = PoseStamped(header=header(ns)), TwistStamped(header=header(ns)), WrenchStamped()
        pose.pose.position.x, pose.pose.position.z = 0.45 + 1e-5 * (self.tick - BEGIN), 0.08
        pose.pose.orientation.w, wrench.header, wrench.wrench.force.z = 1.0, header(ns), 0.01 * (self.tick - BEGIN)
        for name, msg in (("pose", pose), ("twist", twist), ("wrench", wrench)):
            self.says[name](msg)
        held = (["deadman"] if steers else []) + ([pressed] if pressed else [])
        motions = {"x": 0.5 * np.sin(self.tick / 5), "z": -0.3} if steers else {}
        axes, buttons = self.pad.reading(motions, held)
        self.joy(Joy(header=header(ns), axes=packed(np.array(axes)), buttons=buttons))
        self.at(0.35)
        self.graph.spin_until(self.all_came, f"what comes of tick {self.tick}")
        self.at(0.9)

    def all_came(self) -> bool:
        ns = self.peer.clock.stamp_ns(self.tick)
        return (
            all(heard and stamp_ns(heard[-1].header.stamp) == ns for heard in self.pictures.values())
            and all(heard and heard[-1].tick == self.tick for heard in (self.proprio, self.executed))
        )

    def drive(self, ticks: int, steers: bool = True) -> None:
        for _ in range(ticks):
            self.step(steers)

    def press(self, button: str, phase: Phase, outcome: Outcome = Outcome.NONE) -> None:
        """Press a button of the gamepad until the episode is where it leads to."""
        for _ in range(50):
            self.step(False, button)
            self.step(False)
            if self.states and (self.states[-1].phase, self.states[-1].outcome) == (phase, outcome):
                return
        pytest.fail(f"{button} leads to {self.states[-1:]}, expected {phase.name}, {outcome.name}")


def test_of_what_a_person_drives_the_kept_episode_comes_back_as_it_was(graph, peer, start, stop, tmp_path, capsys):
    session, embedded = tmp_path / "session", CONFIG / "record_demos.yaml"
    own = yaml.safe_load(embedded.read_text())["/**/recorder_node"]["ros__parameters"]
    recorder = start(RecorderNode, use_sim_time=True, session=str(session), embed=[str(embedded)], **own)
    robot = Robot(graph, peer, [
        recorder, start(CameraNode, use_sim_time=True, image_size=SIDE), start(ProprioNode, use_sim_time=True),
        start(TeleopNode, use_sim_time=True), start(HumanNode, use_sim_time=True), start(SafetyNode, use_sim_time=True),
        start(EpisodeNode, use_sim_time=True, label_any_time=True, undo_s=60.0),
    ])  # fmt: skip
    robot.drive(5, steers=False)
    robot.press("start", Phase.APPROACH)
    robot.drive(30)
    robot.press("success", Phase.ENDED, Outcome.SUCCESS)  # kept
    robot.press("reset", Phase.IDLE, Outcome.SUCCESS)
    kept = robot.states[-1]
    robot.press("start", Phase.APPROACH)
    robot.drive(10)
    robot.press("failure", Phase.ENDED, Outcome.FAILURE)
    robot.press("reset", Phase.IDLE, Outcome.FAILURE)
    robot.press("start", Phase.APPROACH)
    robot.press("success", Phase.ENDED, Outcome.SUCCESS)
    robot.press("undo", Phase.ENDED)  # taken back: it was none
    robot.press("failure", Phase.ENDED, Outcome.FAILURE)
    robot.press("reset", Phase.IDLE, Outcome.FAILURE)
    robot.press("start", Phase.APPROACH)
    robot.press("abort", Phase.ENDED, Outcome.ABORTED)
    robot.drive(3, steers=False)
    stop(recorder)

    out = tmp_path / "demos"
    assert main(["demos", "import", "--from", "mcap", str(session), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1 episodes of" in said and "left out, as they did not end in success: 1 aborted, 2 failure" in said
    (episode,) = demos.load(out)
    first = -(-kept.start_tick // 5) * 5
    ticks = range(first, kept.end_tick + 1)
    assert len(ticks) > 25 and bool(episode["success"]) and episode["critical_tick"] == -1
    assert episode["instruction"] == "plug the ethernet cable into the jack"
    by_tick = {msg.tick: np.array(msg.values, np.float32) for msg in robot.proprio}
    np.testing.assert_array_equal(episode["proprio"], np.stack([by_tick[tick] for tick in ticks]))
    commands = {msg.tick: np.array(msg.actions, np.float32)[: msg.action_dim] for msg in robot.executed}
    np.testing.assert_array_equal(episode["action"], np.stack([commands[tick] for tick in ticks]))
    assert {Source.HUMAN} <= {Source(msg.source) for msg in robot.executed if msg.tick in ticks} <= {0, Source.HUMAN}
    assert np.abs(episode["action"][:, [0, 2]]).max(0).min() > 0.1 and not episode["action"][:, [1, 3]].any()
    assert episode["frame_tick"].tolist() == list(range(0, len(ticks), 5))
    for column, heard in enumerate(robot.pictures.values()):
        shown = {stamp_ns(msg.header.stamp): image_from_msg(msg) for msg in heard}
        for at, images in zip(episode["frame_tick"], episode["images"], strict=True):
            np.testing.assert_array_equal(images[column], shown[peer.clock.stamp_ns(first + int(at))])

    # Everything is there, with the driver's own stamps, and tells how it was recorded.
    found: dict[str, list] = {}
    for topic, _, _, data in read_recording(session / "recording"):
        found.setdefault(topic, []).append(data)
    recorded = [deserialize_message(data, CompressedImage) for data in found["/camera/wrist/image/compressed"]]
    assert {peer.clock.stamp_ns(tick) for tick in ticks} <= {stamp_ns(msg.header.stamp) for msg in recorded}  # all
    poses = [stamp_ns(deserialize_message(data, PoseStamped).header.stamp) for data in found["/driver/pose"]]
    assert len(poses) > len(ticks) and {after - before for before, after in pairwise(poses)} == {peer.clock.period_ns}
    assert {"/human/command", "/safety/state", "/driver/twist", "/driver/wrench"} <= set(found)
    (file,) = (session / "recording").glob("*.mcap")
    within = read_attachments(file)
    assert set(within) == {"task.yaml", "mapping.yaml", "parameters/1_record_demos.yaml"}
    assert within["parameters/1_record_demos.yaml"] == embedded.read_text()
    assert own_mapping_of(session).task.name == "ethernet"


# --- what is wrong with a recording; made without nodes


def session_in(folder, episodes, peer, lacks=lambda topic, tick: False, critical=False) -> Path:  # noqa: ANN001
    """A recording with episodes of 40 ticks; the command of tick t is t / 1000, its pictures show t % 200 + 20."""
    kinds = {"/proprio": Proprio, "/command/executed": ActionChunk, "/episode/state": EpisodeState,
             picture_topic("wrist"): CompressedImage, picture_topic("base"): CompressedImage}  # fmt: skip
    schemas = {topic: (type_name(kind), ros2msg(type_name(kind))) for topic, kind in kinds.items()}
    texts = {"mapping.yaml": own_mapping(("wrist", "base"), "task.yaml"),
             "task.yaml": task_file("ethernet").read_text()}  # fmt: skip
    recording = Recording(folder / "recording", schemas, 0, attachments=texts)

    def add(topic: str, tick: int, msg: object) -> None:
        if not lacks(topic, tick - BEGIN):
            ns = peer.clock.stamp_ns(tick)
            recording.add(topic, serialize_message(msg), ns + 1_000_000, ns)

    for number, outcome in enumerate(episodes, 1):
        first = BEGIN + 100 * (number - 1)
        for tick in range(first, first + 60):
            ns = peer.clock.stamp_ns(tick)
            start, end = first + 10, first + 50
            running = start <= tick < end
            state = EpisodeState(header=header(ns), episode=number, start_tick=start if tick >= start else -1)
            state.phase = int(Phase.APPROACH if running else Phase.ENDED if tick >= end else Phase.IDLE)
            state.outcome = int(outcome if tick >= end else Outcome.NONE)
            state.critical_tick = start + 20 if critical and tick >= start + 20 else -1
            state.end_tick = end if tick >= end and outcome is not Outcome.NONE else -1
            add("/episode/state", tick, state)
            values = np.full(14, 0.001 * (tick - BEGIN), np.float32)
            add("/proprio", tick, proprio_to_msg(values, peer.clock, ns))
            actions = np.full((1, 4), 0.001 * (tick - BEGIN), np.float32)
            add("/command/executed", tick, chunk_to_msg(Chunk(tick, actions, tick, Source.HUMAN), peer.clock))
            for camera in ("wrist", "base"):
                add(picture_topic(camera), tick, png(ns, (tick - BEGIN) % 200 + 20))
    recording.close()
    return folder


def png(ns: int, value: int) -> CompressedImage:
    import cv2

    data = cv2.imencode(".png", np.full((SIDE, SIDE, 3), value, np.uint8))[1]
    return CompressedImage(header=header(ns), format="png", data=packed(data, "B"))


def imported(session: Path, out: Path) -> tuple[int, list[str]]:
    return import_mcap(session, own_mapping_of(session), out)


def test_each_kept_episode_is_one_and_begins_and_ends_where_it_did(peer, tmp_path):
    outcomes = [Outcome.SUCCESS, Outcome.TIMEOUT, Outcome.SUCCESS, Outcome.NONE]
    session = session_in(tmp_path / "session", outcomes, peer, critical=True)
    count, notes = imported(session, tmp_path / "out")
    assert count == 2 and notes == ["left out, as they did not end in success: 1 not ended, 1 timeout"]
    for episode, start in zip(demos.load(tmp_path / "out"), (10, 210), strict=True):
        np.testing.assert_allclose(episode["action"][:, 0], 0.001 * np.arange(start, start + 41), atol=1e-6)
        np.testing.assert_allclose(episode["proprio"][:, 0], 0.001 * np.arange(start, start + 41), atol=1e-6)
        assert episode["frame_tick"].tolist() == list(range(0, 41, 5)) and episode["critical_tick"] == 20
        shown = episode["images"][:, :, 0, 0, 0]
        assert (shown == (start + episode["frame_tick"][:, None]) % 200 + 20).all()


def test_no_picture_from_before_an_episode_is_taken_for_one_of_it(peer, tmp_path):
    """The scene may have been another one; it begins with its own first picture, at the next multiple of 5 ticks."""
    session = session_in(tmp_path / "session", [Outcome.SUCCESS], peer, silent(picture_topic("wrist"), 9, 17))
    assert imported(session, tmp_path / "out")[0] == 1
    (episode,) = demos.load(tmp_path / "out")
    np.testing.assert_allclose(episode["action"][:, 0], 0.001 * np.arange(20, 51), atol=1e-6)
    assert (episode["images"][0] == 40).all()


def test_a_changed_mapping_takes_other_pictures_and_leaves_out_what_it_names(peer, tmp_path):
    session = session_in(tmp_path / "session", [Outcome.SUCCESS, Outcome.SUCCESS], peer)
    values = yaml.safe_load(read_attachments(session / "recording" / "0001.mcap")["mapping.yaml"])
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values | {"task": "ethernet", "skip": [0], "pictures": {"size": 12, "every": 2}}))
    assert import_mcap(session, load_mapping(path), tmp_path / "out")[0] == 1
    (episode,) = demos.load(tmp_path / "out")
    assert episode["images"].shape == (21, 2, 12, 12, 3)
    np.testing.assert_allclose(episode["action"][0, 0], 0.110, atol=1e-6)


def test_a_file_that_a_killed_recorder_left_gives_what_is_whole(peer, tmp_path):
    session = session_in(tmp_path / "session", [Outcome.SUCCESS] * 3, peer)
    (file,) = (session / "recording").glob("*.mcap")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    count, notes = imported(session, tmp_path / "out")
    assert count == 1 and any("0001.mcap is torn" in note for note in notes)


def silent(topic: str, begin: int, end: int):
    return lambda where, tick: where == topic and begin <= tick < end


FAULTS = {
    "nothing kept": ([Outcome.FAILURE, Outcome.ABORTED], {}, ["nothing was kept in it (1 aborted, 1 failure)"]),
    "no episode": ([Outcome.SUCCESS], {"lacks": silent("/episode/state", 0, 99)}, ["no episode on /episode/state"]),
    "no pictures": ([Outcome.SUCCESS], {"lacks": silent(picture_topic("base"), 0, 99)},
                    ["no messages on /camera/base/image/compressed", "camera 'base'"]),
    "recorder came late": ([Outcome.SUCCESS] * 2, {"lacks": lambda where, t: where != "/episode/state" and t < 40},
                           ["episode 1 (--skip 0)", "pictures or state are missing at its beginning"]),
    "recorder went early": ([Outcome.SUCCESS], {"lacks": lambda where, t: where != "/episode/state" and t > 30},
                            ["episode 1 (--skip 0)", "missing at its end"]),
    "camera silent": ([Outcome.SUCCESS] * 2, {"lacks": silent(picture_topic("wrist"), 120, 140)},
                      ["episode 2 (--skip 1)", "camera 'wrist' says nothing for 0.", "max_gap"]),
    "nobody commands": ([Outcome.SUCCESS], {"lacks": silent("/command/executed", 10, 60)}, ["no command on"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_recording_lacks_is_named_with_its_episode_and_nothing_is_left_behind(peer, tmp_path, fault):
    outcomes, given, says = FAULTS[fault]
    session = session_in(tmp_path / "session", outcomes, peer, **given)
    with pytest.raises(DemoError) as error:
        imported(session, tmp_path / "out")
    for text in says:
        assert text in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["session"]


def test_an_episode_with_a_hole_can_be_left_out(peer, tmp_path, capsys):
    hole = silent(picture_topic("wrist"), 120, 140)
    session = session_in(tmp_path / "session", [Outcome.SUCCESS] * 3, peer, hole)
    command = ["demos", "import", "--from", "mcap", str(session), "--out", str(tmp_path / "out")]
    assert main(command) == 1 and "episode 2 (--skip 1)" in capsys.readouterr().err
    assert main([*command, "--skip", "99"]) == 1
    assert "skip has 99, there are the episodes 0 to 2" in capsys.readouterr().err
    assert main([*command, "--skip", "1"]) == 0
    assert "2 episodes of" in capsys.readouterr().out and len(demos.load(tmp_path / "out")) == 2


def test_another_task_or_rate_than_the_recorded_one_is_refused(peer, tmp_path):
    session = session_in(tmp_path / "session", [Outcome.SUCCESS], peer)
    values = yaml.safe_load(task_file("ethernet").read_text())
    for change, says in (
        ({"rate": 25.0}, "recorded at another rate than that of the task"),
        ({"state": values["state"][:2], "vla_state": ["pose"], "limits": values["limits"] | {"max_force": None}},
         "has 14 values, expected 8; was it recorded for another task"),
    ):  # fmt: skip
        path = tmp_path / "other.yaml"
        path.write_text(yaml.safe_dump(values | change))
        with pytest.raises(DemoError, match=says):
            import_mcap(session, own_mapping_of(session, str(path)), tmp_path / "out")


def test_what_has_no_mapping_within_it_needs_one(tmp_path, capsys):
    assert main(["demos", "import", "--from", "mcap", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    assert "no recording of rlt_ros with a mapping of its own; give a mapping" in capsys.readouterr().err
    assert main(["demos", "import", "--from", "lerobot", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "needs --map" in capsys.readouterr().err
    (tmp_path / "x.mcap").write_text("a text")
    assert main(["demos", "import", "--from", "mcap", str(tmp_path / "x.mcap"), "--out", str(tmp_path / "o")]) == 1
    assert f"{tmp_path / 'x.mcap'}: is no MCAP file" in capsys.readouterr().err


# --- the command


def test_the_command_records_a_simulated_person_until_one_is_kept(python, tmp_path, capsys):
    session, out = tmp_path / "session", tmp_path / "demos"
    code = "import sys; from rlt_ros.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [python, "-c", code, "demos", "record", "--teleop", "simulated", "--session", str(session), "--episodes", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        told, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it stops the nodes
        pytest.fail(f"no end after {PATIENCE_S} s: {process.communicate(timeout=30.0)[0]}")
    assert process.returncode == 0 and "1 episodes kept" in told, told
    logs = {path.stem for path in (session / "log").glob("*_node.log")}
    assert logs == {f"{name}_node" for name in (
        "operator", "camera", "proprio", "teleop", "safety", "episode", "recorder", "human", "sim")}  # fmt: skip
    # On a machine that stands still for a while there are holes, which the import would refuse.
    values = yaml.safe_load((session / "recording" / "mapping.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values | {"task": "ethernet", "max_gap": 20.0}))
    assert main(["demos", "import", "--from", "mcap", str(session), "--map", str(path), "--out", str(out)]) == 0
    assert "1 episodes of" in capsys.readouterr().out
    (episode,) = demos.load(out)
    assert episode["success"] and len(episode["action"]) > 100 and np.abs(episode["action"]).max() > 0.2
    assert episode["images"].shape[1:] == (2, 96, 96, 3)
    # It went where it was told to: mostly down, onto the jack.
    assert episode["proprio"][-1, 2] < episode["proprio"][0, 2] - 0.01


def test_wrong_usage_of_the_command_is_told(tmp_path, capsys):
    for more, says in ((["--episodes", "0"], "--episodes: got '0', expected a"), (["--out", "x"], "--out is for the")):
        assert main(["demos", "record", "--teleop", "simulated", "--session", str(tmp_path / "s"), *more]) == 2
        assert says in capsys.readouterr().err
    assert main(["demos", "record", "--session", str(tmp_path / "s")]) == 2
    assert "--session is for --teleop" in capsys.readouterr().err
    assert main(["demos", "record", "--teleop", "nes", "--session", str(tmp_path / "s")]) == 1
    assert "gamepad 'nes': no file" in capsys.readouterr().err
    robot = ["demos", "record", "--teleop", "simulated", "--task", "so101", "--session", str(tmp_path / "s")]
    assert main(robot) == 1 and "task 'so101' is for a robot only" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # nothing is made before all is there
