from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sfumato.data import load_source
from sfumato.data.naming import choose_splits, find_shards
from sfumato.errors import InputError, InputErrors


def class_label(names: list[str], column: str = "label") -> bytes:
    return json.dumps({"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}).encode()


def read(path: Path, **arguments: Any) -> Any:
    return load_source(str(path), cache=False, **arguments)


@pytest.mark.slow
def test_cifar10_small_equals_the_datasets_package(cifar_small: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    raw = read(cifar_small)
    assert (len(raw.train), len(raw.test)) == (2000, 500)
    assert raw.train.classes[:2] == ("airplane", "automobile")
    assert raw.train.name == "cifar10-small train"
    assert raw.train.image_shape == (3, 32, 32)
    files = {"test": str(cifar_small / "test-00000-of-00001.parquet")}
    reference = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))["test"]
    assert raw.test.labels.tolist() == reference["label"]
    for i in (0, 77, 499):
        assert np.array_equal(raw.test.images[i].permute(1, 2, 0).numpy(), np.asarray(reference[i]["image"]))


def test_what_the_datasets_package_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
    labels = [0, 2, 1, 2, 0, 1, 2]
    names = ["ant", "bee", "cat"]
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=names)})
    rows = {"img": [Image.fromarray(p) for p in pixels], "fine_label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    raw = read(tmp_path, label_column="fine_label")
    assert raw.test is None
    assert raw.train.classes == tuple(names)
    assert raw.train.labels.tolist() == labels
    assert np.array_equal(raw.train.images.permute(0, 2, 3, 1).numpy(), pixels)


def test_shards_keep_their_order(tmp_path: Path, write_parquet: Any) -> None:
    pixels = []
    for i in range(3):
        labels = [i, i + 1]
        images = [np.full((4, 4, 3), 10 * i + j, np.uint8) for j in range(2)]
        pixels += write_parquet(tmp_path / f"train-{i:05}-of-00003.parquet", labels, images=images)
    raw = read(tmp_path)
    assert raw.train.labels.tolist() == [0, 1, 1, 2, 2, 3]
    assert np.array_equal(raw.train.images.permute(0, 2, 3, 1).numpy(), np.stack(pixels))


def test_classes_without_metadata_are_the_distinct_labels_sorted(tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "numbers" / "train.parquet", [70, 9, 70, 800])
    write_parquet(tmp_path / "numbers" / "test.parquet", [9, 33])
    numbers = read(tmp_path / "numbers")
    assert numbers.train.classes == ("9", "33", "70", "800")
    assert numbers.train.labels.tolist() == [2, 0, 2, 3]
    assert numbers.test.labels.tolist() == [0, 1]
    write_parquet(tmp_path / "words.parquet", ["dog", "ant", "dog"], plain=True)
    words = read(tmp_path / "words.parquet")
    assert words.train.classes == ("ant", "dog")
    assert words.train.labels.tolist() == [1, 0, 1]


def test_labels_in_a_dictionary_column(tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "train.parquet", pa.array(["b", "a", "b"]).dictionary_encode())
    assert read(tmp_path).train.classes == ("a", "b")


def test_top_classes_are_chosen_before_decoding(tmp_path: Path, write_parquet: Any, monkeypatch: Any) -> None:
    labels = [5, 7, 7, 9, 9, 9, 11, 5, 2]
    pixels = write_parquet(tmp_path / "train.parquet", labels)
    decoded = []
    from sfumato.data import decode

    original = decode.decode_one
    monkeypatch.setattr(decode, "decode_one", lambda e, form: decoded.append(e.name) or original(e, form))
    raw = read(tmp_path, top_classes=3)
    assert raw.train.classes == ("5", "7", "9")
    assert raw.train.labels.tolist() == [0, 1, 1, 2, 2, 2, 0]
    assert sorted(decoded) == [f"train.parquet row {i}" for i in (0, 1, 2, 3, 4, 5, 7)]
    assert np.array_equal(raw.train.images[-1].permute(1, 2, 0).numpy(), pixels[7])
    with pytest.raises(InputError, match="top_classes"):
        read(tmp_path, top_classes=6)


def test_size_and_channels(tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1])
    assert read(tmp_path, image_size=5, channels=1).train.image_shape == (1, 5, 5)
    assert read(tmp_path, image_size=(4, 6)).train.image_shape == (3, 4, 6)


def test_gray_train_and_colored_test_get_the_same_channels(tmp_path: Path, write_parquet: Any) -> None:
    gray = np.zeros((8, 8), np.uint8)
    write_parquet(tmp_path / "train.parquet", [0, 1], images=[gray, gray])
    write_parquet(tmp_path / "test.parquet", [1])
    raw = read(tmp_path)
    assert raw.train.image_shape == raw.test.image_shape == (3, 8, 8)


