"""The list of a session's episodes, `episodes.jsonl`: one JSON object a line. Imports no ROS."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "episodes.jsonl"


@dataclass
class EpisodeRecord:
    """One finished episode."""

    index: int  # 1, 2, 3 ... within the session
    outcome: str  # success | failure | timeout | aborted
    critical_steps: int  # control ticks from the hand-over to the end; 0: it never came to the hand-over
    total_steps: int  # control ticks from the start to the end
    interventions: int  # times that the human took over in the critical phase
    policy_version: int  # newest weights that acted in it; 0: warm-up, the VLA alone
    human_steps: int = 0  # control ticks of the critical phase that the human made
    end_s: float = 0.0  # ROS time of the end, s; 0: from a session that did not note it
    gate: dict[str, int] = field(default_factory=dict)  # what the gate refused, held or changed since the last

    @property
    def alone(self) -> bool:
        """A success without an intervention."""
        return self.outcome == "success" and not self.interventions


def append_episode(session: Path, record: EpisodeRecord) -> None:
    """Add one line to the session's list; the line is with the operating system when this returns.

    OSError when the disk refuses it; the list is then as it was.
    """
    append_line(session / FILE, json.dumps(asdict(record)))


def append_line(path: Path, text: str) -> None:
    """Add a line to a file, after ending a torn one: it would swallow this one. OSError leaves the file as it was."""
    line = memoryview((text + "\n").encode())
    with path.open("a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        if before:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = memoryview(b"\n" + line)
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(before)
            raise


def read_episodes(session: Path) -> list[EpisodeRecord]:
    """All finished episodes of a session, in order; a torn or damaged line is skipped."""
    path = session / FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(EpisodeRecord(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return records
