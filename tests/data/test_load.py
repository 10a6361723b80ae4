from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sfumato import data
from sfumato.data import PRESETS, Augment, Fractions, find_preset, load, load_source, normalization
from sfumato.errors import InputError


def test_digits_are_the_default() -> None:
    splits = load()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1258, 180, 359]
    assert splits.train.image_shape == (1, 32, 32)
    assert splits.train.classes == tuple("0123456789")
    assert splits.auxiliary is None
    other = load("digits", seed=1)
    assert other.test.checksum() != splits.test.checksum()
    assert load(seed=0).test.checksum() == splits.test.checksum()


def test_digits_in_their_own_size_are_scikit_learns() -> None:
    raw = load_source("digits", image_size=8, channels=3)
    digits = load_digits()
    assert raw.train.labels.tolist() == digits.target.tolist()
    expected = np.rint(digits.images * 255 / 16)
    assert np.array_equal(raw.train.images.numpy(), np.repeat(expected[:, None], 3, axis=1))


def test_a_size_may_be_a_list() -> None:
    assert load_source("digits", image_size=[8, 10]).train.image_shape == (1, 8, 10)  # type: ignore[arg-type]


def test_fractions_and_limits_of_load() -> None:
    splits = load(validation=0.2, auxiliary=0.1, test=0.3, train_limit=200, test_limit=20)
    assert splits.auxiliary is not None
    assert [len(p) for p in (splits.train, splits.validation, splits.auxiliary, splits.test)] == [
        80,
        40,
        20,
        20,
    ]


def test_a_preset_with_ones_own_parquet(cifar_small: Path, tmp_path: Path) -> None:
    splits = load("cifar10", path=cifar_small, cache_dir=tmp_path, train_limit=1000, test_limit=100)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [900, 100, 100]
    assert splits.train.name == "cifar10 train"
    assert splits.test.labels.bincount().tolist() == [10] * 10
    with pytest.raises(InputError, match=r"test_splits=\(\)"):
        load("cifar10", path=cifar_small, cache_dir=tmp_path, test=0.1)


@pytest.mark.slow
def test_siftfunnels_thirds(cifar_small: Path, tmp_path: Path) -> None:
    splits = load("cifar10-siftfunnel", path=cifar_small, cache_dir=tmp_path)
    assert splits.auxiliary is not None
    sizes = [len(p) for p in (splits.train, splits.validation, splits.test, splits.auxiliary)]
    assert sizes == [1499, 165, 418, 418]
    assert splits.train.image_shape == (3, 64, 64)


def test_a_preset_with_a_folder_of_images(image_folder: Path) -> None:
    raw = load_source("facescrub-cem", path=image_folder, cache=False)
    assert raw.train.image_shape == (3, 48, 48)
    assert raw.train.name == "facescrub-cem train"
    gray = load_source("chest-xray-sait", path=image_folder, cache=False)
    assert gray.train.image_shape == (1, 64, 64)
    flat = load_source("cifar10", path=image_folder, cache=False)
    assert (len(flat.train), flat.test) == (15, None)


def test_a_presets_splits_in_a_folder_of_images(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    root.mkdir()
    image_folder.rename(root / "train")
    with pytest.raises(InputError, match="valid"):
        load_source("tiny-imagenet", path=root, cache=False)
    assert len(load_source("tiny-imagenet", path=root, test_splits=(), cache=False).train) == 15


def test_a_copy_may_have_the_hubs_config_folder(tmp_path: Path, write_parquet: Any) -> None:
    for split, n in (("train", 4), ("test", 2)):
        write_parquet(tmp_path / "plain_text" / f"{split}.parquet", list(range(n)), image="img")
    raw = load_source("cifar10", path=tmp_path, cache=False)
    assert (len(raw.train), len(raw.test or ())) == (4, 2)


@pytest.mark.parametrize("name", ["facescrub", "facescrub-cem", "chest-xray-sait"])
def test_presets_without_download_say_how_to_lay_out_a_copy(name: str) -> None:
    with pytest.raises(InputError, match=r"your own copy.*one subfolder") as error:
        load(name)
    assert error.value.field == "path"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "arguments", "field", "accepted"),
    [
        ("cifar01", {}, "source", "did you mean cifar10"),
        ("./absent", {}, "source", "an existing folder"),
        ("cifar10", {"path": "absent"}, "path", "an existing folder"),
        ("facescrub", {"path": "absent"}, "path", "one subfolder"),
        ("owner/name", {"path": "."}, "path", "only a preset"),
        ("digits", {"image_column": "x"}, "image_column", "nothing, as digits comes as it is"),
        ("digits", {"revision": "x"}, "revision", "nothing"),
        ("digits", {"image_size": 0}, "image_size", "1 pixel"),
        ("digits", {"image_size": (8, 8, 8)}, "image_size", "a height and a width"),
        ("digits", {"channels": 2}, "channels", "1 (gray)"),
        ("digits", {"top_classes": 0}, "top_classes", "1 to 10"),
        ("digits", {"validation": 0.0}, "validation", "at least one"),
    ],
)
def test_bad_arguments(source: str, arguments: dict[str, Any], field: str, accepted: str) -> None:
    with pytest.raises(InputError) as error:
        load(source, **arguments)
    assert error.value.field == field
    assert accepted in error.value.accepted


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    file = tmp_path / "images.zip"
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"a folder or a \.parquet file"):
        load(str(file))


