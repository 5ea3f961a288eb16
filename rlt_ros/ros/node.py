"""The base of every node: a lifecycle node whose author writes wiring only.

    class SafetyNode(RltNode):
        @dataclass(frozen=True, kw_only=True)
        class Parameters(SharedParameters):
            max_force: float = parameter(description="force above which the robot stops", unit="N", low=0.0)

        def on_configure_(self) -> None:
            self.gate = SafetyGate(...self.params.max_force...)
            self.commands = self.publish(ActionChunk, "command/executed", qos.COMMAND)
            self.subscribe(ActionChunk, "command/candidate", self.on_candidate, qos.COMMAND)
            self.every_tick(self.on_tick, phase=0.5)

What is made in on_configure_ is destroyed on clean-up, what is made in on_activate_ on deactivation. Callbacks, timers
and ticks run only while the node is active, and one at a time (a lock), so a node's own state needs no locks. A
subscription's callback that raises ValueError has met a malformed message: it is counted, logged and dropped. Anything
else that is raised ends the process with exit code 1.
"""

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from math import inf
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock as ClockMsg
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import ControlClock
from rlt_ros.core.streams import ONE_CLOCK, SYNCHRONISE
from rlt_ros.data.changes import record_change
from rlt_ros.ros import parameters, priority, qos
from rlt_ros.ros.conversions import header, stamp_ns
from rlt_ros.ros.loop import LoopThread, TickLoop
from rlt_ros.ros.parameters import ParameterError, SharedParameters
from rlt_ros.ros.simulated_clock import CLOCK, FOREVER_NS, LEAVE

_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
_WALL = Clock(clock_type=ClockType.STEADY_TIME)
_WARN_EVERY_S = 2.0  # a peer that sends garbage at 50 Hz must not fill the log
_AHEAD_S = 0.5  # what is stamped further in the future comes from a clock that is wrong, or was
# A node that has just been activated says oftener how it is, until all is well or so long: others wait for it.
_NEWS_EVERY_S, _NEWS_FOR_S = 0.1, 5.0


