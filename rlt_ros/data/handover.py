"""What a session keeps of its hand-overs, `handover/`: a file an episode, the classifier and its report. No ROS.

    approaches/<episode>-<start tick>.safetensors   what was seen around a press; written once, never changed
    classifier.safetensors, report.json             of the last training
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rlt_ros.core.handover import Approach, Classifier, HandOverError, Report, report_from_text, report_text
from rlt_ros.data.files import write_whole

FOLDER, REPORT = "handover", "report.json"
ARRAYS = ("ticks", "heard", "tokens", "proprios")


def save_approach(session: Path, approach: Approach) -> Path:
    """Write it; it is on the disk when this returns. OSError when the disk refuses; nothing is left then."""
    from safetensors.numpy import save

    about = {name: getattr(approach, name) for name in ("episode", "start_tick", "press_tick", "period_s")}
    arrays = {name: np.ascontiguousarray(getattr(approach, name)) for name in ARRAYS}
    path = Path(session) / FOLDER / "approaches" / f"{approach.episode:06d}-{approach.start_tick}.safetensors"
    write_whole(path, save(arrays, {"approach": json.dumps(about)}))
    return path


def read_approaches(session: Path, warn=lambda text: None) -> list[Approach]:
    """All of them, by episode; a file that cannot be read is skipped, after `warn(text)`."""
    found = []
    for path in sorted((Path(session) / FOLDER / "approaches").glob("*.safetensors")):
        try:
            found.append(_read_approach(path))
        except HandOverError as error:
            warn(f"{error}; it is left out")
    return found


def _read_approach(path: Path) -> Approach:
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
        about = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["approach"])
        arrays = load(data)
        return Approach(**about, **{name: arrays[name] for name in ARRAYS})  # whatever else there is
    except HandOverError as error:
        raise HandOverError(f"{path}: {error}") from error
    except Exception as error:  # whatever a parser may raise on foreign bytes
        raise HandOverError(f"{path}: not a recorded approach ({type(error).__name__}: {error})") from error


def save_classifier(session: Path, classifier: Classifier, report: Report) -> None:
    """Replace the session's classifier and its report; OSError when the disk refuses."""
    folder = Path(session) / FOLDER
    write_whole(folder / "classifier.safetensors", classifier.pack())
    write_whole(folder / REPORT, report_text(report, classifier.threshold).encode())


def load_classifier(session: Path) -> tuple[Classifier, Report]:
    """The session's classifier and what it is worth; HandOverError says what is missing or wrong."""
    folder = Path(session) / FOLDER
    path = folder / "classifier.safetensors"
    if not path.is_file():
        raise HandOverError(f"session {str(session)!r} has no hand-over classifier {path}: hand over in some episodes"
                            " of practice first, or train it from their presses: rlt train handover --session DIR")
    classifier = Classifier.unpack(path.read_bytes(), str(path))
    try:
        report = report_from_text((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, HandOverError) as error:
        raise HandOverError(f"{folder / REPORT}: {error}; rlt train handover --session DIR writes it") from error
    return classifier, report


def read_report(session: Path) -> Report | None:
    """What the session's classifier is worth; None when none was trained. OSError, HandOverError."""
    path = Path(session) / FOLDER / REPORT
    if not path.is_file():
        return None
    try:
        return report_from_text(path.read_text(encoding="utf-8"))
    except (HandOverError, UnicodeDecodeError) as error:
        raise HandOverError(f"{path}: {error}; rlt train handover --session DIR writes it again") from error
