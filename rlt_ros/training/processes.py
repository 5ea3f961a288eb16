"""Training in several processes, one for each GPU or a few processor cores.

Each has all parameters and a part of each batch; gradients are averaged. The processes are started by
``accelerate launch`` or ``torchrun``, which both say by the same environment variables who is who; neither library is
needed by a single process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET = 1 << 23  # numbers that are sent at once: few messages, and no second copy of a large model's gradients
_PATIENCE = timedelta(hours=2)  # one may wait while another's part of the embeddings is computed


class Processes:
    """This process among `count` that train together: the `rank`-th of them, computing on `device`."""

    def __init__(self, rank: int = 0, count: int = 1, device: str = "cpu"):
        self.rank, self.count, self.device = rank, count, torch.device(device)

    @classmethod
    def join(cls, device: str = "cpu") -> Processes:
        """The processes that the environment tells of; alone when it tells of none.

        device: cpu or cuda, of which each process takes the one of its number on its machine.  ValueError when the
        environment is incomplete.
        """
        count = int(os.environ.get("WORLD_SIZE") or 1)
        if count == 1:
            return cls(device=device)
        if missing := [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]:
            raise ValueError(f"WORLD_SIZE is {count}, but {', '.join(missing)} not set; start the processes with"
                             " `accelerate launch -m rlt_ros.cli.main train token ...` or torchrun,"
                             " or unset WORLD_SIZE")
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), count, device)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def share(self, thing: Any = None) -> Any:
        """What the first one has."""
        if self.count == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether it holds for one of them."""
        if self.count == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(votes)
        return bool(votes)

    def begin_alike(self, tensors: Iterable[Tensor]) -> None:
        """Give all of them the first one's values."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each gradient the mean of theirs."""
        if self.count == 1:
            return
        for bucket in _buckets(p.grad for p in parameters if p.grad is not None):
            flat = torch.cat([grad.flatten() for grad in bucket])
            dist.all_reduce(flat)
            flat /= self.count
            for grad, mean in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(mean.view_as(grad))

    def check_alike(self, tensors: Iterable[Tensor]) -> None:
        """RuntimeError when the processes no longer have the same values."""
        if self.count == 1:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        all_of_them: list = [None] * self.count
        dist.all_gather_object(all_of_them, digest.hexdigest())
        if len(set(all_of_them)) > 1:
            raise RuntimeError(f"the {self.count} processes have come to different parameters; they must run the same"
                               " version of this package and of torch; begin anew with --restart")

    def leave(self) -> None:
        """At the end."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _buckets(grads: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in their order, some _BUCKET numbers at a time."""
    bucket, size = [], 0
    for grad in grads:
        bucket.append(grad)
        size += grad.numel()
        if size >= _BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
