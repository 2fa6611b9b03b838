import jax
import numpy as np
import optax
import safetensors.numpy

from karpjax import program
from karpjax.models import language
from karpjax.train import weights
from tests.models.drawing import drawn

DENSE = {'attn.c_attn': (1, 3), 'attn.c_proj': (1, 1), 'mlp.c_fc': (1, 4), 'mlp.c_proj': (4, 1)}


def made(layers=2, width=128, vocabulary=13, context=10):
  """A small file as Hugging Face keeps GPT-2: Conv1D kernels [in, out]."""
  draw, norm = np.random.default_rng(0), {'weight': (width,), 'bias': (width,)}
  shapes = {'wte.weight': (vocabulary, width), 'wpe.weight': (context, width)}
  shapes |= {f'ln_f.{kind}': shape for kind, shape in norm.items()}
  for i in range(layers):
    for name, (a, b) in DENSE.items():
      shapes |= {f'h.{i}.{name}.weight': (a * width, b * width), f'h.{i}.{name}.bias': (b * width,)}
    shapes |= {f'h.{i}.{name}.{kind}': shape for name in ('ln_1', 'ln_2') for kind, shape in norm.items()}
    shapes[f'h.{i}.attn.bias'] = (1, 1, context, context)  # the mask that old files hold
  return {name: (0.1 * draw.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def forward(w, tokens, layers=2, heads=2):
  """GPT-2 in plain NumPy: tokens [time] -> logits [time, vocabulary]."""

  def norm(x, name):
    unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return unit * w[f'{name}.weight'] + w[f'{name}.bias']

  x = w['wte.weight'][tokens] + w['wpe.weight'][: len(tokens)]
  for i in range(layers):
    linear = lambda x, name, i=i: x @ w[f'h.{i}.{name}.weight'] + w[f'h.{i}.{name}.bias']
    q, k, v = np.split(linear(norm(x, f'h.{i}.ln_1'), 'attn.c_attn'), 3, -1)
    parts = []
    for q1, k1, v1 in zip(*(np.split(a, heads, -1) for a in (q, k, v))):
      scores = np.where(np.tri(len(tokens), dtype=bool), q1 @ k1.T / np.sqrt(q1.shape[-1]), -np.inf)
      share = np.exp(scores - scores.max(-1, keepdims=True))
      parts.append(share / share.sum(-1, keepdims=True) @ v1)
    x = x + linear(np.concatenate(parts, -1), 'attn.c_proj')
    h = linear(norm(x, f'h.{i}.ln_2'), 'mlp.c_fc')
    x = x + linear(0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))), 'mlp.c_proj')
  return norm(x, 'ln_f') @ w['wte.weight'].T


def test_a_published_gpt2_gives_its_logits(tmp_path):
  """Nor are any params left as they were; the names of a whole model begin with transformer."""
  arrays, tokens = made(), np.array([[3, 1, 4, 1, 5, 9, 2]], np.int32)
  safetensors.numpy.save_file({f'transformer.{n}': x for n, x in arrays.items()}, tmp_path / 'model.safetensors')
  model = language.GPT(13, 10, layers=2, heads=2, width=128)
  state = program.TrainState.create(jax.random.key(0), drawn(model, tokens), optax.sgd(0.1))
  read = weights.read(str(tmp_path / 'model.safetensors'), language.renamed)
  state, rows = weights.replace_weights(state, read)
  assert {row[2] for row in rows} == {'matched'}
  logits = jax.jit(model.apply)({'params': state.params}, tokens)
  np.testing.assert_allclose(logits[0], forward(arrays, tokens[0]), atol=1e-4)
  bare = language.renamed({name.replace('.', '/'): x for name, x in arrays.items()})
  assert all(np.array_equal(read[name], x) for name, x in bare.items()) and read.keys() == bare.keys()
  assert language.renamed({'a/b': 1}) == {'a/b': 1}
