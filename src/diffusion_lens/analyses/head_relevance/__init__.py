"""Head relevance vectors: which attention heads matter for which visual concept.

Source: Park et al., Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in
Text-to-Image Generative Models, arXiv 2412.02237, and its code (SNU-DRL/HRV).
"""

from diffusion_lens.analyses.head_relevance.concepts import (
    PUBLISHED_CONCEPTS as PUBLISHED_CONCEPTS,
)
from diffusion_lens.analyses.head_relevance.head_relevance import head_relevance as head_relevance
from diffusion_lens.analyses.head_relevance.head_relevance import result_of as result_of
from diffusion_lens.analyses.head_relevance.head_relevance import text_heads as text_heads
from diffusion_lens.analyses.head_relevance.published import PublishedFile as PublishedFile
from diffusion_lens.analyses.head_relevance.published import fetch_published as fetch_published
from diffusion_lens.analyses.head_relevance.published import load_published as load_published
from diffusion_lens.analyses.head_relevance.result import Head as Head
from diffusion_lens.analyses.head_relevance.result import HeadRelevance as HeadRelevance
from diffusion_lens.analyses.head_relevance.result import vectors_of as vectors_of
from diffusion_lens.analyses.head_relevance.votes import HeadRelevanceVotes as HeadRelevanceVotes
from diffusion_lens.analyses.head_relevance.votes import cast_votes as cast_votes
from diffusion_lens.analyses.head_relevance.votes import concept_shares as concept_shares
from diffusion_lens.analyses.head_relevance.words import ConceptWords as ConceptWords
from diffusion_lens.analyses.head_relevance.words import (
    cross_attention_keys as cross_attention_keys,
)
