"""Driving: its parts against closed forms and plain NumPy, its traffic against itself, its drivers in their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import policy_gradient as experiment
from karpjax.rl import environments, rollout
from karpjax.rl.driving import __main__ as drivers
from karpjax.rl.driving import environment as driving
from karpjax.rl.driving import road as roads
from karpjax.rl.driving import sensors, traffic, vehicle
from karpjax.rl.environment import Timed
from karpjax.train import loop


def keys_of(count, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def ring(curvature):
  """A road of one curvature, three lanes."""
  heading = curvature * roads.CELL * np.arange(roads.CELLS + 1)
  if curvature:
    points = np.stack([np.sin(heading), 1 - np.cos(heading)], -1) / curvature
  else:
    points = np.stack([roads.CELL * np.arange(roads.CELLS + 1), 0 * heading], -1)
  return roads.Road(jnp.asarray(np.concatenate([points, heading[:, None]], -1), jnp.float32), jnp.int32(3))


def car(s=0.0, d=0.0, heading=0.0, speed=5.0):
  return vehicle.Vehicle(*(jnp.float32(x) for x in (s, d, heading, speed, 0.0, 0.0)))


begin = jax.jit(lambda key: driving.reset(key, 'mixed'))
advance = jax.jit(vehicle.advance)


@jax.jit
def sensed(state):
  """(Boxes, rays, the road's right and left edge, which bodies are hit)."""
  seen = sensors.boxes(state)
  return seen, sensors.rays(state, seen), sensors.edges(state), sensors.hit(seen)


@pytest.fixture(scope='module')
def generated():
  """{kind: roads}, of 1,000 keys in all, on the host."""
  mixed = jax.device_get(jax.jit(jax.vmap(roads.generate))(keys_of(1000)))
  closed = mixed.knots[:, -1, 2] - mixed.knots[:, 0, 2] > 6
  assert 400 < closed.sum() < 600
  return {kind: jax.tree.map(lambda x: x[of], mixed) for kind, of in (('closed', closed), ('open', ~closed))}


def test_a_bicycle_goes_round_a_circle_of_its_closed_form_radius():
  steering, speed = 0.15, 5.0
  states = [car(speed=speed)]
  for _ in range(60):
    states.append(advance(ring(0.0), states[-1], steering, 0.0))
  points = np.array([[float(state.s), float(state.d)] for state in states])  # the road is straight: the plane itself
  # of the middle: the rear axle's circle of (front + rear) / tan, and the middle is `rear` before it
  radius = np.hypot((vehicle.FRONT + vehicle.REAR) / np.tan(steering), vehicle.REAR)
  slip = np.arctan(vehicle.REAR / (vehicle.FRONT + vehicle.REAR) * np.tan(steering))
  centre = radius * np.array([-np.sin(slip), np.cos(slip)])
  np.testing.assert_allclose(np.linalg.norm(points - centre, axis=1), radius, rtol=2e-3)
  turned = np.unwrap([float(state.heading) for state in states])
  np.testing.assert_allclose(turned[-1], 60 * vehicle.SECONDS * speed / radius, rtol=1e-4)


def test_wheels_that_follow_a_bend_keep_the_vehicle_in_its_lane():
  bend, d = 0.03, -2.0
  curvature = bend / (1 - bend * d)  # of a circle beside the centre line
  slip = np.arcsin(vehicle.REAR * curvature)
  steering = np.arctan((vehicle.FRONT + vehicle.REAR) / vehicle.REAR * np.tan(slip))
  state = car(d=d, heading=-slip, speed=6.0)
  for _ in range(100):
    state = advance(ring(bend), state, steering, 0.0)
  np.testing.assert_allclose(state.d, d, atol=0.02)
  np.testing.assert_allclose(state.s, 100 * vehicle.SECONDS * 6.0 / (1 - bend * d), rtol=2e-3)


def test_frenet_coordinates_are_the_same_drive_as_in_the_plane(generated):
  road = jax.tree.map(lambda x: jnp.asarray(x[3]), generated['closed'])
  state, seconds = car(d=1.0, speed=8.0), vehicle.SECONDS / 100
  frame = lambda ego: jax.device_get(sensors.frame(traffic.State(road, ego, *[None] * 4)))
  origin, heading = frame(state)
  speed, point, heading = 8.0, np.array(origin, np.float64), float(heading)
  rng = np.random.default_rng(0)
  for _ in range(25):
    steering, acceleration = rng.uniform(-0.05, 0.08), rng.uniform(-1, 1)
    state = advance(road, state, steering, acceleration)
    slip = np.arctan(0.5 * np.tan(steering))
    for _ in range(100):
      point += seconds * speed * np.array([np.cos(heading + slip), np.sin(heading + slip)])
      heading += seconds * speed * np.sin(slip) / vehicle.REAR
      speed += seconds * acceleration
  ours, angle = frame(state)
  np.testing.assert_allclose(ours, point, atol=0.1)
  assert abs((float(angle) - heading + np.pi) % (2 * np.pi) - np.pi) < 0.005


def test_tyres_slide_at_their_grip():
  state = advance(ring(0.0), car(speed=20.0), vehicle.MOST_STEERING, 0.0)
  np.testing.assert_allclose(20.0 * state.heading / vehicle.SECONDS, vehicle.GRIP, rtol=0.01)
  assert float(advance(ring(0.0), car(speed=0.5), 0.0, -5.0).speed) == 0


def test_closed_tracks_close_and_no_road_lies_on_itself(generated):
  closed, opened = generated['closed'].knots, generated['open'].knots
  np.testing.assert_allclose(closed[:, -1, :2], closed[:, 0, :2], atol=1e-2)
  np.testing.assert_allclose(closed[:, -1, 2] - closed[:, 0, 2], 2 * np.pi, atol=1e-4)
  width = roads.MOST_LANES * roads.LANE
  apart = np.abs(np.arange(roads.CELLS)[:, None] - np.arange(roads.CELLS))
  far = np.minimum(apart, roads.CELLS - apart) * roads.CELL > 2 * width
  for knots in closed[:100]:
    distances = np.linalg.norm(knots[:-1, None, :2] - knots[:-1, :2], axis=-1)
    assert distances[far].min() > width
  for knots in (closed, opened):
    assert np.abs(np.diff(knots[..., 2])).max() / roads.CELL < 0.05  # inner edges keep a radius of 14 m
    lengths = np.linalg.norm(np.diff(knots[..., :2], axis=1), axis=-1)
    np.testing.assert_allclose(lengths, roads.CELL, rtol=5e-3)
  # an open road always goes forwards along its mean direction, and each is another
  along = np.diff(opened[..., :2], axis=1)
  mean = opened[:, -1, :2] - opened[:, 0, :2]
  assert (np.einsum('nkx,nx->nk', along, mean) > 0).all()
  assert set(generated['open'].lanes) == {2, 3} and np.std(opened[:, 20, 1]) > 1


def test_roads_go_on_smoothly_where_they_begin_again(generated):
  at = jax.jit(roads.at)
  for kind, found in generated.items():
    road = jax.tree.map(lambda x: jnp.asarray(x[0]), found)
    before, after = (jax.device_get(at(road, jnp.float32(roads.LENGTH + x))) for x in (-0.01, 0.01))
    np.testing.assert_allclose(before.position, after.position, atol=0.03, err_msg=kind)
    np.testing.assert_allclose(before.heading, after.heading, atol=0.002, err_msg=kind)
    # within cells: the derivative of the position is the heading
    s = jnp.linspace(-100, 600, 50)
    here, there = jax.device_get((at(road, s), at(road, s + 0.5)))
    angle = np.arctan2(*((there.position - here.position).T[::-1]))
    off = angle - (here.heading + there.heading) / 2
    np.testing.assert_allclose((off + np.pi) % (2 * np.pi) - np.pi, 0, atol=2e-3)


def test_idm_keeps_its_equilibrium_distance():
  # Treiber et al. 2000, eq. 5: s = (s0 + v T) / √(1 - (v / v0)⁴)
  speed, desired = 8.0, 12.0
  gap = (traffic.STANDSTILL + traffic.HEADWAY * speed) / np.sqrt(1 - (speed / desired) ** 4)
  np.testing.assert_allclose(traffic.follow(speed, desired, speed, gap), 0, atol=1e-5)
  assert (
    float(traffic.follow(speed, desired, speed, gap - 1)) < 0 < float(traffic.follow(speed, desired, speed, gap + 1))
  )
  np.testing.assert_allclose(traffic.follow(desired, desired, 0.0, np.inf), 0, atol=1e-6)
  np.testing.assert_allclose(traffic.follow(0.0, desired, 0.0, np.inf), traffic.ACCELERATION)


@pytest.mark.slow
def test_traffic_alone_never_collides_and_changes_lanes():
  def play(key):
    state = driving.reset(key, 'mixed')
    nobody = state.ego.replace(d=jnp.float32(1e3))

    def body(vehicles, key):
      after = traffic.advance(key, state.replace(traffic=vehicles, ego=nobody))
      s = jnp.concatenate([after.s, state.obstacles.s])
      d = jnp.concatenate([after.d, state.obstacles.d])
      half = traffic.HALVES
      long = jnp.abs(roads.ahead(s[:, None], s)) < half[:, :1] + half[:, 0]
      wide = jnp.abs(d[:, None] - d) < half[:, 1:] + half[:, 1]
      return after, (jnp.triu(long & wide, 1).sum(), (after.lane != vehicles.lane).sum(), after.speed.mean())

    return jax.lax.scan(body, state.traffic, jax.random.split(key, 200))[1]

  overlaps, changes, speeds = jax.jit(jax.vmap(play))(keys_of(40))
  assert int(overlaps.sum()) == 0
  assert float(changes.sum(1).mean()) > 5 and float(speeds[:, -1].mean()) > 5  # and does not jam


def brute_force(bodies, polygon, angle):
  """Metres to the first of points along a ray that lies in a rectangle, and to the first that is not in the polygon."""
  from matplotlib.path import Path

  far = np.arange(0, sensors.RANGE, 0.02)
  points = far[:, None] * np.array([np.cos(angle), np.sin(angle)])
  inside = np.zeros(len(far), bool)
  for centre, heading, half in zip(bodies.centre, bodies.heading, bodies.half):
    ahead, left = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    inside |= (np.abs((points - centre) @ ahead) <= half[0]) & (np.abs((points - centre) @ left) <= half[1])
  on = Path(polygon).contains_points(points)
  first = lambda hits: far[np.argmax(hits)] if hits.any() else sensors.RANGE
  return first(inside), first(~on)


def test_rays_are_brute_force_geometry():
  met = 0
  for seed in range(6):
    state = begin(jax.random.key(seed))
    ego = state.ego.replace(s=state.traffic.s[0] - 12, d=jnp.float32(0.5), heading=jnp.float32(0.2))
    seen, found, (right, left), _ = jax.device_get(sensed(state.replace(ego=ego)))
    found = found * [sensors.RANGE, sensors.RANGE, vehicle.FASTEST]
    polygon = np.concatenate([right, left[::-1]])
    for ray in range(0, len(sensors.ANGLES), 3):
      body, edge = brute_force(seen, polygon, sensors.ANGLES[ray])
      np.testing.assert_allclose(found[ray, 0], body, atol=0.05)
      met += body < sensors.RANGE
      # where the polygon is cut off, far behind, there is no edge
      assert abs(found[ray, 1] - edge) < 0.05 or (found[ray, 1] > edge and np.cos(sensors.ANGLES[ray]) < 0)
      assert (found[ray, 2] != 0) <= (found[ray, 0] < sensors.RANGE)
  assert met > 5


def test_a_leader_is_measured_and_hit():
  road, ego = ring(0.0), car(speed=10.0)
  others = np.full(traffic.VEHICLES, 200.0, np.float32)
  still = traffic.Bodies(jnp.full(traffic.OBSTACLES, 250.0), *[jnp.zeros(traffic.OBSTACLES)] * 3)

  def seen(distance):
    s = jnp.asarray(others).at[0].set(distance)
    speed = jnp.full(traffic.VEHICLES, 4.0)
    vehicles = traffic.Traffic(s, 0 * s, speed, speed, jnp.ones(traffic.VEHICLES, jnp.int32))
    return sensed(traffic.State(road, ego, vehicles, still, jnp.bool_(False), jnp.bool_(False)))

  ahead = int(np.argmin(np.abs(sensors.ANGLES)))
  ray = seen(30.0)[1][ahead]
  np.testing.assert_allclose(ray, [(30 - 4.5 / 2) / 60, 1, (10 - 4) / 20], rtol=1e-4)
  assert not seen(4.6)[3].any() and seen(4.4)[3].any()
  # turned by half a right angle, it is met where its corner is
  boxes, hit = seen(200.0)[0], jax.jit(sensors.hit)
  for x, y, met in ((3.6, 1.0, True), (4.3, 2.6, False)):
    heading, centre = boxes.heading.at[0].set(np.pi / 4), boxes.centre.at[0].set(jnp.array([x, y]))
    assert hit(boxes.replace(heading=heading, centre=centre)).any() == met


def test_the_raster_shows_what_is_there():
  state = begin(jax.random.key(1))
  ego = state.ego.replace(s=state.obstacles.s[0] - 20, d=state.obstacles.d[0])
  state = state.replace(ego=ego)
  seen = sensed(state)[0]
  picture = np.asarray(jax.jit(sensors.raster)(state, seen))
  x, y = np.asarray(seen.centre[traffic.VEHICLES])
  row = round(sensors.PIXELS * 0.75 - 0.5 - x / sensors.METRES)
  column = round((sensors.PIXELS - 1) / 2 - y / sensors.METRES)
  assert picture[row - 1 : row + 2, column - 1 : column + 2, sensors.CHANNELS.index('obstacles')].any()
  assert 2 <= picture[..., sensors.CHANNELS.index('obstacles')].sum() < 40
  # across the road, where the vehicle is
  own = picture[23:25, :, sensors.CHANNELS.index('road')].sum(1) * sensors.METRES
  np.testing.assert_allclose(own, 2 * float(state.road.half_width), atol=1.6 * sensors.METRES)
  np.testing.assert_allclose(picture[..., -1], ego.speed / vehicle.FASTEST)


def test_random_drives_keep_the_protocol():
  world = environments.make('driving')
  noise = jax.random.uniform(jax.random.key(1), (60, 64, 2), minval=-1.5, maxval=1.5)
  act, keys = lambda observation, action: action, keys_of(64)
  play = jax.jit(lambda keys: rollout.rollout(world, act, rollout.start(world, keys), keys, noise, 60, reset=False))
  worlds, seen = jax.device_get(play(keys))
  assert world.action.shape == (2,) and world.limit == 200
  assert seen.observation.shape == (60, 64, *world.observation.shape) and seen.observation.dtype == np.float32
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((worlds, seen)))
  assert np.abs(seen.next_observation).max() <= 1
  assert seen.terminated.sum() > 20 and seen.episode_length[seen.done].min() >= world.shortest


