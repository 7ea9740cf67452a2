"""The command line: what it prints, what it writes, and how it says no."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image
from typer.testing import CliRunner, Result

from diffusion_lens import ActivationCache, HookedDiffusion, Run, Site, toys
from diffusion_lens.analyses import AblationResult, AttentionMaps, ConceptMaps, HeadRelevance
from diffusion_lens.analyses.patching import PatchingResult
from diffusion_lens.analyses.registry import ROWS
from diffusion_lens.cli import app
from diffusion_lens.cli.best_part import sites_of
from diffusion_lens.cli.cite import entries, methods_behind
from diffusion_lens.cli.folders import named, provenance
from diffusion_lens.interventions import ablate_heads

PIPELINE = str(Path(__file__).parent / "golden" / "sd" / "pipeline")
PATTERNS = "blocks.0.cross_attn.hook_pattern"
FAST = ["--num-inference-steps", "2"]
UNET, MMDIT = "toy:shapes-unet", "toy:shapes-mmdit"
CAPTION = "a red circle"


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, list(arguments))


def works(*arguments: str) -> str:
    """What a command prints that ends well."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    """What a refused command says, on the error stream and nowhere else."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert not result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def is_page(path: Path) -> bool:
    return path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_help_lists_the_commands_without_importing_torch() -> None:
    script = (
        "import sys\nfrom diffusion_lens.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'plotly'}\n"
        "assert not heavy & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = ("demo", "hooks", "run", "concept-attention", "attention-maps", "hrv", "patch")
    assert all(name in shown for name in (*names, "ablate", "check", "cite"))


def test_hooks_prints_the_table_of_the_names_that_match() -> None:
    shown = works("hooks", PIPELINE, "blocks.0.cross_attn.*")
    assert PATTERNS in shown
    assert "batch head query key" in shown
    assert "blocks.1." not in shown


def test_hooks_names_the_closest_of_a_mistyped_name() -> None:
    assert f"Closest: {PATTERNS}" in refused("hooks", PIPELINE, f"{PATTERNS[:-1]}x")


def test_run_writes_an_image_and_what_made_it(tmp_path: Path) -> None:
    works("run", PIPELINE, "a cat", "--out", str(tmp_path), "--seed", "3", *FAST)
    assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["seeds"] == [3]
    assert record["images"] == ["image.png"]
    assert "num_inference_steps=2" in record["run"]
    assert not (tmp_path / "cache").exists()


def test_run_keeps_the_hook_points_of_its_sites(tmp_path: Path) -> None:
    site = f"{PATTERNS}[head=1,step=1]"
    sites = ["--cache", site, "--cache", "hook_noise_pred"]
    works("run", PIPELINE, "a cat", "--out", str(tmp_path), *sites, *FAST)
    cache = ActivationCache.load(tmp_path / "cache")
    assert set(cache) == {"hook_noise_pred", PATTERNS}
    assert cache[PATTERNS].shape[:3] == (1, 1, 1)  # one step, one prompt, one head
    assert cache.branches == ["cond"]


def test_run_passes_any_argument_of_the_pipeline_on(tmp_path: Path) -> None:
    more = ["--set", "num_images_per_prompt=2", "--set", "negative_prompt=a dog"]
    works("run", PIPELINE, "a cat", "--out", str(tmp_path), *more, *FAST)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["images"] == ["image_0.png", "image_1.png"]
    assert "negative_prompt='a dog'" in record["run"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            ["--cache", f"{PATTERNS}[heads=1]"], "unknown selector 'heads'", id="selector"
        ),
        pytest.param(["--cache", f"{PATTERNS}[head=99]"], "head 99 was asked for", id="head"),
        pytest.param(["--cache", f"{PATTERNS}[step=7]"], "never fired", id="step"),
        pytest.param(["--set", "height"], "is not of the form NAME=VALUE", id="setting"),
        pytest.param(
            ["--set", "height=13", "--set", "width=16"],
            "StableDiffusionPipeline refuses these settings",
            id="size",
        ),
        pytest.param(
            ["--torch-dtype", "int8"], "none of float32, bfloat16, float16", id="precision"
        ),
    ],
)
def test_run_refuses_with_the_message_alone(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    message = refused("run", PIPELINE, "a cat", "--out", str(tmp_path), *FAST, *arguments)
    assert said in message


def test_a_folder_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").touch()
    for path in (str(tmp_path / "nothing"), "./nothing", "~/nothing", "a/b/c", "a\\b"):
        message = refused("hooks", path)
        assert message.startswith(f"cannot load {path!r}: there is no such folder.\n")
        assert "MODEL is a Hub id, a folder" in message
    message = refused("hooks", str(tmp_path / "model_index.json"))
    assert "it is a file; give the folder that it lies in" in message


@pytest.mark.parametrize("name", ["shapes-unet", "shapes_unet", "Shapes-unet", "shape-unet"])
def test_the_name_of_a_toy_alone_is_refused_with_the_whole_of_it(name: str) -> None:
    message = refused("hooks", name)
    assert message.startswith(f"cannot load {name!r}: there is no such folder, and the toy models")
    assert "Closest: toy:shapes-unet; give that." in message


def test_a_name_that_the_hub_may_have_is_looked_up_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_asked: object, **_more: object) -> None:
        raise OSError("the Hub has nothing of that name")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", nothing)
    for name in ("stable-diffusion-xl", "someone/shapes-unet"):
        message = refused("hooks", name)
        assert message.startswith(f"cannot load {name!r}: the Hub has nothing of that name\n")
        assert "MODEL is a Hub id, a folder" in message


