"""FID's Inception with random weights against torch-fidelity's, and what other files are told."""

from __future__ import annotations

import pytest
import torch

from flashbulb.distill.metrics.frechet import frechet_distance
from flashbulb.distill.metrics.inception import Inception, resize, shapes, to_bytes


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights that keep the activations of a hundred layers in range."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in shapes().items():
        if name.endswith("conv.weight"):
            fan_in = shape[1] * shape[2] * shape[3]
            found[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        else:
            found[name] = torch.rand(shape, generator=generator) + (0.5 if "mean" not in name else -0.5)
    return found


@pytest.fixture(scope="module")
def published(fidelity, weights, tmp_path_factory):
    """torch-fidelity's network with the same weights, read from a file as it reads its own."""
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    fc = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    counts = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for name in weights
        if name.endswith("running_mean")
    }
    torch.save(weights | fc | counts, file)
    network = fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    return network("test", ["2048"], feature_extractor_weights_path=str(file)), file


def test_its_features_are_torch_fidelitys(published):
    network, file = published
    pictures = torch.rand((3, 3, 48, 40), generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        expected = network(to_bytes(pictures))[0]
    found = Inception.open(file)(pictures)
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_the_resize_is_tensorflows(fidelity):
    theirs = fidelity.feature_extractor_inceptionv3.interpolate_bilinear_2d_like_tensorflow1x
    for size in ((64, 64), (299, 299), (512, 300)):
        x = torch.rand((1, 2, *size), generator=torch.Generator().manual_seed(2)) * 255
        assert torch.allclose(resize(x, 299), theirs(x, size=(299, 299), align_corners=False), atol=1e-2)


def test_pictures_are_rounded_to_bytes():
    values = torch.tensor([-1.2, -1, -0.9999, 0, 0.9999, 1, 1.2])
    assert to_bytes(values).tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_safetensors_hold_the_same(weights, tmp_path):
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "inception.safetensors")
    read = Inception.open(tmp_path / "inception.safetensors").weights
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="which is none"):
        Inception.open(tmp_path / "nothing.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"Conv2d_1a_3x3.conv.weight of shape \(32, 3, 3, 3\), got nothing; 470 of 470"
    ):
        Inception.open(tmp_path / "other.pth")
    torch.save(frechet_distance, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        Inception.open(tmp_path / "code.pth")
