"""A function of tensors without Python between its operations: the same numbers, in 3/4 of the time on a CPU.

An update of these small networks is several hundred small operations, gradients included, and a good part of its time
is Python calling them. A recording is the list of the operations, for inputs of the same shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


class Recorded:
    """function(inputs by name) -> tuple of tensors; its gradients may be taken inside, with torch.autograd.grad.

    What the function reads other than its inputs is taken as it is when the recording is made: at the first call with
    these shapes that comes after `after` others, as it takes a second or two. Where recording does not work the function itself is called, and `recorded` is False.
    """

    def __init__(self, function: Callable[[dict[str, Tensor]], tuple[Tensor, ...]], after: int = 0) -> None:
        self._function, self._left = function, after
        self._names: list[str] = []
        self._shapes: list[torch.Size] = []
        self._run: Callable[..., tuple[Tensor, ...]] | None = None
        self.recorded = True

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        if self._left > 0:
            self._left -= 1
            return self._function(inputs)
        if self.recorded and (self._run is None or [t.shape for t in inputs.values()] != self._shapes):
            self._record(inputs)
        if not self.recorded:
            return self._function(inputs)
        with torch.no_grad():
            return self._run(*[inputs[name] for name in self._names])

    def _record(self, inputs: dict[str, Tensor]) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        self._names, self._shapes = list(inputs), [t.shape for t in inputs.values()]
        values = [inputs[name].detach() for name in self._names]
        try:
            operations = make_fx(lambda *values: self._function(dict(zip(self._names, values, strict=True))))(*values)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of jit's age
                self._run = torch.jit.trace(lambda *values: tuple(operations(*values)), values, check_trace=False)
        except (RuntimeError, NotImplementedError) as error:
            warnings.warn(f"{self._function.__name__} runs unrecorded, slower: {error}", stacklevel=3)
            self.recorded = False
