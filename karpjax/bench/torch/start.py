"""What a user of PyTorch would write in place of the default command: a small CNN on scikit-learn's digits.

Trained for 25 epochs, evaluated and saved after each; then tensorboard, curves, a confusion matrix and a report.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import classification_report, confusion_matrix
from sklearn.model_selection import train_test_split
from tensorboardX import SummaryWriter
from torch import nn

EPOCHS, BATCH = 25, 64


def splits():
  """{name: (images [size, 1, 8, 8], labels [size])}, standardised by the train split."""
  x, y = load_digits(return_X_y=True)
  x = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8)
  x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
  x, x_validation, y, y_validation = train_test_split(x, y, test_size=0.1, stratify=y, random_state=0)
  mean, deviation = x.mean(), x.std()
  pairs = {'train': (x, y), 'validation': (x_validation, y_validation), 'test': (x_test, y_test)}
  return {name: (torch.from_numpy((a - mean) / deviation), torch.from_numpy(b)) for name, (a, b) in pairs.items()}


def network():
  return nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)),
  )


@torch.no_grad()
def evaluate(model, x, y):
  """(loss, accuracy, predicted classes)."""
  model.eval()
  logits = model(x)
  predicted = logits.argmax(1)
  model.train()
  return nn.functional.cross_entropy(logits, y).item(), (predicted == y).float().mean().item(), predicted


def draw(folder, history, matrix, images, labels, predicted, kernels):
  """A curve of each metric; the confusion matrix, plain and by row; the first mistakes; the first kernels."""
  for name in list(history[0])[1:]:
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot([row['step'] for row in history], [row[name] for row in history])
    axes.set(xlabel='step', ylabel=name)
    figure.savefig(folder / f'{name.replace("/", "_")}.png', dpi=110)
    plt.close(figure)
  for name, values in (('confusion', matrix), ('confusion_by_row', matrix / matrix.sum(1, keepdims=True))):
    figure, axes = plt.subplots(figsize=(7, 7))
    axes.imshow(values)
    axes.set(xlabel='predicted', ylabel='label')
    figure.savefig(folder / f'{name}.png', dpi=110)
    plt.close(figure)
  wrong = np.flatnonzero(predicted != labels)[:32]
  for name, pictures in (('mistakes', images[wrong]), ('kernels', kernels)):
    figure, grid = plt.subplots(4, 8, figsize=(8, 4))
    for axes, picture in zip(grid.flat, pictures):
      axes.imshow(picture[0], cmap='gray')
    for axes in grid.flat:
      axes.axis('off')
    figure.savefig(folder / f'{name}.png', dpi=110)
    plt.close(figure)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--steps', type=int, default=0, help='0: all of the epochs')
  parser.add_argument('--folder', type=Path, default=Path('run'))
  options = parser.parse_args()
  options.folder.mkdir(parents=True, exist_ok=True)
  torch.manual_seed(0)
  data, model = splits(), network()
  x, y = data['train']
  rule, board, history, step = torch.optim.Adam(model.parameters(), 1e-3), SummaryWriter(options.folder), [], 0
  last = options.steps or EPOCHS * (len(x) // BATCH)
  while step < last:
    order = torch.randperm(len(x))
    for rows in order[: len(x) // BATCH * BATCH].split(BATCH)[: last - step]:
      rule.zero_grad()
      logits = model(x[rows])
      loss = nn.functional.cross_entropy(logits, y[rows])
      loss.backward()
      rule.step()
      step += 1
    error = (logits.argmax(1) != y[rows]).float().mean().item()
    row = {'step': step, 'train/loss': loss.item(), 'train/error': error}
    for name in ('validation', 'test'):
      row[f'{name}/loss'], row[f'{name}/accuracy'], _ = evaluate(model, *data[name])
    history.append(row)
    for name, value in row.items():
      board.add_scalar(name, value, step)
    torch.save({'model': model.state_dict(), 'rule': rule.state_dict(), 'step': step}, options.folder / 'last.pt')
  board.close()
  x, y = data['test']
  loss, accuracy, predicted = evaluate(model, x, y)
  matrix = confusion_matrix(y, predicted, labels=range(10))
  (options.folder / 'report.txt').write_text(classification_report(y, predicted, zero_division=0))
  draw(options.folder, history, matrix, x.numpy(), y.numpy(), predicted.numpy(), model[0].weight.detach().numpy())
  print(f'{step} steps, test loss {loss:.4f}, accuracy {accuracy:.4f}')


if __name__ == '__main__':
  main()
