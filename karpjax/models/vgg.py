"""Stacks of 3x3 convolutions (Simonyan & Zisserman 2015): the CNN with two or more before each pooling."""

from karpjax.models import cnn


class VGG(cnn.CNN):
  """A VGG-like net for small images; every option of the CNN applies.

  The paper's configuration D (VGG-16) is widths=(64, 128, 256, 512, 512), depth=(2, 2, 3, 3, 3),
  hidden=(4096, 4096), norm='none', on 224x224x3.
  """

  widths: tuple[int, ...] = (64, 128, 256)
  depth: int | tuple[int, ...] = 2
  hidden: tuple[int, ...] = (256,)
  norm: str = 'batch'
