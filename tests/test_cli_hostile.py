"""Calls of the command line that cannot succeed end in a message, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import typer.testing
from PIL import Image
from typer.testing import CliRunner

from diffusion_lens import HookedDiffusion
from diffusion_lens.cli import app
from diffusion_lens.cli.folders import opened
from diffusion_lens.cli.loading import listed_numbers, step_count
from diffusion_lens.errors import RunError
from diffusion_lens.long_runs.seeds import listed_seeds
from diffusion_lens.tables import write_table

RUN = ["run", "toy:shapes-unet", "a red circle", "--num-inference-steps", "1"]
MAPS = ["attention-maps", "toy:shapes-unet", "a red circle", "--words", "circle"]


def refused(arguments: list[str], *said: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    text = " ".join(result.output.split())
    assert "Traceback" not in text
    for one in said:
        assert one in text, text


@pytest.fixture(autouse=True, scope="module")
def _built_once() -> Iterator[None]:
    """Typer reads the signature of every command at each call, which takes longer than the call."""
    built = typer.main.get_command(app)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", lambda _app: built)
        yield


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")


@pytest.mark.parametrize("name", ["nope", "cuda:99", "cpu:x", "", "meta:", "meta", "cpu:7"])
def test_devices_that_are_not_here(name: str, tmp_path: Path) -> None:
    refused([*RUN, "--device", name, "--out", str(tmp_path / "out")], "cannot be used here")
    assert not (tmp_path / "out").exists()


def test_images_that_are_none(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture", encoding="utf-8")
    out = ["--out", str(tmp_path / "out")]
    refused([*MAPS, "--image", str(text), *out], "is no picture that can be read")
    refused([*MAPS, "--image", str(tmp_path), *out], "is a directory")
    refused([*MAPS, "--image", str(tmp_path / "none.png"), *out], "does not exist")


def test_folders_that_cannot_be_written_are_noticed_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    for out in (file, file / "below" / "it", Path("/dev/null/x"), Path("a" * 300)):
        refused([*RUN, "--out", str(out)], "results cannot be written to")
    assert file.read_text(encoding="utf-8") == "mine"


def test_an_empty_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (RUN, ["demo"], [*BUILD]):
        refused([*command, "--out", ""], "'--out': '' names no folder", "give . for")
    refused([*BUILD, "--checkpoint", ""], "'--checkpoint': '' names no folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", ["2", "0,7", "5:", "40:50"])
def test_steps_beyond_the_run_are_refused_before_it(
    steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denoise(*_arguments: object, **_more: object) -> None:
        raise AssertionError("a run was begun")

    from diffusers import FluxPipeline, StableDiffusionPipeline

    for pipeline in (StableDiffusionPipeline, FluxPipeline):
        monkeypatch.setattr(pipeline, "encode_prompt", denoise)
    out = ["--num-inference-steps", "2", "--steps", steps, "--out", str(tmp_path / "out")]
    for command in (MAPS, TWO, PATCH, ABLATE, BUILD):
        if command in (PATCH, ABLATE) and steps == "5:":
            continue
        refused([*command, *out], f"--steps {steps!r}: a run of 2 steps has the steps 0 to 1")
    assert not (tmp_path / "out").exists()


def test_steps_are_counted_as_the_scheduler_takes_them() -> None:
    from diffusers import DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler

    from diffusion_lens import toys

    pipe: Any = toys.load("shapes-unet")
    kind: Any
    for kind, count in ((DDIMScheduler, 4), (HeunDiscreteScheduler, 7), (PNDMScheduler, 5)):
        more = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
        scheduler: Any = kind.from_config(pipe.scheduler.config, **more)
        pipe.scheduler = scheduler
        before = scheduler.num_inference_steps
        assert step_count(pipe, {"num_inference_steps": 4}) == count
        assert scheduler.num_inference_steps == before  # the pipeline's own is left alone
    assert step_count(pipe, {"timesteps": [3, 1]}) is None
    assert step_count(pipe, {}) == 51


CONCEPTS = ["concept-attention", "toy:shapes-mmdit", "a red circle"]
TWO = [*CONCEPTS, "--concepts", "circle", "--concepts", "background"]
PATCH = ["patch", "toy:shapes-unet", "a red square", "a blue square"]
ABLATE = ["ablate", "toy:shapes-unet", "a red square"]
EDIT = ["edit", "toy:shapes-unet", "a red circle", "a blue circle"]
EXCITE = ["excite", "toy:shapes-unet", "a red circle", "--words", "circle"]
BUILD = ["hrv", "build", "toy:shapes-unet"]


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models cannot be loaded: what is refused here is refused before."""

    def load(*_arguments: object, **_more: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(HookedDiffusion, "from_pretrained", load)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        # numbers
        ([*RUN, "--seed", "one"], "'--seed'"),
        ([*RUN, "--seed", str(10**30)], "'--seed': takes int from"),
        ([*MAPS, "--num-inference-steps", "0"], "takes int from 1 to 65,536"),
        ([*MAPS, "--num-inference-steps", str(10**12)], "takes int from 1 to 65,536"),
        ([*RUN, "--guidance-scale", "nan"], "'--guidance-scale': takes float that is finite"),
        ([*TWO, "--guidance-scale", "inf"], "'--guidance-scale': takes float that is finite"),
        ([*MAPS, "--num-samples", "0"], "'--num-samples': takes int from 1"),
        ([*TWO, "--noise-level", "nan"], "'--noise-level': takes float above 0 to 1"),
        ([*PATCH, "--batch-size", "0"], "'--batch-size': takes int from 1"),
        ([*ABLATE, "--batch-size", "0"], "'--batch-size': takes int from 1"),
        ([*ABLATE, "--window", "0"], "'--window': takes int from 1"),
        ([*EDIT, "--cross-replace", "nan"], "'--cross-replace': takes float from 0 to 1"),
        ([*EDIT, "--self-max-tokens", "-1"], "'--self-max-tokens': takes int from 0"),
        ([*EDIT, "--method", "sdedit", "--strength", "0"], "takes float above 0 to 1"),
        ([*EXCITE, "--step-size", "inf"], "'--step-size': takes float above 0"),
        ([*EXCITE, "--resolution", "0"], "'--resolution': takes int from 1"),
        ([*BUILD, "--batch-size", "-1"], "'--batch-size': takes int from 1"),
        (["hrv", "show", ".", "--top", "0"], "'--top': takes int from 1"),
        # words
        ([*RUN, "--torch-dtype", "Float32"], "Closest: float32"),
        ([*EDIT, "--method", "masactl"], "Closest: masactrl"),
        ([*ABLATE, "--value", "means"], "is none of zero, mean, resample. Closest: mean."),
        ([*ABLATE, "--metric", "x0_distance"], "Closest: latent_distance"),
        ([*EDIT, "--edit", "refined"], "Closest: refine"),
        ([*BUILD, "--vote", "most"], "none of argmax, margin, strength"),
        # settings of the pipeline
        ([*RUN, "--set", "height"], "not of the form NAME=VALUE"),
        ([*RUN, "--set", "=3"], "not of the form NAME=VALUE"),
        ([*RUN, "--set", "height=0"], "height takes int from 1 to 65,536"),
        ([*RUN, "--set", f"max_sequence_length={10**12}"], "takes int from 1 to 65,536"),
        ([*RUN, "--set", "num_inference_steps=true"], "num_inference_steps takes int"),
        ([*RUN, "--set", "guidance_scale=NaN"], "guidance_scale takes float that is finite"),
        ([*RUN, "--set", "eta=x"], "eta takes float that is finite"),
        ([*RUN, "--set", "height=32", "--set", "height=64"], "height is given twice"),
        ([*TWO, "--set", "prompt=x"], "is given by the argument PROMPT"),
        ([*MAPS, "--set", "seed=3"], "is given by --seed"),
        ([*RUN, "--set", "latents=[1,2]"], "latents is no text or number"),
        ([*RUN, "--set", "prompt_embeds=3"], "prompt_embeds is no text or number"),
        ([*EXCITE, "--set", "output_type=latent"], "commands write images"),
        ([*RUN, "--set", "sigmas=[]"], "sigmas is an empty list"),
        # what nothing would read
        ([*RUN, "--branch", "nope"], "--branch is read with --cache only"),
        ([*RUN, "--reduce", "mean"], "--reduce is read with --cache only"),
        ([*MAPS, "--num-samples", "3"], "--num-samples is read with --image only"),
        ([*PATCH, "--window", "2"], "--window is read with --mode window only"),
        ([*PATCH, "--part", "colour"], "--part is read with --metric graded only"),
        ([*PATCH, "--positions", "blue"], "--positions is read with --axes pos only"),
        ([*ABLATE, "--others", "a"], "--others is read with --value mean or resample only"),
        ([*ABLATE, "--window", "2"], "--window is read with --axes step only"),
        ([*ABLATE, "--part", "colour"], "--part is read with --metric graded only"),
        ([*ABLATE, "--positions", "red"], "--positions is read with --axes pos only"),
        ([*EDIT, "--strength", "0.9"], "--strength is read with --method sdedit only"),
        ([*EDIT, "--blocks", "3"], "--blocks is read with --method masactrl or pnp"),
        ([*EDIT, "--method", "fpe", "--edit", "refine"], "--edit is read with --method p2p"),
        ([*EXCITE, "--concepts", "Colour"], "--relevance and --concepts go together"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    out = [] if "show" in arguments else ["--out", str(tmp_path / "out")]
    refused([*arguments, *out], said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "nonsense=3"], "takes no argument 'nonsense'"),
        (["--set", "num_inference_steps=2"], "--num-inference-steps and --set"),
        (["--set", "height=64"], "needs --set width="),
        (["--set", "clip_skip=100"], "StableDiffusionPipeline fails with these settings"),
        (["--set", "cross_attention_kwargs=5"], "StableDiffusionPipeline fails with"),
        (["--cache", "blocks.*.nothing"], "no hook point matches"),
        (["--cache", "**", "--branch", "conditional"], "give branch='cond'"),
        (["--cache", "**", "--reduce", "most"], "['mean', 'sum', 'last']"),
    ],
)
def test_settings_that_do_not_exist(more: list[str], said: str, tmp_path: Path) -> None:
    refused([*RUN, *more, "--out", str(tmp_path / "out")], said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0:999999999999", "at most 65,536 are taken"),
        ("5:2", "is empty"),
        ("1,1", "names a number twice"),
        ("9" * 5000, "cannot be read"),
        ("0:", "has no end"),
        ("0-3", "cannot be read"),
    ],
)
def test_numbers_that_nothing_can_have(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        listed_numbers(text, "seeds")
    message = capsys.readouterr().err
    assert message.startswith("--seeds ")
    assert said in message


def test_seeds_that_would_fill_the_memory() -> None:
    with pytest.raises(RunError, match="at most 65,536"):
        listed_seeds(10**12, error=RunError)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"Colour": ["red", "bl', "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"\xe9": ["red"]}', "is no text in UTF-8"),
        (b"[1, 2]", "is a mapping from each concept to its words"),
        (b'{"A": null, "B": ["x"]}', "concept 'A' has the words [None]"),
        (b'{"A": [], "B": ["x"]}', "give non-empty ones"),
        (b'{"": ["x"], "B": ["y"]}', "give it a name"),
        (b'{"A": ["x"], "A": ["y"], "B": ["z"]}', "'A' comes twice"),
    ],
)
def test_concepts_that_are_none(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "concepts.json"
    file.write_bytes(content)
    refused([*BUILD, "--concepts", str(file), "--out", str(tmp_path / "out")], said)


@pytest.mark.usefixtures("unloaded")
def test_prompts_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"caf\xe9")
    refused([*BUILD, "--prompts", str(file)], "is no text in UTF-8")
    file.write_bytes(b" \n")
    refused([*BUILD, "--prompts", str(file)], "holds no prompt")
    refused([*BUILD, "--prompts", str(tmp_path)], "is a directory")


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"result": 3, "fields": {}}', '{"result": "Other", "fields": []}']
)
def test_results_that_are_none_cannot_be_cited(content: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content, encoding="utf-8")
    refused(["cite", str(tmp_path)], "result.json")


