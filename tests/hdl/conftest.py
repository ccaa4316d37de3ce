"""Fixtures for the components' tests."""

import pytest
from amaranth.sim import Simulator

from vmxswitch.spec.capabilities import PRESETS


@pytest.fixture
def simulate(tmp_path, request):
    """Run testbenches quietly; if an assertion fails, run again with waves and then fail."""
    def run(dut, *testbenches):
        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        for testbench in testbenches:
            simulator.add_testbench(testbench)
        try:
            simulator.run()
        except AssertionError:
            simulator.reset()
            name = tmp_path / request.node.name.replace("/", "_")
            with simulator.write_vcd(f"{name}.vcd", f"{name}.gtkw", traces=[dut]):
                simulator.run()
    return run


@pytest.fixture(params=PRESETS.values(), ids=PRESETS)
def preset(request):
    """Each of our own configurations."""
    return request.param
