"""Turn a practice session into one self-contained HTML page.

examples:
  rlt report sessions/first
"""

import argparse
from pathlib import Path

from rlt_ros.data.episodes import read_episodes
from rlt_ros.report import EVALUATIONS, read_rate_hz, summary, write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rlt report`."""
    parser.add_argument("session", type=Path, metavar="SESSION", help="session folder")


def run(args: argparse.Namespace) -> int:
    """Write report.html into the session folder; a folder that is no session is an error."""
    marks = "episodes.jsonl", "config.yaml", EVALUATIONS
    if args.session.is_dir() and not any((args.session / name).is_file() for name in marks):
        raise ValueError(f"{args.session} is no session: it has none of {', '.join(marks)}; `rlt practice` makes one")
    path = write_report(args.session)
    print(summary(read_episodes(args.session), read_rate_hz(args.session)))
    print(f"report: {path}")
    return 0
