"""The atlas: known differences between the frameworks' defaults, and what each would do to a given spec."""
