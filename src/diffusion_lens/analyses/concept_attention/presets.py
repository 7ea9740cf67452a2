"""The published ways of computing ConceptAttention maps, as data.

Source: ConceptAttention, arXiv 2502.04320, sections 4 and 5, and its released code for Flux, for
diffusers, for SD3.5 and for CogVideoX, which disagree with each other and with the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion_lens.border import Count, Size, public
from diffusion_lens.errors import ConceptError, refuse_unknown

SPACES = {
    "z": ("attn.concept.hook_z", "attn.img.hook_z"),
    "attn_out": ("concept.hook_attn_out", "img.hook_attn_out"),
    "value": ("attn.concept.hook_v", "attn.img.hook_v"),
    "query-key": ("attn.concept.hook_q", "attn.img.hook_k"),
    "query-query": ("attn.concept.hook_q_pre_rope", "attn.img.hook_q_pre_rope"),
}
"""For each space the points of concepts and image whose vectors are multiplied, heads joined.

`z` is the paper's output space. `query-query` is what the released Flux code stores as its
cross-attention maps."""

SOFTMAX = {"concepts": 1, "patches": 2, "nothing": None}
"""What a softmax goes over, and the axis that it is."""

IMAGE_VECTORS = ("generation", "concepts")


@public
@dataclass(frozen=True)
class Preset:
    """One way of computing the maps.

    Attributes:
        space: Which vectors of concepts and image are multiplied; a key of `SPACES`.
        softmax_over: `"concepts"`, `"patches"` or `"nothing"`.
        tokens: As for `HookedDiffusion.concept_streams`: `"all"` of each concept, their mean taken;
            its `"first"`; or `"joint"`, read together as one prompt.
        pooled: Likewise; None is the choice of the family.
        last_blocks: How many double blocks, counted from the last; None for all.
        max_sequence_length: Padded length of a concept, or None for that of the run's prompts.
        slots: Length to which zero embeddings fill the concept stream; they are attended to and
            take their share of a softmax over concepts. None for no fillers.
        image_vectors: Of the `"generation"` pass; or of a second product, in which the image
            attends to itself and the `"concepts"`, not to the prompt (space `z` only).
        vectors_first: Average vectors over steps, scale those of concepts to length 1, and score
            the averages; in place of scoring each step and averaging the scores.
        blank_caption: Set the pooled embedding of a given image's caption to zeros.
    """

    space: str = "z"
    softmax_over: str = "concepts"
    tokens: str = "all"
    pooled: str | Tensor | None = None
    last_blocks: Count | None = 9
    max_sequence_length: Size | None = None
    slots: Size | None = None
    image_vectors: str = "generation"
    vectors_first: bool = False
    blank_caption: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not exist.

        Raises:
            ConceptError: On a value that a field does not take, or two that exclude each other.
        """
        refuse_unknown("space", self.space, SPACES, error=ConceptError)
        refuse_unknown("softmax_over", self.softmax_over, SOFTMAX, error=ConceptError)
        refuse_unknown("image_vectors", self.image_vectors, IMAGE_VECTORS, error=ConceptError)
        if self.image_vectors == "concepts" and self.space != "z":
            raise ConceptError(
                f'image_vectors="concepts" are the outputs of a product of their own, space="z"; '
                f'got space={self.space!r}. For other spaces use image_vectors="generation"'
            )


PRESETS = {
    "paper": Preset(),
    "flux-release": Preset(tokens="first", pooled="zeros", last_blocks=4, blank_caption=True),
    "flux-diffusers": Preset(
        space="attn_out",
        softmax_over="patches",
        tokens="first",
        pooled="concepts",
        last_blocks=None,
        max_sequence_length=64,
    ),
    "sd3": Preset(
        tokens="joint",
        pooled="prompt",
        last_blocks=None,
        image_vectors="concepts",
        vectors_first=True,
    ),
    "cogvideox": Preset(tokens="first", last_blocks=None, max_sequence_length=16, slots=226),
}
"""`paper` is the method of the paper and means the same in every family: z, softmax over concepts,
blocks 10 to 18 of Flux's 19, all tokens of a concept (for a word of one token that is the published
first-token rule).

`flux-release` is the default of the authors' Flux code: blocks 15 to 18, first tokens, modulation
with zeros for the pooled embedding, over a given image that of its caption too.

`flux-diffusers` is their diffusers pipeline: vectors after two different output projections,
softmax over patches where its comment says concepts, all blocks, modulation by the pooled embedding
of all concepts, concepts padded to 64 tokens.

`sd3` is their SD3.5 pipeline: concepts read as one prompt by the two CLIP encoders, image vectors
from a second product over image and concepts, both averaged over steps before they are scored,
concept vectors scaled to length 1, all blocks.

`cogvideox` is their CogVideoX pipeline: concepts padded to 16 tokens, first tokens, the stream
filled with zeros to 226 slots that share the softmax (so that the maps of the concepts do not sum
to 1), all blocks."""


def preset_of(preset: str | Preset) -> Preset:
    """A preset by its name.

    Raises:
        ConceptError: If there is none of that name.
    """
    if isinstance(preset, Preset):
        return preset
    refuse_unknown("preset", preset, PRESETS, error=ConceptError)
    return PRESETS[preset]
