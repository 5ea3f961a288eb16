"""The layout for Foxglove names topics, fields and values that a recording has."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from sensor_msgs.msg import CompressedImage

from rlt_ros.nodes.recorder_node import TOPICS, RecorderNode, picture_topic, type_name
from rlt_ros.ros.definitions import ros2msg
from rlt_ros.sim.task import load_task

LAYOUT = json.loads((Path(__file__).resolve().parents[1] / "config" / "foxglove.json").read_text())
KINDS = {RecorderNode.place_of(topic): kind for topic, (kind, _) in TOPICS.items()}
ETHERNET = load_task("ethernet")
# Lists whose sizes a task decides.
SIZES = {"/proprio.values": ETHERNET.proprio_dim, "/command/executed.actions": ETHERNET.action_dim,
         "/vla/reference.actions": ETHERNET.action_dim}  # fmt: skip
# What the panels know, by the types in the source of Foxglove Studio when it was public and of Lichtblick, its fork:
# settings with another name would be ignored there without a word. The two call a panel's title differently.
TITLES = {"foxglovePanelTitle", "lichtblickPanelTitle"}
KNOWN = {
    "Image": {"imageMode"},
    "imageMode": {"imageTopic", "calibrationTopic"},
    "StateTransitions": {"isSynced", "paths"},
    "Plot": {"paths", "minXValue", "maxXValue", "minYValue", "maxYValue", "showLegend", "legendDisplay", "isSynced",
             "showPlotValuesInLegend", "showXAxisLabels", "showYAxisLabels", "xAxisVal", "followingViewWidth",
             "sidebarDimension"},
    "paths": {"value", "label", "enabled", "color", "timestampMethod"},
    "RawMessages": {"topicPath", "diffEnabled", "diffMethod", "diffTopicPath", "showFullMessageForDiff", "expansion"},
    "expansion": {"header"},
    "DiagnosticSummary": {"minLevel", "pinnedIds", "hardwareIdFilter", "topicToRender", "sortByLevel"},
}  # fmt: skip
CHOICES = {"timestampMethod": {"receiveTime", "headerStamp"}, "legendDisplay": {"floating", "top", "left", "none"},
           "xAxisVal": {"timestamp", "index", "custom", "currentCustom"}, "diffMethod": {"custom", "previous message"},
           "direction": {"row", "column"}, "header": {"c", "e"}}  # fmt: skip


def definitions(text: str) -> dict[str, list[str]]:
    """Name -> types of the fields, of a definition as MCAP keeps it; the first has the name ""."""
    found = {}
    for part in text.split("=" * 80 + "\n"):
        name, _, body = part.partition("\n") if part.startswith("MSG: ") else ("MSG: ", "", part)
        lines = [line.split("#")[0].split() for line in body.splitlines()]
        found[name.removeprefix("MSG: ")] = [re.split(r"[\[<]", words[0])[0] for words in lines if words]
    return found


@pytest.mark.parametrize("kind", [*dict.fromkeys(KINDS.values()), CompressedImage], ids=lambda kind: kind.__name__)
def test_the_recorded_definition_has_every_message_that_it_is_made_of(kind):
    found = definitions(ros2msg(type_name(kind)))
    named = {name.rpartition("/")[2] for name in found if name}
    made_of = {name.rpartition("/")[2] for types in found.values() for name in types}
    assert {name for name in made_of if name[0].isupper()} == named and "Header" in named


def panels(kind: str) -> list[dict]:
    return [panel for name, panel in LAYOUT["configById"].items() if name.split("!")[0] == kind]


def paths() -> list[str]:
    return [path["value"] for kind in ("Plot", "StateTransitions") for panel in panels(kind) for path in panel["paths"]]


def field_type(path: str) -> str:
    """Type of the field that a message path leads to; KeyError or IndexError when it leads nowhere."""
    topic, _, way = path.partition(".")
    field, _, index = way.partition("[")
    found = KINDS[topic].get_fields_and_field_types()[field]
    if index:
        assert found.startswith("sequence<"), f"{path}: {field} is no list"
        if int(index.rstrip("]")) >= SIZES[f"{topic}.{field}"]:
            raise IndexError(path)
        found = found.removeprefix("sequence<").rstrip(">")
    return found


@pytest.mark.parametrize("path", paths())
def test_path_leads_to_something_that_can_be_drawn(path):
    assert field_type(path) in {"uint8", "boolean", "string", "float", "double", "int64", "uint64"}


def test_a_path_that_leads_nowhere_would_be_noticed():
    for wrong in ("/episode/state.fase", "/nothing.phase"):
        with pytest.raises(KeyError):
            field_type(wrong)
    with pytest.raises(IndexError):
        field_type("/proprio.values[14]")


def test_pictures_are_those_of_the_task_and_other_panels_have_their_topics():
    shown = {panel["imageMode"]["imageTopic"] for panel in panels("Image")}
    assert shown == {picture_topic(camera) for camera in ETHERNET.cameras}
    assert {panel["topicPath"] for panel in panels("RawMessages")} <= set(KINDS)
    assert {panel["topicToRender"] for panel in panels("DiagnosticSummary")} == {"/diagnostics"}


def test_settings_have_the_names_and_choices_that_foxglove_knows():
    def check(kind: str, settings: dict) -> None:
        assert set(settings) <= KNOWN[kind] | TITLES, kind
        for name, value in settings.items():
            assert name not in CHOICES or value in CHOICES[name], f"{kind}.{name}: {value}"
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    check(name, part)

    def place(node: str | dict) -> None:
        if isinstance(node, dict):
            assert set(node) <= {"direction", "first", "second", "splitPercentage"}
            assert node["direction"] in CHOICES["direction"] and 0 < node.get("splitPercentage", 50) < 100
            place(node["first"])
            place(node["second"])

    assert set(LAYOUT) == {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}
    for name, settings in LAYOUT["configById"].items():
        check(name.split("!")[0], settings)
        assert len({settings[title] for title in TITLES}) == 1, f"{name}: two titles"
    place(LAYOUT["layout"])


def test_every_panel_has_its_place_and_every_place_its_panel():
    def leaves(tree) -> list[str]:
        return [tree] if isinstance(tree, str) else leaves(tree["first"]) + leaves(tree["second"])

    placed = leaves(LAYOUT["layout"])
    assert len(placed) == len(set(placed)) and set(placed) == set(LAYOUT["configById"])


@pytest.mark.parametrize(
    ("topic", "field", "prefix", "values"),
    [("/episode/state", "phase", "PHASE_", 4), ("/episode/state", "outcome", "OUTCOME_", 5),
     ("/command/executed", "source", "SOURCE_", 4)],
)  # fmt: skip
def test_values_have_names_in_the_recorded_definition(topic, field, prefix, values):
    """Foxglove takes the constants of the same type that stand right before a field for the names of its values."""
    kind = KINDS[topic]
    text = ros2msg(f"rlt_ros/msg/{kind.__name__}").split("=" * 80)[0]
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    index = lines.index(f"uint8 {field}")
    before = lines[index - values : index]
    assert [bool(re.fullmatch(rf"uint8 {prefix}\w+=\d", line)) for line in before] == values * [True]
    assert not lines[index - values - 1].startswith(f"uint8 {prefix}")
