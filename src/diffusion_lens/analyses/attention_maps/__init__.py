"""Attention maps of words: DAAM, selective aggregation, joint attention, foreign words."""

from diffusion_lens.analyses.attention_maps.attention_maps import PRESETS as PRESETS
from diffusion_lens.analyses.attention_maps.attention_maps import Preset as Preset
from diffusion_lens.analyses.attention_maps.attention_maps import attention_maps as attention_maps
from diffusion_lens.analyses.attention_maps.collecting import PatternSums as PatternSums
from diffusion_lens.analyses.attention_maps.result import AttentionMaps as AttentionMaps
