"""Ordered weakening: does a concept vanish sooner when its relevant heads are weakened first?

Source: Park et al., Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in
Text-to-Image Generative Models, arXiv 2412.02237, section 4 and appendix C.
"""

from diffusion_lens.analyses.ordered_weakening.ordered_weakening import (
    ordered_weakening as ordered_weakening,
)
from diffusion_lens.analyses.ordered_weakening.ordered_weakening import (
    published_counts as published_counts,
)
from diffusion_lens.analyses.ordered_weakening.prompts import PUBLISHED_SEEDS as PUBLISHED_SEEDS
from diffusion_lens.analyses.ordered_weakening.prompts import (
    weakening_concepts as weakening_concepts,
)
from diffusion_lens.analyses.ordered_weakening.prompts import (
    weakening_prompts as weakening_prompts,
)
from diffusion_lens.analyses.ordered_weakening.result import WeakeningCurves as WeakeningCurves
from diffusion_lens.analyses.ordered_weakening.words import weaken_words as weaken_words
