"""The data sets of the papers, with what the papers did to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType

from sfumato.data.augment import Augment
from sfumato.data.decode import Channels
from sfumato.data.splits import Fractions
from sfumato.errors import InputError, one_of

_CEM = (
    "Xia et al., Theoretical Insights in Model Inversion Robustness and Conditional Entropy Maximization for "
    "Collaborative Inference Systems, CVPR 2025"
)
_FACE_LAYOUT = (
    "a folder with your own copy, one subfolder of images per identity (ROOT/Aaron_Eckhart/1.jpg), "
    "or Parquet in the hub's layout"
)
_SIFTFUNNEL = "Information Sifting Funnel: Privacy-preserving Collaborative Inference Against Model Inversion Attacks"
_SSD = (
    "Stealthy Shield Defense: A Conditional Mutual Information-Based Approach against Black-Box Model Inversion Attacks"
)
_FACESCRUB = "Ng and Winkler, A data-driven approach to cleaning large face datasets, ICIP 2014"
_FACES = "Photographs of real people, gathered from the web; given out for research only and not redistributed."


@dataclass(frozen=True)
class Preset:
    """A data set by name.

    Args:
        name: What :func:`~sfumato.data.load` takes.
        title: What it is, for people.
        image_size: Side of the square images, in pixels.
        channels: 1 (gray) or 3 (RGB).
        hub_id: ``owner/name`` on the Hugging Face hub; ``None`` where it is not there.
        layout: What one's own copy has to look like, where there is no download.
        config_name: The hub's configuration.
        image_column: The hub's name of the image column.
        label_column: The hub's name of the label column.
        train_splits: The splits joined for train; ``None`` where there are none.
        test_splits: The splits joined for test; empty where test is cut out of train.
        top_classes: Keep only so many classes, those with the most images.
        mean: Of each channel in [0, 1], for normalization; ``None`` where the paper gives none.
        std: Standard deviation, likewise.
        augment: What the paper does to training images, and what ``training.augment: preset`` does; ``None`` where it
            is not known to us.
        fractions: The paper's division, as far as it has one.
        citation: Who made the data set and, after a semicolon, whose use of it this preset follows.
        license_note: Under what terms it can be had.
        note: What one should know before comparing figures.
    """

    name: str
    title: str
    image_size: int
    channels: Channels
    citation: str
    license_note: str
    hub_id: str | None = None
    layout: str | None = None
    config_name: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_splits: tuple[str, ...] | None = None
    test_splits: tuple[str, ...] | None = None
    top_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: Augment | None = None
    fractions: Fractions = field(default_factory=Fractions)
    note: str = ""


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: There is none; suggests the nearest.
    """
    if name not in PRESETS:
        raise InputError("preset", name, one_of(PRESETS, name))
    return PRESETS[name]


