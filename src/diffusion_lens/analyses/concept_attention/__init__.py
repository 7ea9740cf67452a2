"""ConceptAttention: where in an image, or a video, its model sees a concept.

Source: ConceptAttention, arXiv 2502.04320, and its released ports.
"""

from diffusion_lens.analyses.concept_attention.concept_attention import (
    concept_attention as concept_attention,
)
from diffusion_lens.analyses.concept_attention.presets import PRESETS as PRESETS
from diffusion_lens.analyses.concept_attention.presets import SPACES as SPACES
from diffusion_lens.analyses.concept_attention.presets import Preset as Preset
from diffusion_lens.analyses.concept_attention.result import ConceptMaps as ConceptMaps
from diffusion_lens.analyses.concept_attention.scores import concept_scores as concept_scores
