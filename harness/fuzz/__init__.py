"""Random valid specs over the whole vocabulary, trained in live workers and compared; what parts or fails is made small and kept."""
