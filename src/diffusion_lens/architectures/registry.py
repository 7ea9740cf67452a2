"""The known families, those of other packages (entry points) among them."""

from __future__ import annotations

from importlib.metadata import entry_points

from diffusion_lens.architectures.cogvideox import COGVIDEOX
from diffusion_lens.architectures.flux import FLUX
from diffusion_lens.architectures.sd3 import SD3
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.architectures.unet import UNET
from diffusion_lens.border import public
from diffusion_lens.errors import UnsupportedModelError, closest

GROUP = "diffusion_lens.architectures"
_REGISTERED: dict[str, DenoiserSpec] = {
    spec.denoiser: spec for spec in (UNET, SD3, FLUX, COGVIDEOX)
}


@public
def register_architecture(spec: DenoiserSpec) -> DenoiserSpec:
    """Make a family known, in place of one for the same denoiser class.

    Packages declare an entry point of the group `diffusion_lens.architectures` instead, whose value
    is a `DenoiserSpec`; this call is for notebooks.
    """
    _REGISTERED[spec.denoiser] = spec
    return spec


def architectures() -> dict[str, DenoiserSpec]:
    """Every known family by the class name of its denoiser."""
    declared = {}
    for entry in entry_points(group=GROUP):
        spec = entry.load()
        if not isinstance(spec, DenoiserSpec):
            raise UnsupportedModelError(
                f"the entry point {entry.name!r} of {GROUP} is a {type(spec).__name__}, "
                "not a DenoiserSpec; see docs/architecture.md, 'Adding a family'"
            )
        declared[spec.denoiser] = spec
    return declared | _REGISTERED


def architecture_of(class_name: str) -> DenoiserSpec:
    """The family of a denoiser class.

    Raises:
        UnsupportedModelError: If it is unknown; the message lists the known ones.
    """
    if class_name in _REGISTERED:
        return _REGISTERED[class_name]
    known = architectures()
    if class_name not in known:
        near = closest(class_name, known)
        hint = f" Closest: {near[0]}." if near else ""
        raise UnsupportedModelError(
            f"no architecture is registered for {class_name}; known denoisers are "
            f"{', '.join(known)}.{hint} Register one with `register_architecture(spec)`."
        )
    return known[class_name]
