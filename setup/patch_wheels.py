"""Make the ROS wheels of a virtual environment usable for building messages.

The wheels' CMake files name the Python of the machine that built them (/opt/python/cpXY-cpXY/...). This rewrites those
paths to the interpreter that runs this script. Running it again changes nothing.
"""

import re
import sys
import sysconfig
from pathlib import Path

INCLUDE = re.compile(r"/opt/python/cp\d+-cp\d+/include/python[\d.]+")
PACKAGES = re.compile(r"/opt/python/cp\d+-cp\d+/lib/python[\d.]+/site-packages")


def patch(prefix: Path) -> int:
    """Rewrite every share/**/*.cmake below `prefix`; return how many files changed."""
    changed = 0
    for path in prefix.glob("share/**/*.cmake"):
        text = path.read_text(encoding="utf-8")
        patched = INCLUDE.sub(sysconfig.get_path("include"), text)
        patched = PACKAGES.sub(sysconfig.get_path("platlib"), patched)
        if patched != text:
            path.write_text(patched, encoding="utf-8")
            changed += 1
    return changed


if __name__ == "__main__":
    print(f"patched {patch(Path(sys.prefix))} CMake files of the ROS wheels")
