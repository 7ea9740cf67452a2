"""The file of a family, written from what was read of its denoiser; what is open is a `todo`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffusion_lens.architectures import spec as language
from diffusion_lens.architectures.spec import BlockSpec
from diffusion_lens.describing.blocks import Reading
from diffusion_lens.describing.description import Description
from diffusion_lens.describing.in_forms import in_a_form
from diffusion_lens.describing.pipelines import ALONE
from diffusion_lens.describing.source import WIDTH, Calling, Code, written

FROM_A_PIPELINE = {
    "default_grid": "the token grid at the model's native size: forms.native(height, width)",
    "text_parts": "which tokenizers fill the text stream, in what template: (TextPart(...),)",
    "text_tokens": "how many text tokens a pipeline gives by default",
    "guidance": '"batched" where one call carries the branches, "calls" where each has its own',
    "branches": 'in batch order or in the order of the calls: ("uncond", "cond")',
    "timestep_scale": "scheduler timesteps for one unit of the denoiser's timestep",
}
"""Fields that no call of the denoiser shows, with what has to be said."""


def family_file(found: Description, answers: Mapping[str, Any] | None = None) -> str:
    """Source of a module that describes a family.

    Args:
        found: What was read of its denoiser.
        answers: Fields that the denoiser alone does not show, such as those of a pipeline's run.
    """
    kind = type(found.denoiser).__name__
    constant = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.sub(r"Transformer\dDModel$", "", kind))
    name = constant.upper()
    told = dict(answers or {})
    if told.get("branches") == ALONE["branches"]:
        told = {name: one for name, one in told.items() if name not in ALONE}
    spec = Calling("DenoiserSpec", (), _fields(found, told))
    body = f"{name} = {written(spec, 0, len(name) + 3)}\n"
    head = f'"""{kind}: written from one call of it; to be reviewed."""'
    settled = "then delete this line"
    asked = "".join(f"{written(_todo(f'{doubt}: {settled}'))}\n" for doubt in found.doubts)
    return f"{head}\n\n{_imports(asked + body)}\n\n{asked}{body}"


def _fields(found: Description, answers: dict[str, Any]) -> dict[str, Any]:
    kind = type(found.denoiser).__name__
    inputs, grid = found.inputs, found.grid
    fields: dict[str, Any] = {
        "denoiser": kind,
        "family": answers.pop("family", kind.partition("Transformer")[0]),
        "blocks": {name: _blocks(ones) for name, ones in _by_class(found.blocks).items()},
        "outside": Calling("forms.points", (_axes(found),), _points(found)),
        "latents": inputs.latents,
        "text": inputs.text,
        "grid": _todo("the token grid, from denoiser, arguments and level")
        if grid is None
        else grid.code,
    }
    if grid is not None and grid.argument:
        fields["grid_from"] = grid.argument
    fields |= {
        name: answers.pop(name, None) or _todo(question)
        for name, question in FROM_A_PIPELINE.items()
    }
    fields |= answers
    if inputs.text_beside:
        fields["text_beside"] = inputs.text_beside
    if inputs.timestep != "timestep":
        fields["timestep"] = inputs.timestep
    if found.reading.text_ends:
        fields["text_ends_in_last_block"] = True
    if not _in_module_order(found):
        fields["order"] = _order(found)
    if found.apart:
        fields["apart"] = dict(found.apart)
    return fields


def _axes(found: Description) -> Any:
    return found.axes or _todo('axes of the latents, the batch apart: ("channel", "height", ...)')


def _points(found: Description) -> dict[str, Any]:
    usual = {"pooled": None, "names": ("hidden_states", "encoder_hidden_states")}
    given = {name: one for name, one in found.outside.items() if one != usual.get(name, ())}
    if found.embedding is None:
        given["embedding"] = _todo("path of the module that returns the timestep's embedding, None")
    return given


def _todo(question: str) -> Calling:
    return Calling("todo", (question,))


def _by_class(blocks: Iterable[Reading]) -> dict[str, list[Reading]]:
    found: dict[str, list[Reading]] = {}
    for one in blocks:
        found.setdefault(type(one.call.module).__name__, []).append(one)
    return found


def _blocks(ones: list[Reading]) -> Any:
    """How the blocks of one class are described; a question where they differ."""
    kinds: dict[str, tuple[Any, list[str]]] = {}
    for one in ones:
        shown = in_a_form(one) or _in_full(one.spec)
        kinds.setdefault(written(shown), (shown, []))[1].append(one.call.path)
    if len(kinds) == 1:
        return next(iter(kinds.values()))[0]
    said = "; ".join(f"{', '.join(paths)} are {text}" for text, (_, paths) in kinds.items())
    return _todo(f"blocks of this class differ, so say by what of the block: {_one_line(said)}")


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _in_full(spec: BlockSpec) -> Calling:
    return Calling("lambda _block: BlockSpec", (), _changed(spec))


def _changed(spec: BlockSpec) -> dict[str, Any]:
    return {"streams": spec.streams, "attentions": spec.attentions, "mlps": spec.mlps}


def _in_module_order(found: Description) -> bool:
    kept = [one.call.path for one in found.blocks]
    return [path for path, _ in found.denoiser.named_modules() if path in kept] == kept


def _order(found: Description) -> Code:
    lists = dict.fromkeys(one.call.path.rpartition(".")[0] for one in found.blocks)
    return Code(f"lambda path: ({list(lists)!r}.index(path.rpartition('.')[0]),)")


def _imports(body: str) -> str:
    """The imports that a body needs."""
    names = [
        name for name in dir(language) if re.search(rf"\b{name}\(", body) and name[0].isupper()
    ]
    lines = ["from __future__ import annotations", ""]
    if "replace(" in body:
        lines += ["from dataclasses import replace", ""]
    lines.append("from diffusion_lens.architectures import forms")
    orders = [name for name in ("IMG_TXT", "TXT_IMG") if name in body]
    if orders:
        lines.append(f"from diffusion_lens.architectures.forms import {', '.join(orders)}")
    lines.append(_import("diffusion_lens.architectures.spec", sorted(names)))
    if "todo(" in body:
        lines.append("from diffusion_lens.architectures.todo import todo")
    return "\n".join(lines)


def _import(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])
