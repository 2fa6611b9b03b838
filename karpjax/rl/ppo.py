"""REINFORCE, A2C and PPO as one pure step: a rollout, its advantages, and one or many updates from it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from karpjax import collectives, optim
from karpjax.errors import UsageError
from karpjax.models.actor_critic import ActorCritic
from karpjax.program import ROLLOUT, SHUFFLE, TrainState, example_keys, pair, step_key
from karpjax.rl import returns
from karpjax.rl import rollout as rollouts
from karpjax.rl.environment import Environment, WithMemory, add_memory, value_of
from karpjax.rl.rollout import Policy, RolloutState, Transition
from karpjax.train.step import update as make_update

KL_MARGIN = 1.5  # how many times `target_kl` a policy may move

# ---- losses, each [batch] ----


def clipped_objective(log_probs, old_log_probs, advantages, clip: float):
  """The negative of PPO's objective (Schulman et al. 2017, eq. 7): min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), ρ = π / π_old."""
  ratio = jnp.exp(log_probs - old_log_probs)
  return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)


def clipped_value_loss(values, old_values, targets, clip: float):
  """½ max((V - target)², (V_clipped - target)²), V_clipped within ε of the value that acted (as PPO's first code has
  it).
  """
  near = old_values + jnp.clip(values - old_values, -clip, clip)
  return 0.5 * jnp.maximum(jnp.square(values - targets), jnp.square(near - targets))


def approx_kl(log_probs, old_log_probs):
  """An estimate of KL(π_old ‖ π) from actions of π_old, never negative: (ρ - 1) - log ρ (Schulman 2020)."""
  log_ratio = log_probs - old_log_probs
  return jnp.exp(log_ratio) - 1 - log_ratio


def loss_terms(config, distribution, outputs, values, batch) -> dict[str, jax.Array]:
  """The terms of the loss of a minibatch, each [batch]; 'loss' is what is minimised.

  Args:
    config: of experiments/policy_gradient.py; a `clip_ratio` ε of 0 is the plain policy gradient.
    distribution: of the actions.
    outputs, values: of the networks that learn.
    batch: 'action', 'advantage', 'target', and of the networks that acted 'log_prob' and 'value'.
  """
  clip, old, advantages = config.clip_ratio, batch['log_prob'], batch['advantage']
  log_probs, entropy = distribution.log_prob(outputs, batch['action']), distribution.entropy(outputs)
  if clip:
    policy_loss = clipped_objective(log_probs, old, advantages, clip)
  else:
    policy_loss = -advantages * log_probs  # whose gradient is the policy gradient (Williams 1992; Mnih et al. 2016)
  if clip and config.clip_value:
    value_loss = clipped_value_loss(values, batch['value'], batch['target'], clip)
  else:
    value_loss = optax.losses.l2_loss(values, batch['target'])
  return {
    'loss': policy_loss + config.value * value_loss - config.entropy * entropy,
    'policy_loss': policy_loss,
    'value_loss': value_loss,
    'entropy': entropy,
    'kl': approx_kl(log_probs, old),
    'clipped': jnp.abs(jnp.exp(log_probs - old) - 1) > (clip or 1.0),
  }


# ---- the policy and what it sees ----


def policy(environment: Environment, model: ActorCritic) -> Policy:
  """An actor and critic in an environment, which holds their memory if they have one.

  Its `apply` is (params, moments, observation [batch, …]) -> outputs [batch, size], values [batch], and of a policy
  that remembers what it remembers next. It then also takes (…, WithMemory of an observation [batch, time, …] and the
  memory [batch, …] before, is_first [batch, time] bool), and gives outputs and values [batch, time, …].
  """
  if model.memory != 'none':
    environment = add_memory(environment, model.initial_memory())
  distribution = model.distribution
  inputs = lambda observation: observation if isinstance(observation, WithMemory) else (observation,)

  def init(key):
    first = jax.tree.map(lambda x: jnp.zeros((1, *x.shape)), jax.eval_shape(environment.reset, key)[1])
    return model.init(key, *inputs(first))

  def apply(params, moments, observation, *is_first):
    x, *memory = inputs(observation)
    if 'observation' in moments:
      x = moments['observation'].standardise(x)
    return model.apply({'params': params}, x, *memory, *is_first)

  def act(state, observation, noise):
    outputs, _, *memory = apply(state.params, state.moments, observation)
    action = distribution.sample(outputs, 0.0 if noise is None else noise)
    return WithMemory(action, *memory) if memory else action

  predict = lambda state, observation: apply(state.params, state.moments, observation)[0]
  memory = None if model.memory == 'none' else model.initial_memory()
  return Policy(environment, act, distribution.noise, predict, init, apply, distribution, memory)


