"""VMM and its guests, instruction-level driver, environments and the readers of register dumps."""
