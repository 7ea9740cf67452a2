"""Packages that declare entry points: broken ones are named and in nobody's way, no doubles."""

import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_lens import HookedDiffusion, analyses, extensions
from diffusion_lens.analyses import registry as by_name
from diffusion_lens.architectures import registry
from diffusion_lens.architectures.flux import FLUX
from diffusion_lens.errors import ExtensionError, UnsupportedModelError
from diffusion_lens.testing import tiny_denoiser

UNSHIPPED = "LatteTransformer3DModel"
GOOD = f"""
from dataclasses import replace
from diffusion_lens.architectures import architecture_of
SPEC = replace(architecture_of("FluxTransformer2DModel"), denoiser={UNSHIPPED!r}, family="good")
def maps(model): return "maps"
"""


class Packages:
    """Fake packages on the path, each a module with its metadata."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self, name: str, source: str, *, analyses: str = "", architectures: str = ""
    ) -> str:
        module = f"fake_{name}_{self.folder.name}".replace("-", "_")
        (self.folder / f"{module}.py").write_text(source, encoding="utf-8")
        about = self.folder / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        groups = {by_name.GROUP: analyses, registry.GROUP: architectures}
        text = "".join(
            f"[{group}]\n{entry.replace('=', f' = {module}:')}\n"
            for group, entry in groups.items()
            if entry
        )
        (about / "entry_points.txt").write_text(text, encoding="utf-8")
        return module


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(extensions, "_REPORTED", set())
    for name, kept in (
        ("_REGISTERED", dict(registry._REGISTERED)),
        ("_REPLACED", set()),
        ("_FOUND", {}),
    ):
        monkeypatch.setattr(registry, name, kept)
    return Packages(tmp_path)


BROKEN = {
    "an exception": 'raise RuntimeError("plugin broken")',
    "another package that is missing": "import no_such_package_anywhere",
    "no such name": "other = 3",
    "the end of the process": "import sys\nsys.exit(3)",
    "a syntax error": "def",
    "another kind": "SPEC = maps = 3",
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_named_once_and_in_nobodys_way(source: str, packages: Packages) -> None:
    packages.install("bad", source, analyses="maps=maps", architectures="abad=SPEC")
    packages.install("good", GOOD, analyses="more=maps", architectures="bria=SPEC")
    with pytest.warns(UserWarning, match="'abad' of bad in diffusion_lens.architectures") as told:
        assert registry.architecture_of(UNSHIPPED).family == "good"
    assert len(told) == 1
    assert (
        registry.architecture_of(UNSHIPPED).family == "good"
    )  # a second warning would be an error
    assert by_name.analysis("attention_maps") is analyses.attention_maps
    assert by_name.analysis("more")(None) == "maps"
    with pytest.warns(UserWarning, match="'maps' of bad in diffusion_lens.analyses"):
        assert set(by_name.analyses()) == {*by_name.SHIPPED, "more"}
    assert list(registry.architectures())[-1] == UNSHIPPED  # behind those of this package
    with pytest.raises(ExtensionError, match=r"'maps' of bad in diffusion_lens\.analyses"):
        by_name.analysis("maps")


def test_what_is_not_found_may_be_in_a_broken_package(packages: Packages) -> None:
    packages.install("bad", BROKEN["an exception"], architectures="abad=SPEC")
    said = r"no architecture .* for Latte.* Left out: .*'abad' of bad.*RuntimeError: plugin broken"
    with pytest.warns(UserWarning, match="abad"), pytest.raises(UnsupportedModelError, match=said):
        registry.architecture_of(UNSHIPPED)


def test_a_model_of_a_known_family_is_wrapped_beside_a_broken_package(packages: Packages) -> None:
    packages.install("bad", BROKEN["an exception"], architectures="abad=SPEC")
    with pytest.warns(UserWarning, match="left out: the entry point 'abad' of bad"):
        model = HookedDiffusion(tiny_denoiser("flux")[0])
    assert model.spec is FLUX


def test_a_package_is_found_that_was_installed_after_the_first_look(packages: Packages) -> None:
    with pytest.raises(UnsupportedModelError, match="no architecture is registered"):
        registry.architecture_of(UNSHIPPED)
    packages.install("good", GOOD, architectures="bria=SPEC")
    assert registry.architecture_of(UNSHIPPED).family == "good"


def test_two_packages_of_one_denoiser_are_refused_naming_both(packages: Packages) -> None:
    packages.install("first", GOOD, architectures="bria=SPEC")
    packages.install("second", GOOD, architectures="bria2=SPEC")
    said = r"is described 2 times: .*'bria' of first and by the entry point 'bria2' of second"
    for ask in (lambda: registry.architecture_of(UNSHIPPED), registry.architectures):
        with pytest.raises(ExtensionError, match=said):
            ask()
    assert registry.architecture_of("FluxTransformer2DModel") is FLUX


def test_a_package_that_describes_a_shipped_family_is_refused(packages: Packages) -> None:
    source = GOOD.replace(UNSHIPPED, "FluxTransformer2DModel")
    packages.install("second", source, architectures="flux=SPEC")
    with pytest.raises(ExtensionError, match=r"by diffusion_lens and by .* 'flux' of second"):
        HookedDiffusion(tiny_denoiser("flux")[0])


def test_a_registered_description_does_not_stand_in_anothers_place(packages: Packages) -> None:
    packages.install("good", GOOD, architectures="bria=SPEC")
    mine = replace(FLUX, denoiser=UNSHIPPED, family="mine")
    with pytest.raises(ExtensionError, match=r"'bria' of good and by this call of `register_arch"):
        registry.register_architecture(mine)
    assert registry.architecture_of(UNSHIPPED).family == "good"
    shipped = replace(FLUX, family="mine")
    with pytest.raises(ExtensionError, match=r"by diffusion_lens and by this call of"):
        registry.register_architecture(shipped)
    assert registry.architecture_of("FluxTransformer2DModel") is FLUX


def test_a_package_that_comes_after_a_registered_description_is_seen(packages: Packages) -> None:
    registry.register_architecture(replace(FLUX, denoiser=UNSHIPPED, family="mine"))
    packages.install("good", GOOD, architectures="bria=SPEC")
    with pytest.raises(ExtensionError, match=r"by `register_architecture` and by .*'bria' of good"):
        registry.architectures()


def test_a_description_is_replaced_where_that_is_said(packages: Packages) -> None:
    packages.install("good", GOOD, architectures="bria=SPEC")
    mine = replace(FLUX, denoiser=UNSHIPPED, family="mine")
    assert registry.register_architecture(mine, replace=True) is mine
    assert registry.architecture_of(UNSHIPPED) is mine
    assert registry.architectures()[UNSHIPPED] is mine


CELL = """
def describe(steps):
    return replace(FLUX, denoiser=UNSHIPPED, order=lambda path: (len(path), {number}, steps))
registered = register(describe({steps}))
"""


def run_cell(number: int = 0, steps: int = 0) -> object:
    given = {"replace": replace, "FLUX": FLUX, "UNSHIPPED": UNSHIPPED}
    given["register"] = registry.register_architecture
    exec(textwrap.dedent(CELL.format(number=number, steps=steps)), given)
    return given["registered"]


def test_a_cell_that_runs_twice_registers_twice(packages: Packages) -> None:
    run_cell()
    again = run_cell()
    assert registry.architecture_of(UNSHIPPED) is again
    for changed in ({"number": 1}, {"steps": 1}):
        with pytest.raises(ExtensionError, match=r"`register_architecture` and by this call"):
            run_cell(**changed)


def test_a_package_may_register_while_it_is_imported(packages: Packages) -> None:
    source = (
        GOOD + "\nfrom diffusion_lens import register_architecture\nregister_architecture(SPEC)\n"
    )
    module = packages.install("good", source, architectures="bria=SPEC")
    assert registry.architecture_of(UNSHIPPED) is sys.modules[module].SPEC
