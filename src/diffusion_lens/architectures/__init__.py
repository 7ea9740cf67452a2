"""What each family of denoisers consists of, as data."""

from diffusion_lens.architectures.registry import architecture_of as architecture_of
from diffusion_lens.architectures.registry import architectures as architectures
from diffusion_lens.architectures.registry import register_architecture as register_architecture
from diffusion_lens.architectures.spec import DenoiserSpec as DenoiserSpec
