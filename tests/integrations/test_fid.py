"""Images in a folder, and their FID by torch-fidelity with an extractor that needs no download."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ardiff.integrations.fid import frechet_distance, save_images
from tests.integrations._support.torchvision_stub import fidelity  # noqa: F401


def images(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(n, 3, 3, 1, generator=generator).repeat_interleave(4, 2)
    return colour.expand(-1, -1, -1, 12) * 1.2 - 0.6 + shift


def features(x: torch.Tensor) -> np.ndarray:
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round() / 255
    means = torch.cat([part.mean((2, 3)) for part in pixels.tensor_split(3, 2)], 1)
    return torch.cat([means, means**2], 1).double().numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mu - nu|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    between = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * between)


def test_pictures_are_the_images(tmp_path):
    x = images(3, 0)
    x[0, 0, 0, 0], x[0, 1, 0, 0] = 5.0, -5.0
    paths = save_images(x[:2], tmp_path / "a") + save_images(x[2:], tmp_path / "a", first=2)
    assert [path.name for path in paths] == ["000000.png", "000001.png", "000002.png"]
    read = np.stack([np.array(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)
    assert read[0, :2, 0, 0].tolist() == [255, 0]
    assert np.abs(read / 127.5 - 1 - x.clamp(-1, 1).numpy()).max() <= 1 / 255 + 1e-6
    with pytest.raises(ValueError, match=r"images must be \[n, 3, H, W\], got \[3, 12, 12\]"):
        save_images(x[0], tmp_path)
    with pytest.raises(ValueError, match="hold NaN"):
        save_images(x * torch.nan, tmp_path)


def test_the_distance_of_folders_and_of_moments(tmp_path, fidelity):  # noqa: F811
    ours, theirs = images(64, 1), images(80, 2, 0.2)
    save_images(ours, tmp_path / "ours" / "deep")
    save_images(theirs, tmp_path / "theirs")
    np.savez(
        tmp_path / "moments.npz", mu=features(theirs).mean(0),
        sigma=np.cov(features(theirs), rowvar=False),
    )  # fmt: skip
    expected = distance(features(ours), features(theirs))
    for reference in ("theirs", "moments.npz"):
        for options in ({}, {"feature_extractor": "tiny", "batch_size": 7}):
            found = frechet_distance(
                tmp_path / "ours", tmp_path / reference, save_cpu_ram=True, cache=False, **options
            )
            assert found == pytest.approx(expected, rel=1e-3)
    assert expected > 0.05
    same = frechet_distance(tmp_path / "ours", tmp_path / "ours", save_cpu_ram=True, cache=False)
    assert abs(same) < 1e-4


def test_what_is_missing_is_named(tmp_path, fidelity, monkeypatch):  # noqa: F811
    save_images(images(4, 1), tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: expected a folder of two images or more, found 0"):
        frechet_distance(tmp_path / "ours", tmp_path / "empty")
    np.savez(tmp_path / "other.npz", arr_0=np.ones(3))
    with pytest.raises(ValueError, match=r"other.npz: expected an .npz file with mu and sigma"):
        frechet_distance(tmp_path / "ours", tmp_path / "other.npz")
    np.savez(tmp_path / "wide.npz", mu=np.ones(3), sigma=np.ones((3, 3)))
    with pytest.raises(ValueError, match="wide.npz: expected moments of the 18 features of incept"):
        frechet_distance(tmp_path / "ours", tmp_path / "wide.npz", save_cpu_ram=True)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install 'torch-fidelity>=0\.4'"):
        frechet_distance(tmp_path / "ours", tmp_path / "ours")
