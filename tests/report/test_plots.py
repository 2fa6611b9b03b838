"""What is drawn is what was measured; the pictures themselves are looked at by people."""

import contextlib
import math

import numpy as np
import pytest
from PIL import Image

from karpjax.report import pictures, plots


@pytest.fixture
def drawn(monkeypatch):
  """name -> the figure that was drawn under it; the files are written all the same."""
  figures, drawing = {}, plots.drawing

  @contextlib.contextmanager
  def record(folder, name, *size, **options):
    with drawing(folder, name, *size, **options) as (figure, axes):
      figures[name] = figure
      yield figure, axes

  monkeypatch.setattr(plots, 'drawing', record)
  return figures


def size(path):
  with Image.open(path) as image:
    image.load()
    return image.size


def test_a_family_shares_one_axis_and_a_single_measurement_is_no_curve(drawn, tmp_path):
  rows = [{'step': t, 'train/loss': 3.0 - t, 'gradient_norm': 1.0, 'broken': math.nan} for t in range(3)]
  rows[0]['test/loss'], rows[2]['test/loss'], rows[2]['test/ece'] = 4.0, 2.0, 0.1
  plots.curves(rows, tmp_path)
  paths = sorted((tmp_path / 'plots').iterdir())
  assert [path.name for path in paths] == ['curve_gradient_norm.png', 'curve_loss.png']
  assert all(min(size(path)) > 300 for path in paths)
  train, test = drawn['curve_loss'].axes[0].lines
  assert train.get_xydata().tolist() == [[0, 3], [1, 2], [2, 1]] and train.get_label() == 'train 1'
  assert test.get_xydata().tolist() == [[0, 4], [2, 2]] and test.get_label() == 'test 2'
  assert train.get_color() != test.get_color()


def test_seeds_are_their_mean_and_a_band_of_one_standard_deviation(drawn, tmp_path):
  values = np.array([[1.0, 2, 6], [2, 2, 2], [0, 1, math.nan]])
  plots.curves([{'step': t, 'test/error': list(row)} for t, row in enumerate(values)], tmp_path)
  axis = drawn['curve_error'].axes[0]
  mean, std = np.array([3, 2, 0.5]), np.array([math.sqrt(7), 0, math.sqrt(0.5)])
  np.testing.assert_allclose(axis.lines[0].get_ydata(), mean)
  band = axis.collections[0].get_paths()[0].vertices
  for t in range(3):
    edge = band[band[:, 0] == t, 1]
    np.testing.assert_allclose([edge.min(), edge.max()], [mean[t] - std[t], mean[t] + std[t]], atol=1e-12)
  assert '3 seeds' in axis.get_title(loc='left') and '(2 of 3 seeds)' in axis.lines[0].get_label()


def test_a_loss_over_decades_is_drawn_on_a_logarithmic_axis(drawn, tmp_path):
  rows = [{'step': t, 'train/loss': 10.0**-t, 'train/accuracy': 1 - 10.0**-t} for t in range(4)]
  plots.curves(rows, tmp_path)
  scales = [drawn[name].axes[0].get_yscale() for name in ('curve_loss', 'curve_accuracy')]
  assert scales == ['log', 'linear']


def test_confusion_shows_shares_of_the_true_class_and_the_counts(drawn, tmp_path):
  counts = np.array([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
  plots.confusion(counts, ['cat', 'dog', 'absent'], tmp_path)
  axis = drawn['confusion_matrix'].axes[0]
  np.testing.assert_allclose(axis.images[0].get_array(), [[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]])
  texts = {(text.get_position(), text.get_text()) for text in axis.texts}
  assert texts == {((0, 0), '8'), ((1, 0), '2'), ((1, 1), '5')}
  plots.confusion(np.eye(100, dtype=int), [str(i) for i in range(100)], tmp_path)
  assert not drawn['confusion_matrix'].axes[0].texts


def test_reliability_draws_accuracy_and_the_gap(drawn, tmp_path):
  calibration = np.zeros((15, 3))
  calibration[14] = 10, 9.8, 7  # accuracy 0.7, confidence 0.98
  calibration[7] = 10, 5, 8  # accuracy 0.8, confidence 0.5
  plots.reliability(calibration, 0.29, tmp_path)
  upper, lower = drawn['reliability_diagram'].axes
  both, over, under = ([bar.get_height() for bar in bars] for bars in upper.containers)
  np.testing.assert_allclose(both, [0.5, 0.7])
  np.testing.assert_allclose(over, [0, 0.28], atol=1e-12)
  np.testing.assert_allclose(under, [0.3, 0], atol=1e-12)
  assert lower.containers[0][7].get_height() == 0.5 and 'ECE 29.00 %' in upper.get_title(loc='left')


@pytest.mark.parametrize('shape', [(6, 10, 3), (40, 2)])
def test_grids_take_grey_colour_and_signals_without_clipping_a_cell(drawn, tmp_path, shape):
  images = np.random.default_rng(0).random((5, *shape))
  names = ['a rather long class name', '1', '2', '3', '4']
  pictures.mistakes(images, names, names[::-1], np.full(5, 0.5), tmp_path)
  pictures.saliency(images, images[..., 0], names, names, tmp_path)
  pictures.class_grid(images, np.array([0, 0, 1, 3, 3]), names, tmp_path)
  pictures.filters(np.moveaxis(images, 0, -1) - 0.5, tmp_path)
  assert len(list((tmp_path / 'plots').iterdir())) == 4
  cells = 2 if len(shape) == 3 else 0
  axis = drawn['saliency'].axes[0]
  assert len(axis.images) == 5 * cells and len(axis.patches) == 10 - 5 * cells
  for figure in drawn.values():
    figure.canvas.draw()
    box = figure.bbox
    for text in figure.axes[0].texts:
      inside = text.get_window_extent()
      assert inside.x0 >= 0 and inside.y0 >= 0 and inside.x1 <= box.x1 and inside.y1 <= box.y1, text.get_text()


def test_filters_share_one_scale(drawn, tmp_path):
  kernel = np.zeros((2, 2, 3, 2))
  kernel[..., 0], kernel[0, 0, 0, 1] = 0.5, -1.0
  pictures.filters(kernel, tmp_path)
  first, second = (image.get_array() for image in drawn['first_layer_filters'].axes[0].images)
  np.testing.assert_allclose(first, 0.75)  # half the largest weight, above the grey of zero
  np.testing.assert_allclose(second[0, 0], [0, 0.5, 0.5])


def test_names_read_as_a_reader_would_write_them():
  assert plots.title('top5_accuracy') == 'Top-5 accuracy' and plots.title('macro_f1') == 'Macro F1'
  assert plots.title('test/ece') == 'Test · expected calibration error' and plots.title('piece') == 'Piece'


def test_an_animation_forgets_frames_of_steps_to_come(tmp_path):
  (tmp_path / 'plots').mkdir()
  for t in (100, 200, 300, 150):
    Image.fromarray(np.full((6, 6), t % 251, np.uint8)).save(tmp_path / 'plots' / 'samples.png')
    pictures.over_time(tmp_path, 'samples', t)
  assert sorted(p.stem for p in (tmp_path / 'frames').iterdir()) == ['00000100', '00000150']
  with Image.open(tmp_path / 'plots' / 'samples_over_time.gif') as shown:
    assert shown.n_frames == 2
    shown.seek(1)
    assert np.asarray(shown.convert('L')).max() == 150
