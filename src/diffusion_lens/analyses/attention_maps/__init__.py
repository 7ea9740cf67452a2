"""Attention maps of words: DAAM, selective aggregation, joint attention, foreign words."""

from diffusion_lens.analyses.attention_maps.call import PRESETS as PRESETS
from diffusion_lens.analyses.attention_maps.call import Preset as Preset
from diffusion_lens.analyses.attention_maps.call import attention_maps as attention_maps
from diffusion_lens.analyses.attention_maps.collecting import PatternSums as PatternSums
from diffusion_lens.analyses.attention_maps.result import AttentionMaps as AttentionMaps
