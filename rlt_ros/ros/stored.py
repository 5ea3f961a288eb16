"""Transitions of a recorded session, from its journal."""

from collections.abc import Callable, Iterator
from pathlib import Path

from rclpy.serialization import deserialize_message

from rlt_ros.core.transition import Transition
from rlt_ros.data.journal import read_journal
from rlt_ros.msg import Transition as TransitionMsg
from rlt_ros.ros.conversions import transition_from_msg


def journal_of(session: Path) -> Path:
    """The journal's folder; ValueError when `session` is no session with one."""
    folder = Path(session) / "journal"
    if not folder.is_dir():
        raise ValueError(
            f"session {str(session)!r} has no journal ({folder}); expected the folder of a practice session"
        )
    return folder


def stored_transitions(session: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[Transition]:
    """All transitions of a session in order; `warn` is told of those that cannot be used, which are skipped.

    ValueError when the folder is no session with a journal.
    """
    folder = journal_of(session)
    for entry in read_journal(folder, warn=warn):
        try:
            yield transition_from_msg(deserialize_message(entry.data, TransitionMsg))
        except ValueError as error:
            warn(f"{folder}: {error}; skipped")
