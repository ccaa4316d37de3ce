"""A VMX world switch for FPGAs: tables, hardware, simulation and firmware."""

__version__ = "0.1.0"
