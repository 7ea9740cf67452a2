"""The parts of the demo, each an ordinary use of the public analyses."""

from __future__ import annotations

from typing import Any

from diffusion_lens import viz
from diffusion_lens.analyses import attention_maps, concept_attention, head_relevance
from diffusion_lens.analyses.ordered_weakening import WeakeningCurves, ordered_weakening
from diffusion_lens.analyses.patching import latent_projection, patch_heads
from diffusion_lens.app.demo.finding import by_attention, by_concepts, objects_found, tasks
from diffusion_lens.app.demo.setting import LOCALISING, PROMPT, Found, Setting
from diffusion_lens.app.report_parts import Number, Table
from diffusion_lens.toys.benchmark.weakening import attribute_score, captions_naming
from diffusion_lens.toys.shapes.evaluation import test_captions
from diffusion_lens.toys.shapes.world import CONCEPTS

WORDS = ["red", "circle", "blue", "square"]
PHRASES = ["red circle", "blue square", "background"]
CONCEPT = "Shape"
CLEAN, CORRUPTED = "a red square", "a blue square"


def words_in_the_image(setting: Setting) -> Found:
    """Attention maps of words over the image of the toy U-Net, step by step."""
    model = setting.unet
    with setting.bar(model):
        maps = attention_maps(
            model, PROMPT, words=WORDS, keep="step", seed=0, **setting.call(model)
        )
    return Found(
        "Where does the image read each word? Attention maps (DAAM)",
        [
            f"The toy U-Net shapes-unet drew “{PROMPT}”. Each panel shows how much attention the "
            "places of the image pay to a word, all cross-attention heads and blocks averaged. "
            "Move the slider through the denoising steps.",
            maps.overlay(WORDS, upsample="bilinear"),
        ],
        images={"shapes-unet": maps.images[0]},
        results={"attention_maps": maps},
    )


def concepts_in_the_image(setting: Setting) -> Found:
    """Concept maps over the image of the toy MM-DiT, step by step."""
    model = setting.mmdit
    with setting.bar(model):
        maps = concept_attention(
            model,
            PROMPT,
            concepts=PHRASES,
            blocks=LOCALISING,
            keep=["step"],
            seed=0,
            **setting.call(model),
        )
    assert maps.images is not None
    return Found(
        "Where does the model see a concept? ConceptAttention",
        [
            f"The toy MM-DiT shapes-mmdit was asked for “{PROMPT}”. Concepts run through it beside "
            "the image and change no bit of it; they need not be in the prompt. The maps are of "
            f"block {LOCALISING[0]}, which finds objects best on scenes with known masks; the mean "
            "over the blocks that the paper names is worse here.",
            maps.plot(upsample="bilinear"),
        ],
        images={"shapes-mmdit": maps.images[0]},
        results={"concept_attention": maps},
    )


def maps_against_truth(setting: Setting) -> Found:
    """Both kinds of maps where the exact masks are known."""
    scenes = tasks(setting.size.scenes)
    methods = {
        "attention maps, shapes-unet": by_attention(setting.unet),
        "attention maps, shapes-mmdit": by_attention(setting.mmdit),
        f"ConceptAttention, shapes-mmdit, block {LOCALISING[0]}": by_concepts(setting.mmdit),
    }
    rows = objects_found(methods, scenes, show_progress=setting.show_progress)
    first, chance = rows[0], rows[-1]
    return Found(
        "Are the maps right? Scenes whose masks are known",
        [
            f"{len(scenes)} rendered scenes of two objects, noised half-way and denoised once. "
            "Each map is asked for an object (“striped red circle”) and compared with the "
            "object's exact mask; average precision needs no threshold.",
            Table(rows),
        ],
        number=Number(
            f"{first['average precision']:.2f}",
            f"average precision with which {first['map']}, find objects (a random map: "
            f"{chance['average precision']:.2f})",
        ),
    )


