"""Learns from the person's presses when the critical phase begins, says so, and in automatic mode hands over."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from std_srvs.srv import Trigger as TriggerSrv

from rlt_ros.core import handover
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.handover import Approach, Classifier, HandOverError, PressRecorder, Report, Settings, Trigger
from rlt_ros.core.latest import LatestWorker
from rlt_ros.data.handover import load_classifier, read_approaches, save_approach, save_classifier
from rlt_ros.msg import EpisodeState, HandOverBelief, RLState
from rlt_ros.ros import priority, qos
from rlt_ros.ros.conversions import header, state_from_msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.sim.task import load_task

HUMAN, SUGGEST, AUTOMATIC = "human", "suggest", "automatic"
KEPT = 500  # newest approaches that are learned from
ANSWER_S = 1.0  # a request without an answer for so long is made again, at the next frame


class HandoverNode(RltNode):
    """Record what is seen around each press, train between episodes in the background, and say what is believed.

    Subscribes: vla/rl_state (RLState), episode/state (EpisodeState).  Publishes: handover/belief (HandOverBelief).
    Calls: episode/hand_over (Trigger), in mode automatic only, and only once what was learned is good enough.
    Writes: <session>/handover/, see rlt_ros/data/handover.py.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        mode: str = parameter(
            HUMAN, "human: learn and say nothing; suggest: say it, the person hands over; automatic: hand over",
            choices=(HUMAN, SUGGEST, AUTOMATIC), live=True,
        )  # fmt: skip
        learn: bool = parameter(True, "record presses and train; false: use the session's classifier as it is")
        min_presses: int = parameter(20, "presses before it hands over by itself", low=handover.LEAST_PRESSES)
        min_recall: float = parameter(
            0.9, "of the presses, cross-validated, before it hands over by itself", low=0.0, high=1.0
        )
        max_false: float = parameter(
            0.05, "false hand-overs an episode, cross-validated, with which it still hands over by itself", low=0.0
        )
        held_s: float = parameter(
            0.2, "so long above the threshold makes a hand-over, two of three frames at 5 a second; about the person's"
            " reaction", unit="s", low=0.0, high=2.0,
        )  # fmt: skip
        within_s: float = parameter(0.3, "a hand-over so near to the press counts as its own", unit="s", low=0.0)
        margin_s: float = parameter(
            0.1, "frames so near to held_s before the press are not learned from", unit="s", low=0.0
        )
        seed: int = parameter(0, "which episodes are held out together", low=0)

    def on_configure_(self) -> None:
        p = self.params
        self.settings = Settings(p.held_s, p.within_s, p.margin_s, seed=p.seed)
        self.session = Path(p.session) if p.session else None
        self.proprio_dim = load_task(p.task).proprio_dim
        self.classifier: Classifier | None = None
        self.report: Report | None = None
        self.trigger: Trigger | None = None
        self.trouble = ""  # why there is no classifier
        self.unstored = ""  # what the disk said
        if self.session is None:
            if not p.learn:
                raise HandOverError("learn is false and there is no session to take a classifier from; set session")
        elif not p.learn:
            classifier, report = load_classifier(self.session)
            classifier.require(None, self.proprio_dim, f"session {p.session!r}: hand-over classifier")
            self.use(classifier, report)
            if p.mode == AUTOMATIC and (why := self.unfit()):
                raise HandOverError(f"session {p.session!r}: {why}; practise on, or hand over by hand (mode human)")
        self.recorder = PressRecorder(p.chunk_steps, self.control.period_s)
        self.episode = EpisodeState()
        self.press_tick = -1
        self.recording = self.pressed_itself = False
        self.tick, self.probability, self.suggested = -1, 0.0, False
        self.token_dim: int | None = None
        self.asked_s = -np.inf  # when the hand-over was asked for that has no answer yet
        self.hand_overs = 0
        self.approaches: list[Approach] = []
        self.ended: deque[Approach] = deque()  # not yet on the disk
        self.resumed = False
        self.trained_s = 0.0
        self.storing = threading.Lock()
        self.belief = self.publish(HandOverBelief, "handover/belief", qos.STATE)
        self.request = self.client(TriggerSrv, "episode/hand_over")
        self.states = self.subscribe(RLState, "vla/rl_state", self.on_state, qos.EVENT)
        self.subscribe(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.every(1.0, self.say, wall=True)
        if p.learn:
            self.worker = LatestWorker(
                "handover", self.learn, self.fail, prepare=lambda: priority.apply("background")
            )
            self.on_undo(self.worker.close)

    def on_activate_(self) -> None:
        if self.params.learn and self.session is not None:
            self.worker.put(True)

    def on_deactivate_(self) -> None:
        if self.params.learn and self.ended:
            self.store()

    def owed_ns(self) -> int | None:
        return self.now_ns() + 1 if self.asked_s > -np.inf else None

    def on_parameters_(self) -> None:
        self.say()

    # What is seen.

    def on_state(self, msg: RLState) -> None:
        frame = state_from_msg(msg, self.token_dim, self.proprio_dim)
        self.token_dim = len(frame.token)
        now_tick = self.control.tick(self.now_ns())
        if frame.tick > now_tick + self.params.chunk_steps:
            raise ValueError(f"RLState of tick {frame.tick} is {frame.tick - now_tick} ticks in the future;"
                             f" {self.clock_advice}")
        if now_tick - frame.tick > self.params.max_age_ticks or not self.recorder.add(frame, now_tick):
            return  # too old to be acted on, from before the episode, or between those that an approach has
        self.tick = frame.tick
        if self.classifier is None:
            return
        try:
            self.probability = self.classifier.probability(frame.token, frame.proprio)
        except HandOverError as error:
            self.drop(str(error))
            raise
        self.suggested = self.trigger.add(self.probability)
        self.say()
        if self.suggested and self.params.mode == AUTOMATIC and not self.waits():
            self.hand_over()

    def on_episode(self, msg: EpisodeState) -> None:
        before, self.episode = self.episode, msg
        running = msg.phase in (Phase.APPROACH, Phase.CRITICAL)
        same = (msg.episode, msg.start_tick) == (before.episode, before.start_tick)
        if not same:
            self.finish(before)
            # Of an episode that is under way already the beginning is missing.
            self.recording = msg.phase == Phase.APPROACH
            self.press_tick, self.pressed_itself = -1, False
            self.tick, self.probability, self.suggested = -1, 0.0, False
            if self.trigger is not None:
                self.trigger.reset()
            self.recorder.begin(msg.episode, msg.start_tick if running else -1)
        if msg.phase != Phase.APPROACH:
            self.asked_s = -np.inf  # nothing is left to ask for
        if msg.critical_tick >= 0:
            self.press_tick = msg.critical_tick
        if not running and msg.committed:
            self.finish(msg)
        if not same or msg.phase != before.phase:
            self.say()

    def finish(self, msg: EpisodeState) -> None:
        """An episode is over: keep what tells something of the person. Harmless without one."""
        recording, self.recording = self.recording, False
        if not recording:
            return
        approach = self.recorder.finish(self.press_tick)
        unpressed_by_a_person = self.press_tick < 0 and self.params.mode == AUTOMATIC
        told = msg.outcome not in (Outcome.NONE, Outcome.ABORTED)  # an aborted one may have been begun by mistake
        if approach is None or not told or self.pressed_itself or unpressed_by_a_person or not self.params.learn:
            return
        self.ended.append(approach)
        self.worker.put(True)

    # What is done about it.

    def unfit(self) -> str:
        """Why what was learned may not hand over by itself; "" when it may."""
        p = self.params
        if self.classifier is None:
            return self.trouble or "there is no classifier yet"
        return handover.not_good_enough(self.report, p.min_presses, p.min_recall, p.max_false)

    def waits(self) -> str:
        """Why it does not hand over by itself; "" when it does."""
        if not self.request.service_is_ready():
            return "there is no service episode/hand_over; is episode_node alive?"
        if not self.states.get_publisher_count():
            return "nobody sends vla/rl_state; is vla_node alive?"
        return self.unfit()

    def hand_over(self) -> None:
        if self.episode.phase != Phase.APPROACH or self.now_s() - self.asked_s < ANSWER_S:
            return
        self.asked_s = self.now_s()
        self.pressed_itself = True  # until it is refused: what is not certain is not learned from
        future = self.request.call_async(TriggerSrv.Request())
        asked = (self.episode.episode, self.episode.start_tick)
        future.add_done_callback(lambda future: self.on_answer(future, asked))

    def on_answer(self, future, asked: tuple[int, int]) -> None:
        answer = None if future.cancelled() else future.result()
        with self._lock:
            self.asked_s = -np.inf
            if answer is not None and answer.success:
                self.hand_overs += 1
            elif answer is not None and asked == (self.episode.episode, self.episode.start_tick):
                self.pressed_itself = False  # somebody was quicker
        self.give_leave()

    def say(self) -> None:
        r = self.report
        waits = self.waits() if self.params.mode == AUTOMATIC else ""
        msg = HandOverBelief(
            header=header(self.now_ns()), tick=self.tick, episode=self.episode.episode, mode=self.params.mode,
            waits=waits,
        )  # fmt: skip
        if self.classifier is not None:
            msg.trained, msg.probability, msg.suggested = True, self.probability, self.suggested
            msg.presses, msg.recall, msg.false_per_episode = r.presses, r.recall, r.false_per_episode
            msg.timing_error = float(np.nan_to_num(r.timing_error_s))
        self.belief.publish(msg)

    # The worker's thread.

    def learn(self, _news: bool) -> None:
        """Put on the disk what ended, and train with it."""
        if not self.resumed and self.session is not None:
            self.resumed = True
            self.approaches = read_approaches(self.session, self.get_logger().warning)[-KEPT:]
        self.store()
        presses = sum(a.pressed for a in self.approaches)
        if presses < handover.LEAST_PRESSES:
            self.trouble = f"{presses} presses, {handover.LEAST_PRESSES} are needed to train"
            return
        begin_s = time.monotonic()
        try:
            classifier, report = handover.train(self.approaches, self.settings)
            classifier.require(self.token_dim, self.proprio_dim, f"what {presses} presses taught")
        except HandOverError as error:
            self.drop(str(error))
            return
        with self._lock:
            self.use(classifier, report)
            self.trained_s = time.monotonic() - begin_s
        self.get_logger().info(
            f"hand-over learned from {report.presses} presses: recall {report.recall:.2f}, "
            f"{report.false_per_episode:.2f} false an episode, timing error {report.timing_error_s:+.2f} s"
        )
        if self.session is not None:
            try:
                save_classifier(self.session, classifier, report)
            except OSError as error:
                self.unstored = f"the hand-over classifier is not saved ({error}); make room in {self.session}"

    def store(self) -> None:
        with self.storing:  # the worker's and, at the end, the node's own
            while self.ended:
                approach = self.ended.popleft()
                self.approaches = [*self.approaches, approach][-KEPT:]
                if self.session is None:
                    continue
                try:
                    save_approach(self.session, approach)
                    self.unstored = ""
                except OSError as error:  # it is learned from all the same
                    self.unstored = f"a press is not stored ({error}); make room in {self.session}"
                    self.get_logger().error(self.unstored)

    def use(self, classifier: Classifier, report: Report) -> None:
        self.classifier, self.report, self.trouble = classifier, report, ""
        self.trigger = Trigger(classifier.threshold, classifier.needed, classifier.window)
        self.probability, self.suggested = 0.0, False

    def drop(self, why: str) -> None:
        """Go on without a classifier."""
        with self._lock:
            self.classifier = self.report = self.trigger = None
            self.probability, self.suggested, self.trouble = 0.0, False, why
        self.get_logger().warning(why)

    def on_diagnostics_(self) -> dict:
        p, r = self.params, self.report
        waits = self.waits()
        # In the other modes nobody waits for it.
        self.problem = f"does not hand over by itself: {waits}" if p.mode == AUTOMATIC and waits else self.unstored
        values = {"mode": p.mode, "approaches": len(self.approaches), "hand_overs": self.hand_overs, "waits": waits}
        if r is not None:
            values |= {
                "presses": r.presses,
                "recall": round(r.recall, 3),
                "precision": round(r.precision, 3),
                "false_per_episode": round(r.false_per_episode, 3),
                "timing_error_s": round(r.timing_error_s, 3),
                "timing_spread_s": round(r.timing_spread_s, 3),
                "calibration_error": round(r.calibration_error, 3),
                "training_s": round(self.trained_s, 2),
            }
        return values
