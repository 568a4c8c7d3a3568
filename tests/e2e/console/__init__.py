"""The console in Chromium: `make console`."""