# ---- the step ----


def collect(policy: Policy, config, state: TrainState, batch) -> tuple[RolloutState, Transition]:
  """The rollout with which the step of a state begins; REINFORCE's begins new episodes,
  of which only the first count.
  """
  keys = example_keys(step_key(state, ROLLOUT), batch)  # [environments]
  world, acting, resetting = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
  whole, environment = config.algorithm == 'reinforce', policy.environment
  worlds = rollouts.start(environment, resetting) if whole else state.carried['worlds']
  noise = jax.vmap(lambda k: policy.noise(k, (config.rollout,)), out_axes=1)(acting)
  act = lambda observation, noise: policy.act(state, observation, noise)
  return rollouts.rollout(environment, act, worlds, world, noise, config.rollout, reset=not whole)


def learnt_from(config, transitions: Transition):
  """[time, environments] bool: REINFORCE learns from a first episode, up to its end and with it;
  the others from all.
  """
  if config.algorithm != 'reinforce':
    return jnp.ones(transitions.done.shape, bool)
  return jnp.cumsum(transitions.done, 0) - transitions.done == 0


def return_ends(config, ends, transitions: Transition):
  """[time, environments] bool: where no return goes on: at `ends`, and at points,
  where these are what is played for.
  """
  return ends | (transitions.reward != 0) if config.points else ends


def scale_rewards(config, state: TrainState, transitions: Transition, mask):
  """(rewards over the running deviation of their discounted sums, what is carried for that,
  moments with that of rewards).
  """

  def add(total, x):
    reward, end = x
    total = config.discount * total + reward
    return jnp.where(end, 0, total), total

  # a host that has lost an episode, as after a resume, begins another without an end of the first
  before = jnp.where(transitions.episode_length[0] == 1, 0, state.carried['discounted'])
  ends = return_ends(config, transitions.done, transitions)
  last, sums = jax.lax.scan(add, before, (transitions.reward, ends))
  deviation = jnp.sqrt(state.moments['reward'].variance + 1e-8)
  return transitions.reward / deviation, {'discounted': last}, {'reward': state.moments['reward'].update(sums, mask)}


def examples(transitions: Transition, learning: dict) -> dict:
  """What minibatches are cut from: steps, or of a policy that remembers whole environments.

  Args:
    transitions: a rollout, [time, environments, …].
    learning: more arrays [time, environments, …].

  Returns:
    'observation', 'action' and `learning`, [time * environments, …]; or [environments, time, …], where 'observation' is
    WithMemory of the memory [environments, …] before the first time, and with 'is_first', where an episode begins.
  """
  observation, action = transitions.observation, transitions.action
  if not isinstance(observation, WithMemory):
    rows = {'observation': observation, 'action': action, **learning}
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
  is_first = jnp.concatenate([jnp.zeros_like(transitions.done[:1]), transitions.done[:-1]])
  rows = {'observation': observation.value, 'action': action.value, 'is_first': is_first, **learning}
  rows = jax.tree.map(lambda x: x.swapaxes(0, 1), rows)
  memory = jax.tree.map(lambda x: x[0], observation.memory)  # the initial one already where an episode begins
  return {**rows, 'observation': WithMemory(rows['observation'], memory)}


def standardise_advantages(advantages, mask):
  """Those of a minibatch, [size] or [environments, time], over all replicas, with mean 0 and deviation 1."""
  mean, variance, _ = returns.moments(advantages, mask)
  return (advantages - mean) / (jnp.sqrt(variance) + 1e-8)


