"""Differential fuzzing: random programs on the reference model and on the hardware."""