def test_splits_configs_and_columns_by_argument(tmp_path: Path, write_parquet: Any) -> None:
    for config, shift in (("small", 0), ("large", 10)):
        for split, n in (("train", 2), ("valid", 3), ("test", 4)):
            file = tmp_path / config / f"{split}-00000-of-00001.parquet"
            write_parquet(file, [shift + i for i in range(n)], image="photo", label="who")
    arguments = {"config_name": "large", "image_column": "photo", "label_column": "who"}
    raw = read(tmp_path, **arguments)
    assert (len(raw.train), len(raw.test)) == (2, 4)
    assert raw.train.classes[0] == "10"
    pooled = read(tmp_path, train_splits=("train", "valid"), test_splits=(), **arguments)
    assert (len(pooled.train), pooled.test) == (5, None)
    assert len(read(tmp_path, test_splits="valid", **arguments).test) == 3
    with pytest.raises(InputError, match=r"config_name.*one of large, small"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("field", "arguments", "accepted"),
    [
        ("image_column", {"image_column": "img"}, "train.parquet, which has image, label"),
        ("label_column", {"label_column": "fine_label"}, "image, label"),
        ("image_column", {"image_column": "label"}, "encoded images"),
        ("label_column", {"label_column": "image"}, "integers or strings"),
        ("train_splits", {"train_splits": "trian"}, "did you mean train"),
        ("config_name", {"config_name": "nope"}, "default"),
        ("revision", {"revision": "main"}, "nothing"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, write_parquet: Any, field: str, arguments: dict[str, str], accepted: str
) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1])
    with pytest.raises(InputError) as error:
        read(tmp_path, **arguments)
    assert error.value.field == field
    assert accepted in error.value.accepted


def test_both_columns_missing_are_told_at_once(tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1], image="photo", label="who")
    with pytest.raises(InputErrors) as error:
        read(tmp_path)
    told = "a column of train.parquet, which has photo, who"
    assert [(e.field, e.value, e.accepted) for e in error.value.errors] == [
        ("image_column", "image or img", told),
        ("label_column", "label or labels", told),
    ]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 3], ["a", "b", "c"], "3 in train.parquet row 2"),
        ([0, -1], ["a", "b"], "-1 in train.parquet row 1"),
        ([0, None], None, "no label in train.parquet row 1"),
        ([0.5, 1.0], None, "integers or strings"),
        (["a", "b"], ["a", "b"], "0 to 1"),
    ],
)
def test_bad_labels(
    tmp_path: Path, write_parquet: Any, labels: list[Any], names: list[str] | None, message: str
) -> None:
    write_parquet(tmp_path / "train.parquet", labels, metadata=class_label(names) if names else None)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path)
    assert error.value.field == "label_column"


def test_class_names_and_label_types_must_agree(tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1], metadata=class_label(["a", "b"]))
    write_parquet(tmp_path / "test.parquet", [0, 1], metadata=class_label(["b", "a"]))
    with pytest.raises(InputError, match="the same class names"):
        read(tmp_path)
    write_parquet(tmp_path / "train.parquet", [0, 1])
    write_parquet(tmp_path / "test.parquet", ["x", "y"])
    with pytest.raises(InputError, match="labels of one type"):
        read(tmp_path)


def test_bad_images_are_named_by_row(tmp_path: Path) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for row, message in (
        ({"bytes": b"x", "path": None}, "row 0"),
        ({"bytes": None, "path": "/etc"}, "no bytes in"),
    ):
        table = pa.table({"image": pa.array([row], kind), "label": [0]})
        pq.write_table(table, tmp_path / "train.parquet")
        with pytest.raises(InputError, match=message):
            read(tmp_path)


def test_damaged_files_are_named(tmp_path: Path, write_parquet: Any) -> None:
    file = tmp_path / "train.parquet"
    write_parquet(file, [0, 1])
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"train.parquet'; accepted: a whole Parquet file"):
        read(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"train.parquet"):
        read(file)


def test_an_empty_file_is_refused(tmp_path: Path, write_parquet: Any) -> None:
    table = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(InputError, match="at least one image"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "config", "found"),
    [
        (["train.parquet"], None, {"train": ("train.parquet",)}),
        (["data/test-00000-of-00001.parquet"], "default", {"test": ("data/test-00000-of-00001.parquet",)}),
        (
            ["x/train/0001.parquet", "x/train/0000.parquet"],
            "x",
            {"train": ("x/train/0000.parquet", "x/train/0001.parquet")},
        ),
        (
            ["default/valid/0.parquet", "README.md", "-.parquet"],
            None,
            {"valid": ("default/valid/0.parquet",)},
        ),
    ],
)
def test_find_shards(files: list[str], config: str | None, found: dict[str, tuple[str, ...]]) -> None:
    assert find_shards(files, config) == found


def test_find_shards_refuses_nothing_and_half_a_download() -> None:
    with pytest.raises(InputError, match="no Parquet file"):
        find_shards(["a.png"])
    with pytest.raises(InputError, match="all 2 of them"):
        find_shards(["train-00001-of-00002.parquet"])


def test_choose_splits() -> None:
    assert choose_splits(["all"], None, None) == (("all",), ())
    assert choose_splits(["train", "valid"], None, None) == (("train",), ("valid",))
    assert choose_splits(["train", "validation", "test"], None, None) == (("train",), ("test",))
    assert choose_splits(["a", "b"], ["b", "a"], None) == (("b", "a"), ())
    for arguments, field in [
        ((None, None), "train_splits"),
        (([], None), "train_splits"),
        ((["a"], ["a"]), "test_splits"),
    ]:
        with pytest.raises(InputError) as error:
            choose_splits(["a", "b"], *arguments)
        assert error.value.field == field


def test_labels_are_int64(tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1], metadata=class_label(["a", "b"]))
    assert read(tmp_path).train.labels.dtype == torch.int64


def test_an_image_marked_as_unlabeled_is_refused(tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1, -1])
    with pytest.raises(InputError, match=r"label_column label: got -1; accepted: labels of 0 or more"):
        read(tmp_path)
