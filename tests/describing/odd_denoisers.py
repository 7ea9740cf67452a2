"""A small denoiser of plain torch, whose blocks a test changes in one thing."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

WIDTH, HEADS = 16, 4


class Attention(nn.Module):
    """Joint attention; `product` is what a test changes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.inner_dim = HEADS, WIDTH
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def product(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def forward(self, tokens: Tensor) -> Tensor:
        layers = (self.to_q, self.to_k, self.to_v)
        query, key, value = (
            layer(tokens).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in layers
        )
        return self.to_out(self.product(query, key, value).transpose(1, 2).flatten(2))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class Block(nn.Module):
    """Image and text, each with a residual of its own, that meet in one attention."""

    attention: type[Attention] = Attention

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.norm1, self.norm2, self.norm1_txt, self.norm2_txt = (
            nn.LayerNorm(WIDTH) for _ in range(4)
        )
        self.attn, self.ff, self.ff_txt = self.attention(), mlp(), mlp()

    def add(self, residual: Tensor, update: Tensor) -> Tensor:
        return residual + update

    def attend(self, img: Tensor, txt: Tensor) -> tuple[Tensor, Tensor]:
        both = self.attn(torch.cat([self.norm1(img), self.norm1_txt(txt)], 1))
        return both[:, : img.shape[1]], both[:, img.shape[1] :]

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Any:
        img, txt = hidden_states, encoder_hidden_states
        to_img, to_txt = self.attend(img, txt)
        img, txt = self.add(img, to_img), self.add(txt, to_txt)
        img, txt = self.add(img, self.ff(self.norm2(img))), txt + self.ff_txt(self.norm2_txt(txt))
        return img, txt


class Denoiser(ModelMixin, ConfigMixin):
    """Three blocks between patches and their prediction."""

    @register_to_config
    def __init__(self, in_channels: int = 4, patch_size: int = 2) -> None:
        super().__init__()
        self.embed, self.text = nn.Conv2d(4, WIDTH, 2, 2), nn.Linear(8, WIDTH)
        self.time = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList()
        self.out, self.out_txt = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)

    def pair(self, block: Block, output: Any) -> tuple[Tensor, Tensor]:
        return output

    def order(self, tokens: Tensor, _height: int, _width: int) -> Tensor:
        return tokens

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
    ) -> Transformer2DModelOutput:
        patches = self.embed(hidden_states)
        img = self.order(patches.flatten(2).transpose(1, 2), *patches.shape[2:])
        img = img + self.time(timestep[:, None] / 1000)[:, None]
        txt = self.text(encoder_hidden_states)
        for block in self.blocks:
            img, txt = self.pair(cast(Block, block), block(img, txt))
        tokens = self.out(img) + self.out_txt(txt).mean(1, keepdim=True)
        return Transformer2DModelOutput(
            sample=F.fold(tokens.mT, hidden_states.shape[-2:], 2, stride=2)
        )


def denoiser(block: type[Block], kind: type[Denoiser] = Denoiser) -> Denoiser:
    """One of three such blocks."""
    torch.manual_seed(0)
    made = kind()
    made.blocks.extend(block(index) for index in range(3))
    for weight in made.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return made.eval()


def inputs(*, text: int = 5, samples: int = 2) -> dict[str, Tensor]:
    """The arguments of one call, for 12 image tokens."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(samples, 4, 6, 8, generator=generator),
        "encoder_hidden_states": torch.randn(samples, text, 8, generator=generator),
        "timestep": torch.full((samples,), 500.0),
    }
