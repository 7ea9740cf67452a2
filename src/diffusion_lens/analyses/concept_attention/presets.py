"""The published ways of computing ConceptAttention maps, as data.

Source: ConceptAttention, arXiv 2502.04320, sections 4 and 5, and its released code for Flux, for
diffusers, for SD3.5, for CogVideoX and for Flux.2, which disagree with each other and with the
paper.
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

SOFTMAX = {"concepts": -2, "patches": -1, "nothing": None}
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
            its `"first"`; `"joint"`, read together as one prompt; or the number of a row of each
            encoded text.
        position: Likewise: the text token whose rotary position concepts take.
        pooled: Likewise; None is the choice of the family.
        last_blocks: How many double blocks, counted from the last; None for all.
        max_sequence_length: Padded length of a concept, or None for that of the run's prompts.
        slots: Length to which zero embeddings fill the concept stream; they are attended to and
            take their share of a softmax over concepts. None for no fillers.
        image_vectors: Of the `"generation"` pass; or of a second product, in which the image
            attends to itself and the `"concepts"`, not to the prompt (space `z` only).
        vectors_first: Average vectors over steps, scale those of concepts to length 1, and score
            the averages; in place of scoring each step and averaging the scores.
        scores_first: Average the products over steps and blocks, and take the softmax last.
        temperature: What the products are divided by before the softmax.
        skipped: Share of a generated run's steps that is left out at its start.
        last_step: Whether its last step is taken.
        blank_caption: Set the pooled embedding of a given image's caption to zeros.
    """

    space: str = "z"
    softmax_over: str = "concepts"
    tokens: str | int = "all"
    position: int | None = None
    pooled: str | Tensor | None = None
    last_blocks: Count | None = 9
    max_sequence_length: Size | None = None
    slots: Size | None = None
    image_vectors: str = "generation"
    vectors_first: bool = False
    scores_first: bool = False
    temperature: float = 1.0
    skipped: float = 0.0
    last_step: bool = True
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
        if self.vectors_first and self.scores_first:
            raise ConceptError(
                "vectors_first= and scores_first= exclude each other: either vectors are averaged "
                "or their products; drop one"
            )
        if not self.temperature > 0 or not 0 <= self.skipped < 1:
            raise ConceptError(
                f"temperature={self.temperature} must be above 0, and skipped={self.skipped} a "
                "share of the steps, from 0 to below 1"
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
    "flux2": Preset(
        tokens=510,
        position=510,
        last_blocks=3,
        max_sequence_length=512,
        scores_first=True,
        temperature=1000.0,
        skipped=0.7,
        last_step=False,
    ),
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
to 1), all blocks.

`flux2` is their Flux.2 pipeline: row 510 of the 512 that Mistral makes of each concept's chat, at
the rotary position of text token 510 (chats are filled up in front, so that this is the last token
of the concept itself), products averaged over the last 30 % of the steps without the final one and
over blocks 5 to 7 of 8, and then a softmax over concepts of a thousandth of them."""


def preset_of(preset: str | Preset) -> Preset:
    """A preset by its name.

    Raises:
        ConceptError: If there is none of that name.
    """
    if isinstance(preset, Preset):
        return preset
    refuse_unknown("preset", preset, PRESETS, error=ConceptError)
    return PRESETS[preset]
