"""Ray clusters: finding one, starting one, connecting to one. Importing this package does not import Ray."""
