"""The flags of the server's settings."""

from __future__ import annotations

from resnet50_server.settings import ENV_PREFIX, Settings, unknown_environment
from resnet50_settings.flags import Flags

FLAGS = Flags(Settings, ENV_PREFIX, unknown_environment)
