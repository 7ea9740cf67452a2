"""Prompt-to-Prompt: the alignment, the hooks, the call."""

from diffusion_lens.analyses.prompt_to_prompt.alignment import Alignment as Alignment
from diffusion_lens.analyses.prompt_to_prompt.alignment import refinement as refinement
from diffusion_lens.analyses.prompt_to_prompt.alignment import replacement as replacement
from diffusion_lens.analyses.prompt_to_prompt.prompt_to_prompt import (
    prompt_to_prompt as prompt_to_prompt,
)
from diffusion_lens.analyses.prompt_to_prompt.word_maps import LocalBlend as LocalBlend
