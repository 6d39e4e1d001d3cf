"""The rungs of `harness check`, each in a module of its own, and the statistics that they need."""