def train_step(policy: Policy, optimiser: optax.GradientTransformation, config) -> Callable:
  """The step of a policy gradient method, in the order of the algorithm: its parts share policy, optimiser and config.

  Args:
    policy: of `policy`.
    optimiser: makes `epochs` × `minibatches` updates a step.
    config: of experiments/policy_gradient.py, the algorithm's own values where none is given.

  Raises:
    UsageError: when it is traced, for a rollout which cannot be cut into its minibatches.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). The state has carried {'worlds': RolloutState, 'discounted':
    [environments], if rewards are scaled} and perhaps moments {'observation', 'reward'}, which are RunningMoments.
    The batch is only the environments' numbers.
  """
  distribution = policy.distribution

  def apply_all(state, observation):
    """[time, environments, …] -> outputs [time, environments, size], values [time, environments];
    each step by itself.
    """
    lead = value_of(observation).shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observation)
    outputs, values, *_ = policy.apply(state.params, state.moments, flat)
    return outputs.reshape(*lead, -1), values.reshape(lead)

  def learning_signal(state, rewards, transitions, mask):
    """What the examples of a rollout are learnt by, each [time, environments]; targets and values for the metrics."""
    # In one pass over all steps, so that the rollout's loop computes nothing but actions.
    outputs, values = apply_all(state, transitions.observation)
    next_values = apply_all(state, transitions.next_observation)[1]
    final = return_ends(config, transitions.terminated, transitions)
    advantages = returns.advantages(
      rewards, values, next_values, final, transitions.truncated, discount=config.discount, gae_lambda=config.gae
    )
    targets = advantages + values
    log_probs = distribution.log_prob(outputs, value_of(transitions.action))
    advantages = advantages if config.baseline else targets
    return {'log_prob': log_probs, 'value': values, 'advantage': advantages, 'target': targets, 'mask': mask}

  def loss(params, moments, batch, key):
    is_first = [batch['is_first']] if 'is_first' in batch else []
    outputs, values, *_ = policy.apply(params, moments, batch['observation'], *is_first)
    terms, mask = loss_terms(config, distribution, outputs, values, batch), batch['mask']
    total = pair(terms.pop('loss'), mask)
    # all sums at once: each alone would be several calls of the CPU
    rows = jax.lax.stop_gradient(jnp.stack([x.astype(jnp.float32) for x in terms.values()]))
    sums, count = jnp.where(mask, rows, 0).sum(tuple(range(1, rows.ndim))), mask.sum().astype(jnp.float32)
    return {'loss': total, **{name: (sums[i], count) for i, name in enumerate(terms)}}, moments

  descend = make_update(loss, optimiser, config.microbatches)

  def update(carry, batch, moments):
    params, opt_state, stopped = carry
    new_params, _, new_opt_state, metrics, _ = descend(params, moments, opt_state, batch, None)
    new = new_params, new_opt_state
    if config.target_kl:  # as in Spinning Up and stable-baselines3; what is skipped holds up no schedule
      metrics = jax.tree.map(lambda x: jnp.where(stopped, 0, x), metrics)
      stopped = stopped | (metrics['kl'][0] > KL_MARGIN * config.target_kl * metrics['kl'][1])
      new = jax.tree.map(lambda a, b: jnp.where(stopped, b, a), new, (params, optim.skipped(opt_state)))
    return (*new, stopped), metrics

  def step(state: TrainState, batch):
    worlds, transitions = collect(policy, config, state, batch)
    rewards, carried, moments, mask = transitions.reward, {}, {}, learnt_from(config, transitions)
    if config.scale_rewards:
      rewards, carried, moments = scale_rewards(config, state, transitions, mask)
    learning = learning_signal(state, rewards, transitions, mask)
    rows = examples(transitions, learning)
    size = len(rows['mask'])
    if size % (config.minibatches * config.microbatches):
      unit = 'environments, and a memory needs whole ones,' if 'is_first' in rows else 'steps of a rollout'
      raise UsageError(
        f'{size} {unit} on one device cannot be cut into {config.minibatches} minibatches of {config.microbatches} '
        'microbatches: choose another rollout, batch_size or minibatches'
      )

    def epoch(carry, key):
      parts = rows
      if config.minibatches > 1:
        order = jax.random.permutation(key, size)
        parts = jax.tree.map(lambda x: x[order], rows)
      parts = jax.tree.map(lambda x: x.reshape(config.minibatches, -1, *x.shape[1:]), parts)
      if config.normalise:
        parts['advantage'] = jax.vmap(standardise_advantages)(parts['advantage'], parts['mask'])
      return jax.lax.scan(lambda carry, part: update(carry, part, state.moments), carry, parts)

    first = state.params, state.opt_state, jnp.zeros((), bool)
    (params, opt_state, _), metrics = jax.lax.scan(epoch, first, shuffle_keys(state, config.epochs))
    metrics = jax.tree.map(lambda x: x.sum((0, 1)), metrics)
    del metrics['loss']
    explained = returns.explained_variance(learning['value'], learning['target'], mask)
    metrics |= {'explained_variance': (explained, jnp.ones(()))} | collectives.total(rollouts.finished(transitions))
    if 'observation' in state.moments:
      moments['observation'] = state.moments['observation'].update(value_of(transitions.observation), mask)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, moments=moments)
    return state.replace(carried={**carried, 'worlds': worlds}), metrics

  return step


def shuffle_keys(state: TrainState, epochs: int):
  """[epochs]: the keys of the permutations in which a step goes through its rollout."""
  return jax.random.split(step_key(state, SHUFFLE), epochs)
