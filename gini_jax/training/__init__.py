"""The training step, the loop around it, and the files that it writes."""
