"""Synthesizable components, one a file; :class:`vmxswitch.hdl.vmx_unit.VmxUnit` wires them."""
