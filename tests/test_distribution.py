"""Distances of sets against closed forms and plain loops, features from files, encoders that are refused."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from miudiff.checkpoints import save_weights
from miudiff.errors import CheckpointError, DataError
from miudiff.evaluation import distribution
from miudiff.evaluation.distribution import frechet_distance, kernel_distance, read_features
from miudiff.evaluation.encoders import load_encoder
from miudiff.images import write_image

CPU = torch.device("cpu")


@pytest.fixture
def random():
    return np.random.default_rng(5)


def whitened(random, count, width):
    """Features whose mean is exactly 0 and whose covariance is exactly the identity."""
    features = random.normal(size=(count, width))
    features -= features.mean(axis=0)
    root = np.linalg.cholesky(np.cov(features.T))
    return features @ np.linalg.inv(root).T


def test_the_frechet_distance_of_scaled_and_shifted_features_is_its_closed_form(random):
    features = whitened(random, 50, 6)
    scale, shift = np.array([1, 2, 0.5, 3, 1, 1.5]), np.arange(6.0)
    expected = (shift**2).sum() + ((scale - 1) ** 2).sum()
    assert frechet_distance(features * scale + shift, features) == pytest.approx(expected)
    assert frechet_distance(features, features * scale + shift) == pytest.approx(expected)


def test_the_frechet_distance_is_that_of_the_matrix_root(random):
    first, second = random.normal(size=(40, 8)), random.normal(size=(60, 8)) @ random.normal(size=(8, 8)) + 1
    covariances = np.cov(first.T), np.cov(second.T)
    difference = first.mean(axis=0) - second.mean(axis=0)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_even_with_fewer_images_than_features(random):
    few = random.normal(size=(5, 64))
    assert frechet_distance(few, few[::-1]) == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_is_that_of_plain_loops(random):
    first, second = random.normal(size=(5, 3)), random.normal(size=(4, 3)) + 0.5

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    def pairs(features):
        return [kernel(x, y) for i, x in enumerate(features) for j, y in enumerate(features) if i != j]

    between = [kernel(x, y) for x in first for y in second]
    expected = np.mean(pairs(first)) + np.mean(pairs(second)) - 2 * np.mean(between)
    assert kernel_distance(first, second).mean == pytest.approx(expected)
    assert kernel_distance(first, second).std == 0


def test_the_kernel_distance_of_two_sets_of_one_kind_is_0_on_average(random):
    found = [kernel_distance(*random.normal(size=(2, 30, 4))).mean for _ in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5
    assert min(found) < 0


def test_a_small_set_beside_a_large_one_is_told_by_subsets_of_the_large_one(random, monkeypatch):
    seen = []
    squared = distribution._squared_mmd
    monkeypatch.setattr(distribution, "_squared_mmd", lambda *sets: seen.append(sets) or squared(*sets))
    first, second = random.normal(size=(30, 3)), random.normal(size=(5000, 3))
    assert abs(kernel_distance(first, second).mean) < 1
    assert {tuple(map(len, sets)) for sets in seen} == {(30, 1000)}


def test_large_sets_are_told_by_subsets_that_the_seed_fixes(random):
    first, second = random.normal(size=(1010, 3)), random.normal(size=(1020, 3)) + 0.2
    found = kernel_distance(first, second, seed=1)
    assert found == kernel_distance(first, second, seed=1) != kernel_distance(first, second, seed=2)
    assert found.std > 0
    assert found.mean == pytest.approx(kernel_distance(first[:1000], second[:1000]).mean, rel=0.5)


def test_features_that_are_no_table_are_a_programmers_mistake():
    with pytest.raises(ValueError, match="at least 2 images"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))


def test_features_are_read_from_both_kinds_of_file(tmp_path, random):
    features = random.normal(size=(4, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", features)
    np.savez(tmp_path / "a.npz", anything=features)
    for name in ("a.npy", "a.npz"):
        assert (read_features(tmp_path / name) == features).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(4), "shape \\(4,\\)"),
        (np.zeros((1, 4)), "at least 2 images"),
        (np.full((2, 2), np.nan), "NaN"),
        (np.array([["a", "b"], ["c", "d"]]), "expected numbers"),
        (np.array([[{}, {}], [{}, {}]]), "no array of numbers"),
    ],
)
def test_features_of_another_form_are_refused(tmp_path, content, message):
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read_features(tmp_path / "a.npy")


def test_a_file_that_holds_no_features_is_refused(tmp_path):
    (tmp_path / "a.npy").write_text("text")
    np.savez(tmp_path / "b.npz", one=np.zeros((2, 2)), two=np.zeros((2, 2)))
    for name, message in [("a.npy", "no array"), ("b.npz", "one, two"), ("none.npy", "No such file")]:
        with pytest.raises(DataError, match=message):
            read_features(tmp_path / name)


def a_transformer(width=64, patch=8, grid=2):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "cls_token": (1, 1, width),
        "reg_token": (1, 2, width),
        "pos_embed": (1, grid**2, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "blocks.0.norm1.weight": (width,),
        "blocks.0.norm1.bias": (width,),
        "blocks.0.norm2.weight": (width,),
        "blocks.0.norm2.bias": (width,),
        "blocks.0.attn.qkv.weight": (3 * width, width),
        "blocks.0.attn.proj.weight": (width, width),
        "blocks.0.mlp.fc1.weight": (2 * 96, width),  # SwiGLU
        "blocks.0.mlp.fc2.weight": (width, 96),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def files(tmp_path, random):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        write_image(path, random.integers(0, 256, (48, 56, 3), dtype=np.uint8))
    return paths


def test_an_encoder_reads_every_form_of_its_weights_alike(tmp_path, files):
    weights = a_transformer()
    save_weights(tmp_path / "a.safetensors", weights)
    torch.save(weights, tmp_path / "a.pth")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "b.bin")
    found = [
        load_encoder(tmp_path / name, CPU).features(files, print)
        for name in ("a.safetensors", "a.pth", "b.bin")
    ]
    assert found[0].shape == (3, 64)
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


def test_an_images_features_do_not_hang_on_the_others(tmp_path, files):
    save_weights(tmp_path / "a.safetensors", a_transformer())
    encoder = load_encoder(tmp_path / "a.safetensors", CPU)
    assert (encoder.features(files, print)[1:2] == encoder.features(files[1:2], print)).all()


def test_a_configuration_beside_the_weights_states_the_heads(tmp_path, files):
    save_weights(tmp_path / "a.safetensors", a_transformer())
    of_one = load_encoder(tmp_path / "a.safetensors", CPU).features(files, print)
    (tmp_path / "config.json").write_text('{"model_args": {"num_heads": 4}}')
    assert np.abs(load_encoder(tmp_path / "a.safetensors", CPU).features(files, print) - of_one).max() > 1e-3
    (tmp_path / "config.json").write_text('{"num_heads": 7}')
    with pytest.raises(CheckpointError, match="7 heads of a width of 64"):
        load_encoder(tmp_path / "a.safetensors", CPU)


def test_weights_that_are_no_encoders_are_refused_in_one_line(tmp_path):
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.pth")
    lacking = a_transformer()
    del lacking["blocks.0.mlp.fc2.weight"]
    save_weights(tmp_path / "lacking.safetensors", lacking)
    for name, message in [
        ("other.pth", "weights of another network"),
        ("numbers.pth", "more than named tensors"),
        ("lacking.safetensors", "lacks 'blocks.0.mlp.fc2.weight'"),
        ("none.pth", "no such file"),
    ]:
        with pytest.raises(CheckpointError, match=message) as refused:
            load_encoder(tmp_path / name, CPU)
        assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")  # torch's own, about making and seeing the program
def test_an_encoder_that_is_a_program_is_not_run(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match="cannot be loaded as plain tensors"):
        load_encoder(tmp_path / "program.pt", CPU)
