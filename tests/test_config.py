"""Configuration: strict, and each mistake in one line that names the fix."""

import pytest

from miudiff.config import override, parse, read_yaml, to_yaml
from miudiff.errors import ConfigError
from miudiff.methods.miu_diff import MIUDiffConfig
from miudiff.recipes import recipe_path
from miudiff.runs import RunConfig

RUN = {"task": "score", "out": "x", "data": {"mpp": 1.0, "sources": [{"files": "ihc"}]}}


def test_a_misspelt_key_names_the_nearest_right_one():
    with pytest.raises(ConfigError, match=r"unknown key 'score.optimizer.learning_rat'; known here: clip"):
        parse(RunConfig, override(RUN, ["score.optimizer.learning_rat=1"]), "a.yaml")
    with pytest.raises(
        ConfigError, match=r"a.yaml: unknown key 'data.sources.0.fils'; did you mean 'files'\?"
    ):
        parse(RunConfig, override(RUN, ["data.sources.0.fils=1"]), "a.yaml")
    with pytest.raises(ConfigError, match=r"did you mean 'batch_size'\?"):
        parse(RunConfig, override(RUN, ["batchsize=1"]), "a.yaml")


def test_a_wrong_value_names_key_found_and_expected():
    with pytest.raises(ConfigError, match=r"'score.optimizer.lr': found -1; input should be greater than 0"):
        parse(RunConfig, override(RUN, ["score.optimizer.lr=-1"]), "a.yaml")
    with pytest.raises(ConfigError, match="'out' is missing"):
        parse(RunConfig, {"task": "score", "data": RUN["data"]}, "a.yaml")


def test_scientific_numbers_are_numbers(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("lr: 1e-4\nb: 2E5\nname: e5x\n")
    assert read_yaml(path) == {"lr": 1e-4, "b": 2e5, "name": "e5x"}


@pytest.mark.parametrize(
    ("text", "told"),
    [("a: [1", "is not YAML"), ("a: 1\na: 2", "stands twice"), ("- 1", "found list"), ("", "found NoneType")],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, text, told):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        read_yaml(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("word", ["lr", "=3", "data.sources.7.files=x", "steps.more=1", "seed=[1"])
def test_a_bad_override_is_told_in_one_line(word):
    with pytest.raises(ConfigError, match="'"):
        override(RUN | {"steps": 3}, [word])


def test_overriding_leaves_the_values_alone():
    override(RUN, ["data.mpp=2"])
    assert RUN["data"]["mpp"] == 1.0


def test_a_configuration_reads_back_from_its_own_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    config = MIUDiffConfig()
    path.write_text(to_yaml(config))
    assert parse(MIUDiffConfig, read_yaml(path), "a") == config


def test_every_recipe_is_valid():
    folder = recipe_path("ki67-small-score").parent
    for path in folder.glob("*.yaml"):
        parse(RunConfig, read_yaml(path), path.name)


def test_an_unknown_recipe_names_the_known():
    with pytest.raises(ConfigError, match="recipes: .*ki67-small-score"):
        recipe_path("nothing")
