"""Denoisers of diffusers that no description names, each with the reason."""

from __future__ import annotations

NO_IMAGE = "makes sound, text or molecules, and neither image nor video"
NO_TEXT = "reads no text: a class, an image or nothing guides it"
OVER_TIME = "attends over time in modules between the spatial ones, for which there are no names"
OF_OTHERS = "a part that other denoisers are built of"

UNDESCRIBED = {
    **dict.fromkeys(
        (
            "AceStepTransformer1DModel",
            "AudioLDM2UNet2DConditionModel",
            "LongCatAudioDiTTransformer",
            "MiniMaxMusic3Transformer1DModel",
            "RFD4ProteinaTransformer",
            "StableAudio3DiTModel",
            "StableAudioDiTModel",
            "T5FilmDecoder",
            "UNet1DModel",
        ),
        NO_IMAGE,
    ),
    **dict.fromkeys(
        ("DiTTransformer2DModel", "UNet2DModel", "UNetSpatioTemporalConditionModel"), NO_TEXT
    ),
    **dict.fromkeys(("I2VGenXLUNet", "UNet3DConditionModel", "UNetMotionModel"), OVER_TIME),
    **dict.fromkeys(
        ("Transformer2DModel", "TransformerTemporalModel", "PriorTransformer"), OF_OTHERS
    ),
    "AnyFlowFARTransformer3DModel": "its attention is FlexAttention with block masks and caches",
    "AnyFlowTransformer3DModel": "Wan's blocks with a second time embedding; not described yet",
    "BriaFibo2Transformer2DModel": "Z-Image's block and a gated cross-attention; not described yet",
    "Cosmos3OmniTransformer": "two towers of other weights share an attention, one of them causal",
    "DreamLiteTransformer2DModel": "a part of DreamLiteUNetModel",
    "DreamLiteUNetModel": "a U-Net with grouped queries and blocks without self-attention",
    "HeliosTransformer3DModel": "Wan's blocks with a history of frames as further tokens",
    "HunyuanVideoFramepackTransformer3DModel": "HunyuanVideo's blocks with packed earlier frames",
    "Kandinsky3UNet": "a U-Net whose attention blocks are no spatial transformers",
    "Kandinsky6SRTransformer3DModel": "its attention is FlexAttention alone",
    "Kandinsky6Transformer3DModel": "Kandinsky 5's blocks with sound beside the video",
    "LTX2VideoDiffusionDecoderModel": "decodes latents, and reads no text",
    "LatteTransformer3DModel": "spatial and temporal blocks take turns on other axes of one tensor",
    "LuminaNextDiT2DModel": "self- and cross-attention are summed before one projection",
    "MiniMaxH3Transformer3DModel": "modular only; video, sound and text in one packed sequence",
    "OmniGenTransformer2DModel": "a language model's blocks; the image stands inside its text",
    "QwenImage21Transformer2DModel": "the image stands inside the text, in products by segment",
    "SanaWMLTX2RefinerTransformer3DModel": "refines the video of SANA-WM, with LTX-2's blocks",
    "SanaWMTransformer3DModel": "attends by a recurrence (gated DeltaNet), without a product",
    "StableCascadeUNet": "attention between convolutions, with the text joined to the image's keys",
    "UVit2DModel": "predicts discrete tokens, without a noise schedule",
    "UniDiffuserModel": "image and text are both noised",
    "WanAnimate2Transformer3DModel": "modular only; FlexAttention with block masks",
}
"""By class name; `describe=True` may read it all the same."""
