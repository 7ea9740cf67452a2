"""The contract of an architecture, and tiny models of every family to check it on."""

from diffusion_lens.testing.capture import capture_inputs as capture_inputs
from diffusion_lens.testing.contract import check_architecture as check_architecture
from diffusion_lens.testing.contract import inspect_architecture as inspect_architecture
from diffusion_lens.testing.pipelines import check_pipeline as check_pipeline
from diffusion_lens.testing.report import ContractReport as ContractReport
from diffusion_lens.testing.report import Failure as Failure
from diffusion_lens.testing.tiny import TINY_FAMILIES as TINY_FAMILIES
from diffusion_lens.testing.tiny import tiny_denoiser as tiny_denoiser
