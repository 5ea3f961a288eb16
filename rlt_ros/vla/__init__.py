"""Frozen vision-language-action models behind one small interface.

:class:`rlt_ros.vla.frozen.FrozenVLA` is what the rest of the package uses, :class:`rlt_ros.vla.backend.Backend` what a
model must offer.
"""

__all__ = ["FrozenVLA", "VLAError", "load"]


def __getattr__(name: str):  # late: a command looks for a checkpoint (backend.py) without torch, which takes seconds
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlt_ros.vla import frozen

    return getattr(frozen, name)
