"""Who runs first on a busy machine, with no rights that a fresh machine does not give, and with them where it does.

Three kinds of work share the cores:

    control      what the robot waits for at a tick or, the VLA, at a chunk: may interrupt the others at once
    ordinary     what a person or a picture waits for
    background   the learner: takes what is left over

Linux interrupts a thread for one that has just woken up when the newcomer asks for shorter slices (6.12 and newer). On
older kernels the niceness is left. Measured in docs/decisions/0013.
"""

import ctypes
import os
import platform
import struct
import threading
from dataclasses import dataclass

# Number of the system call sched_setattr; Python has no function for it.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
_MCL_CURRENT, _MCL_FUTURE = 1, 2  # linux/mman.h


@dataclass(frozen=True)
class Kind:
    """Scheduling policy, niceness and slice (0: the kernel's own) of one kind of work."""

    policy: int
    nice: int
    slice_ns: int


KINDS = {
    "control": Kind(os.SCHED_OTHER, 0, 1_500_000),
    "ordinary": Kind(os.SCHED_OTHER, 5, 5_000_000),
    "background": Kind(os.SCHED_BATCH, 19, 20_000_000),
}


def apply(kind: str, thread: int = 0) -> None:
    """Make a thread (0: the calling one; new threads inherit) work of `kind`, as far as this kernel knows how to.

    Takes no rights: nothing here raises a priority above that of an ordinary process. KeyError on an unknown kind.
    """
    wanted = KINDS[kind]
    try:
        os.sched_setscheduler(thread, wanted.policy, os.sched_param(0))
        if wanted.nice > os.getpriority(os.PRIO_PROCESS, thread):
            os.setpriority(os.PRIO_PROCESS, thread, wanted.nice)
        _set_slice(thread, wanted)
    except OSError:
        pass  # an older kernel, or a sandbox: fair shares then, which `rlt doctor` tells


def apply_to_process(kind: str) -> None:
    """apply() to every thread of this process that was not made nicer than the others."""
    for thread in _threads():
        apply(kind, thread)


def _threads() -> list[int]:
    # A thread that was made nicer has its reason.
    own = os.getpriority(os.PRIO_PROCESS, os.getpid())
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    return [thread for thread in threads if os.getpriority(os.PRIO_PROCESS, thread) <= own]


def _set_slice(thread: int, kind: Kind) -> None:
    # struct sched_attr: size, policy, flags, nice, priority, runtime (the slice), deadline, period, util_min, util_max
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    attributes = struct.pack("=IIQiIQQQII", 56, kind.policy, 0, nice, 0, kind.slice_ns, 0, 0, 0, 0)
    if _SCHED_SETATTR is not None and ctypes.CDLL(None).syscall(_SCHED_SETATTR, thread, attributes, 0) != 0:
        raise OSError("sched_setattr was refused")


def leave_realtime() -> None:
    """Take back a real-time priority that this thread has from whoever started the process: a start computes for
    seconds, before which, at such a priority, whoever moves the robot already would have to wait."""
    if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def realtime_allowed(priority: int) -> bool:
    """Try SCHED_FIFO in a thread that ends with it: limits, capabilities and sandboxes all have a say."""
    allowed = []

    def attempt() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))  # of this thread alone
            allowed.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return bool(allowed)


def realtime(priority: int, lock_memory: bool, cpus: list[int]) -> list[str]:
    """Give the threads of this process SCHED_FIFO `priority` (0: leave it), lock its memory, and tie it to `cpus`
    (empty: any). Threads that were made nicer than the others are left out.

    Returns what was refused, each as a sentence with its remedy: a practice on a machine without these rights goes on.
    """
    refused = []
    threads = _threads()
    if priority:
        try:
            for thread in threads:
                os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))
        except OSError as error:
            refused.append(f"realtime_priority {priority} was refused ({error.strerror}): allow it with a line"
                           f" '@realtime - rtprio {priority}' in /etc/security/limits.d, or set it to 0")
    if lock_memory and ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        refused.append(f"lock_memory was refused ({os.strerror(ctypes.get_errno())}): allow it with a line"
                       " '@realtime - memlock unlimited' in /etc/security/limits.d, or set it to false")
    if cpus:
        try:
            for thread in threads:
                os.sched_setaffinity(thread, cpus)
        except OSError as error:
            refused.append(f"cpus {list(cpus)} were refused ({error.strerror}); this machine has"
                           f" {sorted(os.sched_getaffinity(0))}")
    return refused
