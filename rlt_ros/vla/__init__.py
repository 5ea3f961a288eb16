"""Frozen vision-language-action models behind one small interface.

:class:`rlt_ros.vla.frozen.FrozenVLA` is what the rest of the package uses, :class:`rlt_ros.vla.backend.Backend` what a
model must offer.
"""

from rlt_ros.vla.frozen import FrozenVLA, VLAError, load

__all__ = ["FrozenVLA", "VLAError", "load"]
