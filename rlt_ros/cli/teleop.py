"""Steer the robot and label episodes with the keys of a terminal, as with a gamepad.

examples:
  ROS_DOMAIN_ID=37 rlt teleop                     # beside nodes that run in that ROS domain
  rlt teleop --namespace left                     # nodes in a namespace
  ros2 launch rlt_ros practice.launch.py robot:=my_robot.yaml gamepad:=keyboard    # nodes for it, without a gamepad

keys:
  arrows  forth, back, left, right      PgUp u / PgDn d  up, down          , .  turn left, right
  i k     pitch    j l  roll            o c  open, close the gripper       v    slow or fast
  Enter   take the robot and keep it in your hand, standing; again: let go
  S start  H hand over  A success  B failure  Backspace abort  Ctrl+Z undo  R reset
  Space or Esc  EMERGENCY STOP   Ctrl+R twice: release it   ? keys   Ctrl+C or Ctrl+D: end

A terminal does not say when a key is let go. A first press therefore moves for 0.06 s; while the key is held, its
repetitions move on, after the pause that the keyboard makes before them. When no key comes for 0.15 s, for whatever
reason, the robot stands, and 1 s later it is given back. One motion at a time. A terminal that is closed, or whose
connection ends, stops the robot: emergency stop. It sends sensor_msgs/Joy on `joy`, in the layout that the teleop node
has, and keeps silent while a gamepad sends there; the emergency stop also goes to the safety node itself.
"""

import argparse
import os
import select
import signal
import stat
import sys
import termios
import threading
import time
from contextlib import contextmanager

from rlt_ros.cli.arguments import namespace
from rlt_ros.core.keyboard import END, HELP, Hands, Keyboard, keys_of

SEND_S = 0.04  # between two readings that do not change; the teleop node calls 0.3 s silence
ESCAPE_S = 0.03  # in which the rest of an escape sequence comes
SHOW_S, WAIT_S = 0.1, 0.05
FIND_S = 5.0  # for the teleop node to be heard
SILENT_S = 3.0  # diagnostics come at 1 Hz
RIVAL_S = 1.0  # after which a gamepad that was heard is thought to be gone
STOP_S = 1.0  # for the answer to the last emergency stop
FRAME = f"rlt_teleop_{os.getpid()}"  # frame_id by which its own messages are known
KEYS = __doc__.partition("keys:\n")[2].partition("\n\n")[0]


