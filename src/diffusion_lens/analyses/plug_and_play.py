"""Plug-and-Play: features and self-attention of the source's decoder in the target's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.edited_images import EditedImages, edited_run, inference_steps
from diffusion_lens.analyses.reference_run import blocks_of, run_with_reference
from diffusion_lens.authoring import DEFAULT_SEED
from diffusion_lens.border import Fraction, PipelineSetting, public
from diffusion_lens.errors import RunError, UnsupportedModelError

CITATION = (
    "Tumanyan et al., Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation, "
    "CVPR 2023, arXiv 2211.12572"
)
FEATURES = "up_blocks.1.resnets.1"
"""Decoder layer 4, counting ResNets from 0, three to each up block."""


@public
def plug_and_play(
    model: HookedDiffusion,
    source: str | Sequence[str] | Run,
    targets: str | Sequence[str],
    *,
    features: Fraction = 0.8,
    attention: Fraction = 0.5,
    blocks: Iterable[int] | None = None,
    resnet: str = FEATURES,
    record: bool | str | Path = False,
    seed: int | Sequence[int] = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> EditedImages:
    """Generate a source and edits that keep its layout by features of the decoder.

    For the first steps the residual of one ResNet of the decoder, and the queries and keys of its
    self-attentions, are the source's, in each guidance branch. Semantic layout is kept well; edits
    of shape are hardly possible.

    Args:
        model: A U-Net. For a real image give `latents` that `invert` found.
        source: The source prompt, or a `Run` of one.
        targets: A target prompt or several.
        features: Share of the steps at which the ResNet's features are the source's.
        attention: Share of the steps at which queries and keys are.
        blocks: In which blocks queries and keys are; None for the published ones, those of the
            decoder behind its first.
        resnet: Which ResNet, by its path in diffusers.
        record: Run the source first and keep its features, in memory (True) or in a folder.
        seed: Noise of all rows.
        **settings: Arguments of the pipeline's own call; `latents` of one row serve all.

    Returns:
        Images and latents, the source's first.

    Raises:
        RunError: If there are several sources, or a block or ResNet is none.
        UnsupportedModelError: If the model is no U-Net.

    Source: arXiv 2211.12572, section 4, and its released code, in which a share of 0.8 of 50 steps
    is the steps 0 to 40. Differs: without negative prompting, which `negative_prompt` gives.
    """
    run = edited_run(source, targets, seed=seed, settings=settings)
    if not any(name.startswith("resnets.") for name in model.points):
        raise UnsupportedModelError(
            f"plug_and_play takes features of a U-Net's ResNets, {model.name} has none; "
            "`stable_flow`, `masactrl` and `free_prompt_editing` edit with attention alone"
        )
    count = inference_steps(model, run)
    chosen = decoder_blocks(model) if blocks is None else blocks
    sites: list[Site] = []
    if features:
        sites.append(Site(f"native:{_residual(model, resnet)}", steps=_until(features, count)))
    if attention:
        names = blocks_of(model, chosen, ("attn.img.hook_q", "attn.img.hook_k"))
        sites += [Site(name, steps=_until(attention, count)) for name in names]
    return run_with_reference(
        model,
        run,
        sites,
        record=record,
        method="plug_and_play",
        citation=CITATION,
        features=features,
        attention=attention,
    )


def decoder_blocks(model: HookedDiffusion) -> list[int]:
    """The decoder's blocks behind those of its first spatial transformer."""
    modules: dict[int, str] = {}
    for point in model.points.values():
        if point.block is not None and point.module.startswith("up_blocks."):
            stem = point.module.split(".transformer_blocks")[0]
            modules.setdefault(point.block, stem)
    first = modules[min(modules)]
    return [block for block, module in sorted(modules.items()) if module != first]


def _until(share: float, count: int) -> slice:
    last = int(share * count)
    return slice(0, None if last >= count else last + 1)


def _residual(model: HookedDiffusion, resnet: str) -> str:
    """The last convolution of a ResNet, whose output is added to its input."""
    known = dict(model.denoiser.named_modules())
    path = f"{resnet}.conv2"
    if path not in known:
        there = [name.removesuffix(".conv2") for name in known if name.endswith(".conv2")]
        decoder = [name for name in there if name.startswith("up_blocks")]
        raise RunError(f"resnet={resnet!r} is no ResNet of {model.name}; its decoder has {decoder}")
    return path
