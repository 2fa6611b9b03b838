"""How fast a training step is, beside the same model in PyTorch. Importing this imports neither."""


def main(argv) -> int:
  """`launch.py bench NAME [flags]`; see `measure`. Returns the exit code."""
  from karpjax.bench import measure

  return measure.main(argv)
