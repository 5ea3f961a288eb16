"""The command `rlt`: finds the subcommand, turns what it does into an exit code.

A subcommand is a module rlt_ros/cli/<name>.py with a docstring (its first line is the description, the rest comes after
the arguments: examples), `add_arguments(parser)` and `run(args) -> int | None`. It is imported only when it is asked
for, so that `rlt --help` needs neither torch nor ROS.

Exit codes: 0 done, 1 the work failed (with one line why), 2 wrong usage, 130 interrupted.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt_ros import __version__

# name -> one line; in the order in which a user meets them
COMMANDS = {
    "doctor": "check this machine and say what to do about what is missing",
    "practice": "practise a task in the simulator (on a robot: ros2 launch)",
    "deploy": "run a practised session without a person (on a robot: ros2 launch)",
    "panel": "watch a running session and press its buttons, in a window",
    "teleop": "steer the robot and label episodes by keyboard, without a gamepad",
    "eval": "measure how often and how fast a policy succeeds",
    "demos": "record, import, export or inspect demonstrations",
    "train": "train a VLA or its RL token on demonstrations",
    "bench": "measure control jitter, learner speed, latency",
    "report": "turn a session into a report",
}

EXAMPLES = """examples:
  rlt doctor
  rlt practice --task ethernet --episodes 40 --session sessions/first
  rlt eval --task ethernet --policy sessions/first --episodes 50 --json result.json
"""


class UsageError(Exception):
    """Arguments that argparse accepts but that make no sense together; ends with exit code 2."""


def main(argv: list[str] | None = None) -> int:
    """Run `rlt` with `argv` (default: the command line) and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="rlt", description=_overview(), epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"rlt_ros {__version__}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="command", help="see above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="rlt <command> --help tells")
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    try:
        chosen = parser.parse_args(argv)
        return _run(chosen.command, chosen.arguments)
    except SystemExit as end:  # argparse: 0 after --help, 2 after wrong usage
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # rlt ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(name: str, argv: list[str]) -> int:
    try:
        with _interruptible():
            module = importlib.import_module(f"rlt_ros.cli.{name}")
    except ModuleNotFoundError as error:
        print(f"rlt {name}: {error}; run it after `make setup`, or see `rlt doctor`", file=sys.stderr)
        return 1
    summary, _, details = (module.__doc__ or COMMANDS[name]).partition("\n")
    parser = argparse.ArgumentParser(prog=f"rlt {name}", description=summary, epilog=details.strip("\n"),
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    module.add_arguments(parser)
    args = parser.parse_args(argv)
    if wrong := _wrong(name, args):
        parser.error(wrong)
    try:
        with _interruptible():
            return module.run(args) or 0
    except UsageError as error:
        parser.error(str(error))
    except (OSError, ValueError, RuntimeError) as error:
        # These carry a sentence for the user; anything else is our mistake and shows its traceback.
        if os.environ.get("RLT_DEBUG"):
            raise
        print(f"rlt {name}: {error}", file=sys.stderr)
        return 1


def _wrong(name: str, args: argparse.Namespace) -> str:
    """What would fail after all the work only, or without a word; "" when there is nothing."""
    for option in ("json", "plot"):
        path = getattr(args, option, None)
        if isinstance(path, Path) and not path.absolute().parent.is_dir():
            return f"--{option} {path}: there is no folder {path.absolute().parent}"
    if name == "doctor" or "ROS_DOMAIN_ID" not in os.environ:  # doctor says more of it
        return ""
    from rlt_ros.cli.domain import wrong_domain

    return wrong_domain()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Whatever is raised after a Ctrl-C is a KeyboardInterrupt: within an import it becomes an error of that import."""
    came = []

    def interrupt(number: int, _frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else ignored, as under nohup, or another's
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except (Exception, SystemExit) as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["Let a robot practise the critical phase of a task.", "", "commands:", *lines])


if __name__ == "__main__":  # python -m rlt_ros.cli.main, as launchers of several processes want it
    from rlt_ros.cli import main as itself  # the module whose UsageError subcommands raise; this one is another

    sys.exit(itself.main())
