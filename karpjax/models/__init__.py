"""Classifiers by name: Linen modules, x [batch, *shape] float32 -> logits [batch, classes] float32."""

import functools

from karpjax.models.cnn import CNN
from karpjax.models.efficientnet import EfficientNetLite0
from karpjax.models.lenet import LeNet1989
from karpjax.models.mlp import MLP, LogisticRegression
from karpjax.models.recurrent import GRUClassifier
from karpjax.models.resnet import ResNet
from karpjax.models.vit import ViT

cifar_resnet = functools.partial(ResNet, bottleneck=False, imagenet=False, widths=(16, 32, 64))
imagenet_resnet = functools.partial(ResNet, imagenet=True, widths=(64, 128, 256, 512))

MODELS = {  # name -> a module with the fields classes and dtype
  'logistic': LogisticRegression,
  'mlp': MLP,
  'lenet1989': LeNet1989,
  'cnn': CNN,
  # Simonyan & Zisserman 2015, for small images; their VGG-16 is --widths=64,128,256,512,512 --depth=2,2,3,3,3
  # --hidden=4096,4096 --norm=none, of 224x224 pixels
  'vgg': functools.partial(CNN, widths=(64, 128, 256), depth=2, hidden=(256,), norm='batch'),
  'resnet20': functools.partial(cifar_resnet, blocks=(3, 3, 3)),
  'resnet56': functools.partial(cifar_resnet, blocks=(9, 9, 9)),
  'resnet18': functools.partial(imagenet_resnet, blocks=(2, 2, 2, 2), bottleneck=False),
  'resnet50': functools.partial(imagenet_resnet, blocks=(3, 4, 6, 3), bottleneck=True),
  'efficientnet_lite0': EfficientNetLite0,
  'vit': ViT,
  'gru': GRUClassifier,
}
