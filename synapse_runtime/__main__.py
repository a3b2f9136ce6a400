"""`python -m synapse_runtime`: the `synapse` command."""

from synapse_runtime.cli import main

if __name__ == "__main__":
    main()
