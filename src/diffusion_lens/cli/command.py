"""`@command`: a function of a model and its settings as a command of the command line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from diffusion_lens.cli.loading import (
    is_toy,
    listed_numbers,
    load,
    load_pipeline,
    settings_of,
    step_count,
    whole_numbers,
)
from diffusion_lens.cli.messages import fail, messages, pipeline_messages
from diffusion_lens.cli.options import Device, Dtype, Guidance, InferenceSteps, Model, Out, Setting
from diffusion_lens.showing.one_line import counted

if TYPE_CHECKING:
    from diffusion_lens import HookedDiffusion

SHARED: dict[str, Any] = {
    "num_inference_steps": InferenceSteps,
    "guidance_scale": Guidance,
    "setting": Setting,
    "device": Device,
    "torch_dtype": Dtype,
    "out": Out,
}
"""The options that commands share, as `--help` lists them; none has a value unless it is given."""


@dataclass
class Call:
    """A call of a command: MODEL, loaded when it is first asked for, and the shared options.

    What can be refused without the model is refused before anything here is asked for.

    Attributes:
        name: MODEL as it was given.
        num_inference_steps: Denoising steps, where they were given.
        guidance_scale: Likewise.
        setting: Every `--set`, as it was given.
        device: Where to compute.
        torch_dtype: In which precision.
        out: Folder for the results.
    """

    name: str
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    setting: list[str] | None = None
    device: str | None = None
    torch_dtype: str | None = None
    out: Path = Path()

    @property
    def is_toy(self) -> bool:
        """Whether MODEL is a shipped toy model."""
        return is_toy(self.name)

    @cached_property
    def model(self) -> HookedDiffusion:
        """The model."""
        return load(self.name, device=self.device, torch_dtype=self.torch_dtype)

    @cached_property
    def pipeline(self) -> Any:
        """The model's pipeline, whose denoiser need not be of a known class."""
        return load_pipeline(self.name, device=self.device, torch_dtype=self.torch_dtype)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        return settings_of(
            self.name,
            self.model.pipe,
            self.setting,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
        )

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What the pipeline's call takes."""
        return inspect.signature(type(self.model.pipe).__call__).parameters

    def steps(self, text: str | None, *, each: bool = False) -> Any:
        """What `--steps` says, if the run has such steps.

        Args:
            text: Such as `3`, `3,5` or `10:20`; None for all.
            each: Whether every step has to be known, so that a range needs its end.
        """
        found = (listed_numbers if each else whole_numbers)(text, "steps")
        if found is not None:
            count = step_count(self.model.pipe, self.settings)
            first = found.start or 0 if isinstance(found, slice) else max(found)
            if count is not None and first >= count:
                fail(
                    f"--steps {text!r}: a run of {counted(count, 'step')} has the steps 0 to "
                    f"{count - 1}; leave out the others, or raise --num-inference-steps"
                )
        return found

    def run(self, function: Callable[..., Any], *inputs: Any, **choices: Any) -> Any:
        """Call an analysis, or a method of `HookedDiffusion`, with the model and the settings.

        Settings that the pipeline refuses, or fails at, end in a message.

        Args:
            function: Takes the model, the inputs, then keywords.
            *inputs: What follows the model.
            **choices: Keywords besides the settings.
        """
        model, settings = self.model, self.settings
        with pipeline_messages(model):
            return function(model, *inputs, **choices, **settings)


def command(
    *, shared: Sequence[str] = tuple(SHARED), out: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function; its docstring is the help, its parameters are the options.

    A first parameter that is a `Call` stands for the argument MODEL and the shared options. Errors
    of the library, and of reading and writing files, end in their message. What the function gives,
    if anything, writes itself to the folder of `--out`.

    Args:
        shared: Which of `SHARED` it takes.
        out: The folder of `--out` unless another is given; by default `diffusion_lens_` and the
            function's name.
    """

    def decorated(function: Callable[..., Any]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        takes_model = bool(own) and own[0].annotation is Call
        defaults = {"out": Path(out or f"diffusion_lens_{function.__name__}")}
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name),
                annotation=SHARED[name],
            )
            for name in shared
        ]
        model = inspect.Parameter("model", inspect.Parameter.KEYWORD_ONLY, annotation=Model)
        named = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]

        @functools.wraps(function)
        def run(**given: Any) -> None:
            with messages():
                if takes_model:
                    asked = {name: given.pop(name) for name in shared}
                    call = Call(given.pop("model"), **asked)
                    found = function(call, **given)
                    if found is not None:
                        found.write(call.out)
                else:
                    function(**given)

        parameters = [model, *named[1:], *options] if takes_model else named
        del run.__wrapped__  # Typer would read the function's own signature
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorated


def application(about: str, package: str, names: Sequence[str]) -> typer.Typer:
    """Commands by their names: functions of the modules of the same name.

    Args:
        about: What `--help` says first.
        package: Where the modules are.
        names: The modules, in order.
    """
    app = typer.Typer(
        help=about,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # its tables squeeze what options say where their names are long
    )
    for name in names:
        function = getattr(import_module(f"{package}.{name}"), name)
        first = (inspect.getdoc(function) or "").partition("\n\n")[0]
        app.command(name.replace("_", "-"), short_help=first)(function)
    return app
