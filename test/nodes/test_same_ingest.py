"""What the nodes make of a robot's messages live, and what an import makes of a recording of the same messages."""

import shutil
import time

import cv2
import numpy as np
import pytest
import yaml
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from mcap.writer import CompressionType, Writer
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.data import demos
from rlt_ros.data.mapping import DemoError, load_mapping
from rlt_ros.msg import Proprio
from rlt_ros.nodes.camera_node import CameraNode
from rlt_ros.nodes.proprio_node import ProprioNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_to_msg, header, image_from_msg, image_to_msg, packed, stamp_ns
from rlt_ros.ros.definitions import ros2msg
from rlt_ros.ros.recordings import import_mcap

S, MS, TICK = 1_000_000_000, 1_000_000, 20_000_000
MAP = {
    "task": "ethernet",
    "pictures": {"size": 24, "every": 1},
    "cameras": {"wrist": {"from": "/wrist", "crop": [4, 2, 40, 40]}, "base": "/base"},
    "state": {"pose": {"from": "/pose"}, "twist": "derived", "wrench": {"from": "/wrench"}},
    "action": {"from": "/cmd", "kind": "velocity"},
    "success": True,
}


def mapping_in(folder, **changes):
    path = folder / "map.yaml"
    path.write_text(yaml.safe_dump(MAP | changes))
    return load_mapping(path)


def write(path, messages) -> None:
    """messages: (topic, message, log time in ns)."""
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=20_000, compression=CompressionType.ZSTD)
        writer.start(profile="ros2", library="test")
        channels = {}
        for topic, message, ns in messages:
            if topic not in channels:
                kind = type(message)
                name = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
                schema = writer.register_schema(name, "ros2msg", ros2msg(name).encode())
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(channels[topic], ns, serialize_message(message), ns)
        writer.finish()


def scene(at: float, camera: int) -> np.ndarray:
    random = np.random.default_rng(int(at * 1000) + camera)
    y, x = np.mgrid[:48, :64]
    picture = np.stack([3 * x + 20 * camera, 4 * y, 128 + 100 * np.sin(at + x / 9)], -1)
    return (picture + random.integers(0, 20, picture.shape)).clip(0, 255).astype(np.uint8)


def readings(ns: int, tick: int):
    """What a robot says in a tick: pose, wrench and a commanded velocity."""
    pose, wrench, cmd = PoseStamped(), WrenchStamped(), TwistStamped()
    pose.pose.position.x, pose.pose.position.y = 0.45 + 0.0005 * tick, 0.01 * np.sin(tick / 7)
    pose.pose.orientation.z, pose.pose.orientation.w = np.sin(0.001 * tick), np.cos(0.001 * tick)
    wrench.wrench.force.z = 0.1 * tick
    cmd.twist.linear.x, cmd.twist.angular.z = 0.03, -0.5
    for message in (pose, wrench, cmd):
        message.header = header(ns)
    return pose, wrench, cmd


