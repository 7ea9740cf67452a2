"""Opening concept streams: concepts as tokens, and the checks of what was asked for."""

from diffusion_lens.concept_streams.opening import open_streams as open_streams
