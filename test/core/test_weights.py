import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save

from rlt_ros.core.networks import Actor, Dims
from rlt_ros.core.weights import Reason, WeightsRejected, pack, read_key, sign, unpack

DIMS = Dims(token=3, rl_proprio=4, action=2, chunk=5)


@pytest.fixture
def actor():
    torch.manual_seed(0)
    made = Actor(DIMS, [8, 8], proprio_scale=[0.5, 1, 2, 3])
    made.state.measure(torch.randn(50, 3), torch.randn(50, 4))
    return made


def packed(tensors, architecture, version=2):
    data = save(tensors, metadata={"architecture": json.dumps(architecture), "version": str(version)})
    return data, hashlib.sha256(data).hexdigest()


def reason(*args):
    with pytest.raises(WeightsRejected) as caught:
        unpack(*args)
    return caught.value.reason


def test_an_unpacked_actor_acts_as_the_packed_one(actor):
    state = np.ones(3), np.ones(4), np.full((5, 2), 0.3)
    copy = unpack(*pack(actor, 7), 7, 6, actor.architecture)
    assert np.array_equal(copy.act(*state), actor.act(*state))
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_training_goes_on_without_changing_what_was_unpacked(actor):
    copy = unpack(*pack(actor, 1), 1, 0, None)
    before = copy.mlp[0].weight.clone()
    with torch.no_grad():
        actor.mlp[0].weight.add_(1.0)
    assert torch.equal(copy.mlp[0].weight, before)


@pytest.mark.parametrize("current", [7, 8])
def test_a_version_that_is_not_newer_is_rejected(actor, current):
    assert reason(*pack(actor, 7), 7, current, actor.architecture) is Reason.STALE


def test_a_version_other_than_the_packed_one_is_rejected(actor):
    assert reason(*pack(actor, 7), 9, 0, actor.architecture) is Reason.STALE


def test_one_flipped_bit_is_rejected(actor):
    data, digest = pack(actor, 1)
    damaged = bytearray(data)
    damaged[-5] ^= 1
    assert reason(bytes(damaged), digest, 1, 0, actor.architecture) is Reason.CHECKSUM


def test_cut_off_data_is_rejected(actor):
    data, _ = pack(actor, 1)
    for cut in (b"", data[:4], data[:100], data[:-1]):
        assert reason(cut, hashlib.sha256(cut).hexdigest(), 1, 0, None) is Reason.MALFORMED


def test_pickles_are_not_read(actor):
    data = pickle.dumps(actor.state_dict())
    assert reason(data, hashlib.sha256(data).hexdigest(), 1, 0, None) is Reason.MALFORMED


def test_another_architecture_is_rejected(actor):
    other = Actor(DIMS, [8, 9])
    assert reason(*pack(other, 1), 1, 0, actor.architecture) is Reason.ARCHITECTURE


@pytest.mark.parametrize("architecture", [{}, [], {"token": "x"}, None])
def test_an_architecture_that_is_none_is_rejected(actor, architecture):
    assert reason(*packed(actor.state_dict(), architecture), 2, 0, None) is Reason.ARCHITECTURE


def test_tensors_that_do_not_fit_the_architecture_are_rejected(actor):
    tensors = dict(actor.state_dict())
    tensors["mlp.0.weight"] = torch.zeros(8, 3)
    assert reason(*packed(tensors, actor.architecture), 2, 0, None) is Reason.SHAPES
    del tensors["mlp.0.weight"]
    assert reason(*packed(tensors, actor.architecture), 2, 0, None) is Reason.SHAPES


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_rejected(actor, bad):
    with torch.no_grad():
        actor.mlp[2].bias[3] = bad
    assert reason(*pack(actor, 1), 1, 0, actor.architecture) is Reason.NON_FINITE


def test_a_rejection_says_what_and_why(actor):
    with pytest.raises(WeightsRejected, match="version 7 is not newer than 8"):
        unpack(*pack(actor, 7), 7, 8, None)


def test_with_a_key_only_what_it_signed_is_taken(actor):
    data, digest = pack(actor, 2)
    key, other = b"k" * 32, b"o" * 32
    assert unpack(data, digest, 2, 1, None, key, sign(data, key)).dims == DIMS
    assert reason(data, digest, 2, 1, None, key, "") is Reason.UNSIGNED
    assert reason(data, digest, 2, 1, None, key, sign(data, other)) is Reason.UNSIGNED
    assert reason(data, digest, 2, 1, None, key, "é") is Reason.UNSIGNED
    forged, forged_digest = pack(actor, 3)
    assert reason(forged, forged_digest, 3, 1, None, key, sign(data, key)) is Reason.UNSIGNED


def test_without_a_key_nothing_is_signed_and_all_is_taken(actor):
    data, digest = pack(actor, 2)
    assert sign(data, None) == ""
    assert unpack(data, digest, 2, 1, None, None, "").dims == DIMS


def test_a_key_file_that_is_missing_or_short_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="head -c 32 /dev/urandom"):
        read_key(tmp_path / "none")
    (tmp_path / "short").write_bytes(b"secret")
    with pytest.raises(ValueError, match="6 bytes, expected 16"):
        read_key(tmp_path / "short")
    (tmp_path / "key").write_bytes(b"x" * 32)
    assert read_key(tmp_path / "key") == b"x" * 32
