"""LTX2VideoTransformer3DModel: a video and its sound, which read each other and a text each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.ltx import LTX_VIDEO
from diffusion_lens.architectures.spec import (
    Aside,
    Attention,
    BlockSpec,
    Gate,
    Mid,
    Mlp,
    Projection,
    Stream,
    TextPart,
)
from diffusion_lens.errors import UnsupportedModelError, WordError

SOUND = "audio"
WORDS = "audio_txt"
"""The text as the sound reads it, which has another projection."""


def _attention(
    name: str, module: str, reader: str, read: str, gate: Gate | None, **more: Any
) -> Attention:
    return Attention(
        name=name,
        module=module,
        queries=(reader,),
        keys=(read,),
        projections={reader: Projection(f"{module}.to_out.0", (reader,))},
        outputs={reader: None},
        gates={} if gate is None else {reader: gate},
        heads_joined=True,
        **more,
    )


def _norms(module: str) -> tuple[str, str]:
    """What returns q and k before rotary embedding."""
    return f"{module}.norm_q", f"{module}.norm_k"


def _gates(argument: str, table: str) -> forms.Gates:
    return forms.chunked(2, 5, 6, argument=argument, table=table)


def _across(module: str, reader: str, read: str, gate: Gate) -> Attention:
    """What one of them reads of the other."""
    rope = {read: (None, f"{module}.norm_k")}
    return _attention(
        module, module, reader, read, gate, before_rope=rope, context="encoder_hidden_states"
    )


def block(module: Any) -> BlockSpec:
    """As in LTX-2.

    Raises:
        UnsupportedModelError: If it has what LTX-2.3 has more.
    """
    if module.cross_attn_adaln or module.attn1.to_gate_logits is not None or module.perturbed_attn:
        raise UnsupportedModelError(
            "LTX-2.3 is not described: its text is modulated in every block and its heads are "
            "gated; only LTX-2, without `cross_attn_mod`, `gated_attn` and `perturbed_attn`, is"
        )
    img = _gates("temb", "scale_shift_table")
    audio = _gates("temb_audio", "audio_scale_shift_table")
    to_video = Gate(argument="temb_ca_gate", table="video_a2v_cross_attn_scale_shift_table", row=4)
    to_sound = Gate(
        argument="temb_ca_audio_gate", table="audio_a2v_cross_attn_scale_shift_table", row=4
    )
    text = {"context": "encoder_hidden_states"}
    return BlockSpec(
        streams={
            "img": Stream(
                "hidden_states",
                0,
                (
                    Mid("resid_mid_self", "norm2", ("attn",)),
                    Mid("resid_mid_cross", "audio_to_video_norm", ("cross_attn",)),
                    Mid("resid_mid", "norm3", ("audio_to_video_attn",)),
                ),
            ),
            SOUND: Stream(
                "audio_hidden_states",
                1,
                (
                    Mid("resid_mid_self", "audio_norm2", ("audio_attn",)),
                    Mid("resid_mid_cross", "video_to_audio_norm", ("audio_cross_attn",)),
                    Mid("resid_mid", "audio_norm3", ("video_to_audio_attn",)),
                ),
            ),
        },
        attentions=(
            _attention("attn", "attn1", "img", "img", img[0], before_rope={"img": _norms("attn1")}),
            _attention(
                "audio_attn",
                "audio_attn1",
                SOUND,
                SOUND,
                audio[0],
                before_rope={SOUND: _norms("audio_attn1")},
            ),
            _attention("cross_attn", "attn2", "img", "txt", None, **text),
            _attention("audio_cross_attn", "audio_attn2", SOUND, WORDS, None, **text),
            _across("audio_to_video_attn", "img", SOUND, to_video),
            _across("video_to_audio_attn", SOUND, "img", to_sound),
        ),
        mlps={
            "img": Mlp("ff", "ff.net.2", img[1]),
            SOUND: Mlp("audio_ff", "audio_ff.net.2", audio[1]),
        },
    )


def _prompt(pipe: Any, prompt: str) -> str:
    """As the tokenizer gets it.

    Raises:
        WordError: If the pipeline's connectors leave it behind the padding.
    """
    config = pipe.connectors.config
    for name in ("video", "audio"):
        if config[f"{name}_connector_num_learnable_registers"] is None:
            raise WordError(
                f"words cannot be told in {type(pipe).__name__}: its {name} connector has no "
                "registers, in whose place LTX-2's takes the padding in front away; use token "
                "indices"
            )
    return prompt.strip()


ISOLATED = (
    "audio_to_video_norm",
    "video_to_audio_norm",
    "audio_to_video_attn",
    "video_to_audio_attn",
)
"""What does not run where video and sound are kept apart."""

LTX2 = replace(
    LTX_VIDEO,
    denoiser="LTX2VideoTransformer3DModel",
    family="LTX-2",
    blocks={"LTX2VideoTransformerBlock": block},
    to_context=None,  # pipelines pass it through connectors of theirs before
    further={SOUND: "audio_hidden_states", WORDS: "audio_encoder_hidden_states"},
    default_grid=forms.native(16, 16, 24),
    # Connectors bring the tokens to the front, whatever the padding, and fill up with registers.
    text_parts=(TextPart("tokenizer", template=_prompt, padded=False, misrepeated=True),),
    text_tokens=1024,
    asides={
        # Nothing is perturbed: only blocks with `perturbed_attn` hand it on to their attention.
        "spatio_temporal_guidance_blocks": Aside("perturbed"),
        "isolate_modalities": Aside("isolated", left_out=ISOLATED),
    },
)