def test_import_gives_frame_for_frame_what_the_nodes_gave_live(tmp_path, graph, start, peer):
    """Two cameras, raw and compressed, and a pose of which the twist is computed: the same messages both ways."""
    start(CameraNode, image_size=24, cameras__wrist__crop=[4, 2, 40, 40], cameras__base__transport="compressed")
    start(ProprioNode, derive_twist=True)
    shown = {name: peer.hear(Image, f"camera/{name}/image", qos.SENSOR) for name in ("wrist", "base")}
    joined = peer.hear(Proprio, "proprio", qos.SENSOR)
    says = {"/wrist": peer.say(Image, "driver/wrist/image", qos.SENSOR),
            "/base": peer.say(CompressedImage, "driver/base/image/compressed", qos.SENSOR),
            "/pose": peer.say(PoseStamped, "driver/pose", qos.SENSOR),
            "/wrench": peer.say(WrenchStamped, "driver/wrench", qos.SENSOR)}  # fmt: skip
    # Stamps of a while ago, a tick apart however long the machine takes to deliver them.
    recorded, begin = [], peer.tick() - 100
    for number in range(25):
        ns = (begin + number) * TICK + 3 * MS
        pose, wrench, _ = readings(ns, number)
        jpeg = cv2.imencode(".jpg", scene(number, 1)[..., ::-1])[1]
        messages = {"/wrist": image_to_msg(scene(number, 0), ns, "lens"), "/pose": pose, "/wrench": wrench,
                    "/base": CompressedImage(header=header(ns), format="jpeg", data=packed(jpeg, "B"))}  # fmt: skip
        for topic, message in messages.items():
            recorded.append((topic, message, time.time_ns()))
            says[topic](message)
        recorded.append(("/cmd", readings(ns, number)[2], time.time_ns()))
        last = lambda heard, ns=ns: bool(heard) and stamp_ns(heard[-1].header.stamp) == ns  # noqa: E731
        # The first vector has no twist yet: it needs a second pose.
        all_in = lambda last=last, n=number: all(map(last, shown.values())) and (last(joined) or n == 0)  # noqa: E731
        graph.spin_until(all_in, f"what comes of tick {number}")
    write(tmp_path / "robot.mcap", recorded)
    count, notes = import_mcap(tmp_path / "robot.mcap", mapping_in(tmp_path), tmp_path / "out")
    assert (count, notes) == (1, [])
    (episode,) = demos.load(tmp_path / "out")
    by_tick = {message.tick: np.array(message.values, np.float32) for message in joined}
    first = min(by_tick)
    for name, column in (("wrist", 0), ("base", 1)):
        live = {stamp_ns(message.header.stamp) // TICK: image_from_msg(message) for message in shown[name]}
        assert len(episode["images"]) == len(episode["frame_tick"]) >= 24
        for at, images in zip(episode["frame_tick"], episode["images"], strict=True):
            np.testing.assert_array_equal(images[column], live[first + at], err_msg=f"{name} at {at}")
    assert sorted(by_tick) == list(range(first, first + len(by_tick))) and len(by_tick) >= 24
    np.testing.assert_array_equal(episode["proprio"], np.stack([by_tick[tick] for tick in sorted(by_tick)]))


# Recordings without a robot: made of the same messages, at given times.

START = 1_700_000_000 * S


def recording(ticks: int = 40, change=lambda topic, message, tick: message, cameras=(0, 1)):
    """Messages of a robot that runs in step with the ticks."""
    out = []
    for tick in range(ticks):
        ns = START + tick * TICK + 3 * MS
        pose, wrench, cmd = readings(ns, tick)
        said = {"/pose": pose, "/wrench": wrench, "/cmd": cmd} | {
            ("/wrist", "/base")[camera]: image_to_msg(scene(tick, camera), ns, "lens") for camera in cameras
        }
        for topic, message in said.items():
            changed = change(topic, message, tick)
            if changed is not None:
                out.append((topic, changed, ns + MS))
    return out


def imported(tmp_path, messages, **changes):
    write(tmp_path / "robot.mcap", messages)
    _, notes = import_mcap(tmp_path / "robot.mcap", mapping_in(tmp_path, **changes), tmp_path / "out")
    return demos.load(tmp_path / "out")[0], notes


def test_velocities_become_normalised_actions_of_the_task(tmp_path):
    episode, notes = imported(tmp_path, recording(), critical={"before_end": 0.2})
    assert notes == []
    np.testing.assert_allclose(episode["action"], np.tile([0.03 * 0.02 / 0.0015, 0, 0, -0.5], (40, 1)), atol=1e-6)
    assert episode["critical_tick"] == 30 and episode["success"]
    np.testing.assert_allclose(np.diff(episode["proprio"][1:, 0]), 0.0005, atol=1e-6)


def test_chunks_of_this_package_are_taken_by_their_ticks(tmp_path, peer):
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32)

    def chunk(topic, message, tick):
        if topic != "/cmd":
            return message
        at = START // TICK + tick
        return None if tick == 20 else chunk_to_msg(Chunk(at, actions[tick : tick + 1], at, Source.HUMAN), peer.clock)

    episode, notes = imported(tmp_path, recording(change=chunk), action={"from": "/cmd", "kind": "normalised"})
    expected = actions.copy()
    expected[20] = 0
    np.testing.assert_array_equal(episode["action"], expected)
    assert notes == ["ticks without a command count as hold (zeros): 1 of 1 recordings"]


