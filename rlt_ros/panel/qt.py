"""The Qt modules of whoever runs the panel: rqt brings its own binding, a window of our own takes qtpy's.

Two bindings in one process crash, so what is loaded already decides.
"""

import sys

try:
    if "python_qt_binding" in sys.modules:
        from python_qt_binding import QtCore, QtGui, QtWidgets
    else:
        try:
            from qtpy import QtCore, QtGui, QtWidgets
        except ImportError:  # a robot where ROS came from apt and nothing from PyPI
            from python_qt_binding import QtCore, QtGui, QtWidgets
except ImportError as error:
    raise RuntimeError(
        f"no Qt for Python: {error}; pip install -r setup/requirements.txt, or apt install python3-python-qt-binding"
    ) from None

Signal = QtCore.Signal
QShortcut = getattr(QtGui, "QShortcut", None) or QtWidgets.QShortcut  # it moved from Qt 5 to Qt 6

__all__ = ["QShortcut", "QtCore", "QtGui", "QtWidgets", "Signal"]
