"""The files by which rqt finds the panel; rqt itself comes with ROS from apt only."""

import ast
import json
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ET.parse(ROOT / "plugin.xml").getroot().find("class")


def test_the_plugin_names_a_class_that_is_there():
    module, name = PLUGIN.get("type").rsplit(".", 1)
    source = ast.parse((ROOT / Path(*module.split("."))).with_suffix(".py").read_text())
    assert name in {node.name for node in source.body if isinstance(node, ast.ClassDef)}
    assert PLUGIN.get("base_class_type") == "rqt_gui_py::Plugin"


def test_the_package_tells_rqt_of_the_plugin():
    package = ET.parse(ROOT / "package.xml").getroot()
    assert package.find("export/rqt_gui").get("plugin") == "${prefix}/plugin.xml"


def test_the_perspective_opens_the_plugin():
    manager = json.loads((ROOT / "config" / "rlt_panel.perspective").read_text())["groups"]["pluginmanager"]
    running = ast.literal_eval(manager["keys"]["running-plugins"]["repr"])
    assert running == {f"rlt_ros/{PLUGIN.get('name')}": [1]}
