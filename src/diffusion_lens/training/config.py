"""What one training run is: a model's TOML file, read and checked."""

import tomllib
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run with settings of its own.

    Args:
        until: The step at which it ends.
        settings: What differs from the recipe, by the names of `TrainConfig`.
    """

    until: int
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe of one model: the settings of its last phase, and how those before it differ.

    Args:
        model: Its name, as `diffusion_lens.toys.load` knows it.
        family: Which pipeline and objective.
        architecture: Arguments of the pipeline's builder.
        batch: Samples of one step.
        learning_rate: After the warm-up and until a decay is asked for.
        warm_up: Steps over which the learning rate rises from zero.
        weight_decay: Of weights with two or more axes.
        optimizer: AdamW for all, or Muon for the matrices inside blocks.
        ema: Largest decay of the moving average that is exported.
        caption_drop: Share of samples trained without a caption, for guidance.
        unknown_words: Share of samples of which one word is made unknown.
        hidden_attributes: Share of the other samples with a caption of which words of colour, shape
            and texture are made unknown, each with a chance of one third: what is left has to find
            its object alone.
        pooled_drop: Share of samples whose pooled text embedding is that of no caption (MM-DiT).
        single: Share of scenes with one object, before pairs are left out.
        forward: Share of pairs whose first object is above or left of the second; None for half. At
            half, order, word and place form an exclusive or, which has no slope at its start.
        noise_power: Noise levels are uniform draws to this power; below 1 they lean to much noise,
            where the layout is decided (UNet).
        noise_mean: Noise levels are the logistic of a normal with this mean; above 0 they lean to
            much noise (MM-DiT).
        placed: Share of single objects whose caption says the place and leaves the background out.
        only_exchangeable: Whether to leave out pairs whose colours, exchanged, make a held-out
            combination, so that only the order of words tells which colour is on which shape.
        easy_pairs: Share that is kept of pairs with the fruit or of equal shapes, in which no
            colour has to find its shape.
        unnamed_colours: Chance of each plain object but the fruit to be drawn in a colour that has
            no name and is an unknown word in the caption: shapes then tell nothing of their colour.
        coarse: Whether to train on 8 x 8 tokens in place of 16 x 16 (MM-DiT).
        steps: Steps of a whole run.
        decay_steps: The learning rate falls to zero over this many last steps.
        phases: What came before the last phase, in order.
        seed: Of the initial weights and of the data.
        guidance: Scale of classifier-free guidance for samples.
        sample_steps: Denoising steps for samples.
    """

    model: str
    family: Literal["unet", "mmdit"]
    architecture: dict[str, int | tuple[int, ...]]
    batch: int
    learning_rate: float
    warm_up: int
    weight_decay: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    ema: float
    caption_drop: float
    unknown_words: float
    hidden_attributes: float = 0.0
    pooled_drop: float = 0.0
    single: float
    forward: float | None = None
    noise_power: float = 1.0
    noise_mean: float = 0.0
    placed: float = 0.22
    only_exchangeable: bool = False
    easy_pairs: float = 1.0
    unnamed_colours: float = 0.0
    coarse: bool = False
    steps: int
    decay_steps: int = 0
    phases: tuple[Phase, ...] = ()
    seed: int
    guidance: float
    sample_steps: int

    def at(self, step: int) -> "TrainConfig":
        """The settings of one step.

        Args:
            step: Steps taken so far.

        Returns:
            The recipe with the settings of the phase in place.
        """
        for phase in self.phases:
            if step < phase.until:
                return replace(self, **phase.settings)
        return self


def config_names() -> tuple[str, ...]:
    """The models that have a recipe.

    Returns:
        Their names, sorted.
    """
    folder = files("diffusion_lens.toys") / "configs"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if "toml" in f.name))


def load_config(model: str) -> TrainConfig:
    """Read a model's recipe.

    Args:
        model: Its name.

    Returns:
        The recipe.

    Raises:
        ValueError: If there is no such recipe, or if it names something unknown.
    """
    if model not in config_names():
        raise ValueError(f"no recipe for {model!r}; there are {', '.join(config_names())}")
    text = (files("diffusion_lens.toys") / "configs" / f"{model}.toml").read_text(encoding="utf-8")
    values = tomllib.loads(text)
    phases = [dict(phase) for phase in values.pop("phases", [])]
    known = {field.name for field in fields(TrainConfig)}
    unknown = set(values).union(*phases) - known - {"until"}
    if unknown:
        raise ValueError(f"the recipe of {model!r} has no setting {sorted(unknown)[0]!r}")
    values["phases"] = tuple(Phase(until=phase.pop("until"), settings=phase) for phase in phases)
    values["architecture"] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values["architecture"].items()
    }
    return TrainConfig(**values)
