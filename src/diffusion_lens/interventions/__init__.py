"""Makers of hooks that change a run: frozen callables whose repr says what they do."""

from diffusion_lens.interventions.blocks import bypass_block as bypass_block
from diffusion_lens.interventions.heads import ablate_heads as ablate_heads
from diffusion_lens.interventions.heads import scale_heads as scale_heads
from diffusion_lens.interventions.latent_update import LatentUpdate as LatentUpdate
from diffusion_lens.interventions.latent_update import descend as descend
from diffusion_lens.interventions.latent_update import (
    run_with_latent_update as run_with_latent_update,
)
from diffusion_lens.interventions.pattern_gradient import PatternGradient as PatternGradient
from diffusion_lens.interventions.reference import Reference as Reference
from diffusion_lens.interventions.reference import beside as beside
from diffusion_lens.interventions.replacing import freeze_pattern as freeze_pattern
from diffusion_lens.interventions.replacing import replace_with as replace_with
from diffusion_lens.interventions.tokens import scale_token_columns as scale_token_columns
from diffusion_lens.interventions.vectors import add_vector as add_vector