@pytest.fixture(scope='module')
def driven():
  """{driver: RolloutState at the ends of 32 roads}."""
  play = lambda driver: jax.jit(lambda keys: drivers.drive(driver, keys))(keys_of(32, 5))
  return {name: jax.device_get(play(driver)) for name, driver in drivers.DRIVERS.items()}


@pytest.mark.slow
def test_outcomes_exclude_each_other(driven):
  for episodes in driven.values():
    found = jax.device_get(jax.vmap(driving.outcomes)(episodes.state.inner, episodes.episode_return))
    assert (found['collision'].astype(int) + found['off_road'] + found['time_limit'] == 1).all()
    np.testing.assert_array_equal(found['crash'], found['collision'] | found['off_road'])
    np.testing.assert_array_equal(found['time_limit'], episodes.episode_length == driving.STEPS)
    np.testing.assert_array_equal(found['success'], episodes.episode_length == driving.STEPS)
    np.testing.assert_array_equal(found['progress'], episodes.state.inner.ego.s)


@pytest.mark.slow
def test_drivers_crash_in_their_order_and_it_pays_not_to(driven):
  numbers = {name: drivers.summarise(episodes) for name, episodes in driven.items()}
  assert numbers['random']['crash'] >= 0.95 and numbers['random']['off_road'] > 0.5
  assert numbers['pd']['crash'] >= 0.4 and numbers['pd']['off_road'] == 0  # it keeps its lane, and hits what is there
  assert numbers['privileged']['crash'] <= 1 / 32
  assert numbers['random']['progress'] < numbers['pd']['progress'] < numbers['privileged']['progress']
  assert numbers['random']['return'] < numbers['pd']['return'] < numbers['privileged']['return']
  assert 0 < numbers['pd']['speed'] < 13


