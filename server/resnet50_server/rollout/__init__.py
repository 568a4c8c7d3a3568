"""Traffic splits: canary and shadow traffic between two variants."""
