"""An excited image as a result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffusion_lens.analyses.saving import Saved
from diffusion_lens.errors import ResultError
from diffusion_lens.showing.gallery import gallery
from diffusion_lens.showing.one_line import counted, one_line, short


@dataclass(frozen=True)
class ExcitedImages(Saved):
    """An image whose latents were moved towards words.

    Attributes:
        prompt: The prompt.
        words: The words, with the tokens of each.
        images: The image, in a list; None for `output_type="latent"`.
        latents: Its latents, as the pipeline holds them.
        losses: What the least attended token lacked before every move, in [0, 1].
        steps: The step of each of these moves.
        made_by: What was run and how.
        citation: What to cite.
    """

    prompt: str
    words: dict[str, tuple[int, ...]]
    images: Any
    latents: Float[Tensor, "row ..."]
    losses: Float[Tensor, " update"]
    steps: tuple[int, ...]
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = ""

    @property
    def image(self) -> Any:
        """The image."""
        if self.images is None:
            raise ResultError(
                'it was made with output_type="latent" and has no image; decode its latents with '
                "`model.decode_latents(result.latents)`"
            )
        return self.images[0]

    def plot(self) -> Any:
        """The loss before every move, over the moves."""
        from diffusion_lens import viz

        figure = viz.curves(
            list(range(len(self.losses))),
            {"loss": self.losses},
            title=self.prompt,
            note="What the least attended word lacks before each move of the latents: 1 is no "
            "attention at its best place, 0 all of it.",
            x_title="move",
            y_title="attention that is lacking",
        )
        return figure.update_yaxes(range=[0, 1.05])

    def __repr__(self) -> str:
        """Prompt, words and how many moves, in one line."""
        return one_line(
            self,
            short(self.prompt),
            f"words {list(self.words)}",
            counted(len(self.losses), "move"),
            f"latents {tuple(self.latents.shape)}",
            made_by=self.made_by,
            look=(".image", ".plot()"),
        )

    def _repr_html_(self) -> str | None:
        """The image."""
        return gallery(self.images, captions=[self.prompt], line=repr(self))
