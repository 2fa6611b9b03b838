"""What is timed: a model, its options, its data's shape, its optimiser. Plain data that both workers read."""

import dataclasses

from karpjax import errors


@dataclasses.dataclass(frozen=True)
class Setup:
  """One training step.

  Attributes:
    model: a key of the experiment's models.
    options: of the model; others have its defaults. Without dropout, so that first losses agree.
    shape: of one image, uint8; of a text, (tokens of an example,).
    classes: outputs; of a text, how many different tokens.
    batch_size: examples a step.
    optimiser: its 'name', 'learning_rate', 'momentum', 'weight_decay', as image_classification's flags.
    loss: 'cross_entropy', or 'squared_error' to targets of +1 and -1.
    experiment: image_classification, gan, whose loss is an option, language_model, translation, whose two sides have the
      same shape and classes, generation: a step is then one token of a text, drawn greedily with a cache of keys and values,
      and the losses are those of the first tokens; or policy_gradient: a step is a rollout and all updates from it, and the
      losses are those of both sides' updates from our first rollouts.
    training: how many steps a whole training has, which is then told with imports and compilation; 0: not told.
    flags: of our run, where its set-up is chosen by hand: 'threads', 'steps_per_call'. The twin's is tried out.
  """

  model: str
  shape: tuple[int, ...]
  options: dict = dataclasses.field(default_factory=dict)
  classes: int = 10
  batch_size: int = 128
  optimiser: dict = dataclasses.field(default_factory=lambda: {'name': 'adam', 'learning_rate': 1e-3})
  loss: str = 'cross_entropy'
  experiment: str = 'image_classification'
  training: int = 0
  flags: dict = dataclasses.field(default_factory=dict)


MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)
# He et al. 2015, section 4.2, with a tenth of the rate, so that rounding does not grow in the losses that are compared
_RESNET = {'name': 'momentum', 'learning_rate': 0.01, 'momentum': 0.9, 'weight_decay': 1e-4}
_SGD = {'name': 'momentum', 'learning_rate': 1e-3, 'momentum': 0.9}

_DCGAN = {'widths': (128, 64), 'discriminator_widths': (64, 128), 'ema': 0.0}
# a tenth of the rate, as of ResNets
_GAN = {'experiment': 'gan', 'optimiser': {'name': 'adam', 'learning_rate': 2e-5, 'beta1': 0.5, 'beta2': 0.999}}

_CPU_GPT = {'layers': 4, 'heads': 4, 'width': 128, 'bias': False}
_LANGUAGE = {'experiment': 'language_model', 'optimiser': {'name': 'adamw', 'learning_rate': 1e-3, 'weight_decay': 0.1}}

SETUPS = {
  'lecun1989': Setup(
    'lenet1989',
    (16, 16, 1),
    batch_size=1,
    optimiser={'name': 'sgd', 'learning_rate': 0.03},
    loss='squared_error',
  ),
  'mnist_cnn': Setup('cnn', MNIST, {'widths': (32, 64), 'hidden': (128,)}),
  'cifar10_cnn': Setup('cnn', CIFAR, {'widths': (16, 32), 'hidden': (64,)}, batch_size=64, optimiser=_SGD),
  'cnn64': Setup('cnn', CIFAR, {'widths': (64, 128), 'hidden': ()}),
  'cnn224': Setup('cnn', IMAGENET, {'widths': (64, 256), 'head': 'average', 'hidden': ()}, classes=1000, batch_size=8),
  'logistic': Setup('logistic', MNIST),
  'mlp': Setup('mlp', MNIST),
  'vgg': Setup('vgg', CIFAR),
  'resnet20': Setup('resnet20', CIFAR, optimiser=_RESNET),
  'resnet56': Setup('resnet56', CIFAR, optimiser=_RESNET),
  'resnet18': Setup('resnet18', IMAGENET, classes=1000, batch_size=8, optimiser=_RESNET),
  'resnet50': Setup('resnet50', IMAGENET, classes=1000, batch_size=8, optimiser=_RESNET),
  'dcgan': Setup('dcgan', MNIST, _DCGAN, batch_size=64, **_GAN),
  'wgan_gp': Setup(
    'dcgan', MNIST, {**_DCGAN, 'objective': 'wasserstein_gp', 'discriminator_steps': 5}, batch_size=5 * 64, **_GAN
  ),
  'gpt_shakespeare_cpu': Setup('gpt', (64,), _CPU_GPT, classes=65, batch_size=12, **_LANGUAGE),
  'gpt_shakespeare': Setup(
    'gpt', (256,), {'layers': 6, 'heads': 6, 'width': 384, 'bias': False}, classes=65, batch_size=16, **_LANGUAGE
  ),
  'lstm_language': Setup('lstm', (64,), {'units': (256,)}, classes=65, batch_size=64, **_LANGUAGE),
  'translation': Setup(
    'transformer',
    (24,),
    {'layers': 3, 'heads': 4, 'width': 128, 'hidden': 512, 'tied': True, 'dropout': 0.0},
    classes=6000,
    experiment='translation',
  ),
  'ppo_cartpole': Setup(
    'actor_critic',
    (4,),
    {'environment': 'cartpole', 'rollout': 128, 'epochs': 4, 'minibatches': 4},
    classes=2,
    batch_size=4,
    optimiser={'name': 'adam', 'learning_rate': 2.5e-4, 'epsilon': 1e-5},
    experiment='policy_gradient',
    training=976,
    flags={'threads': 1, 'steps_per_call': 64},
  ),
  'generation': Setup('gpt', (256,), _CPU_GPT, classes=65, batch_size=1, experiment='generation'),
}


def choose(name: str) -> Setup:
  """The set-up called `name`, or a UsageError which offers the nearest."""
  return errors.choose('benchmark', name, SETUPS)


def from_json(values: dict) -> Setup:
  """The inverse of dataclasses.asdict after JSON made lists of its tuples."""
  frozen = lambda x: tuple(x) if isinstance(x, list) else x
  options = {name: frozen(value) for name, value in values['options'].items()}
  return Setup(**{name: frozen(value) for name, value in values.items()} | {'options': options})