def test_targets_of_a_pose_become_what_they_move_a_tick(tmp_path):
    def target(topic, message, tick):
        if topic != "/cmd":
            return message
        made = PoseStamped(header=message.header)
        made.pose.position.x, made.pose.orientation.w = 450.0 + 0.75 * tick, 1.0  # millimetres
        return made

    episode, _ = imported(
        tmp_path,
        recording(change=target),
        action={"from": "/cmd", "kind": "position", "unit": ["mm", "mm", "mm", "rad"]},
    )
    np.testing.assert_allclose(episode["action"][2:, 0], 0.5, atol=0.02)
    assert (episode["action"][:, 1:] == 0).all()


def test_arrays_and_joint_states_of_another_action_space_are_refused(tmp_path):
    array = lambda n: lambda topic, m, tick: Float64MultiArray(data=n * [0.1]) if topic == "/cmd" else m  # noqa: E731
    with pytest.raises(DemoError, match="has 6 values .*another action space"):
        imported(tmp_path, recording(change=array(6)))
    for names, told in ((["a", "b"], r"2 values \(a, b\)"), (["a", "b", "c", "d"], r"4 values \(a, b, c, d\)")):
        joints = lambda m, names=names: JointState(header=m.header, name=names, velocity=[0.1] * len(names))  # noqa: E731
        messages = recording(change=lambda t, m, k, joints=joints: joints(m) if t == "/cmd" else m)
        with pytest.raises(DemoError, match=f"/cmd, message 0 at .* s: action has {told}.* another action space"):
            imported(tmp_path, messages)
    picked = {"from": "/cmd", "kind": "velocity", "pick": ["a", "b", "c", "d"], "unit": 0.01}
    assert (imported(tmp_path, messages, action=picked)[0]["action"][1:] > 0).all()
    shutil.rmtree(tmp_path / "out")
    episode, _ = imported(tmp_path, recording(change=array(4)), action={"from": "/cmd", "kind": "normalised"})
    np.testing.assert_allclose(episode["action"][1:], 0.1, atol=1e-6)


def test_slow_state_is_resampled_and_that_is_said(tmp_path):
    slow = lambda topic, message, tick: None if topic in ("/pose", "/wrench") and tick % 4 else message  # noqa: E731
    episode, notes = imported(tmp_path, recording(change=slow), state=MAP["state"] | {"twist": "derived"})
    assert any("resampled from 12.5 to 50 Hz" in note for note in notes)
    np.testing.assert_allclose(np.diff(episode["proprio"][5:, 0]), 0.0005, atol=1e-6)


def test_a_topic_says_success_and_the_critical_phase(tmp_path):
    messages = recording()
    messages += [("/critical", Bool(data=tick >= 21), START + tick * TICK + 4 * MS) for tick in range(40)]
    messages += [("/success", Bool(data=False), START + 30 * TICK)]
    messages.sort(key=lambda item: item[2])
    episode, _ = imported(tmp_path, messages, success={"from": "/success"}, critical={"from": "/critical"})
    assert not episode["success"] and episode["critical_tick"] == 21


def test_a_bag_in_parts_is_one_episode_and_a_folder_of_bags_several(tmp_path):
    messages = recording(60)
    for number in (1, 2):
        bag = tmp_path / f"bags/bag{number}"
        bag.mkdir(parents=True)
        write(bag / "b_0.mcap", messages[:100])
        write(bag / "b_1.mcap", messages[100:])
        names = {"rosbag2_bagfile_information": {"relative_file_paths": ["b_0.mcap", "b_1.mcap"]}}
        (bag / "metadata.yaml").write_text(yaml.safe_dump(names))
    assert import_mcap(tmp_path / "bags", mapping_in(tmp_path), tmp_path / "out")[0] == 2
    assert [len(episode["action"]) for episode in demos.load(tmp_path / "out")] == [60, 60]


