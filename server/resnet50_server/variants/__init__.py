"""Weight variants: what they are, where their files lie, and the network they make."""
