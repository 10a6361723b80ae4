"""Backbones as named stages, the cut, decoder networks, and a critic.

>>> import torch
>>> from sfumato.models import build, split
>>> model = build("vgg11", 10, (3, 32, 32), generator=torch.Generator().manual_seed(0))
>>> split(model, at="conv2", image_shape=(3, 32, 32)).feature.shape
(128, 8, 8)
"""

from sfumato.models.backbone import Backbone, BackboneInfo, build
from sfumato.models.cnn import cnn
from sfumato.models.critic import Critic
from sfumato.models.decoder import Decoder, ResidualBlock
from sfumato.models.decoders import DECODERS, Architecture, check_decodable, least_width, make_decoder
from sfumato.models.layers import (
    Dropout,
    Normalize,
    Stochastic,
    expected,
    initialize,
    scaled,
    set_generator,
    spare_global_generator,
)
from sfumato.models.resnet import resnet18, resnet20
from sfumato.models.split import Feature, SplitModel, output_shape, split
from sfumato.models.transformer_decoder import TransformerDecoder
from sfumato.models.unet_decoder import UNetDecoder
from sfumato.models.vgg import vgg11, vgg16

BACKBONES: dict[str, BackboneInfo] = {
    "vgg11": BackboneInfo(vgg11, "VGG-11 with batch norm, eight convolutions", "Simonyan & Zisserman 2015", 32),
    "vgg16": BackboneInfo(vgg16, "VGG-16 with batch norm, thirteen convolutions", "Simonyan & Zisserman 2015", 32),
    "resnet20": BackboneInfo(resnet20, "ResNet-20 for small images", "He et al. 2016, section 4.2", 8),
    "resnet18": BackboneInfo(resnet18, "ResNet-18 with a 3×3 stem", "He et al. 2016", 8),
    "cnn": BackboneInfo(cnn, "four convolution blocks, two linear layers", "Yang et al. 2019 (CCS)", 16),
}

__all__ = [
    "BACKBONES",
    "DECODERS",
    "Architecture",
    "Backbone",
    "BackboneInfo",
    "Critic",
    "Decoder",
    "Dropout",
    "Feature",
    "Normalize",
    "ResidualBlock",
    "SplitModel",
    "Stochastic",
    "TransformerDecoder",
    "UNetDecoder",
    "build",
    "check_decodable",
    "expected",
    "initialize",
    "least_width",
    "make_decoder",
    "output_shape",
    "scaled",
    "set_generator",
    "spare_global_generator",
    "split",
]
