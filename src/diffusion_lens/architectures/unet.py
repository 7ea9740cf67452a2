"""UNet2DConditionModel: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures.spec import (
    Attention,
    BlockSpec,
    DenoiserSpec,
    Mid,
    Mlp,
    ModulePoint,
    Projection,
    Stream,
    TextPart,
)
from diffusion_lens.errors import UnsupportedModelError

PLACES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


def transformer_block(block: nn.Module) -> BlockSpec:
    """Self-attention, cross-attention to the text, MLP; nothing is gated."""
    unknown = {
        "norm_type": getattr(block, "norm_type", "layer_norm") != "layer_norm",
        "only_cross_attention": bool(getattr(block, "only_cross_attention", False)),
        "fuser": getattr(block, "fuser", None) is not None,
    }
    if any(unknown.values()):
        found = [name for name, differs in unknown.items() if differs]
        raise UnsupportedModelError(
            f"a BasicTransformerBlock with an unusual {', '.join(found)} has no description yet; "
            "register one for it, see docs/architecture.md, 'Adding a family'"
        )
    to_out = Projection("attn1.to_out.0", ("img",))
    self_attention = Attention(
        "attn", "attn1", ("img",), ("img",), {"img": to_out}, outputs={"img": None}
    )
    mlps = {"img": Mlp("ff", "ff.net.2")}
    if getattr(block, "attn2", None) is None:
        mids = (Mid("resid_mid", "norm3", ("attn",)),)
        streams = {"img": Stream("hidden_states", None, mids)}
        reason = "this block has no cross-attention"
        absent = {"cross_attn.hook_pattern": reason, "img.hook_cross_attn_out": reason}
        return BlockSpec(streams, (self_attention,), mlps, absent)
    cross_attention = Attention(
        "cross_attn",
        "attn2",
        ("img",),
        ("txt",),
        {"img": Projection("attn2.to_out.0", ("img",))},
        outputs={"img": None},
        products=("", *_image_prompts(block.attn2)),
        context="encoder_hidden_states",
    )
    mids = (Mid("resid_mid_self", "norm2", ("attn",)), Mid("resid_mid", "norm3", ("cross_attn",)))
    streams = {"img": Stream("hidden_states", None, mids)}
    absent = {
        "txt.hook_resid_pre": "a U-Net reads the text in cross-attention and never updates it"
    }
    return BlockSpec(streams, (self_attention, cross_attention), mlps, absent)


def _image_prompts(attention: Any) -> tuple[str, ...]:
    processor = getattr(attention, "processor", None)
    if "IPAdapter" not in type(processor).__name__:
        return ()
    count = len(getattr(processor, "num_tokens", (0,)))
    return ("ip", *(f"ip{number}" for number in range(2, count + 1)))


def execution_order(path: str) -> tuple[int, ...]:
    """Down, then mid, then up; inside each the order of the module tree."""
    return (PLACES.get(path.split(".")[0], 1),)


def level(unet: Any, path: str) -> int:
    """How often the latents were halved before the module at `path`."""
    place, *rest = path.split(".")
    deepest = len(unet.config.block_out_channels) - 1
    if place == "mid_block":
        return deepest
    return int(rest[0]) if place == "down_blocks" else deepest - int(rest[0])


def outside(unet: nn.Module) -> tuple[ModulePoint, ...]:
    """Embeddings, ResNets, spatial transformers, skips and the bottleneck."""
    image = ("batch", "channel", "height", "width")
    points = [
        ModulePoint("hook_latents", image, "", argument=("sample",)),
        ModulePoint("hook_timestep_emb", ("batch", "d_emb"), "time_embedding"),
        ModulePoint(
            "hook_text_emb",
            ("batch", "pos", "d_text"),
            "",
            ("encoder_hidden_states",),
            stream="txt",
        ),
    ]
    if getattr(unet.config, "addition_embed_type", None) == "text_time":
        pooled = ("added_cond_kwargs", "text_embeds")
        points.append(ModulePoint("hook_pooled_text_emb", ("batch", "d_text"), "", pooled))
    found: dict[str, list[str]] = {"ResnetBlock2D": [], "Transformer2DModel": []}
    for path, module in sorted(unet.named_modules(), key=lambda item: execution_order(item[0])):
        found.get(type(module).__name__, []).append(path)
    for index, path in enumerate(found["ResnetBlock2D"]):
        points.append(
            ModulePoint(f"resnets.{index}.hook_out", image, path, level=level(unet, path))
        )
    for index, path in enumerate(found["Transformer2DModel"]):
        at = level(unet, path)
        name = f"transformers.{index}"
        points.append(ModulePoint(f"{name}.hook_in", image, path, ("hidden_states",), level=at))
        points.append(ModulePoint(f"{name}.hook_out", image, path, output=0, level=at))
    if getattr(unet, "mid_block", None) is not None:
        bottleneck = level(unet, "mid_block")
        points.append(ModulePoint("mid.hook_h", image, "mid_block", level=bottleneck))
    points.extend(_skips(unet))
    points.append(ModulePoint("hook_noise_pred", image, "", output=0))
    return tuple(points)


def _skips(unet: Any) -> list[ModulePoint]:
    """The skip connections, numbered as the down path makes them (conv_in is 0)."""
    points = []
    number = sum(len(block.resnets) for block in unet.up_blocks)
    for index, block in enumerate(unet.up_blocks):
        count = len(block.resnets)
        for place in reversed(range(count)):
            number -= 1
            points.append(
                ModulePoint(
                    f"skips.{number}.hook_skip",
                    ("batch", "channel", "height", "width"),
                    f"up_blocks.{index}",
                    argument=("res_hidden_states_tuple", place),
                    level=level(unet, f"up_blocks.{index}"),
                )
            )
    return sorted(points, key=lambda point: int(point.name.split(".")[1]))


def grid(_unet: nn.Module, arguments: Mapping[str, Any], level: int) -> tuple[int, ...]:
    """(height, width) at a level: each halving rounds up, as the strided convolutions do."""
    height, width = arguments["sample"].shape[-2:]
    return (-(-height // 2**level), -(-width // 2**level))


def default_grid(unet: Any, level: int) -> tuple[int, ...]:
    """(height, width) at a level for latents of the model's native size."""
    size = unet.config.sample_size or 64
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return tuple(-(-side // 2**level) for side in sides)


UNET = DenoiserSpec(
    denoiser="UNet2DConditionModel",
    family="SD 1.x / 2.x / XL",
    blocks={"BasicTransformerBlock": transformer_block},
    order=execution_order,
    level=level,
    outside=outside,
    latents="sample",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=default_grid,
    text_parts=(TextPart("tokenizer"),),
    text_tokens=77,
    to_context=(),
)
