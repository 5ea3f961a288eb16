"""The frozen VLA on frames."""

import threading
import time

import numpy as np
import pytest
import yaml
from sensor_msgs.msg import Image

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Phase
from rlt_ros.core.joining import FADE_TICKS
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, RLState
from rlt_ros.nodes.vla_node import VlaNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import image_to_msg
from rlt_ros.sim.task import task_file


class Cameras:
    """Sends frame sets with proprioception, one every second tick, as fast as the node may take them."""

    def __init__(self, node, peer) -> None:
        self.node, self.peer = node, peer
        self.references = peer.hear(ActionChunk, "vla/reference")
        self.states = peer.hear(RLState, "vla/rl_state")
        self.images = {name: peer.say(Image, f"camera/{name}/image", qos.SENSOR) for name in ("wrist", "base")}
        self.proprio = peer.say(Proprio, "proprio", qos.SENSOR)
        self.episode = peer.say(EpisodeState, "episode/state", qos.STATE)
        self.executed = peer.say(ActionChunk, "command/executed", qos.COMMAND)
        # Ahead of the clock, so that no load on the machine makes them late.
        self.frame = peer.tick() // 10 * 10 + 10_001
        self.sent = 0

    def send(
        self, phase: Phase, size: int = 96, driver: Source | None = None, episode: int = 1, now: bool = False
    ) -> None:
        if self.peer.tick() == self.sent:
            return
        self.sent = self.peer.tick()
        self.frame = self.sent if now else self.frame + 2
        self.episode(self.peer.episode(phase, start_tick=0, episode=episode))
        if driver is not None:
            self.executed(self.peer.chunk(self.frame, [0.0] * 4, source=driver))
        self.proprio(self.peer.proprio(self.frame))
        for say in self.images.values():
            say(image_to_msg(np.zeros((size, size, 3), np.uint8), self.peer.clock.stamp_ns(self.frame)))

    def until(self, graph, phase: Phase, condition, what: str, **kwargs) -> None:
        graph.spin_until(lambda: (self.send(phase, **kwargs), condition())[1], what)


@pytest.fixture
def cameras(start, peer, checkpoint):
    return Cameras(start(VlaNode, model=str(checkpoint), trace=False), peer)


def test_references_come_from_the_frames_that_chunk_boundaries_need(graph, cameras):
    cameras.until(graph, Phase.CRITICAL, lambda: len(cameras.references) > 3, "references")
    for msg in cameras.references[1:]:  # before the second frame nobody knows how often frames come
        assert msg.tick % 10 == 5 and msg.observation_tick == msg.tick
        assert (msg.steps, msg.action_dim, msg.source) == (50, 4, Source.VLA)
        assert np.abs(msg.actions).max() <= 1.0


def test_frames_between_give_tokens_in_the_critical_phase_only(graph, cameras):
    cameras.until(graph, Phase.APPROACH, lambda: len(cameras.references) > 3, "references")
    assert {msg.tick for msg in cameras.states} <= {msg.tick for msg in cameras.references}
    cameras.until(graph, Phase.CRITICAL, lambda: any(msg.tick % 10 == 7 for msg in cameras.states), "a token between")
    assert len(cameras.states[-1].token) == cameras.node.model.token_dim
    assert len(cameras.states[-1].proprio) == 14


def test_idle_phase_costs_no_inference(graph, cameras):
    begin = cameras.frame
    cameras.until(graph, Phase.IDLE, lambda: cameras.frame > begin + 60, "frames")
    assert not cameras.references and not cameras.states


def test_picture_of_the_wrong_size_is_dropped_and_named(graph, cameras):
    cameras.until(graph, Phase.APPROACH, lambda: cameras.node.rejected["camera/wrist/image"] > 0, "the drop", size=48)
    assert not cameras.references


# --- references that go on from one another


def diagnostics(node) -> dict:
    return node.on_diagnostics_()


@pytest.mark.parametrize("join", ["rtc", "blend"])
def test_references_are_joined_while_the_robot_executes_them(graph, start, peer, checkpoint, join):
    cameras = Cameras(start(VlaNode, model=str(checkpoint), trace=False, join=join), peer)
    asked, infer = [], cameras.node.model.infer

    def remembered(images, proprio, prefix):
        asked.append(prefix)
        return infer(images, proprio, prefix)

    cameras.node.model.infer = remembered
    joined = lambda: diagnostics(cameras.node)["joined_references"]  # noqa: E731
    cameras.until(graph, Phase.APPROACH, lambda: joined() > 2, "joined references", driver=Source.VLA)
    if join == "blend":
        assert not any(asked)  # the cross-fade is done with what the model gives in any case
        return
    graph.spin_until(lambda: len(cameras.references) == len(asked), "the references themselves")
    for before, after, prefix in zip(cameras.references, cameras.references[1:], asked[1:], strict=False):
        if prefix is None:
            continue
        # What was published, from the new frame's tick on, as far as it still has a say.
        actions = np.array(before.actions).reshape(50, 4)[after.tick - before.tick:]
        assert (after.tick + prefix.frozen) % 10 == 0
        assert np.array_equal(prefix.actions, actions[:prefix.frozen + FADE_TICKS])


