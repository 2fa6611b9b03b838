"""Animations of runs that went back."""

import numpy as np
from PIL import Image

from karpjax.report import animation


def test_an_animation_forgets_frames_of_steps_to_come(tmp_path):
  (tmp_path / 'plots').mkdir()
  for t in (100, 200, 300, 150):
    picture = tmp_path / 'plots' / 'samples.png'
    Image.fromarray(np.full((6, 6), t % 251, np.uint8)).save(picture)
    animation.over_time(picture, t, tmp_path)
  assert sorted(p.stem for p in (tmp_path / 'frames').iterdir()) == ['00000100', '00000150']
  with Image.open(tmp_path / 'plots' / 'samples_over_time.gif') as shown:
    assert shown.n_frames == 2
    shown.seek(1)
    assert np.asarray(shown.convert('L')).max() == 150
