"""Message definitions as text, in the form that MCAP calls `ros2msg`."""

import re
from pathlib import Path

from ament_index_python.packages import get_package_share_directory

_SEPARATOR = "=" * 80
_PRIMITIVES = {"bool", "byte", "char", "string", "wstring", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def ros2msg(name: str) -> str:
    """The definition of message `package/msg/Name`, followed by those of all messages that it is made of.

    Raises FileNotFoundError or PackageNotFoundError when a definition is not installed.
    """
    definitions: dict[str, str] = {}
    _collect(name, definitions)
    first, *others = definitions.values()
    names = list(definitions)[1:]
    return first + "".join(f"\n{_SEPARATOR}\nMSG: {_short(n)}\n{text}" for n, text in zip(names, others, strict=True))


def _collect(name: str, definitions: dict[str, str]) -> None:
    if name in definitions:
        return
    package, _, message = name.split("/")
    text = (Path(get_package_share_directory(package)) / "msg" / f"{message}.msg").read_text(encoding="utf-8")
    definitions[name] = text
    for line in text.splitlines():
        words = line.split("#")[0].split()
        kind = re.split(r"[\[<]", words[0])[0] if words else ""  # without the bounds of a list or a string
        if kind and kind not in _PRIMITIVES:
            other, _, own = kind.rpartition("/")  # package/Type, or Type of the same package
            _collect(f"{other or package}/msg/{own}", definitions)


def _short(name: str) -> str:
    return name.replace("/msg/", "/")
