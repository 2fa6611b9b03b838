"""Several players in one state: a step in which each, in its turn, follows the gradient of its own loss.

The state is an ordinary `TrainState` whose params, collections and optimiser states are dicts by the player's name, so that
checkpoints, seeds, layouts and resumes need nothing more.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from karpjax import gradients
from karpjax.errors import UsageError
from karpjax.program import TrainState


def create(
  key, variables: Mapping[str, Any], optimisers: Mapping[str, optax.GradientTransformation], *, averaged=()
) -> TrainState:
  """The state before the first step.

  Args:
    key: the run's first key.
    variables: {player: Linen's variables, 'params' and perhaps other collections}.
    optimisers: {player: optimiser}.
    averaged: the players of whose params a running average is kept.
  """
  params = {name: v['params'] for name, v in variables.items()}
  collections = {name: {c: x for c, x in v.items() if c != 'params'} for name, v in variables.items()}
  together = optax.GradientTransformation(
    lambda params: {name: optimiser.init(params[name]) for name, optimiser in optimisers.items()}, None
  )
  state = TrainState.create(key, params, together, collections=collections)
  ema = {name: jax.tree.map(jnp.copy, params[name]) for name in averaged}
  return state.replace(ema=ema or None)


def train_step(
  losses: Mapping[str, Callable],
  optimisers: Mapping[str, optax.GradientTransformation],
  *,
  rounds: int = 1,
  microbatches: int = 1,
  ema_decay: float = 0.0,
) -> Callable:
  """The step of players who take turns: all but the last once a round, the last once, after all rounds.

  With two players that is Goodfellow et al. 2014, algorithm 1, `rounds` being its k. Each round has its own part of the
  batch and its own key. The last player has those of the last round: what both players make of them, such as the
  generator's images, is the same computation, which XLA then does once.

  Args:
    losses: {player: loss} in the order of their turns. A loss is as for `gradients.compute`, but its params and collections
      are those of all players; it gives the collections of its own player.
    optimisers: {player: optimiser}.
    rounds: into how many parts the batch is cut.
    microbatches: into how many parts each of these is cut, see `gradients.compute`.
    ema_decay: of the running averages, of the players whose averages the state holds.

  Raises:
    UsageError: when it is traced, for a batch (with `pmap`, that of one device) which cannot be cut so.

  Returns:
    (TrainState, batch) -> (TrainState, metrics); a player's metrics are named 'PLAYER_NAME', and gain 'PLAYER_gradient_norm'.
    Where one player's are not finite, those of its successors count 0, so that the first to blame is the one that is named.
  """
  *others, last = losses

  def turn(player, playing, batch, key):
    params, collections, opt_state = playing

    def loss(own, own_collections, batch, key):
      return losses[player]({**params, player: own}, {**collections, player: own_collections}, batch, key)

    compute = gradients.compute(loss, microbatches=microbatches)
    grads, metrics, own_collections, _ = compute(params[player], collections[player], batch, key)
    updates, own_state = optimisers[player].update(grads, opt_state[player], params[player])
    own = optax.apply_updates(params[player], updates)
    # weights that have grown beyond a norm are this player's fault, though the next one's loss would be the first to show it
    norm = optax.global_norm(grads) + 0 * optax.global_norm(own)
    metrics = {**metrics, 'gradient_norm': (norm, jnp.ones(()))}
    metrics = {f'{player}_{name}': x for name, x in metrics.items()}
    made = own, own_collections, own_state
    return tuple({**x, player: new} for x, new in zip(playing, made)), metrics

  def turns(playing, batch, key):
    metrics = {}
    for player in others:
      playing, more = turn(player, playing, batch, key)
      metrics |= blamed(metrics, more)
    return playing, metrics

  def step(state: TrainState, batch):
    size = len(batch['index'])
    if rounds < 1 or size % (rounds * microbatches):
      raise UsageError(
        f'{size} examples of a step on one device cannot be cut into {rounds} rounds'
        + (f' of {microbatches} microbatches' if microbatches > 1 else '')
        + ': another --batch_size is needed'
      )
    key = jax.random.fold_in(state.key, state.step)
    playing = state.params, state.collections, state.opt_state
    if rounds == 1:
      playing, metrics = turns(playing, batch, key)
    else:
      # as microbatches are cut: every device of a mesh finds its share of every part among its own rows
      parts = jax.tree.map(lambda x: x.reshape(-1, rounds, *x.shape[1:]).swapaxes(0, 1), batch)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rounds))
      playing, each = jax.lax.scan(lambda playing, x: turns(playing, *x), playing, (parts, keys))
      metrics = jax.tree.map(lambda x: x.sum(0), each)
      batch, key = jax.tree.map(lambda x: x[-1], parts), keys[-1]
    (params, collections, opt_state), more = turn(last, playing, batch, key)
    metrics |= blamed(metrics, more)
    ema = state.ema
    if ema is not None:
      ema = optax.incremental_update({name: params[name] for name in ema}, ema, 1 - ema_decay)
    state = state.replace(step=state.step + 1, params=params, collections=collections, opt_state=opt_state, ema=ema)
    return state, metrics

  return step


def blamed(earlier, later):
  """`later` metrics as they are where all the `earlier` ones are finite; else zeros."""
  if not earlier:
    return later
  finite = jnp.isfinite(jnp.stack([s for s, _ in earlier.values()])).all()
  return jax.tree.map(lambda x: jnp.where(finite, x, 0), later)
