"""What a session looked like, recorded over DDS and read back as Foxglove would."""

import resource
import time

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.data.recording import read_recording
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, SafetyState
from rlt_ros.nodes.episode_node import EpisodeNode
from rlt_ros.nodes.recorder_node import RecorderNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import header, image_to_msg, stamp_ns

RED = np.tile(np.array([200, 30, 20], np.uint8), (96, 96, 1))


def test_images_phases_and_actions_of_a_session_are_read_back(graph, peer, start, stop, tmp_path):
    episode = start(EpisodeNode, task="ethernet")
    recorder = start(RecorderNode, task="ethernet", session=str(tmp_path), images_hz=5.0)
    images = peer.say(Image, "camera/wrist/image", qos.SENSOR)
    executed = peer.say(ActionChunk, "command/executed", qos.COMMAND)
    proprio = peer.say(Proprio, "proprio", qos.SENSOR)
    sent, began_s = [], time.monotonic()

    def send() -> None:
        tick = peer.tick()
        sent.append(tick)
        images(image_to_msg(RED, peer.clock.stamp_ns(tick)))
        proprio(peer.proprio(tick))
        executed(peer.chunk(tick, [0.5, -0.25, 0.0, 0.0], 1, Source.ACTOR, policy_version=7))

    timer = peer.node.create_timer(0.02, send)
    for service in ("start", "hand_over", "success", "reset"):
        assert peer.call(Trigger, f"episode/{service}").success
    graph.spin_until(lambda: time.monotonic() - began_s > 1.5 and len(sent) > 30, "the messages of a second")
    timer.cancel()
    took_s = time.monotonic() - began_s
    graph.spin_until(lambda: episode.machine.phase is Phase.IDLE, "the end of the episode")
    stop(recorder)

    found: dict[str, list] = {}
    for topic, kind, log_ns, data in read_recording(tmp_path / "recording"):
        found.setdefault(topic, []).append((kind, log_ns, data))
    pictures = found["/camera/wrist/image/compressed"]
    assert 2 <= len(pictures) <= 5.0 * took_s + 2  # of 50 a second
    message = deserialize_message(pictures[0][2], CompressedImage)
    assert pictures[0][0] == "sensor_msgs/msg/CompressedImage" and message.format == "jpeg"
    picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert picture.shape == RED.shape and np.abs(picture.astype(int) - RED).max() < 6

    states = [deserialize_message(data, EpisodeState) for kind, _, data in found["/episode/state"]]
    phases = [Phase(state.phase) for state in states]
    assert [phase for phase, before in zip(phases, [Phase.IDLE, *phases]) if phase is not before] == [
        Phase.APPROACH, Phase.CRITICAL, Phase.ENDED, Phase.IDLE]  # fmt: skip
    assert Outcome.SUCCESS in {Outcome(state.outcome) for state in states}

    chunks = [deserialize_message(data, ActionChunk) for _, _, data in found["/command/executed"]]
    assert len(chunks) > 0.8 * len(sent) and {chunk.policy_version for chunk in chunks} == {7}
    np.testing.assert_allclose(chunks[0].actions, [0.5, -0.25, 0.0, 0.0])
    assert len(found["/proprio"]) > 0.8 * len(sent) and "/diagnostics" in found
    times = [log_ns for _, log_ns, _ in found["/proprio"]]
    assert times == sorted(times) and abs(times[-1] - time.time_ns()) < 60e9


def test_a_hold_of_one_tick_is_recorded_although_the_recorder_was_busy(graph, peer, start, stop, tmp_path):
    recorder = start(RecorderNode, task="ethernet", session=str(tmp_path))
    states = peer.say(SafetyState, "safety/state", qos.STATE)
    wanted, kept, add = ["", "force", ""], [], recorder.recording.add
    recorder.recording.add = lambda topic, *rest: (add(topic, *rest), kept.append(topic))
    for reason in wanted:
        states(SafetyState(header=header(time.time_ns()), holding=bool(reason), reason=reason))
    graph.spin_until(lambda: kept.count("/safety/state") == len(wanted), "the states")
    stop(recorder)
    found = [deserialize_message(data, SafetyState).reason
             for topic, *_, data in read_recording(tmp_path / "recording") if topic == "/safety/state"]  # fmt: skip
    assert found == wanted


