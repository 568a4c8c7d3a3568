"""Limits that all peers share; without PyTorch, which only the processes that compute import."""

from __future__ import annotations

import os

MAX_BATCH_SIZE = int(os.environ.get("MAX_BATCH_SIZE", "16"))
# Time that a batch waits for further images, where a server has such a setting.
MAX_WAIT_S = 0.001
TOP_K = 5
