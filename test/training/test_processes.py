"""Two processes on this machine train one token."""

import os
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from rlt_ros.training import embeddings
from rlt_ros.training.processes import Processes
from rlt_ros.training.token import Settings, TokenTraining, train

SCRIPT = """
import sys
from pathlib import Path
import torch
here, folder, alpha = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
sys.path.insert(0, here)
from conftest import Eyes, read
from rlt_ros.training import embeddings, token
from rlt_ros.training.processes import Processes

torch.set_num_threads(1)
processes = Processes.join("cpu")
policy, frames = Eyes(), read(folder / "demos")
seen = None if alpha else embeddings.embeddings(policy, frames, "abc", folder / "cache", processes)
settings = token.Settings(steps=6, batch=8, accumulate=2, context_dropout=0.0, alpha=alpha, tune="full", vla_lr=1e-3)
training = token.TokenTraining(policy, frames, frames.split()[0], settings, seen, processes)
taken = [training.mine(step).tolist() for step in range(6)]
token.train(training, folder / "out", {})
values = {name: value.clone() for name, value in training.token.state_dict().items()}
result = {"token": values, "vla": policy.state_dict(), "taken": taken, "looked": policy.looked}
with torch.no_grad():
    training.token.e_rl += processes.rank
try:
    processes.check_alike([training.token.e_rl])
except RuntimeError as error:
    result["told"] = str(error)
torch.save(result, folder / f"result{processes.rank}.pt")
processes.leave()
"""


def environment(rank: int, port: int) -> dict[str, str]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
           "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": 1}  # fmt: skip
    return os.environ | {name: str(value) for name, value in own.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("alpha", [0.0, 1.0], ids=["frozen", "joint"])
def test_two_processes_share_the_data_and_end_with_the_same_token(folder, frames, eyes, python, alpha):
    port, here = free_port(), Path(__file__).parent
    command = [python, "-c", SCRIPT, str(here), str(folder.parent), str(alpha)]
    started = [subprocess.Popen(command, env=environment(rank, port), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True) for rank in range(2)]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=180)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    first, second = (torch.load(folder.parent / f"result{rank}.pt") for rank in range(2))
    for kind in ("token", "vla"):
        assert all(torch.equal(first[kind][name], second[kind][name]) for name in first[kind])
    assert "have come to different parameters" in first["told"] and first["told"] == second["told"]
    rows = frames.split()[0]
    for left, right in zip(first["taken"], second["taken"], strict=True):
        assert len(left) == len(right) == 4 and not set(left) & set(right) and set(left + right) <= set(rows)
    if alpha:
        assert not torch.equal(first["vla"]["model.head.weight"], eyes.model["head"].weight)
        return
    assert first["looked"] + second["looked"] == len(frames)  # each computed a half of the embeddings
    seen, alone = np.load(folder.parent / "cache" / "embeddings.npy"), Processes()
    np.testing.assert_allclose(seen, embeddings.embeddings(eyes, frames, "abc", None, alone), atol=2e-3)
    training = TokenTraining(eyes, frames, rows, Settings(steps=6, batch=8, context_dropout=0.0), seen, alone)
    names = [name for name, _ in training.token.named_parameters()]
    numbers = lambda state: torch.cat([state[name].flatten() for name in names])  # noqa: E731
    begin = numbers(training.token.state_dict()).clone()
    train(training, folder.parent / "alone", {})
    one, two = numbers(training.token.state_dict()), numbers(first["token"])
    assert (two - one).norm() < 0.1 * (one - begin).norm()  # the same way, but for rounding


def test_half_an_environment_is_refused(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT not set; .*torchrun"):
        Processes.join()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.join().count == 1
