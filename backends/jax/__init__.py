"""JAX: Flax NNX and Optax."""
