"""Activations of many runs: written to a store on disk, or handed out while the model runs."""

from diffusion_lens.activations.collecting import collect as collect
from diffusion_lens.activations.mixing import Rows as Rows
from diffusion_lens.activations.online import OnlineActivations as OnlineActivations
from diffusion_lens.activations.online import online as online
from diffusion_lens.activations.store import ActivationStore as ActivationStore
