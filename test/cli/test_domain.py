"""Where a graph of this computer alone lives on DDS."""

import os
import socket
from pathlib import Path

import pytest

from rlt_ros.cli.domain import free_domain, stay_here

RANGE, PROFILES = "ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTDDS_DEFAULT_PROFILES_FILE"


@pytest.mark.parametrize(("given", "found"), [
    ({}, {RANGE: "SUBNET", PROFILES: "loopback.xml"}),
    ({RANGE: "SUBNET"}, {RANGE: "SUBNET"}),  # somebody wants the network
    ({PROFILES: "/my.xml"}, {RANGE: "LOCALHOST", PROFILES: "my.xml"}),
])
def test_what_the_environment_says_stands_and_else_it_is_this_computer_alone(monkeypatch, given, found):
    for name in (RANGE, PROFILES):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    stay_here()
    assert {name: Path(os.environ[name]).name for name in (RANGE, PROFILES) if name in os.environ} == found
    if not given:
        assert Path(os.environ[PROFILES]).is_file()


def test_a_domain_that_somebody_uses_is_not_taken():
    first = free_domain()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as used:
        used.bind(("", 7400 + 250 * first))
        assert free_domain() != first
