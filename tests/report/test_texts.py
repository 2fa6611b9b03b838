"""Samples by step, whatever is in them."""

from karpjax.report import texts


def test_a_sample_with_lines_like_the_head_of_a_block_is_kept_whole(tmp_path):
  path, odd = tmp_path / 'samples.txt', 'a\nstep 900\nb\nstep ,\nc'
  for t in (100, 200, 300, 200):
    texts.prepend_step(path, t, odd)
  block = 'a\n step 900\nb\n step ,\nc\n\n'
  assert path.read_text('utf-8') == f'step 200\n\n{block}step 100\n\n{block}'