def test_pictures_of_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.asarray(opened(tmp_path / "grey.png"))[..., 0].tolist() == [[0, 1, 255]]


def test_pictures_that_are_cut_short(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    refused([*MAPS, "--image", str(cut)], "is no picture that can be read")


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", '{"_class_name": "StableDi', '{"_class_name": "NoSuchPipeline"}'],
)
def test_folders_that_hold_no_model(content: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(content, encoding="utf-8")
    refused(["hooks", str(tmp_path)], "cannot load", "MODEL is a Hub id, a folder")


def test_concepts_that_the_model_reads_alike(tmp_path: Path) -> None:
    alike = [*CONCEPTS, "--concepts", "\U0001f431", "--concepts", "\U0001f436"]
    refused([*alike, "--out", str(tmp_path / "out")], "alike")


def test_models_that_are_none(tmp_path: Path) -> None:
    for model in ("toy:nothing", str(tmp_path), "", "\0"):
        refused(["run", model, "a red circle", "--out", str(tmp_path / "out")])


def test_words_that_begin_like_formulas_are_text_in_tables(tmp_path: Path) -> None:
    rows = [{"word": "=1+1", "@share": -0.5}, {"word": "cat", "@share": 1}]
    path = write_table(rows, tmp_path / "new" / "table.csv")
    assert path.read_text(encoding="utf-8") == "word,'@share\n'=1+1,-0.5\ncat,1\n"
    assert write_table([], tmp_path / "empty.csv").read_text(encoding="utf-8").strip() == ""
