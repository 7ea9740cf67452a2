"""Fast tokenizers made on the spot, of the classes that the pipelines load."""

from __future__ import annotations

import functools
import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = (
    "a red cat and a blue dog sit on the glass table near the old green house",
    "Describe the image by detailing the color, shape, size, texture, quantity, text",
    "two small black birds fly over the wide yellow field in the evening",
) * 8
CHAT_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
LISTS = QWEN_CHAT.replace("m.content", "m.content[0].text")
"""The same, where what a message says stands in a list."""

MISTRAL_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% set text = m.content[0].text %}"
    "{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"
)
VOCABULARY = 420


@functools.cache
def _trained(marks: tuple[str, ...], *, spaces: bool = False) -> str:
    """A tokenizer of subwords, as text, so that each pipeline has its own."""
    tokenizer = Tokenizer(models.BPE(unk_token=None if not spaces else "<unk>"))
    if spaces:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.'\"-<> "))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(marks),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def qwen(*, padding_side: str = "right", chat: str = QWEN_CHAT) -> Any:
    """Qwen's, of bytes, with marks for a chat."""
    import transformers

    found, kind = json.loads(_trained(CHAT_MARKS))["model"], "Qwen2TokenizerFast"
    return getattr(transformers, kind)(
        vocab=found["vocab"],
        merges=[tuple(pair) for pair in found["merges"]],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(CHAT_MARKS),
        chat_template=chat,
        padding_side=padding_side,
        model_max_length=4096,
    )


def _wrapped(marks: tuple[str, ...], kind: str, template: str, **more: Any) -> Any:
    import transformers

    tokenizer = Tokenizer.from_str(_trained(marks, spaces=kind == "T5TokenizerFast"))
    if template:
        named = [mark for mark in marks if mark in template.split()]
        pairs = [(mark, tokenizer.token_to_id(mark)) for mark in named]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=pairs
        )
    return getattr(transformers, kind)(tokenizer_object=tokenizer, **more)


def t5() -> Any:
    """T5's: pieces with their space, an end mark, padding behind."""
    return _wrapped(
        ("<pad>", "</s>", "<unk>"),
        "T5TokenizerFast",
        "$A </s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def gemma() -> Any:
    """Gemma's: a start mark, and padding in front unless it is told otherwise."""
    return _wrapped(
        ("<pad>", "<eos>", "<bos>"),
        "PreTrainedTokenizerFast",
        "<bos> $A",
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        padding_side="left",
        model_max_length=4096,
    )


def glm() -> Any:
    """GLM's: two marks in front, and padding before them."""
    return _wrapped(
        ("<|endoftext|>", "[gMASK]", "<sop>"),
        "PreTrainedTokenizerFast",
        "[gMASK] <sop> $A",
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        padding_side="left",
        model_max_length=4096,
    )


class Processor:
    """As transformers' processor of Mistral 3, which needs torchvision, does with text alone."""

    def __init__(self, tokenizer: Any) -> None:
        """Keep the tokenizer."""
        self.tokenizer = tokenizer

    def apply_chat_template(self, conversations: Any, *, tokenize: bool, **options: Any) -> Any:
        """The chats as text, or tokenized; a start mark of the template stays the only one."""
        chat = {"add_generation_prompt": options.pop("add_generation_prompt")}
        texts = self.tokenizer.apply_chat_template(conversations, tokenize=False, **chat)
        if not tokenize:
            return texts
        first = texts if isinstance(texts, str) else texts[0]
        if first.startswith(self.tokenizer.bos_token):
            options["add_special_tokens"] = False
        options.pop("return_dict")
        return self.tokenizer(texts, **options)


def mistral(*, padding_side: str = "left") -> Any:
    """Mistral's processor, whose tokenizer is inside."""
    marks = ("<pad>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    tokenizer = _wrapped(
        marks,
        "PreTrainedTokenizerFast",
        "<s> $A",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side=padding_side,
        model_max_length=4096,
        chat_template=MISTRAL_CHAT,
    )
    return Processor(tokenizer)


def llama() -> Any:
    """Llama 3's: a start mark, no padding of its own."""
    return _wrapped(
        ("<|end_of_text|>", "<|begin_of_text|>"),
        "PreTrainedTokenizerFast",
        "<|begin_of_text|> $A",
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        model_max_length=4096,
    )


class QwenProcessor:
    """As transformers' processor of Qwen 3-VL, which needs torchvision, does with text alone."""

    def __init__(self, tokenizer: Any) -> None:
        """Keep the tokenizer."""
        self.tokenizer = tokenizer

    def __call__(self, text: Any, **options: Any) -> Any:
        """Tokenized texts."""
        return self.tokenizer(text, **options)

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """A chat as text; what a message says may stand in a list."""
        said = [
            {**one, "content": one["content"] if isinstance(one["content"], str) else text}
            for one in messages
            for text in [one["content"][0]["text"] if not isinstance(one["content"], str) else ""]
        ]
        return self.tokenizer.apply_chat_template(said, **options)


class PictureProcessor(QwenProcessor):
    """As that of Qwen 2.5-VL does with text and one image: a mark becomes several tokens."""

    tokens = 6

    def __call__(self, text: Any, images: Any = None, **options: Any) -> Any:
        """Tokenized texts; the image's pixels are left out."""
        mark = "<|image_pad|>"
        texts = [text] if isinstance(text, str) else text
        return self.tokenizer([one.replace(mark, mark * self.tokens) for one in texts], **options)


def bert() -> Any:
    """BERT's: words of small letters, rare ones in pieces, between two marks."""
    from transformers import BertTokenizer

    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    letters = "abcdefghijklmnopqrstuvwxyz,.'"
    words = sorted({word.strip(",").lower() for text in CORPUS for word in text.split()})
    known = (*marks, *words, *(f"##{one}" for one in letters), *letters)
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(known))}
    return BertTokenizer(vocab=vocabulary, model_max_length=77)