def normalization(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of each channel in [0, 1] that a preset's paper uses.

    They are for the preset's own number of channels, whatever ``load`` was asked for.

    Args:
        source: What was given to :func:`~sfumato.data.load`.

    Returns:
        ``None`` for a source that is no preset, or whose paper gives none.
    """
    preset = PRESETS.get(source)
    if preset is None or preset.mean is None or preset.std is None:
        return None
    return preset.mean, preset.std


_CIFAR_CITATION = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
_CIFAR_LICENSE = "No formal license; the authors ask to be cited."

_ALL = (
    Preset(
        name="digits",
        title="handwritten digits that come with scikit-learn, 8x8 enlarged to 32x32; nothing to download",
        image_size=32,
        channels=1,
        augment=Augment(crop_padding=4, flip=False, rotation=0.0),
        citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
        license_note="CC BY 4.0",
        note="A mirrored digit is no digit, so nothing is flipped.",
    ),
    Preset(
        name="cifar10",
        title="CIFAR-10, 50,000 + 10,000 images of 10 classes",
        hub_id="uoft-cs/cifar10",
        config_name="plain_text",
        image_column="img",
        label_column="label",
        train_splits=("train",),
        test_splits=("test",),
        image_size=32,
        channels=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        augment=Augment(crop_padding=4, flip=True, rotation=15.0),
        citation=f"{_CIFAR_CITATION}; {_CEM}",
        license_note=_CIFAR_LICENSE,
    ),
    Preset(
        name="cifar10-siftfunnel",
        title="CIFAR-10 as SiftFunnel uses it: 64x64, train and test pooled and divided anew",
        hub_id="uoft-cs/cifar10",
        config_name="plain_text",
        image_column="img",
        label_column="label",
        train_splits=("train", "test"),
        test_splits=(),
        image_size=64,
        channels=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        fractions=Fractions(validation=0.066, auxiliary=0.167, test=0.167),
        citation=f"{_CIFAR_CITATION}; {_SIFTFUNNEL}",
        license_note=_CIFAR_LICENSE,
        note="The paper trains on 66.6 %; here the validation images are a tenth of these.",
    ),
    Preset(
        name="cifar100",
        title="CIFAR-100, 50,000 + 10,000 images of 100 classes",
        hub_id="uoft-cs/cifar100",
        config_name="cifar100",
        image_column="img",
        label_column="fine_label",
        train_splits=("train",),
        test_splits=("test",),
        image_size=32,
        channels=3,
        mean=(0.50708, 0.48655, 0.44092),
        std=(0.26733, 0.25644, 0.27615),
        augment=Augment(crop_padding=4, flip=True, rotation=15.0),
        citation=f"{_CIFAR_CITATION}; {_CEM}",
        license_note=_CIFAR_LICENSE,
    ),
    Preset(
        name="tiny-imagenet",
        title="Tiny ImageNet, 100,000 + 10,000 images of 200 classes",
        hub_id="zh-plus/tiny-imagenet",
        config_name="default",
        image_column="image",
        label_column="label",
        train_splits=("train",),
        test_splits=("valid",),
        image_size=64,
        channels=3,
        mean=(0.5141, 0.5775, 0.3985),
        std=(0.2927, 0.2570, 0.1434),
        augment=Augment(crop_padding=0, flip=True, rotation=15.0),
        citation=f"Le and Yang, Tiny ImageNet Visual Recognition Challenge, 2015; {_CEM}",
        license_note="ImageNet's terms: non-commercial research and education.",
        note=(
            "The validation images serve as test, as those of test have no labels. Mean and std are those of "
            "the CEM program, kept to reproduce it; they look odd for photographs (a std of 0.14 in blue), "
            "so measure your own for anything else. Some images are gray and become RGB."
        ),
    ),
    Preset(
        name="celeba",
        title="CelebA, the 1,000 identities with the most images",
        hub_id="flwrlabs/celeba",
        config_name="img_align+identity+attr",
        image_column="image",
        label_column="celeb_id",
        train_splits=("train", "valid", "test"),
        test_splits=(),
        top_classes=1000,
        image_size=64,
        channels=3,
        fractions=Fractions(validation=0.1, auxiliary=0.0, test=0.1),
        citation=f"Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015; {_SSD}",
        license_note=f"{_FACES} Non-commercial research only.",
        note=(
            "The official splits share no identity, so they are joined and each identity is "
            "divided 80/10/10. The 178x218 images are resized to 64 across and cut to the center."
        ),
    ),
    Preset(
        name="facescrub",
        title="FaceScrub, 530 identities at 64x64 (SiftFunnel, SSD)",
        layout=_FACE_LAYOUT,
        image_size=64,
        channels=3,
        fractions=Fractions(validation=0.08, auxiliary=0.0, test=0.2),
        citation=f"{_FACESCRUB}; {_SIFTFUNNEL}; {_SSD}",
        license_note=_FACES,
        note=(
            "SiftFunnel trains on 80 %; here the validation images are a tenth of these. SSD divides 80/10/10: "
            "validation 0.1, test 0.1."
        ),
    ),
    Preset(
        name="facescrub-cem",
        title="FaceScrub, 530 identities at 48x48 (CEM)",
        layout=_FACE_LAYOUT,
        image_size=48,
        channels=3,
        mean=(0.5708, 0.5905, 0.4272),
        std=(0.2058, 0.2275, 0.2098),
        augment=Augment(crop_padding=0, flip=True, rotation=15.0),
        citation=f"{_FACESCRUB}; {_CEM}",
        license_note=_FACES,
    ),
    Preset(
        name="chest-xray",
        title="pediatric chest X-rays, 5,232 + 624 images, normal or pneumonia",
        hub_id="hf-vision/chest-xray-pneumonia",
        config_name="default",
        image_column="image",
        label_column="label",
        train_splits=("train", "validation"),
        test_splits=("test",),
        image_size=64,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
        citation="Kermany et al., Identifying Medical Diagnoses by Image-Based Deep Learning, Cell 2018",
        license_note="CC BY 4.0",
        note=(
            "Not the set of SiftFunnel (that is chest-xray-sait): other patients, two classes. The official "
            "validation split of 16 images is too small to select by and is merged into train."
        ),
    ),
    Preset(
        name="chest-xray-sait",
        title="chest X-rays, 9,208 images: COVID-19, normal, viral and bacterial pneumonia (SiftFunnel)",
        layout=(
            "a folder with your own copy (Mendeley Data, doi:10.17632/9xkhgts2s6), one subfolder per class: "
            "COVID-19 (1,281 images), Normal (3,270), Pneumonia-Viral (1,656), Pneumonia-Bacterial (3,001)"
        ),
        image_size=64,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
        fractions=Fractions(validation=0.066, auxiliary=0.167, test=0.167),
        citation=(
            "Sait et al., Curated Dataset for COVID-19 Posterior-Anterior Chest Radiography Images (X-Rays), "
            f"Mendeley Data, 2020; {_SIFTFUNNEL}"
        ),
        license_note="See the page of the data set.",
        note="The paper trains on 66.6 %; here the validation images are a tenth of these.",
    ),
)

PRESETS: MappingProxyType[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
"""All presets by name."""
