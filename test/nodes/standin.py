"""A checkpoint of the real classes that nobody trained: descends slowly, and costs what the real one costs."""

from pathlib import Path

from transformers import PI0ForConditionalGeneration

from rlt_ros.core.rl_token import RLToken, TokenConfig
from rlt_ros.sim.task import Task
from rlt_ros.vla.pi0 import Pi0, Pi0Io, small_config


def write_checkpoint(folder: Path, task: Task) -> Path:
    """Write the stand-in for `task` into `folder`; its reference is -0.4 along z, with a little noise."""
    words = ["<pad>", "<bos>", *sorted(set(task.instruction.lower().split())), "<image>"]
    index = task.vla_state_index
    io = Pi0Io(
        cameras=list(task.cameras), instruction=task.instruction, proprio_dim=task.proprio_dim, state_index=index,
        state_mean=[0.0] * len(index), state_std=[1.0] * len(index), action_mean=[0.0, 0.0, -0.4, 0.0],
        action_std=[0.02] * task.action_dim, vocabulary=words)
    policy = Pi0(PI0ForConditionalGeneration(small_config(len(words), task.action_dim, len(index))), io)
    policy.save(folder)
    RLToken(TokenConfig(embedding_dim=policy.embedding_dim, tokens=policy.image_tokens)).save(folder)
    return folder
