"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5 (large, medium with dual attention)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures.spec import (
    Aside,
    Attention,
    BlockSpec,
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    Gate,
    Mid,
    Mlp,
    ModulePoint,
    Projection,
    Stream,
    TextPart,
)

TEXT_ENDS = "the last block drops its text stream after attention (context_pre_only)"


def joint_block(block: nn.Module) -> BlockSpec:
    """Joint attention of [img, txt]; SD3.5-medium adds an image-only attention beside it."""
    ends = bool(block.context_pre_only)
    text = {} if ends else {"txt": Projection("attn.to_add_out", ("txt",))}
    attentions = [
        Attention(
            "attn",
            "attn",
            ("img", "txt"),
            ("img", "txt"),
            {"img": Projection("attn.to_out.0", ("img",)), **text},
            outputs={"img": 0} if ends else {"img": 0, "txt": 1},
            gates={"img": Gate("norm1", 1)} | ({} if ends else {"txt": Gate("norm1_context", 1)}),
        )
    ]
    image_updates: tuple[str, ...] = ("attn",)
    if getattr(block, "attn2", None) is not None:
        attentions.append(
            Attention(
                "self_attn",
                "attn2",
                ("img",),
                ("img",),
                {"img": Projection("attn2.to_out.0", ("img",))},
                outputs={"img": None},
                gates={"img": Gate("norm1", 6)},
            )
        )
        image_updates = ("attn", "self_attn")
    image = Stream("hidden_states", 1, (Mid("resid_mid", "norm2", image_updates),))
    mlps = {"img": Mlp("ff", "ff.net.2", Gate("norm1", 4))}
    if ends:
        txt = Stream("encoder_hidden_states", 0, updates=(), returned=False)
        names = ("resid_mid", "resid_post", "attn_out", "attn_update", "mlp_out", "mlp_update")
        absent = {f"txt.hook_{name}": TEXT_ENDS for name in names}
        absent |= {"txt.mlp.hook_post": TEXT_ENDS, "attn.txt.hook_z": TEXT_ENDS}
        absent["attn.txt.hook_result"] = TEXT_ENDS
        streams = {"img": image, "txt": txt}
        return BlockSpec(streams, tuple(attentions), mlps, absent, Concepts())
    txt = Stream("encoder_hidden_states", 0, (Mid("resid_mid", "norm2_context", ("attn",)),))
    mlps["txt"] = Mlp("ff_context", "ff_context.net.2", Gate("norm1_context", 4))
    streams = {"img": image, "txt": txt}
    return BlockSpec(streams, tuple(attentions), mlps, concepts=Concepts())


def outside(_transformer: nn.Module) -> tuple[ModulePoint, ...]:
    """Latents, embeddings and the prediction."""
    image = ("batch", "channel", "height", "width")
    text = ("encoder_hidden_states",)
    return (
        ModulePoint("hook_latents", image, "", argument=("hidden_states",)),
        ModulePoint("hook_timestep_emb", ("batch", "d_emb"), "time_text_embed"),
        ModulePoint("hook_text_emb", ("batch", "pos", "d_text"), "", argument=text, stream="txt"),
        ModulePoint("hook_pooled_text_emb", ("batch", "d_text"), "", ("pooled_projections",)),
        ModulePoint("hook_noise_pred", image, "", output=0),
    )


def grid(transformer: Any, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(height, width) in patches."""
    patch = transformer.config.patch_size
    height, width = arguments["hidden_states"].shape[-2:]
    return (height // patch, width // patch)


def default_grid(transformer: Any, _level: int) -> tuple[int, ...]:
    """(height, width) in patches for latents of the model's native size."""
    side = transformer.config.sample_size // transformer.config.patch_size
    return (side, side)


SD3 = DenoiserSpec(
    denoiser="SD3Transformer2DModel",
    family="SD3 / SD3.5",
    blocks={"JointTransformerBlock": joint_block},
    order=lambda _path: (0,),
    level=lambda _transformer, _path: 0,
    outside=outside,
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=default_grid,
    text_parts=(TextPart("tokenizer", 77), TextPart("tokenizer_3", prompt="prompt_3")),
    text_tokens=77 + 256,
    text_ends_in_last_block=True,
    concepts=ConceptEntry(pooled_argument="pooled_projection"),
    asides={"skip_layers": Aside("skip")},
)
