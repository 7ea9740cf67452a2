"""The attention product of a hooked module: q, k, v, scores and pattern.

While a hooked attention module runs, calls of `scaled_dot_product_attention` inside it come here.
The fused kernel still makes the output; a pattern is computed beside it, only where somebody asked,
and only the part that was asked for. Processors that work a product out in steps have the pattern
itself; their steps come here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.sources import ProductInput, ProductOutput, ProductWeights
from diffusion_lens.architectures.spec import Attention
from diffusion_lens.engine import sample_products
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.firing import edited, fire, run, same_batch
from diffusion_lens.engine.kept import JoinedProducts
from diffusion_lens.engine.product import Product, Workspace, safe_softmax
from diffusion_lens.engine.product_mode import ProductMode
from diffusion_lens.engine.projection import same_length
from diffusion_lens.engine.sample_products import SampleProducts
from diffusion_lens.engine.selection import contiguous, numbers, put, take
from diffusion_lens.engine.softmax_product import SoftmaxProduct
from diffusion_lens.engine.taps import Tap, axis_part
from diffusion_lens.errors import DeadHookPointError, EngineError
from diffusion_lens.hook_points.point import KEPT_KEYS, along
from diffusion_lens.hook_points.selectors import Indices

PATTERN_AXES = ("batch", "head", "query", "key")
SLICED = "Sliced"
"""What the names of processors begin with that compute a product in slices of batch and heads."""

IMAGE_PROMPTS = "IPAdapter"
"""The same for a U-Net's processors with image prompts."""

AS_THEY_ARE = "z, result and the residual stream can be hooked as they are."
OFF = (
    "the scale of its image prompt is 0 there, so that it is not computed; set another with "
    "`pipe.set_ip_adapter_scale(...)`"
)

NATIVE_BACKENDS = (
    "native",
    "_native_cudnn",
    "_native_efficient",
    "_native_flash",
    "_native_math",
)
"""Attention backends of diffusers that call `scaled_dot_product_attention`."""


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
        """The queries as they came and as the hooks left them."""

    def enter(self, module: nn.Module, _args: Any) -> None:
        """Forward pre-hook: start to intercept."""
        processor = _processor_name(module)
        if processor.startswith(SLICED):
            raise EngineError(
                f"{self.name}: {processor} computes attention in slices, whose queries and "
                "patterns cannot be put together; call `disable_attention_slicing()`. "
                f"{AS_THEY_ARE}"
            )
        self._products = _running_products(self.attention, module)
        self._note_absent()
        self._query = None

        def follower() -> _Steps:
            mode.calls += 1
            return _Steps(self, mode.calls - 1)

        heads, _ = self.attention.head_sizes(module)
        mode = ProductMode(self.attend, SoftmaxProduct(heads, follower))
        if self.attention.kept is not None:
            self.evaluation().refuse_holes(self.attention.kept)
            samples = SampleProducts(self.evaluation().batch, self.attend)
            mode = ProductMode(samples.take, samples.pad, sample_products.STEPS)
        if self.evaluation().made:
            start = sum(self.lengths()[name] for name in _before("img", self.attention.keys))
            at = slice(start, start + self.evaluation().made)
            mode = ProductMode(JoinedProducts(at, self.attend).take, mode.explicit)
        self._modes.append((mode, _use_native_backend(module)))
        mode.start()

    def leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        """Forward hook, called after an error too: stop intercepting."""
        self._query = None
        if not self._modes:  # `enter` failed, or what a hook ran has stopped it
            return
        mode, backend = self._modes.pop()
        mode.stop(module)
        _restore_backend(module, backend)
        unseen = mode.calls == 0 and output is not None
        if unseen and not self.evaluation().changed:  # by a guider, for this evaluation
            raise EngineError(
                f"{self.name}: {_processor_name(module)} computes attention without "
                "scaled_dot_product_attention or get_attention_scores, so queries and patterns "
                "cannot be seen; set a native processor "
                f"(`set_attn_processor(AttnProcessor2_0())`). {AS_THEY_ARE}"
            )

    def attend(self, call: int, product: Product) -> Tensor:
        """The attention output, with the hooks of this product run on the way."""
        evaluation = self.evaluation()
        found = self.product(call)
        if found is None:
            return product.fused()
        number, name = found
        queries, keys = self.attention.sequences(name)
        lengths = self.measured(name, product.query, product.key)
        given = product.query
        # Image prompts ask with the very queries of the text, whose hooks run once for both.
        if self._query is not None and _is_view(given, self._query[0]):
            product.query = self._query[1]
        elif self._asks(number):
            product.query = self._streams(self.main, "q", given, queries, lengths)
            self._query = (given, product.query)
        among_keys = along("key", lengths)
        product.key = self._streams(number, "k", product.key, keys, among_keys)
        product.value = self._streams(number, "v", product.value, keys, among_keys)
        self.entering(number, product, lengths)
        output = self._output(number, product, evaluation, lengths)
        return self._streams(number, "z", output, queries, lengths)

    @property
    def main(self) -> int:
        """Number of the product of the streams' own keys, whose queries are hooked."""
        return self.attention.products.index("")

    def _asks(self, number: int) -> bool:
        """Whether a product asks with the hooked queries: the main one, and any before it."""
        return number <= self.main

    def product(self, call: int) -> tuple[int, str] | None:
        """Number and name of a product by its place among those that run; None for further ones.

        Raises:
            EngineError: Where an image prompt makes several, whose places are not known.
        """
        if call < len(self._products):
            return self._products[call]
        if len(self.attention.products) > 1:
            raise EngineError(
                f"{self.name} made more attention products than its image prompts are: with "
                "ip_adapter_masks each image has one of its own, which is not described. "
                f"{AS_THEY_ARE}"
            )
        return None

    def measured(self, name: str, query: Tensor, key: Tensor) -> dict[str, int]:
        """Token counts of the streams of a product."""
        lengths = dict(self.lengths())
        queries, keys = self.attention.sequences(name)
        if keys == ("txt",) and self.evaluation().spec.text_length is not None:
            same_length("txt", key.shape[2], {"txt": self.evaluation().text_length()})
        lengths |= _own_lengths(queries, query.shape[2], lengths)
        if self.evaluation().used:
            lengths[KEPT_KEYS] = self.evaluation().used
        return lengths | _own_lengths(keys, key.shape[2], along("key", lengths))

    def _note_absent(self) -> None:
        """Say why products do not run, for those who wait for them."""
        running = {number for number, _ in self._products}
        for (number, _, _), taps in self.taps.items():
            if 0 <= number < len(self.attention.products) and number not in running:
                for tap in taps:
                    tap.registration.fired[tap.point.name].absent = OFF

    def entering(self, number: int, product: Product, lengths: Mapping[str, int]) -> None:
        """Told of each product as it stands after the hooks on q, k and v."""

    def _output(
        self, number: int, product: Product, evaluation: Evaluation, lengths: Mapping[str, int]
    ) -> Tensor:
        scores = self.taps.get((number, "scores", ""), [])
        patterns = self.taps.get((number, "pattern", ""), [])
        if not scores and not patterns:
            return product.fused()
        same_batch((*scores, *patterns)[0].point.name, product.query, evaluation)
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


