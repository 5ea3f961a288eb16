"""rlt_ros: let a robot practise the critical phase of a task with the RL token method (arXiv 2604.23073)."""

from importlib.metadata import PackageNotFoundError, version
from pkgutil import extend_path

# The messages are generated into the install space; this joins them to the source tree when that comes first on the
# path, so that edits and new files need no build.
__path__ = extend_path(__path__, __name__)

try:
    __version__ = version("rlt_ros")  # from package.xml, by way of colcon or pip
except PackageNotFoundError:
    __version__ = "not installed"
