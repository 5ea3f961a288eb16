"""Check this machine and say what to do about what is missing.

examples:
  rlt doctor
  rlt doctor --json doctor.json

Exit code 1 when something that is required fails; warnings cost comfort or speed only.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rlt_ros.cli.domain import wrong_domain
from rlt_ros.ros.priority import realtime_allowed

OK, WARN, FAIL = "ok", "warn", "fail"
CGROUP, INPUT, INPUT_CLASS = Path("/sys/fs/cgroup"), Path("/dev/input"), Path("/sys/class/input")
CAP_IPC_LOCK = 14  # linux/capability.h


@dataclass(frozen=True)
class Finding:
    """One line of the result: level, what was looked at, what was found, what to do about it."""

    level: str
    name: str
    found: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rlt doctor`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print all findings; return 1 when one of them is a failure."""
    findings = examine()
    for finding in findings:
        print(f"{finding.level:>4}  {finding.name}: {finding.found}")
        if finding.level != OK and finding.remedy:
            print(f"      -> {finding.remedy}")
    failed = [finding.name for finding in findings if finding.level == FAIL]
    print(f"required, and fails: {', '.join(failed)}" if failed else "nothing required is missing")
    if args.json:
        args.json.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


def examine() -> list[Finding]:
    """Make all checks, in the order in which trouble is best solved."""
    findings = []
    for check in CHECKS:
        try:
            findings.append(check())
        except Exception as error:  # a check that breaks is a finding, not the end of the others
            findings.append(Finding(WARN, check.__name__, f"could not be checked: {type(error).__name__}: {error}"))
    return findings


def python() -> Finding:
    version = platform.python_version()
    if sys.version_info < (3, 11):
        return Finding(FAIL, "python", version, "use CPython 3.11 or later: RLT_PYTHON=/path/to/python3.12 make setup")
    return Finding(OK, "python", f"{version}, {sys.executable}")


def ros() -> Finding:
    try:
        rclpy = importlib.import_module("rclpy")
    except ImportError as error:
        return Finding(FAIL, "ros", str(error), "make setup, or source your ROS: . /opt/ros/<distro>/setup.bash")
    wheels = Path(sys.prefix) in Path(rclpy.__file__).parents and "ROS_DISTRO" not in os.environ
    distribution = "Kilted" if wheels else os.environ.get("ROS_DISTRO", "unknown distribution")
    return Finding(OK, "ros", f"{distribution}, {'from wheels' if wheels else 'from the system'}, {rclpy.__path__[0]}")


def middleware() -> Finding:
    """Before rclpy is loaded: a wrong RMW_IMPLEMENTATION ends the process that loads it, a wrong domain the one that uses it."""
    if wrong := wrong_domain():
        del os.environ["ROS_DOMAIN_ID"]  # so that the checks below can be made
        return Finding(FAIL, "middleware", wrong, "unset ROS_DOMAIN_ID")
    if importlib.util.find_spec("rclpy") is None:
        return Finding(FAIL, "middleware", "none without rclpy", "see ros, below")
    if wanted := os.environ.get("RMW_IMPLEMENTATION"):
        code = "from rclpy.utilities import get_rmw_implementation_identifier as name; name()"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        if result.returncode:
            del os.environ["RMW_IMPLEMENTATION"]  # so that the checks below can be made
            why = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
            return Finding(FAIL, "middleware", f"RMW_IMPLEMENTATION={wanted}: {why}", "unset RMW_IMPLEMENTATION, or,"
                           f" with ROS from the system, apt install ros-$ROS_DISTRO-{wanted.replace('_', '-')}")
    from rclpy.utilities import get_rmw_implementation_identifier

    name = get_rmw_implementation_identifier()
    found = f"{name}, domain {os.environ.get('ROS_DOMAIN_ID', '0')}, discovery " \
            f"{os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET').lower()}"
    if name != "rmw_fastrtps_cpp":
        return Finding(WARN, "middleware", found,
                       "export RMW_IMPLEMENTATION=rmw_fastrtps_cpp in every terminal: nothing else was measured")
    return Finding(OK, "middleware", found)


