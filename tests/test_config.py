"""Configuration: strict, and each mistake in one line that names the fix."""

import datetime
from typing import get_args

import pytest

from miudiff.config import override, parse, read_yaml, to_yaml
from miudiff.errors import ConfigError
from miudiff.methods.adversarial import TAPS
from miudiff.methods.asp import ASPConfig
from miudiff.methods.cut import CUTConfig
from miudiff.methods.miu_diff import MIUDiffConfig
from miudiff.methods.systems import SYSTEMS, configure
from miudiff.recipes import recipe_path
from miudiff.reproduce.budget import load_budget
from miudiff.runs import RunConfig, Task, check

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
    [
        ("a: [1", "is not YAML"),
        ("a: 1\na: 2", "stands twice"),
        ("- 1", "found list"),
        ("", "found NoneType"),
        ("b: 1\n? [a, b]\n: 1", "line 2 is not YAML .a list or a mapping stands as a key"),
        ("? {a: b}\n: 1", "stands as a key"),
        ("b: 1\na: 2024-13-45", "line 2 is not YAML .'2024-13-45' is no timestamp"),
        ("a: 0x_", "'0x_' is no int"),
        ("a: !!int abc", "'abc' is no int"),
        ("a: !!float abc", "'abc' is no float"),
        ("a: !!bool abc", "'abc' is no bool"),
        ("a: !!set [1]", "expected a mapping node, but found sequence"),
        ("a: !!timestamp abc", "'abc' is no timestamp"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (f"a: {'9' * 5000}", "is no int"),
        (f"a: 0x{'f' * 5000}", "more than 100 digits"),
        ("a: " + "[" * 100_000, "nested deeper than 40 levels"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper than 40 levels"),
        ("a: &a [*a]", "nested deeper than 40 levels"),
        ("a: b\0c", "special characters are not allowed"),
        ('a: "b\\0c"', "holds a character that is no text"),
        ('a: "\\ud800"', "holds a character that is no text"),
        ("1: a", "the key 1 is no word"),
        ("on: a", "the key True is no word"),
        ("2024-01-01: a", "is no word"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, text, told):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        read_yaml(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def laughs(levels: int) -> str:
    """Ten aliases of ten aliases of ten ..."""
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)])


def test_aliases_that_multiply_are_refused_and_others_are_taken(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(laughs(9))
    with pytest.raises(ConfigError, match="more than 200000 values"):
        read_yaml(path)
    path.write_text(laughs(2))
    assert read_yaml(path)["a1"] == [["ha"] * 10] * 10
    path.write_text("a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: [*b, *a], z: 3}")
    assert read_yaml(path)["c"] == {"x": 2, "y": 1, "z": 3}
    path.write_text("data: &d {mpp: 1}\nhe: *d")
    assert override(read_yaml(path), ["he.mpp=2"]) == {"data": {"mpp": 1}, "he": {"mpp": 2}}


@pytest.mark.parametrize(("width", "levels"), [(10, 12), (60, 3)])
def test_merges_that_multiply_take_no_memory(tmp_path, width, levels):
    lines = ["a0: &a0 {k: 1}"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * width)}]}}")
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    if width > 50:
        with pytest.raises(ConfigError, match="'<<' merges 60 mappings, expected at most 50"):
            read_yaml(tmp_path / "a.yaml")
    else:
        assert read_yaml(tmp_path / "a.yaml")[f"a{levels - 1}"] == {"k": 1}


def test_a_configuration_longer_than_any_is_refused_unread(tmp_path):
    (tmp_path / "a.yaml").write_text("a: " + "b" * 3_000_000)
    with pytest.raises(ConfigError, match="expected at most 2000000"):
        read_yaml(tmp_path / "a.yaml")


HOSTILE = ["? [a]\n: 1", "2024-13-45", "0x_", "!!int abc", "[" * 100_000, "a\0b", "{1: 2}", "&a [*a]"]


