"""Message definitions as text, in the form that MCAP calls `ros2msg`."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory

_SEPARATOR = "=" * 80


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
        if words and words[0].count("/") == 1:  # package/Type field; a type without a slash is a primitive here
            _collect("/msg/".join(words[0].split("[")[0].split("/")), definitions)


def _short(name: str) -> str:
    return name.replace("/msg/", "/")