def messages() -> Finding:
    try:
        from rclpy.serialization import deserialize_message, serialize_message

        from rlt_ros.msg import ActionChunk

        back = deserialize_message(serialize_message(ActionChunk(tick=7)), ActionChunk)
    except Exception as error:
        return Finding(FAIL, "messages", f"{type(error).__name__}: {error}",
                       "build them and source the result: make build && . setup/env.sh, or colcon build on a robot")
    return Finding(OK if back.tick == 7 else FAIL, "messages", "rlt_ros.msg is built and its type support works")


def dds() -> Finding:
    """Two nodes of one process find each other over the middleware's own transport."""
    import time

    import rclpy
    from std_msgs.msg import Empty

    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("rlt_doctor", context=context)
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(node)
        heard: list[Empty] = []
        topic = f"rlt_doctor_{os.getpid()}"
        node.create_subscription(Empty, topic, heard.append, 1)
        publisher = node.create_publisher(Empty, topic, 1)
        deadline = time.monotonic() + 5.0
        while not heard and time.monotonic() < deadline:
            publisher.publish(Empty())
            executor.spin_once(0.05)
    finally:
        rclpy.shutdown(context=context)
    if heard:
        return Finding(OK, "dds", "a message came back over loopback")
    return Finding(FAIL, "dds", "no message came back within 5 s",
                   "allow UDP multicast on the loopback device (ip link set lo multicast on) and check the firewall")


def shared_memory() -> Finding:
    """Fast DDS carries images through /dev/shm; a small one (Docker: 64 MB) fills up silently."""
    usage = shutil.disk_usage("/dev/shm")
    found = f"/dev/shm has {usage.free / 2**20:.0f} MB free of {usage.total / 2**20:.0f}"
    if usage.free < 128 * 2**20:
        return Finding(WARN, "shared memory", found, "give the container more: docker run --shm-size=1g")
    return Finding(OK, "shared memory", found)


def torch() -> Finding:
    try:
        library = importlib.import_module("torch")
    except ImportError as error:
        return Finding(FAIL, "torch", str(error), "run `make setup`, or pip install torch")
    device = library.cuda.get_device_name(0) if library.cuda.is_available() else "CPU only"
    threads, cpus = library.get_num_threads(), _cpus()
    found = f"{library.__version__}, {device}, {threads} threads" \
            f" (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})"
    if threads > cpus:
        return Finding(WARN, "torch", f"{found} on {cpus} CPUs", f"export OMP_NUM_THREADS={cpus}: threads that wait for"
                       " a processor slow each other down. Nodes that are launched have theirs from the table of"
                       " processes, but rlt eval and rlt train have not")
    return Finding(OK, "torch", found)


def rendering() -> Finding:
    """Render one picture in a process of its own: a broken driver may crash it."""
    if importlib.util.find_spec("mujoco") is None:
        return Finding(WARN, "rendering", "mujoco is not installed", "needed by the simulator only: make setup")
    code = ("import mujoco; m = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos=\"0 0 2\"/>"
            "<geom size=\".2\"/></worldbody></mujoco>'); d = mujoco.MjData(m); mujoco.mj_forward(m, d);"
            "r = mujoco.Renderer(m, 32, 32); r.update_scene(d); print(int(r.render().max()))")
    backend = os.environ.get("MUJOCO_GL", "egl")
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | {"MUJOCO_GL": backend}, capture_output=True,
                            text=True, timeout=60, check=False)
    if result.returncode == 0 and int(result.stdout.split()[-1]) > 0:
        return Finding(OK, "rendering", f"MuJoCo renders with MUJOCO_GL={backend}")
    why = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}, black picture"])[-1]
    return Finding(FAIL, "rendering", f"MUJOCO_GL={backend}: {why}",
                   "apt-get install libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri; then MUJOCO_GL=egl")


