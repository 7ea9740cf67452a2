"""Whether the modules and arguments that a description names are there, before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from diffusion_lens.architectures.spec import BlockSite, BlockSpec, DenoiserSpec, Gate
from diffusion_lens.errors import UnsupportedModelError, closest, listing

MOST = 5
"""How many mistakes a message lists."""


class Named(NamedTuple):
    """Something that a description names.

    Attributes:
        field: The field of the description.
        owner: Path of the module that it is looked up in, by path from the block.
        name: The module's path, the parameter's path or the argument's name.
        kind: `"module"`, `"parameter"` or `"argument"`.
    """

    field: str
    owner: str
    name: str
    kind: str


def validate(spec: DenoiserSpec, denoiser: nn.Module, blocks: Iterable[BlockSite]) -> None:
    """Refuse a description that names what the denoiser does not have.

    Args:
        spec: The description.
        denoiser: The model.
        blocks: Its blocks.

    Raises:
        UnsupportedModelError: Naming block class, field, what was not found and the closest names.
    """
    wrong = dict.fromkeys(_wrong_outside(spec, denoiser))
    for block in blocks:
        module = denoiser.get_submodule(block.path)
        wrong |= dict.fromkeys(_wrong_in_block(block.spec, module))
    if wrong:
        raise UnsupportedModelError(
            f"the description of {spec.denoiser} does not fit this {type(denoiser).__name__}: "
            f"{listing(list(wrong), most=MOST)}. Is it the diffusers class of that name, in a "
            "version that the description was written for?"
        )


def _wrong_outside(spec: DenoiserSpec, denoiser: nn.Module) -> Iterator[str]:
    fields = {"latents": spec.latents, "text": spec.text, "timestep": spec.timestep}
    fields |= {} if spec.grid_from is None else {"grid_from": spec.grid_from}
    fields |= {f"further[{stream!r}]": argument for stream, argument in spec.further.items()}
    fields |= {f"asides[{argument!r}]": argument for argument in spec.asides}
    named = [Named(field, "", name, "argument") for field, name in fields.items()]
    for argument, module in spec.pooled.items():
        named.append(Named("pooled", "", argument, "argument"))
        named.append(Named(f"pooled[{argument!r}]", "", module, "module"))
    for point in spec.outside(denoiser):
        named.append(Named(f"outside {point.name}", "", point.module, "module"))
        if point.argument is not None and not point.module:
            named.append(Named(f"outside {point.name}", "", str(point.argument[0]), "argument"))
    yield from missing_parts(denoiser, named)


def _wrong_in_block(spec: BlockSpec, block: nn.Module) -> Iterator[str]:
    yield from missing_parts(block, named_parts(spec))


def named_parts(spec: BlockSpec) -> Iterator[Named]:
    """Everything that a block's description names."""
    for name, stream in spec.streams.items():
        yield Named(f"streams[{name!r}].argument", "", stream.argument, "argument")
        for mid in stream.mids:
            yield Named(f"streams[{name!r}].mids", "", mid.module, "module")
    for attention in spec.attentions:
        at = f"attention {attention.name!r}"
        yield Named(f"{at}.module", "", attention.module, "module")
        if attention.context is not None:
            yield Named(f"{at}.context", attention.module, attention.context, "argument")
        for name, projection in attention.projections.items():
            yield Named(f"{at}.projections[{name!r}]", "", projection.module, "module")
        for name, modules in attention.before_rope.items():
            for module in filter(None, modules):
                yield Named(f"{at}.before_rope[{name!r}]", "", module, "module")
        for name, gate in attention.gates.items():
            yield from _of_gate(f"{at}.gates[{name!r}]", gate)
    for name, mlp in spec.mlps.items():
        at = f"mlps[{name!r}]"
        if mlp.module is not None:
            yield Named(f"{at}.module", "", mlp.module, "module")
        if mlp.down is not None:
            yield Named(f"{at}.down", "", mlp.down, "module")
        if mlp.gate is not None:
            yield from _of_gate(f"{at}.gate", mlp.gate)
        if mlp.router is not None:
            yield Named(f"{at}.router.module", "", mlp.router.module, "module")
            yield Named(f"{at}.router.logits", "", mlp.router.logits or "", "module")


def _of_gate(field: str, gate: Gate) -> Iterator[Named]:
    if gate.module:
        yield Named(f"{field}.module", "", gate.module, "module")
    if gate.argument is not None:
        yield Named(f"{field}.argument", "", gate.argument, "argument")
    if gate.table is not None:
        yield Named(f"{field}.table", "", gate.table, "parameter")
    if gate.norm is not None:
        yield Named(f"{field}.norm", "", gate.norm, "module")


def missing_parts(module: nn.Module, named: Iterable[Named]) -> Iterator[str]:
    """What is not there, each as a line of a message."""
    for field, owner, name, kind in named:
        if kind == "module":
            try:
                module.get_submodule(name)
                continue
            except AttributeError:
                known = [path for path, _ in module.named_modules()]
        elif kind == "parameter":
            known = [path for path, _ in module.named_parameters()]
        else:
            known = _arguments(_owner(module, owner))
        if name not in known:
            near = closest(name, known)
            hint = f"; closest: {near[0]}" if near else ""
            yield f"{type(module).__name__}, {field}: no {kind} `{name}`{hint}"


def _owner(module: nn.Module, path: str) -> nn.Module:
    """The module at a path; the one given, where that is wrong, as another line says."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return module


def _arguments(module: nn.Module) -> list[str]:
    """Arguments of a module's forward; attention hands on what its processor takes."""
    found: dict[str, Any] = dict(inspect.signature(type(module).forward).parameters)
    processor = getattr(module, "processor", None)
    if processor is not None:
        found |= inspect.signature(type(processor).__call__).parameters
    return list(found)
