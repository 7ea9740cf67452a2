"""Attend-and-Excite: the maps, the rule, the call."""

from diffusion_lens.analyses.attend_and_excite.attend_and_excite import NeglectLoss as NeglectLoss
from diffusion_lens.analyses.attend_and_excite.attend_and_excite import (
    attend_and_excite as attend_and_excite,
)
from diffusion_lens.analyses.attend_and_excite.result import ExcitedImages as ExcitedImages
from diffusion_lens.analyses.attend_and_excite.rule import Excite as Excite
