from dataclasses import replace

import pytest
import torch

from diffusion_lens.toys.pipelines import mmdit_pipeline, unet_pipeline
from diffusion_lens.training.batches import batches
from diffusion_lens.training.config import load_config
from diffusion_lens.training.objectives import (
    image_positions,
    mmdit_loss,
    spread_uniform,
    unet_loss,
)

# bf16 autocast leaves the weights of an RMS norm in float32, which torch remarks on
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


@pytest.fixture
def batch():
    return next(batches(replace(load_config("shapes-unet"), batch=4), start=0))


def test_each_part_of_the_unit_interval_gets_one_draw():
    draws = spread_uniform(8)
    assert torch.equal((draws * 8).long(), torch.arange(8))


def test_coarse_tokens_sit_in_the_middle_of_the_fine_ones():
    fine = image_positions(16).reshape(16, 16, 3)
    coarse = image_positions(8, stride=2).reshape(8, 8, 3)
    middles = fine.reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert torch.equal(coarse, middles)


def test_fine_positions_are_the_pipelines_own():
    own = mmdit_pipeline()._prepare_latent_image_ids(1, 16, 16, "cpu", torch.float32)
    assert torch.equal(image_positions(16), own)


def test_a_unet_that_predicts_nothing_has_the_spread_of_the_velocity_as_its_loss(batch):
    pipe = unet_pipeline(channels=(16, 16), heads=2, text_width=16)
    for parameter in pipe.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    assert 0.4 < float(unet_loss(pipe, batch).detach()) < 1.5


@pytest.mark.parametrize("coarse", [False, True])
def test_an_mmdit_that_predicts_nothing_has_the_spread_of_the_flow_as_its_loss(batch, coarse):
    pipe = mmdit_pipeline(double_blocks=1, single_blocks=1, heads=1, text_width=16, pooled_width=16)
    for parameter in pipe.transformer.proj_out.parameters():
        torch.nn.init.zeros_(parameter)
    loss = mmdit_loss(pipe, batch, pooled_drop=0.5, coarse=coarse)
    assert 1.2 < float(loss.detach()) < 3.0
    loss.backward()
