from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.data import load_source
from sfumato.errors import InputError


def read(path: Path, **arguments: Any) -> Any:
    return load_source(str(path), cache=False, **arguments)


@pytest.fixture
def split_folder(image_folder: Path) -> Path:
    root = image_folder.parent / "split"
    for split in ("train", "test", "extra"):
        shutil.copytree(image_folder, root / split)
    (root / "test" / "cat" / "0.png").unlink()
    return root


def test_one_folder_a_class(image_folder: Path) -> None:
    (image_folder / "cat" / "Thumbs.db").write_bytes(b"no image")
    (image_folder / "cat" / ".hidden.png").write_bytes(b"no image")
    (image_folder / ".cache").mkdir()
    raw = read(image_folder)
    assert raw.test is None
    assert raw.train.classes == ("cat", "dog", "eel")
    assert raw.train.name == "pets train"
    assert raw.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    dog_3 = np.asarray(Image.open(image_folder / "dog" / "3.png"))
    assert np.array_equal(raw.train.images[8].permute(1, 2, 0).numpy(), dog_3)


def test_one_folder_a_split(split_folder: Path) -> None:
    raw = read(split_folder)
    assert (len(raw.train), len(raw.test)) == (15, 14)
    pooled = read(split_folder, train_splits=["train", "extra"], test_splits=["test"])
    assert (len(pooled.train), len(pooled.test)) == (30, 14)
    assert len(read(split_folder, train_splits="extra", test_splits=()).train) == 15
    with pytest.raises(InputError, match="did you mean extra"):
        read(split_folder, train_splits="ectra")


def test_a_class_may_be_called_train(image_folder: Path) -> None:
    (image_folder / "cat").rename(image_folder / "train")
    assert read(image_folder).train.classes == ("dog", "eel", "train")


def test_subfolders_size_channels_and_top_classes(image_folder: Path) -> None:
    (image_folder / "eel" / "more").mkdir()
    Image.fromarray(np.zeros((20, 9, 3), np.uint8)).save(image_folder / "eel" / "more" / "x.JPEG")
    (image_folder / "dog" / "0.png").unlink()
    raw = read(image_folder, image_size=(6, 4), channels=1, top_classes=2)
    assert raw.train.classes == ("cat", "eel")
    assert raw.train.image_shape == (1, 6, 4)
    assert raw.train.labels.tolist() == [0] * 5 + [1] * 6


def test_empty_class_unknown_test_class_and_damaged_image_are_named(image_folder: Path, split_folder: Path) -> None:
    (split_folder / "test" / "owl").mkdir()
    with pytest.raises(InputError, match=r"split/test/owl.*a class that train has: cat, dog, eel"):
        read(split_folder)
    (image_folder / "dog" / "2.png").write_bytes((image_folder / "dog" / "1.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"pets/dog/2.png"):
        read(image_folder)
    (image_folder / "owl").mkdir()
    with pytest.raises(InputError, match=r"pets/owl.*at least one image in each class folder") as caught:
        read(image_folder)
    assert caught.value.field == "source"


def test_a_folder_without_classes_and_arguments_it_has_no_use_for(image_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="class folders of images"):
        read(empty)
    for field in ("image_column", "label_column", "config_name", "revision"):
        with pytest.raises(InputError, match="nothing") as error:
            read(image_folder, **{field: "x"})
        assert error.value.field == field
