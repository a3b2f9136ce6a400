"""Actions that the contract's tests run, each for one purpose."""
