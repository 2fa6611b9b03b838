"""From a loss to gradients and metrics: the one place where microbatches and devices meet.

A loss returns sums and counts. The gradients of the sum are accumulated over microbatches, summed over replicas and
divided once by the whole count, so that masks and padding weigh the same however a batch is cut.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from karpjax import fine_tuning, optim
from karpjax.collectives import total
from karpjax.errors import UsageError
from karpjax.program import FROZEN, Program, TrainState, partitioning
from karpjax.train import private
from karpjax.train.private import Private


def cut(batch, parts: int):
  """[batch, …] -> [parts, batch / parts, …], leaf by leaf: a part is every parts-th row.

  So each device of a mesh finds its share of every part among its own rows, and parts are the same on any number of
  devices.
  """
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def compute_gradients(loss: Callable, *, microbatches: int = 1, private: Private | None = None) -> Callable:
  """The gradient of a loss's mean over the whole batch, or the private one.

  Args:
    loss: (params, collections, batch, key) -> (metrics, collections); `metrics['loss']` is the (sum, count) to
      minimise. It may give a third value: what goes on with each example, a pytree of [batch, …].
    microbatches: in how many equal parts, one after the other, the batch of one replica is worked off.
    private: of each example's gradient clipped, with noise.

  Returns:
    (params, collections, batch, key) -> (gradients, metrics, collections), alike on every replica, and the loss's third
    value, {} where it gives none.
  """

  def summed(params, collections, batch, key):
    metrics, collections, *each = loss(params, collections, batch, key)
    return metrics['loss'][0], (metrics, collections, each[0] if each else {})

  one = private.clipped(loss) if private else jax.grad(summed, has_aux=True)

  def gradients(params, collections, batch, key):
    pieces = private.parts(params, len(batch['index']), microbatches) if private else microbatches
    if pieces == 1:
      grads, (metrics, collections, each) = one(params, collections, batch, key)
    else:
      whole = {name: x for name, x in batch.items() if name == FROZEN}
      parts = cut({name: x for name, x in batch.items() if name != FROZEN}, pieces)
      first = {**jax.tree.map(lambda x: x[0], parts), **whole}
      shapes = jax.eval_shape(one, params, collections, first, key)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))

      def add(carry, part):
        (grads, metrics), collections = carry
        new_grads, (new_metrics, collections, each) = one(params, collections, {**part, **whole}, key)
        return (jax.tree.map(jnp.add, (grads, metrics), (new_grads, new_metrics)), collections), each

      ((grads, metrics), collections), each = jax.lax.scan(add, (zeros, collections), parts)
      each = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), each)  # back to [batch, …]
    grads, metrics = total((grads, metrics))
    if private:
      return *private.finished(grads, metrics, key), collections, each
    count = jnp.maximum(metrics['loss'][1], 1)  # a batch that is all mask has no gradient
    return jax.tree.map(lambda g: g / count.astype(g.dtype), grads), metrics, collections, each

  return gradients


def update(
  loss: Callable, optimiser: optax.GradientTransformation, microbatches: int = 1, private: Private | None = None
) -> Callable:
  """One update of one player, by a loss as for `compute_gradients`.

  Returns:
    (params, collections, opt_state, batch, key) -> the first three anew, the metrics with 'gradient_norm', the global
    norm before clipping, and the loss's third value.
  """
  gradients = compute_gradients(loss, microbatches=microbatches, private=private)

  def updated(params, collections, opt_state, batch, key):
    grads, metrics, collections, carried = gradients(params, collections, batch, key)
    updates, opt_state = optimiser.update(grads, opt_state, params)
    metrics = {**metrics, 'gradient_norm': (optax.global_norm(grads), jnp.ones(()))}
    return optax.apply_updates(params, updates), collections, opt_state, metrics, carried

  return updated


def train_step(loss: Callable, optimiser: optax.GradientTransformation, config) -> Callable:
  """The ordinary step of one player: gradients, optimiser, running average.

  Args:
    loss: as for `compute_gradients`; its key is that of the step, to be folded with a purpose.
    optimiser: what turns gradients into updates.
    config: a `config.Train`: its `microbatches`, whether it is private, and the decay `ema` of running averages where the
      state keeps them.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). Where the state carries something per example, the loss finds it as
    batch['carried'] and gives what it becomes as its third value.
  """
  one = update(fine_tuning.still(loss, config), optimiser, config.microbatches, private.of(config))

  def step(state: TrainState, batch):
    key = jax.random.fold_in(state.key, state.step)
    if state.carried:
      batch = {**batch, 'carried': state.carried}
    *player, metrics, carried = one(state.params, state.collections, state.opt_state, batch, key)
    return _advance(state, player, config).replace(carried=carried), metrics

  return step


def ordinary(
  config, model, inputs, loss: Callable, *, optimiser=None, carried=dict, step=None, change_step=None, **others
) -> Program:
  """The Program of one model that is trained by `train_step`.

  Args:
    config: a `config.Train`.
    model: a Linen module, which is initialised on `inputs`.
    loss: as for `compute_gradients`.
    optimiser: None: that of the config.
    carried: () -> what the state carries per example at first.
    step: of a model that no gradient finds, which has no averages and no privacy; None: `train_step`.
    change_step: the step -> the one to use.
    others: the Program's other fields.
  """
  optimiser, descends = optimiser or optim.configured(config), step is None

  def init(key):
    variables = model.init(key, *inputs)
    return TrainState.create(key, variables, optimiser, ema=descends and config.ema > 0, carried=carried())

  step = train_step(loss, optimiser, config) if descends else step
  step = change_step(step) if change_step else step
  return Program(init=init, step=step, axes=partitioning(model, *inputs), **others)


def _advance(state: TrainState, player, config) -> TrainState:
  """The state after a step, its running averages included: of params and their collections, all or some players'.

  They are Adam's (Kingma & Ba 2015, section 3): Σ d^(t-i) x_i / Σ d^(t-i) of the t values so far, free of the initial
  one.
  """
  params, collections, opt_state = player
  after = state.replace(step=state.step + 1, params=params, collections=collections, opt_state=opt_state)
  if state.ema is None:
    return after
  newest = jnp.minimum((1 - config.ema) / -jnp.expm1(after.step * math.log(max(config.ema, 1e-30))), 1)  # its share
  average = lambda old, new: newest * new + (1 - newest) * old if jnp.issubdtype(new.dtype, jnp.inexact) else new
  averages = lambda old, new: jax.tree.map(average, old, {name: new[name] for name in old})
  return after.replace(ema=averages(state.ema, params), ema_collections=averages(state.ema_collections, collections))


def alternating_step(losses: Mapping[str, Callable], optimisers, config, *, rounds: int = 1) -> Callable:
  """The step of players who take turns: all but the last once a round, the last once, after all rounds.

  With two players that is Goodfellow et al. 2014, algorithm 1, `rounds` being its k. Each round has its own part of the
  batch and its own key. The last player has those of the last round, so that what both make of them is computed once.

  Args:
    losses: {player: loss} in the order of their turns. A loss is as for `compute_gradients`, but its params and
      collections are those of all players; it gives the collections of its own player.
    optimisers: {player: optax.GradientTransformation}.
    config: a `config.Train`: its `microbatches`, into which a round's part is cut, and the decay `ema` of running
      averages.
    rounds: into how many parts the batch is cut.

  Raises:
    UsageError: when it is traced, for a batch (with `pmap`, that of one device) which cannot be cut so.

  Returns:
    (TrainState, batch) -> (TrainState, metrics); a player's metrics are named 'PLAYER_NAME'. Where one player's are not
    finite, those of its successors count 0, so that the first to blame is the one that is named.
  """
  *others, last = losses

  def turn(player, players, metrics, batch, key):
    params, collections, opt_state = players

    def loss(own, own_collections, batch, key):
      return losses[player]({**params, player: own}, {**collections, player: own_collections}, batch, key)

    one = update(loss, optimisers[player], config.microbatches)
    *own, its, _ = one(params[player], collections[player], opt_state[player], batch, key)
    # weights that have grown beyond a norm are this player's fault, though the next one's loss would be the first to show it
    norm, count = its['gradient_norm']
    its['gradient_norm'] = norm + 0 * optax.global_norm(own[0]), count
    its = {f'{player}_{name}': x for name, x in its.items()}
    if metrics:
      finite = jnp.isfinite(jnp.stack([x for x, _ in metrics.values()])).all()
      its = jax.tree.map(lambda x: jnp.where(finite, x, 0), its)
    return tuple({**all_, player: new} for all_, new in zip(players, own)), metrics | its

  def round_(players, batch, key):
    metrics = {}
    for player in others:
      players, metrics = turn(player, players, metrics, batch, key)
    return players, metrics

  def step(state: TrainState, batch):
    size = len(batch['index'])
    if rounds < 1 or size % (rounds * config.microbatches):
      parts = f'{rounds} rounds' + (f' of {config.microbatches} microbatches' if config.microbatches > 1 else '')
      raise UsageError(f'{size} examples of a step on one device cannot be cut into {parts}: give another batch_size')
    key, players = jax.random.fold_in(state.key, state.step), (state.params, state.collections, state.opt_state)
    if rounds == 1:
      players, metrics = round_(players, batch, key)
    else:
      parts = cut(batch, rounds)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rounds))
      players, each = jax.lax.scan(lambda players, x: round_(players, *x), players, (parts, keys))
      metrics = jax.tree.map(lambda x: x.sum(0), each)
      batch, key = jax.tree.map(lambda x: x[-1], parts), keys[-1]
    players, metrics = turn(last, players, metrics, batch, key)
    return _advance(state, players, config), metrics

  return step
