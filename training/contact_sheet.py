"""The picture of the toy models in the documentation: renders beside what the models draw.

python training/contact_sheet.py docs/assets/toys.png
"""

import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion_lens import toys
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.scenes import pose

CAPTIONS = (
    "a large striped red circle on a gray background",
    "a dotted blue square on a white background",
    "a small yellow triangle on a black background",
    "an orange on a pink background",
    "an orange square on a black background",
    "a green cross on a white background",
    "a red circle above a blue square on a white background",
    "a yellow cross left of an orange on a gray background",
    "a striped green triangle below a red square on a black background",
)
CELL, TEXT, MARGIN = 128, 62, 10


def main() -> None:
    names = toys.names()
    rng = np.random.default_rng(0)
    rows = {"exact render": [render(pose(text, rng=rng)).image for text in CAPTIONS]}
    for name in names:
        rows[name] = list(toys.generate(toys.load(name), CAPTIONS, seed=400))
    width = MARGIN + 110 + len(CAPTIONS) * (CELL + MARGIN)
    sheet = Image.new("RGB", (width, TEXT + len(rows) * (CELL + MARGIN) + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, text in enumerate(CAPTIONS):
        left = MARGIN + 110 + column * (CELL + MARGIN)
        draw.text((left, 6), textwrap.fill(text, 22), fill="black", font=font)
    for row, (name, images) in enumerate(rows.items()):
        top = TEXT + MARGIN + row * (CELL + MARGIN)
        draw.text((MARGIN, top + CELL // 2 - 8), name, fill="black", font=font)
        for column, image in enumerate(images):
            enlarged = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (MARGIN + 110 + column * (CELL + MARGIN), top))
    sheet.save(Path(sys.argv[1]), optimize=True)


if __name__ == "__main__":
    main()
