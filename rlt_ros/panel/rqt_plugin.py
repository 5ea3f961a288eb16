"""The panel in rqt: menu Plugins > Robot Tools > RLT panel."""

import python_qt_binding  # noqa: F401 - first: qt.py then takes rqt's Qt
from rclpy.utilities import get_default_context
from rqt_gui_py.plugin import Plugin

from rlt_ros.panel.qt import QtCore
from rlt_ros.panel.widget import Panel


class RltPanel(Plugin):
    """Puts a Panel into rqt; its keys work while it has the focus, as other plugins have keys of their own."""

    def __init__(self, context) -> None:  # noqa: ANN001 - qt_gui.plugin_context.PluginContext
        super().__init__(context)
        self.setObjectName("RltPanel")
        # rqt's context knows the remappings that rqt was started with; the nodes are the panel's own all the same.
        self.panel = Panel(
            shortcut_context=QtCore.Qt.ShortcutContext.WidgetWithChildrenShortcut, context=get_default_context()
        )
        if context.serial_number() > 1:
            self.panel.setWindowTitle(f"{self.panel.windowTitle()} ({context.serial_number()})")
        context.add_widget(self.panel)

    def shutdown_plugin(self) -> None:
        """rqt closes the plugin."""
        self.panel.shutdown()