@pytest.mark.parametrize("value", [*HOSTILE, f"0x{'f' * 5000}"], ids=range(len(HOSTILE) + 1))
def test_a_hostile_value_of_a_word_is_told_in_one_line(value):
    with pytest.raises(ConfigError) as refused:
        override(RUN, [f"seed={value}"])
    assert "the value is not YAML" in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "word", ["a." * 100_000 + "b=1", "data.sources.²=1", "data.sources.-1=1", "x" * 10**6]
)
def test_a_hostile_key_of_a_word_is_told_in_one_line(word):
    with pytest.raises(ConfigError) as refused:
        parse(RunConfig, override(RUN, [word]), "a.yaml")
    assert len(str(refused.value)) < 400


def test_a_date_is_a_value_that_no_setting_has(tmp_path):
    (tmp_path / "a.yaml").write_text("task: 2024-01-02")
    assert read_yaml(tmp_path / "a.yaml") == {"task": datetime.date(2024, 1, 2)}
    with pytest.raises(ConfigError, match="'task': found datetime.date"):
        parse(RunConfig, override(RUN, ["task=2024-01-02"]), "a.yaml")


def test_a_misspelt_key_inside_another_is_proposed_whole():
    with pytest.raises(ConfigError, match=r"'guidance.scal'; did you mean 'scale'\? \(guidance.scale\)"):
        configure("miu-diff", None, ["guidance.scal=1"])
    with pytest.raises(ConfigError, match=r"did you mean 'scale'\? \(guidance.scale\)"):
        configure("miu-diff", None, ["guidance.Scale=1"])


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


RECIPES = recipe_path("ihc-small-score").parent
SMALL_NETWORK = {"size": 32, "channels": [8, 16], "attention": [16], "head_channels": 8, "groups": 4}
SETTINGS = {
    "score": [{}, {"network": SMALL_NETWORK | {"markers": 1}, "optimizer": {"lr": 1e-5, "decay_from": 3}}],
    "mi": [{}, {"estimator": {"channels": [8], "patch": 8, "bound": None, "critic": "joint"}}],
    "classifier": [{}, {"network": SMALL_NETWORK, "optimizer": {"clip": 1}}],
    "cut": [
        {"mode": mode, **sizes}
        for mode in ("cut", "fastcut")
        for sizes in ({}, {"generator": {"width": 4, "blocks": 1}}, {"generator": {"blocks": 4}})
    ],
    "distill": [{}, {"network": SMALL_NETWORK, "init": "teacher", "matching": {"levels": [5, 10]}}],
    "asp": [{}, {"generator": {"width": 4, "blocks": 1}}, {"generator": {"blocks": 3}, "pyramid": [1, 2]}],
}


def every_run():
    """A run of each learner at each size that ships or is likely."""
    for path in RECIPES.glob("*.yaml"):
        yield path.stem, read_yaml(path)
    for task, all_settings in SETTINGS.items():
        budgets = [load_budget(name) for name in ("smoke", "mini", "paper")] if task != "distill" else []
        for i, settings in enumerate([*all_settings, *(b.training(task).settings for b in budgets)]):
            yield f"{task}-{i}", RUN | {"task": task, task: settings}


@pytest.mark.parametrize(("name", "values"), [pytest.param(n, v, id=n) for n, v in every_run()])
def test_what_a_run_writes_of_its_configuration_it_reads_again(tmp_path, name, values):
    config = parse(RunConfig, values, name)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    again = parse(RunConfig, read_yaml(tmp_path / "run.yaml"), "run.yaml")
    assert again == config
    assert to_yaml(again) == to_yaml(config)


def test_every_task_and_budget_is_among_the_runs_that_are_read_again():
    assert set(SETTINGS) == set(get_args(Task))
    assert {path.stem for path in (RECIPES / "budgets").glob("*.yaml")} == {"smoke", "mini", "paper"}


@pytest.mark.parametrize("kind", [CUTConfig, ASPConfig])
def test_a_small_generator_is_compared_at_the_layers_that_its_encoder_has(kind):
    assert kind.model_validate({"generator": {"blocks": 5}}).taps == TAPS == (0, 4, 8, 12, 16)
    assert kind.model_validate({"generator": {"blocks": 4}}).taps == (0, 4, 8, 12)
    assert kind.model_validate({"generator": {"blocks": 1}}).taps == (0, 4, 8, 12)
    with pytest.raises(ConfigError, match="'taps': found .*expected layers of the encoder, 0 to 12"):
        parse(kind, {"generator": {"blocks": 1}, "taps": [13]}, "a.yaml")