def test_what_is_wrong_with_a_presets_copy_is_wrong_with_the_path(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "owl").mkdir()
    (tmp_path / "copy.zip").write_bytes(b"")
    for copy, accepted in ((image_folder, "at least one image"), (tmp_path / "copy.zip", "a .parquet file")):
        for source, arguments, field in (("facescrub", {"path": copy}, "path"), (str(copy), {}, "source")):
            with pytest.raises(InputError) as error:
                load_source(source, cache=False, **arguments)
            assert error.value.field == field
            assert accepted in error.value.accepted


def test_a_single_file_has_no_splits(tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "all.parquet", [0, 1])
    with pytest.raises(InputError, match="train_splits"):
        load_source(str(tmp_path / "all.parquet"), train_splits="train", cache=False)


def test_find_preset_and_normalization() -> None:
    assert find_preset("cifar100").hub_id == "uoft-cs/cifar100"
    with pytest.raises(InputError, match="did you mean facescrub"):
        find_preset("facescrup")
    assert normalization("cifar10") == ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
    assert normalization("digits") is None
    assert normalization("owner/name") is None


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name: str) -> None:
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.title
    assert preset.citation
    assert preset.license_note
    assert (preset.hub_id is None) or preset.layout is None
    assert (preset.mean is None) == (preset.std is None)
    for values in (preset.mean, preset.std):
        assert values is None or len(values) == preset.channels
    if preset.hub_id:
        assert preset.train_splits
        assert preset.test_splits is not None
        assert preset.image_column
        assert preset.label_column
        assert preset.config_name
    if preset.augment:
        size = (2, preset.channels, preset.image_size, preset.image_size)
        assert preset.augment(torch.zeros(size, dtype=torch.uint8), torch.Generator()).shape == size


def test_splits_carry_what_the_paper_does_to_training_images(tmp_path: Path) -> None:
    assert load("digits").augment == PRESETS["digits"].augment == Augment(4, False, 0.0)
    for label in ("a", "b"):
        (tmp_path / "own" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (4, 4), i).save(tmp_path / "own" / label / f"{i}.png")
    assert load(str(tmp_path / "own"), cache=False).augment is None


def test_the_papers_figures() -> None:
    assert PRESETS["cifar10"].augment == Augment(4, True, 15.0)
    assert PRESETS["tiny-imagenet"].augment == Augment(0, True, 15.0)
    assert PRESETS["celeba"].fractions == Fractions(validation=0.1, auxiliary=0.0, test=0.1)
    assert PRESETS["celeba"].top_classes == 1000
    sift = PRESETS["cifar10-siftfunnel"].fractions
    assert sift.auxiliary == sift.test == 0.167
    assert sift.validation + (1 - sift.validation - sift.auxiliary - sift.test) == pytest.approx(0.666)


def test_exported_names_are_frozen() -> None:
    assert data.__all__ == [
        "PRESETS",
        "Augment",
        "Batches",
        "Fractions",
        "ImageSet",
        "Preset",
        "RawSplits",
        "Splits",
        "find_preset",
        "load",
        "load_source",
        "make_splits",
        "normalization",
    ]
    assert all(hasattr(data, name) for name in data.__all__)
