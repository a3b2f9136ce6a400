"""`synapse doctor`: checks of the machine, the installation and the cluster."""
