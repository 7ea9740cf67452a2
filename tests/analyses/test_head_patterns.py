"""Numbers about patterns: by hand, against whole patterns, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.analyses import HeadPatterns, head_patterns, token_view
from diffusion_lens.analyses.head_patterns import pattern_distance, pattern_entropy
from diffusion_lens.errors import FigureError, ResultError, SiteError, WordError
from tests.pipelines import shared_pipe, short

PROMPT = "a red cat on the glass table"


def patterns(family: str, **more: Any) -> HeadPatterns:
    settings = {key: value for key, value in short(family).items() if key != "prompt"}
    model = HookedDiffusion(shared_pipe(family))
    return head_patterns(model, PROMPT, **{**settings, **more})


def whole(family: str, name: str) -> torch.Tensor:
    """A pattern with axes step, head, query, key, image queries only."""
    settings = {key: value for key, value in short(family).items() if key != "prompt"}
    model = HookedDiffusion(shared_pipe(family))
    _, cache = model.run_with_cache(PROMPT, names_filter=Site(name, query="img"), **settings)
    return cache[name][:, 0]


def test_entropy_by_hand() -> None:
    rows = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    found = pattern_entropy(rows[None, None])
    torch.testing.assert_close(found, torch.tensor([[math.log(4) / 2]]))


def test_distance_by_hand() -> None:
    to_itself = torch.eye(6)[None, None]
    assert pattern_distance(to_itself, range(6), (2, 3)).item() == pytest.approx(0)
    across = torch.eye(6).flip(0)[[0]][None, None]  # the first token looks at the last
    assert pattern_distance(across, [0], (2, 3)).item() == pytest.approx(1)
    next_frame = torch.eye(8)[[5]][None, None]
    assert pattern_distance(next_frame, [1], (2, 2, 2)).item() == pytest.approx(0)
    assert pattern_distance(3 * across, [0], (2, 3)).item() == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_numbers_are_those_of_the_whole_patterns(family: str) -> None:
    found = patterns(family, every=1)
    model = HookedDiffusion(shared_pipe(family))
    (name,) = [str(site.name) for site in model.text_pattern_sites()][1:2]
    rows = whole(family, name)
    heads = [at for at, pair in enumerate(found.heads) if pair[0] == model.points[name].block]
    assert len(heads) == rows.shape[1]
    entropy = torch.special.entr(rows).sum(-1).mean(-1)
    torch.testing.assert_close(found.of("entropy")[0][:, heads], entropy, atol=1e-5, rtol=1e-4)
    joint = rows.shape[-1] - rows.shape[-2] if family != "sd" else rows.shape[-1]
    text = rows[..., -joint:] if family == "sd3" else rows[..., :joint]
    torch.testing.assert_close(found.of("text")[0][:, heads], text.sum(-1).mean(-1))
    cat = list(model.words(PROMPT, "cat"))
    mass = text[..., cat].sum(-1).mean(-1)
    torch.testing.assert_close(found.word("cat")[0][:, heads], mass)
    if family == "sd":
        assert set(found.values) == {"entropy", "text"}
        return
    image = rows[..., :-joint] if family == "sd3" else rows[..., joint:]
    own = image.diagonal(dim1=-2, dim2=-1).mean(-1)
    torch.testing.assert_close(found.of("own")[0][:, heads], own)
    total = found.of("text") + found.of("image") + found.of("own")
    torch.testing.assert_close(total, torch.ones_like(total))


def test_some_tokens_ask_for_all() -> None:
    some = patterns("flux", every=3, blocks=[1], words="cat")
    rows = whole("flux", "blocks.1.attn.hook_pattern")[:, :, ::3]
    torch.testing.assert_close(
        some.of("entropy")[0], torch.special.entr(rows).sum(-1).mean(-1), atol=1e-5, rtol=1e-4
    )
    assert some.mass is not None and some.mass.shape[-1] == len(some.positions)


def test_self_attention_of_a_unet_has_no_text() -> None:
    found = patterns("sd", names="blocks.*.attn.hook_pattern", every=1)
    assert found.mass is None and set(found.values) == {"entropy", "distance", "image", "own"}
    assert found.of("distance").shape == (1, len(found.steps), len(found.heads))
    with pytest.raises(ResultError, match="hold no text"):
        found.word("cat")
    with pytest.raises(ResultError, match="there is no 'text' of these patterns"):
        found.of("text")


def test_figures_have_a_row_for_each_step() -> None:
    found = patterns("flux", steps=[0, 1])
    for what in ("entropy", "cat"):
        figure = found.plot(what)
        assert len(figure.data[0].z) == 2 and len(figure.data[0].z[0]) == len(found.heads)
    with pytest.raises(WordError, match="'dog' is not in the prompt"):
        found.plot("dog")
    with pytest.raises(ResultError, match="sample 9 was asked for, there are "):
        found.plot(sample=9)


def test_tokens_are_shown_as_data(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {k: v for k, v in short("flux", steps=1).items() if k != "prompt"}
    model = HookedDiffusion(shared_pipe("flux"))
    view = token_view(model, "a <b>cat</b> </script>", block=0, heads=[1], **settings)
    assert "<b>" not in view.html.split("CircuitsVis.render", 1)[1].split("</script>")[0]
    image = token_view(model, PROMPT, block=0, stream="img", **settings)
    assert '"7,7"' in image.html
    with pytest.raises(SiteError, match="stream='txt' asks nothing"):
        token_view(HookedDiffusion(shared_pipe("sd")), PROMPT, block=0)
    monkeypatch.setattr("diffusion_lens.viz.words.MOST_PATTERN_VALUES", 1000)
    with pytest.raises(FigureError, match="more than a browser draws well"):
        token_view(model, PROMPT, block=0, stream="img", **settings)


def test_numbers_survive_saving(tmp_path: Path) -> None:
    found = patterns("flux")
    again = HeadPatterns.load(found.save(tmp_path / "patterns"))
    assert torch.equal(again.word("glass table"), found.word("glass table"))
    assert again.heads == found.heads and again.steps == found.steps
    assert repr(again) == repr(found) and "entropy" in repr(found) and "\n" not in repr(found)


@pytest.mark.parametrize(
    ("error", "message", "more"),
    [
        (SiteError, "patterns with image queries are needed", {"names": "**.hook_z"}),
        (SiteError, "every=0: every how many", {"every": 0}),
        (SiteError, "block 99 has no such attention", {"blocks": 99}),
        (WordError, "'dog' is not in the prompt", {"words": "dog"}),
        (SiteError, "branch=None is none of", {"branch": None}),
    ],
    ids=["no patterns", "every", "block", "word", "branch"],
)
def test_bad_input_is_refused(error: type[Exception], message: str, more: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        patterns("flux", **more)
