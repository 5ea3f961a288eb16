"""Which frames the VLA looks at."""

import threading

import numpy as np
import pytest

from rlt_ros.vla.schedule import Forecast, FrameJoiner, FrameQueue, FrameSet, Latency, Schedule

MS = 1_000_000
PICTURE = np.zeros((2, 2, 3), np.uint8)


def test_pictures_of_the_same_moment_make_a_set():
    joiner = FrameJoiner(["wrist", "base"], 20 * MS, 10 * MS)
    assert joiner.add("wrist", 100 * MS, PICTURE) is None
    assert joiner.waiting_for() == ["base"]
    frame = joiner.add("base", 100 * MS, PICTURE)
    assert (frame.tick, frame.stamp_ns, set(frame.images)) == (5, 100 * MS, {"wrist", "base"})


def test_pictures_too_far_apart_make_none_and_nothing_is_used_twice():
    joiner = FrameJoiner(["wrist", "base"], 20 * MS, 10 * MS)
    joiner.add("wrist", 100 * MS, PICTURE)
    assert joiner.add("base", 115 * MS, PICTURE) is None
    assert joiner.add("wrist", 120 * MS, PICTURE).stamp_ns == 115 * MS  # of two, the older one's moment
    assert joiner.add("wrist", 121 * MS, PICTURE) is None


def test_cameras_that_never_match_are_told_with_how_far_they_are_apart():
    joiner = FrameJoiner(["wrist", "base"], 20 * MS, 10 * MS)
    for frame in range(30):  # 15 ms and 18 ms apart, in turns
        assert joiner.add("wrist", (1_000 + 33 * frame) * MS, PICTURE) is None
        assert joiner.add("base", (1_015 + 33 * frame) * MS, PICTURE) is None
    assert "camera 'wrist' is 15 ms behind" in joiner.trouble() and "max_skew_s (0.01 s)" in joiner.trouble()
    assert joiner.unmatched == 58
    assert joiner.add("wrist", (1_015 + 33 * 29 + 1) * MS, PICTURE) is not None
    assert joiner.trouble() == "" and joiner.skew_ns == MS


def test_slower_camera_leaves_pictures_of_the_faster_one_over_and_that_is_no_trouble():
    joiner = FrameJoiner(["wrist", "base"], 20 * MS, 10 * MS)
    sets = 0
    for frame in range(1, 100):
        sets += joiner.add("wrist", 20 * frame * MS, PICTURE) is not None
        if frame % 3 == 0:
            sets += joiner.add("base", (20 * frame + 1) * MS, PICTURE) is not None
        assert joiner.trouble() in ("", "no picture yet from base")
    assert sets == 33 and joiner.unmatched == 66


def test_clock_that_was_set_back_does_not_stop_the_sets():
    joiner = FrameJoiner(["wrist", "base"], 20 * MS, 10 * MS)
    for begin in (3_600_000, 1_000):
        assert joiner.add("wrist", begin * MS, PICTURE) is None
        assert joiner.add("base", begin * MS, PICTURE).stamp_ns == begin * MS
    assert joiner.add("wrist", 500 * MS, PICTURE) is None  # out of order, not a clock
    assert joiner.add("base", 500 * MS, PICTURE) is None


@pytest.mark.parametrize(
    ("interval", "first", "wanted"),
    [
        (2, 1, {5}),  # the simulator: every second tick, on the tick
        (2, 0, {4}),  # the last frame before it
        (1, 0, {5}),
        (5, 3, {3}),
    ],
)
def test_last_frame_before_the_needed_tick_gets_the_full_inference(interval, first, wanted):
    schedule = Schedule(chunk_steps=10, latency_ticks=5)
    frames = range(first, first + 200, interval)
    full = [tick for tick in frames if schedule.is_full(tick)]
    assert {tick % 10 for tick in full[2:]} == wanted
    assert len(full) >= 19


def test_each_frame_of_cameras_slower_than_chunks_is_for_a_reference():
    schedule = Schedule(chunk_steps=10, latency_ticks=5)
    assert [schedule.is_full(tick) for tick in range(101, 301, 20)][1:] == [True] * 9  # at 500 Hz, cameras at 25 Hz


def test_waiting_reference_goes_first_and_only_the_newest_is_made():
    queue = FrameQueue()
    queue.put(FrameSet(1, 0, {}), full=False)
    queue.put(FrameSet(5, 0, {}), full=True)
    queue.put(FrameSet(15, 0, {}), full=True)
    queue.put(FrameSet(17, 0, {}), full=False)
    full, others = queue.take()
    assert full.tick == 15 and others == [] and queue.dropped == 1
    full, others = queue.take()
    assert full is None and [frame.tick for frame in others] == [1, 17]


