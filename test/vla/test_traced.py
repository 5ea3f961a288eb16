"""The traced VLA against the one it was traced from."""

import numpy as np
import pytest

from rlt_ros.vla import load
from rlt_ros.vla.traced import TracedVLA


@pytest.fixture
def scene():
    random = np.random.default_rng(3)
    return lambda vla: (
        {name: random.integers(0, 256, (vla.image_size, vla.image_size, 3), np.uint8) for name in vla.camera_names},
        random.normal(size=vla.proprio_dim).astype(np.float32),
    )


def test_traced_vla_gives_the_same_numbers(checkpoint, scene):
    plain, traced = load(checkpoint), TracedVLA(load(checkpoint))
    assert traced.traced
    for seed in range(3):
        images, proprio = scene(plain)
        for vla in (plain, traced):
            vla.seed(seed)
        for ours, theirs in zip(traced.infer(images, proprio), plain.infer(images, proprio), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    several = [scene(plain) for _ in range(3)]
    np.testing.assert_allclose(traced.tokens(several), plain.tokens(several), atol=1e-5)
