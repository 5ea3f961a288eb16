"""Turn a practice session into one self-contained HTML page.

examples:
  rlt report sessions/first
"""

import argparse
from pathlib import Path

from rlt_ros.data.episodes import read_episodes
from rlt_ros.report import summary, write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rlt report`."""
    parser.add_argument("session", type=Path, metavar="SESSION", help="session folder")


def run(args: argparse.Namespace) -> int:
    """Write report.html into the session folder; a folder that is no session is an error."""
    path = write_report(args.session)
    print(summary(read_episodes(args.session)))
    print(f"report: {path}")
    return 0
