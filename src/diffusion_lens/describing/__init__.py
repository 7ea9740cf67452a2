"""Reading what a denoiser consists of off one evaluation of it."""

from diffusion_lens.describing.comparing import compare_with_evaluation as compare_with_evaluation
