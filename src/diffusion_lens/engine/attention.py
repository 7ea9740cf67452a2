"""The attention product of a hooked module: q, k, v, scores and pattern.

While a hooked attention module runs, calls of `scaled_dot_product_attention` inside it come here.
The fused kernel still makes the output; a pattern is computed beside it, only where somebody asked,
and only the part that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffusion_lens.architectures.sources import ProductInput, ProductOutput, ProductWeights
from diffusion_lens.architectures.spec import Attention
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.firing import Tap, axis_part, edited, fire, run
from diffusion_lens.engine.product import Product, Workspace, safe_softmax
from diffusion_lens.engine.selection import Index, contiguous, numbers, put, take
from diffusion_lens.errors import DeadHookPointError, EngineError

PATTERN_AXES = ("batch", "head", "query", "key")
TORCH_NAMES = {
    "attn_mask": "mask",
    "dropout_p": "dropout",
    "is_causal": "causal",
    "enable_gqa": "shared",
}
"""Arguments of `scaled_dot_product_attention` that a `Product` calls otherwise."""


class ProductMode(TorchFunctionMode):
    """Sends calls of the fused product to `attend` while it is active."""

    def __init__(self, attend: Callable[[int, Product], Tensor]) -> None:
        """Count calls from 0."""
        super().__init__()
        self.attend = attend
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept `F.scaled_dot_product_attention`, pass everything else on."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = {TORCH_NAMES.get(name, name): value for name, value in kwargs.items()}
        product = Product(*args, **given)
        self.calls += 1
        return self.attend(self.calls - 1, product)


class AttentionHooks:
    """The hooks on the products of one attention module.

    Attributes:
        attention: The module's description.
        taps: Its taps, by (product, what): `("q", stream)`, …, `("scores", "")`,
            `("pattern", "")`, `("z", stream)`.
        lengths: Gives the token count of each stream of the block that is running.
        evaluation: Gives the evaluation that is running.
    """

    def __init__(
        self,
        attention: Attention,
        taps: Mapping[Any, Sequence[Tap]],
        lengths: Callable[[], Mapping[str, int]],
        evaluation: Callable[[], Evaluation],
        name: str,
    ) -> None:
        """Sort the taps by what they read."""
        self.attention = attention
        self.lengths = lengths
        self.evaluation = evaluation
        self.name = name
        self.taps: dict[tuple[int, str, str], list[Tap]] = {}
        for source, found in taps.items():
            assert isinstance(source, ProductInput | ProductWeights | ProductOutput)
            which = "z" if isinstance(source, ProductOutput) else source.which
            stream = "" if isinstance(source, ProductWeights) else source.stream
            self.taps.setdefault((source.product, which, stream), []).extend(found)
        self._modes: list[tuple[ProductMode, Any]] = []
        self._products: list[tuple[int, str]] = []
        self._query: tuple[Tensor, Tensor] | None = None

    def enter(self, module: nn.Module, _args: Any) -> None:
        """Forward pre-hook: start to intercept."""
        self._products = _running_products(self.attention, module)
        self._query = None
        mode = ProductMode(self.attend)
        self._modes.append((mode, _use_native_backend(module)))
        mode.__enter__()

    def leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        """Forward hook, called after an error too: stop intercepting."""
        mode, backend = self._modes.pop()
        self._query = None
        mode.__exit__(None, None, None)
        _restore_backend(module, backend)
        if mode.calls == 0 and output is not None:
            raise EngineError(
                f"{self.name}: {type(getattr(module, 'processor', module)).__name__} computes "
                "attention without scaled_dot_product_attention, so queries and patterns cannot "
                "be seen; set a native processor (`set_attn_processor(AttnProcessor2_0())`). "
                "z, result and the residual stream can be hooked as they are."
            )

    def attend(self, call: int, product: Product) -> Tensor:
        """The attention output, with the hooks of this product run on the way."""
        evaluation = self.evaluation()
        lengths = dict(self.lengths())
        if call >= len(self._products):
            return product.fused()
        number, name = self._products[call]
        queries, keys = self.attention.sequences(name)
        lengths |= _own_lengths(queries, product.query.shape[2], lengths)
        lengths |= _own_lengths(keys, product.key.shape[2], lengths)
        given = product.query
        if self._query is not None and given is self._query[0]:
            product.query = self._query[1]
        elif number == 0:
            product.query = self._streams(number, "q", given, queries, lengths)
            self._query = (given, product.query)
        product.key = self._streams(number, "k", product.key, keys, lengths)
        product.value = self._streams(number, "v", product.value, keys, lengths)
        self.entering(number, product, lengths)
        output = self._output(number, product, evaluation, lengths)
        return self._streams(number, "z", output, queries, lengths)

    def entering(self, number: int, product: Product, lengths: Mapping[str, int]) -> None:
        """Told of each product as it stands after the hooks on q, k and v."""

    def _output(
        self, number: int, product: Product, evaluation: Evaluation, lengths: Mapping[str, int]
    ) -> Tensor:
        scores = self.taps.get((number, "scores", ""), [])
        patterns = self.taps.get((number, "pattern", ""), [])
        if not scores and not patterns:
            return product.fused()
        return weights(product, scores, patterns, evaluation, lengths)

    def _streams(
        self,
        call: int,
        which: str,
        value: Tensor,
        sequence: Sequence[str],
        lengths: Mapping[str, int],
    ) -> Tensor:
        """Run the q, k, v or z hooks of each stream along one tensor of the product."""
        start = 0
        out = value
        for stream in sequence:
            stop = start + lengths[stream]
            taps = self.taps.get((call, which, stream))
            if taps:
                shown = out[:, :, start:stop].transpose(1, 2)
                after = fire(taps, shown, self.evaluation(), lengths)
                if after is not shown:
                    out = out.clone() if out is value else out
                    out[:, :, start:stop] = after.transpose(1, 2)
            start = stop
        return out


def weights(
    product: Product,
    score_taps: Sequence[Tap],
    pattern_taps: Sequence[Tap],
    evaluation: Evaluation,
    lengths: Mapping[str, int],
) -> Tensor:
    """Run the hooks on scores and pattern; edits of them are added to the fused output."""
    output = product.fused_with_normaliser()
    with torch.autocast(output.device.type, enabled=False):
        return _with_hooks(output, product, score_taps, pattern_taps, evaluation, lengths)


def _with_hooks(
    output: Tensor,
    product: Product,
    score_taps: Sequence[Tap],
    pattern_taps: Sequence[Tap],
    evaluation: Evaluation,
    lengths: Mapping[str, int],
) -> Tensor:
    recorded = torch.is_grad_enabled() and (
        product.query.requires_grad or product.key.requires_grad
    )
    for branch, rows in evaluation.rows:
        scores = [tap for tap in score_taps if tap.active(evaluation, branch)]
        patterns = [tap for tap in pattern_taps if tap.active(evaluation, branch)]
        if not scores and not patterns:
            continue
        part = _Branch(product, evaluation, branch, rows, lengths)
        edits = recorded or any(not tap.registration.read_only for tap in (*scores, *patterns))
        if not edits:
            for tap in scores:
                part.show(tap, product.scores(rows, *part.index(tap)), owned=True)
            for tap in patterns:
                memory = _memory(tap)
                pattern = product.pattern(rows, *part.index(tap), workspace=memory)
                part.show(tap, pattern, owned=memory is None)
            continue
        output = part.edit(output, scores, patterns)
    return output


class _Branch:
    """One branch's share of a product."""

    def __init__(
        self,
        product: Product,
        evaluation: Evaluation,
        branch: str,
        rows: slice,
        lengths: Mapping[str, int],
    ) -> None:
        self.product = product
        self.evaluation = evaluation
        self.branch = branch
        self.rows = rows
        self.lengths = lengths
        self.sizes = {
            "head": product.query.shape[1],
            "query": product.query.shape[2],
            "key": product.key.shape[2],
        }

    def index(self, tap: Tap) -> tuple[Index | None, Index | None, Index | None]:
        found = tap.index(self.evaluation, self.branch, self.lengths)
        return found.get("head"), found.get("query"), found.get("key")

    def show(self, tap: Tap, value: Tensor, *, owned: bool) -> None:
        """Let a reader see its own block."""
        run(tap, value, tap.context(self.evaluation, self.branch, self.lengths, owned=owned))

    def edit(self, output: Tensor, scores: Sequence[Tap], patterns: Sequence[Tap]) -> Tensor:
        """Compute the block that covers all hooks, run them in order, add what changed."""
        everything = (*scores, *patterns)
        heads = self._union("head", [self.index(tap)[0] for tap in everything])
        queries = self._union("query", [self.index(tap)[1] for tap in everything])
        keys = None if scores else self._union("key", [self.index(tap)[2] for tap in everything])
        covered = {"head": heads, "query": queries, "key": keys}
        if scores:
            before = self.product.scores(self.rows, heads, queries, None)
            after, scores_changed = self._run(scores, before, covered)
            original = safe_softmax(before)
            pattern = safe_softmax(after) if scores_changed else original
        else:
            original = self.product.pattern(self.rows, heads, queries, keys)
            pattern, scores_changed = original, False
        pattern, pattern_changed = self._run(patterns, pattern, covered)
        if not scores_changed and not pattern_changed:
            return output
        values = self.product.values(self.rows, heads, keys)
        change = (pattern - original) @ values
        place = ((0, self.rows), *axis_part(PATTERN_AXES, {"head": heads, "query": queries}))
        result = output.clone()
        put(result, place, (take(output, place).to(change.dtype) + change).to(output.dtype))
        return result

    def _run(
        self, taps: Sequence[Tap], value: Tensor, covered: Mapping[str, Index | None]
    ) -> tuple[Tensor, bool]:
        """Run hooks on parts of a block; the new block, and whether it must go on from it."""
        out, splice, any_change = value, value.requires_grad, False
        for tap in taps:
            index = dict(zip(("head", "query", "key"), self.index(tap), strict=True))
            inside = {axis: self._inside(axis, index[axis], covered[axis]) for axis in index}
            part = axis_part(PATTERN_AXES, inside)
            before = take(out, part)
            given = before.clone()
            context = tap.context(self.evaluation, self.branch, self.lengths, owned=True)
            after, changed = run(tap, given, context)
            if changed:
                self._alive(tap, index["query"])
                edited(tap, before, after)
            if changed or splice or after.requires_grad:
                out = out.clone() if out is value else out
                put(out, part, after)
                any_change = True
        return out, any_change

    def _alive(self, tap: Tap, queries: Index | None) -> None:
        """Refuse an edit of rows whose output is thrown away."""
        sequence = tap.point.sequences["query"]
        if tap.point.dead_queries is None or sequence == ("img",):
            return
        start = sum(self.lengths[name] for name in sequence[: sequence.index("txt")])
        dead = set(range(start, start + self.lengths["txt"]))
        if set(numbers(queries, self.sizes["query"])) <= dead:
            raise DeadHookPointError(
                f"{tap.point.name} was edited in rows of text queries only, which cannot change "
                f"the output: {tap.point.dead_queries}. Edit rows of the image (query='img')."
            )

    def _union(self, axis: str, indices: Sequence[Index | None]) -> Index | None:
        """What covers all of some indices; a slice where that is enough."""
        if any(index is None for index in indices):
            return None
        if all(index == indices[0] for index in indices):
            return indices[0]
        wanted = {place for index in indices for place in numbers(index, self.sizes[axis])}
        return contiguous(tuple(sorted(wanted))) if len(wanted) < self.sizes[axis] else None

    def _inside(self, axis: str, index: Index | None, covered: Index | None) -> Index | None:
        """An index of the whole axis as an index of the part of it that is covered."""
        if covered is None or index is None:
            return index
        if index == covered:
            return None
        place = {at: number for number, at in enumerate(numbers(covered, self.sizes[axis]))}
        return contiguous(tuple(place[at] for at in numbers(index, self.sizes[axis])))


