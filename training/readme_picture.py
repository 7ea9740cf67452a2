"""Draw the picture of the README: two models, and what four methods see in them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion_lens import HookedDiffusion, toys
from diffusion_lens.analyses import activation_patching, attention_maps, concept_attention
from diffusion_lens.viz.pictures import coloured

PROMPT = "a red circle above a blue square on a white background"
OTHER = "a green circle above a blue square on a white background"
CONCEPTS = ["red circle", "blue square", "white background"]
SIDE, GAP, TITLE = 200, 14, 26


def panel(picture: Image.Image, *, over: Image.Image | None = None) -> Image.Image:
    """A square panel; a map is laid over the picture."""
    base = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    if over is None:
        return base
    return Image.blend(base, over.convert("RGB").resize((SIDE, SIDE)), 0.65)


def saliency(values: np.ndarray) -> Image.Image:
    """A map in colours, from its own least value to its largest."""
    return coloured(values, [float(values.min()), float(values.max())])


def main() -> None:
    """Run the methods and write the sheet."""
    unet, mmdit = HookedDiffusion.toy("shapes-unet"), HookedDiffusion.toy("shapes-mmdit")
    settings = toys.call_defaults(unet.pipe, steps=20)
    daam = attention_maps(unet, PROMPT, words=["square", "circle"], **settings)
    concepts = concept_attention(mmdit, PROMPT, concepts=CONCEPTS, **toys.call_defaults(mmdit.pipe))
    patched = activation_patching(
        unet,
        OTHER,
        PROMPT,
        sites="blocks.*.cross_attn.img.hook_z",
        axes=("block", "step"),
        seeds=range(4),
        show_progress=False,
        **toys.call_defaults(unet.pipe, steps=10),
    )
    image = unet(PROMPT, **settings).images[0]
    rows = [
        [
            ("shapes-unet", panel(image)),
            *(
                (f"attention to “{word}”", panel(image, over=saliency(daam.word(word)[0].numpy())))
                for word in ("square", "circle")
            ),
            ("patched: block by step", panel(saliency(patched.effects.numpy()))),
        ],
        [
            ("shapes-mmdit", panel(concepts.images[0])),
            *(
                (
                    f"concept “{one}”",
                    panel(concepts.images[0], over=saliency(concepts.of(one)[0].numpy())),
                )
                for one in CONCEPTS
            ),
        ],
    ]
    width, height = 4 * SIDE + 5 * GAP, 2 * (SIDE + TITLE) + 3 * GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for down, row in enumerate(rows):
        for right, (title, picture) in enumerate(row):
            x, y = GAP + right * (SIDE + GAP), GAP + down * (SIDE + TITLE + GAP)
            draw.text((x, y + 4), title, fill="black", font=font)
            sheet.paste(picture, (x, y + TITLE))
    sheet.save(Path(__file__).parents[1] / "docs" / "assets" / "overview.png", optimize=True)


if __name__ == "__main__":
    main()
