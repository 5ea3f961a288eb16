"""Training in several processes, one for each GPU or a few processor cores, through Hugging Face Accelerate.

``accelerate launch`` (or ``torchrun``) starts them and says by environment variables who is who. Each has a part of
each batch; Accelerate averages gradients (DDP), or also shares the weights out (FSDP). A single process imports none of
it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_PATIENCE = timedelta(hours=2)  # one may wait while another's part of the embeddings is computed
_START = "`accelerate launch --multi_gpu --num_processes N -m rlt_ros.cli.main train token ...`, or with torchrun"


class Processes:
    """This process among `count` that train together: the `rank`-th of them, computing on `device`.

    sharded: whether :meth:`prepare` shares the weights out among them.
    """

    def __init__(self, device: str | torch.device = "cpu", accelerator: Any = None):
        """accelerator: accelerate.Accelerator of the others; without it this process is alone."""
        self._accelerator = accelerator
        self.rank = accelerator.process_index if accelerator else 0
        self.count = accelerator.num_processes if accelerator else 1
        self.device = accelerator.device if accelerator else torch.device(device)

    @classmethod
    def join(cls, device: str = "cpu") -> Processes:
        """The processes that the environment tells of; alone when it tells of none.

        device: cpu or cuda, of which each process takes the one of its number on its machine.  ValueError when the
        environment is incomplete, or asks for what cannot be had here.
        """
        count = int(os.environ.get("WORLD_SIZE") or 1)
        if count == 1:
            if os.environ.get("MASTER_ADDR") and os.environ.get("ACCELERATE_USE_CPU") and "RANK" not in os.environ:
                raise ValueError("several processes were asked for, and accelerate launch started one: so it does with"
                                 f" --cpu, or where it finds no GPU. Start them with {_START}; --device cpu keeps them"
                                 " off the GPUs")  # fmt: skip
            return cls(device)
        if missing := [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]:
            raise ValueError(f"WORLD_SIZE is {count}, but {', '.join(missing)} not set; start the processes with"
                             f" {_START}, or unset WORLD_SIZE")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no GPU here; leave it out, or install torch's CUDA build")
        sharding = None
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            sharding = _sharding(device)
        from accelerate import Accelerator  # late: it takes a second, and a single process needs none of it
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        # Not each weight has a part in each loss: the VLA's last layer has none in its actions.
        handlers = [InitProcessGroupKwargs(timeout=_PATIENCE),
                    DistributedDataParallelKwargs(find_unused_parameters=True)]  # fmt: skip
        # Precision is --dtype's, whatever the launcher was told.
        return cls(device, Accelerator(cpu=device == "cpu", mixed_precision="no", fsdp_plugin=sharding,
                                       kwargs_handlers=handlers))  # fmt: skip

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return self._accelerator is not None and self._accelerator.is_fsdp2

    def prepare(self, module: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer]:
        """What to call and to step in place of them. All begin with the same parameters."""
        if not self._accelerator:
            return module, optimiser
        if self.sharded:  # without it, Accelerate sends the first one's to the others
            self.check_alike(module.parameters())
        return self._accelerator.prepare(module, optimiser)

    def apart(self, module: nn.Module) -> AbstractContextManager:
        """Gradients of a prepared module stay each process's own within, to be averaged with those that follow."""
        return self._accelerator.no_sync(module) if self._accelerator else nullcontext()

    def wait(self) -> None:
        """Until all are here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()

    def share(self, thing: Any = None) -> Any:
        """What the first one has."""
        if not self._accelerator:
            return thing
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([thing])[0]

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it holds for one of them."""
        if not self._accelerator:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.float32, device=self.device)
        return (self._accelerator.reduce(votes) > 0).tolist()

    def check_alike(self, tensors: Iterable[Tensor]) -> None:
        """RuntimeError when the processes do not have the same values, none of them shared out."""
        if not self._accelerator:
            return
        from accelerate.utils import gather_object

        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        if len(set(gather_object([digest.hexdigest()]))) > 1:
            raise RuntimeError(f"the {self.count} processes have different parameters; they must run the same"
                               " version of this package and of torch; begin anew with --restart")

    def leave(self) -> None:
        """At the end."""
        if self._accelerator:
            self._accelerator.end_training()


def _sharding(device: str) -> Any:
    """How Accelerate is to share weights out. ValueError when it cannot."""
    if device == "cpu":
        raise ValueError("--use_fsdp: Accelerate shares weights out among GPUs alone; leave it out on CPUs")
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("--use_fsdp: only its second version is known here; add --fsdp_version 2")
    from accelerate import FullyShardedDataParallelPlugin

    # Loading in the first process alone cannot cope with the statistics that the token keeps beside its weights.
    return FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be shared out, on the CPU then; all processes must ask for it."""
    return tensor.full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """The opposite: a whole tensor, laid out as `like`, of the same shape, is."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Each process has the whole and takes its own part of it: nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
