"""The command that times environments."""

import jax
import numpy as np
import pytest

from karpjax.bench import environments as speed
from karpjax.rl import environments


def test_it_prints_a_line_for_each_environment(capsys):
  assert speed.main(['cartpole', 'pendulum', '--worlds=2048', '--seconds=0.01']) == 0
  heading, *lines = capsys.readouterr().out.splitlines()
  assert '2,048 worlds' in heading and [line.split()[0] for line in lines] == ['cartpole', 'pendulum']
  assert all(float(number.replace(',', '')) > 0 for line in lines for number in line.split()[1:])


def test_actions_are_within_their_bounds():
  for name in ('pendulum', 'mountain_car_continuous', 'acrobot'):
    action = environments.make(name).action
    drawn = np.asarray(speed.random_actions(environments.make(name), jax.random.key(0), 500))
    low, high = (0, action.size - 1) if hasattr(action, 'size') else (-1, 1)
    assert drawn.min() >= low and drawn.max() <= high and drawn.std() > 0.3


@pytest.mark.parametrize(
  'argv, message', [(['cartpol'], 'Did you mean cartpole'), (['--worlds=0'], '--worlds=0: at least 1')]
)
def test_bad_input_is_one_line(argv, message, capsys):
  assert speed.main(argv) == 2
  assert message in capsys.readouterr().err
