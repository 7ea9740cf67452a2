"""Tiny tokenizers and text encoders of the classes that video pipelines load."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.t5gemma2.configuration_t5gemma2 import (
    T5Gemma2EncoderConfig,
    T5Gemma2TextConfig,
)
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

TAUGHT = "a red cat dog blue on the glass table and small bird wooden street blurry video"
WORDS = TAUGHT.split()
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
WIDTH = 24
"""Of all text embeddings."""

OUTPUTS = ("o.weight", "o_proj.weight", "out_proj.weight")
"""What an attention of a text encoder ends with."""


def local(encoder: nn.Module) -> nn.Module:
    """A text encoder whose every row tells of its own token alone."""
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith(OUTPUTS):
                weight.zero_()
    return encoder.eval()


def t5_tokenizer() -> T5TokenizerFast:
    """Whole words are one token; of others each letter is."""
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, -2.0)]
    words = [(SPACE + word, -1.0) for word in WORDS]
    letters = [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz,.&;'"]
    return T5TokenizerFast(vocab=marks + words + letters, extra_ids=0)


def umt5() -> nn.Module:
    """Wan's text encoder."""
    return local(UMT5EncoderModel(UMT5Config(**_T5)))


def t5() -> nn.Module:
    """LTX-Video's and CogVideoX's."""
    return local(T5EncoderModel(T5Config(**_T5)))


_T5: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": WIDTH,
    "d_kv": 6,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
}


def bytes_tokenizer(
    texts: list[str], *, start: str | None, marks: list[str], **more: Any
) -> PreTrainedTokenizerFast:
    """Byte-pair encoding as Llama 3 and Qwen have it, learnt from some texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", *([start] if start else []), *marks]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *(f" {word}" for word in WORDS)] * 2, trainer)
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **more)


class Processor:
    """As transformers' processor of Qwen 2.5-VL, which needs torchvision, does with text alone."""

    def __init__(self, tokenizer: Any) -> None:
        """Keep the tokenizer."""
        self.tokenizer = tokenizer

    def __call__(self, text: Any, images: None = None, videos: None = None, **options: Any) -> Any:
        """Tokenized texts."""
        assert images is videos is None
        return self.tokenizer(text, **options)

    def decode(self, ids: Any) -> str:
        """A text of tokens."""
        return self.tokenizer.decode(ids)


_LLAMA: dict[str, Any] = {
    "vocab_size": 900,
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "pad_token_id": 0,
}


def llama() -> nn.Module:
    """HunyuanVideo's first text encoder."""
    return local(LlamaModel(LlamaConfig(**_LLAMA)))


def qwen() -> nn.Module:
    """HunyuanVideo 1.5's."""
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
    return local(Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**_LLAMA, rope_parameters=rope)))


def qwen2_vl() -> nn.Module:
    """EasyAnimate's, whose eyes are never used."""
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 1}
    config = Qwen2VLConfig(text_config=_LLAMA | {"rope_parameters": rope}, vision_config=vision)
    return local(Qwen2VLForConditionalGeneration(config))


def gemma2() -> nn.Module:
    """SANA-Video's."""
    return local(Gemma2Model(Gemma2Config(**_LLAMA, head_dim=8)))


def qwen_vl() -> nn.Module:
    """Kandinsky 5's, whose eyes are never used."""
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    config = Qwen2_5_VLConfig(text_config=_LLAMA | {"rope_parameters": rope}, vision_config=vision)
    return local(Qwen2_5_VLForConditionalGeneration(config))


def t5_gemma2() -> nn.Module:
    """Motif-Video's."""
    text: dict[str, Any] = {
        "vocab_size": 900,
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "dropout_rate": 0.0,
    }
    config = T5Gemma2EncoderConfig(
        text_config=T5Gemma2TextConfig(**text),
        vision_config=SiglipVisionConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=8,
            patch_size=4,
        ),
        mm_tokens_per_image=4,
    )
    return local(T5Gemma2Encoder(config))


def clip() -> nn.Module:
    """HunyuanVideo's second, which gives a pooled embedding."""
    config = CLIPTextConfig(
        vocab_size=600,
        hidden_size=20,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=2,
        pad_token_id=0,
    )
    return CLIPTextModel(config).eval()


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's, by letters."""
    marks = ["<pad>", "<|endoftext|>", "<|startoftext|>"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.:;'<>|_{}-&"
    known = [*marks, *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(
        vocab={token: place for place, token in enumerate(known)},
        merges=[],
        unk_token="<|endoftext|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        model_max_length=77,
    )
