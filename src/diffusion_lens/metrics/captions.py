"""How well images fit texts by way of captions: BLIP says what it sees, CLIP compares texts.

Source: Chefer et al., Attend-and-Excite, arXiv 2301.13826, section 5 (text-text similarity); Li et
al., BLIP, arXiv 2201.12086.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffusion_lens.border import Count, Size, public
from diffusion_lens.border.devices import Device
from diffusion_lens.errors import ArgumentError
from diffusion_lens.metrics.alignment import OPENCLIP_H14, ClipScore
from diffusion_lens.showing.one_line import counted

BLIP_BASE = "Salesforce/blip-image-captioning-base"
JOINT = " and "
"""What separates the two things of a benchmark's prompt."""


class CaptionScore:
    """Cosine similarity of a prompt and of what a captioner says about its image.

    It sees whether things are there at all better than an image score does, and nothing that the
    captioner does not say.

    Args:
        captioner: A transformers `BlipForConditionalGeneration`.
        processor: Its `BlipProcessor`.
        clip: What compares the texts.
        batch_size: Images at once.
    """

    @public
    def __init__(
        self, captioner: Any, processor: Any, clip: ClipScore, *, batch_size: Count = 16
    ) -> None:
        """Keep the models as they are."""
        self.captioner = captioner
        self.processor = processor
        self.clip = clip
        self.batch_size = batch_size

    @classmethod
    @public
    def load(
        cls,
        captioner: str = BLIP_BASE,
        clip: str = OPENCLIP_H14,
        *,
        device: Device = "cpu",
    ) -> CaptionScore:
        """Load both models by their ids on the Hub, or from folders.

        Args:
            captioner: Id or folder.
            clip: Id or folder.
            device: Where to compute.
        """
        from transformers import BlipForConditionalGeneration, BlipProcessor

        loaded: Any = BlipForConditionalGeneration.from_pretrained(captioner)
        processor = BlipProcessor.from_pretrained(captioner)
        return cls(loaded.eval().to(device), processor, ClipScore.load(clip, device=device))

    @public
    def captions(self, images: Sequence[Image.Image], *, max_new_tokens: Size = 20) -> list[str]:
        """What the captioner says about each image, without sampling."""
        found: list[str] = []
        for start in range(0, len(images), self.batch_size):
            some = [image.convert("RGB") for image in images[start : start + self.batch_size]]
            given = self.processor(images=some, return_tensors="pt").to(self.captioner.device)
            with torch.no_grad():
                tokens = self.captioner.generate(
                    **given, max_new_tokens=max_new_tokens, do_sample=False
                )
            found += self.processor.batch_decode(tokens, skip_special_tokens=True)
        return found

    @public
    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str]
    ) -> Float[Tensor, " image"]:
        """Similarity of each image's caption to its prompt.

        Raises:
            ArgumentError: If they do not pair.
        """
        if len(images) != len(prompts) or not images:
            raise ArgumentError(
                f"{counted(len(prompts), 'prompt')} for {counted(len(images), 'image')}; give one "
                "for each"
            )
        said = self.clip.embed_texts(self.captions(images))
        return (said * self.clip.embed_texts(list(prompts))).sum(-1)


@public
def least_object(
    clip: ClipScore, images: Sequence[Image.Image], prompts: Sequence[str]
) -> Float[Tensor, " image"]:
    """The worse of the two halves of a prompt: how well the more neglected thing is there.

    Args:
        clip: What scores images against texts.
        images: The images.
        prompts: For each a prompt of two things joined by "and".

    Returns:
        Cosines, in [-1, 1].

    Raises:
        ArgumentError: If prompts and images do not pair, or a prompt has not two such halves.

    Source: arXiv 2301.13826, section 5 (minimum object similarity).
    """
    halves = [prompt.split(JOINT) for prompt in prompts]
    for prompt, half in zip(prompts, halves, strict=True):
        if len(half) != 2:
            raise ArgumentError(f"{prompt!r} has {len(half)} parts joined by 'and', two are needed")
    scores = [clip(images, [half[side] for half in halves]) for side in (0, 1)]
    return torch.minimum(*scores)
