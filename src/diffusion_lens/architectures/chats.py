"""What pipelines make of a prompt to tokenize it: chats, cleaned text, pieces, padding."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from diffusion_lens.errors import WordError


def question(*, attribute: str = "", **options: Any) -> Callable[[Any, str], str]:
    """A chat of one question, as the tokenizer's own template writes it.

    Args:
        attribute: What of the pipeline stands before the prompt.
        **options: Further ones of the template.
    """

    def template(pipe: Any, prompt: str) -> str:
        before = getattr(pipe, attribute) if attribute else ""
        messages = [{"role": "user", "content": before + prompt}]
        options_of = {"tokenize": False, "add_generation_prompt": True, **options}
        return pipe.tokenizer.apply_chat_template(messages, **options_of)

    return template


def filled(attribute: str = "prompt_template_encode") -> Callable[[Any, str], str]:
    """A template of the pipeline's with one gap."""
    return lambda pipe, prompt: getattr(pipe, attribute).format(prompt)


def cleaned(pipe: Any, prompt: str) -> str:
    """A prompt in small letters, and cleaned where the pipeline does so by itself."""
    usual = inspect.signature(type(pipe).__call__).parameters["clean_caption"].default
    return pipe._text_preprocessing(prompt, clean_caption=usual)[0]


def without_entities(pipe: Any, prompt: str) -> str:
    """A prompt as the pipeline's own module cleans it: entities, white space, broken letters."""
    for kind in type(pipe).__mro__:
        clean = getattr(sys.modules.get(kind.__module__), "prompt_clean", None)
        if clean is not None:
            return clean(prompt)
    return prompt


def none_alone(_pipe: Any, _count: int) -> int:
    """Nothing stands before a prompt alone; others of a batch are filled up to the longest."""
    return 0


def flux2(pipe: Any, prompt: str) -> str:
    """Mistral's chat with a system message; a question to Qwen in the klein pipelines."""
    if not hasattr(pipe, "system_message"):
        return question(enable_thinking=False)(pipe, prompt)
    texts = {"system": pipe.system_message, "user": prompt.replace("[IMG]", "")}
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()
    ]
    return pipe.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)


def quoted_apart(_pipe: Any, prompt: str) -> list[str]:
    """LongCat-Image's pieces: what stands in quotes letter by letter, the rest as it is."""
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation

    return [
        piece for text, quoted in split_quotation(prompt) for piece in (text if quoted else [text])
    ]


def without_glyphs(pipe: Any, prompt: str) -> str:
    """HunyuanImage's template.

    Raises:
        WordError: If words stand in quotes: those come first in the stream, encoded once more.
    """
    from diffusers.pipelines.hunyuan_image.pipeline_hunyuanimage import extract_glyph_text

    if extract_glyph_text(prompt) is not None:
        raise WordError(
            f"the prompt {prompt!r} has words in quotes, which {type(pipe).__name__} encodes once "
            "more and puts before the prompt's tokens, so that words cannot be told; use token "
            "indices, or leave the quotes out"
        )
    return filled()(pipe, prompt)
