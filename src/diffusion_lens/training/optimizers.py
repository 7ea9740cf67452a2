"""The optimizers of a run: AdamW for everything, or Muon for the matrices inside blocks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion_lens.training.config import TrainConfig


def _by_muon(name: str, parameter: Tensor, config: TrainConfig) -> bool:
    return config.optimizer == "muon" and parameter.ndim == 2 and "blocks." in name


def new_optimizers(
    parameters: Mapping[str, Tensor], config: TrainConfig
) -> list[torch.optim.Optimizer]:
    """Optimizers that share one learning rate and decay matrices alone, not biases and norms.

    Muon orthogonalises the update of each matrix; its steps are scaled to the size of AdamW's, so
    that one learning rate serves both. It gains where samples, not arithmetic, are scarce.

    Args:
        parameters: Name to trained parameter.
        config: The recipe.

    Returns:
        One or two optimizers that together hold every parameter once.
    """
    muon = [p for name, p in parameters.items() if _by_muon(name, p, config)]
    rest = [p for name, p in parameters.items() if not _by_muon(name, p, config)]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    if not muon:
        return [adamw]
    return [
        adamw,
        torch.optim.Muon(
            muon,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
    ]
