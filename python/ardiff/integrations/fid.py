"""From samples to a FID: images in a folder, and torch-fidelity's measure of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_KINDS = (".png", ".jpg", ".jpeg")


def save_images(images: Tensor, folder: str | Path, first: int = 0) -> list[Path]:
    """Writes `[n, 3, H, W]` images in [-1, 1] (clipped) as ``<folder>/000000.png`` and on.

    Args:
        folder: made if need be.
        first: number of the first file; later batches go on from it.

    Raises:
        ValueError: images of another shape, or NaN.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [n, 3, H, W], got {list(images.shape)}")
    if bool(images.isnan().any()):
        raise ValueError("images hold NaN")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    paths = [folder / f"{first + i:06d}.png" for i in range(len(pixels))]
    for path, picture in zip(paths, pixels.cpu().numpy(), strict=True):
        Image.fromarray(picture).save(path)
    return paths


def frechet_distance(samples: str | Path, reference: str | Path, **options: Any) -> float:
    """The FID (Heusel et al. 2017) of a folder of images, by torch-fidelity (extra ``fid``).

    Args:
        samples: folder of PNG or JPEG images, its subfolders too.
        reference: another such folder, or an ``.npz`` file with `mu` `[f]` and `sigma` `[f, f]`,
            the moments of the same features, as published ones of ImageNet hold.
        options: of `torch_fidelity.calculate_metrics` (batch_size, feature_extractor, cuda, ...).

    Raises:
        ImportError: without torch-fidelity.
        ValueError: a folder of fewer than two images, a file without these moments.
    """
    folders = [Path(samples)] + ([] if Path(reference).suffix == ".npz" else [Path(reference)])
    for folder in folders:
        count = sum(path.suffix.lower() in _KINDS for path in folder.rglob("*"))
        if count < 2:
            raise ValueError(f"{folder}: expected a folder of two images or more, found {count}")
    try:
        import torch_fidelity
    except ImportError as error:
        raise ImportError(
            f"a FID needs torch-fidelity ({error}): pip install 'torch-fidelity>=0.4'"
        ) from None
    options = {
        "cuda": torch.cuda.is_available(), "verbose": False, "samples_find_deep": True, **options,
    }  # fmt: skip
    if len(folders) == 2:
        found = torch_fidelity.calculate_metrics(
            input1=str(samples), input2=str(reference), fid=True, **options
        )
        return float(found["frechet_inception_distance"])
    return _to_moments(samples, Path(reference), options)


def _to_moments(samples: str | Path, reference: Path, options: dict[str, Any]) -> float:
    from torch_fidelity import metric_fid, utils

    options = {**options, "input1": str(samples), "fid": True}
    theirs = _moments(reference)
    layer = utils.resolve_feature_layer_for_metric("fid", **options)
    name = utils.resolve_feature_extractor(**options)
    extractor = utils.create_feature_extractor(name, [layer], **options)
    ours = metric_fid.fid_input_id_to_statistics(1, extractor, layer, **options)
    size = len(ours["mu"])
    if theirs["mu"].shape != (size,) or theirs["sigma"].shape != (size, size):
        raise ValueError(f"{reference}: expected moments of the {size} features of {name}")
    theirs = {key: value.astype(ours[key].dtype) for key, value in theirs.items()}
    found = metric_fid.fid_statistics_to_metric(ours, theirs, False)
    return float(found["frechet_inception_distance"])


def _moments(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {"mu": file["mu"], "sigma": file["sigma"]}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path}: expected an .npz file with mu and sigma ({error})") from None