def heads_of_concepts(setting: Setting) -> Found:
    """Head relevance vectors, and what becomes of images when the relevant heads are weakened."""
    model, show = setting.unet, setting.show_progress
    settings = setting.call(model, share=0.5)
    captions = [one.caption for one in test_captions()]
    spread = captions[:: max(1, len(captions) // setting.size.captions)][: setting.size.captions]
    relevance = head_relevance(
        model, spread, concepts=_concepts(), batch_size=12, show_progress=show, **settings
    )
    drawn = captions_naming("colour", "shape", "background")[: setting.size.weakened]
    curves = ordered_weakening(
        model,
        drawn,
        relevance,
        concept=CONCEPT,
        score=attribute_score(CONCEPT.lower()),
        order=("most", "least"),
        counts=_counts(len(relevance.heads)),
        seeds=(0,),
        batch_size=12,
        keep_images=True,
        show_progress=show,
        **settings,
    )
    low, high = curves.area_interval()
    return Found(
        "Which heads matter for which concept? Head relevance vectors",
        [
            f"Counted while {len(spread)} captions were drawn: how often each cross-attention head "
            "attends most to the words of a concept. 1 is the mean of a row.",
            relevance.plot(),
            f"If the vectors are right, {CONCEPT.lower()} is lost sooner when its most relevant "
            "heads are weakened first (factor −2 on the attention to the words) than when its "
            "least relevant ones are. Not every concept of this model passes the test: colour does "
            "not (see “Ordered weakening” in the documentation).",
            curves.plot(),
            f"The first caption, “{curves.prompts[0]}”, with more and more heads weakened:",
            _strip(curves),
        ],
        number=Number(
            f"{curves.area():+.2f}",
            f"area between the weakening curves of {CONCEPT.lower()}, least minus most relevant "
            f"first; 95 % interval {low:+.2f} to {high:+.2f}, above 0 if the vectors are right",
        ),
        results={"head_relevance": relevance, "ordered_weakening": curves},
    )


def heads_that_carry_a_word(setting: Setting) -> Found:
    """A patching sweep over every head."""
    model = setting.unet
    settings = setting.call(model, share=0.5)
    steps = range(0, settings["num_inference_steps"], 3)
    result = patch_heads(
        model,
        CLEAN,
        CORRUPTED,
        sites="blocks.*.cross_attn.img.hook_z",
        axes=("block", "head"),
        metric=latent_projection,
        seeds=range(setting.size.seeds),
        steps=steps,
        show_progress=setting.show_progress,
        **settings,
    )
    first = result.top(1)[0]
    return Found(
        "What carries the difference between two prompts? Activation patching",
        [
            f"Each head's output in the run on “{CORRUPTED}” is replaced, alone, by what it was "
            f"for “{CLEAN}” on the same noise. 0: nothing changed; 1: the prediction is that of "
            f"the clean prompt. Mean over {setting.size.seeds} seeds and {len(steps)} steps.",
            result.plot(),
            Table(result.top(5)),
        ],
        number=Number(
            f"{100 * first['effect']:.0f} %",
            f"of the way from “{CORRUPTED}” to “{CLEAN}” in the predictions of single steps, "
            f"by head {first['block']}.{first['head']} (block.head) alone "
            f"(95 % interval {100 * first['low']:.0f} to "
            f"{100 * first['high']:.0f} % over {setting.size.seeds} seeds)",
        ),
        results={"patching": result},
    )


def _concepts() -> dict[str, list[str]]:
    """The concepts of the toys' world; “orange”, a colour and a fruit, stands for none."""
    return {name: [word for word in words if word != "orange"] for name, words in CONCEPTS.items()}


def _counts(heads: int) -> list[int]:
    return [heads * eighth // 8 for eighth in (1, 2, 3, 4)]


def _strip(curves: WeakeningCurves) -> Any:
    """The first caption's image at each point, a row for each order."""
    assert curves.images is not None
    shown = [
        (images[0][place][0], f"{order} first: {count}")
        for order, images in curves.images.items()
        for place, count in enumerate(curves.counts)
    ]
    images, captions = zip(*shown, strict=True)
    return viz.image_strip(list(images), captions=captions, rows=len(curves.images))
