"""The flags of what makes any experiment's models small, or private: fields of every Config."""

import dataclasses
import functools

from karpjax import options
from karpjax.durations import Duration

quantisation_flag = functools.partial(options.option, group='Quantisation')
pruning_flag = functools.partial(options.option, group='Pruning')
distillation_flag = functools.partial(options.option, group='Distillation')
privacy_flag = functools.partial(options.option, group='Privacy')


@dataclasses.dataclass(frozen=True)
class Flags:
  """What transforms the step of any experiment; each group does nothing by its defaults."""

  sparsity: float = pruning_flag(
    0.0,
    'Fraction of the weights of kernels that is 0 in the end: the smallest are pruned while the others learn (Zhu & Gupta '
    '2017). It makes no step faster.',
    low=0,
    below=1,
  )
  sparsity_from: Duration = pruning_flag('0', 'When pruning begins.')
  sparsity_until: Duration = pruning_flag(
    '0', 'When it ends, as 75%, which has to be given; no weights before are the best.'
  )
  sparsity_every: Duration = pruning_flag('100', 'How often it prunes in between.')
  sparsity_scope: str = pruning_flag(
    'layer', 'Whether that fraction is of each kernel, or of all together.', choices=('layer', 'global')
  )
  structured: bool = pruning_flag(
    False,
    'That fraction is of the channels and units of each layer, whole, by the norm of their weights (Li et al. 2017); launch.py '
    'shrink makes the smaller network of what is left.',
  )
  mask_from: str = pruning_flag(
    '',
    'Weights that a finished run (its workdir) has pruned are 0 from the start; with its seed the others begin as '
    'there: a lottery ticket (Frankle & Carbin 2019).',
    path=True,
  )

  teacher: str = distillation_flag(
    '',
    'The workdir of a finished run of this experiment: what its best weights hold probable is learnt too (Hinton et al. '
    '2015).',
    path=True,
  )
  temperature: float = distillation_flag(
    4.0, 'What the logits of both are divided by where they are compared.', above=0
  )
  teacher_weight: float = distillation_flag(
    0.9, "The teacher's share of the loss; of 1, labels teach nothing.", low=0, high=1
  )

  quantise: str = quantisation_flag(
    'none',
    'Train with kernels of 8 or 4 bits, as floats that take few values: a scale for each output channel, gradients straight '
    'through; w8a8: what enters layers is of 8 bits too, and dense layers multiply integers. See docs/efficiency.md.',
    choices=('none', 'w8', 'w8a8', 'w4'),
  )

  dp_noise: float = privacy_flag(
    0.0,
    'Private training (Abadi et al. 2016): deviation of the noise on the sum of gradients, as a multiple of dp_clip; '
    '0: none. Needs --order=poisson. Start-up says ε.',
    low=0,
  )
  dp_clip: float = privacy_flag(1.0, "Largest norm of one example's gradient.", above=0)
  dp_delta: float = privacy_flag(1e-5, 'δ: below one in the number of examples.', above=0, below=1)
  dp_epsilon: float = privacy_flag(0.0, 'Instead of the noise the ε in the end, from which it is found.', low=0)
  dp_accept_shuffle: bool = privacy_flag(
    False, 'Batches of a shuffled order are accepted: ε is then nominal, as if they were of --order=poisson.'
  )
