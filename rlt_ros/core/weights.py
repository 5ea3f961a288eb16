"""Actor weights on the wire: packed without pickle, checked before use."""
from __future__ import annotations

import hashlib
import hmac
import json
from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import load, save

from rlt_ros.core.networks import Actor


SHORTEST_KEY = 16  # bytes


class Reason(Enum):
    """Why weights were rejected."""

    STALE = "stale"
    CHECKSUM = "checksum"
    UNSIGNED = "unsigned"
    MALFORMED = "malformed"
    ARCHITECTURE = "architecture"
    SHAPES = "shapes"
    NON_FINITE = "non-finite"


class WeightsRejected(ValueError):
    """Weights that must not be used; `reason` is for counting, the text for the log."""

    def __init__(self, reason: Reason, text: str):
        super().__init__(f"weights rejected ({reason.value}): {text}")
        self.reason = reason


def pack(actor: Actor, version: int) -> tuple[bytes, str]:
    """The actor as safetensors bytes, with architecture and version in the header, and their SHA-256 in hex."""
    metadata = {"architecture": json.dumps(actor.architecture), "version": str(int(version))}
    data = save({name: tensor.cpu().contiguous() for name, tensor in actor.state_dict().items()}, metadata=metadata)
    return data, hashlib.sha256(data).hexdigest()


def _metadata(data: bytes) -> dict:
    """The text metadata of a safetensors file: 8 bytes of header size, little endian, then that much JSON."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + size])["__metadata__"]


def read_key(path: str | Path) -> bytes:
    """The key that learner and actor share; ValueError when the file is missing or too short to be one."""
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"key file {path}: {error.strerror}; make one: head -c 32 /dev/urandom > {path}") from error
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"key file {path} has {len(key)} bytes, expected {SHORTEST_KEY} or more: "
                         f"head -c 32 /dev/urandom > {path}")
    return key


def sign(data: bytes, key: bytes | None) -> str:
    """HMAC-SHA256 of `pack`'s bytes (the version is in them), in hex; "" without a key."""
    return hmac.new(key, data, hashlib.sha256).hexdigest() if key else ""


def unpack(
    data: bytes,
    sha256: str,
    version: int,
    current_version: int,
    expected_architecture: dict | None,
    key: bytes | None = None,
    signature: str = "",
) -> Actor:
    """A new actor, in inference mode, from `pack`'s bytes.

    version: as announced.  current_version: of the policy in use, which the new one must exceed.
    expected_architecture: Actor.architecture that must be matched; None accepts any.
    key: with one, only what `sign` signed with it is taken, compared in constant time.
    Raises WeightsRejected; nothing that is in use is touched.
    """
    if version <= current_version:
        raise WeightsRejected(Reason.STALE, f"version {version} is not newer than {current_version}")
    data = bytes(data)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsRejected(Reason.CHECKSUM, f"SHA-256 is {found}, announced was {sha256}")
    if key is not None and not hmac.compare_digest(sign(data, key).encode(), signature.encode()):
        text = "another key signed them" if signature else "they are not signed"
        raise WeightsRejected(Reason.UNSIGNED, f"{text}; learner and actor need the same key file")
    try:
        metadata = _metadata(data)
        architecture = json.loads(metadata["architecture"])
        packed_version = int(metadata["version"])
        tensors = load(data)
    except Exception as error:  # whatever a parser may raise on foreign bytes
        raise WeightsRejected(Reason.MALFORMED, f"not packed actor weights: {error}") from error
    if packed_version != version:
        raise WeightsRejected(Reason.STALE, f"announced as version {version}, packed as {packed_version}")
    if expected_architecture is not None and architecture != expected_architecture:
        raise WeightsRejected(Reason.ARCHITECTURE, f"got {architecture}, expected {expected_architecture}")
    try:
        actor = Actor.from_architecture(architecture)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsRejected(Reason.ARCHITECTURE, f"{architecture} describes no actor: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in actor.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != expected:
        wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise WeightsRejected(Reason.SHAPES, f"tensors {wrong} do not fit the architecture {architecture}")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsRejected(Reason.NON_FINITE, f"tensor {name} has values that are not finite")
    actor.load_state_dict(tensors)
    return actor.requires_grad_(False).eval()
