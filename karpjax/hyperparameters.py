"""A hyperparameter is a Python number or, where a sweep runs many values in one program, a traced one.

What is decided by its value in Python (a check, a layer left out) can only be decided of a Python number.
"""


def is_known(value) -> bool:
  """Whether the value is a Python number, so that Python may look at it."""
  return isinstance(value, int | float)


def is_zero(value) -> bool:
  """Whether the value is 0 for certain, so that what it scales can be left out."""
  return is_known(value) and value == 0
