"""Actions that the contract's tests run, each made to show one thing."""