class TerminalGone(RuntimeError):
    """Nobody can press anything any more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rlt teleop`."""
    parser.add_argument("--namespace", type=namespace, default="", metavar="NS", help="namespace of the nodes")
    parser.add_argument(
        "--gamepad", default="", metavar="FILE",
        help="layout to send in: a path, or a name from config/gamepads (default: as the teleop node says)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Steer until Ctrl-C or Ctrl-D; return the exit code."""
    if not sys.stdin.isatty():
        raise RuntimeError("stdin is no terminal, so no keys can be read; start it by hand in a terminal")
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(args=["rlt"], signal_handler_options=SignalHandlerOptions.NO)
    teleop = None
    try:
        teleop = Teleop(args.namespace)
        # Noted, not raised: an exception can get lost in a callback.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: teleop.signals.append(number))
        teleop.take_layout(args.gamepad)
        with keys_at_once(sys.stdin.fileno()):
            teleop.steer(sys.stdin.fileno())
    except TerminalGone:
        teleop.stop()
        say_no_more()
        raise
    finally:
        if teleop is not None:
            teleop.close()
        rclpy.try_shutdown()
    return 0


@contextmanager
def keys_at_once(fd: int):
    """The terminal gives each key as it comes and shows none; Ctrl-C still interrupts. As before afterwards."""
    before = termios.tcgetattr(fd)
    mode = termios.tcgetattr(fd)
    mode[0] &= ~(termios.ICRNL | termios.IXON)
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    for key in (termios.VSUSP, termios.VREPRINT):  # Ctrl-Z and Ctrl-R are keys of ours
        mode[6][key] = os.fpathconf(fd, "PC_VDISABLE").to_bytes(1, "little")
    try:
        termios.tcsetattr(fd, termios.TCSADRAIN, mode)
        yield
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        except termios.error:  # the terminal has gone
            pass


class Teleop:
    """The ROS side, and the line that says how things stand."""

    def __init__(self, namespace: str) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.experimental import EventsExecutor
        from rclpy.node import Node
        from sensor_msgs.msg import Joy
        from std_srvs.srv import Trigger

        from rlt_ros.msg import EpisodeState, SafetyState
        from rlt_ros.ros import qos

        self.node = Node("rlt_teleop", namespace=namespace or None, start_parameter_services=False)
        self.wanted = f"{self.node.get_namespace().strip('/')}/teleop_node".lstrip("/")
        self.keyboard, self.pad = Keyboard(), None
        self.signals: list[int] = []  # that came
        self.health: tuple[bool, str, dict] | None = None  # of the teleop node: all is well, what it says, its values
        self.health_s = self.rival_s = -1e9
        self.rival = self.shown = ""
        self.episode, self.safety = EpisodeState(), SafetyState()
        self.joy = self.node.create_publisher(Joy, "joy", qos.EVENT)
        self.node.create_subscription(Joy, "joy", self.on_joy, qos.EVENT)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.on_diagnostics, qos.REPLAY)
        self.node.create_subscription(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.node.create_subscription(SafetyState, "safety/state", self.on_safety, qos.STATE)
        self.stopper = self.node.create_client(Trigger, "safety/stop")
        self.executor = EventsExecutor()
        self.executor.add_node(self.node)
        self.ended = threading.Event()
        self.ears = threading.Thread(target=self.hear, name="ears", daemon=True)
        self.ears.start()

    def hear(self) -> None:
        """In a thread: the keys wait for no message, and no message for a key."""
        while not self.ended.is_set():
            self.executor.spin_once(0.1)

    def close(self) -> None:
        """Let go, and end."""
        if self.pad is not None:
            self.send((), {})
        self.ended.set()
        self.ears.join(3.0)
        self.executor.shutdown()
        self.node.destroy_node()

    # Topics; in the thread, so each only leaves one thing behind

    def on_joy(self, msg) -> None:
        if msg.header.frame_id != FRAME:
            self.rival = msg.header.frame_id or "without a frame_id"
            self.rival_s = time.monotonic()

    def on_diagnostics(self, msg) -> None:
        for status in msg.status:
            if status.name == self.wanted:
                values = {item.key: item.value for item in status.values}
                self.health = status.message == "active", status.message, values
                self.health_s = time.monotonic()

    def on_episode(self, msg) -> None:
        self.episode = msg

    def on_safety(self, msg) -> None:
        self.safety = msg

    def look_at_signals(self) -> None:
        """What was asked for by signal: KeyboardInterrupt, or TerminalGone for SIGHUP."""
        if signal.SIGHUP in self.signals:
            raise TerminalGone("the terminal has gone: emergency stop")
        if self.signals:
            raise KeyboardInterrupt

    # Steering

    def take_layout(self, name: str) -> None:
        """Imitate that gamepad, or with "" the one that the teleop node has."""
        from rlt_ros.core.gamepad import VirtualPad, load_layout
        from rlt_ros.ros.processes import gamepad_file
        from rlt_ros.sim.task import task_folder

        deadline_s = time.monotonic() + FIND_S
        while not name:
            self.look_at_signals()
            time.sleep(WAIT_S)
            name = self.health[2].get("gamepad", "") if self.health else ""
            if not name and time.monotonic() > deadline_s:
                raise RuntimeError(
                    f"{self.wanted} is not heard within {FIND_S:g} s in ROS domain"
                    f" {os.environ.get('ROS_DOMAIN_ID', '0')}; start the nodes, set ROS_DOMAIN_ID or --namespace, or"
                    " say --gamepad to wait for it"
                )
        self.pad = VirtualPad(load_layout(gamepad_file(task_folder().parents[1], name)))

    def send(self, held: tuple, motions: dict) -> None:
        from sensor_msgs.msg import Joy

        axes, buttons = self.pad.reading(motions, held)
        msg = Joy(axes=axes, buttons=buttons)
        msg.header.stamp, msg.header.frame_id = self.node.get_clock().now().to_msg(), FRAME
        self.joy.publish(msg)

    def steer(self, fd: int) -> None:
        """Until Ctrl-D; TerminalGone when nobody can press it."""
        say(KEYS + "\n")
        sent, sent_s, shown_s = None, -1e9, -1e9
        while True:
            self.look_at_signals()
            now_s = time.monotonic()
            requests: list[str] = []
            if select.select([fd], [], [], max(0.0, min(sent_s + SEND_S - now_s, self.keyboard.changes_s(now_s))))[0]:
                keys = read_keys(fd)
                requests = self.keyboard.press(keys, time.monotonic())
                if HELP in keys:
                    say(f"\n{KEYS}\n")
                if END in keys:
                    say("\n")
                    return
            now_s = time.monotonic()
            # Two that say different things would make the dead-man flicker.
            rival = now_s - self.rival_s < RIVAL_S
            hands = Hands(False, {}) if rival else self.keyboard.hands(now_s)
            for request in requests:
                self.ask(request, hands, rival)
            if requests or hands != sent or now_s - sent_s >= SEND_S:
                if not rival:
                    self.send(("deadman",) if hands.held else (), hands.motions)
                sent, sent_s = hands, now_s
            if requests or now_s - shown_s >= SHOW_S:
                self.show(now_s, hands)
                shown_s = now_s

    def ask(self, request: str, hands: Hands, rival: bool) -> None:
        """Press and release a button."""
        if request == "stop":
            there = self.stopper.service_is_ready()
            self.tell("emergency stop" if there else "NO SAFETY NODE: USE THE HARDWARE EMERGENCY STOP")
            self.stopper.call_async(self.stopper.srv_type.Request())
        if rival:
            return
        if request in self.pad.layout.buttons:
            if request != "stop":
                self.tell(request)
            for pressed in ((request,), ()):
                self.send((*pressed, *(("deadman",) if hands.held else ())), hands.motions)
        elif request != "stop":
            file = self.pad.layout.name
            self.tell(f"{request} is on no button of the gamepad file '{file}'; use the panel, or gamepad:=keyboard")

    def tell(self, text: str) -> None:
        """A line that stays, above the one that changes."""
        self.shown = ""
        say(f"\r{text}\x1b[K\n")

    def stop(self) -> None:
        """Stop the robot for good: who steered it is gone."""
        asked = self.stopper.call_async(self.stopper.srv_type.Request())
        deadline_s = time.monotonic() + STOP_S
        while not asked.done() and time.monotonic() < deadline_s:
            time.sleep(WAIT_S)

    def show(self, now_s: float, hands: Hands) -> None:
        """One line, when it has changed."""
        from rlt_ros.core.episode import Outcome, Phase

        if now_s - self.rival_s < RIVAL_S:
            state = f"A GAMEPAD SENDS ON joy ({self.rival}): only the emergency stop works here"
        elif self.health is None or now_s - self.health_s > SILENT_S:
            state = f"{self.wanted} IS NOT HEARD: nothing moves"
        elif not self.health[0]:
            state = f"teleop_node: {self.health[1]}"
        elif hands.motions:
            state = "moving " + " ".join(f"{name}{'+' if v > 0 else '-'}" for name, v in hands.motions.items())
        elif hands.held:
            state = "kept in your hand" if self.keyboard.kept else "in your hand"
        else:
            state = "not in your hand"
        outcome = Outcome(self.episode.outcome)
        parts = [Phase(self.episode.phase).name + (f" {outcome.name}" if outcome is not Outcome.NONE else "")]
        parts += ["EMERGENCY STOP"] if self.safety.estop else []
        parts += ["Ctrl+R again to release it"] if self.keyboard.asks_again(now_s) else []
        parts += [state, "fast" if self.keyboard.fast else "slow"]
        parts += [f"held: {self.safety.reason}"] if self.safety.holding and not self.safety.estop else []
        line = " | ".join(parts)
        if line != self.shown:
            self.shown = line
            try:
                width = os.get_terminal_size(sys.stdout.fileno()).columns
            except OSError:
                width = 80
            say(f"\r{line[: max(1, (width or 80) - 1)]}\x1b[K")


def say(text: str) -> None:
    """Write to the terminal; TerminalGone when it is not there."""
    try:
        print(text, end="", flush=True)
    except OSError:
        raise TerminalGone("the terminal has gone: emergency stop") from None


def say_no_more() -> None:
    """What could not be written to the terminal would fail again at the end, and change the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):  # a file that it is redirected to stays
            os.dup2(nowhere, stream.fileno())


def read_keys(fd: int) -> list[str]:
    """Names of the keys that wait; TerminalGone when there can be no more."""
    try:
        data = os.read(fd, 4096)
        if data.endswith(b"\x1b") and select.select([fd], [], [], ESCAPE_S)[0]:
            data += os.read(fd, 4096)
    except OSError:
        data = b""
    if not data:
        raise TerminalGone("the terminal has gone: emergency stop")
    return keys_of(data.decode("utf-8", errors="ignore"))
