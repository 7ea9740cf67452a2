"""Published prompts, as they were published."""

from diffusion_lens.datasets.edits import EditSet as EditSet
from diffusion_lens.datasets.edits import published_edits as published_edits
from diffusion_lens.datasets.two_objects import PromptSet as PromptSet
from diffusion_lens.datasets.two_objects import published_pairs as published_pairs
