"""Programs compile for TPUs that are described: what a pod would hold and say, before one is rented."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from experiments import image_classification
from karpjax.errors import UsageError
from karpjax.train import loop, mesh

libtpu = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu (requirements-tpu.txt)')
CNN = ['--model=cnn', '--widths=8,16', '--norm=batch']
CASES = {  # flags -> (collectives that must be there, whether there may be others)
  'one chip': (CNN, (), False),
  'data': ([*CNN, '--parallel=data'], ('all-reduce',), False),
  'fsdp': ([*CNN, '--parallel=fsdp'], ('all-gather',), True),
  'tensor': (['--model=mlp', '--widths=256,256', '--parallel=tensor'], ('all-reduce',), False),
  'two axes': (['--model=mlp', '--widths=256,256', '--mesh=data:2,fsdp:2'], ('all-gather',), True),
  'seeds': ([*CNN, '--parallel=seeds', '--seeds=4'], (), False),
  'bfloat16': ([*CNN, '--parallel=data', '--dtype=bfloat16'], ('all-reduce',), False),
  'resnet20': (['--model=resnet20', '--parallel=data', '--remat=full'], ('all-reduce',), False),
}


def launch(*flags):
  """Of its own process, which sees no accelerator: libtpu is taken by one process at a time."""
  return subprocess.run(
    [sys.executable, 'launch.py', *flags],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'},
    capture_output=True,
    text=True,
    check=False,
  )


@libtpu
@pytest.mark.parametrize('case', CASES)
def test_every_layout_compiles_for_a_described_tpu(case):
  flags, there, others = CASES[case]
  ran = launch('image_classification', '--topology=v5e:2x2', *flags)
  assert ran.returncode == 0, ran.stderr
  assert 'FLOPs of a step' in ran.stdout and 'arguments' in ran.stdout
  kinds = {line.split()[0] for line in ran.stdout.splitlines() if '×' in line}
  assert set(there) <= kinds and (others or kinds == set(there)), ran.stdout


@libtpu
@pytest.mark.parametrize('name', ['v5e:3x7', 'nonsense'])
def test_an_unknown_topology_is_one_clear_line(name):
  ran = launch('image_classification', f'--topology={name}')
  assert ran.returncode == 2 and f'--topology={name}' in ran.stderr and 'v5e:4x4' in ran.stderr


@libtpu
def test_what_does_not_fit_is_said_in_one_line():
  ran = launch('image_classification', '--topology=v5e:1x1', '--model=mlp', '--widths=60000,60000')
  assert ran.returncode == 2 and 'does not fit' in ran.stderr


def test_without_libtpu_its_install_line_is_given(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UsageError, match='requirements-tpu.txt'):
    mesh.described_devices('v5e:2x2')


@pytest.mark.parametrize(
  'flags, kinds', [({}, set()), ({'parallel': 'data'}, {'all-reduce'}), ({'parallel': 'seeds', 'seeds': 4}, set())]
)
def test_devices_that_are_described_are_only_compiled_for(flags, kinds, monkeypatch, tmp_path):
  """Four devices that are there stand for them."""
  devices = jax.devices()[:4]
  monkeypatch.setattr(mesh, 'described_devices', lambda topology: devices)
  monkeypatch.chdir(tmp_path)
  settings = image_classification.Config(model='mlp', widths=(8,), batch_size=16, topology='v5e:2x2', **flags)
  lines = []
  loop.run(image_classification, settings, say=lines.append)
  assert {line.split()[0] for line in lines if '×' in line} == kinds and 'FLOPs of a step' in '\n'.join(lines)
  assert not list(tmp_path.iterdir())
  with pytest.raises(UsageError, match='topology: parallel=pmap needs devices that are there'):
    loop.run(image_classification, dataclasses.replace(settings, parallel='pmap'), say=str)
