"""Draw the picture of the README: two models, and what three methods see in them."""

from pathlib import Path

import numpy as np
from diffusion_lens.app.demo.stage import LOCALISING
from PIL import Image, ImageDraw, ImageFont
from plotly.colors import sample_colorscale

from diffusion_lens import HookedDiffusion, toys, viz
from diffusion_lens.analyses import activation_patching, attention_maps, concept_attention
from diffusion_lens.viz.style import DIVERGING, SEQUENTIAL, opacity

PROMPT = "a red circle above a blue square on a white background"
OTHER = "a green circle above a blue square on a white background"
WORDS = ["circle", "square"]
CONCEPTS = ["red circle", "blue square", "white background"]
SEED = 0
FILE = Path(__file__).parents[1] / "docs" / "assets" / "overview.png"

SIDE, GAP, ROW = 400, 84, 600
"""Pixels of a panel's side, between panels, and from a row to the next; twice what is shown."""
LEFT, TOP = 40, 112
INK, FAINT = "#1d2329", "#5c6670"


class Sheet:
    """A white picture to draw on: two rows of four panels."""

    def __init__(self) -> None:
        """Nothing is on it yet."""
        width = 2 * LEFT + 4 * SIDE + 3 * GAP
        self.picture = Image.new("RGB", (width, 2 * ROW + 10), "white")
        self.pen = ImageDraw.Draw(self.picture)

    def text(
        self, x: float, y: float, said: str, *, size: int = 26, ink: str = INK, at: str = "la"
    ):
        """Write; `at` is the anchor of PIL."""
        self.pen.text((x, y), said, fill=ink, font=ImageFont.load_default(size), anchor=at)

    def upright(self, x: int, y: int, said: str) -> None:
        """Write from below to above, left of `x` and centred at `y`."""
        strip = Image.new("RGB", (120, 28), "white")
        font = ImageFont.load_default(21)
        ImageDraw.Draw(strip).text((60, 14), said, fill=FAINT, font=font, anchor="mm")
        self.picture.paste(strip.rotate(90, expand=True), (x - 28, y - 60))

    def panel(self, x: int, y: int, shown: Image.Image, title: str) -> None:
        """A square picture, its pixels kept, under its title."""
        self.text(x, y - 12, title, size=24, at="ls")
        self.picture.paste(shown.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
        self.pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline="#d9dde1")

    def scale(self, x: int, y: int, width: int, colours: np.ndarray, ends: list[str], name: str):
        """A colour scale, what its ends are, and what the numbers are."""
        strip = Image.fromarray(colours[None].astype(np.uint8)).resize((width, 16))
        self.picture.paste(strip, (x, y))
        self.pen.rectangle((x, y, x + width - 1, y + 15), outline="#d9dde1")
        for number, end in enumerate(ends):
            share = number / (len(ends) - 1)
            self.text(x + share * width, y + 22, end, size=21, ink=FAINT, at=_anchor(share))
        self.text(x + width + 22, y + 8, name, size=21, ink=FAINT, at="lm")


def _anchor(share: float) -> str:
    return "la" if share == 0 else "ra" if share == 1 else "ma"


def colours(name: str, *, clear: bool = False) -> np.ndarray:
    """256 colours; over white as they look over an image."""
    share = np.linspace(0, 1, 256)
    found = 255 * np.array(sample_colorscale(name, share.tolist(), colortype="tuple"))
    hides = opacity(share)[:, None] if clear else 1.0
    return found * hides + 255 * (1 - hides)


def over(image: Image.Image, values: np.ndarray, most: float) -> Image.Image:
    """A map over its image, on a scale from 0."""
    big = image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return viz.overlay_image(big, values, zmin=0.0, zmax=most, upsample="bilinear", grey=True)


def main() -> None:
    """Run the methods and write the sheet."""
    unet, mmdit = HookedDiffusion.toy("shapes-unet"), HookedDiffusion.toy("shapes-mmdit")
    attention = attention_maps(
        unet, PROMPT, words=WORDS, seed=SEED, **toys.call_defaults(unet.pipe, steps=20)
    )
    concepts = concept_attention(
        mmdit,
        PROMPT,
        concepts=CONCEPTS,
        blocks=LOCALISING,
        seed=SEED,
        **toys.call_defaults(mmdit.pipe),
    )
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
    assert concepts.images is not None
    sheet = Sheet()
    places = [LEFT + number * (SIDE + GAP) for number in range(4)]

    sheet.text(LEFT, 22, "Where does a U-Net read each word?", size=32)
    sheet.panel(places[0], TOP, attention.images[0], "what it drew")
    maps = {word: attention.word(word)[0].numpy() for word in WORDS}
    most = max(float(one.max()) for one in maps.values())
    for x, (word, values) in zip(places[1:], maps.items(), strict=False):
        sheet.panel(x, TOP, over(attention.images[0], values, most), f"attention to “{word}”")
    shown = colours(SEQUENTIAL, clear=True)
    ends = ["0", f"{most:.2f}"]
    sheet.scale(places[1], TOP + SIDE + 14, SIDE, shown, ends, "share of attention")

    sheet.text(places[3], 22, "Which block carries “green”?", size=32)
    patching(sheet, places[3], TOP, patched)

    second = TOP + ROW
    sheet.text(LEFT, ROW + 22, "Where does a Flux transformer see each concept?", size=32)
    sheet.panel(places[0], second, concepts.images[0], "what it drew")
    for x, one in zip(places[1:], CONCEPTS, strict=True):
        values = concepts.of(one)[0].numpy()
        sheet.panel(x, second, over(concepts.images[0], values, 1.0), f"“{one}”")
    name = f"weight; at each place the three sum to 1 (block {LOCALISING[0]})"
    sheet.scale(places[1], second + SIDE + 14, SIDE, shown, ["0", "1"], name)
    sheet.picture.save(FILE, optimize=True)


def patching(sheet: Sheet, x: int, y: int, patched) -> None:
    """Effects by block and step, with axes and scale."""
    effects = patched.effects.numpy()
    table = colours(DIVERGING)[((effects.clip(-1, 1) + 1) / 2 * 255).round().astype(int)]
    sheet.panel(x, y, Image.fromarray(table.astype(np.uint8)), "put into a run that draws “red”")
    rows, columns = effects.shape
    for row in range(rows):
        sheet.text(x - 10, y + (row + 0.5) * SIDE / rows, str(row), size=21, ink=FAINT, at="rm")
    for column in range(columns):
        place = x + (column + 0.5) * SIDE / columns
        sheet.text(place, y + SIDE + 6, str(column), size=21, ink=FAINT, at="ma")
    sheet.upright(x - 40, y + SIDE // 2, "block")
    sheet.text(x + SIDE / 2, y + SIDE + 32, "denoising step", size=21, ink=FAINT, at="ma")
    half = colours(DIVERGING)
    sheet.scale(x, y + SIDE + 64, SIDE, half, ["-1", "0 stays red", "1 as green"], "")


if __name__ == "__main__":
    main()
