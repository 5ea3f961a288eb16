"""Run one node as a process: `main("safety_node")` is what every executable in lib/rlt_ros calls.

Exit codes: 0 stopped by SIGINT or SIGTERM at whatever moment, 1 the node failed (with one line why), 2 wrong usage.
SIGALRM ends a process whose middleware hangs after the node itself has ended cleanly.
Heavy imports stand inside the functions: the signal handlers have to be there before torch takes its seconds.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Sequence
from math import inf
from types import FrameType
from typing import TYPE_CHECKING

from rlt_ros.ros import priority

if TYPE_CHECKING:
    from rclpy.experimental import EventsExecutor

    from rlt_ros.ros.node import RltNode

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# A busy Python thread keeps the interpreter for 5 ms by default, a quarter of a control period.
SWITCH_INTERVAL_S = 0.0005
_SPIN_S = 0.1  # how soon a signal or a failure is noticed
_FAREWELL_S = 5  # for DDS to take leave
_INSISTENT = 5  # signals after which nothing is waited for; Ctrl-C under launch comes twice at once


class _Stop:
    """SIGINT and SIGTERM: up to the end of configure they end the process at once, then they ask the loop to end."""

    def __init__(self) -> None:
        self.count = 0
        self.starting = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.starting:
            raise SystemExit(0)
        if self.count >= _INSISTENT:
            os._exit(1)

    def ignore(self) -> None:
        """A second signal must not kill the interpreter while it shuts down, when it has dropped our handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def main(name: str, argv: list[str] | None = None) -> int:
    """Run the node of rlt_ros/nodes/<name>.py until it is told to stop; return the exit code."""
    stop = _Stop()
    _end_with_parent()
    priority.leave_realtime()  # the parameters say who has one, once it is active
    # Before torch is imported. Several processes with torch on all cores slow each other by 10-40 times.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        from rlt_ros.ros.node import RltNode

        module = importlib.import_module(f"rlt_ros.nodes.{name}")
    except Exception:
        if stop.count:  # within an import SystemExit becomes an error of that import
            return 0
        raise
    found = [item for item in vars(module).values()
             if inspect.isclass(item) and issubclass(item, RltNode) and item.__module__ == module.__name__]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} defines {len(found)} nodes, expected one subclass of RltNode")
    return run(found[0], name, argv, stop)


def _end_with_parent() -> None:
    """Ask Linux for a SIGINT when the supervisor dies, however it dies: nobody would stop this node any more."""
    parent = os.environ.get("RLT_PARENT")
    if parent is None:
        return
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    except (OSError, AttributeError):  # not Linux
        return
    if os.getppid() != int(parent):  # it died before the request
        sys.exit(0)


def run(node_class: type[RltNode], name: str, argv: list[str] | None = None, stop: _Stop | None = None) -> int:
    """Run `node_class` under the default node name `name` until SIGINT, SIGTERM or its failure; return the exit code.

    `argv` are arguments as on the command line, by default those of the process. The variable RLT_WORK names the kind
    of work that priority.py knows.
    """
    stop = stop or _Stop()
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        # Our own handlers: rclpy's would shut the context down below a node that still has to say good-bye.
        rclpy.init(args=sys.argv if argv is None else [name, *argv], signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # a bad --ros-args or parameter file
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    try:
        return _spin(node_class, name, stop)
    finally:
        rclpy.try_shutdown()
        stop.ignore()
        signal.alarm(0)


def spin_once(executor: EventsExecutor, nodes: Sequence[RltNode], most_s: float) -> None:
    """Do what is next: a message, a timer, or the ticks of `nodes` that are due; wait for it `most_s` at most."""
    for node in nodes:
        if (left_s := node.left_s()) < inf:  # two periods, as a clock may be set while it is waited for
            most_s = max(0.0, min(most_s, left_s, 2 * node.control.period_s))
    executor.spin_once(most_s)
    for node in nodes:
        node.run_due()


def _spin(node_class: type[RltNode], name: str, stop: _Stop) -> int:
    from rclpy.experimental import EventsExecutor

    try:
        node = node_class(name)
        node.place = os.environ.get("RLT_WORK", "ordinary")
    except Exception as error:
        print(f"{name}: could not start: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    executor = EventsExecutor()
    try:
        autostart = node.get_parameter("autostart").value is not False
        if autostart:
            node.trigger_configure()  # may load a model for long, and undoes what it did when it is interrupted
        stop.starting = False
        if autostart:
            if not node.configure_error:
                node.trigger_activate()
            if node.configure_error:
                print(f"{name}: {node.configure_error}", file=sys.stderr)
                return 1
        # Torch alone leaves a million objects: a full collection of them would stop everything for several ticks.
        gc.collect()
        gc.freeze()
        executor.add_node(node)
        while not stop.count and node.failure is None:
            spin_once(executor, [node], _SPIN_S)  # spin() of this executor ran no callbacks; see docs/decisions
    finally:
        node.close()
        # All is said and saved. Fast DDS 3.2 can spin without end when participants end together (its issue 6513), and
        # where the supervisor was killed nobody would kill us.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_FAREWELL_S)
        executor.shutdown()
        node.destroy_node()
    if node.failure is not None:
        print(f"{name}: {type(node.failure).__name__}: {node.failure}", file=sys.stderr)
        return 1
    return 0

