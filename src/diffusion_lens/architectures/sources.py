"""Where the engine reads a hook point. Data only; `diffusion_lens.engine` acts on it."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_lens.architectures.spec import Attention, BlockSite, Mid, ModulePoint


@dataclass(frozen=True)
class StreamEntering:
    """A stream entering a block."""

    block: BlockSite
    stream: str


@dataclass(frozen=True)
class StreamBetween:
    """A stream between two sublayers of a block."""

    block: BlockSite
    stream: str
    mid: Mid


@dataclass(frozen=True)
class StreamLeaving:
    """A stream leaving a block."""

    block: BlockSite
    stream: str


@dataclass(frozen=True)
class SublayerOutput:
    """The raw output of an attention (by its name) or of the MLP (`mlp`), before its gate."""

    block: BlockSite
    stream: str
    sublayer: str


@dataclass(frozen=True)
class SublayerUpdate:
    """Gate times raw output: what is added to the residual."""

    block: BlockSite
    stream: str
    sublayer: str


@dataclass(frozen=True)
class Neurons:
    """The MLP's input to its down projection."""

    block: BlockSite
    stream: str


@dataclass(frozen=True)
class Routing:
    """Of a mixture of experts: the router's logits, whom it chose, or the chosen experts' weights.

    Attributes:
        which: `"logits"`, `"choice"` or `"weights"`.
    """

    block: BlockSite
    stream: str
    which: str


@dataclass(frozen=True)
class HeadValues:
    """z: per-head mixed values, as they enter the out projection."""

    block: BlockSite
    attention: Attention
    stream: str


@dataclass(frozen=True)
class HeadResult:
    """Each head's own contribution to the raw output."""

    block: BlockSite
    attention: Attention
    stream: str


@dataclass(frozen=True)
class BeforeRope:
    """A query or key before the rotary embedding."""

    block: BlockSite
    attention: Attention
    stream: str
    which: str


@dataclass(frozen=True)
class ProductInput:
    """A query, key or value as it enters the attention product."""

    block: BlockSite
    attention: Attention
    stream: str
    which: str
    product: int = 0


@dataclass(frozen=True)
class ProductOutput:
    """z as it leaves the attention product, where no projection takes it."""

    block: BlockSite
    attention: Attention
    stream: str
    product: int = 0


@dataclass(frozen=True)
class ProductWeights:
    """Scores before the softmax, or the pattern after it."""

    block: BlockSite
    attention: Attention
    which: str
    product: int = 0


@dataclass(frozen=True)
class AttentionContext:
    """The text entering k and v of a cross-attention."""

    block: BlockSite
    attention: Attention


@dataclass(frozen=True)
class AtModule:
    """A module's argument or output, outside the blocks or by its native path."""

    point: ModulePoint


@dataclass(frozen=True)
class AtScheduler:
    """What the scheduler is given: latents, guided prediction, the clean image it implies."""

    which: str


Source = (
    StreamEntering
    | StreamBetween
    | StreamLeaving
    | SublayerOutput
    | SublayerUpdate
    | Neurons
    | Routing
    | HeadValues
    | HeadResult
    | BeforeRope
    | ProductInput
    | ProductOutput
    | ProductWeights
    | AttentionContext
    | AtModule
    | AtScheduler
)
