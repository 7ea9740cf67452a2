"""The codecs between pixels and latents: constructed encoders inside a plain `AutoencoderTiny`.

The UNet's codec halves the resolution: each latent pixel is the mean colour of a 2 x 2 block of
pixels, as lightness, red against green, and yellow against blue. The encoder is linear and set by
hand; the decoder is a small network that learns to redraw the edges. The MM-DiT's codec keeps the
pixels as they are, since the transformer takes blocks of 2 x 2 latent pixels as tokens anyway; its
encoder and decoder are both set by hand.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (1 / 3, -1 / 3, 0.0), (1 / 6, 1 / 6, -1 / 3))
"""Rows: lightness, red - green, yellow - blue, as weights of red, green and blue."""

LATENT_MEAN = (0.16, 0.05, 0.03)
LATENT_SPREAD = (0.6, 0.2, 0.2)
"""A latent channel is the opponent channel of pixels in [-1, 1], less its mean, over its spread."""

PIXEL_SCALE = 0.1
"""The pixel codec's latents are this small, where the decoder's tanh(x / 3) is linear to 4e-4."""

PIXEL_SPREAD = 0.65
"""Standard deviation of a pixel value in [-1, 1]; the pixel codec's latents are scaled by it."""


def _set_centre(conv: torch.nn.Conv2d, matrix: torch.Tensor) -> None:
    """Make a 3 x 3 convolution act on each pixel alone."""
    torch.nn.init.zeros_(conv.weight)
    conv.weight.data[: matrix.shape[0], : matrix.shape[1], 1, 1] = matrix
    if conv.bias is not None:
        torch.nn.init.zeros_(conv.bias)


def _conv(layers: torch.nn.Sequential, place: int) -> torch.nn.Conv2d:
    layer = layers[place]
    assert isinstance(layer, torch.nn.Conv2d)
    return layer


def half_codec(*, channels: int = 32) -> "AutoencoderTiny":
    """The codec of 16 x 16 latents of 3 channels: encoder set by hand, decoder untrained.

    Args:
        channels: Width of the decoder.

    Returns:
        An `AutoencoderTiny` of factor 2.
    """
    from diffusers import AutoencoderTiny

    codec = AutoencoderTiny(
        encoder_block_out_channels=(3, 3),
        num_encoder_blocks=(0, 0),
        decoder_block_out_channels=(channels, channels),
        num_decoder_blocks=(2, 1),
        latent_channels=3,
    )
    layers = codec.encoder.layers
    _set_centre(_conv(layers, 0), torch.eye(3))
    block = _conv(layers, 1)
    torch.nn.init.zeros_(block.weight)
    for channel in range(3):
        block.weight.data[channel, channel, 1:, 1:] = 0.25
    spread = torch.tensor(LATENT_SPREAD)[:, None]
    # The encoder sees pixels in [0, 1]: p = 2 x - 1, so weights double and the bias takes the -1.
    rows = torch.tensor(OPPONENT) / spread
    _set_centre(_conv(layers, 2), 2 * rows)
    bias = _conv(layers, 2).bias
    assert bias is not None
    bias.data = -rows.sum(1) - torch.tensor(LATENT_MEAN) / spread[:, 0]
    return codec


def pixel_codec() -> "AutoencoderTiny":
    """The codec that keeps all pixels: an `AutoencoderTiny` of factor 1, exact to 8 bits.

    Returns:
        An `AutoencoderTiny` whose latents, times its scaling factor, have a spread of about one.
    """
    from diffusers import AutoencoderTiny

    codec = AutoencoderTiny(
        encoder_block_out_channels=(3,),
        num_encoder_blocks=(0,),
        decoder_block_out_channels=(6,),
        num_decoder_blocks=(0,),
        latent_channels=3,
        scaling_factor=1 / (PIXEL_SCALE * PIXEL_SPREAD),
    )
    eye = torch.eye(3)
    encoder, decoder = codec.encoder.layers, codec.decoder.layers
    _set_centre(_conv(encoder, 0), eye)
    _set_centre(_conv(encoder, 1), 2 * PIXEL_SCALE * eye)
    shift = _conv(encoder, 1).bias
    assert shift is not None
    shift.data.fill_(-PIXEL_SCALE)
    # Both signs pass the rectifier apart and are joined again; the decoder's own 2 x - 1 is undone.
    _set_centre(_conv(decoder, 0), torch.cat([eye, -eye]))
    _set_centre(_conv(decoder, 2), torch.cat([eye, -eye], 1) / (2 * PIXEL_SCALE))
    shift = _conv(decoder, 2).bias
    assert shift is not None
    shift.data.fill_(0.5)
    return codec
