"""Values in, plotly figure out; figures show in notebooks and are written as HTML or PNG."""

from diffusion_lens.viz.blending import overlay_image as overlay_image
from diffusion_lens.viz.grids import head_grid as head_grid
from diffusion_lens.viz.lines import bars as bars
from diffusion_lens.viz.lines import curves as curves
from diffusion_lens.viz.overlaying import overlays as overlays
from diffusion_lens.viz.strips import image_strip as image_strip
from diffusion_lens.viz.video import frames as frames
from diffusion_lens.viz.video import gif as gif
from diffusion_lens.viz.words import TokenPatterns as TokenPatterns
from diffusion_lens.viz.words import token_patterns as token_patterns
from diffusion_lens.viz.words import tokens as tokens
from diffusion_lens.viz.writing import write as write

__all__ = [
    "TokenPatterns",
    "bars",
    "curves",
    "frames",
    "gif",
    "head_grid",
    "image_strip",
    "overlay_image",
    "overlays",
    "token_patterns",
    "tokens",
    "write",
]
