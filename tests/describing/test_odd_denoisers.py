"""Denoisers that do one thing otherwise: what is offered of them is right, or nothing is."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lens import HookedDiffusion
from diffusion_lens.errors import UnsupportedModelError
from tests.describing.odd_denoisers import HEADS, Attention, Block, Denoiser, denoiser, inputs

pytestmark = pytest.mark.filterwarnings("ignore")


def with_attention(kind: type[Attention]) -> type[Block]:
    return type("Odd", (Block,), {"attention": kind})


class InSteps(Attention):
    """Weights by torch.bmm, which leaves batch and heads on one axis."""

    def product(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (one.flatten(0, 1) for one in (query, key, value))
        pattern = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        return torch.bmm(pattern, value).unflatten(0, (-1, HEADS))


class HeadsThereAndBack(Attention):
    """z is permuted, by what the reading does not follow, before it is projected."""

    def product(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query.flip(1), key.flip(1), value.flip(1)).flip(1)


class AttentionAlone(Block):
    attention = HeadsThereAndBack

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Any:
        to_img, to_txt = self.attend(hidden_states, encoder_hidden_states)
        return hidden_states + to_img, encoder_hidden_states + to_txt


class Louder(Attention):
    """What it returns is not what its projection does."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * 1.5


class Halved(Block):
    def add(self, residual: Tensor, update: Tensor) -> Tensor:
        return torch.add(residual, update, alpha=0.5)


class Subtracted(Block):
    def add(self, residual: Tensor, update: Tensor) -> Tensor:
        return residual - -update


class Mixing(nn.Module):
    """Attention under names that diffusers does not use, where an MLP would be."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query(tokens)
        return self.out((query @ query.mT).softmax(-1) @ tokens)


class MixedTwice(Block):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.ff = self.ff_txt = Mixing()  # type: ignore[assignment]


class MlpFirst(Block):
    """What enters the attention is not `resid_mid`, which enters the MLP."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Any:
        img, txt = hidden_states, encoder_hidden_states
        img, txt = img + self.ff(self.norm2(img)), txt + self.ff_txt(self.norm2_txt(txt))
        to_img, to_txt = self.attend(img, txt)
        return img + to_img, txt + to_txt


@dataclass
class Given:
    img: Tensor
    txt: Tensor


class AsDataclass(Block):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Any:
        return Given(*super().forward(hidden_states, encoder_hidden_states))


class OfDataclasses(Denoiser):
    def pair(self, block: Block, output: Any) -> tuple[Tensor, Tensor]:
        return output.img, output.txt


@pytest.mark.parametrize(
    ("block", "kind", "said"),
    [
        (with_attention(InSteps), Denoiser, "attn: its weights are worked out in steps"),
        (AttentionAlone, Denoiser, "img: what takes the z of attn cannot be told"),
        (with_attention(Louder), Denoiser, "expected the sum of blocks.0.attn.img.hook_result"),
        (Halved, Denoiser, "no block of Denoiser keeps the contract: .*hook_resid_mid"),
        (MixedTwice, Denoiser, "img: ff stands where an MLP does, and mixes tokens"),
        (MlpFirst, Denoiser, "img: its MLP comes before an attention"),
        (AsDataclass, OfDataclasses, "`hidden_states` comes or is returned in a container"),
    ],
)
def test_what_would_be_wrong_is_refused(block: Any, kind: Any, said: str) -> None:
    model = denoiser(block, kind)
    with pytest.raises(UnsupportedModelError, match=said):
        HookedDiffusion(model, describe=inputs(samples=1))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_a_residual_that_is_not_followed_leaves_no_stream_without_a_name() -> None:
    model = HookedDiffusion(denoiser(Subtracted), describe=inputs())
    assert not any(".." in name for name in model.points)
    assert "no stream moves its queries" in model.spec.apart["blocks.1"]


class TextFirst(Block):
    """The same modules; the block in the middle joins them the other way round."""

    def attend(self, img: Tensor, txt: Tensor) -> tuple[Tensor, Tensor]:
        if self.index != 1:
            return super().attend(img, txt)
        both = self.attn(torch.cat([self.norm1_txt(txt), self.norm1(img)], 1))
        return both[:, txt.shape[1] :], both[:, : txt.shape[1]]


class GivenInTurn(Block):
    """The same modules; the block in the middle returns text before image."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Any:
        img, txt = super().forward(hidden_states, encoder_hidden_states)
        return (txt, img) if self.index == 1 else (img, txt)


class TakenInTurn(Denoiser):
    def pair(self, block: Block, output: Any) -> tuple[Tensor, Tensor]:
        return output[::-1] if block.index == 1 else output


@pytest.mark.parametrize(
    ("block", "kind"),
    [(TextFirst, Denoiser), pytest.param(GivenInTurn, TakenInTurn, marks=pytest.mark.slow)],
)
def test_a_block_that_runs_otherwise_is_read_itself(block: Any, kind: Any) -> None:
    given = inputs(text=12)  # as many as the image has: no shape tells them apart
    model = HookedDiffusion(denoiser(block, kind), describe=given)
    made: dict[int, list[Tensor]] = {}

    def keep(module: Any, _args: Any, output: Tensor, at: int) -> None:
        made[at] = list(output.unflatten(-1, (HEADS, -1)).split(12, 1))

    handles = [
        one.attn.to_q.register_forward_hook(lambda *a, at=at: keep(*a, at=at))
        for at, one in enumerate(model.denoiser.blocks)
    ]
    with torch.no_grad(), model.caching("**.hook_q") as cache:
        model.denoiser(**given)
    for handle in handles:
        handle.remove()
    for at, parts in made.items():
        img, txt = parts[::-1] if block is TextFirst and at == 1 else parts
        assert torch.equal(cache[f"blocks.{at}.attn.img.hook_q"][0], img), at
        assert torch.equal(cache[f"blocks.{at}.attn.txt.hook_q"][0], txt), at


class ColumnByColumn(Denoiser):
    """As many image tokens as any other, in another order."""

    def order(self, tokens: Tensor, _height: int, _width: int) -> Tensor:
        return tokens.unflatten(1, (_height, _width)).transpose(1, 2).flatten(1, 2)


def test_tokens_that_do_not_lie_row_by_row_have_no_grid() -> None:
    with pytest.raises(UnsupportedModelError, match="as many as its blocks have, row by row"):
        HookedDiffusion(denoiser(Block, ColumnByColumn), describe=inputs())
