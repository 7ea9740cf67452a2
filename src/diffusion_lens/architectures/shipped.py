"""The families that this package describes."""

from dataclasses import replace

from diffusion_lens.architectures.allegro import ALLEGRO
from diffusion_lens.architectures.auraflow import AURAFLOW
from diffusion_lens.architectures.bria_fibo import BRIA_FIBO
from diffusion_lens.architectures.cogvideox import COGVIDEOX, CONSISID
from diffusion_lens.architectures.cogview import COGVIEW3_PLUS, COGVIEW4, GLM_IMAGE
from diffusion_lens.architectures.cosmos import COSMOS
from diffusion_lens.architectures.easyanimate import EASY_ANIMATE
from diffusion_lens.architectures.ernie_image import ERNIE_IMAGE
from diffusion_lens.architectures.flux import FLUX
from diffusion_lens.architectures.flux2 import FLUX2
from diffusion_lens.architectures.flux3 import FLUX3
from diffusion_lens.architectures.flux_copies import BRIA, CHROMA, LONGCAT, OVIS
from diffusion_lens.architectures.hidream import HIDREAM
from diffusion_lens.architectures.hunyuan import HUNYUAN_IMAGE, HUNYUAN_VIDEO, HUNYUAN_VIDEO_15
from diffusion_lens.architectures.hunyuan_dit import HUNYUAN_DIT
from diffusion_lens.architectures.ideogram4 import IDEOGRAM4
from diffusion_lens.architectures.joyimage import JOY_IMAGE_EDIT, JOY_IMAGE_EDIT_PLUS
from diffusion_lens.architectures.kandinsky5 import KANDINSKY5
from diffusion_lens.architectures.krea2 import KREA2
from diffusion_lens.architectures.ltx import LTX_VIDEO
from diffusion_lens.architectures.ltx2 import LTX2
from diffusion_lens.architectures.lumina2 import LUMINA2
from diffusion_lens.architectures.mochi import MOCHI
from diffusion_lens.architectures.motif_video import MOTIF_VIDEO
from diffusion_lens.architectures.nucleus import NUCLEUS
from diffusion_lens.architectures.pixart import PIXART
from diffusion_lens.architectures.prx import PRX
from diffusion_lens.architectures.qwen_image import QWEN_IMAGE
from diffusion_lens.architectures.sana import SANA, SANA_VIDEO
from diffusion_lens.architectures.sd3 import SD3
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.architectures.unet import UNET
from diffusion_lens.architectures.wan import CHRONO_EDIT, SKYREELS_V2, WAN, WAN_ANIMATE, WAN_VACE
from diffusion_lens.architectures.z_image import Z_IMAGE

RUN = (
    UNET,
    SD3,
    FLUX,
    FLUX2,
    Z_IMAGE,
    QWEN_IMAGE,
    WAN,
    KREA2,
    LTX_VIDEO,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_15,
    HUNYUAN_IMAGE,
    CHROMA,
    BRIA,
    LONGCAT,
    OVIS,
    COGVIDEOX,
    CONSISID,
    COGVIEW3_PLUS,
    COGVIEW4,
    AURAFLOW,
    LUMINA2,
    PIXART,
    CHRONO_EDIT,
    SKYREELS_V2,
    SANA,
    HIDREAM,
    FLUX3,
    KANDINSKY5,
    ERNIE_IMAGE,
    PRX,
    NUCLEUS,
    BRIA_FIBO,
    WAN_VACE,
    SANA_VIDEO,
    EASY_ANIMATE,
    IDEOGRAM4,
    COSMOS,
    ALLEGRO,
    WAN_ANIMATE,
    MOTIF_VIDEO,
    HUNYUAN_DIT,
    LTX2,
    MOCHI,
    JOY_IMAGE_EDIT,
    JOY_IMAGE_EDIT_PLUS,
)
"""Those whose description is compared with runs of their pipelines."""

READ = (
    (GLM_IMAGE, "its text is the glyphs of quoted words alone, and a language model draws tokens"),
)
"""Those whose pipeline was read, and not run, with why no words are told: the denoiser's points are
proved, what the pipeline makes of prompts is not."""


def _without_words(spec: DenoiserSpec, reason: str) -> DenoiserSpec:
    parts = tuple(replace(part, untold=reason) for part in spec.text_parts)
    return replace(spec, text_parts=parts)


SHIPPED = (*RUN, *(_without_words(spec, reason) for spec, reason in READ))
"""Every one of them, in the order of the table in the docs."""
