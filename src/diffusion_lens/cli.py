"""The command line: `diffusion-lens demo`, `hooks`, `run`, `cite`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from diffusion_lens.errors import DiffusionLensError

if TYPE_CHECKING:
    from diffusion_lens.hooked_diffusion import HookedDiffusion, Output

DEMO_MODEL = "shapes-unet"
DEMO_PROMPT = "a red circle above a blue square"
DEMO_BLOCK = "blocks.4.**"
TOY = "toy:"

app = typer.Typer(
    help="Hook points for diffusion models: list them, run with them, keep what they see.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str, typer.Argument(help="A Hub id, a folder, or a toy model such as toy:shapes-unet.")
]
Device = Annotated[str | None, typer.Option(help="Where to compute, such as cuda or cpu.")]
Dtype = Annotated[
    str | None, typer.Option("--torch-dtype", help="float32, bfloat16 or float16.", metavar="DTYPE")
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the image.")] = Path("diffusion_lens_demo"),
) -> None:
    """Show a toy model's hook points and generate one image, on a CPU."""
    from diffusion_lens import toys

    if DEMO_MODEL not in toys.names():
        _fail(
            f"the demo needs the toy model {DEMO_MODEL!r}, whose weights are not in this "
            f"installation (toy models found: {', '.join(toys.names()) or 'none'}). Install a "
            "release, or a clone with its weights.",
            code=1,
        )
    import torch

    torch.set_num_threads(1)  # on matrices of this size threads only wait for each other
    with _messages():
        model = _load(TOY + DEMO_MODEL)
        typer.echo(f"{model!r}\n\n{model.hook_table(DEMO_BLOCK)}\n")
        model.pipe.set_progress_bar_config(disable=False, desc=f"generating {DEMO_PROMPT!r}")
        output = model(DEMO_PROMPT, seed=0, **toys.call_defaults(model.pipe))
        (path,) = _save_images(output, out)
        typer.echo(f"\nThe image is in {path}")


@app.command()
def hooks(
    model: Model,
    pattern: Annotated[
        str, typer.Argument(help="Which names: * is one dotted part, ** any number of them.")
    ] = "**",
) -> None:
    """List a model's hook points: axes, sizes, native module, what is dead or absent and why."""
    with _messages():
        typer.echo(str(_load(model).hook_table(pattern)))


@app.command()
def run(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to generate.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("diffusion_lens_run"),
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any argument of the pipeline's call."),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            help="Keep this hook point; a name, a pattern or a Site's text form. Repeatable.",
        ),
    ] = None,
    branch: Annotated[
        str, typer.Option(help="Which guidance branch to keep: cond, uncond or all.")
    ] = "cond",
    reduce: Annotated[
        str | None, typer.Option(help="Keep the mean, sum or last over steps, not every step.")
    ] = None,
    device: Device = None,
    torch_dtype: Dtype = None,
) -> None:
    """Generate an image, and keep what made it (run.json) and hook points (--cache)."""
    with _messages():
        held = _load(model, device=device, torch_dtype=torch_dtype)
        given = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        settings = _suiting(model, held.pipe) | _settings(setting or [])
        settings |= {name: value for name, value in given.items() if value is not None}
        with _pipeline_messages(held):
            if cache:
                output, kept = held.run_with_cache(
                    prompt, seed=seed, names_filter=cache, branch=branch, reduce=reduce, **settings
                )
                typer.echo(f"{kept!r} is in {kept.save(out / 'cache')}")
            else:
                output = held(prompt, seed=seed, **settings)
        images = _save_images(output, out)
        record = {**output.made_by.as_dict(), "images": [path.name for path in images]}
        (out / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"{', '.join(map(str, images))}; what made it is in {out / 'run.json'}")


@app.command()
def cite() -> None:
    """Print BibTeX entries of this library and of diffusers, which runs the models."""
    from diffusion_lens import __version__

    typer.echo(CITATIONS.replace("VERSION", __version__).strip())


def main() -> None:
    """Run the command line."""
    app()


def _load(model: str, *, device: str | None = None, torch_dtype: str | None = None) -> Any:
    """The model of a MODEL argument."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    dtype = None if torch_dtype is None else _dtype(torch_dtype)

    from diffusion_lens.hooked_diffusion import HookedDiffusion

    if model.startswith(TOY):
        held = HookedDiffusion.toy(model.removeprefix(TOY))
        return held.to(*(given for given in (device, dtype) if given is not None))
    try:
        held = HookedDiffusion.from_pretrained(model, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        _fail(
            f"cannot load {model!r}: {error}\nMODEL is a Hub id, a folder that "
            f"`save_pretrained` wrote, or a toy model such as {TOY}{DEMO_MODEL}."
        )
    return held if device is None else held.to(device)


def _dtype(name: str) -> Any:
    if name not in ("float32", "bfloat16", "float16"):
        _fail(f"--torch-dtype {name!r} is unknown; give float32, bfloat16 or float16")
    import torch

    return getattr(torch, name)


def _suiting(model: str, pipe: Any) -> dict[str, Any]:
    """The settings that suit a toy model; nothing for any other."""
    if not model.startswith(TOY):
        return {}
    from diffusion_lens import toys

    return toys.call_defaults(pipe)


def _settings(given: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` arguments; a value that is no json is text."""
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.isidentifier():
            _fail(f"--set {one!r} is not of the form NAME=VALUE, such as --set height=512")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _save_images(output: Output, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    images = list(output.images)
    names = ["image.png"] if len(images) == 1 else [f"image_{n}.png" for n in range(len(images))]
    paths = [folder / name for name in names]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


@contextlib.contextmanager
def _messages() -> Iterator[None]:
    """Print an error of this library as its message alone."""
    try:
        yield
    except DiffusionLensError as error:
        _fail(str(error))


@contextlib.contextmanager
def _pipeline_messages(held: HookedDiffusion) -> Iterator[None]:
    """Print an argument that the pipeline refuses as a message alone."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, DiffusionLensError):
            raise
        _fail(f"{type(held.pipe).__name__} refuses these settings: {error}")


def _fail(message: str, *, code: int = 2) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


CITATIONS = r"""
@software{diffusion_lens,
  title = {diffusion_lens: hook points for diffusion models},
  author = {{The diffusion_lens contributors}},
  version = {VERSION},
  url = {https://github.com/diffusion-lens/diffusion_lens}
}

@misc{diffusers,
  title = {Diffusers: State-of-the-art diffusion models},
  author = {von Platen, Patrick and Patil, Suraj and Lozhkov, Anton and Cuenca, Pedro and Lambert,
    Nathan and Rasul, Kashif and Davaadorj, Mishig and Nair, Dhruv and Paul, Sayak and Berman,
    William and Xu, Yiyi and Liu, Steven and Wolf, Thomas},
  year = {2022},
  url = {https://github.com/huggingface/diffusers}
}
"""


if __name__ == "__main__":
    main()
