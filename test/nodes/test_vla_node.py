"""The frozen VLA on frames."""

import numpy as np
import pytest
from sensor_msgs.msg import Image

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Phase
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, RLState
from rlt_ros.nodes.vla_node import VlaNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import image_to_msg


class Cameras:
    """Sends frame sets with proprioception, one every second tick, as fast as the node may take them."""

    def __init__(self, node, peer) -> None:
        self.node, self.peer = node, peer
        self.references = peer.hear(ActionChunk, "vla/reference")
        self.states = peer.hear(RLState, "vla/rl_state")
        self.images = {name: peer.say(Image, f"camera/{name}/image", qos.SENSOR) for name in ("wrist", "base")}
        self.proprio = peer.say(Proprio, "proprio", qos.SENSOR)
        self.episode = peer.say(EpisodeState, "episode/state", qos.STATE)
        self.frame = peer.tick() // 10 * 10 + 1
        self.sent = 0

    def send(self, phase: Phase, size: int = 96) -> None:
        if self.peer.tick() == self.sent:
            return
        self.sent = self.peer.tick()
        self.frame += 2
        self.episode(self.peer.episode(phase, start_tick=0))
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


def test_checkpoint_that_is_not_there_fails_at_configure_with_its_path(make, tmp_path):
    assert str(tmp_path / "nothing") in make(VlaNode, model=str(tmp_path / "nothing")).configure_error


def test_damaged_checkpoint_fails_at_configure_with_its_path(make, checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:1000])
    error = make(VlaNode, model=str(tmp_path)).configure_error
    assert "configure failed" in error and str(tmp_path) in error
