"""Arguments that several commands take, under the names of the Python API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffusion_lens.border import Between, Count, Number, Size
from diffusion_lens.border import Seed as SeedRange
from diffusion_lens.cli import checks
from diffusion_lens.cli.settings import settings

Model = Annotated[
    str, typer.Argument(help="A Hub id, a folder, or a toy model such as toy:shapes-unet.")
]
Prompt = Annotated[str, typer.Argument(help="What to generate.")]
PromptOrCaption = Annotated[str, typer.Argument(help="What to generate; with --image its caption.")]
Out = Annotated[
    Path,
    typer.Option(
        help="Folder for the results.",
        metavar="FOLDER",
        parser=checks.folder,
        callback=checks.writable,
    ),
]
Seed = Annotated[int, typer.Option(help="Of the noise.", callback=checks.within(SeedRange))]
InferenceSteps = Annotated[
    int | None,
    typer.Option("--num-inference-steps", help="Denoising steps.", callback=checks.within(Size)),
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance-scale", help="Guidance scale.", callback=checks.within(Number)),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any argument of the pipeline's call.",
        callback=settings,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where to compute, such as cuda or cpu.", callback=checks.device),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--torch-dtype",
        help="float32, bfloat16 or float16.",
        metavar="DTYPE",
        callback=checks.one_of("float32", "bfloat16", "float16"),
    ),
]
Steps = Annotated[
    str | None, typer.Option(help="Only these steps: 3, 3,5 or 10:20; all by default.")
]
Blocks = Annotated[
    str | None,
    typer.Option(help="Only these blocks: 3, 3,5 or 10:20; the method's own by default."),
]
Branch = Annotated[str, typer.Option(help="Guidance branch: cond or uncond.")]
Keep = Annotated[list[str] | None, typer.Option(help="Keep apart: step, block. Repeatable.")]
Image = Annotated[
    Path | None,
    typer.Option(
        help="A real image, in place of a generated one.",
        exists=True,
        dir_okay=False,
        callback=checks.picture,
    ),
]
NoiseLevel = Annotated[
    float | None,
    typer.Option(
        help="How far to noise the image, in (0, 1]; 0.5 by default.",
        callback=checks.within(Annotated[float, Between(0, 1, open_low=True)]),
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        help="Noise samples to average over, for a given image; 1 by default.",
        callback=checks.within(Count),
    ),
]
Sites = Annotated[
    list[str], typer.Option(help="A name, a pattern or a Site's text form. Repeatable.")
]
SweepSeeds = Annotated[
    str, typer.Option(help="How many samples (8: the seeds 0 to 7), or which: 3,5 or 4:8.")
]
Window = Annotated[
    int | None,
    typer.Option(help="Steps of one window; 1 by default.", callback=checks.within(Count)),
]
Positions = Annotated[list[str] | None, typer.Option(help="Along the axis pos: words. Repeatable.")]
AnyBranch = Annotated[str, typer.Option(help="cond, uncond or all.")]
BatchSize = Annotated[int, typer.Option(help="Rows of a batch.", callback=checks.within(Count))]
