"""Real ROS over DDS, on a domain of this test run's own."""

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Fast DDS listens on this UDP port for the discovery of domain 0, and 250 further for each next domain.
_DISCOVERY_PORT, _PORTS_PER_DOMAIN = 7400, 250


def _free_domain() -> int:
    """A ROS_DOMAIN_ID that nobody uses: its discovery port can be bound. 1..100 keeps clear of ephemeral ports."""
    start = os.getpid() % 100
    for offset in range(100):
        domain = 1 + (start + offset) % 100
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", _DISCOVERY_PORT + _PORTS_PER_DOMAIN * domain))
                return domain
            except OSError:
                continue
    raise RuntimeError("all ROS domains from 1 to 100 are in use on this machine")


# Before anything imports rclpy, and inherited by the processes that tests start.
os.environ["ROS_DOMAIN_ID"] = str(_free_domain())
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SUBNET"  # of the loopback interface alone, by the profile
os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(Path(__file__).with_name("fastdds.xml"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A background job of a script ignores Ctrl-C, and so would all processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Whoever started the tests may have a real-time priority: those who wait would starve those for whom they wait.
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def ros() -> Iterator[None]:
    """rclpy, initialised once a file: a DDS participant that has grown deaf to newcomers, as now and then that of
    hundreds of tests did, is then one file's."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(args=["pytest"], signal_handler_options=SignalHandlerOptions.NO)
    yield
    rclpy.try_shutdown()


def _sockets() -> str:
    """This process's UDP sockets: port, bytes that nobody has read, datagrams that found no room."""
    own = {os.stat(entry.path).st_ino for entry in os.scandir("/proc/self/fd") if os.path.exists(entry.path)}
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    found = [(int(row[1][-4:], 16), int(row[4].partition(":")[2], 16), row[-1]) for row in rows if int(row[9]) in own]
    return ", ".join(f"{port} {unread} unread {lost} lost" for port, unread, lost in sorted(found)) or "none"


class Graph:
    """Nodes of one test in one executor, spun until a condition holds."""

    def __init__(self) -> None:
        from rclpy.experimental import EventsExecutor

        self.executor = EventsExecutor()
        self.nodes: list = []

    def add(self, node):  # noqa: ANN001, ANN201 - any rclpy node
        """Spin `node` with the others; it is destroyed after the test."""
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def spin_until(self, condition: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = 20.0) -> None:
        """Spin until `condition()`; fail the test, saying `what` was awaited (as it is then), after `timeout_s`."""
        import time

        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {timeout_s} s for {what() if callable(what) else what}; UDP: {_sockets()}")
            self.spin_once(0.02)

    def spin_once(self, most_s: float) -> None:
        """Do what is next, or wait for it so long; as the process of a node does."""
        from rlt_ros.ros.node import RltNode
        from rlt_ros.ros.run import spin_once

        spin_once(self.executor, [node for node in self.nodes if isinstance(node, RltNode)], most_s)

    def close(self) -> None:
        """Destroy the nodes."""
        for node in self.nodes:
            if hasattr(node, "close"):
                node.close()
            self.executor.remove_node(node)
            node.destroy_node()
        self.executor.shutdown()


@pytest.fixture
def graph(ros: None) -> Iterator[Graph]:
    """An empty graph of in-process nodes."""
    made = Graph()
    yield made
    made.close()


@pytest.fixture
def make(graph: Graph) -> Callable:
    """Make and configure a node of rlt_ros.nodes; what configure says stands in `configure_error`."""
    from rclpy.parameter import Parameter

    def made(node_class: type, **parameters: object):  # noqa: ANN202
        name = re.sub(r"(?<!^)([A-Z])", r"_\1", node_class.__name__).lower()
        overrides = [Parameter(key.replace("__", "."), value=value) for key, value in parameters.items()]
        node = graph.add(node_class(name, parameter_overrides=overrides))
        node.trigger_configure()
        return node

    return made


@pytest.fixture
def start(make: Callable) -> Callable:
    """The same, active."""

    def started(node_class: type, **parameters: object):  # noqa: ANN202
        node = make(node_class, **parameters)
        assert node.configure_error == ""
        node.trigger_activate()
        assert node.configure_error == ""
        return node

    return started


@pytest.fixture
def stop(graph: Graph) -> Callable:
    """End a node as its process's end would."""

    def stopped(node) -> None:  # noqa: ANN001
        node.close()
        graph.executor.remove_node(node)
        graph.nodes.remove(node)
        node.destroy_node()

    return stopped


@pytest.fixture
def transition() -> Callable:
    """transition(sequence, token_dim=6): one of the Ethernet task with seeded noise in it."""
    import numpy as np

    from rlt_ros.core.chunks import Source
    from rlt_ros.core.transition import Transition

    def made(sequence: int, token_dim: int = 6) -> Transition:
        random = np.random.default_rng(sequence)
        noise = lambda *shape: random.uniform(-1, 1, shape).astype(np.float32)  # noqa: E731
        return Transition(
            sequence=sequence,
            episode=1,
            tick=2 * sequence,
            token=noise(token_dim),
            proprio=noise(28),
            reference=noise(10, 4),
            action=noise(10, 4),
            rewards=np.zeros(10, np.float32),
            steps=10,
            next_token=noise(token_dim),
            next_proprio=noise(28),
            next_reference=noise(10, 4),
            terminated=False,
            truncated=False,
            sources=np.full(10, Source.ACTOR, np.uint8),
            token_age_ticks=5,
            policy_version=0,
        )

    return made


@pytest.fixture
def quick() -> dict:
    """Parameters of a learner node whose networks are tiny and whose warm-up is short."""
    return {
        "td3__hidden": [8, 8],
        "td3__batch_size": 8,
        "td3__min_buffer": 8,
        "td3__warm_transitions": 12,
        "td3__warm_updates": 10,
        "td3__warm_successes": 0,
        "td3__utd": 1.0,
        "publish_hz": 20.0,
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch in one thread: several wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def python() -> str:
    """The interpreter for tests that start processes."""
    return sys.executable


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A VLA checkpoint of the real classes that nobody trained; its reference goes down at -0.4 of full speed."""
    from transformers import PI0ForConditionalGeneration

    from rlt_ros.core.rl_token import RLToken, TokenConfig
    from rlt_ros.sim.task import load_task
    from rlt_ros.vla.pi0 import Pi0, Pi0Io, small_config

    task, folder = load_task("ethernet"), tmp_path_factory.mktemp("checkpoint")
    words = ["<pad>", "<bos>", *sorted(set(task.instruction.lower().split())), "<image>"]
    index = task.vla_state_index
    io = Pi0Io(
        cameras=list(task.cameras), instruction=task.instruction, proprio_dim=task.proprio_dim, state_index=index,
        state_mean=[0.0] * len(index), state_std=[1.0] * len(index), action_mean=[0.0, 0.0, -0.4, 0.0],
        action_std=[0.02] * task.action_dim, vocabulary=words)
    policy = Pi0(PI0ForConditionalGeneration(small_config(len(words), task.action_dim, len(index))), io)
    policy.save(folder)
    RLToken(TokenConfig(embedding_dim=policy.embedding_dim, tokens=policy.image_tokens)).save(folder)
    yield folder


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """install(name, {entry point: value}): a package that offers VLA back ends, as pip leaves it; its site folder."""

    def made(name: str, points: dict[str, str]) -> Path:
        site = tmp_path / f"site-of-{name}"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {value}" for point, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[rlt_ros.vla_backends]", *lines, ""]))
        monkeypatch.syspath_prepend(site)
        return site

    return made


@pytest.fixture
def other_vla(install: Callable, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint, with its RL token, of the documents' template as a package of its own; pictures are of 64 px."""
    import json
    import shutil

    from rlt_ros.core.rl_token import RLToken, TokenConfig

    package = install("my_vla_package", {"my_vla": "my_vla_package.my_backend:load"}) / "my_vla_package"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "docs" / "templates" / "my_backend.py", package)
    folder = tmp_path / "other_vla"
    RLToken(TokenConfig(embedding_dim=32, tokens=32)).save(folder)
    settings = {"backend": "my_vla", "cameras": ["wrist", "base"], "proprio_dim": 14, "action_dim": 4}
    (folder / "rlt.json").write_text(json.dumps(settings))
    yield folder
    for name in [name for name in sys.modules if name.startswith("my_vla_package")]:
        del sys.modules[name]
