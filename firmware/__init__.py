"""VMM model, instruction-level driver, processor environments and the readers of register dumps."""
