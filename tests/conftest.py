"""Settings of every test: one torch thread, no model hub, no usage reports, no time limits inside hypothesis."""

import os

# Set before torch, transformers or Ray are imported, and inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from hypothesis import settings

# A busy machine makes an example slow, not wrong; pytest-timeout ends a test that really hangs.
settings.register_profile("drover", deadline=None)
settings.load_profile("drover")
