"""The ladder of equivalence: checks that are shown to be able to fail, and what finds a divergence's place and cause."""
