"""Write a Synapse plugin action's test once; `pytest --synapse-mode` says where it runs."""
