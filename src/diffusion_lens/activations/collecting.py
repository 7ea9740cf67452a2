"""Collecting activations into a store on disk."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from diffusion_lens import HookedDiffusion, Output, Run
from diffusion_lens.activation_cache import readable_bytes
from diffusion_lens.activations import files
from diffusion_lens.activations.files import ShardWriter
from diffusion_lens.activations.foreseeing import Foreseen, foreseen
from diffusion_lens.activations.gathering import Sample
from diffusion_lens.activations.page import PAGE, Page
from diffusion_lens.activations.plan import Plan
from diffusion_lens.activations.store import ActivationStore
from diffusion_lens.authoring import versions
from diffusion_lens.border import Amount, Count, PipelineSetting, public
from diffusion_lens.errors import StoreError
from diffusion_lens.hook_points import Sites
from diffusion_lens.long_runs.fingerprint import refuse_other
from diffusion_lens.long_runs.locking import only_process
from diffusion_lens.long_runs.telling import told
from diffusion_lens.whole_files import whole_file

FILE_BYTES = 2**26
"""About how many bytes of rows go into a file."""

MOST_BATCHES = 16
"""How many batches a shard holds at most, since a killed collection does its last shard anew."""

SHOWN = 200
"""Characters of a setting that the page shows; its fingerprint has it in full."""

LOCK = re.compile(r"\.process-(\d+)-of-(\d+)\.lock")


@public(sites=Sites, settings=PipelineSetting)
def collect(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    *,
    sites: Any,
    out: str | Path,
    steps: Any = None,
    branch: str = "cond",
    tokens: str | int = "all",
    dtype: torch.dtype | None = None,
    batch_size: Count = 1,
    seeds: Any = None,
    shard: tuple[int, int] | None = None,
    images: bool = False,
    latents: bool = False,
    max_bytes: Amount | None = None,
    show_progress: bool = True,
    **settings: Any,
) -> ActivationStore:
    """Run prompts and write activations to a folder, one row for each token that is kept.

    Rows are those that `run_with_cache` would keep, bit for bit: after the edits of other hooks,
    by the names, steps and branches that the Sites say. The axes of tokens (`pos`; `query` of
    patterns; `height` and `width` of feature maps) become rows; all others lie along a row in their
    order, so that a row of `hook_z` is its heads one after the other.

    A killed collection goes on when it is called again, and the store is the same, byte for byte.
    Rows hang on prompt, seed and `batch_size`: with another batch size a model's arithmetic may
    round otherwise, and where it does not, rows are the same.

    Args:
        model: The model.
        prompts: A prompt, several, or a `Run` with settings of its own.
        sites: What to collect: names, patterns, predicates or Sites.
        out: The folder; made if missing.
        steps: Steps to collect, where a Site does not say it; None for all.
        branch: `"cond"`, `"uncond"`, …, or `"all"`, likewise.
        tokens: `"all"`; how many tokens of each sample, drawn by prompt and seed alone, so that
            they are the same at every step and at every site with as many tokens; or
            `"grid:8x8"`, the tokens in which the centres of 8 x 8 equal cells of the image lie.
        dtype: Precision of the rows; None for that of the activations.
        batch_size: How many samples run at once.
        seeds: How many images of each prompt, with the seeds from 0 on, or the seeds themselves;
            None for the seed or seeds of the `Run`, else seed 0.
        shard: (i, n) for process i, counted from 0, of n that fill one store between them.
        images: Whether to keep the images, as png; a video's frame by frame.
        latents: Whether to keep the final latents.
        max_bytes: Refuse to take more; by default what the disk has.
        show_progress: Show a bar.
        **settings: Arguments of the pipeline's own call. Without `images` images are not decoded.

    Returns:
        The store; with `shard` what there is of it so far.

    Raises:
        CacheBudgetError: Before the first run, with the bytes and evaluations that it would take.
        StoreError: If the folder holds something else or another collection, is in use, or cannot
            be written to.
    """
    plan = Plan.of(
        model,
        prompts,
        sites=sites,
        steps=steps,
        branch=branch,
        tokens=tokens,
        seeds=seeds,
        settings=settings,
        dtype=dtype,
        batch_size=batch_size,
        images=images,
        latents=latents,
    )
    files.parquet()
    folder, process = _made(Path(out)), _process(shard)
    with _held(folder, *process):
        page = _page(folder, plan, max_bytes)
        mine = range(process[0], page.shards, process[1])
        _clear_away(folder, mine)
        todo = [number for number in mine if not files.index_path(folder, number).exists()]
        _write_shards(folder, plan, page, todo, show_progress)
    return ActivationStore.open(folder, partial=shard is not None)


def _process(shard: tuple[int, int] | None) -> tuple[int, int]:
    number, count = (0, 1) if shard is None else shard
    if not 0 <= number < count:
        raise StoreError(f"shard={shard!r}: give (i, n), process i from 0 to n - 1 of n")
    return number, count


def _made(folder: Path) -> Path:
    """The folder, if it is a new one or a store's."""
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    foreign = [
        one.name
        for one in folder.iterdir()
        if not (LOCK.fullmatch(one.name) or files.LEFT.fullmatch(one.name))
    ]
    if foreign and not (folder / PAGE).exists():
        raise StoreError(
            f"out={str(folder)!r} holds other files ({sorted(foreign)[0]}, …); give a new folder"
        )
    return folder