def test_closing_lets_a_waiting_worker_go():
    queue = FrameQueue()
    taken = []
    worker = threading.Thread(target=lambda: taken.append(queue.take()))
    worker.start()
    queue.close()
    worker.join(5.0)
    assert taken == [None]


def test_a_reference_does_not_wait_for_frames_that_can_wait():
    queue, room = FrameQueue(), [2]
    for tick in (1, 3, 5):
        queue.put(FrameSet(tick, 0, {}), full=False)
    assert [frame.tick for frame in queue.take(lambda: room[0])[1]] == [1, 3]
    room[0] = 0  # the next reference is due
    taken = []
    worker = threading.Thread(target=lambda: taken.append(queue.take(lambda: room[0])))
    worker.start()
    queue.put(FrameSet(15, 0, {}), full=True)
    worker.join(5.0)
    assert taken[0][0].tick == 15
    room[0] = 5
    assert [frame.tick for frame in queue.take(lambda: room[0])[1]] == [5]


def test_forecast_leaves_room_for_what_is_done_before_the_next_reference():
    forecast = Forecast(chunk_steps=10, period_ns=20 * MS)
    assert forecast.room(0) == Forecast.ALL  # nothing is known yet
    for tick in (95, 97, 99, 101, 103):
        forecast.arrived(tick, tick == 95, tick * 20 * MS + 30 * MS)
    assert forecast.room(103 * 20 * MS) == Forecast.ALL
    forecast.took(60 * MS, 3)
    due = 105 * 20 * MS + 30 * MS
    assert forecast.room(due - 65 * MS) == 3
    assert forecast.room(due - 19 * MS) == 0
    assert forecast.room(due + 30 * MS) == 0  # it may still come
    assert forecast.room(due + 41 * MS) == Forecast.ALL  # the cameras have stopped


# --- a VLA that is slower than promised


@pytest.mark.parametrize(("ticks", "asked", "ahead"), [(5, 5, 5), (7, 3, 7), (10, 0, 10)])
def test_a_slower_vla_is_asked_earlier(ticks, asked, ahead):
    schedule = Schedule(chunk_steps=10, latency_ticks=5)
    schedule.expect(ticks)
    full = [tick for tick in range(100, 130) if schedule.is_full(tick)]
    assert [tick % 10 for tick in full] == [asked] * 3
    assert schedule.ahead(full[0]) == ahead and (full[0] + ahead) % 10 == 0


def test_a_frame_beside_the_grid_serves_the_boundary_after_its_latency():
    schedule = Schedule(chunk_steps=10, latency_ticks=5)
    assert [schedule.ahead(tick) for tick in (94, 95, 96)] == [6, 5, 14]


def test_a_vla_slower_than_a_chunk_is_given_any_frame():
    schedule = Schedule(chunk_steps=10, latency_ticks=5)
    schedule.expect(11)
    assert schedule.always and all(schedule.is_full(tick) for tick in range(20))
    schedule.expect(10)
    assert not schedule.always and sum(schedule.is_full(tick) for tick in range(20, 40)) == 2


def latency(*took_ms, promised=5):
    made = Latency(20 * MS, promised)
    for duration in took_ms:
        made.took(duration * MS)
    return made


def test_latency_is_what_was_promised_until_some_was_measured():
    assert latency().ticks == 5 and latency(900, 60, 60, 60).ticks == 5
    assert latency(60, 60, 60, 60, 60).ticks == 4  # with the way to the actor, just over three


def test_the_first_inferences_of_a_model_are_no_latency():
    assert latency(4000, 900, *[60] * 20).ticks == 4


def test_a_pause_of_the_machine_is_no_latency():
    assert latency(*[60] * 20, 700, *[60] * 5).ticks == 4


def test_a_latency_that_one_in_three_has_is_one_and_that_one_in_ten_has_is_none():
    assert latency(*[60, 60, 110] * 10).ticks == 6
    assert latency(*[60, 60, 60, 60, 60, 60, 60, 60, 60, 110] * 3).ticks == 4


def test_a_vla_that_became_slower_is_believed():
    assert latency(*[60] * 50, *[250] * 50).ticks == 13


def test_frames_from_the_future_are_no_latency():
    assert latency(*[-500] * 10).ticks == 1  # the way to the actor
