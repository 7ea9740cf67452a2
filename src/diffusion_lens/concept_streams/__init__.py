"""Concept streams: the whole second pass, which the engine knows as a `Companion`.

`opening` checks what was asked for, `encoding` makes rows of text embeddings, `streams` says which
rows are whose, `view` is a block as concepts see it, `concept_pass` runs it.
"""

from diffusion_lens.concept_streams.opening import open_streams as open_streams
from diffusion_lens.concept_streams.streams import ConceptStreams as ConceptStreams
