"""For every test."""

from hypothesis import HealthCheck, settings

# A machine that stands still for a second or two, as busy ones do, says nothing about an example.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
