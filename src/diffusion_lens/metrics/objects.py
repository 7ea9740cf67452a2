"""Where an object that a text names lies in an image: Grounding DINO finds it, SAM 2 outlines it.

Source: Liu et al., Grounding DINO, arXiv 2303.05499; Ravi et al., SAM 2, arXiv 2408.00714.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from diffusion_lens.border import Fraction, public
from diffusion_lens.border.devices import Device
from diffusion_lens.errors import ArgumentError
from diffusion_lens.showing.one_line import counted

GROUNDING_DINO = "IDEA-Research/grounding-dino-base"
SAM_2 = "facebook/sam2.1-hiera-large"
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels that SAM 2 was trained on."""


class TextMasks:
    """Masks of what a text names.

    A text that names nothing in the image gives an empty mask; a wrong box gives a wrong mask.
    Look at some before you believe a score that rests on them.

    Args:
        detector: A transformers `GroundingDinoForObjectDetection`.
        processor: Its processor.
        segmenter: A transformers `Sam2Model`.
        threshold: Least confidence of a box.
        text_threshold: Least confidence of a box's words.
    """

    @public
    def __init__(
        self,
        detector: Any,
        processor: Any,
        segmenter: Any,
        *,
        threshold: Fraction = 0.35,
        text_threshold: Fraction = 0.25,
    ) -> None:
        """Keep the models as they are."""
        self.detector = detector
        self.processor = processor
        self.segmenter = segmenter
        self.threshold = threshold
        self.text_threshold = text_threshold

    @classmethod
    @public
    def load(
        cls,
        detector: str = GROUNDING_DINO,
        segmenter: str = SAM_2,
        *,
        device: Device = "cpu",
    ) -> TextMasks:
        """Load both models by their ids on the Hub, or from folders.

        Args:
            detector: Id or folder.
            segmenter: Id or folder.
            device: Where to compute.
        """
        from transformers import AutoProcessor, GroundingDinoForObjectDetection, Sam2Model

        finds: Any = GroundingDinoForObjectDetection.from_pretrained(detector)
        outlines: Any = Sam2Model.from_pretrained(segmenter)
        processor = AutoProcessor.from_pretrained(detector)
        return cls(finds.eval().to(device), processor, outlines.eval().to(device))

    @public
    def __call__(
        self, images: Sequence[Image.Image], texts: str | Sequence[str]
    ) -> list[Bool[np.ndarray, "height width"]]:
        """A mask for each image.

        Args:
            images: The images.
            texts: What to find; one for each image, or one for all.

        Raises:
            ArgumentError: If texts and images do not pair.
        """
        listed = [texts] * len(images) if isinstance(texts, str) else list(texts)
        if len(listed) != len(images) or not listed:
            raise ArgumentError(
                f"{counted(len(listed), 'text')} for {counted(len(images), 'image')}; give one for "
                "each, or one for all"
            )
        return [
            self.outline(image, self.boxes(image, text))
            for image, text in zip(images, listed, strict=True)
        ]

    @public
    def boxes(self, image: Image.Image, text: str) -> Float[Tensor, "box 4"]:
        """Boxes of what a text names, in pixels: left, top, right, bottom."""
        phrase = text.lower().strip().rstrip(".") + "."  # which the detector was trained on
        given = self.processor(images=image.convert("RGB"), text=phrase, return_tensors="pt")
        given = given.to(self.detector.device)
        with torch.no_grad():
            out = self.detector(**given)
        (found,) = self.processor.post_process_grounded_object_detection(
            out,
            given["input_ids"],
            threshold=self.threshold,
            text_threshold=self.text_threshold,
            target_sizes=[(image.height, image.width)],
        )
        return found["boxes"].float().cpu()

    @public
    def outline(
        self, image: Image.Image, boxes: Float[Tensor, "box 4"]
    ) -> Bool[np.ndarray, "height width"]:
        """The pixels of what lies in any of the boxes."""
        if not len(boxes):
            return np.zeros((image.height, image.width), dtype=bool)
        side = int(self.segmenter.config.vision_config.backbone_config.image_size[0])
        pixels = torch.from_numpy(np.array(image.convert("RGB"), np.float32) / 255)
        pixels = (pixels - torch.tensor(MEAN)) / torch.tensor(SPREAD)
        pixels = functional.interpolate(
            pixels.permute(2, 0, 1)[None], (side, side), mode="bilinear", antialias=True
        )
        scale = torch.tensor([side / image.width, side / image.height] * 2)
        with torch.no_grad():
            out = self.segmenter(
                pixel_values=pixels.to(self.segmenter.device),
                input_boxes=(boxes * scale)[None].to(self.segmenter.device),
                multimask_output=False,
            )
        logits = out.pred_masks[0, :, 0].float().cpu()
        size = (image.height, image.width)
        large = functional.interpolate(logits[:, None], size, mode="bilinear")[:, 0]
        return (large > 0).any(0).numpy()