@pytest.mark.parametrize("driver", [None, Source.HUMAN, Source.ACTOR])
def test_nothing_is_joined_while_another_drives_or_nobody_says_who(graph, start, peer, checkpoint, driver):
    cameras = Cameras(start(VlaNode, model=str(checkpoint), trace=False, join="blend"), peer)
    cameras.until(graph, Phase.CRITICAL, lambda: len(cameras.references) > 3, "references", driver=driver)
    assert diagnostics(cameras.node)["joined_references"] == 0


def test_what_a_gate_said_that_fell_silent_is_not_believed(graph, start, peer, checkpoint):
    cameras = Cameras(start(VlaNode, model=str(checkpoint), trace=False, join="blend"), peer)
    joined = lambda: diagnostics(cameras.node)["joined_references"]  # noqa: E731
    cameras.until(graph, Phase.APPROACH, lambda: joined() > 0, "joined references", driver=Source.VLA)
    silent = len(cameras.references)
    cameras.until(graph, Phase.APPROACH, lambda: len(cameras.references) > silent + 1, "references after it")
    before, heard = joined(), len(cameras.references)
    cameras.until(graph, Phase.APPROACH, lambda: len(cameras.references) > heard + 2, "more references")
    assert joined() == before


def test_no_episode_is_joined_to_the_one_before(graph, start, peer, checkpoint):
    cameras = Cameras(start(VlaNode, model=str(checkpoint), trace=False, join="blend"), peer)
    prefixes = []
    cameras.node.joined._before = lambda *where, before=cameras.node.joined._before: prefixes.append(
        (where, before(*where))) or prefixes[-1][1]
    for episode in (1, 2):
        heard = len(cameras.references)
        cameras.until(graph, Phase.APPROACH, lambda n=heard: len(cameras.references) > n + 2, "references",
                      driver=Source.VLA, episode=episode)
    firsts = [next(prefix for (_, _, of), prefix in prefixes if of == episode) for episode in (1, 2)]
    assert firsts == [None, None] and prefixes[-1][1] is not None


# --- a VLA that is slower than promised


def test_a_vla_slower_than_promised_is_asked_earlier_and_the_operator_told_what_to_set(graph, start, peer, checkpoint):
    node = start(VlaNode, model=str(checkpoint), trace=False, latency_ticks=1, max_age_ticks=10)
    infer = node.model.infer
    node.model.infer = lambda *frame: (time.sleep(0.07), infer(*frame))[1]
    cameras = Cameras(node, peer)
    assert diagnostics(node)["latency_ticks"] == 1 and node.problem == "no picture yet from wrist, base"
    told = lambda: "latency_ticks" in (diagnostics(node), node.problem)[1]  # noqa: E731
    cameras.until(graph, Phase.APPROACH, told, "the problem", now=True)
    values = diagnostics(node)
    needed = values["latency_ticks"]
    assert needed >= 4 and values["latency_ms"] > 70 and values["late_references"] > 0
    age = needed + max(needed, 10)
    assert f"set latency_ticks to {needed} and max_age_ticks to {age} for all nodes" in node.problem
    assert node.schedule.ticks >= 4  # it is asked so much before the boundary


def test_a_reference_that_the_end_of_its_episode_overtakes_is_not_late(graph, start, peer, checkpoint):
    node = start(VlaNode, model=str(checkpoint), trace=False)
    cameras = Cameras(node, peer)
    began, ended = threading.Event(), threading.Event()
    infer = node.model.infer

    def outlast(*frame):
        began.set()
        assert ended.wait(20.0)
        return infer(*frame)

    node.model.infer = outlast
    cameras.until(graph, Phase.APPROACH, began.is_set, "the inference", now=True)
    cameras.until(graph, Phase.IDLE, lambda: node.phase == Phase.IDLE, "the end")
    due = peer.tick() + 20
    graph.spin_until(lambda: peer.tick() > due, "the boundary to pass")
    ended.set()
    graph.spin_until(lambda: node.queue.oldest() is None, "the inference to end")
    assert node.late == 0


