"""Frozen vision-language-action models behind one small interface: see :class:`rlt_ros.vla.frozen.FrozenVLA`."""

from rlt_ros.vla.frozen import FrozenVLA, VLAError, load

__all__ = ["FrozenVLA", "VLAError", "load"]
