"""PPO in PyTorch with gymnasium's environments, from Schulman et al. 2017.

What a time limit cuts is worth its value, as in ours. All that can be done for a whole rollout at once is: noise, values.
"""

import itertools
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

DISCOUNT, DECAY, CLIP, ENTROPY, VALUE, NORM = 0.99, 0.95, 0.2, 0.01, 0.5, 0.5  # the defaults of the experiment
ENVIRONMENT = 'CartPole-v1'
TRIAL_STEPS = 500


class ActorCritic(nn.Module):
  """Two networks of two tanh layers: observations -> logits, values."""

  def __init__(self, size: int, actions: int, width: int = 64):
    super().__init__()
    self.actor1, self.actor2, self.policy = nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width, actions)
    self.critic1, self.critic2, self.value = nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width, 1)

  def logits(self, x):
    return self.policy(torch.tanh(self.actor2(torch.tanh(self.actor1(x)))))

  def values(self, x):
    return self.value(torch.tanh(self.critic2(torch.tanh(self.critic1(x)))))[..., 0]


class OneByOne:
  """gymnasium's SyncVectorEnv: reset () -> observations; step (actions) -> reached, rewards, terminated, truncated, next."""

  def __init__(self, name: str, count: int):
    import gymnasium
    from gymnasium.vector import AutoresetMode

    options = {'autoreset_mode': AutoresetMode.SAME_STEP}
    self.environments = gymnasium.make_vec(name, num_envs=count, vectorization_mode='sync', vector_kwargs=options)

  def reset(self):
    return self.environments.reset(seed=0)[0]

  def step(self, actions):
    following, rewards, terminated, truncated, seen = self.environments.step(actions)
    reached = following.copy()
    for i in np.flatnonzero(seen.get('_final_obs', ())):
      reached[i] = seen['final_obs'][i]
    return reached, rewards, terminated, truncated, following


class AllAtOnce(OneByOne):
  """gymnasium's environments that are vectors themselves; what ends is reset at once, as they would do a step later."""

  def __init__(self, name: str, count: int):
    import gymnasium

    self.environments = gymnasium.make_vec(name, num_envs=count, vectorization_mode='vector_entry_point').unwrapped

  def step(self, actions):
    reached, rewards, terminated, truncated, _ = self.environments.step(actions)
    end, inner = terminated | truncated, self.environments
    if not end.any():
      return reached, rewards, terminated, truncated, reached
    inner.state[:, end] = inner.np_random.uniform(inner.low, inner.high, (len(inner.state), end.sum()))
    inner.steps[end], inner.prev_done[end] = 0, False
    return reached, rewards, terminated.copy(), truncated.copy(), inner.state.T.astype(np.float32)


def play(model: ActorCritic, environments, config: dict):
  """Rollouts for ever, as `ours.rollouts` has them, by the policy as it is."""
  length, count = config['rollout'], config['batch_size']
  following, size = environments.reset(), length * count
  while True:
    noise = -torch.log(-torch.log(torch.rand(length, count, 2).clamp_(1e-20)))
    rows = []
    for t in range(length):
      observation = following
      with torch.no_grad():
        action = (model.logits(torch.from_numpy(observation)) + noise[t]).argmax(-1).numpy()
      reached, reward, terminated, truncated, following = environments.step(action)
      rows.append((observation, action, np.asarray(reward, np.float32), terminated, truncated, reached))
    names = 'observation', 'action', 'reward', 'terminated', 'truncated', 'next_observation'
    seen = {name: torch.from_numpy(np.stack(x)) for name, x in zip(names, zip(*rows))}
    yield {**seen, 'order': torch.stack([torch.randperm(size) for _ in range(config['epochs'])])}


def advantages(reward, value, next_value, terminated, truncated):
  """Schulman et al. 2016, eqs. 11 and 16; each [time, environments]."""
  error = reward + DISCOUNT * torch.where(terminated, 0, next_value) - value
  weight = DISCOUNT * DECAY * (~(terminated | truncated)).float()
  found, total = torch.empty_like(error), torch.zeros_like(error[0])
  for t in range(len(error) - 1, -1, -1):
    total = error[t] + weight[t] * total
    found[t] = total
  return found


def update(model: ActorCritic, rule, config, seen):
  """All updates from one rollout; their mean loss."""
  with torch.no_grad():
    value, next_value = model.values(seen['observation']), model.values(seen['next_observation'])
    advantage = advantages(seen['reward'], value, next_value, seen['terminated'], seen['truncated'])
    action = seen['action'].long()[..., None]
    log_prob = F.log_softmax(model.logits(seen['observation']), -1).gather(-1, action)[..., 0]
    given = [seen['observation'], action, log_prob, value, advantage, advantage + value]
  flat, parameters, total = [x.flatten(0, 1) for x in given], list(model.parameters()), 0.0
  for rows in itertools.chain(*(order.chunk(config['minibatches']) for order in seen['order'])):
    loss = loss_of(model, *(x[rows] for x in flat))
    rule.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, NORM)
    rule.step()
    total = total + loss.detach()
  return total / (config['epochs'] * config['minibatches'])


def loss_of(model, observation, action, log_prob, value, advantage, target):
  """Schulman et al. 2017, eq. 9, the value's loss clipped too."""
  chances, values = F.log_softmax(model.logits(observation), -1), model.values(observation)
  advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
  ratio = (chances.gather(-1, action)[..., 0] - log_prob).exp()
  objective = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
  near = value + (values - value).clamp(-CLIP, CLIP)
  errors = torch.max((values - target).square(), (near - target).square())
  entropy = -(chances.exp() * chances).sum(-1).mean()
  return VALUE * 0.5 * errors.mean() - objective - ENTROPY * entropy


def quickest(name: str, count: int):
  """The kind of vector environment that makes most steps a second."""
  found = []
  for kind in (OneByOne, AllAtOnce):
    environments = kind(name, count)
    environments.reset()
    begun = time.perf_counter()
    for t in range(TRIAL_STEPS):
      environments.step(np.full(count, t % 2))
    found.append((time.perf_counter() - begun, kind.__name__, kind))
  return min(found)[2]


def build(setup, options):
  return ActorCritic(setup.shape[0], setup.classes)


def stepping(setup, model, rule, inputs, *, layout, timed):
  """Updates from our first rollouts, then, or from the beginning where it is `timed`, from its own."""
  optimiser, config = rule(model), setup.config
  first = 0 if timed else len(inputs['reward'])
  ours = [{n: torch.from_numpy(np.array(x[t])) for n, x in inputs.items()} for t in range(first)]
  environments = quickest(ENVIRONMENT, config['batch_size'])(ENVIRONMENT, config['batch_size'])
  rollouts = itertools.chain(ours, play(model, environments, config))
  return lambda: update(model, optimiser, config, next(rollouts))
