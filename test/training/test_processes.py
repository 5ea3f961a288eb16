"""Two processes on this machine train one token."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rlt_ros.training import embeddings
from rlt_ros.training.processes import Processes
from rlt_ros.training.token import Settings, TokenTraining, train

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from conftest import Eyes, read, write_demos
from rlt_ros.training import embeddings, token
from rlt_ros.training.processes import Processes

torch.set_num_threads(1)
processes, folder = Processes.join("cpu"), Path(sys.argv[2])
if processes.first:
    write_demos(folder / "demos", failed=(3,))
processes.wait()
frames = read(folder / "demos")


def values(training):
    states = {"token": training.token.state_dict(), "vla": training.policy.state_dict()}
    # Of what is shared out, the first one has it whole.
    return {part: {name: value.clone() for name, value in state.items() if not hasattr(value, "full_tensor")}
            for part, state in states.items()}


def stop(done, total, losses):
    if losses["step"] == 3:
        os.kill(os.getpid(), signal.SIGINT)


def run(kind):
    alpha, out = float(kind != "frozen"), folder / kind
    settings = token.Settings(steps=6, batch=8, accumulate=2, context_dropout=0.0, alpha=alpha, tune="full",
                              vla_lr=1e-3)

    def start():
        policy = Eyes()
        seen = None if alpha else embeddings.embeddings(policy, frames, "abc", folder / "cache", processes)
        made = token.TokenTraining(policy, frames, frames.split()[0], settings, seen, processes)
        if processes.sharded:
            made.losses.set_force_sum_reduction_for_comms(True)  # gloo, which is for CPUs, has no means
        return made

    training = start()
    found = {"taken": [training.mine(step).tolist() for step in range(6)]}
    token.train(training, out, {})
    found |= {"whole": values(training), "looked": training.policy.looked}
    stopped = start()
    try:
        token.train(stopped, out / "stopped", {}, progress=stop)
    except KeyboardInterrupt:
        found["stopped"] = stopped.step
    again = start()
    token.train(again, out / "stopped", {})
    return found | {"again": values(again)}


found = {kind: run(kind) for kind in ("frozen", "joint")}
# Accelerate shares weights out among GPUs alone. What it does then, torch can do on CPUs, too.
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
state = processes._accelerator.state
state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
assert processes.sharded
found["sharded"] = run("sharded")
try:
    processes.check_alike([torch.full((3,), float(processes.rank))])
except RuntimeError as error:
    found["told"] = str(error)
found["votes"] = processes.any(False, processes.rank == 1, True)
torch.save(found, folder / f"result{processes.rank}.pt")
processes.leave()
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What the two left, and their folder. They were started by Accelerate, as on GPUs: its --cpu would start one."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "script.py").write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes",
               "2", "--main_process_port", str(port), str(folder / "script.py"), str(Path(__file__).parent),
               str(folder)]  # fmt: skip
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    return *(torch.load(folder / f"result{rank}.pt") for rank in range(2)), folder


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def apart(begin: dict, one: dict, two: dict, names: list[str]) -> float:
    """How far two ends of a way are from each other, over its length."""
    numbers = lambda state: torch.cat([state[name].flatten() for name in names])  # noqa: E731
    return float((numbers(two) - numbers(one)).norm() / (numbers(one) - numbers(begin)).norm())


@pytest.mark.parametrize("kind", ["frozen", "joint"])
def test_two_processes_end_with_the_same_token_whether_they_were_stopped_or_not(ended, eyes, kind):
    first, second = ended[0][kind], ended[1][kind]
    assert first["stopped"] == second["stopped"] == 3  # Ctrl-C came to the first alone
    for part in ("token", "vla"):
        for found in (second["whole"], first["again"], second["again"]):
            assert same(first["whole"][part], found[part])
    changed = not torch.equal(first["whole"]["vla"]["model.head.weight"], eyes.model["head"].weight)
    assert changed == (kind == "joint")


def test_two_processes_share_the_data(ended, frames, eyes):
    (first, second), folder = (ended[rank]["frozen"] for rank in range(2)), ended[2]
    rows = frames.split()[0]
    for left, right in zip(first["taken"], second["taken"], strict=True):
        assert len(left) == len(right) == 4 and not set(left) & set(right) and set(left + right) <= set(rows)
    assert first["looked"] + second["looked"] == len(frames)  # each computed a half of the embeddings
    seen = np.load(folder / "cache" / "embeddings.npy")
    np.testing.assert_allclose(seen, embeddings.embeddings(eyes, frames, "abc", None, Processes()), atol=2e-3)


def test_two_processes_go_the_way_of_one(ended, frames, eyes, tmp_path):
    seen = np.load(ended[2] / "cache" / "embeddings.npy")
    training = TokenTraining(eyes, frames, frames.split()[0], Settings(steps=6, batch=8, context_dropout=0.0), seen)
    names = [name for name, _ in training.token.named_parameters()]
    begin = {name: value.clone() for name, value in training.token.state_dict().items()}
    train(training, tmp_path, {})
    assert apart(begin, training.token.state_dict(), ended[0]["frozen"]["whole"]["token"], names) < 0.1  # rounding


def test_weights_that_are_shared_out_learn_the_same_and_come_together_again(ended, frames, eyes):
    plain, sharded = ended[0]["joint"], ended[0]["sharded"]
    training = TokenTraining(eyes, frames, frames.split()[0], Settings(steps=6, batch=8, alpha=1.0, tune="full"))
    begin = {"token": training.token.state_dict(), "vla": eyes.state_dict()}
    assert sharded["stopped"] == ended[1]["sharded"]["stopped"] == 3
    for part in ("token", "vla"):
        one, two = plain["whole"][part], sharded["whole"][part]
        assert one.keys() == two.keys()
        names = [name for name in one if not torch.equal(one[name], begin[part][name])]
        assert apart(begin[part], one, two, names) < 0.1
        assert same(sharded["again"][part], two)


def test_processes_that_differ_are_told_and_votes_are_counted(ended):
    assert "the 2 processes have different parameters" in ended[0]["told"] and ended[0]["told"] == ended[1]["told"]
    assert ended[0]["votes"] == ended[1]["votes"] == [False, True, True]


ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU",
               "ACCELERATE_USE_FSDP", "FSDP_VERSION")  # fmt: skip
COMPLETE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(("environment", "device", "words"), [
    ({"WORLD_SIZE": "2"}, "cpu", "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set; .*torchrun"),
    ({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"}, "cpu", "accelerate launch started one: .*--multi_gpu"),
    (COMPLETE | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "cpu", "--use_fsdp: .* among GPUs alone"),
    (COMPLETE, "cuda", "--device cuda: torch finds no GPU here"),
])  # fmt: skip
def test_an_environment_that_does_not_fit_is_refused(monkeypatch, environment, device, words):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=words):
        Processes.join(device)


def test_the_first_version_of_fsdp_is_refused(monkeypatch):
    for name, value in (COMPLETE | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="add --fsdp_version 2"):
        Processes.join("cuda")


def test_a_process_alone_needs_no_accelerate(python):
    code = ("import sys; from rlt_ros.training.processes import Processes; import rlt_ros.training.token;"
            " assert Processes.join().count == 1; sys.exit('accelerate' in sys.modules)")  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    assert subprocess.run([python, "-c", code], timeout=60, check=False, env=environment).returncode == 0
