def frames(states):
  raise NotImplementedError
