"""Where a graph of this computer alone lives on DDS: a domain that nobody else has, and the loopback interface.

Imports no ROS: both must be settled before rclpy is imported.
"""

import os
import socket

from rlt_ros.sim.task import task_folder

HIGHEST_DOMAIN = 232  # of which the UDP ports exist


def stay_here() -> None:
    """Let this process, and those that it starts, talk within this computer; what the environment says stands."""
    ours = "ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTDDS_DEFAULT_PROFILES_FILE"
    if not any(name in os.environ for name in ours):
        os.environ.update(zip(ours, ("SUBNET", str(task_folder().parent / "loopback.xml")), strict=True))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


def wrong_domain() -> str:
    """What is wrong with ROS_DOMAIN_ID, which DDS says badly or not at all; "" when nothing is."""
    given = os.environ.get("ROS_DOMAIN_ID", "")
    if not given or given.isascii() and given.isdigit() and int(given) <= HIGHEST_DOMAIN:
        return ""
    return f"ROS_DOMAIN_ID is {given!r}, expected a number from 0 to {HIGHEST_DOMAIN}; unset it, or export another"


def free_domain() -> int:
    """A ROS_DOMAIN_ID that nobody on this machine uses: the UDP port of its discovery can be bound."""
    for offset in range(100):
        domain = 1 + (os.getpid() + offset) % 100
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain))  # the ports that the DDS standard gives to a domain
                return domain
            except OSError:
                continue
    raise RuntimeError("the ROS domains from 1 to 100 are all in use on this machine; set ROS_DOMAIN_ID")
