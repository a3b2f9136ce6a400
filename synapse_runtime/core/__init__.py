"""Everything that one run of an action needs, in the test's process as well as in a worker."""
