"""What concept streams cost, in units of plain generation: CPU time and FLOPs.

    python benchmarks/concept_streams.py [--rounds 15] [--skip-time] [--skip-flops]

Time: one evaluation of a small Flux with 1024 image and 128 text tokens, one thread, with 8
concepts whose saliency in z is added up in every double block. FLOPs: counted by torch, operation
by operation, on Flux.1 at 1024 pixels (4096 image and 512 text tokens) without weights.

Both also for running each double block a second time on concepts and image, as the published ports
do it: image queries, image projections and the image's MLP are then computed twice.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bracketing import bracket, measure_steadily
from models import flux
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lens import HookContext, HookedDiffusion, read_only
from diffusion_lens.analyses.concept_attention import Preset
from diffusion_lens.analyses.concept_attention.collecting import ScoreSums, VectorPairs
from diffusion_lens.analyses.concept_attention.scores import concept_scores

CONCEPTS = 8


@contextlib.contextmanager
def saliency(
    model: HookedDiffusion, embeddings: Tensor, *, pooled: str = "zeros"
) -> Iterator[VectorPairs]:
    """Concept streams whose scores are added up in every double block."""
    with model.concept_streams(embeddings, pooled=pooled) as streams:
        sums = ScoreSums(softmax_over="concepts", count=embeddings.shape[1])
        pairs = VectorPairs(Preset(), streams, sums)
        with model.hooks(pairs.hooks(streams.blocks), branches=("cond",)):
            yield pairs


@contextlib.contextmanager
def saliency_without_values(model: HookedDiffusion, embeddings: Tensor) -> Iterator[None]:
    """The same products where tensors have no values, so that nobody can read the grid."""
    sums = ScoreSums(softmax_over="concepts", count=embeddings.shape[1])
    image: list[Tensor] = []

    @read_only
    def on_image(activation: Tensor, _hook: HookContext) -> None:
        image[:] = [activation.flatten(2)]

    with model.concept_streams(embeddings, pooled="zeros") as streams:

        @read_only
        def on_concepts(activation: Tensor, hook: HookContext) -> None:
            sums.add(streams.merge(activation.flatten(2)), image[0], hook)

        hooks = [
            (f"blocks.{block}.attn.{stream}.hook_z", hook)
            for block in streams.blocks
            for stream, hook in (("img", on_image), ("concept", on_concepts))
        ]
        with model.hooks(hooks, branches=("cond",)):
            yield


@contextlib.contextmanager
def blocks_again(denoiser: Any, embeddings: Tensor) -> Iterator[list[Tensor]]:
    """Each double block runs once more, whole, on concepts and image; scores are added up."""
    rows: dict[str, Tensor] = {}
    vectors: dict[str, Tensor] = {}
    scores: list[Tensor] = []

    def before(_block: nn.Module, _args: tuple, given: dict[str, Any]) -> None:
        if "concepts" not in rows:
            rows["concepts"] = denoiser.context_embedder(embeddings.to(given["hidden_states"]))
        rows["image"] = given["hidden_states"]

    def after(block: Any, _args: tuple, given: dict[str, Any], _output: Any) -> None:
        image = vectors["image"]
        text = given["encoder_hidden_states"].shape[1]
        count = rows["concepts"].shape[1]
        places = tuple(
            torch.cat([part[:1].expand(count, -1), part[text:]])
            for part in given["image_rotary_emb"]
        )
        changed = {"encoder_hidden_states": rows["concepts"], "image_rotary_emb": places}
        rows["concepts"], _ = type(block).forward(block, **{**given, **changed})
        score = concept_scores(vectors["concepts"], image)
        scores[:] = [scores[0] + score] if scores else [score]

    def keep(name: str, _module: nn.Module, args: tuple) -> None:
        vectors[name] = args[0]

    handles = []
    for block in denoiser.transformer_blocks:
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after, with_kwargs=True))
        attention = block.attn
        handles.append(attention.to_out[0].register_forward_pre_hook(partial(keep, "image")))
        handles.append(attention.to_add_out.register_forward_pre_hook(partial(keep, "concepts")))
    start = denoiser.register_forward_pre_hook(lambda *_: rows.clear())
    try:
        yield scores
    finally:
        for handle in (*handles, start):
            handle.remove()


def within(context: Callable[[], Any], call: Callable[[], Any]) -> Callable[[], Any]:
    """A call inside a context that is entered for it."""

    def run() -> Any:
        with context():
            return call()

    return run


@torch.no_grad()
def time(rounds: int) -> None:
    """Measure time and print it."""
    denoiser, inputs = flux()
    model = HookedDiffusion(denoiser)
    width = inputs["encoder_hidden_states"].shape[-1]
    embeddings = torch.randn(1, CONCEPTS, width, generator=torch.Generator().manual_seed(2))

    def call() -> Tensor:
        return denoiser(**inputs, return_dict=False)[0]

    expected = call()
    with saliency(model, embeddings, pooled="prompt") as ours:
        assert torch.equal(call(), expected), "concept streams changed the output"
    with blocks_again(denoiser, embeddings) as theirs:
        call()
    maps = theirs[0] / len(denoiser.transformer_blocks)
    torch.testing.assert_close(ours.result().flatten(2), maps, atol=1e-4, rtol=1e-3)
    runs = {
        "plain again (control)": call,
        "concept streams, saliency added up": within(partial(saliency, model, embeddings), call),
        "every double block run again": within(partial(blocks_again, denoiser, embeddings), call),
    }
    plain, ratios = bracket(call, runs, rounds=rounds)
    print(f"\n1024 image + 128 text tokens, {CONCEPTS} concepts, {torch.get_num_threads()} thread")
    print(f"plain {plain * 1e3:.0f} ms CPU, {rounds} rounds, median ratio with its standard error")
    for what, ratio in ratios.items():
        print(f"  {what:40s} {ratio}")


@torch.no_grad()
def flops() -> None:
    """Count FLOPs at Flux.1's own size and print them."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        denoiser: Any = FluxTransformer2DModel(guidance_embeds=True).eval()
    inputs = sized_inputs(side=64, text=512, device="meta")
    embeddings = torch.randn(1, CONCEPTS, 4096, device="meta")
    model = HookedDiffusion(denoiser)

    def call() -> Any:
        return denoiser(**inputs, return_dict=False)

    plain = counted(call)
    print(f"\nFlux.1 at 1024 pixels, 512 text tokens, {CONCEPTS} concepts: {plain:.3e} FLOPs plain")
    for what, context in {
        "concept streams, saliency added up": partial(saliency_without_values, model, embeddings),
        "every double block run again": partial(blocks_again, denoiser, embeddings),
    }.items():
        print(f"  {what:40s} {counted(within(context, call)) / plain:.5f}")


def sized_inputs(*, side: int, text: int, device: str) -> dict[str, Any]:
    """Inputs of Flux.1 for a square image of `side` x `side` tokens."""
    empty = partial(torch.empty, device=device)
    return {
        "hidden_states": empty(1, side * side, 64),
        "encoder_hidden_states": empty(1, text, 4096),
        "pooled_projections": empty(1, 768),
        "img_ids": empty(side * side, 3),
        "txt_ids": empty(text, 3),
        "timestep": empty(1),
        "guidance": empty(1),
    }


def counted(call: Callable[[], Any]) -> int:
    """FLOPs of matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--skip-time", action="store_true")
    parser.add_argument("--skip-flops", action="store_true")
    options = parser.parse_args()
    measure_steadily()
    if not options.skip_flops:
        flops()
    if not options.skip_time:
        time(options.rounds)