def test_the_package_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "diffusion_lens", "hooks", "toy:nothing"]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    assert shown.returncode == 2
    assert "no toy model is called 'nothing'" in shown.stderr


def test_only_commands_that_take_an_image_speak_of_its_caption() -> None:
    for name in ("attention-maps", "concept-attention"):
        assert "with --image its caption" in works(name, "--help")
    for name in ("run", "excite"):
        assert "caption" not in works(name, "--help").partition("Options")[0]


def test_an_unknown_toy_is_refused() -> None:
    assert "no toy model is called 'shapes'" in refused("hooks", "toy:shapes")


def test_attention_maps_leave_images_a_table_a_result_and_a_report(tmp_path: Path) -> None:
    given = ["--words", "red", "--words", "circle", "--keep", "step", "--steps", "1:"]
    works("attention-maps", UNET, CAPTION, *given, *FAST, "--out", str(tmp_path))
    maps = AttentionMaps.load(tmp_path / "result")
    assert maps.steps == (1,)
    assert maps.labels == ("red", "circle")
    rows = table(tmp_path / "table.csv")
    assert [row["word"] for row in rows] == ["red", "circle"]
    assert float(rows[0]["mean"]) == pytest.approx(float(maps.word("red").mean()), rel=1e-4)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "image.png",
        "word_red.png",
        "word_circle.png",
    }
    assert is_page(tmp_path / "report.html")


def test_attention_maps_are_of_every_word_by_default(tmp_path: Path) -> None:
    works("attention-maps", UNET, CAPTION, *FAST, "--out", str(tmp_path))
    assert [row["word"] for row in table(tmp_path / "table.csv")] == CAPTION.split()


def test_attention_maps_of_a_word_that_is_not_there_are_refused(tmp_path: Path) -> None:
    message = refused(
        "attention-maps", UNET, CAPTION, "--words", "squar", *FAST, "--out", str(tmp_path)
    )
    assert "'squar' is not in" in message
    assert not list(tmp_path.iterdir())


