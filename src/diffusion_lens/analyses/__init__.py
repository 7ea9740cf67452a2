"""Published methods, one to a file, over the public names of the library."""

from diffusion_lens.analyses.attention_maps import AttentionMaps as AttentionMaps
from diffusion_lens.analyses.attention_maps import attention_maps as attention_maps
from diffusion_lens.analyses.concept_attention import ConceptMaps as ConceptMaps
from diffusion_lens.analyses.concept_attention import concept_attention as concept_attention
from diffusion_lens.analyses.concept_attention import concept_scores as concept_scores
