"""Text encoders of the classes that the pipelines load, with widths of a few numbers."""

from __future__ import annotations

from typing import Any

LAYERS = 3
VOCABULARY = 448
"""Above the count of any of the tokenizers."""


def decoder(width: int, **more: Any) -> dict[str, Any]:
    """The configuration of a small decoder."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def qwen3(width: int, *, causal_lm: bool = False) -> Any:
    """Qwen 3, with or without its head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(**decoder(width))
    return (Qwen3ForCausalLM if causal_lm else Qwen3Model)(config).eval()


def qwen25_vl(width: int) -> Any:
    """Qwen 2.5-VL, whose eyes are never used."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    text = decoder(width, hidden_size=16, rope_parameters=rope)
    text["hidden_size"] = width
    text["num_attention_heads"] = width // 8
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen3_vl(width: int, *, causal_lm: bool = False, **more: Any) -> Any:
    """Qwen 3-VL, with or without its head; its eyes are never used."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    text = decoder(width, rope_parameters=rope, **more)
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision)
    return (Qwen3VLForConditionalGeneration if causal_lm else Qwen3VLModel)(config).eval()


def mistral3(width: int) -> Any:
    """Mistral 3, whose eyes are never used."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 16,
        "patch_size": 4,
    }
    text = {"model_type": "mistral", **decoder(width)}
    config = Mistral3Config(text_config=text, vision_config=vision)
    return Mistral3ForConditionalGeneration(config).eval()


def t5(width: int, *, many_languages: bool = False) -> Any:
    """T5's encoder, or UMT5's."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    config = {
        "vocab_size": VOCABULARY,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    if many_languages:
        return UMT5EncoderModel(UMT5Config(**config)).eval()
    return T5EncoderModel(T5Config(**config)).eval()


def gemma2(width: int) -> Any:
    """Gemma 2."""
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(Gemma2Config(**decoder(width))).eval()


def glm(width: int) -> Any:
    """GLM."""
    from transformers import GlmConfig, GlmModel

    return GlmModel(GlmConfig(**decoder(width))).eval()


def llama(width: int, *, layers: int) -> Any:
    """Llama with its head, all of whose layers are read."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = decoder(width, num_hidden_layers=layers, head_dim=width // 2)
    config["attn_implementation"] = "eager"  # the pipeline asks for patterns
    return LlamaForCausalLM(LlamaConfig(**config)).eval()


def bert(width: int) -> Any:
    """BERT, whose tokens read each other both ways."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config).eval()
