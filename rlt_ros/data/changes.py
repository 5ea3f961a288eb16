"""What was changed while a session ran, `changes.jsonl`: one JSON object a line. Imports no ROS."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rlt_ros.data.episodes import append_line

FILE = "changes.jsonl"


def record_change(session: str | Path, node: str, name: str, value: object) -> None:
    """Note that `node` goes on with another `value` of the parameter `name`; without a session ("") nothing is."""
    if not str(session):
        return
    change = {"time": round(time.time(), 3), "node": node, "name": name, "value": value}
    append_line(Path(session) / FILE, json.dumps(change))


def read_changes(session: str | Path) -> list[dict]:
    """All changes of a session in order: time (s since 1970), node, name, value. A torn or damaged line is skipped."""
    path = Path(session) / FILE
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