def test_concept_attention_leaves_images_a_table_a_result_and_a_report(tmp_path: Path) -> None:
    given = ["--concepts", "circle", "--concepts", "background", "--blocks", "0:2"]
    works("concept-attention", MMDIT, CAPTION, *given, *FAST, "--out", str(tmp_path))
    maps = ConceptMaps.load(tmp_path / "result")
    assert maps.concepts == ("circle", "background")
    assert maps.blocks == (0, 1)
    rows = table(tmp_path / "table.csv")
    assert sum(float(row["mean"]) for row in rows) == pytest.approx(1, abs=1e-4)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "image.png",
        "concept_circle.png",
        "concept_background.png",
    }
    assert is_page(tmp_path / "report.html")


def test_concept_attention_reads_a_given_image(tmp_path: Path) -> None:
    works("run", UNET, CAPTION, *FAST, "--out", str(tmp_path / "run"))
    given = ["--concepts", "circle", "--concepts", "background", "--noise-level", "0.3"]
    image = ["--image", str(tmp_path / "run" / "image.png")]
    works("concept-attention", MMDIT, CAPTION, *given, *image, "--out", str(tmp_path / "maps"))
    assert ConceptMaps.load(tmp_path / "maps" / "result").made_by["noise_level"] == 0.3


@pytest.mark.slow
def test_patch_leaves_a_table_a_result_and_a_report(tmp_path: Path) -> None:
    given = ["--sites", "blocks.*.cross_attn.img.hook_z", "--axes", "block", "--axes", "step"]
    shown = works(
        "patch",
        UNET,
        "a red square",
        "a blue square",
        *given,
        *("--seeds", "0:2", "--metric", "latent_projection", "--out", str(tmp_path)),
        *FAST,
    )
    assert "exact patching, 10 block x 2 step, 2 samples" in shown
    result = PatchingResult.load(tmp_path / "result")
    assert len(table(tmp_path / "table.csv")) == result.effects.numel() == 20
    assert is_page(tmp_path / "report.html")


@pytest.mark.parametrize(
    "more",
    [
        ("--axes", "block", "--axes", "head"),
        pytest.param(
            ("--axes", "block", "--axes", "head", "--direction", "noise"), marks=pytest.mark.slow
        ),
        pytest.param(
            ("--axes", "step", "--mode", "window", "--window", "2"), marks=pytest.mark.slow
        ),
        pytest.param(
            ("--sites", "blocks.*.cross_attn.txt.hook_v", "--axes", "pos"), marks=pytest.mark.slow
        ),
    ],
    ids=["heads", "noise", "window", "words"],
)
def test_patch_shows_both_runs_and_the_best_patch(more: tuple[str, ...], tmp_path: Path) -> None:
    sites = ("--sites", "blocks.*.cross_attn.img.hook_z") if "--sites" not in more else ()
    prompts = ("a red square", "a blue square")
    settings = ("--seeds", "3,4", *FAST)
    works("patch", UNET, *prompts, *sites, *more, *settings, "--out", str(tmp_path))
    found = {
        name: Image.open(tmp_path / f"{name}.png") for name in ("clean", "corrupted", "patched")
    }
    for name, prompt in zip(found, prompts, strict=False):
        works("run", UNET, prompt, "--seed", "3", *FAST, "--out", str(tmp_path / name))
        drawn = Image.open(tmp_path / name / "image.png")
        assert np.abs(np.asarray(drawn, int) - np.asarray(found[name], int)).max() <= 1
    base = found["clean" if "noise" in more else "corrupted"]
    assert np.any(np.asarray(found["patched"]) != np.asarray(base))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 3
    assert "patched, in a whole run, at " in page
    forced = "--mode" not in more
    assert ("of a whole run" in page and "the effects are teacher-forced" in page) == forced
    rows = table(tmp_path / "table.csv")
    shown = page.count("<tr>") - 1
    assert shown == min(20, len(rows))
    assert ("all are in table.csv" in page) == (len(rows) > 20)


