"""A function of tensors as a list of its operations."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from rlt_ros.core.recorded import Recorded


def slope(inputs):
    x = inputs["x"].detach().requires_grad_()
    loss = (x * inputs["factor"]).square().sum()
    return *torch.autograd.grad(loss, [x]), loss.detach()


def inputs(n=3, factor=2.0):
    return {"x": torch.arange(n, dtype=torch.float32), "factor": torch.tensor(factor)}


def test_it_gives_what_the_function_gives_gradients_too_without_calling_it_again():
    calls = []

    def counted(values):
        calls.append(1)
        return slope(values)

    recorded = Recorded(counted)
    for factor in (2.0, 3.0, -1.0):
        for ours, its in zip(recorded(inputs(factor=factor)), slope(inputs(factor=factor)), strict=True):
            assert torch.equal(ours, its)
    assert len(calls) == 1 and recorded.recorded


def test_it_is_recorded_after_so_many_calls():
    calls = []

    def counted(values):
        calls.append(1)
        return slope(values)

    recorded = Recorded(counted, after=2)
    for _ in range(5):
        for ours, its in zip(recorded(inputs()), slope(inputs()), strict=True):
            assert torch.equal(ours, its)
    assert len(calls) == 3  # twice as it is, and once to be recorded


def test_other_shapes_are_recorded_anew():
    recorded = Recorded(slope)
    for n in (3, 5, 3):
        assert torch.equal(recorded(inputs(n))[0], slope(inputs(n))[0])


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so():
    def stubborn(values):
        if get_proxy_mode() is not None:
            raise RuntimeError("not while it is recorded")
        return (2 * values["x"],)

    recorded = Recorded(stubborn)
    with pytest.warns(UserWarning, match="stubborn runs unrecorded, slower: not while it is recorded"):
        (twice,) = recorded(inputs())
    assert torch.equal(twice, 2 * inputs()["x"]) and not recorded.recorded
