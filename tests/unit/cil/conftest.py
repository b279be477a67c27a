"""Hypothesis without deadlines: on a busy machine a deadline fails tests that are right."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
