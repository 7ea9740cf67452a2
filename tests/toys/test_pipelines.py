import numpy as np
import pytest
import torch

from diffusion_lens.toys.benchmark.patterns import TextPatterns
from diffusion_lens.toys.generating import call_defaults, generate
from diffusion_lens.toys.noising import predict_noised
from diffusion_lens.toys.pipelines import fill_unseen_words, mmdit_pipeline, unet_pipeline
from diffusion_lens.toys.tokenizers import UNKNOWN, VOCABULARY

BUILDERS = (
    lambda: unet_pipeline(channels=(16, 16), heads=2, text_width=16),
    lambda: mmdit_pipeline(
        double_blocks=1, single_blocks=1, heads=1, text_width=16, pooled_width=16
    ),
)


@pytest.fixture(params=BUILDERS, ids=["unet", "mmdit"])
def pipe(request):
    return request.param()


def test_the_unet_has_enough_cross_attention():
    unet = unet_pipeline().unet
    layers = [m for name, m in unet.named_modules() if name.endswith("attn2")]
    assert len(layers) >= 6
    assert sum(layer.heads for layer in layers) >= 24


def test_the_mmdit_has_double_and_single_blocks():
    transformer = mmdit_pipeline().transformer
    assert len(transformer.transformer_blocks) >= 2
    assert len(transformer.single_transformer_blocks) >= 2


def test_images_do_not_depend_on_the_batch(pipe):
    captions = ["red", "a circle", "a blue square"]
    together = generate(pipe, captions, steps=2)
    apart = generate(pipe, captions, steps=2, batch=1)
    assert together.shape == (3, 32, 32, 3) and together.dtype == np.uint8
    assert np.abs(together.astype(int) - apart.astype(int)).max() <= 1


def test_call_defaults_draw_an_image_of_the_world(pipe):
    drawn = pipe("a red circle", **call_defaults(pipe, steps=2)).images[0]
    assert drawn.size == (32, 32)


def test_guidance_changes_the_image(pipe):
    with_guidance = generate(pipe, ["a red circle"], steps=2, guidance=4.0)
    without = generate(pipe, ["a red circle"], steps=2, guidance=1.0)
    assert not np.array_equal(with_guidance, without)


@torch.no_grad()
def test_a_prediction_depends_on_caption_noise_and_level(pipe):
    image = np.full((32, 32, 3), 128, np.uint8)
    image[8:20, 8:20] = (220, 30, 40)

    def predict(caption="red", noise_level=0.5, seed=0):
        return predict_noised(pipe, image, caption=caption, noise_level=noise_level, seed=seed)

    assert torch.equal(predict(), predict())
    for other in (predict("blue"), predict(noise_level=0.8), predict(seed=1)):
        assert not torch.equal(predict(), other)
    with pytest.raises(ValueError, match="noise_level is 2; it lies between 0"):
        predict(noise_level=2)


@torch.no_grad()
def test_kept_text_patterns_have_one_map_per_head_and_sum_to_at_most_one(pipe):
    image = np.full((32, 32, 3), 128, np.uint8)
    joint = "transformer" in pipe.components
    with TextPatterns(pipe.components["transformer" if joint else "unet"]) as patterns:
        predict_noised(pipe, image, caption="red", noise_level=0.5, seed=0)
    layers = 2 if joint else 7
    assert len(patterns.kept) == layers
    for kept in patterns.kept:
        total = kept.sum(-1)
        assert torch.all(total <= 1 + 1e-5)
        assert joint or torch.allclose(total, torch.ones_like(total), atol=1e-5)
    assert patterns.mean().shape == (16, 16, 16)


def test_unseen_words_get_the_unknown_embedding():
    encoder = unet_pipeline(channels=(16, 16), heads=2, text_width=16).text_encoder
    fill_unseen_words(encoder)
    rows = encoder.get_input_embeddings().weight
    assert torch.equal(rows[VOCABULARY:], rows[UNKNOWN].expand(len(rows) - VOCABULARY, -1))
    assert not torch.equal(rows[VOCABULARY - 1], rows[UNKNOWN])
