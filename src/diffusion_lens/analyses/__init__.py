"""Published methods, one to a file, over the public names of the library."""

from diffusion_lens.analyses.attend_and_excite import ExcitedImages as ExcitedImages
from diffusion_lens.analyses.attend_and_excite import attend_and_excite as attend_and_excite
from diffusion_lens.analyses.attention_maps import AttentionMaps as AttentionMaps
from diffusion_lens.analyses.attention_maps import attention_maps as attention_maps
from diffusion_lens.analyses.concept_attention import ConceptMaps as ConceptMaps
from diffusion_lens.analyses.concept_attention import concept_attention as concept_attention
from diffusion_lens.analyses.concept_attention import concept_scores as concept_scores
from diffusion_lens.analyses.concept_steering import random_vector_like as random_vector_like
from diffusion_lens.analyses.concept_steering import rescale_word as rescale_word
from diffusion_lens.analyses.concept_steering import rescaling_vector as rescaling_vector
from diffusion_lens.analyses.concept_steering import steer_word as steer_word
from diffusion_lens.analyses.diagnose_word import WordDiagnosis as WordDiagnosis
from diffusion_lens.analyses.diagnose_word import diagnose_word as diagnose_word
from diffusion_lens.analyses.edited_images import EditedImages as EditedImages
from diffusion_lens.analyses.free_prompt_editing import free_prompt_editing as free_prompt_editing
from diffusion_lens.analyses.head_patterns import HeadPatterns as HeadPatterns
from diffusion_lens.analyses.head_patterns import head_patterns as head_patterns
from diffusion_lens.analyses.head_patterns import token_view as token_view
from diffusion_lens.analyses.head_relevance import PUBLISHED_CONCEPTS as PUBLISHED_CONCEPTS
from diffusion_lens.analyses.head_relevance import HeadRelevance as HeadRelevance
from diffusion_lens.analyses.head_relevance import fetch_published as fetch_published
from diffusion_lens.analyses.head_relevance import head_relevance as head_relevance
from diffusion_lens.analyses.head_relevance import load_published as load_published
from diffusion_lens.analyses.inversion import Inversion as Inversion
from diffusion_lens.analyses.inversion import invert as invert
from diffusion_lens.analyses.masactrl import masactrl as masactrl
from diffusion_lens.analyses.ordered_weakening import WeakeningCurves as WeakeningCurves
from diffusion_lens.analyses.ordered_weakening import ordered_weakening as ordered_weakening
from diffusion_lens.analyses.ordered_weakening import weaken_words as weaken_words
from diffusion_lens.analyses.ordered_weakening import weakening_prompts as weakening_prompts
from diffusion_lens.analyses.patching import AblationResult as AblationResult
from diffusion_lens.analyses.patching import PatchingResult as PatchingResult
from diffusion_lens.analyses.patching import ablation_sweep as ablation_sweep
from diffusion_lens.analyses.patching import activation_patching as activation_patching
from diffusion_lens.analyses.patching.attribution_patching import (
    attribution_patching as attribution_patching,
)
from diffusion_lens.analyses.plug_and_play import plug_and_play as plug_and_play
from diffusion_lens.analyses.prompt_to_prompt import LocalBlend as LocalBlend
from diffusion_lens.analyses.prompt_to_prompt import prompt_to_prompt as prompt_to_prompt
from diffusion_lens.analyses.sdedit import sdedit as sdedit
from diffusion_lens.analyses.stable_flow import VitalBlocks as VitalBlocks
from diffusion_lens.analyses.stable_flow import stable_flow as stable_flow
from diffusion_lens.analyses.stable_flow import vital_blocks as vital_blocks
