"""Where torch computes."""

import torch


def require_device(device: str, name: str = "device") -> None:
    """ValueError when torch cannot compute there; `name`: what the user calls the setting."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name} is 'cuda', but torch finds no GPU here; set it to 'cpu', or see `rlt doctor`")