class RltNode(LifecycleNode):
    """Lifecycle node with parameters from a dataclass, diagnostics at 1 Hz, and hooks that may simply raise.

    Attributes:
        params: instance of `Parameters`, from configure on.
        control: ControlClock of the control rate, from configure on.
        active: callbacks run.
        problem: set it to a sentence to turn the diagnostics to WARN; empty: all is well.
        error: the same, to ERROR: the node lives, but cannot do its job.
        failure: the exception for which the process should end, or None.
        configure_error: one line why configure failed last, or "".
        place: kind of work (rlt_ros/ros/priority.py) of the process once the node is active; None: not ours to say.
        simulated_time: use_sim_time, from configure on: ROS time, ticks and time-outs follow /clock.
    """

    Parameters: type = SharedParameters

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.params: Any = None
        self.control: ControlClock | None = None
        self.active = False
        self.problem = self.error = ""
        self.failure: BaseException | None = None
        self.configure_error = ""
        self.place: str | None = None
        self.rejected: Counter[str] = Counter()  # topic -> malformed messages dropped
        self._lock = threading.RLock()
        self._made: dict[str, list[Callable[[], None]]] = {"configure": [], "activate": []}  # stage -> what undoes it
        self._stage = ""
        self._loops: list[TickLoop] = []
        self._apart: list[LoopThread] = []  # what whoever spins this node does not call
        self._news_due = False  # diagnostics are to be sent when there is time for them
        self.simulated_time = False
        self._leave: Any = None  # publisher, with simulated time
        self._left_ns: int | None = None  # the leave that was given last
        self._clock_ns = self._first_ns = 0  # what /clock said last, and first, with simulated time
        self._heard: list[Any] = []  # subscriptions
        self._values = self._declare()
        self.add_on_set_parameters_callback(self._on_set_parameters)
        # Not below "~": diagnostics have one well-known place (REP-107).
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.EVENT)
        self.create_timer(1.0, self.give_news, clock=_WALL)

    # Hooks for the author of a node. Each may raise; the exception becomes the transition's failure.

    def on_configure_(self) -> None:
        """Make publishers, subscriptions and objects from self.params."""

    def on_activate_(self) -> None:
        """Begin to work."""

    def on_deactivate_(self) -> None:
        """Stop working: ticks and callbacks have ended already; a last message may be sent."""

    def on_cleanup_(self) -> None:
        """Forget what on_configure_ made and the base does not know of: files, threads, processes."""

    def on_parameters_(self) -> None:
        """Live parameters in self.params have changed."""

    def on_diagnostics_(self) -> dict[str, Any]:
        """Values for this node's diagnostics, called once a second while configured.

        Added by the base: period errors of the loops, `rejected TOPIC` (malformed messages), and `nobody_sends`, the
        topics that this node listens to and nobody publishes.
        """
        return {}

    def owed_ns(self) -> int | None:
        """ROS time in ns that a simulated clock must not reach before this node has got or done something more.

        None when it waits for nothing; its ticks are known to the base. Asked after each callback and tick, and in
        give_leave().
        """
        return None

    # What the author calls from the hooks.

    def publish(self, msg_type: type, topic: str, profile: QoSProfile) -> Any:
        """Make a publisher; send with `.publish(msg)`."""
        publisher = self.create_publisher(msg_type, topic, profile)
        self.on_undo(lambda: self.destroy_publisher(publisher))
        return publisher

    def subscribe(self, msg_type: type, topic: str, callback: Callable[[Any], None], profile: QoSProfile,
                  raw: bool = False) -> Any:
        """Call `callback(msg)` for each message while active; latched topics are delivered while inactive too.

        raw: `callback` gets the CDR bytes.
        """
        latched = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL

        def deliver(msg: Any) -> None:
            with self._lock:
                timeless = self.simulated_time and self.now_ns() == 0  # without a clock nothing has an age
                if not latched and (timeless or not self.active):
                    return
                try:
                    callback(msg)
                except ValueError as error:
                    self.reject(topic, error)
                self.give_leave()

        subscription = self.create_subscription(msg_type, topic, self._guard(deliver), profile, raw=raw)
        self._heard.append(subscription)
        self.on_undo(lambda: (self._heard.remove(subscription), self.destroy_subscription(subscription)))
        return subscription

    def reject(self, topic: str, error: Exception) -> None:
        """Count and log a message on `topic` that cannot be used."""
        self.rejected[topic] += 1
        self.get_logger().warning(f"dropped a message on {topic} ({self.rejected[topic]} so far): {error}",
                                  throttle_duration_sec=_WARN_EVERY_S)

    def trigger(self, name: str, action: Callable[[], str | None], always: bool = False) -> Any:
        """Offer a std_srvs/Trigger. `action` returns what to say; a ValueError or RuntimeError becomes a refusal.

        always: also while the node is inactive.
        """

        def answer(_request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            try:
                if not self.active and not always:
                    raise RuntimeError(f"{self.get_name()} is not active")
                response.message = action() or "done"
                response.success = True
            except (ValueError, RuntimeError) as error:
                response.message = str(error)
            return response

        return self.service(Trigger, name, answer)

    def service(self, srv_type: type, name: str, callback: Callable[[Any, Any], Any]) -> Any:
        """Offer a service, in any state; `callback(request, response)` returns the response."""

        def serve(request: Any, response: Any) -> Any:
            with self._lock:
                return callback(request, response)

        service = self.create_service(srv_type, name, self._guard(serve))
        self.on_undo(lambda: self.destroy_service(service))
        return service

    def client(self, srv_type: type, name: str) -> Any:
        """Make a service client; use `.call_async(request)` and never wait in a callback."""
        client = self.create_client(srv_type, name)
        self.on_undo(lambda: self.destroy_client(client))
        return client

    def every(self, period_s: float, callback: Callable[[], None], wall: bool = False) -> Any:
        """Call `callback()` every `period_s` seconds while active, in the executor.

        wall: of real time, also where time is simulated: for what is computed, not for what is waited for.
        """

        def fire() -> None:
            with self._lock:
                if self.active:
                    callback()
                    self.give_leave()

        guarded = self._guard(fire)
        # rclpy hands a TimerInfo to a callback that takes arguments, as `guarded` does.
        timer = self.create_timer(period_s, lambda: guarded(), clock=_WALL if wall else None)
        self.on_undo(lambda: self.destroy_timer(timer))
        return timer

    def every_tick(self, callback: Callable[[int], Any], phase: float = 0.0, apart: bool = False) -> TickLoop:
        """Call `callback(tick)` once a control tick while active, `phase` of a period after the tick begins.

        Whoever spins the node calls it, between two messages: keep callbacks short in a node that ticks. What a
        callback knows may spare a wake-up (`hurry` and `done` of what is returned). The loop's period errors appear in
        the diagnostics. With simulated time it is called when /clock says so.

        apart: for long ticks, in a thread of their own: messages are received meanwhile, and the node itself guards
        what both sides touch.
        """

        def fire(tick: int) -> None:
            with nullcontext() if apart else self._lock:
                if self.active:
                    callback(tick)

        loop = TickLoop(self._guard(fire), self.control, phase, self.now_s)
        if apart and not self.simulated_time:
            thread = LoopThread(loop, self.now_ns)
            self._apart.append(thread)
            self.on_undo(lambda: (thread.stop(), self._apart.remove(thread)))
        else:
            self._loops.append(loop)
            self.on_undo(lambda: (loop.stop(), self._loops.remove(loop)))
        if self._stage == "activate":
            self._start_loops()
        return loop

    def _start_loops(self) -> None:
        for loop in self._loops:
            loop.start()
        for thread in self._apart:
            thread.start()
        self._advance()

    def _advance(self) -> None:
        """Call the ticks that are due, unless /clock does."""
        if not self.simulated_time:
            for loop in tuple(self._loops):
                loop.advance(self.now_ns())

    def left_s(self) -> float:
        """Seconds until a tick is due, for which whoever spins this node is to call run_due(); inf without one."""
        due_ns = [loop.next_ns for loop in self._loops if loop.next_ns is not None]
        return (min(due_ns) - self.now_ns()) * 1e-9 if due_ns and not self.simulated_time else inf

    def run_due(self) -> None:
        """Call the ticks that are due, and what is done when there is time."""
        self._advance()
        if self._news_due and self._has_time():
            self._news_due = False
            self._publish_diagnostics()

    def on_undo(self, action: Callable[[], Any]) -> None:
        """Call `action()` when what the present hook makes is to be undone, without the lock: for threads."""
        self._made[self._stage or "configure"].append(action)

    def now_ns(self) -> int:
        """ROS time in ns."""
        # rclpy's own clock may skip what it has not come to yet: its subscription keeps the newest message only. Without
        # simulated time it is the system's, a fortieth of the time without rclpy's objects around it.
        return self._clock_ns if self.simulated_time else time.time_ns()

    def now_s(self) -> float:
        """Seconds for time-outs, of a clock that nobody sets; with simulated time since the first /clock."""
        return (self._clock_ns - self._first_ns) * 1e-9 if self.simulated_time else time.monotonic()

    def _on_clock(self, msg: ClockMsg) -> None:
        with self._lock:
            self._clock_ns = stamp_ns(msg.clock)
            self._first_ns = self._first_ns or self._clock_ns
            for loop in self._loops:
                loop.advance(self._clock_ns)
            self.give_leave()

    def give_leave(self, again: bool = False) -> None:
        """Tell a simulated clock how far it may go; without one, nothing. For what a callback started in a thread.

        again: say it even if it has been said, as a sign of life.
        """
        if self._leave is None:
            return
        with self._lock:
            moments = [loop.next_ns for loop in self._loops if loop.next_ns is not None]
            if self.active and (owed_ns := self.owed_ns()) is not None:
                moments.append(owed_ns - 1)
            until_ns = min(moments, default=FOREVER_NS)
            if (again or until_ns != self._left_ns) and (moments or self._left_ns is not None):
                self._left_ns = until_ns
                self._leave.publish(header(until_ns, self.get_fully_qualified_name()))

    def expect_recent(self, what: str, tick: int, most: int | None) -> None:
        """ValueError when `tick` is more than `most` ticks ago (None: no matter): `what` came too late to be acted on;
        or when it is half a second in the future: what is kept by its tick would be used when nobody expects it."""
        age = self.control.tick(self.now_ns()) - tick
        if most is not None and age > most:
            raise ValueError(f"{what} of tick {tick} is {age} ticks old on arrival, expected at most {most};"
                             f" {self.clock_advice} or find what delays it")
        if -age * self.control.period_s > _AHEAD_S:
            raise ValueError(f"{what} of tick {tick} is {-age * self.control.period_s:.1f} s ahead of this computer's"
                             f" clock, expected at most {_AHEAD_S} s; {self.clock_advice}")

    @property
    def clock_advice(self) -> str:
        """What to do about stamps that do not fit this node's time."""
        return ONE_CLOCK if self.simulated_time else SYNCHRONISE

    def fail(self, error: BaseException) -> None:
        """End the process with exit code 1 because of `error`; safe from any thread."""
        if self.failure is None:
            self.failure = error
            text = "".join(traceback.format_exception(error))
            self.get_logger().fatal(f"{type(error).__name__}: {error}\n{text}")

    # Lifecycle transitions. rclpy swallows what they raise, so they do not raise.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if super().on_activate(state) != _SUCCESS:
            return _FAILURE
        return self._transition("activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._transition("deactivate", self._deactivate)
        super().on_deactivate(state)
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("cleanup", self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("shutdown", self.close)

    def close(self) -> None:
        """Deactivate and clean up from whatever state; what one step raises does not stop the next."""
        for step in ([self._deactivate] if self.active else []) + ([self._clean_up] if self.params else []):
            try:
                step()
            except Exception as error:
                self.fail(error)

    def _configure(self) -> None:
        self._values = {name: self.get_parameter(name).value for name in self._values}
        self.params = parameters.build(self.Parameters, self._values | self._undeclared(), self.get_name())
        self.control = ControlClock(self.params.rate_hz) if hasattr(self.params, "rate_hz") else None
        self.simulated_time = bool(self.get_parameter("use_sim_time").value)
        self._clock_ns = self._first_ns = 0
        self._stage = "configure"
        try:
            if self.simulated_time:
                self._leave, self._left_ns = self.publish(Header, LEAVE, qos.REPLAY), None
                self.on_undo(lambda: setattr(self, "_leave", None))
                clock = self.create_subscription(ClockMsg, CLOCK, self._guard(self._on_clock), qos.RECORD)
                self.on_undo(lambda: self.destroy_subscription(clock))
            self.on_configure_()
        except BaseException:
            self._undo_all("configure")
            self.params = None
            raise

    def _activate(self) -> None:
        self._stage = "activate"
        try:
            with self._lock:
                self.on_activate_()
                self.active = True
        except BaseException:
            self._undo_all("activate")
            raise
        self._start_loops()
        self.give_leave()
        self._take_place()
        self._tell_when_well()

    def _tell_when_well(self) -> None:
        """Say it when the node is active and has what it needs, not up to a second later."""
        until_s = time.monotonic() + _NEWS_FOR_S

        def tell() -> None:
            if self._publish_diagnostics() == DiagnosticStatus.OK or time.monotonic() > until_s:
                timer.cancel()

        timer = self.every(_NEWS_EVERY_S, tell, wall=True)

    def _take_place(self) -> None:
        """Among the processes of the machine. Not before: the robot waits for who has just started."""
        if self.place is not None:
            priority.apply_to_process(self.place)
        p = self.params
        for refused in priority.realtime(p.realtime_priority, p.lock_memory, p.cpus):
            self.get_logger().warning(refused)

    def _deactivate(self) -> None:
        with self._lock:
            self.active = False  # stop accepting first
        for loop in (*self._loops, *self._apart):
            loop.stop()
        self.give_leave()
        try:
            with self._lock:
                self.on_deactivate_()
        finally:
            self._undo_all("activate")

    def _clean_up(self) -> None:
        try:
            with self._lock:
                self.on_cleanup_()
        finally:
            self._undo_all("configure")
            self.params = None

    def _transition(self, name: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
            if name == "configure":
                self.configure_error = ""
            return _SUCCESS
        except Exception as error:
            line = f"{type(error).__name__}: {error}" if not isinstance(error, ParameterError) else str(error)
            if name in ("configure", "activate"):
                self.configure_error = f"{name} failed: {line}"
            details = "" if isinstance(error, ParameterError) else "\n" + traceback.format_exc()
            self.get_logger().error(f"{name} failed: {line}{details}")
            return _FAILURE
        finally:
            self._stage = ""

    # Parameters

    def _declare(self) -> dict[str, Any]:
        """Declare the parameters of the dataclass; return name -> value as given (None: not given)."""
        values: dict[str, Any] = {}
        for name, spec in parameters.specs(self.Parameters).items():
            if spec.type is dict:  # a tree of names that only the file knows
                values |= {key: None for key in self._parameter_overrides if key.startswith(name + ".")}
            else:
                values[name] = None
        table = parameters.specs(self.Parameters)
        for name in values:
            spec = table.get(name)
            # Typing is ours: rclpy's would refuse `50` for 50.0 with an exception that ends the constructor.
            descriptor = ParameterDescriptor(dynamic_typing=True, description=spec.description if spec else "",
                                             additional_constraints=spec.constraints if spec else "")
            given = name in self._parameter_overrides
            default = None if spec is None or given or spec.default is parameters.MISSING else spec.default
            self.declare_parameter(name, default if default != [] else None, descriptor)
        return values

    def _undeclared(self) -> dict[str, Any]:
        """What a file or command line gave that this node does not have."""
        return {name: item.value for name, item in self._parameter_overrides.items() if name not in self._values}

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        """Refuse what is wrong, and what may not change while configured."""
        changed = {item.name: item.value for item in changes if item.name in self._values}
        table = parameters.specs(self.Parameters)
        try:
            for name in changed:
                if self.params is not None and not (name in table and table[name].live):
                    raise ParameterError(f"parameter '{name}' cannot change while {self.get_name()} is configured;"
                                         " change its file and restart, or clean up first")
                if name in table and self.params is None:
                    parameters.check(table[name], changed[name])
            if self.params is not None and any(item.name == "use_sim_time" for item in changes):
                raise ParameterError(f"parameter 'use_sim_time' cannot change while {self.get_name()} is configured")
            if self.params is not None and changed:
                with self._lock:
                    values = self._values | changed
                    self.params = parameters.build(self.Parameters, values, self.get_name())
                    changed = {name: value for name, value in changed.items() if value != self._values[name]}
                    self._values = values
                    self.on_parameters_()
                self._record(changed)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _record(self, changed: dict[str, Any]) -> None:
        """Note in the session what was changed while it runs; outside the lock, as no tick may wait for a disk."""
        try:
            for name, value in changed.items():
                record_change(self.params.session, self.get_name(), name, value)
        except OSError as error:
            self.get_logger().warning(f"the change of {', '.join(changed)} is not noted in the session: {error}")

    # The rest

    def _undo_all(self, stage: str) -> None:
        while self._made[stage]:
            self._made[stage].pop()()

    def _guard(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Record what `callback` raises, so that the process ends cleanly and with code 1."""

        def guarded(*args: Any) -> Any:
            try:
                return callback(*args)
            except Exception as error:
                self.fail(error)
                return args[1] if len(args) == 2 else None  # a service must answer something

        return guarded

    def _has_time(self) -> bool:
        """Whether no tick is due soon: saying how a node is takes milliseconds, which none should wait for."""
        return not self._loops or self.left_s() > self.control.period_s / 2

    def give_news(self) -> None:
        """Publish the diagnostics, or after the next tick where that is due soon; nothing is put off twice."""
        put_off, self._news_due = self._news_due, False
        if put_off or self._has_time():
            self._publish_diagnostics()
        else:
            self._news_due = True

    def _publish_diagnostics(self) -> bytes:
        """Say how the node is; the level that was said."""
        self.give_leave(again=True)
        state = self._state_machine.current_state[1]
        with self._lock:
            values = self.on_diagnostics_() if self.params is not None else {}
        for loop in (*self._loops, *(thread.loop for thread in self._apart)):
            values |= {name: round(value, 3) for name, value in loop.statistics.summary().items()}
        values |= {f"rejected {topic}": count for topic, count in self.rejected.items()}
        values["nobody_sends"] = ", ".join(s.topic_name for s in self._heard if not s.get_publisher_count())
        level, message = DiagnosticStatus.OK, state
        if self.failure is not None or self.configure_error or self.error:
            failed = "" if self.failure is None else str(self.failure)
            level, message = DiagnosticStatus.ERROR, self.configure_error or failed or self.error
        elif self.problem:
            level, message = DiagnosticStatus.WARN, self.problem
        status = DiagnosticStatus(level=level, name=self.get_fully_qualified_name().lstrip("/"), message=message,
                                  hardware_id="rlt_ros",
                                  values=[KeyValue(key=str(k), value=str(v)) for k, v in values.items()])
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)
        return level