def without(topic: str, begin: int = 0, end: int = 99):
    return lambda t, message, tick: None if t == topic and begin <= tick < end else message


def spoil(topic: str, at: int, change):
    def changed(t, message, tick):
        if t == topic and tick == at:
            change(message)
        return message

    return changed


def not_a_number(message) -> None:
    message.wrench.force.z = float("nan")


def depth(message) -> None:
    message.encoding = "32FC1"


def frozen(topic, message, tick):
    if topic == "/base" and tick > 10:
        message.data = image_to_msg(scene(10, 1), 1, "").data
    return message


FAULTS = {
    "missing camera": (without("/base"), {}, ["no messages on /base", "camera 'base'", "there are: /cmd, /pose"]),
    "camera that is silent": (without("/base", 10, 30), {}, ["camera 'base' says nothing for 0.2", "max_gap (0.2 s)"]),
    "camera that freezes": (frozen, {}, ["camera 'base' says nothing", "(frozen), as live"]),
    "gap in the state": (without("/pose", 10, 30), {}, ["the state says nothing for 0.4", "max_gap"]),
    "NaN": (spoil("/wrench", 17, not_a_number), {}, ["/wrench, message 17 at 0.3", "wrench: values", "not all finite"]),
    "picture of depths": (spoil("/wrist", 5, depth), {}, ["/wrist, message 5 at 0.1", "camera 'wrist'", "'32FC1'"]),
    "wrong use": (without(""), {"action": {"from": "/wrench", "kind": "velocity"}},
                  ["/wrench, message 0", "is a WrenchStamped, expected for an action of kind velocity: TwistStamped"]),
    "actions in another unit": (without(""), {"action": {"from": "/cmd", "kind": "velocity", "unit": 1000.0}},
                                ["frame", "of full action", "max_clipped"]),
    "no command": (lambda t, m, k: None if t == "/cmd" and k > 0 else m, {"max_gap": 0.01},
                   ["says nothing for"]),
    "deltas": (without(""), {"action": {"from": "/cmd", "kind": "delta"}}, ["action.kind is delta, expected velocity"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_recording_is_named_and_nothing_is_left_behind(tmp_path, fault):
    change, mapped, says = FAULTS[fault]
    with pytest.raises(DemoError) as error:
        imported(tmp_path, recording(change=change), **mapped)
    for text in says:
        assert text in str(error.value)
    assert "robot.mcap" in str(error.value) or fault == "deltas"
    assert {path.name for path in tmp_path.iterdir()} == {"robot.mcap", "map.yaml"}


def test_unknown_types_torn_files_and_what_is_no_recording_are_refused_by_name(tmp_path):
    messages = recording()
    odd = [("/odd", Proprio(header=header(START), values=[1.0]), START)]
    with pytest.raises(
        DemoError, match=r"robot.mcap: /odd is a rlt_ros/msg/Proprio, which cannot be imported; expected"
    ):
        imported(tmp_path, odd + messages, state=MAP["state"] | {"wrench": {"from": "/odd"}})
    path = tmp_path / "robot.mcap"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DemoError, match="robot.mcap: cannot be read to its end .* `mcap recover`"):
        import_mcap(path, mapping_in(tmp_path), tmp_path / "out")
    path.unlink()
    (tmp_path / "old.db3").touch()
    with pytest.raises(DemoError, match="no recordings .* old.db3 is SQLite: `ros2 bag convert`"):
        import_mcap(tmp_path, mapping_in(tmp_path), tmp_path / "out")


def test_damage_in_the_middle_is_found(tmp_path):
    write(tmp_path / "robot.mcap", recording())
    data = bytearray((tmp_path / "robot.mcap").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "robot.mcap").write_bytes(data)
    with pytest.raises(DemoError, match="robot.mcap: .*cannot be read to its end"):
        import_mcap(tmp_path / "robot.mcap", mapping_in(tmp_path), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
