"""Checks of arguments that several subcommands have; what is wrong is wrong usage, exit code 2."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable


def require_device(device: str) -> None:
    """UsageError when torch cannot compute there."""
    from rlt_ros.cli.main import UsageError
    from rlt_ros.core import device as devices

    try:
        devices.require_device(device, "--device")
    except ValueError as error:
        raise UsageError(str(error)) from None


def at_least(low: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `low` on."""

    def parse(text: str) -> int:
        if not text.lstrip("+-").isdecimal() or int(text) < low:
            raise ArgumentTypeError(f"got {text!r}, expected a whole number, at least {low}")
        return int(text)

    return parse


def namespace(text: str) -> str:
    """A type for argparse: the namespace of nodes."""
    if not re.fullmatch(r"/?([a-z_]\w*(/[a-z_]\w*)*)?", text, re.ASCII | re.IGNORECASE):
        raise ArgumentTypeError(f"got {text!r}, expected letters, digits and _, such as left or /cell_1/left")
    return text
