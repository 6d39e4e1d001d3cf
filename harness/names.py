"""Names that a layer, network or value cannot have, because a framework's modules use them."""

RESERVED = frozenset()