@pytest.mark.slow
def test_patch_draws_the_word_that_was_asked_for(tmp_path: Path) -> None:
    given = ("--sites", "blocks.*.cross_attn.txt.hook_v", "--axes", "pos", "--seeds", "3,4", *FAST)
    pictures = []
    for more in ((), ("--positions", "square"), ("--positions", "blue")):
        out = tmp_path / "-".join(more)
        works("patch", UNET, "a red square", "a blue square", *given, *more, "--out", str(out))
        pictures.append(np.asarray(Image.open(out / "patched.png")))
    best = max(table(tmp_path / "table.csv"), key=lambda row: float(row["effect"]))
    assert best["pos"] == "square"
    assert near(*pictures[:2])
    assert not near(*pictures[1:])


def near(one: Any, other: Any) -> bool:
    """Whether two pictures are the same but for rounding, which depends on the batch."""
    return bool(np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1)


@pytest.mark.slow
def test_ablate_leaves_both_images_a_table_a_result_and_a_report(tmp_path: Path) -> None:
    sites = "blocks.*.cross_attn.img.hook_z"
    given = ("--sites", sites, "--axes", "block", "--axes", "head", "--seeds", "3,4", *FAST)
    shown = works("ablate", UNET, CAPTION, *given, "--out", str(tmp_path))
    assert "zero ablation, 10 block x 4 head, 2 samples" in shown
    result = AblationResult.load(tmp_path / "result")
    rows = table(tmp_path / "table.csv")
    effects = [float(row["effect"]) for row in rows]
    assert len(rows) == result.effects.numel() == 40
    assert effects == sorted(effects, reverse=True)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 2
    best = f"block {rows[0]['block']}, head {rows[0]['head']}"
    assert f"with zeros at {best}" in page
    assert "all are in table.csv" in page
    model = HookedDiffusion.toy("shapes-unet")
    run = Run(CAPTION, seed=3, **toys.call_defaults(model.pipe, steps=2))
    site = Site(sites.replace("*", rows[0]["block"]), heads=[int(rows[0]["head"])], branch="cond")
    with model.hooks([(site, ablate_heads("zero"))]):
        without = model(run).images[0]
    intact, ablated = (Image.open(tmp_path / f"{name}.png") for name in ("intact", "ablated"))
    assert near(intact, model(run).images[0])
    assert near(ablated, without)
    assert not near(ablated, intact)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "shown"),
    [
        (("--value", "mean"), "mean ablation, 10 block, 3 samples"),
        (
            ("--value", "mean", "--others", "a blue square", "--axes", "step", "--window", "2"),
            "mean ablation, 1 step x 10 block, 3 samples",
        ),
        (("--value", "resample", "--others", "a blue square"), "resample ablation, 10 block"),
        (
            ("--sites", "blocks.*.cross_attn.txt.hook_v", "--axes", "pos", "--positions", "red"),
            "zero ablation, 1 pos x 10 block",
        ),
        (("--metric", "graded", "--part", "colour", "--branch", "all"), "zero ablation, 10 block"),
    ],
    ids=["samples", "windows", "resample", "words", "graded"],
)
def test_ablate_draws_the_run_without_its_best_part(
    more: tuple[str, ...], shown: str, tmp_path: Path
) -> None:
    sites = () if "--sites" in more else ("--sites", "blocks.*.cross_attn.img.hook_z")
    given = ("--axes", "block", "--seeds", "3", *FAST, "--out", str(tmp_path))
    assert shown in works("ablate", UNET, CAPTION, *sites, *more, *given)
    intact, ablated = (Image.open(tmp_path / f"{name}.png") for name in ("intact", "ablated"))
    assert not near(intact, ablated)
    assert is_page(tmp_path / "report.html")