def gamepad() -> Finding:
    """joy_node reads the event device of a pad, joy_linux the js device."""
    devices = sorted(INPUT.glob("js*"))
    if not devices:
        return Finding(
            WARN, "gamepad", f"none at {INPUT}/js*",
            "to practise on a robot, plug one in (in Docker: --device /dev/input), or `rlt teleop`; the simulator has"
            " its own person"
        )  # fmt: skip
    events = [INPUT / event.name for device in devices for event in INPUT_CLASS.glob(f"{device.name}/device/event*")]
    unreadable = [str(device) for device in [*devices, *events] if not os.access(device, os.R_OK)]
    if unreadable:
        return Finding(WARN, "gamepad", f"no right to read {', '.join(unreadable)}",
                       "sudo usermod -aG input $USER, then log in again")
    from ament_index_python.packages import get_packages_with_prefixes

    if "joy" not in get_packages_with_prefixes():
        return Finding(WARN, "gamepad", f"{', '.join(map(str, devices))}, but no ROS package joy to read it",
                       "apt install ros-$ROS_DISTRO-joy (the wheels have none)")
    return Finding(OK, "gamepad", ", ".join(map(str, devices)))


def scheduling() -> Finding:
    """Without any rights, control interrupts computing at once on Linux 6.12 and newer (rlt_ros/ros/priority.py)."""
    release = platform.release()
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if version < (6, 12):
        return Finding(WARN, "scheduling", f"Linux {release}: control waits for the kernel's tick before it interrupts"
                       " computing", "Linux 6.12 or newer, or realtime_priority for the nodes that move the robot")
    kind = "a real-time kernel" if Path("/sys/kernel/realtime").is_file() else "no real-time kernel, none is needed"
    return Finding(OK, "scheduling", f"Linux {release}: control interrupts computing at once; {kind}")


def realtime_priority() -> Finding:
    """Up to which priority SCHED_FIFO is allowed."""
    limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    highest = next((priority for priority in (99, limit) if priority > 0 and realtime_allowed(priority)), 0)
    if highest:
        return Finding(OK, "real-time priority",
                       f"SCHED_FIFO up to {highest} is allowed (`rlt practice` takes it; realtime_priority)")
    return Finding(
        WARN, "real-time priority",
        "SCHED_FIFO is not allowed (realtime_priority); commands come late where other work keeps the machine busy",
        _allow("@realtime - rtprio 90", "--cap-add=SYS_NICE --ulimit rtprio=90")
    )  # fmt: skip


def locked_memory() -> Finding:
    """Whether mlockall of a whole node would pass: it wants all of its memory, hundreds of MB."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or _has_capability(CAP_IPC_LOCK):
        return Finding(OK, "locked memory", "mlockall is allowed without a limit (lock_memory)")
    found = f"at most {limit / 2**20:.0f} MB can be locked, a node needs all of its memory (lock_memory)"
    return Finding(WARN, "locked memory", found, _allow("@realtime - memlock unlimited", "--ulimit memlock=-1"))


def _allow(line: str, docker: str) -> str:
    return (f"only where a robot needs it: a line '{line}' in /etc/security/limits.d/realtime.conf, `sudo groupadd -f"
            f" realtime && sudo usermod -aG realtime $USER`, then log in again; in Docker: {docker}")


def _has_capability(bit: int) -> bool:
    effective = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> bit & 1)


def _cpus() -> int:
    """Processors that this process may use; a container's quota counts."""
    cpus, quota = len(os.sched_getaffinity(0)), CGROUP / "cpu.max"
    if quota.is_file() and (numbers := quota.read_text().split())[0].isdigit():
        cpus = min(cpus, max(1, round(int(numbers[0]) / int(numbers[1]))))
    return cpus


def machine() -> Finding:
    """Processors that this process may use, and memory; a container's limit counts."""
    cpus = _cpus()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    found = f"{cpus} CPUs, {memory / 2**30:.1f} GiB memory, load {os.getloadavg()[0]:.1f}"
    if cpus < 2 or memory < 6 * 2**30:
        return Finding(WARN, "machine", found, "practice wants 2 CPUs and 6 GiB; with less, ticks will be missed")
    return Finding(OK, "machine", found)


CHECKS: tuple[Callable[[], Finding], ...] = (
    python, machine, middleware, ros, messages, dds, shared_memory, torch, rendering, gamepad, scheduling,
    realtime_priority, locked_memory)