class _Steps:
    """The hooks of one product that is worked out in steps."""

    def __init__(self, hooks: AttentionHooks, call: int) -> None:
        found = hooks.product(call)
        assert found is not None or len(hooks.attention.products) == 1
        self.hooks = hooks
        self.number, name = found or (call, "")
        self.name = name
        self.queries, self.keys = hooks.attention.sequences(name)
        self.lengths: dict[str, int] = {}

    def begin(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        hooks = self.hooks
        self.lengths = hooks.measured(self.name, query, key)
        if self.number == 0:
            asked = hooks._streams(0, "q", query, self.queries, self.lengths)
            hooks._query = None if asked is query else (query, asked)
        else:  # image prompts are asked by the text's queries
            asked = query if hooks._query is None else hooks._query[1]
        return asked, hooks._streams(self.number, "k", key, self.keys, self.lengths)

    def weigh(self, which: str, value: Tensor) -> Tensor:
        taps = self.hooks.taps.get((self.number, which, ""))
        return fire(taps, value, self.hooks.evaluation(), self.lengths) if taps else value

    def end(self, value: Tensor) -> Tensor:
        return self.hooks._streams(self.number, "v", value, self.keys, self.lengths)

    def give(self, output: Tensor) -> Tensor:
        return self.hooks._streams(self.number, "z", output, self.queries, self.lengths)


def weights(
    product: Product,
    score_taps: Sequence[Tap],
    pattern_taps: Sequence[Tap],
    evaluation: Evaluation,
    lengths: Mapping[str, int],
) -> Tensor:
    """Run the hooks on scores and pattern; edits of them are added to the fused output."""
    output = product.fused_with_normaliser()
    # Autocast would round scores and pattern, which are float32 at least, to half precision.
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

    def index(self, tap: Tap) -> tuple[Indices | None, Indices | None, Indices | None]:
        found = tap.index(self.evaluation, self.branch, self.lengths)
        return found.get("head"), found.get("query"), found.get("key")

    def show(self, tap: Tap, value: Tensor, *, owned: bool) -> None:
        """Let a reader see its own block."""
        run(tap, value, tap.context(self.evaluation, self.branch, self.lengths, owned=owned))

    def edit(self, output: Tensor, scores: Sequence[Tap], patterns: Sequence[Tap]) -> Tensor:
        """Compute the block that covers all hooks, run them in order, add what changed."""
        everything = (*scores, *patterns)
        # One block for all, so that each hook sees the edits of those before it.
        heads = self._union("head", [self.index(tap)[0] for tap in everything])
        queries = self._union("query", [self.index(tap)[1] for tap in everything])
        # A changed score moves its whole row of the pattern, so every key takes part.
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
        # Added in the pattern's precision: a small change would be lost in half precision.
        put(result, place, (take(output, place).to(change.dtype) + change).to(output.dtype))
        return result

    def _run(
        self, taps: Sequence[Tap], value: Tensor, covered: Mapping[str, Indices | None]
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

    def _alive(self, tap: Tap, queries: Indices | None) -> None:
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

    def _union(self, axis: str, indices: Sequence[Indices | None]) -> Indices | None:
        """What covers all of some indices; a slice where that is enough."""
        if any(index is None for index in indices):
            return None
        if all(index == indices[0] for index in indices):
            return indices[0]
        wanted = {place for index in indices for place in numbers(index, self.sizes[axis])}
        return contiguous(tuple(sorted(wanted))) if len(wanted) < self.sizes[axis] else None

    def _inside(self, axis: str, index: Indices | None, covered: Indices | None) -> Indices | None:
        """An index of the whole axis as an index of the part of it that is covered."""
        if covered is None or index is None:
            return index
        if index == covered:
            return None
        place = {at: number for number, at in enumerate(numbers(covered, self.sizes[axis]))}
        return contiguous(tuple(place[at] for at in numbers(index, self.sizes[axis])))


def _before(stream: str, sequence: Sequence[str]) -> Sequence[str]:
    return sequence[: list(sequence).index(stream)]


def _running_products(attention: Attention, module: nn.Module) -> list[tuple[int, str]]:
    """Number and name of each product that the module will make.

    A U-Net's image prompts of scale 0 are skipped; Flux computes them all the same.
    """
    products = list(enumerate(attention.products))
    if len(products) == 1 or not _processor_name(module).startswith(IMAGE_PROMPTS):
        return products
    processor: Any = module.processor
    scales = zip(products[1:], processor.scale, strict=False)
    return [products[0], *(product for product, scale in scales if not _is_zero(scale))]


def _is_view(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory."""
    return one is other or (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


def _is_zero(scale: Any) -> bool:
    """Whether an image prompt is off: a scale, or one for each of its images."""
    return all(one == 0 for one in scale) if isinstance(scale, list) else scale == 0


def _processor_name(module: nn.Module) -> str:
    return type(getattr(module, "processor", module)).__name__


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
    """Lengths along one sequence: one stream that the block does not hold takes what is left."""
    unknown = [name for name in sequence if name not in lengths]
    if len(sequence) == 1:
        same_length(sequence[0], total, lengths)
        return {sequence[0]: total}
    known = sum(lengths.get(name, 0) for name in sequence)
    if len(unknown) == 1 and known < total:
        return {unknown[0]: total - known}
    if known != total:
        raise EngineError(
            f"the joint sequence has {total} tokens, its streams {dict(lengths)}: this pipeline "
            "joins further tokens, whose place is not described"
        )
    return {}


def _use_native_backend(module: nn.Module) -> Any:
    """Route a processor of the dispatcher through the native kernel; what to restore.

    Backends that choose among torch's own kernels call the fused product, and stay.

    Raises:
        EngineError: For FlexAttention, whose masks the native kernel does not take or reads
            otherwise (a block mask; two axes as batch and query, not batch and key).
    """
    processor: Any = getattr(module, "processor", None)
    if not hasattr(processor, "_attention_backend"):
        return None
    from diffusers.models import attention_dispatch as dispatch

    chosen = processor._attention_backend or dispatch._AttentionBackendRegistry._active_backend
    if chosen in NATIVE_BACKENDS:
        return None
    if chosen == dispatch.AttentionBackendName.FLEX:
        raise EngineError(
            f"{_processor_name(module)} computes attention with the backend 'flex', whose masks "
            "other backends read otherwise, so queries and patterns are not shown; call "
            "`set_attention_backend('native')` on the denoiser (`reset_attention_backend()` alone "
            f"leaves diffusers' own default at what was set last). {AS_THEY_ARE}"
        )
    # From the instance: the class has a default, which must not be written onto the instance.
    before = processor.__dict__.get("_attention_backend", _use_native_backend)
    processor._attention_backend = dispatch.AttentionBackendName.NATIVE
    return (before,)


def _restore_backend(module: nn.Module, saved: Any) -> None:
    if saved is None:
        return
    processor: Any = module.processor
    if saved[0] is _use_native_backend:
        processor.__dict__.pop("_attention_backend", None)
    else:
        processor._attention_backend = saved[0]
