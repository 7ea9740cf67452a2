"""The model that users hold, and what its runs give back."""

from diffusion_lens.hooked_diffusion.denoise import Prediction as Prediction
from diffusion_lens.hooked_diffusion.hook_table import HookTable as HookTable
from diffusion_lens.hooked_diffusion.model import HookedDiffusion as HookedDiffusion
from diffusion_lens.hooked_diffusion.output import Output as Output
from diffusion_lens.hooked_diffusion.output import Provenance as Provenance
from diffusion_lens.hooked_diffusion.report import Report as Report
from diffusion_lens.hooked_diffusion.run import Run as Run
