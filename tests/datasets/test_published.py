"""The published prompts: counts, spelling, order."""

import hashlib
import itertools

import pytest

from diffusion_lens.datasets import published_edits, published_pairs
from diffusion_lens.errors import ConceptError

EDITS = {
    "Color": 50,
    "Material": 50,
    "Geometric Patterns": 50,
    "Image Style": 50,
    "Weather Conditions": 25,
}
PUBLISHED = {  # beginnings of SHA-256, lines ending in a line feed
    "Color": "99a77cb90df50d35",
    "Material": "3fdf760ce576760c",
    "Geometric Patterns": "82ab93921bbc8fef",
    "Image Style": "251068ae273e9ed1",
    "Weather Conditions": "3afae7ae3cd6dc19",
    "type1": "d3e023b67a1f3ca2",
    "type2": "7771316ab118fcac",
}


def digest(lines: list[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("concept", "count"), EDITS.items())
def test_edits_are_the_published_ones(concept: str, count: int) -> None:
    found = published_edits(concept)
    assert len(found) == count == len(set(found))
    assert found.seeds == (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    assert digest([",".join(pair) for pair in found]) == PUBLISHED[concept]
    for (source, target), (before, after) in zip(found, found.words, strict=True):
        assert target == source.replace(before, after)
        assert source.split().count(before) == 1


def test_type_1_is_every_pair_of_twelve_animals() -> None:
    found = published_pairs("type1")
    animals = sorted({word for words in found.words for word in words})
    assert len(animals) == 12
    asked = [frozenset(words) for words in found.words]
    assert sorted(map(sorted, asked)) == sorted(map(list, itertools.combinations(animals, 2)))
    assert found.prompts[0] == "a bird and a fish"
    assert digest(list(found)) == PUBLISHED["type1"]


def test_type_2_gives_both_animals_colours() -> None:
    found = published_pairs("type2")
    assert len(set(found)) == 150
    assert found.prompts[0] == "a green penguin and a purple bear"
    assert found.words[0] == ("penguin", "bear")
    assert digest(list(found)) == PUBLISHED["type2"]
    for prompt in found:
        _, one, _, _, _, other, _ = prompt.split()
        assert one != other


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(ConceptError, match=r"concept='Colour' is none of .* Closest: 'Color'"):
        published_edits("Colour")
    with pytest.raises(ConceptError, match=r"name='type3' is none of"):
        published_pairs("type3")