def test_a_vla_as_fast_as_promised_is_no_problem(start, checkpoint):
    node = start(VlaNode, model=str(checkpoint), trace=False)
    for took_ms in [2000, 900] + 20 * [90]:  # it was slow to begin with
        node.latency.took(took_ms * 1_000_000)
    assert node.slowness() == "" and diagnostics(node)["latency_ticks"] == 5
    for _ in range(50):
        node.latency.took(101_000_000)
    assert "set latency_ticks to 6 for all nodes" in node.slowness()


def test_a_way_of_joining_that_does_not_exist_fails_at_configure(make, checkpoint):
    assert "'join' is 'glue', expected str one of" in make(VlaNode, model=str(checkpoint), join="glue").configure_error


def test_checkpoint_that_is_not_there_fails_at_configure_with_its_path(make, tmp_path):
    assert str(tmp_path / "nothing") in make(VlaNode, model=str(tmp_path / "nothing")).configure_error


def test_damaged_checkpoint_fails_at_configure_with_its_path(make, checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:1000])
    error = make(VlaNode, model=str(tmp_path)).configure_error
    assert "configure failed" in error and str(tmp_path) in error


# --- a VLA that is of no use


def test_a_vla_that_can_use_no_picture_from_the_beginning_ends_and_says_why(graph, cameras):
    failed = lambda: cameras.node.failure is not None  # noqa: E731
    cameras.until(graph, Phase.APPROACH, failed, "the end", size=48)
    says = "250 messages were refused and no frame came of any; the last one: camera '"
    assert str(cameras.node.failure).startswith(says)
    assert "picture is (48, 48, 3), the model wants (96, 96, 3)" in str(cameras.node.failure)


def test_pictures_that_go_bad_later_are_a_fault_that_may_pass(graph, cameras, monkeypatch):
    monkeypatch.setattr("rlt_ros.nodes.vla_node.USELESS", 20)
    cameras.until(graph, Phase.APPROACH, lambda: bool(cameras.references), "a reference")
    refused = lambda: sum(cameras.node.rejected.values()) > 60  # noqa: E731
    cameras.until(graph, Phase.APPROACH, refused, "refusals", size=48)
    assert cameras.node.failure is None
    heard = len(cameras.references)
    cameras.until(graph, Phase.APPROACH, lambda: len(cameras.references) > heard, "references again")


def test_an_inference_that_fails_ends_the_node(graph, cameras):
    def infer(*_):  # noqa: ANN002, ANN202
        raise RuntimeError("out of memory")

    cameras.node.model.infer = infer
    cameras.until(graph, Phase.APPROACH, lambda: cameras.node.failure is not None, "the end")
    assert str(cameras.node.failure) == "out of memory"


@pytest.mark.parametrize(("change", "says"), [
    ({"state": [{"key": "pose", "size": 4}], "vla_state": ["pose"]}, "takes 14 values of proprioception, expected 4"),
    ({"action": {"names": ["x"], "scale": [0.001]}}, "gives 4 actions, expected 1"),
    ({"cameras": {"wrist": "camera:wrist"}}, "looks at camera 'base', expected one of wrist"),
])  # fmt: skip
def test_a_model_of_another_robot_is_refused_at_configure(make, checkpoint, tmp_path, change, says):
    values = yaml.safe_load(task_file("ethernet").read_text())
    limits = values["limits"] | {"max_force": None}
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(values | {"limits": limits} | change))
    error = make(VlaNode, model=str(checkpoint), trace=False, task=str(path)).configure_error
    assert says in error and "give a model that was trained for this task" in error


def test_another_rate_than_the_tasks_is_refused(make, checkpoint):
    made = make(VlaNode, rate_hz=100.0, model=str(checkpoint), trace=False)
    assert "'rate_hz' is 100, expected 50, the rate of task" in made.configure_error


# --- other VLAs


@pytest.mark.parametrize("join", ["none", "blend"])
def test_a_vla_of_another_package_runs_as_the_shipped_one(graph, start, peer, other_vla, join):
    cameras = Cameras(start(VlaNode, model=str(other_vla), join=join), peer)
    cameras.until(
        graph, Phase.CRITICAL,
        lambda: len(cameras.references) > 2 and any(msg.tick % 10 == 7 for msg in cameras.states),
        "references and a token between them", size=64, driver=Source.VLA,
    )  # fmt: skip
    msg = cameras.references[-1]
    assert (msg.steps, msg.action_dim, msg.source) == (50, 4, Source.VLA)
    assert len(cameras.states[-1].token) == 32


def test_real_time_chunking_with_a_vla_that_cannot_fails_at_configure(make, other_vla):
    error = make(VlaNode, model=str(other_vla), join="rtc").configure_error
    assert "MyBackend cannot go on from the chunk before: set join to none or blend" in error
