"""What is collected: samples, Sites and choices, batch by batch; and what it will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lens import HookedDiffusion, Output, Run, Site
from diffusion_lens.activations.choosing import TokenChoice
from diffusion_lens.activations.gathering import Gatherer, Record, Sample
from diffusion_lens.authoring import DEFAULT_SEED, call_settings, quiet
from diffusion_lens.errors import RunError, StoreError
from diffusion_lens.long_runs.batching import TEXTS, batches, part_of
from diffusion_lens.long_runs.fingerprint import fingerprint
from diffusion_lens.long_runs.seeds import listed_seeds, refuse_one_seed

LARGEST_SEED = 2**63

SEVERAL = ("num_images_per_prompt", "num_videos_per_prompt", "generator")
"""Settings that would make other samples than prompts and seeds say."""


@dataclass(frozen=True)
class Plan:
    """A collection before it runs.

    Attributes:
        model: The model.
        run: One prompt and one seed for each sample, and the settings.
        samples: The samples, prompt by prompt.
        prompts: The prompts.
        sites: What is collected.
        choice: Which tokens of it.
        dtype: In which precision; None for the model's.
        batch_size: How many samples run at once.
        images: Whether the images are kept, too.
        latents: Whether the latents are.
    """

    model: HookedDiffusion
    run: Run
    samples: tuple[Sample, ...]
    prompts: tuple[str, ...]
    sites: tuple[Site, ...]
    choice: TokenChoice
    dtype: torch.dtype | None
    batch_size: int
    images: bool = False
    latents: bool = False

    @classmethod
    def of(
        cls,
        model: HookedDiffusion,
        prompts: str | Sequence[str] | Run,
        *,
        sites: Any,
        steps: Any,
        branch: str,
        tokens: str | int,
        seeds: Any,
        settings: dict[str, Any],
        **others: Any,
    ) -> Plan:
        """Read the arguments of a collection.

        Raises:
            RunError: If the model is no pipeline, or settings do not pair with the prompts.
            StoreError: If an argument is none of those that there are.
        """
        if model.pipe is None:
            raise RunError("a bare denoiser does not generate; wrap the pipeline")
        refuse_one_seed(settings, error=StoreError)
        asked = Run.of(prompts, seed=DEFAULT_SEED, settings=settings)
        wrong = [name for name in SEVERAL if name in asked.settings]
        if wrong:
            raise StoreError(f"{wrong[0]}= makes samples of its own; samples come from seeds=")
        if others["images"] and "output_type" in asked.settings:
            raise StoreError(
                f"output_type={asked.settings['output_type']!r}: images=True keeps PIL images; "
                "leave output_type= out"
            )
        if "output_type" in call_settings(model.pipe) and "output_type" not in asked.settings:
            asked = asked.with_(output_type="pil" if others["images"] else "latent")
        run, samples = _of_each_seed(asked, seeds)
        return cls(
            model=model,
            run=run,
            samples=samples,
            prompts=tuple(asked.prompts),
            sites=_sites(sites, steps, branch),
            choice=TokenChoice.of(tokens),
            **others,
        )

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-len(self.samples) // self.batch_size)

    def fingerprint(self) -> dict[str, str]:
        """What the rows depend on, as text."""
        return fingerprint(
            self.model,
            self.run,
            sites=list(self.sites),
            tokens=str(self.choice),
            dtype=str(self.dtype),
            batch_size=self.batch_size,
            images=self.images,
            latents=self.latents,
        )

    def gather(
        self, numbers: range, give: Callable[[Record], None]
    ) -> Iterator[tuple[tuple[Sample, ...], Output]]:
        """Run some batches; their records are given on as they come.

        Args:
            numbers: Which batches, counted from 0.
            give: Takes each record.

        Yields:
            The samples of a batch and what the run gave, batch after batch.
        """
        first, last = numbers.start * self.batch_size, numbers.stop * self.batch_size
        chosen = range(first, min(last, len(self.samples)))
        part = part_of(self.run, chosen, error=StoreError)
        gatherer = Gatherer(self.choice, self.dtype, give)
        hooks = gatherer.hooks(self.sites)
        for within, run in batches(part, self.batch_size, error=StoreError):
            samples = tuple(self.samples[chosen[at]] for at in within)
            gatherer.begin(samples)
            with quiet(self.model.pipe):
                output = self.model.run_with_hooks(alone(run), fwd_hooks=hooks)
            gatherer.drain()
            yield samples, output


def alone(run: Run) -> Run:
    """A run of one sample with its texts by themselves: some pipelines take no list of one."""
    if len(run.prompts) != 1:
        return run
    texts = {
        name: value[0]
        for name, value in run.settings.items()
        if TEXTS.fullmatch(name) and isinstance(value, list) and len(value) == 1
    }
    return run.with_(prompt=run.prompts[0], **texts)


def _of_each_seed(run: Run, seeds: Any) -> tuple[Run, tuple[Sample, ...]]:
    """A run with one prompt and one seed for each sample."""
    prompts = run.prompts
    if seeds is None:
        if run.seed is None:
            raise StoreError("seed=None draws at random, so that no run could go on; give seeds=")
        pairs = list(zip(range(len(prompts)), run.seeds(), strict=True))
    else:
        if run.seed is not DEFAULT_SEED:
            raise StoreError(
                f"the run has its own seed ({run.seed!r}), seeds={seeds!r} was given beside it; "
                "leave one of them out"
            )
        if "latents" in run.settings:
            raise StoreError(
                "latents= are the noise itself, which seeds= would draw; leave one out"
            )
        each = listed_seeds(seeds, error=StoreError)
        pairs = [(prompt, seed) for prompt in range(len(prompts)) for seed in each]
    large = [seed for _, seed in pairs if not -LARGEST_SEED <= seed < LARGEST_SEED]
    if large:
        raise StoreError(f"seed {large[0]} does not fit into the index; give seeds below 2**63")
    every = part_of(run, [prompt for prompt, _ in pairs], error=StoreError)
    samples = tuple(
        Sample(number, prompt, seed, prompts[prompt]) for number, (prompt, seed) in enumerate(pairs)
    )
    return every.with_(seed=tuple(seed for _, seed in pairs)), samples


def _sites(sites: Any, steps: Any, branch: str) -> tuple[Site, ...]:
    """The Sites, with steps and branch where they do not say them."""
    several = [sites] if isinstance(sites, str | Site) or callable(sites) else list(sites)
    if not several:
        raise StoreError("sites= is empty: name what to collect; `model.hook_names()` lists all")
    default = None if branch == "all" else branch
    return tuple(
        site.with_(
            steps=site.steps if site.steps is not None else steps, branch=site.branch or default
        )
        for site in map(Site.of, several)
    )
