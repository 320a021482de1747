"""Model folders: whole or not at all, nothing stale in them, and what is damaged or absurd is refused before memory is taken."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from miudiff.checkpoints import WEIGHTS, save_weights
from miudiff.cli import main
from miudiff.errors import CheckpointError, ConfigError, DataError, MiudiffError
from miudiff.gan import Generator, GeneratorConfig
from miudiff.methods import generator as generator_module
from miudiff.methods import model as model_module
from miudiff.methods.generator import GeneratorModel, load_generator_model, save_generator_model
from miudiff.methods.model import Card, Model, load_model, save_model
from miudiff.methods.systems import load_any
from miudiff.naming import SHIPPED
from miudiff.runs import trained_as
from tiny import tiny_classifier, tiny_estimator, tiny_model, tiny_score


def full_model(name: str = "tiny", seed: int = 0) -> Model:
    return Model(
        tiny_score(seed=seed), tiny_estimator(), Card(name=name, tile=64), classifier=tiny_classifier()
    )


def generator_model() -> GeneratorModel:
    torch.manual_seed(0)
    return GeneratorModel(Generator(GeneratorConfig(width=4, blocks=2)), Card(name="gan", tile=64), "cut")


@pytest.fixture
def folder(tmp_path) -> Path:
    save_model(tmp_path / "model", full_model())
    return tmp_path / "model"


@pytest.fixture
def score_run(tmp_path) -> Path:
    """A finished score run, as far as `assemble` looks at it."""
    run, score = tmp_path / "run", tiny_score(seed=5)
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "config.json").write_text(score.unet.to_json_string())
    save_weights(run / "weights" / WEIGHTS, score.unet.state_dict())
    return run


def without_digests(folder: Path) -> Path:
    change(folder / "model_index.json", sha256={})
    return folder


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def command(*words) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code


def test_assembling_onto_a_model_asks_for_overwrite_and_leaves_no_stale_part(folder, score_run, capsys):
    before = files(folder)
    words = ["model", "assemble", score_run, folder, "--name", "mine"]
    assert command(*words) == 2
    assert f"{folder}: is there already; give --overwrite" in capsys.readouterr().err
    assert files(folder) == before
    assert command(*words, "--overwrite") == 0
    assert sorted(p.name for p in folder.iterdir()) == ["model_index.json", "scheduler", "unet"]
    assert load_model(folder).card.name == "mine"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model", "run"]


def test_making_a_model_of_an_adm_file_asks_for_overwrite_before_the_file_is_read(folder, capsys):
    assert command("model", "from-adm", "missing.pt", folder, "--name", "mine") == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert command("model", "from-adm", "missing.pt", folder, "--name", "mine", "--overwrite") == 2
    assert "missing.pt: no such file" in capsys.readouterr().err
    assert load_model(folder).card.name == "tiny"


def test_a_generator_takes_the_place_of_a_diffusion_model_and_the_other_way(folder):
    save_generator_model(folder, generator_model())
    assert sorted(p.name for p in folder.iterdir()) == ["generator", "model_index.json"]
    assert isinstance(load_any(folder), GeneratorModel)
    save_model(folder, tiny_model())
    assert sorted(p.name for p in folder.iterdir()) == [
        "mi_estimator",
        "model_index.json",
        "scheduler",
        "unet",
    ]
    assert isinstance(load_any(folder), Model)


def test_a_folder_that_holds_more_than_a_model_is_refused_and_kept(folder, score_run, capsys):
    (folder / "notes.txt").write_text("mine")
    before = files(folder)
    words = ["model", "assemble", score_run, folder, "--name", "mine", "--overwrite"]
    assert command(*words) == 2
    assert "holds 'notes.txt', which is no part of a model" in capsys.readouterr().err
    with pytest.raises(DataError, match="notes.txt"):
        save_model(folder, tiny_model())
    assert files(folder) == before


@pytest.mark.parametrize("writer", ["save_weights", "write_json", "save_estimator", "digests"])
def test_stopped_while_it_is_written_the_old_model_is_whole(folder, monkeypatch, writer):
    def stopped(*arguments, **more):
        raise KeyboardInterrupt

    before = files(folder)
    monkeypatch.setattr(model_module, writer, stopped)
    with pytest.raises(KeyboardInterrupt):
        save_model(folder, full_model("new", seed=1))
    assert files(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("writer", ["save_weights", "write_json", "write_index"])
def test_stopped_while_a_generator_is_written_there_is_none_or_the_old_one(tmp_path, monkeypatch, writer):
    def stopped(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(generator_module, writer, stopped)
        with pytest.raises(KeyboardInterrupt):
            save_generator_model(tmp_path / "gan", generator_model())
    assert not list(tmp_path.iterdir())
    save_generator_model(tmp_path / "gan", generator_model())
    before = files(tmp_path)
    monkeypatch.setattr(generator_module, writer, stopped)
    with pytest.raises(KeyboardInterrupt):
        save_generator_model(tmp_path / "gan", generator_model())
    assert files(tmp_path) == before


def test_killed_at_any_moment_the_next_save_makes_a_whole_model(folder):
    new, old = (folder.parent / f".model.{kind}.part" for kind in ("new", "old"))
    shutil.copytree(folder, new)
    (new / "model_index.json").unlink()  # killed while the new one is written
    save_model(folder, full_model("second"))
    folder.rename(old)  # killed between the renames
    save_model(folder, full_model("third"))
    assert load_model(folder).card.name == "third"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_run_goes_on_after_a_kill_while_its_generator_was_written(tmp_path):
    from miudiff.runs import run
    from test_training import load, quiet, write_run

    path = write_run(tmp_path, "cut")
    run(load(path, steps=2), quiet)
    shutil.copytree(tmp_path / "run" / "weights", tmp_path / "run" / ".weights.new.part")
    run(load(path, steps=3), quiet)
    assert not list((tmp_path / "run").glob(".*"))
    load_generator_model(tmp_path / "run" / "weights")


@pytest.mark.parametrize("critic", ["separable", "joint", "mlp"])
def test_every_critic_reads_back_as_it_was(tmp_path, critic):
    made = Model(tiny_score(), tiny_estimator(critic), Card(name="tiny", tile=64))
    save_model(tmp_path / "model", made)
    read = load_model(tmp_path / "model").estimator.state_dict()
    assert all(torch.equal(value, read[name]) for name, value in made.estimator.state_dict().items())


def flip(path: Path, at: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


PARTS = ["unet", "mi_estimator", "classifier"]


@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_bit_in_a_weight_is_seen(folder, part):
    flip(folder / part / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"{part}/.*has changed since the model was made"):
        load_model(folder)
    load_model(without_digests(folder))  # a model of an earlier version states none


def test_a_flipped_bit_in_a_generators_weight_is_seen(tmp_path):
    save_generator_model(tmp_path / "gan", generator_model())
    flip(tmp_path / "gan" / "generator" / WEIGHTS)
    with pytest.raises(CheckpointError, match="has changed since the model was made"):
        load_generator_model(tmp_path / "gan")
    change(tmp_path / "gan" / "model_index.json", sha256=3)
    with pytest.raises(CheckpointError, match="'sha256': found 3, expected digests by file"):
        load_generator_model(tmp_path / "gan")


def test_settings_that_make_another_network_of_the_same_weights_are_seen(folder):
    change(folder / "unet" / "config.json", norm_eps=0.5)
    with pytest.raises(CheckpointError, match="unet/config.json: has changed"):
        load_model(folder)


def test_a_palette_and_a_part_put_in_by_hand_leave_the_digests_valid(tmp_path):
    folder = tmp_path / "model"
    save_model(folder, Model(tiny_score(), None, Card(name="tiny", tile=64)))
    save_model(tmp_path / "other", full_model())
    shutil.copytree(tmp_path / "other" / "mi_estimator", folder / "mi_estimator")
    change(folder / "model_index.json", mi_estimator=["miudiff.information.estimator", "Estimator"])
    assert load_model(folder).estimator is not None


def test_the_model_that_ships_states_the_digests_of_all_its_files():
    from miudiff.methods.folder import digests

    shipped = model_module.model_folder(SHIPPED)
    stated = json.loads((shipped / "model_index.json").read_text())["sha256"]
    assert stated == digests(shipped)
    assert len(stated) == 5


HUGE = 10**9
UNET = {
    "unknown block": (
        {"down_block_types": ["CrossAttnDownBlock2D", "AttnDownBlock2D"]},
        "down_block_types.0",
    ),
    "a million layers": ({"layers_per_block": 10**6}, "'layers_per_block': found 1000000"),
    "huge channels": ({"block_out_channels": [HUGE, HUGE]}, "'block_out_channels.0': found 1000000000"),
    "negative channels": ({"block_out_channels": [-16, 32]}, "'block_out_channels.0': found -16"),
    "many levels": ({"block_out_channels": [16] * 1000}, "'block_out_channels': found"),
    "groups": ({"norm_num_groups": 7}, "num_groups"),
    "no groups": ({"norm_num_groups": 0}, "'norm_num_groups': found 0"),
    "heads": ({"num_attention_heads": 5}, "num_attention_heads: found 5"),
    "head width": ({"attention_head_dim": 0}, "'attention_head_dim': found 0"),
    "text": ({"norm_eps": "small"}, "'norm_eps': found 'small'"),
    "infinite": ({"norm_eps": float("inf")}, "a number that is not finite"),
    "nested": ({"layers_per_block": [[[{}]]]}, r"'layers_per_block': found \[\[\[\{\}\]\]\]"),
    "null": ({"block_out_channels": None}, "'block_out_channels': found None"),
    "activation": ({"act_fn": "exp"}, "'act_fn': found 'exp'"),
    "classes": ({"num_class_embeds": HUGE}, "'num_class_embeds': found 1000000000"),
    "frequency shift": ({"freq_shift": 8}, "'freq_shift': found 8"),
    "other colours": ({"in_channels": 4}, "'in_channels': found 4"),
    "time": ({"time_channels": HUGE}, "'time_channels': found 1000000000"),
    "levels that do not agree": ({"down_block_types": ["DownBlock2D"]}, "down_block_types"),
}
REST = {
    "mi_estimator/config.json": [
        ({"channels": [HUGE]}, "'channels.0': found 1000000000"),
        ({"channels": [0, 0]}, "'channels.0': found 0"),
        ({"patch": HUGE}, "'patch': found 1000000000"),
        ({"critic": "joint"}, "does not fit its config.json"),
        ({"critic": "mlp", "patch": 512}, "does not fit its config.json"),
        ({"channels": [16384, 16384]}, "does not fit its config.json"),
    ],
    "classifier/config.json": [
        ({"layers": 10**6}, "'layers': found 1000000"),
        ({"groups": 3}, "channels: found 8, expected multiples of groups, 3"),
        ({"head_channels": 5}, "head_channels: found 5"),
        ({"size": HUGE}, "'size': found 1000000000"),
        ({"size": 4096}, "does not fit"),
        ({"channels": [16384, 16384]}, "does not fit"),
        ({"channels": []}, "'channels': found"),
    ],
    "scheduler/scheduler_config.json": [
        ({"num_train_timesteps": 10**8}, "cannot be used: 'num_train_timesteps': found 100000000"),
        ({"num_train_timesteps": float("inf")}, "a number that is not finite"),
        ({"beta_end": float("nan")}, "a number that is not finite"),
        ({"beta_start": float("inf")}, "a number that is not finite"),
        ({"beta_start": 0.5}, "beta_end: found 0.02, expected at least beta_start, 0.5"),
        ({"beta_start": []}, "'beta_start': found"),
        ({"trained_betas": [0.1]}, "'trained_betas': found"),
    ],
    "model_index.json": [
        ({"mpp": 0}, "'mpp': found 0; input should be greater than or equal to 0.05"),
        ({"mpp": -1}, "'mpp': found -1"),
        ({"mpp": 1e-300}, "'mpp': found 1e-300"),
        ({"mpp": float("inf")}, "a number that is not finite"),
        ({"mpp": float("nan")}, "a number that is not finite"),
        ({"tile": HUGE}, "'tile': found 1000000000; input should be less than or equal to 4096"),
        ({"tile": -1}, "'tile': found -1"),
    ],
}
CASES = [("unet/config.json", *case) for case in UNET.values()]
CASES += [(name, *case) for name, cases in REST.items() for case in cases]


@pytest.mark.parametrize(("name", "values", "told"), CASES)
def test_settings_of_no_network_are_refused_in_one_line_that_names_file_and_key(folder, name, values, told):
    change(without_digests(folder) / name, **values)
    with pytest.raises(CheckpointError, match=told) as refused:
        load_model(folder)
    assert str(folder / Path(name).parent) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"blocks": 10**6}, "'blocks': found 1000000"),
        ({"width": HUGE}, "'width': found 1000000000"),
        ({"width": 16384}, "does not fit its config.json"),
        ({"width": -1}, "'width': found -1"),
    ],
)
def test_a_generator_of_no_size_is_refused(tmp_path, values, told):
    save_generator_model(tmp_path / "gan", generator_model())
    change(without_digests(tmp_path / "gan") / "generator" / "config.json", **values)
    with pytest.raises(CheckpointError, match=told):
        load_any(tmp_path / "gan")


@pytest.mark.parametrize("part", PARTS)
def test_whole_numbers_as_weights_are_refused(folder, part):
    path = without_digests(folder) / part / WEIGHTS
    save_file({name: value.to(torch.int32) for name, value in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="is int32, expected float32"):
        load_model(folder)


def test_weights_of_double_precision_are_taken_as_single(folder):
    path = without_digests(folder) / "unet" / WEIGHTS
    expected = load_model(folder).score.unet.state_dict()
    save_file({name: value.double() for name, value in load_file(path).items()}, path)
    found = load_model(folder).score.unet.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


ENTRY = b'{"conv_in.bias":{"dtype":"F32","shape":%b,"data_offsets":[0,%d]}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**62) + b"{}",
        header(b"{" * 5000),
        header(b'{"a":' * 50_000),
        header(b"[]"),
        header(ENTRY % (b"[99999999999]", 399999999996)),
        header(ENTRY % (b"[-1]", 4)) + bytes(4),
        header(ENTRY % (b"[4611686018427387904, 4]", 0)),
        header(ENTRY % (b"[0, 4611686018427387904]", 0)),
        header(ENTRY.replace(b"F32", b"X99") % (b"[1]", 4)) + bytes(4),
    ],
)
def test_weights_with_an_absurd_header_are_refused(folder, content):
    (folder / "unet" / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        load_model(folder)
    assert str(folder / "unet" / WEIGHTS) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("asked", "told"), [("ki67", "Ki67"), ("KI-67", "Ki67"), ("fhl2", "FHL2")])
def test_a_misspelt_marker_names_the_one_that_is_meant(asked, told):
    with pytest.raises(ConfigError, match=f'did you mean "{told}"'):
        Card(name="a", markers=("Ki67", "FHL2")).check_marker(asked)


def test_a_misspelt_model_names_the_one_that_is_meant():
    with pytest.raises(CheckpointError, match=f'did you mean "{SHIPPED}"'):
        load_any("IHC-smal")


@pytest.mark.parametrize(("mpp", "markers"), [(30.0, ()), (0.0, ())])
def test_a_card_of_no_scale_is_refused_before_the_weights_are_read(score_run, tmp_path, mpp, markers, capsys):
    words = ["model", "assemble", score_run, tmp_path / "out", "--name", "a", "--mpp", mpp]
    assert command(*words) == 2
    assert "'mpp': found" in capsys.readouterr().err
    assert trained_as(score_run, None, markers, 1.0) == ((), 1.0)
    with pytest.raises(MiudiffError):
        load_model(tmp_path / "out")