@pytest.mark.parametrize("method", list(SYSTEMS))
def test_the_settings_of_every_system_read_back(tmp_path, method):
    for preset in SYSTEMS[method].presets:
        config = configure(method, preset)
        (tmp_path / "a.yaml").write_text(to_yaml(config))
        assert parse(type(config), read_yaml(tmp_path / "a.yaml"), "a") == config


TOO_MUCH = [
    ("score", "score.network.layers=1000000", "'score.network.layers': found 1000000"),
    ("score", "score.network.channels=[1000000000]", "'score.network.channels.0': found 1000000000"),
    ("score", f"score.network.channels={[32] * 40}", "'score.network.channels': found [32"),
    (
        "score",
        "score.network={channels: [16384, 16384], layers: 30}",
        "score.network: found .* weights, expected at most 2,000,000,000",
    ),
    ("score", "score.network.size=1000000000", "'score.network.size': found 1000000000"),
    ("score", "score.optimizer.lr=.inf", "'score.optimizer.lr': found inf; input should be a finite"),
    ("score", "score.optimizer.lr=.nan", "'score.optimizer.lr': found nan"),
    ("score", "batch_size=100000000000", "'batch_size': found 100000000000"),
    ("score", "batch_size=60000", "batch_size: found 60000, expected at most 15258 tiles of 256 x 256"),
    ("score", "steps=100000000", "'steps': found 100000000; input should be less than or equal to 99999999"),
    ("score", "workers=1000000", "'workers': found 1000000"),
    ("score", "log_every=1000000000000", "'log_every': found"),
    ("score", "save_every=0", "'save_every': found 0"),
    ("score", "data.size=1000000000", "'data.size': found 1000000000"),
    ("score", "data.mpp=1e-300", "'data.mpp': found 1e-300; input should be greater than or equal to 0.05"),
    ("score", "data.sources.0.mpp=1e300", "'data.sources.0.mpp': found 1e.300"),
    ("mi", "mi.estimator.channels=[0]", "'mi.estimator.channels.0': found 0"),
    ("mi", "mi.estimator.channels=[-8]", "'mi.estimator.channels.0': found -8"),
    ("mi", "mi.estimator.patch=1000000", "'mi.estimator.patch': found 1000000"),
    ("mi", "mi.bins=1000000000", "'mi.bins': found 1000000000"),
    ("classifier", "classifier.network.layers=1000000", "'classifier.network.layers': found 1000000"),
    ("classifier", "classifier.network.groups=7", "channels: found 128, expected multiples of groups, 7"),
    ("classifier", "classifier.network.size=16", "size: found 16, expected at least 32 for 6 resolutions"),
    ("cut", "cut.generator.blocks=1000000", "'cut.generator.blocks': found 1000000"),
    ("cut", "cut.generator.width=16000", "cut.generator, cut.discriminator: found .* weights"),
    ("cut", "cut.discriminator.layers=1000", "'cut.discriminator.layers': found 1000"),
    ("cut", "cut.optimizer.betas=[5, -1]", "'cut.optimizer.betas.0': found 5"),
    ("asp", f"asp.pyramid={[1.0] * 40}", "'asp.pyramid': found"),
    ("asp", f"asp.epochs={10**400}", "whole number of more than 100 digits"),
]


@pytest.mark.parametrize(("task", "word", "told"), TOO_MUCH)
def test_sizes_that_no_machine_has_are_refused_before_memory_is_taken(task, word, told):
    values = RUN | {"task": task, "paired": task == "asp"}
    values |= {"he": {"sources": [{"files": "he"}]}} if task in ("classifier", "cut", "asp") else {}
    with pytest.raises(ConfigError, match=told.replace("[", r"\[")) as refused:
        check(parse(RunConfig, override(values, [word]), "a.yaml"))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_an_unknown_recipe_names_the_known():
    with pytest.raises(ConfigError, match="recipes: .*ihc-small-score"):
        recipe_path("nothing")