def test_the_sites_of_a_best_part_are_its_own() -> None:
    model = HookedDiffusion.toy("shapes-unet")
    every = "blocks.*.cross_attn.img.hook_z"

    def found(best: dict[str, Any], text: str = every, steps: Any = None) -> list[str]:
        return [str(one) for one in sites_of(model, [text], best, steps=steps, window=2)]

    assert found({}) == []
    assert found({"block": 3, "head": 1}) == ["blocks.3.cross_attn.img.hook_z[head=1]"]
    assert len(found({"head": 1})) == 10
    assert found({"head": 1}, f"{every}[head=(2,1)]") == ["blocks.2.cross_attn.img.hook_z[head=1]"]
    assert "step=1|3" in found({"block": 3, "step": 1}, steps=[0, 3, 1])[0]
    assert "step=1|2" in found({"block": 3, "step": 1})[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--metric", "latent_recovery"], "is none of latent_distance", id="metric"),
        pytest.param(["--seeds", "3:"], "has no end", id="open range"),
        pytest.param(["--value", "resample", "--seeds", "1"], "give seeds=2 or more", id="one"),
        pytest.param(["--sites", "blocks.*.hook_y"], "no hook point matches", id="sites"),
        pytest.param(["--axes", "heads"], "Closest: 'head'", id="axes"),
    ],
)
def test_ablate_refuses_with_the_message_alone(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    message = refused("ablate", UNET, CAPTION, *arguments, *FAST, "--out", str(tmp_path / "out"))
    assert said in message
    assert not (tmp_path / "out").exists()


def test_ablate_grades_toys_only() -> None:
    assert "give a toy model" in refused("ablate", PIPELINE, "a", "--metric", "graded")


def test_pictures_are_called_after_what_they_show() -> None:
    texts = ["blue square", "Blue square", "a/b: ..", "größe", "x" * 100]
    names = list(named("word", texts, list(range(5))))
    assert names[:4] == ["word_blue-square", "word_Blue-square_2", "word_a-b", "word_größe"]
    assert len(names[4]) == 65


def test_what_made_a_result_is_folded_with_hooks_alike_on_one_line() -> None:
    hooks = [f"Site.parse('blocks.{n}.attn.hook_z[branch=cond]'): Keep()" for n in range(3)]
    hooks += ["Site.parse('hook_x'): Other()", "long" * 100]
    folded: Any = provenance({"hooks": hooks, "steps": 4})
    assert folded.html().startswith("<details><summary>")
    assert '"blocks.*.attn.hook_z[branch=cond]: Keep() (3 blocks)"' in folded.text
    assert '"hook_x: Other()"' in folded.text
    assert json.loads(folded.text)["steps"] == 4
    assert json.loads(folded.text)["hooks"][-1] == "long" * 40 + " …"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--metric", "latent_recover"], "Closest: latent_recovery", id="metric"),
        pytest.param(["--seeds", "3:"], "has no end", id="open range"),
        pytest.param(["--steps", "a"], "cannot be read", id="no number"),
        pytest.param(["--mode", "windows"], "Closest: 'window'", id="mode"),
    ],
)
def test_patch_refuses_with_the_message_alone(arguments: list[str], said: str) -> None:
    assert said in refused("patch", UNET, "a red square", "a blue square", *arguments, *FAST)


def test_patch_grades_toys_only() -> None:
    assert "give a toy model" in refused("patch", PIPELINE, "a", "b", "--metric", "graded")


@pytest.fixture(scope="module")
def relevance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hrv")
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle\n\na blue square\n", encoding="utf-8")
    given = ["--prompts", str(prompts), "--batch-size", "2", *FAST]
    works("hrv", "build", UNET, *given, "--out", str(folder / "out"))
    return folder / "out"


def test_hrv_build_leaves_a_table_a_result_and_a_report(relevance: Path) -> None:
    found = HeadRelevance.load(relevance / "result")
    assert found.prompts == 2
    assert "Colour" in found.concepts
    assert len(table(relevance / "table.csv")) == found.vectors.numel()
    assert is_page(relevance / "report.html")


def test_hrv_show_prints_the_most_relevant_heads(relevance: Path) -> None:
    shown = works("hrv", "show", str(relevance), "--concept", "Colour", "--top", "1")
    block, head = HeadRelevance.load(relevance / "result").top("Colour", 1)[0]
    (line,) = [line for line in shown.splitlines() if line.startswith("Colour")]
    assert f"({block},{head})" in line
    assert "% of votes" in line


