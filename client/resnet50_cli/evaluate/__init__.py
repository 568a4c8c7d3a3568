"""The command `evaluate`: accuracy of the served path on labelled images."""
