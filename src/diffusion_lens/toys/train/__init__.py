"""The former name of `diffusion_lens.training`: its modules are imported and run by it as well."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "training")]
