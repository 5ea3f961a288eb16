"""What `rlt bench` measures: one module a benchmark, each with `measure(args) -> {figure: value}`.

A benchmark that compares runs both sides in turns within one run: on a shared machine only the ratio repeats.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def machine() -> dict:
    """What the figures were measured on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}


def stage(text: str) -> None:
    """Say on standard error what is measured from now on, as benchmarks take minutes."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def in_turns(contestants: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call: a, b, c, a, b, c ... so that what slows the machine down slows all of them."""
    gc.collect()
    gc.freeze()  # as every node does: torch's million objects are not searched for garbage in the middle of a turn
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        if len(contestants) > 1:
            stage(f"turn {turn + 1} of {rounds}: {', '.join(contestants)}")
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(over, under))


def percentile(values: list[float], q: float) -> float:
    """Of a list that may be short: the nearest measured value that at least q per cent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(-(-len(ordered) * q // 100)) - 1)] if ordered else float("nan")
