"""Start Python programs as copies of a process that has their libraries loaded already.

Three nodes need torch, and the VLA transformers besides: many seconds on two cores when each process loads its own, and
again after each death. A zygote loads them once and forks. Only a process with one thread may be copied: where a
library has started others, the program is executed after all.

    with Zygote(["numpy", "torch"], log) as zygote:
        process = zygote.start("actor_node", ["lib/rlt_ros/actor_node", "--ros-args"], environment, log)

A copy is a child of the process that asked for it (the zygote's fork of a fork falls to its subreaper), so that it is
waited for, and dies with its parent, as any other. Linux only.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36  # linux/prctl.h
_MESSAGE = 200_000  # bytes of a request at most: a command line and an environment
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # a fork copies one thread only
_PATIENCE_S = 0.02  # requests come in bursts; an import would stand before the next one for seconds
_ANSWER_S = 60.0  # an import on a busy machine may stand before it


class Copy:
    """A process that a zygote started; what the supervisor needs of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit code (negative: the signal), or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code; subprocess.TimeoutExpired after `timeout` seconds."""
        if self.poll() is None:
            handle = os.pidfd_open(self.pid)
            try:
                if not select.select([handle], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout)
            finally:
                os.close(handle)
        return self.poll()


class Zygote:
    """The side of the process that wants copies. What goes wrong on the other side stands in the log."""

    def __init__(self, modules: Sequence[str], log: Path) -> None:
        """Start it; it imports `modules` one after another as long as nobody asks for a copy."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_ANSWER_S)
        command = [sys.executable, "-m", __name__, str(other.fileno()), *modules]
        with other, open(log, "ab") as file:
            # A group of its own: Ctrl-C is for the process that started it.
            self._process = subprocess.Popen(command, env=os.environ | _ENVIRONMENT, stdout=file, stderr=file,
                                             stdin=subprocess.DEVNULL, pass_fds=[other.fileno()], process_group=0)

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it; its copies go on."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str], log: Path,
              modules: Sequence[str] = ()) -> Copy:
        """Run the script argv[0] in a copy that has `modules` loaded; OSError when the zygote does not answer.

        name: what `top` shows. environment: all of it. log: where the copy's output is appended.
        """
        request = {"name": name, "argv": list(argv), "environment": dict(environment), "cwd": os.getcwd(),
                   "log": str(log), "modules": list(modules)}
        open(log, "ab").close()  # a folder that cannot be written is this side's error
        with _no_interrupt():  # between a fork and hearing of it: nobody would stop that copy
            try:
                self._socket.send(json.dumps(request).encode())
                answer = self._socket.recv(_MESSAGE)
            except OSError as error:
                self._process.kill()  # its answer, should it come yet, would be taken for that to the next request
                raise OSError(
                    f"{name} was not started: the zygote (pid {self._process.pid}) does not answer: {error}"
                ) from error
        if not answer:
            raise OSError(f"{name} was not started: the zygote ended with exit code {self._process.wait()}")
        return Copy(json.loads(answer)["pid"])


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(connection: socket.socket, modules: Sequence[str]) -> None:
    """Load `modules`, and fork for each request that comes in between or later, until the other side is gone."""
    waiting = list(modules)
    while True:
        if waiting and not select.select([connection], [], [], _PATIENCE_S)[0]:
            load(waiting.pop(0))
            continue
        request = connection.recv(_MESSAGE)
        if not request:
            return
        wanted = json.loads(request)
        for module in wanted["modules"]:
            load(module)
        alone = len(os.listdir("/proc/self/task")) == 1
        pid = fork()
        if pid == 0:
            connection.close()
            become(wanted, alone)
            return
        connection.send(json.dumps({"pid": pid}).encode())


def load(module: str) -> None:
    """Import a module; one that cannot be imported is the copy's to complain of."""
    with contextlib.suppress(ImportError):
        importlib.import_module(module)


def fork() -> int:
    """Fork twice, so that the copy is the subreaper's child: its process id, or 0 in the copy itself."""
    gc.collect()
    gc.freeze()  # the copies' collections leave these objects' pages shared
    told, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        own = os.getpid()
        pid = os.fork()
        if pid:
            os.write(tell, array.array("i", [pid]).tobytes())
            os._exit(0)
        os.close(told)
        os.close(tell)
        while os.getppid() == own:  # until it has a new parent, which it may ask for
            time.sleep(0.0005)
        return 0
    os.close(tell)
    with open(told, "rb") as pipe:
        pid = array.array("i", pipe.read())[0]
    os.waitpid(middle, 0)
    return pid


def become(wanted: dict, alone: bool) -> None:
    """Be the program that was asked for, as if it had been executed; what it raises, SystemExit too, is the caller's.

    alone: nothing but this thread was lost in the fork; otherwise the program is executed indeed.
    """
    os.setpgid(0, 0)
    log = os.open(wanted["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["cwd"])
    if not alone:
        print("the zygote has threads; without it", file=sys.stderr, flush=True)
        os.execve(sys.executable, [sys.executable, *wanted["argv"]], wanted["environment"])
    show_as(wanted["name"], wanted["argv"])
    sys.argv = wanted["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def show_as(name: str, argv: Sequence[str]) -> None:
    """Be `name` in top and pgrep, and `argv`, as far as it fits over the zygote's own, in ps and pgrep -f."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
    shown = b"\0".join(argument.encode() for argument in argv)[: end - start - 1]
    if start:
        ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