def test_hrv_show_refuses_another_folder(tmp_path: Path) -> None:
    assert "no saved result" in refused("hrv", "show", str(tmp_path))


def test_hrv_weaken_leaves_images_and_curves(relevance: Path, tmp_path: Path) -> None:
    given = ["--concept", "Colour", "--counts", "10", "--order", "most", "--score", "colour"]
    works("hrv", "weaken", UNET, str(relevance), CAPTION, *given, *FAST, "--out", str(tmp_path))
    rows = table(tmp_path / "table.csv")
    assert [row["weakened"] for row in rows] == ["0", "10", "40"]
    assert len(list(tmp_path.glob("image_*.png"))) == 3
    assert is_page(tmp_path / "report.html")


def test_hrv_weaken_without_a_score_draws_only(relevance: Path, tmp_path: Path) -> None:
    given = ["--concept", "Colour", "--counts", "10", "--order", "most", "--score", "none"]
    works("hrv", "weaken", UNET, str(relevance), CAPTION, *given, *FAST, "--out", str(tmp_path))
    assert table(tmp_path / "table.csv")[0]["mean"] == "nan"


def test_hrv_steer_draws_with_and_without(relevance: Path, tmp_path: Path) -> None:
    given = ["--word", "red", "--desired", "Colour", "--undesired", "Shape"]
    works("hrv", "steer", UNET, str(relevance), CAPTION, *given, *FAST, "--out", str(tmp_path))
    plain, steered = ((tmp_path / name).read_bytes() for name in ("plain.png", "steered.png"))
    assert plain != steered
    assert is_page(tmp_path / "report.html")
    assert "ScaleTokenColumns" in (tmp_path / "run.json").read_text(encoding="utf-8")


def test_hrv_build_asks_for_prompts() -> None:
    assert "give --prompts FILE" in refused("hrv", "build", PIPELINE)


@pytest.mark.slow
def test_check_prints_the_contract() -> None:
    points = ["--points", "blocks.0.cross_attn.hook_pattern"]
    shown = works("check", PIPELINE, *points)
    assert shown.startswith("contract of UNet2DConditionModel")
    assert shown.count(": holds, ") == 8


def test_demo_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "names", lambda: ("shapes-unet",))
    result = call("demo")
    assert result.exit_code == 1
    assert "needs the toy model 'shapes-mmdit'" in result.stderr


def test_cite_prints_bibtex_with_the_version() -> None:
    from diffusion_lens import __version__

    shown = works("cite")
    assert shown.startswith("@software{diffusion_lens,")
    assert f"version = {{{__version__}}}" in shown
    assert shown.count("@") == 2


def test_cite_adds_the_methods_behind_results(relevance: Path) -> None:
    shown = works("cite", str(relevance))
    assert "@inproceedings{park2025headrelevance," in shown
    assert shown.count("@") == 3


def test_cite_refuses_a_folder_without_results(tmp_path: Path) -> None:
    assert "holds no result" in refused("cite", str(tmp_path))


def test_every_entry_is_complete() -> None:
    for key, entry in entries().items():
        assert entry.count("{") == entry.count("}"), key
        assert "title = " in entry
        assert "author = " in entry
    assert {key for row in ROWS for key in row.cites} <= set(entries())


def test_what_is_cited_is_the_method_that_made_the_result() -> None:
    edited = {"method": "masactrl", "citation": ""}
    assert methods_behind("EditedImages", edited) == ["cao2023masactrl"]
    steered = {"method": "prompt_to_prompt", "citation": "arXiv 2208.01626; arXiv 2412.02237"}
    assert methods_behind("EditedImages", steered) == ["hertz2023prompt", "park2025headrelevance"]
    assert methods_behind("OfAnotherPackage", {}) == []
