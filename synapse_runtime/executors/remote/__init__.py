"""Run actions through a Synapse backend, over HTTP. Importing this package does not import httpx."""

from __future__ import annotations
