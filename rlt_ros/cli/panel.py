"""Watch a session and press its buttons in a window; the nodes run elsewhere.

examples:
  ROS_DOMAIN_ID=37 rlt panel               # as rlt practice prints it
  rlt panel --session sessions/today       # the curves begin with the session's earlier episodes
  rlt panel --dark

Keys: S start, H hand over, A success, B failure, Backspace abort, Ctrl+Z undo, R reset, Space or Esc emergency stop,
Ctrl+R release it (asks back). Under rqt the same panel is the plugin "RLT panel".
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from rlt_ros.cli.arguments import namespace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rlt panel`."""
    colours = parser.add_mutually_exclusive_group()
    colours.add_argument("--dark", action="store_true", help="dark colours (default: as the desktop)")
    colours.add_argument("--light", action="store_true", help="light colours")
    parser.add_argument("--camera", default="", metavar="NAME", help="camera to show (default: wrist, else the first)")
    parser.add_argument("--namespace", type=namespace, default="", metavar="NS", help="namespace of the nodes")
    parser.add_argument("--session", type=Path, metavar="DIR", help="session folder, for the curves' earlier episodes")


def run(args: argparse.Namespace) -> int:
    """Show the panel until its window is closed; return the exit code."""
    if sys.platform == "linux" and not any(
        os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    ):
        raise RuntimeError(
            "there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set; run it in a desktop's terminal"
        )
    if args.session is not None and not args.session.is_dir():
        raise ValueError(f"there is no session folder {args.session}")
    from rlt_ros.panel import theme
    from rlt_ros.panel.qt import QtWidgets
    from rlt_ros.panel.widget import Panel

    app = QtWidgets.QApplication(["rlt panel"])
    if args.dark or args.light:
        app.setStyle("Fusion")
        app.setPalette(theme.palette(theme.DARK if args.dark else theme.LIGHT))
    panel = Panel(namespace=args.namespace, camera=args.camera, session=args.session)
    for number in (signal.SIGINT, signal.SIGTERM):  # Python looks at signals whenever the panel's clock ticks
        signal.signal(number, lambda *_: app.quit())
    panel.show()
    try:
        return app.exec()
    finally:
        panel.shutdown()
