"""EGSDE's classifier: the learner's promises, its folder, and what is refused."""

import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from classifier_run import CONFIG, Squares, collate, run
from miudiff.checkpoints import find_states, load_tensors, save_weights
from miudiff.diffusion.classifier import NoisedClassifier, load_classifier, save_classifier
from miudiff.diffusion.classifier_learner import ClassifierConfig, ClassifierLearner
from miudiff.errors import CheckpointError, ConfigError
from test_training import _assert_same, _command, _environment
from tiny import CLASSIFIER, tiny_classifier


def learner(seed=0, steps=100, config=CONFIG):
    return ClassifierLearner(config, Accelerator(cpu=True), seed, steps)


def batch(step, count=4):
    return collate([Squares()[step * count + i] for i in range(count)])[0]


def weights(folder):
    return load_tensors(find_states(folder)[-1][1])["parts"]["model"]


def images(side=32):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_rate_falls_along_a_line_to_nothing():
    made = learner(steps=10)
    rates = []
    for step in (0, 5, 9):
        made.step(made.draw(batch(step)), step)
        rates.append(made.parts()["optimizer"].param_groups[0]["lr"])
    assert rates == pytest.approx([2e-3, 1e-3, 2e-4])
    assert made.parts()["optimizer"].param_groups[0]["weight_decay"] == 0.05


def test_one_step_is_cross_entropy_of_source_and_target_and_adamw_by_hand():
    made, by_hand, seen = learner(), learner(), {}
    made.model.register_forward_pre_hook(lambda _, inputs: seen.update(y=inputs[0], t=inputs[1]))
    logs = made.step(made.draw(batch(0)), 0)
    assert len(set(seen["t"].tolist())) > 4  # a level for each image
    clean = torch.cat([batch(0)["he"], batch(0)["ihc"]])
    signal = made.sde.signal[seen["t"]].view(-1, 1, 1, 1)
    noise = (seen["y"] - signal * clean) / made.sde.spread[seen["t"]].view(-1, 1, 1, 1)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)

    loss = F.cross_entropy(by_hand.model(seen["y"], seen["t"]), torch.tensor([0] * 4 + [1] * 4))
    assert float(logs["loss"]) == float(loss.detach())
    loss.backward()
    torch.optim.AdamW(by_hand.model.parameters(), lr=2e-3, weight_decay=0.05).step()
    _assert_same(dict(made.model.state_dict()), dict(by_hand.model.state_dict()))


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "parts", stop=3)
    run(tmp_path / "parts")
    _assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_two_processes_step_as_one_with_the_double_batch(tmp_path):
    run(tmp_path / "one", stop=3)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = Path(__file__).with_name("classifier_run.py")
    subprocess.run(
        _command(*launch, str(program), str(tmp_path / "two")),
        env=_environment(),
        check=True,
        timeout=240,
        capture_output=True,
    )
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    # As for the other learners: where a gradient is nearly 0 its rounding decides AdamW's first steps.
    differences = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert float((differences > 1e-5).float().mean()) < 1e-3
    assert float(differences.mean()) < 1e-6


def test_a_folder_written_and_read_back_gives_the_same(tmp_path):
    made = learner()
    made.step(made.draw(batch(0)), 0)
    made.export(tmp_path / "classifier")
    again = load_classifier(tmp_path / "classifier")
    y, t = images(), torch.tensor([3, 700])
    assert torch.equal(again(y, t), made.model.eval()(y, t))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_training_begins_with_other_weights_and_a_last_layer_of_its_own(tmp_path):
    made = learner(seed=1)
    made.export(tmp_path / "two")
    begun = learner(seed=2, config=CONFIG.model_copy(update={"init": tmp_path / "two"}))
    _assert_same(dict(made.model.state_dict()), dict(begun.model.state_dict()))

    many = NoisedClassifier(CLASSIFIER.model_copy(update={"classes": 5}))
    save_classifier(tmp_path / "five", many)
    begun = learner(seed=2, config=CONFIG.model_copy(update={"init": tmp_path / "five"}))
    assert torch.equal(begun.model.conv_in.weight, many.conv_in.weight)
    assert begun.model.pool.out.out_features == 2
    begun.step(begun.draw(batch(0)), 0)  # everything still learns
    assert not torch.equal(begun.model.conv_in.weight, many.conv_in.weight)

    other = CLASSIFIER.model_copy(update={"channels": (8, 8)})
    with pytest.raises(CheckpointError, match="does not fit classifier.network"):
        learner(config=ClassifierConfig(network=other, init=tmp_path / "two"))


def test_features_are_of_any_side_but_logits_of_the_trained_one():
    classifier = tiny_classifier()
    assert classifier.features(images(48), 5).shape == (2, 16, 24, 24)
    with pytest.raises(ConfigError, match="48 x 48 pixels, expected 32 x 32"):
        classifier(images(48), 5)
    each = classifier.features(images(), torch.tensor([5, 5]))
    assert torch.equal(each, classifier.features(images(), 5))


def test_a_folder_whose_parts_do_not_belong_together_is_refused(tmp_path):
    learner().export(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_weights(file, dict(list(tiny_classifier().state_dict().items())[1:]))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_text('{"chanels": [8]}')
    with pytest.raises(CheckpointError, match="did you mean 'channels'"):
        load_classifier(tmp_path)
    with pytest.raises(CheckpointError, match="absent"):
        load_classifier(tmp_path / "absent")
