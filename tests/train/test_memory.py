"""What a run holds in memory does not grow with its data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
RUN = """
import sys, launch
from karpjax.bench import worker
launch.main(sys.argv[1:])
print(worker.peak_memory())
"""
NAMES = 16 * 2**20  # bytes, for those of the larger folder


def folder_of(size, path):
  """PATH/CLASS/*: so many names of 100 pictures, in ten classes."""
  draw = np.random.default_rng(0)
  for label in range(10):
    (path / str(label)).mkdir(parents=True)
    for i in range(10):
      Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(path / str(label) / f'{i:05}.png')
    for i in range(10, size // 10):
      os.link(path / str(label) / f'{i % 10:05}.png', path / str(label) / f'{i:05}.png')
  return path


def peak(path, tmp_path):
  """The largest resident set, in bytes, of a run that reads its pictures as it goes."""
  flags = f'--dataset=folder:{path} --resident_mb=0 --model=mlp --batch_size=500 --steps=110 --final_splits= --noplots'
  run = ['image_classification', *flags.split(), f'--workdir={tmp_path}/run of {path.name}']
  done = subprocess.run([sys.executable, '-c', RUN, *run], cwd=ROOT, capture_output=True, text=True, check=True)
  return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_a_streaming_run_of_ten_times_as_many_pictures_needs_their_names_more(tmp_path):
  few, many = (peak(folder_of(size, tmp_path / str(size)), tmp_path) for size in (5_000, 50_000))
  assert many < few + NAMES, f'{few / 2**20:.0f} MB of 5,000 pictures, {many / 2**20:.0f} of 50,000'
