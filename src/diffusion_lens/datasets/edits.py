"""The prompt pairs of the head-relevance paper's editing benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffusion_lens.errors import ConceptError, refuse_unknown

SEEDS = tuple(range(10, 101, 10))
"""The paper's: ten images for each pair."""

# Spelt as they were published, "ballon" and "a umbrella" too: another spelling is another prompt.
CARRIERS = {
    "Color": ("a {} {}", ("car", "bench", "bowl", "ballon", "ball")),
    "Material": ("a {1} made of {0}", ("bowl", "cup", "table", "ball", "teapot")),
    "Geometric Patterns": (
        "a {1} with a {0} pattern",
        ("T-shirt", "pillow", "wallpaper", "umbrella", "blanket"),
    ),
    "Image Style": (
        "a {} style painting of a {}",
        ("castle", "mountain", "cityscape", "farmland", "forest"),
    ),
    "Weather Conditions": ("a {1} on a {0} day", ("frog", "cat", "rabbit", "bird", "dog")),
}
CHANGES = {
    "Color": (
        "blue brown, red purple, pink yellow, green white, gray blue, white black, blue red, "
        "brown pink, yellow green, purple gray"
    ),
    "Material": (
        "wood glass, steel copper, silver marble, marble glass, paper jade, gold basalt, "
        "glass granite, granite clay, wood paper, steel leather"
    ),
    "Geometric Patterns": (
        "polka-dot leopard, leopard stripe, stripe greek-key, greek-key plaid, plaid polka-dot, "
        "stripe leopard, polka-dot plaid, greek-key stripe, plaid greek-key, leopard plaid"
    ),
    "Image Style": (
        "watercolor sepia, black-and-white steampunk, cubist sketch, minimalist pop-art, "
        "sketch impressionist, cartoon sepia, pop-art impressionist, watercolor cubist, "
        "impressionist minimalist, steampunk watercolor"
    ),
    "Weather Conditions": "sunny snowy, sunny rainy, sunny foggy, foggy rainy, foggy snowy",
}


@dataclass(frozen=True)
class EditSet:
    """Pairs of a source and a target prompt that differ in one attribute.

    Attributes:
        concept: The attribute, a concept of the head relevance vectors.
        pairs: (source, target), in the published order.
        words: (word of the source, word of the target) that differ.
        seeds: The seeds of the published images.
        source: Where they were published.
    """

    concept: str
    pairs: tuple[tuple[str, str], ...]
    words: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...] = SEEDS
    source: str = "Park et al., arXiv 2412.02237, section 5.2 and its repository"

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The pairs."""
        return iter(self.pairs)


def published_edits(concept: str) -> EditSet:
    """The editing benchmark of one attribute: 50 pairs, 25 for the weather, ten seeds.

    Args:
        concept: `"Color"`, `"Material"`, `"Geometric Patterns"`, `"Image Style"` or
            `"Weather Conditions"`.

    Raises:
        ConceptError: If it is none of them.

    Source: arXiv 2412.02237, section 5.2; spelling and order are those of its repository.
    """
    refuse_unknown("concept", concept, CARRIERS, error=ConceptError)
    template, carriers = CARRIERS[concept]
    changes = [tuple(change.split()) for change in CHANGES[concept].split(", ")]
    found = [(change, carrier) for change in changes for carrier in carriers]
    return EditSet(
        concept,
        tuple(
            (template.format(before, carrier), template.format(after, carrier))
            for (before, after), carrier in found
        ),
        tuple((before, after) for (before, after), _ in found),
    )
