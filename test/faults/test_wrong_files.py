"""Each file of wrong_files.py, read by a safety node."""

import pytest
from wrong_files import WrongFile, wrong_files

from rlt_ros.nodes.safety_node import SafetyNode


@pytest.mark.parametrize("fault", wrong_files(), ids=lambda fault: fault.name)
def test_wrong_file_stops_the_gate_at_configure_with_what_is_wrong(graph, tmp_path, fault: WrongFile):
    node = graph.add(SafetyNode("safety_node", cli_args=fault.arguments(tmp_path, spoilt=True)))
    node.trigger_configure()
    node.trigger_activate()
    assert fault.said in node.configure_error
    assert not node.active and node.count_publishers("command/executed") == 0
    right = graph.add(SafetyNode("safety_node", cli_args=fault.arguments(tmp_path, spoilt=False)))
    right.trigger_configure()
    assert right.configure_error == ""
