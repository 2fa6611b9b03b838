import pytest

from experiments import regression
from karpjax import config as configs
from karpjax.errors import UsageError
from karpjax.train import loop


@pytest.mark.parametrize('text', ['5', '5:5', '6:5', 'a:b', '-1:5'])
def test_what_is_no_range_of_steps_is_refused(text):
  with pytest.raises(UsageError, match='write FIRST:LAST'):
    configs.step_range(text)


def test_the_named_steps_are_traced_and_the_shares_of_time_add_up(tmp_path):
  config = regression.Config(workdir=str(tmp_path), steps='20', steps_per_call='8', profile='3:7', plots=False)
  lines = []
  numbers = loop.run(regression, config, say=lines.append).numbers
  assert list(tmp_path.glob('profile/**/*.xplane.pb'))
  assert any(line.startswith('trace of steps 3 to 7') for line in lines)
  shares = [value for name, value in numbers.items() if name.endswith('_share')]
  assert len(shares) == 5 and sum(shares) == pytest.approx(1)
