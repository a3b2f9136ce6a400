"""A Synapse backend in one command: `synapse serve`. Needs the extra `server`."""
