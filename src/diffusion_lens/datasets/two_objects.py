"""The prompts of the head-relevance paper's multi-concept benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffusion_lens.errors import ConceptError, refuse_unknown

TYPE_1 = (
    "bird fish, frog horse, squirrel fish, squirrel penguin, dog bird, frog penguin, penguin "
    "horse, fox frog, cat penguin, frog bear, dog bear, fox penguin, fox lion, cat fish, cat "
    "horse, deer horse, squirrel frog, frog deer, lion fish, bird horse, cat bear, squirrel "
    "lion, cat squirrel, lion deer, lion horse, deer penguin, horse fish, lion penguin, "
    "squirrel deer, penguin bear, dog frog, fox bear, squirrel fox, deer bird, dog fish, dog "
    "cat, cat bird, squirrel bear, penguin bird, squirrel bird, deer fish, lion bird, cat fox, "
    "horse bear, frog fish, lion frog, fox deer, bird bear, cat lion, deer bear, dog squirrel, "
    "dog fox, squirrel horse, fox fish, dog deer, fox bird, penguin fish, lion bear, dog "
    "penguin, frog bird, dog horse, bear fish, cat deer, fox horse, dog lion, cat frog"
)
TYPE_2 = (
    "green penguin purple bear, white dog brown horse, pink cat red penguin, brown bird red "
    "bear, white bird red bear, pink lion purple penguin, gray fox pink lion, gray frog green "
    "bird, gray frog green horse, brown frog black penguin, gray deer pink bear, gray dog "
    "yellow bear, yellow bird purple horse, green deer purple horse, gray deer purple bird, "
    "gray cat green squirrel, brown cat red deer, green dog brown horse, green dog purple "
    "horse, yellow lion purple frog, purple lion blue deer, purple fox brown frog, yellow "
    "penguin black fish, gray dog purple frog, green lion blue bear, purple lion black frog, "
    "yellow fox blue bird, gray cat brown deer, gray dog black squirrel, yellow fox brown lion, "
    "black deer red fish, yellow bird red fish, yellow fox black penguin, pink frog black bird, "
    "pink squirrel purple lion, black penguin blue bear, pink fox blue bear, green squirrel "
    "pink horse, yellow cat white fish, gray lion yellow bird, gray lion green horse, purple "
    "lion brown bird, yellow cat green penguin, red deer blue penguin, gray cat blue penguin, "
    "yellow fox purple lion, gray cat red fish, brown dog red horse, white lion black frog, "
    "brown fox black fish, gray frog purple deer, green bird red bear, yellow dog brown bird, "
    "yellow lion white fish, white dog purple frog, pink deer purple penguin, gray horse blue "
    "bear, yellow fox white lion, green cat blue penguin, green fox brown frog, white dog red "
    "horse, black lion blue frog, yellow cat blue fox, green dog black lion, pink horse black "
    "bear, gray fox red bird, gray frog brown fish, green bear purple fish, pink deer red bear, "
    "purple dog black bird, gray horse green fish, white squirrel blue bear, gray penguin "
    "purple bird, green dog pink penguin, green lion pink bird, pink squirrel black fox, purple "
    "bear black fish, gray penguin black fish, purple dog red penguin, brown lion black deer, "
    "yellow lion white horse, yellow cat pink penguin, brown bear red fish, brown deer black "
    "bird, yellow horse white fish, white bear brown fish, green lion white bear, yellow horse "
    "blue bear, white deer brown horse, purple penguin blue horse, white cat brown frog, pink "
    "bear blue fish, green fox blue frog, pink frog blue horse, purple cat red fish, pink lion "
    "black horse, green cat red deer, gray fox white penguin, pink lion blue penguin, white "
    "deer black fish, green lion red bear, green horse red bear, green frog white bear, green "
    "bird white fish, yellow squirrel pink horse, yellow fox pink bird, brown squirrel red "
    "penguin, yellow frog black deer, gray bird white fish, yellow squirrel pink bird, yellow "
    "dog purple penguin, yellow dog pink bird, white lion purple fish, green dog pink frog, "
    "purple lion black deer, black cat blue fish, yellow frog red penguin, purple dog brown "
    "deer, white frog red bird, pink horse blue fish, white squirrel brown bird, black lion "
    "blue deer, purple dog black penguin, green frog white horse, black lion blue bird, yellow "
    "fox purple bear, pink bird purple fish, yellow bird pink bear, pink dog red penguin, "
    "yellow cat red squirrel, gray fox purple fish, gray dog purple cat, yellow lion purple "
    "fish, green lion brown bird, green dog white penguin, pink cat black bird, yellow frog "
    "brown fish, white cat red lion, gray cat pink frog, yellow cat red deer, green fox white "
    "bird, gray deer purple penguin, black frog red bird, purple bird blue horse, purple lion "
    "blue frog, gray lion purple fish, gray lion purple bear, green lion brown fish, black dog "
    "red fox, yellow lion brown fish"
)
KINDS = {"type1": TYPE_1, "type2": TYPE_2}


@dataclass(frozen=True)
class PromptSet:
    """Prompts of two things each.

    Attributes:
        name: Which.
        prompts: In the published order.
        words: For each prompt the two nouns, which the published method excites.
        concept: Their concept among the head relevance vectors.
        seeds: None: neither paper nor repository says how many or which there were.
        source: Where they were published.
    """

    name: str
    prompts: tuple[str, ...]
    words: tuple[tuple[str, str], ...]
    concept: str = "Animals"
    seeds: tuple[int, ...] | None = None
    source: str = "Park et al., arXiv 2412.02237, section 5.3 and its repository"

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[str]:
        """The prompts."""
        return iter(self.prompts)


def published_pairs(name: str) -> PromptSet:
    """The multi-concept benchmark: two animals, or two animals with colours.

    Args:
        name: `"type1"`: 66 prompts "a bird and a fish"; `"type2"`: 150 prompts "a green penguin and
            a purple bear".

    Raises:
        ConceptError: If it is neither.

    Source: arXiv 2412.02237, section 5.3; order is that of its repository.
    """
    refuse_unknown("name", name, KINDS, error=ConceptError)
    prompts, words = [], []
    for entry in KINDS[name].split(", "):
        found = entry.split()
        half = len(found) // 2
        first, second = found[:half], found[half:]
        prompts.append(f"a {' '.join(first)} and a {' '.join(second)}")
        words.append((first[-1], second[-1]))
    return PromptSet(name, tuple(prompts), tuple(words))