@pytest.mark.slow
def test_the_command_prints_a_line_for_a_driver(capsys):
  assert drivers.main(['--driver=random', '--roads=3', '--kind=closed']) == 0
  assert 'off_road' in capsys.readouterr().out


@pytest.mark.parametrize('flag', ['--roads=0', '--seed=-1', '--seed=4294967296', '--roads=99999999999'])
def test_numbers_that_no_drive_can_have_are_refused(flag, capsys):
  with pytest.raises(SystemExit) as stopped:
    drivers.main([flag])
  assert stopped.value.code == 2 and flag in capsys.readouterr().err


@pytest.mark.parametrize(
  'given',
  [
    dict(environment='driving'),
    pytest.param(dict(environment='driving_raster', body='cnn'), marks=pytest.mark.slow),
  ],
)
@pytest.mark.slow
def test_ppo_reports_outcomes_after_three_updates(given, tmp_path):
  config = experiment.Config(
    **given, batch_size=8, rollout=6, minibatches=2, epochs=1, widths=(8,), steps='3', episodes=3, log_every='1',
    tensorboard=False, plots=False, steps_per_call='1', workdir=str(tmp_path / 'run'),
  )  # fmt: skip
  numbers = loop.run(experiment, config, say=lambda line: None).numbers
  assert np.isfinite(numbers['train/policy_loss'])
  assert 0 <= numbers['test/crash'] <= 1 and np.isfinite(numbers['test/progress'])
  assert numbers['test/crash'] == pytest.approx(numbers['test/collision'] + numbers['test/off_road'])
  assert numbers['test/time_limit'] == pytest.approx(1 - numbers['test/crash'])
  assert 'test/stochastic_crash' in numbers


def test_frames_follow_the_vehicle():
  world, state = environments.make('driving'), begin(jax.random.key(0))
  states = [state]
  for _ in range(8):
    states.append(states[-1].replace(ego=advance(state.road, states[-1].ego, 0.0, 2.0)))
  timed = Timed(jax.tree.map(lambda *x: np.stack(x), *jax.device_get(states)), np.arange(9))
  frames = world.render(timed)
  assert frames.dtype == np.uint8 and frames.shape[0] == 9 and frames.shape[-1] == 3
  assert (frames[0] != frames[-1]).any()
  orange = (np.abs(frames.astype(int) - [213, 94, 0]).sum(-1) < 30).sum((1, 2))
  assert (orange > 50).all()  # the vehicle is in each
