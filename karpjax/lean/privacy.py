"""What private training costs: ε of a number of steps, by the Rényi divergences of the sampled Gaussian mechanism.

A step adds Gaussian noise of deviation σ to a sum of what examples give, each of norm at most 1 (in units of the clip),
in which each of them is by itself with probability q. Two data sets are neighbours where one has one example more.
"""

import functools
import math

import numpy as np

from karpjax.errors import UsageError

ORDERS = np.array([*np.linspace(1.1, 10.9, 99), *range(11, 64), 128, 256, 512, 1024])  # those of dp_accounting
LEAST_NOISE, MOST_NOISE = 0.1, 1000.0  # with less ε is in the hundreds; with more nothing is learnt
CONVERSIONS = {
  'tight': 'conversion of Canonne et al. 2020',
  'classical': 'classical conversion, Mironov 2017',
}


@functools.lru_cache(maxsize=64)
def divergences(rate: float, noise: float) -> np.ndarray:
  """Rényi divergences of one step, one for each of ORDERS (Mironov, Talwar & Zhang 2019, section 3).

    log E[((1 − q) + q exp((2z − 1) / 2σ²))^α] / (α − 1), z normal with deviation σ

  by the trapezoidal rule, whose error falls exponentially for such integrals.

  Args:
    rate: q, in (0, 1].
    noise: σ, at least LEAST_NOISE.
  """
  if rate == 1:
    return ORDERS / (2 * noise**2)
  step, each = min(noise, noise**2) / 4, []
  for order in ORDERS:
    z = np.arange(-12 * noise, order + 12 * noise, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise**2))
    exponents = order * ratio - z**2 / (2 * noise**2)
    top = exponents.max()
    moment = top + math.log(np.exp(exponents - top).sum() * step / (noise * math.sqrt(2 * math.pi)))
    each.append(max(0.0, moment) / (order - 1))
  return np.array(each)


def epsilon(rate: float, noise: float, steps: int, delta: float, conversion: str = 'tight') -> float:
  """ε at δ after so many steps.

  Args:
    conversion: 'classical': ε = D_α + log(1 / δ) / (α − 1) (Mironov 2017, proposition 3); 'tight':
      ε = D_α + log((α − 1) / α) − (log δ + log α) / (α − 1) (Canonne, Kamath & Steinke 2020, proposition 12). Of either
      the least over ORDERS.
  """
  if steps == 0:
    return 0.0
  divergence = steps * divergences(rate, noise)
  if conversion == 'classical':
    return float((divergence - math.log(delta) / (ORDERS - 1)).min())
  more = np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
  return max(0.0, float((divergence + more).min()))


def least_noise(target: float, rate: float, steps: int, delta: float) -> float:
  """The least noise, in steps of 1/10,000, whose `epsilon` is at most `target`.

  Raises:
    UsageError: where not even MOST_NOISE does.
  """
  spent = lambda noise: epsilon(rate, noise, steps, delta)
  if spent(MOST_NOISE) > target:
    text = f'dp_epsilon={target:g}: at dp_delta={delta:g} even noise of {MOST_NOISE:g} gives {spent(MOST_NOISE):.3g}'
    raise UsageError(f'{text} after {steps:,} steps; allow more, train for fewer steps, or with a smaller batch_size')
  low, high = round(LEAST_NOISE * 10_000), round(MOST_NOISE * 10_000)
  while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if spent(middle / 10_000) <= target else (middle + 1, high)
  return high / 10_000


def by_dp_accounting(rate: float, noise: float, steps: int, delta: float) -> dict[str, float]:
  """{accountant: ε} by the package dp_accounting, {} without it: of its Rényi divergences, and of privacy losses' distributions."""
  try:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent, pld, rdp
  except ImportError:
    return {}
  event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
  accountants = {'RDP': rdp.RdpAccountant(list(ORDERS)), 'PLD': pld.PLDAccountant()}
  return {name: accountant.compose(event).get_epsilon(delta) for name, accountant in accountants.items()}