@contextlib.contextmanager
def _held(folder: Path, number: int, count: int) -> Iterator[None]:
    """Keep the share of this process for it while the context is open.

    Raises:
        StoreError: If another process has it, or a collection by another number of processes runs.
    """
    name = f".process-{number}-of-{count}.lock"
    with only_process(folder / name, argument="out", error=StoreError):
        for other in sorted(folder.iterdir()):
            found = LOCK.fullmatch(other.name)
            if found and int(found[2]) != count:
                # Taken and let go of at once, which also removes what a killed process left.
                with only_process(other, argument="out", error=StoreError):
                    pass
        yield


def _page(folder: Path, plan: Plan, max_bytes: int | None) -> Page:
    """The page of this very collection, written if it is new; refused before anything runs."""
    told_now = plan.fingerprint()
    there = (folder / PAGE).exists()
    if there:
        page = Page.read(folder)
        refuse_other(page.fingerprint, told_now, folder=folder, error=StoreError)
        missing = sum(not files.index_path(folder, at).exists() for at in range(page.shards))
        if not missing:
            return page
        share = missing / page.shards
    else:
        page, share = None, 1.0
    coming = foreseen(plan)
    coming.refuse_over(folder, share=share, max_bytes=max_bytes)
    if page is None:
        page = _new_page(plan, told_now, coming)
        with files.writing(folder):
            page.write(folder)
    return page


def _new_page(plan: Plan, fingerprint: dict[str, str], coming: Foreseen) -> Page:
    fitting = FILE_BYTES // max(coming.nbytes * plan.batch_size, 1)
    batches = max(1, min(MOST_BATCHES, fitting))
    return Page(
        fingerprint=fingerprint,
        prompts=plan.prompts,
        samples=len(plan.samples),
        sites=coming.widths,
        shards=-(-plan.batches // batches),
        batches_in_shard=batches,
        about={
            "model": plan.model.name,
            "pipeline": type(plan.model.pipe).__name__,
            "sites": [
                str(site) if isinstance(site.name, str) else told(site) for site in plan.sites
            ],
            "tokens": str(plan.choice),
            "dtype": str(plan.dtype),
            "batch_size": plan.batch_size,
            "samples": [(one.prompt, one.seed) for one in plan.samples],
            "steps": coming.steps,
            "evaluations": coming.evaluations,
            "settings": {key: str(told(one))[:SHOWN] for key, one in plan.run.settings.items()},
            "versions": versions(),
        },
    )


def _clear_away(folder: Path, mine: range) -> None:
    """Remove what killed processes left of the shards of this one."""
    for path in folder.iterdir():
        left = files.LEFT.fullmatch(path.name)
        # A page that another of several processes is writing now is not this one's.
        if left and (int(left[1]) in mine if left[1] else mine.step == 1):
            path.unlink(missing_ok=True)


def _write_shards(
    folder: Path, plan: Plan, page: Page, todo: list[int], show_progress: bool
) -> None:
    size = page.batches_in_shard
    several = {
        number: range(number * size, min((number + 1) * size, plan.batches)) for number in todo
    }
    written, total = 0, sum(map(len, several.values()))
    with tqdm(
        total=total, desc="collecting", unit=" batches", delay=2, disable=not show_progress
    ) as bar:
        for number, batches in several.items():
            writer = ShardWriter(folder, number, page.digest, FILE_BYTES)
            for samples, output in plan.gather(batches, writer.add):
                _keep_beside(writer, plan, samples, output)
                bar.set_postfix_str(readable_bytes(written + writer.written), refresh=False)
                bar.update()
            writer.finish()
            written += writer.written


def _keep_beside(
    writer: ShardWriter, plan: Plan, samples: Sequence[Sample], output: Output
) -> None:
    """Keep latents and images of a batch."""
    if plan.latents:
        found = output.latents
        if found is None or len(found) != len(samples):
            raise StoreError(
                f"{type(plan.model.pipe).__name__} gives no latents for each of "
                f"{len(samples)} samples; leave latents= out"
            )
        writer.latents |= {
            str(one.number): row.detach().cpu().contiguous().clone()
            for one, row in zip(samples, found, strict=True)
        }
    if plan.images:
        made = output.images if output.frames is None else output.frames
        for one, picture in zip(samples, made, strict=True):
            for name, frame in _pictures(writer.number, one, picture):
                with files.writing(writer.folder), whole_file(writer.folder / name) as path:
                    frame.save(path)
                    writer.note(name, path)


def _pictures(shard: int, sample: Sample, made: Any) -> Iterator[tuple[str, Image.Image]]:
    """The files of an image, or of the frames of a video."""
    name = f"shard-{shard:06d}-image_{sample.number:08d}"
    if isinstance(made, Image.Image):
        yield f"{name}.png", made
        return
    for number, frame in enumerate(made):
        yield f"{name}_{number:04d}.png", _as_picture(frame)


def _as_picture(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return frame
    values = frame.float().cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
