"""One run of an action, in whichever process it takes place."""
