"""Models as pure functions; an experiment is one pure step, and everything else transforms it."""

__version__ = '0.1.0'


def open(workdir, checkpoint='best', member=None, trial=None):
  """A run's folder as an object: its config, numbers, rows and state, and what it can do as methods; see `verbs.Run`.

  Args:
    workdir: the run's folder.
    checkpoint: the weights: 'best', 'last', or the step of a checkpoint that is kept.
    member, trial: which of several seeds, which setting of a sweep.

  Raises:
    UsageError: where the folder holds no run, or one of another version.
  """
  from karpjax import verbs

  return verbs.Run(workdir, checkpoint, member, trial)