def test_a_malformed_picture_is_dropped_and_the_next_is_recorded(graph, peer, start, stop, tmp_path):
    recorder = start(RecorderNode, task="ethernet", session=str(tmp_path), images_hz=100.0)
    images = peer.say(Image, "camera/base/image", qos.SENSOR)
    broken = image_to_msg(RED, 1)
    broken.height = 5000
    images(broken)
    graph.spin_until(lambda: recorder.rejected["camera/base/image"] == 1, "the refusal")
    images(image_to_msg(RED, 2))
    graph.spin_until(lambda: recorder.recording.messages > 0 and not recorder.lost, "the good one")
    stop(recorder)
    assert "/camera/base/image/compressed" in {topic for topic, *_ in read_recording(tmp_path / "recording")}


def test_a_full_disk_is_reported_and_the_recording_goes_on_by_itself(graph, peer, start, stop, tmp_path):
    recorder = start(RecorderNode, task="ethernet", session=str(tmp_path))
    references = peer.say(ActionChunk, "vla/reference", qos.EVENT)
    timer = peer.node.create_timer(0.01, lambda: references(peer.chunk(peer.tick(), [0.1, 0.0, 0.0, 0.0], 500)))
    size = recorder.recording.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        graph.spin_until(lambda: bool(recorder.problem), "the disk to be full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "make room on that disk; nothing is recorded until then" in recorder.problem and recorder.failure is None
    graph.spin_until(lambda: not recorder.problem, "the recording again")
    timer.cancel()
    assert recorder.lost > 0
    stop(recorder)
    found = [topic for topic, *_ in read_recording(tmp_path / "recording")]
    assert "/vla/reference" in found and len(list((tmp_path / "recording").glob("*.mcap"))) == 2


def test_without_a_session_it_says_what_to_give(make):
    assert "'session' is empty; give the session's folder" in make(RecorderNode, task="ethernet").configure_error


def test_a_folder_that_cannot_be_written_is_named(make, tmp_path):
    (tmp_path / "recording").write_text("a file")
    assert "recording: File exists" in make(RecorderNode, task="ethernet", session=str(tmp_path)).configure_error


def test_more_topics_and_the_drivers_own_are_recorded_with_and_without_a_header(graph, peer, start, stop, tmp_path):
    more = ["/servo/twist geometry_msgs/msg/TwistStamped", "gripper std_msgs/msg/Float64MultiArray"]
    recorder = start(RecorderNode, task="ethernet", session=str(tmp_path), driver=True, topics=more)
    twist = peer.say(TwistStamped, "/servo/twist", qos.COMMAND)
    gripper = peer.say(Float64MultiArray, "gripper", qos.COMMAND)
    pose = peer.say(PoseStamped, "driver/pose", qos.SENSOR)

    def send() -> None:
        twist(TwistStamped(header=header(5)))
        gripper(Float64MultiArray(data=[0.25]))
        pose(PoseStamped(header=header(7)))

    timer = peer.node.create_timer(0.02, send)
    graph.spin_until(lambda: recorder.recording.messages > 30, "messages")
    timer.cancel()
    stop(recorder)
    found = {topic: data for topic, _, _, data in read_recording(tmp_path / "recording")}
    assert stamp_ns(deserialize_message(found["/servo/twist"], TwistStamped).header.stamp) == 5
    assert deserialize_message(found["/gripper"], Float64MultiArray).data.tolist() == [0.25]
    assert stamp_ns(deserialize_message(found["/driver/pose"], PoseStamped).header.stamp) == 7


@pytest.mark.parametrize(("given", "says"), [
    ({"topics": ["/servo/twist"]}, "parameter 'topics' has '/servo/twist', expected a topic and its type"),
    ({"topics": ["/a nowhere_msgs/msg/A"]}, "no message 'nowhere_msgs/msg/A' here"),
    ({"embed": ["/nowhere/robot.yaml"]}, "parameter 'embed': [Errno 2]"),
    ({"max_mb": 5.0}, "parameter 'max_mb' is 5 MB, expected 67 or more, or 0"),
])  # fmt: skip
def test_what_cannot_be_recorded_is_named_at_configure(make, tmp_path, given, says):
    assert says in make(RecorderNode, task="ethernet", session=str(tmp_path), **given).configure_error