def _running_products(attention: Attention, module: nn.Module) -> list[tuple[int, str]]:
    """Number and name of each product that the module will make.

    A U-Net's image prompts of scale 0 are skipped; Flux computes them all the same.
    """
    processor: Any = getattr(module, "processor", None)
    products = list(enumerate(attention.products))
    if len(products) == 1 or not type(processor).__name__.startswith("IPAdapter"):
        return products
    scales = zip(products[1:], processor.scale, strict=False)
    return [products[0], *(product for product, scale in scales if scale != 0)]


def _memory(tap: Tap) -> Workspace | None:
    """Memory to use again for a reader that says `keeps = False`; None for fresh memory.

    One for all points that a registration reads: it sees them one after the other.
    """
    registration = tap.registration
    if getattr(registration.fn, "keeps", True):
        return None
    if registration.memory is None:
        registration.memory = Workspace()
    return registration.memory


def _own_lengths(sequence: Sequence[str], total: int, lengths: Mapping[str, int]) -> dict[str, int]:
    """Lengths along one sequence: a single stream fills it, otherwise the block's own."""
    if len(sequence) == 1:
        return {sequence[0]: total}
    known = sum(lengths[name] for name in sequence)
    if known != total:
        raise EngineError(
            f"the joint sequence has {total} tokens, its streams {dict(lengths)}: this pipeline "
            "joins further tokens, whose place is not described"
        )
    return {}


def _use_native_backend(module: nn.Module) -> Any:
    """Route a processor of the dispatcher through the native kernel; what to restore."""
    processor: Any = getattr(module, "processor", None)
    if not hasattr(processor, "_attention_backend"):
        return None
    from diffusers.models.attention_dispatch import AttentionBackendName

    before = processor.__dict__.get("_attention_backend", _use_native_backend)
    processor._attention_backend = AttentionBackendName.NATIVE
    return (before,)


def _restore_backend(module: nn.Module, saved: Any) -> None:
    if saved is None:
        return
    processor: Any = module.processor
    if saved[0] is _use_native_backend:
        processor.__dict__.pop("_attention_backend", None)
    else:
        processor._attention_backend = saved[0]
