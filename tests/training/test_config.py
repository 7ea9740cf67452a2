import importlib

import pytest

from diffusion_lens.training import config as module
from diffusion_lens.training.config import config_names, load_config


@pytest.mark.parametrize("name", config_names())
def test_every_recipe_reads_and_names_itself(name):
    assert load_config(name).model == name


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match="no recipe for 'x'; there are shapes-mmdit, shapes-unet"):
        load_config("x")


def test_a_misspelt_setting_is_refused(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.toml").write_text('model = "toy"\nbach = 1\n')
    monkeypatch.setattr(module, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match="the recipe of 'toy' has no setting 'bach'"):
        load_config("toy")


def test_the_former_name_of_the_package_is_known() -> None:
    former = importlib.import_module("diffusion_lens.toys.train.config")
    assert former.load_config("shapes-unet").model == "shapes-unet"
