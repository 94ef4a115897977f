"""Reference networks: LeNets, CIFAR ResNets and wide ResNets, a small MobileNetV2 and ViT, and the demo's digits network."""

from l0prune.models import digits, lenet, mobilenet, resnet_cifar, vit, wide_resnet  # importing registers the factories
from l0prune.models.registry import BUILT_AS, ModelEntry, entry, names, register

__all__ = [
    "BUILT_AS",
    "ModelEntry",
    "digits",
    "entry",
    "lenet",
    "mobilenet",
    "names",
    "register",
    "resnet_cifar",
    "vit",
    "wide_resnet",
]
