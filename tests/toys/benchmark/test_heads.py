import numpy as np
import pytest

from diffusion_lens.toys.benchmark.heads import heads_off, random_order, text_heads, without_heads
from diffusion_lens.toys.generating import generate
from diffusion_lens.toys.pipelines import mmdit_pipeline, unet_pipeline

BUILDERS = (
    lambda: unet_pipeline(channels=(16, 16), heads=2, text_width=16),
    lambda: mmdit_pipeline(
        double_blocks=1, single_blocks=1, heads=2, text_width=16, pooled_width=16
    ),
)


@pytest.fixture(params=BUILDERS, ids=["unet", "mmdit"])
def pipe(request):
    return request.param()


def test_every_head_is_named_once(pipe):
    heads = text_heads(pipe)
    layers = 7 if "unet" in pipe.components else 2
    assert len(set(heads)) == len(heads) == 2 * layers
    assert sorted(random_order(heads)) == sorted(heads) and random_order(heads) != heads


def test_a_unet_without_text_heads_does_not_read_its_caption():
    pipe = BUILDERS[0]()
    draw = heads_off(pipe, steps=2, guidance=1.0)
    red, blue = (draw([text], text_heads(pipe)) for text in ("red", "blue"))
    assert np.array_equal(red, blue)
    assert not np.array_equal(draw(["red"], []), draw(["blue"], []))


def test_each_head_changes_the_image_and_is_back_afterwards(pipe):
    before = generate(pipe, ["red"], steps=2)
    for path, head in text_heads(pipe)[:: len(text_heads(pipe)) - 1]:
        changed = heads_off(pipe, steps=2)(["red"], [(path, head)])
        assert not np.array_equal(changed, before)
    with pytest.raises(RuntimeError, match="stop"), without_heads(pipe, text_heads(pipe)):
        raise RuntimeError("stop")
    assert np.array_equal(generate(pipe, ["red"], steps=2), before)
