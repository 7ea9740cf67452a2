"""Reading what a denoiser consists of off one evaluation of it."""

from diffusion_lens.describing.comparing import compare_with_evaluation as compare_with_evaluation
from diffusion_lens.describing.description import describe as describe
from diffusion_lens.describing.family_file import family_file as family_file
from diffusion_lens.describing.pipelines import ask_pipeline as ask_pipeline
