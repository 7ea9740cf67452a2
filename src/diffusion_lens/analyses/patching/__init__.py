"""Activation patching: parts of one run in the place of the same parts of another."""

from diffusion_lens.analyses.patching.ablation_sweep import ablation_sweep as ablation_sweep
from diffusion_lens.analyses.patching.activation_patching import (
    activation_patching as activation_patching,
)
from diffusion_lens.analyses.patching.activation_patching import patch_attention as patch_attention
from diffusion_lens.analyses.patching.activation_patching import patch_heads as patch_heads
from diffusion_lens.analyses.patching.activation_patching import patch_mlps as patch_mlps
from diffusion_lens.analyses.patching.activation_patching import patch_residuals as patch_residuals
from diffusion_lens.analyses.patching.activation_patching import patch_steps as patch_steps
from diffusion_lens.analyses.patching.activation_patching import patch_words as patch_words
from diffusion_lens.analyses.patching.corruption import WordNoise as WordNoise
from diffusion_lens.analyses.patching.outcome import Outcome as Outcome
from diffusion_lens.analyses.patching.result import AblationResult as AblationResult
from diffusion_lens.analyses.patching.result import PatchingResult as PatchingResult
from diffusion_lens.analyses.patching.scores import graded as graded
from diffusion_lens.analyses.patching.scores import latent_distance as latent_distance
from diffusion_lens.analyses.patching.scores import latent_projection as latent_projection
from diffusion_lens.analyses.patching.scores import latent_recovery as latent_recovery
from diffusion_lens.analyses.patching.scores import text_difference as text_difference
from diffusion_lens.analyses.patching.scores import x0_distance as x0_distance
